//! The end of the lease, which needs nobody but this machine's clocks.
//!
//! Threat: clocks jump. The wall clock decides, since `valid_to` is a time of the wall; the boot clock, which nobody
//! sets and which counts sleep, bounds how long a wall clock that was set back can stretch the lease.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// What processes get between being asked to end and being killed.
pub(crate) const GRACE: Duration = Duration::from_secs(3);

/// Longest sleep between two looks at the clocks: so late a jump of the wall clock is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// When a lease ends by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseEnd {
    wall: Duration,
    boot: Duration,
}

impl LeaseEnd {
    /// The end of a lease that is valid until a wall-clock time, in Unix seconds, seen from now.
    pub(crate) fn from_now(valid_to_unix_s: u64) -> Self {
        Self::new(valid_to_unix_s, wall_now(), boot_now())
    }

    /// Waits until one of the two clocks says that the lease is over.
    pub(crate) async fn reached(self) {
        loop {
            let left = self.left(wall_now(), boot_now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_AGAIN)).await;
        }
    }

    fn new(valid_to_unix_s: u64, wall: Duration, boot: Duration) -> Self {
        let end = Duration::from_secs(valid_to_unix_s);
        Self {
            wall: end,
            boot: boot.saturating_add(end.saturating_sub(wall)),
        }
    }

    fn left(self, wall: Duration, boot: Duration) -> Duration {
        self.wall
            .saturating_sub(wall)
            .min(self.boot.saturating_sub(boot))
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
    fn both_clocks_in_step_end_the_lease_at_valid_to() {
        let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S - 60), s(1000));
        assert_eq!(end.left(s(VALID_TO_S - 60), s(1000)), s(60));
        assert_eq!(end.left(s(VALID_TO_S - 1), s(1059)), s(1));
        assert_eq!(end.left(s(VALID_TO_S), s(1060)), s(0));
    }

    #[test]
    fn a_wall_clock_that_jumps_over_valid_to_ends_the_lease() {
        let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S - 3600), s(1000));
        assert_eq!(end.left(s(VALID_TO_S + 5), s(1001)), s(0));
    }

    #[test]
    fn a_lease_that_is_over_ends_at_once() {
        let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S + 1), s(7));
        assert_eq!(end.left(s(VALID_TO_S + 1), s(7)), s(0));
    }

    proptest! {
        #[test]
        fn no_wall_clock_stretches_a_lease(
            granted in 0u64..1_000_000,
            boot in 0u64..1_000_000_000,
            passed in 0u64..2_000_000,
            wall in 0u64..4_000_000_000,
        ) {
            let end = LeaseEnd::new(VALID_TO_S, s(VALID_TO_S - granted), s(boot));
            let left = end.left(s(wall), s(boot + passed));
            prop_assert!(left <= s(granted.saturating_sub(passed)));
            prop_assert!(wall < VALID_TO_S || left.is_zero());
        }
    }
}
