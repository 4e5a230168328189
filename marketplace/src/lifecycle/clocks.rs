//! Leases under clocks that are set, in one life and between two.

use std::time::Duration;

use proptest::prelude::*;
use souk_crypto::UnixTime;

use super::{Action, Event, Lease, Phase, Requested, Row, Terms, Usage};
use crate::{
    moment::{Boot, ClockMark, ClockStep, ClockWatch, FOLLOWED_S, Moment, SteadyTime},
    statement::Outcome,
    units::LeaseId,
};

const T0: UnixTime = UnixTime(1_800_000_000);
const TERM_S: u64 = 3_600;
const BOOT: Boot = Boot([1; 16]);

/// A machine with two clocks, a lease, and what of it is on the disk.
struct Machine {
    now: Moment,
    watch: ClockWatch,
    lease: Lease,
    stored: (Row, ClockMark),
}

impl Machine {
    fn with_active_lease() -> Self {
        let now = Moment {
            wall: T0,
            steady: SteadyTime(Duration::from_secs(500)),
        };
        let terms = Terms::new(T0, T0.plus_s(60), T0.plus_s(TERM_S)).expect("in order");
        let lease = Requested { terms }.reserve(LeaseId([7; 16]));
        let watch = ClockWatch::new(BOOT, now);
        let mut machine = Self {
            now,
            watch,
            stored: (*lease.row(), watch.mark()),
            lease,
        };
        machine.act();
        machine.handle(Event::Start);
        machine.handle(Event::Provisioned);
        assert_eq!(machine.lease.row().phase(), Phase::Active);
        machine
    }

    /// As a driver does it: first the clocks, then the event, then all actions.
    fn handle(&mut self, event: Event) {
        if let Some(step) = self.watch.observe(self.now) {
            self.lease.handle_clock_step(step);
        }
        self.lease.handle(self.now.wall, event);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.lease.poll_action() {
            if let Action::Persist(row) | Action::Close(row) = action {
                self.stored = (row, self.watch.mark());
                self.lease.persisted(row.version());
            }
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now.wall = self.now.wall.plus_s(seconds);
        self.now.steady = self.now.steady.plus(Duration::from_secs(seconds));
    }

    fn set_clock(&mut self, by: i64) {
        self.now.wall = ClockStep(by).shift(self.now.wall);
    }

    /// The process dies and comes back.
    fn restart(&mut self) {
        self.restart_in(BOOT);
    }

    fn restart_in(&mut self, boot: Boot) {
        let (row, mark) = self.stored;
        self.watch = ClockWatch::resume(Some(mark), boot, self.now);
        let step = self.watch.observe(self.now);
        self.lease = Lease::recover_after(step, row, self.now.wall);
        self.act();
    }

    fn is_active(&self) -> bool {
        self.lease.row().phase() == Phase::Active
    }
}

#[test]
fn a_jump_ends_no_lease_and_prolongs_none() {
    for by in [
        -86_400 * 400,
        -86_400,
        -3_600,
        -10,
        10,
        3_600,
        86_400,
        86_400 * 400,
    ] {
        for restarts in [false, true] {
            let mut machine = Machine::with_active_lease();
            machine.pass(TERM_S / 2);
            machine.set_clock(by);
            if restarts {
                machine.restart();
            }
            machine.handle(Event::Tick);
            let terms = *machine.lease.row().terms();
            assert!(machine.is_active(), "set by {by}");
            assert_eq!(terms.valid_to().since_s(machine.now.wall), TERM_S / 2);
            machine.pass(TERM_S / 2 - 1);
            machine.handle(Event::Tick);
            assert!(machine.is_active(), "set by {by}");
            machine.pass(1);
            machine.handle(Event::Tick);
            let ended = matches!(
                machine.lease.row().phase(),
                Phase::Draining {
                    outcome: Outcome::Expired,
                    ..
                }
            );
            assert!(ended, "set by {by}");
            // What is billed is what passed.
            assert_eq!(machine.now.wall.since_s(terms.accepted_at()), TERM_S);
        }
    }
}

#[test]
fn a_clock_from_before_1970_keeps_the_terms_readable() {
    let mut machine = Machine::with_active_lease();
    machine.now.wall = UnixTime(0);
    machine.handle(Event::Tick);
    let row = *machine.lease.row();
    let bytes = minicbor::to_vec(row).expect("into memory");
    assert_eq!(minicbor::decode::<Row>(&bytes).expect("reads"), row);
    assert!(machine.is_active() && row.terms().valid_to() == UnixTime(TERM_S));
}

#[test]
fn a_lease_that_closes_after_a_boot_with_the_clock_behind_has_no_negative_time() {
    for behind in [1, 3_600, 400 * 86_400] {
        let mut machine = Machine::with_active_lease();
        machine.now = Moment {
            wall: T0.minus_s(behind),
            steady: SteadyTime(Duration::from_secs(30)),
        };
        machine.restart_in(Boot([2; 16]));
        machine.handle(Event::Withdraw);
        machine.handle(Event::Terminated(Usage::UNKNOWN));
        let row = machine.lease.row();
        let Phase::Closed { at, .. } = row.phase() else {
            panic!("it is closed: {row:?}");
        };
        assert_eq!(at, row.terms().accepted_at());
        assert_eq!(machine.stored.0, *row, "and so it stands in the journal");
    }
}

proptest! {
    /// Whatever the clock is set to and however often the process dies: a lease that is looked at every ten seconds ends when
    /// its time has really passed, within those ten seconds and what is followed of small corrections.
    #[test]
    fn a_lease_lasts_as_long_as_was_agreed(
        steps in prop::collection::vec(
            (1u64..=10, prop_oneof![8 => Just(0i64), 2 => -200_000i64..200_000], prop::bool::weighted(0.1)),
            400..800,
        )
    ) {
        let mut machine = Machine::with_active_lease();
        let (mut real, mut followed) = (0, 0);
        for (passed, by, dies) in steps {
            machine.pass(passed);
            real += passed;
            machine.set_clock(by);
            if by.unsigned_abs() <= FOLLOWED_S {
                followed += by.unsigned_abs();
            }
            if dies {
                machine.restart();
            }
            machine.handle(Event::Tick);
            if !machine.is_active() {
                break;
            }
        }
        if machine.is_active() {
            prop_assert!(real < TERM_S + followed + 10);
        } else {
            prop_assert!(real + followed >= TERM_S);
            prop_assert!(real <= TERM_S + followed + 10);
        }
    }
}
