//! Key epochs: which mix keys a packet is built for, and until when they open it.
//!
//! ```text
//!  epoch      n-1          n           n+1
//!         ├───────────┼───────────┼───────────┤
//!  build      for n-1 ┊ for n     ┊ for n+1       (switches in the middle of an epoch)
//!  accept n:  ├───────────────────┬────┤          (one epoch ahead, and a grace after)
//! ```
//!
//! Senders switch to the next keys in the *middle* of an epoch, so that a SURB made at any moment lives for
//! at least half an epoch. Everybody switches at the same time: an epoch chosen freely would be a fingerprint.

use std::fmt;
use std::time::Duration;

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
}

impl EpochClock {
    /// A clock with epochs of `length`, whose keys are kept for `grace` after their end.
    ///
    /// Both are cut to whole seconds; a length under two seconds counts as two.
    #[must_use]
    pub fn new(length: Duration, grace: Duration) -> Self {
        Self {
            length_s: length.as_secs().max(2),
            grace_s: grace.as_secs(),
        }
    }

    /// The epoch that `unix_s` (Unix seconds) lies in.
    #[must_use]
    pub fn at(&self, unix_s: u64) -> Epoch {
        Epoch(u32::try_from(unix_s / self.length_s).unwrap_or(u32::MAX))
    }

    /// The epoch whose keys packets and SURBs made at `unix_s` use.
    #[must_use]
    pub fn sending(&self, unix_s: u64) -> Epoch {
        self.at(unix_s.saturating_add(self.length_s / 2))
    }

    /// The first second of `epoch`.
    #[must_use]
    pub fn start_s(&self, epoch: Epoch) -> u64 {
        u64::from(epoch.0) * self.length_s
    }

    /// The second from which a node no longer opens packets of `epoch`.
    #[must_use]
    pub fn retired_from_s(&self, epoch: Epoch) -> u64 {
        self.start_s(epoch) + self.length_s + self.grace_s
    }

    /// Whether a node opens packets of `epoch` at `unix_s`: from one epoch ahead until the end of the grace.
    #[must_use]
    pub fn accepts(&self, epoch: Epoch, unix_s: u64) -> bool {
        epoch <= self.at(unix_s).next() && unix_s < self.retired_from_s(epoch)
    }

    /// The length of an epoch in seconds.
    #[must_use]
    pub fn length_s(&self) -> u64 {
        self.length_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: EpochClock = EpochClock {
        length_s: 3600,
        grace_s: 300,
    };

    #[test]
    fn what_is_built_now_is_accepted_for_at_least_half_an_epoch() {
        for unix_s in (0..20_000).step_by(7) {
            let epoch = CLOCK.sending(unix_s);
            for later in [0, 900, 1800] {
                assert!(
                    CLOCK.accepts(epoch, unix_s + later),
                    "built at {unix_s}, {later} s later"
                );
            }
        }
    }

    #[test]
    fn keys_end_with_the_grace_and_are_not_opened_far_ahead() {
        assert!(CLOCK.accepts(Epoch(1), 7200 + 299));
        assert!(!CLOCK.accepts(Epoch(1), 7200 + 300));
        assert!(!CLOCK.accepts(Epoch(4), 3600 * 2));
    }

    #[test]
    fn clocks_far_in_the_future_do_not_overflow() {
        assert_eq!(CLOCK.at(u64::MAX), Epoch(u32::MAX));
        assert_eq!(Epoch(u32::MAX).next(), Epoch(u32::MAX));
    }
}
