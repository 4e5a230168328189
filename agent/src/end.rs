//! The end of the lease, which needs nobody but this machine's clocks.
//!
//! Threat: clocks jump. `valid_to` is a time of the wall, and how far away it is gets read once, at the start; from then on the boot
//! clock counts, which nobody sets and which also runs while the machine sleeps. A wall clock that is set neither ends a lease
//! nor stretches it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// What processes get between being asked to end and being killed.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// Longest sleep between two looks at the clock: the timers of the runtime do not run while the machine sleeps.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// When a lease ends by the boot clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseEnd {
    boot: Duration,
}

impl LeaseEnd {
    /// The end of a lease that is valid until a wall-clock time, in Unix seconds, seen from now.
    pub(crate) fn from_now(valid_to_unix_s: u64) -> Self {
        Self::new(valid_to_unix_s, wall_now(), boot_now())
    }

    /// Waits until the lease is over.
    pub(crate) async fn reached(self) {
        loop {
            let left = self.left(boot_now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
    }

    fn new(valid_to_unix_s: u64, wall: Duration, boot: Duration) -> Self {
        let left = Duration::from_secs(valid_to_unix_s).saturating_sub(wall);
        Self {
            boot: boot.saturating_add(left),
        }
    }

    fn left(self, boot: Duration) -> Duration {
        self.boot.saturating_sub(boot)
    }
}

/// Time since the epoch.
fn wall_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Time since the machine booted, sleep included.
fn boot_now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID_TO_S: u64 = 2_000_000_000;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_that_is_over_ends_at_once() {
        let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S + 1), s(7));
        assert_eq!(end.left(s(7)), s(0));
    }

    proptest! {
        #[test]
        fn a_lease_lasts_as_long_as_was_left_of_it_at_its_start(
            granted in 0u64..1_000_000,
            boot in 0u64..1_000_000_000,
            passed in 0u64..2_000_000,
        ) {
            let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S - granted), s(boot));
            prop_assert_eq!(end.left(s(boot + passed)), s(granted.saturating_sub(passed)));
        }
    }
}
