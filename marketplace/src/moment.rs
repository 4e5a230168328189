//! Two clocks side by side: the wall's, which people and programs set, and a steady one, which nobody can.
//!
//! ```text
//!   wall    ──┬── passes ──────────┬─ set ─┬── passes ──►
//!   steady  ──┴── passes ──────────┴───────┴── passes ──►   the difference tells which it was
//! ```
//!
//! Threat: a wall clock that jumps (a wrong server, a dead battery, an operator's typing error) and with it all deadlines that
//! are read by it: leases that end at once, or that never end, and time that is billed and has not passed.

use std::time::Duration;

use souk_crypto::UnixTime;

use crate::wire::wire_map;

/// What a clock of the wall may gain or lose against the steady one within [`FOLLOWED_OVER`] and still be followed, in seconds:
/// NTP slews by half a thousandth, and both readings are rounded.
pub const FOLLOWED_S: u64 = 5;

/// Over what small corrections are added up: looks come every second, and one that is set a little at each is set as well.
pub const FOLLOWED_OVER: Duration = Duration::from_secs(3_600);

/// Time since some fixed instant, by a clock that nobody can set and that also runs while the machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SteadyTime(pub Duration);

impl SteadyTime {
    /// This instant, later by `duration`; stops at the largest instant.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// From `earlier` to this instant; zero where `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The clock of the wall.
    pub wall: UnixTime,
    /// The steady one.
    pub steady: SteadyTime,
}

/// Which boot of which machine a steady clock counts from; steady times of different boots cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct Boot(#[cbor(with = "minicbor::bytes")] pub [u8; 16]);

wire_map! {
    /// By how much the two clocks were apart, for whoever looks again in another process.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ClockMark {
        /// The boot that the steady clock counted from.
        0 => pub boot: Boot,
        /// Wall minus steady, in seconds.
        1 => pub apart_s: i64,
    }
}

/// The wall clock was set, by so many seconds: forward where it is positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockStep(pub i64);

impl ClockStep {
    /// Where an instant stands after the step, so that as much time is left until it as before. Stops at 1970 and at the largest
    /// instant.
    #[must_use]
    pub const fn shift(self, at: UnixTime) -> UnixTime {
        UnixTime(at.0.saturating_add_signed(self.0))
    }
}

/// Tells time that passed from a clock that was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockWatch {
    boot: Boot,
    /// By how much the clocks were apart when it was last agreed on.
    apart_s: i64,
    /// When that was.
    since: SteadyTime,
}

impl ClockWatch {
    /// Watches from now on.
    #[must_use]
    pub fn new(boot: Boot, now: Moment) -> Self {
        Self {
            boot,
            apart_s: apart_s(now),
            since: now.steady,
        }
    }

    /// Goes on from a mark, of an earlier process perhaps. After another boot nothing is known of the time in between, and it
    /// begins anew.
    #[must_use]
    pub fn resume(mark: Option<ClockMark>, boot: Boot, now: Moment) -> Self {
        match mark {
            Some(mark) if mark.boot == boot => Self {
                boot,
                apart_s: mark.apart_s,
                since: now.steady,
            },
            _ => Self::new(boot, now),
        }
    }

    /// Takes a reading; says whether the wall clock was set, and then by all that it has gained or lost since it was last agreed
    /// on. Up to [`FOLLOWED_S`] within [`FOLLOWED_OVER`] is followed.
    pub fn observe(&mut self, now: Moment) -> Option<ClockStep> {
        let apart_s = apart_s(now);
        let by = apart_s.saturating_sub(self.apart_s);
        let is_set = by.unsigned_abs() > FOLLOWED_S;
        if is_set || now.steady.since(self.since) >= FOLLOWED_OVER {
            (self.apart_s, self.since) = (apart_s, now.steady);
        }
        is_set.then_some(ClockStep(by))
    }

    /// For the next process.
    #[must_use]
    pub fn mark(&self) -> ClockMark {
        ClockMark {
            boot: self.boot,
            apart_s: self.apart_s,
        }
    }
}

fn apart_s(now: Moment) -> i64 {
    let signed = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
    signed(now.wall.0).saturating_sub(signed(now.steady.0.as_secs()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: Boot = Boot([1; 16]);

    fn at(wall: u64, steady: u64) -> Moment {
        Moment {
            wall: UnixTime(wall),
            steady: SteadyTime(Duration::from_secs(steady)),
        }
    }

    #[test]
    fn time_that_passes_is_no_step_and_a_clock_that_is_set_is_one() {
        let mut watch = ClockWatch::new(BOOT, at(1_000, 10));
        assert_eq!(watch.observe(at(90_000, 89_010)), None);
        assert_eq!(watch.observe(at(93_600, 89_010)), Some(ClockStep(3_600)));
        assert_eq!(watch.observe(at(93_610, 89_020)), None);
        assert_eq!(watch.observe(at(20, 89_030)), Some(ClockStep(-93_600)));
    }

    #[test]
    fn a_clock_that_is_corrected_by_seconds_is_followed() {
        let mut watch = ClockWatch::new(BOOT, at(1_000, 0));
        assert_eq!(watch.observe(at(1_015, 10)), None);
        assert_eq!(watch.observe(at(1_020, 20)), None);
    }

    #[test]
    fn a_clock_that_is_set_a_little_at_each_look_is_set() {
        let mut watch = ClockWatch::new(BOOT, at(1_000, 0));
        assert_eq!(watch.observe(at(1_006, 1)), None);
        assert_eq!(watch.observe(at(1_012, 2)), Some(ClockStep(10)));
        assert_eq!(watch.observe(at(1_017, 3)), None);
        assert_eq!(watch.observe(at(1_004, 4)), Some(ClockStep(-10)));
    }

    #[test]
    fn a_clock_that_drifts_for_days_is_followed() {
        let mut watch = ClockWatch::new(BOOT, at(1_000_000, 0));
        for minute in 1..10_000 {
            let drift = minute / 30;
            assert_eq!(
                watch.observe(at(1_000_000 + minute * 60 - drift, minute * 60)),
                None
            );
        }
    }

    #[test]
    fn a_step_between_two_processes_of_one_boot_is_seen_and_after_a_boot_nothing_is() {
        let mark = ClockWatch::new(BOOT, at(1_000, 10)).mark();
        let now = at(8_210, 20);
        let mut same = ClockWatch::resume(Some(mark), BOOT, now);
        assert_eq!(same.observe(now), Some(ClockStep(7_200)));
        let mut other = ClockWatch::resume(Some(mark), Boot([2; 16]), now);
        assert_eq!(other.observe(now), None);
        assert_eq!(ClockWatch::resume(None, BOOT, now).observe(now), None);
    }

    proptest! {
        #[test]
        fn steps_add_up_to_what_the_clock_was_set_by(
            moves in prop::collection::vec((0u64..10_000, -100_000i64..100_000), 1..40)
        ) {
            let mut now = at(10_000_000, 0);
            let mut watch = ClockWatch::new(BOOT, now);
            let (mut set, mut seen) = (0, 0);
            for (passed, by) in moves {
                // Smaller ones are followed, which this property is not about.
                let by = if by.unsigned_abs() > FOLLOWED_S { by } else { 0 };
                now.wall = ClockStep(by).shift(now.wall.plus_s(passed));
                now.steady = now.steady.plus(Duration::from_secs(passed));
                set += by;
                seen += watch.observe(now).map_or(0, |step| step.0);
            }
            prop_assert_eq!(set, seen);
        }

        #[test]
        fn what_is_followed_stays_small_however_often_it_is_looked(
            moves in prop::collection::vec((0u64..60, -8i64..8), 1..400)
        ) {
            let mut now = at(10_000_000, 0);
            let mut watch = ClockWatch::new(BOOT, now);
            let (mut set, mut seen) = (0i64, 0i64);
            for (passed, by) in moves {
                now.wall = ClockStep(by).shift(now.wall.plus_s(passed));
                now.steady = now.steady.plus(Duration::from_secs(passed));
                set += by;
                seen += watch.observe(now).map_or(0, |step| step.0);
                let hours = now.steady.0.as_secs() / FOLLOWED_OVER.as_secs() + 1;
                prop_assert!((set - seen).unsigned_abs() <= FOLLOWED_S * hours);
            }
        }
    }
}
