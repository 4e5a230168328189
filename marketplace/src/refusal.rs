//! Why a provider says no, as a number on the wire and as words that tell the requester what to do.
//!
//! Refusals are sealed and signed like receipts and have their size, so that nobody on the way learns which it was.
//! They are counted by reason ([`RefusalTotals`]) and reach the usage log as periodic totals only: one entry for each
//! would let a stranger fill the log for nothing.

use crate::wire::wire_enum;

wire_enum! {
    /// Why a request was refused.
    pub enum Reason {
        /// The envelope names another image than its grant.
        ImageMismatch = 0 => "image-mismatch",
        /// `accept_by` has passed.
        Expired = 1 => "expired",
        /// `accept_by` lies too far ahead.
        TooEarly = 2 => "too-early",
        /// Another envelope was accepted under this request id.
        Replayed = 3 => "replayed",
        /// It was made for another provider.
        OtherProvider = 4 => "other-provider",
        /// The card it accepts is not one of this provider's current cards.
        StaleOffer = 5 => "stale-offer",
        /// No backend has room for it now.
        NoCapacity = 6 => "no-capacity",
        /// It is larger than any size class.
        TooLarge = 7 => "too-large",
        /// The provider does not have the image.
        UnknownImage = 8 => "unknown-image",
        /// It demands a limit that no backend enforces.
        LimitNotEnforced = 9 => "limit-not-enforced",
        /// The provider serves nobody without a voucher.
        AnonymousRefused = 10 => "anonymous-refused",
        /// Too many anonymous leases run now.
        AnonymousConcurrent = 11 => "anonymous-concurrent",
        /// It is too long for an anonymous lease.
        AnonymousDuration = 12 => "anonymous-duration",
        /// It is too large for an anonymous lease.
        AnonymousSize = 13 => "anonymous-size",
        /// Too many anonymous leases were accepted within the hour.
        AnonymousRate = 14 => "anonymous-rate",
        /// The proof of work is missing or too small.
        WorkMissing = 15 => "work-missing",
        /// The provider does not list the issuer of the voucher.
        IssuerUnknown = 16 => "issuer-unknown",
        /// The voucher is not good for this request.
        VoucherInvalid = 17 => "voucher-invalid",
        /// The kind of authorization is not known here.
        AuthorizationUnknown = 18 => "authorization-unknown",
        /// It would cost more than `max_total`.
        TooExpensive = 19 => "too-expensive",
        /// The provider takes no new leases: it drains or retires.
        Draining = 20 => "draining",
        /// Too much is being remembered or done at the moment.
        Busy = 21 => "busy",
        /// The instance did not come up; nothing is owed.
        ProvisionFailed = 22 => "provision-failed",
        /// The counter is not higher than the last.
        StaleCounter = 23 => "stale-counter",
        /// This provider does not extend leases.
        NoTopUp = 24 => "no-top-up",
        /// The acknowledgement is for another statement.
        WrongStatement = 25 => "wrong-statement",
        /// The provider has a card of none of the relays that the request names.
        RelayUnknown = 26 => "relay-unknown",
        /// None of the relays that the request names let the holder in.
        NoRelay = 27 => "no-relay",
        /// The request names no relay, and the provider is not reached straight.
        NoDirect = 28 => "no-direct",
        /// It demands evidence of a TEE that no backend with room can bring.
        TeeMissing = 29 => "tee-missing",
        /// The lease has no evidence, or not so much of it.
        NoEvidence = 30 => "no-evidence",
    }
}

/// How many reasons there are.
pub const REASONS: usize = Reason::ALL.len();

impl Reason {
    /// Whether it speaks of one later request only: the envelope itself is not refused by it.
    #[must_use]
    pub const fn is_about_a_later_request(self) -> bool {
        matches!(
            self,
            Self::StaleCounter | Self::NoTopUp | Self::WrongStatement | Self::NoEvidence
        )
    }

    /// What happened and what to do about it, for the requester.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::ImageMismatch => {
                "the envelope names another image than its grant: make a new request"
            }
            Self::Expired => "the request arrived after its time: check your clock and rent again",
            Self::TooEarly => "the request is good for too long: check your clock and rent again",
            Self::Replayed => {
                "another request was accepted under this id: poll that lease, or rent again with a new key"
            }
            Self::OtherProvider => "the request was made for another provider: rent again",
            Self::StaleOffer => {
                "the provider has replaced the card you saw: fetch the market again and rent again"
            }
            Self::NoCapacity => {
                "no room at the moment: try later, a smaller size or another provider"
            }
            Self::TooLarge => {
                "larger than any lease of this provider: ask for less or rent elsewhere"
            }
            Self::UnknownImage => "the provider does not have this image: choose one of its card",
            Self::LimitNotEnforced => {
                "the provider does not enforce a limit that you require: rent elsewhere or require less"
            }
            Self::AnonymousRefused => {
                "the provider serves only holders of a voucher: get one from an issuer on its card"
            }
            Self::AnonymousConcurrent => {
                "all places for anonymous leases are taken: try later or bring a voucher"
            }
            Self::AnonymousDuration => {
                "too long for an anonymous lease: ask for less time or bring a voucher"
            }
            Self::AnonymousSize => {
                "too large for an anonymous lease: ask for less or bring a voucher"
            }
            Self::AnonymousRate => {
                "too many anonymous leases were accepted this hour: try later or bring a voucher"
            }
            Self::WorkMissing => {
                "the provider asks for more proof of work: fetch the market again and rent again"
            }
            Self::IssuerUnknown => {
                "the provider does not list your issuer: choose a provider that does"
            }
            Self::VoucherInvalid => {
                "the voucher is expired, or for another key, provider, size or duration: get a new one"
            }
            Self::AuthorizationUnknown => {
                "the provider does not know this kind of authorization: use a voucher or none"
            }
            Self::TooExpensive => {
                "it costs more than you allowed: raise the limit or rent elsewhere"
            }
            Self::Draining => "the provider takes no new leases: rent elsewhere",
            Self::Busy => "the provider is busy: try again in a minute",
            Self::ProvisionFailed => {
                "the machine did not start and nothing is owed: try again or rent elsewhere"
            }
            Self::StaleCounter => "an older request was repeated: poll again",
            Self::NoTopUp => "the provider does not extend leases: rent a new one",
            Self::WrongStatement => "the acknowledgement is for another statement: poll again",
            Self::RelayUnknown => {
                "the provider knows none of the relays that were drawn: rent again, which draws others"
            }
            Self::NoRelay => {
                "the provider reached none of the relays that were drawn and nothing is owed: rent again, which draws others"
            }
            Self::NoDirect => {
                "the provider lets nobody in without a relay: rent again without --direct"
            }
            Self::TeeMissing => {
                "the provider cannot prove now what its instances run on: rent elsewhere, or without --require-evidence"
            }
            Self::NoEvidence => {
                "the provider has no such evidence of the instance: end the lease and rent elsewhere"
            }
        }
    }
}

/// How often each reason was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalTotals([u64; REASONS]);

impl Default for RefusalTotals {
    fn default() -> Self {
        Self([0; REASONS])
    }
}

impl RefusalTotals {
    /// Counts one refusal.
    pub fn count(&mut self, reason: Reason) {
        let slot = &mut self.0[reason as usize];
        *slot = slot.saturating_add(1);
    }

    /// How often this reason was given.
    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// The reasons that were given, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL
            .iter()
            .copied()
            .zip(self.0)
            .filter(|(_, n)| *n > 0)
    }

    /// All refusals together.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }
}
