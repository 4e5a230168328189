//! Key epochs: which mix keys a packet is built for, and until when they open it.
//!
//! ```text
//!  epoch      n-1          n           n+1
//!         ├───────────┼───────────┼───────────┤
//!  build      for n-1 ┊ for n     ┊ for n+1       (switches in the middle of an epoch)
//!  accept n:       ├──────────────┬────┤          (from when it is built for, with a skew, until a grace after)
//! ```
//!
//! Senders switch to the next keys in the *middle* of an epoch, so that a SURB made at any moment lives for
//! at least half an epoch. Everybody switches at the same time: an epoch chosen freely would be a fingerprint.
//!
//! Nobody honest has packets for an epoch before that, so none are taken but for the skew of clocks: whoever wants to use up what
//! a node holds for one epoch (its replay tags) cannot begin before everybody else.

use std::fmt;

use souk_crypto::{NetworkParams, UnixTime};

/// The number of a key epoch: Unix time divided by the network's epoch length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Turns Unix time into key epochs; a parameter of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochClock {
    length_s: u64,
    grace_s: u64,
    skew_s: u64,
}

impl EpochClock {
    /// The clock of a network: epochs of its length, whose keys are kept for a quarter of that after their end. Clocks may
    /// differ by an eighth.
    #[must_use]
    pub fn of(params: &NetworkParams) -> Self {
        let length_s = u64::from(params.epoch_s());
        Self {
            length_s,
            grace_s: length_s / 4,
            skew_s: length_s / 8,
        }
    }

    /// The epoch that `now` lies in.
    #[must_use]
    pub fn at(&self, now: UnixTime) -> Epoch {
        Epoch(u32::try_from(now.0 / self.length_s).unwrap_or(u32::MAX))
    }

    /// The epoch whose keys packets and SURBs made `now` use.
    #[must_use]
    pub fn sending(&self, now: UnixTime) -> Epoch {
        self.at(now.plus_s(self.length_s / 2))
    }

    /// The oldest epoch that a node still opens `now`.
    #[must_use]
    pub fn oldest(&self, now: UnixTime) -> Epoch {
        self.at(now.minus_s(self.grace_s))
    }

    /// Whether a node opens packets of `epoch` at `now`: from when senders build for it, by clocks that go ahead, until the end
    /// of the grace.
    #[must_use]
    pub fn accepts(&self, epoch: Epoch, now: UnixTime) -> bool {
        (self.oldest(now)..=self.sending(now.plus_s(self.skew_s))).contains(&epoch)
    }

    /// The first second of `epoch`.
    #[must_use]
    pub fn start(&self, epoch: Epoch) -> UnixTime {
        UnixTime(u64::from(epoch.0) * self.length_s)
    }

    /// The second from which a node no longer opens packets of `epoch`.
    #[must_use]
    pub fn retired_from(&self, epoch: Epoch) -> UnixTime {
        self.start(epoch).plus_s(self.length_s + self.grace_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: EpochClock = EpochClock {
        length_s: 3600,
        grace_s: 300,
        skew_s: 60,
    };

    #[test]
    fn what_is_built_now_is_accepted_for_at_least_half_an_epoch() {
        for now in (0..20_000).step_by(7).map(UnixTime) {
            let epoch = CLOCK.sending(now);
            for later in [0, 900, 1800] {
                assert!(
                    CLOCK.accepts(epoch, now.plus_s(later)),
                    "built at {now}, {later} s later"
                );
            }
        }
    }

    #[test]
    fn keys_end_with_the_grace_and_are_not_opened_far_ahead() {
        assert_eq!(CLOCK.retired_from(Epoch(1)), UnixTime(7500));
        assert!(CLOCK.accepts(Epoch(1), UnixTime(7499)));
        assert!(!CLOCK.accepts(Epoch(1), UnixTime(7500)));
        assert!(!CLOCK.accepts(Epoch(4), UnixTime(7200)));
    }

    #[test]
    fn an_epoch_is_opened_when_senders_switch_to_it_and_not_before() {
        let middle = UnixTime(1800);
        assert_eq!(CLOCK.sending(middle), Epoch(1));
        assert!(!CLOCK.accepts(Epoch(1), middle.minus_s(61)));
        assert!(CLOCK.accepts(Epoch(1), middle.minus_s(60)));
        for ahead in 0..=60 {
            let epoch = CLOCK.sending(middle.plus_s(ahead));
            assert!(CLOCK.accepts(epoch, middle), "a clock {ahead} s ahead");
        }
    }

    #[test]
    fn clocks_far_in_the_future_do_not_overflow() {
        assert_eq!(CLOCK.at(UnixTime(u64::MAX)), Epoch(u32::MAX));
        assert_eq!(Epoch(u32::MAX).next(), Epoch(u32::MAX));
    }
}
