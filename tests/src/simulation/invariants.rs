//! What must hold, by name. A simulation and a crash sweep check the same promises, each by what it can see.

use std::fmt;

/// A promise of the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Invariant {
    /// The backend is asked for an instance of leases only whose intent is in the journal.
    IntentBeforeInstance,
    /// The backend is asked to remove instances of leases only that drain, are closed, or are not in the journal.
    DrainBeforeTermination,
    /// A receipt leaves after its instance is in the journal.
    JournalBeforeReceipt,
    /// A SURB is used once.
    NoSurbTwice,
    /// One request gets one lease.
    OneLeasePerRequest,
    /// What was in the journal is there after a crash, and rows only advance.
    NothingIsLost,
    /// A closed lease has exactly one entry in the log, and no other lease has one.
    ExactlyOneEntry,
    /// The entries of the log never change, and every published checkpoint is covered by its tiles and extends the last.
    LogOnlyGrows,
    /// The statement that a holder gets is the one in the log, and it is always the same.
    StatementIsProven,
    /// No instance is left that nobody owns.
    NoOrphan,
    /// No lease has two instances.
    NoDoubleInstance,
    /// Every lease is over by its deadline and the time of a reconciliation.
    NoLeasePastItsDeadline,
    /// A requester is told how its lease ended, or can ask.
    RequesterIsTold,
    /// The provider goes on as long as nobody ends it.
    StaysUp,
}

impl Invariant {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IntentBeforeInstance => "intent-before-instance",
            Self::DrainBeforeTermination => "drain-before-termination",
            Self::JournalBeforeReceipt => "journal-before-receipt",
            Self::NoSurbTwice => "no-surb-twice",
            Self::OneLeasePerRequest => "one-lease-per-request",
            Self::NothingIsLost => "nothing-is-lost",
            Self::ExactlyOneEntry => "exactly-one-entry",
            Self::LogOnlyGrows => "log-only-grows",
            Self::StatementIsProven => "statement-is-proven",
            Self::NoOrphan => "no-orphan",
            Self::NoDoubleInstance => "no-double-instance",
            Self::NoLeasePastItsDeadline => "no-lease-past-its-deadline",
            Self::RequesterIsTold => "requester-is-told",
            Self::StaysUp => "stays-up",
        }
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// What was seen.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name(), self.seen)
    }
}
