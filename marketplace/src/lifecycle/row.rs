//! What the lifecycle remembers of a lease; all of it stands in one row of the journal.
//!
//! Threat: a row that a crash or a fault of the disk left impossible: what decodes is in its one form, and both deadlines lie
//! after the acceptance.

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};
use souk_crypto::UnixTime;

use crate::{
    moment::ClockStep,
    statement::Outcome,
    units::{Counter, LeaseId, Meter},
    wire::{definite, wire_map},
};

wire_map! {
    /// Deadlines of a lease by the clock of the wall; they stand in its row, so that a restart does not move them.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Terms {
        /// When the request was accepted.
        0 => accepted_at: UnixTime,
        /// An instance that has not come up by then will not be waited for.
        1 => up_by: UnixTime,
        /// When the lease ends.
        2 => valid_to: UnixTime,
    }
    check = Terms::check;
}

impl Terms {
    /// Terms of a lease; none unless `accepted_at < up_by` and `accepted_at < valid_to`.
    #[must_use]
    pub fn new(accepted_at: UnixTime, up_by: UnixTime, valid_to: UnixTime) -> Option<Self> {
        let terms = Self {
            accepted_at,
            up_by,
            valid_to,
        };
        terms.check().is_ok().then_some(terms)
    }

    /// When the request was accepted.
    #[must_use]
    pub fn accepted_at(&self) -> UnixTime {
        self.accepted_at
    }

    /// An instance that has not come up by then will not be waited for.
    #[must_use]
    pub fn up_by(&self) -> UnixTime {
        self.up_by.min(self.valid_to)
    }

    /// When the lease ends.
    #[must_use]
    pub fn valid_to(&self) -> UnixTime {
        self.valid_to
    }

    /// The same terms by a clock that was set. Where that cannot be said, before 1970 for one, as near to it as the rules allow.
    pub(super) fn shifted(self, step: ClockStep) -> Self {
        let later = |at| step.shift(at).max(UnixTime(1));
        let (up_by, valid_to) = (later(self.up_by), later(self.valid_to));
        let latest = up_by.min(valid_to).minus_s(1);
        Self {
            accepted_at: step.shift(self.accepted_at).min(latest),
            up_by,
            valid_to,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.accepted_at < self.up_by && self.accepted_at < self.valid_to {
            Ok(())
        } else {
            Err("deadlines lie before the acceptance")
        }
    }
}

wire_map! {
    /// Totals since the instance was provisioned.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Usage {
        /// CPU time, in core-milliseconds.
        0 => pub cpu_core_ms: Meter,
        /// Memory in use over time, in MiB-seconds.
        1 => pub memory_mib_s: Meter,
        /// Bytes that entered the instance over its listeners.
        2 => pub net_rx_bytes: Meter,
        /// Bytes that left the instance over its listeners.
        3 => pub net_tx_bytes: Meter,
    }
}

impl Usage {
    /// Of a lease whose instance was never asked for: known to be nothing.
    pub const NONE: Self = Self::all(Meter::Known(0));
    /// Of a lease none of whose meters was ever read.
    pub const UNKNOWN: Self = Self::all(Meter::Unknown);

    const fn all(meter: Meter) -> Self {
        Self {
            cpu_core_ms: meter,
            memory_mib_s: meter,
            net_rx_bytes: meter,
            net_tx_bytes: meter,
        }
    }

    /// What is known after a later reading: a meter that has been lost, or runs backwards, is known up to its last good
    /// reading and no further.
    #[must_use]
    pub fn then(&self, later: &Self) -> Self {
        Self {
            cpu_core_ms: join(self.cpu_core_ms, later.cpu_core_ms),
            memory_mib_s: join(self.memory_mib_s, later.memory_mib_s),
            net_rx_bytes: join(self.net_rx_bytes, later.net_rx_bytes),
            net_tx_bytes: join(self.net_tx_bytes, later.net_tx_bytes),
        }
    }
}

fn join(before: Meter, later: Meter) -> Meter {
    match (before, later) {
        (Meter::Unknown, later) => later,
        (Meter::Known(n) | Meter::AtLeast(n), Meter::Unknown) => Meter::AtLeast(n),
        (Meter::Known(n) | Meter::AtLeast(n), Meter::AtLeast(m)) => Meter::AtLeast(n.max(m)),
        (Meter::Known(n) | Meter::AtLeast(n), Meter::Known(m)) if m >= n => Meter::Known(m),
        (Meter::Known(n) | Meter::AtLeast(n), Meter::Known(_)) => Meter::AtLeast(n),
    }
}

/// Where a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Capacity is held for it; no backend has been called.
    Reserved,
    /// The backend may have been asked for an instance.
    Provisioning,
    /// The instance accepts SSH.
    Active,
    /// The instance is being removed, because of the outcome.
    Draining {
        /// Why it ends.
        outcome: Outcome,
        /// Whether the backend may ever have been asked for an instance.
        provisioned: bool,
    },
    /// The instance is gone, and the log has its entry.
    Closed {
        /// Why it ended.
        outcome: Outcome,
        /// When the instance was known to be gone; never before the lease was accepted.
        at: UnixTime,
    },
}

wire_map! {
    /// All that the lifecycle has to remember of a lease.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Row {
        /// The lease.
        0 => pub(super) lease: LeaseId,
        /// Rises with every row that is written.
        1 => pub(super) version: u64,
        /// Its deadlines.
        2 => pub(super) terms: Terms,
        /// The highest counter its holder has used.
        3 => pub(super) counter: Counter,
        /// What has been measured so far; the final figure once it is closed.
        4 => pub(super) usage: Usage,
        /// Where it stands.
        5 => pub(super) phase: Phase,
    }
}

impl Row {
    /// The lease.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Rises with every row that is written, from 1.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Its deadlines.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// What has been measured so far; the final figure once it is closed.
    #[must_use]
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Where it stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }
}

const RESERVED: u8 = 0;
const PROVISIONING: u8 = 1;
const ACTIVE: u8 = 2;
const DRAINING: u8 = 3;
const CLOSED: u8 = 4;

impl<C> Encode<C> for Phase {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::Reserved => e.array(1)?.u8(RESERVED)?.ok(),
            Self::Provisioning => e.array(1)?.u8(PROVISIONING)?.ok(),
            Self::Active => e.array(1)?.u8(ACTIVE)?.ok(),
            Self::Draining {
                outcome,
                provisioned,
            } => {
                outcome.encode(e.array(3)?.u8(DRAINING)?, ctx)?;
                e.bool(*provisioned)?.ok()
            }
            Self::Closed { outcome, at } => {
                outcome.encode(e.array(3)?.u8(CLOSED)?, ctx)?;
                at.encode(e, ctx)
            }
        }
    }
}

impl<'b, C> Decode<'b, C> for Phase {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        match (definite(d.array()?)?, d.u8()?) {
            (1, RESERVED) => Ok(Self::Reserved),
            (1, PROVISIONING) => Ok(Self::Provisioning),
            (1, ACTIVE) => Ok(Self::Active),
            (3, DRAINING) => Ok(Self::Draining {
                outcome: Outcome::decode(d, ctx)?,
                provisioned: d.bool()?,
            }),
            (3, CLOSED) => Ok(Self::Closed {
                outcome: Outcome::decode(d, ctx)?,
                at: UnixTime::decode(d, ctx)?,
            }),
            _ => Err(CborError::message("unknown phase of a lease")),
        }
    }
}
