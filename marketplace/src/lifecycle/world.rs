//! A provider around the core: a store, a log and a backend that answer when they like, and a process that dies.

use proptest::prelude::*;
use souk_crypto::UnixTime;

use super::{Action, Command, Event, Lease, Phase, Reply, Requested, Row, Terms, Usage};
use crate::{
    statement::Outcome,
    units::{Counter, LeaseId, Meter},
};

const T0: UnixTime = UnixTime(1_000_000);
const UP_BY_S: u64 = 60;
const TERM_S: u64 = 600;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver does the next action.
    Act,
    /// The store fails once: the row is not written and the action stays.
    StoreFails,
    /// The process dies; a call to the backend that was under way took effect, or not.
    Crash {
        took_effect: bool,
    },
    /// The backend answers the call that is under way.
    Answer {
        ok: bool,
    },
    Advance {
        seconds: u64,
    },
    Start,
    Sample(u64),
    LoseMeters,
    InstanceExits,
    Withdraw,
    Repeat,
    Command {
        counter: u64,
        end: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Provision,
    Terminate,
}

/// What became visible outside of the process, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Stored(Row),
    Called(Call),
    Replied(Reply),
}

struct World {
    now: UnixTime,
    lease: Lease,
    stored: Option<Row>,
    log: Vec<LeaseId>,
    running: bool,
    /// The call that is under way.
    call: Option<Call>,
    seen: Vec<Seen>,
}

impl World {
    fn new() -> Self {
        Self {
            now: T0,
            lease: reserve(T0),
            stored: None,
            log: Vec::new(),
            running: false,
            call: None,
            seen: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Act => self.act(),
            Step::StoreFails => {
                let before = self.lease.poll_action();
                if let Some(Action::Persist(_) | Action::Close(_)) = before {
                    assert_eq!(
                        self.lease.poll_action(),
                        before,
                        "a row is offered until it is written"
                    );
                } else if let Some(action) = before {
                    self.perform(action);
                }
            }
            Step::Crash { took_effect } => self.crash(took_effect),
            Step::Answer { ok } => self.answer(ok),
            Step::Advance { seconds } => {
                self.now = now.plus_s(seconds);
                self.lease.handle(self.now, Event::Tick);
            }
            Step::Start => self.lease.handle(now, Event::Start),
            Step::Sample(n) if self.running => {
                self.lease
                    .handle(now, Event::Sampled(usage(Meter::Known(n))));
            }
            Step::LoseMeters if self.running => {
                self.lease.handle(now, Event::Sampled(Usage::UNKNOWN));
            }
            Step::Sample(_) | Step::LoseMeters => {}
            Step::InstanceExits => {
                if self.running {
                    self.running = false;
                    self.lease.handle(now, Event::Exited);
                }
            }
            Step::Withdraw => self.lease.handle(now, Event::Withdraw),
            Step::Repeat => self.lease.handle_repeated(),
            Step::Command { counter, end } => {
                let command = if end { Command::End } else { Command::Poll };
                let highest = self.lease.row().counter;
                let taken = self.lease.handle_command(now, Counter(counter), command);
                assert_eq!(taken.is_ok(), Counter(counter) > highest);
            }
        }
    }

    fn act(&mut self) {
        if let Some(action) = self.lease.poll_action() {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Persist(row) | Action::Close(row) => {
                if matches!(action, Action::Close(_)) {
                    self.log.push(row.lease());
                }
                self.stored = Some(row);
                self.seen.push(Seen::Stored(row));
                self.lease.persisted(row.version());
            }
            Action::Provision => self.begin(Call::Provision),
            Action::Terminate => {
                // The contract of the action: an attempt to provision comes to its end first.
                if self.call == Some(Call::Provision) {
                    self.answer(true);
                }
                self.begin(Call::Terminate);
            }
            Action::Watch if !self.running => self.lease.handle(self.now, Event::Exited),
            Action::Watch => {}
            Action::Reply(reply) => self.seen.push(Seen::Replied(reply)),
        }
    }

    fn begin(&mut self, call: Call) {
        self.call = Some(call);
        self.seen.push(Seen::Called(call));
    }

    fn answer(&mut self, ok: bool) {
        let now = self.now;
        let event = match (self.call.take(), ok) {
            (None, _) => return,
            (Some(Call::Provision), true) => {
                self.running = true;
                Event::Provisioned
            }
            (Some(Call::Provision), false) => Event::ProvisionFailed,
            (Some(Call::Terminate), true) => {
                self.running = false;
                Event::Terminated(usage(Meter::Known(1_000)))
            }
            (Some(Call::Terminate), false) => Event::TerminateFailed,
        };
        self.lease.handle(now, event);
    }

    fn crash(&mut self, took_effect: bool) {
        match self.call.take() {
            Some(Call::Provision) if took_effect => self.running = true,
            Some(Call::Terminate) if took_effect => self.running = false,
            _ => {}
        }
        // Without a row nothing of the lease was ever seen; the requester asks again.
        self.lease = match self.stored {
            Some(row) => Lease::recover(row, self.now),
            None => reserve(self.now),
        };
    }

    /// Everything answers from now on, and the time passes.
    fn settle(&mut self) {
        for _ in 0..64 {
            while let Some(action) = self.lease.poll_action() {
                self.perform(action);
            }
            self.answer(true);
            if self
                .stored
                .is_some_and(|row| matches!(row.phase(), Phase::Closed { .. }))
                && self.lease.poll_action().is_none()
            {
                return;
            }
            self.step(Step::Advance { seconds: 120 });
        }
        panic!("the lease never closed: {:?}", self.lease);
    }

    fn stored_rows(&self) -> impl Iterator<Item = &Row> {
        self.seen.iter().filter_map(|seen| match seen {
            Seen::Stored(row) => Some(row),
            _ => None,
        })
    }

    /// What was seen, each with the row that was the last on disk at that moment.
    fn seen_after_rows(&self) -> impl Iterator<Item = (Option<Row>, Seen)> {
        self.seen.iter().scan(None, |row, seen| {
            if let Seen::Stored(stored) = seen {
                *row = Some(*stored);
            }
            Some((*row, *seen))
        })
    }
}

fn reserve(now: UnixTime) -> Lease {
    let terms = Terms::new(now, now.plus_s(UP_BY_S), now.plus_s(TERM_S)).expect("rising");
    Requested { terms }.reserve(LeaseId([7; 16]))
}

fn usage(meter: Meter) -> Usage {
    Usage {
        cpu_core_ms: meter,
        memory_mib_s: meter,
        net_rx_bytes: meter,
        net_tx_bytes: meter,
    }
}

// ---- invariants, true after every step ----

fn calls_come_after_their_row(world: &World) {
    for (row, seen) in world.seen_after_rows() {
        let phase = row.map(|row| row.phase());
        match seen {
            Seen::Called(Call::Provision) => {
                assert_eq!(
                    phase,
                    Some(Phase::Provisioning),
                    "what is on disk at a provision"
                );
            }
            Seen::Called(Call::Terminate) => assert!(
                matches!(phase, Some(Phase::Draining { .. })),
                "terminate with {phase:?} on disk"
            ),
            Seen::Stored(_) | Seen::Replied(_) => {}
        }
    }
}

fn replies_come_after_their_row(world: &World) {
    let mut was_active = false;
    for (row, seen) in world.seen_after_rows() {
        let phase = row.map(|row| row.phase());
        was_active |= phase == Some(Phase::Active);
        let Seen::Replied(reply) = seen else { continue };
        let announced = match reply {
            Reply::Receipt => was_active,
            Reply::Status => phase.is_some(),
            Reply::Refusal => matches!(
                phase,
                Some(
                    Phase::Draining {
                        outcome: Outcome::ProvisionFailed,
                        ..
                    } | Phase::Closed {
                        outcome: Outcome::ProvisionFailed,
                        ..
                    }
                )
            ),
            Reply::Statement => matches!(phase, Some(Phase::Closed { .. })),
        };
        assert!(announced, "{reply:?} with {phase:?} on disk");
    }
}

fn no_provisioning_once_draining(world: &World) {
    let mut draining = false;
    for seen in &world.seen {
        match seen {
            Seen::Stored(row) => draining |= rank(row) >= 3,
            Seen::Called(Call::Provision) => assert!(!draining, "provisioned a lease that drains"),
            _ => {}
        }
    }
}

fn rows_only_advance(world: &World) {
    let rows: Vec<_> = world.stored_rows().collect();
    for pair in rows.windows(2) {
        assert!(pair[0].version < pair[1].version, "versions rise");
        assert!(pair[0].counter <= pair[1].counter, "counters never fall");
        assert!(rank(pair[0]) <= rank(pair[1]), "phases never go back");
        assert_eq!(pair[0].terms, pair[1].terms, "deadlines never move");
    }
}

fn known_usage_never_shrinks(world: &World) {
    let known = |row: &Row| match row.usage.cpu_core_ms {
        Meter::Known(n) | Meter::AtLeast(n) => n,
        Meter::Unknown => 0,
    };
    let rows: Vec<_> = world.stored_rows().collect();
    assert!(rows.windows(2).all(|pair| known(pair[0]) <= known(pair[1])));
}

fn at_most_one_log_entry_and_only_with_a_closed_row(world: &World) {
    let closed = world.stored_rows().any(|row| rank(row) == 4);
    assert_eq!(world.log.len(), usize::from(closed));
}

fn rank(row: &Row) -> u8 {
    match row.phase {
        Phase::Reserved => 0,
        Phase::Provisioning => 1,
        Phase::Active => 2,
        Phase::Draining { .. } => 3,
        Phase::Closed { .. } => 4,
    }
}

// ---- invariants, true at the end ----

fn closed_with_nothing_left_running(world: &World) {
    assert!(!world.running, "an orphan");
    let row = world.stored.expect("a lease that was closed has a row");
    assert_eq!(rank(&row), 4);
    assert_eq!(world.log, [row.lease()], "exactly one entry");
}

/// A termination may be called again after a crash; the one that closes the row is the one that counts.
fn exactly_one_confirmed_termination(world: &World) {
    let transitions = world
        .stored_rows()
        .zip(world.stored_rows().skip(1))
        .filter(|(before, after)| rank(before) == 3 && rank(after) == 4)
        .count();
    assert_eq!(transitions, 1);
    assert!(world.seen.contains(&Seen::Called(Call::Terminate)));
}

fn a_lease_that_never_asked_for_an_instance_used_nothing(world: &World) {
    let asked = world.stored_rows().any(|row| rank(row) == 1);
    let usage = world.stored.expect("closed").usage;
    assert_eq!(usage == Usage::NONE, !asked, "{usage:?}");
}

fn check_always(world: &World) {
    calls_come_after_their_row(world);
    replies_come_after_their_row(world);
    no_provisioning_once_draining(world);
    rows_only_advance(world);
    known_usage_never_shrinks(world);
    at_most_one_log_entry_and_only_with_a_closed_row(world);
}

fn check_end(world: &World) {
    check_always(world);
    closed_with_nothing_left_running(world);
    exactly_one_confirmed_termination(world);
    a_lease_that_never_asked_for_an_instance_used_nothing(world);
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => Just(Step::Act),
        1 => Just(Step::StoreFails),
        2 => any::<bool>().prop_map(|took_effect| Step::Crash { took_effect }),
        4 => any::<bool>().prop_map(|ok| Step::Answer { ok }),
        1 => (0u64..200).prop_map(|seconds| Step::Advance { seconds }),
        4 => Just(Step::Start),
        2 => (0u64..900).prop_map(Step::Sample),
        1 => Just(Step::LoseMeters),
        1 => Just(Step::InstanceExits),
        1 => Just(Step::Withdraw),
        1 => Just(Step::Repeat),
        2 => (0u64..6, any::<bool>()).prop_map(|(counter, end)| Step::Command { counter, end }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn invariants_hold_over_random_orders_and_crashes(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
            check_always(&world);
        }
        world.settle();
        check_end(&world);
    }

    #[test]
    fn a_crash_between_any_two_actions_changes_nothing_but_the_way(
        crashes in prop::collection::vec(any::<Option<bool>>(), 40),
    ) {
        let mut world = World::new();
        for crash in crashes {
            world.step(Step::Start);
            world.step(Step::Act);
            if let Some(took_effect) = crash {
                world.step(Step::Crash { took_effect });
            }
            world.step(Step::Answer { ok: true });
            check_always(&world);
        }
        world.settle();
        check_end(&world);
    }

    #[test]
    fn a_row_reads_back_as_it_was_written(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        for row in world.stored_rows() {
            let bytes = souk_crypto::cbor::encode(row);
            let read: Row = souk_crypto::cbor::decode(&bytes, 256).expect("just written");
            prop_assert_eq!(read, *row);
        }
    }
}

#[test]
fn the_straight_way_gives_each_action_once_and_in_order() {
    let mut world = World::new();
    world.step(Step::Act);
    world.step(Step::Start);
    world.step(Step::Act);
    world.step(Step::Act);
    world.step(Step::Answer { ok: true });
    for _ in 0..3 {
        world.step(Step::Act);
    }
    world.step(Step::Command {
        counter: 1,
        end: true,
    });
    world.step(Step::Act);
    world.step(Step::Act);
    world.step(Step::Answer { ok: true });
    world.settle();
    let story: Vec<String> = world
        .seen
        .iter()
        .map(|seen| match seen {
            Seen::Stored(row) => format!("row {}", rank(row)),
            Seen::Called(call) => format!("{call:?}"),
            Seen::Replied(reply) => format!("{reply:?}"),
        })
        .collect();
    assert_eq!(
        story,
        [
            "row 0",
            "row 1",
            "Provision",
            "row 2",
            "Receipt",
            "row 3",
            "Terminate",
            "row 4",
            "Statement"
        ]
    );
    let row = world.stored.expect("closed");
    assert_eq!(row.usage, usage(Meter::Known(1_000)));
    assert!(matches!(
        row.phase,
        Phase::Closed {
            outcome: Outcome::EndedByHolder,
            ..
        }
    ));
}

#[test]
fn a_lost_meter_leaves_what_was_known_and_is_never_zero() {
    let known = usage(Meter::Known(5));
    assert_eq!(Usage::UNKNOWN.then(&Usage::UNKNOWN), Usage::UNKNOWN);
    assert_eq!(known.then(&Usage::UNKNOWN), usage(Meter::AtLeast(5)));
    assert_eq!(known.then(&usage(Meter::Known(9))), usage(Meter::Known(9)));
    // A meter that runs backwards was reset: what it says now is not the total.
    assert_eq!(
        known.then(&usage(Meter::Known(3))),
        usage(Meter::AtLeast(5))
    );
}

#[test]
fn a_termination_that_fails_is_tried_again_after_growing_pauses() {
    let mut world = World::new();
    world.step(Step::Act);
    world.step(Step::Withdraw);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        while let Some(action) = world.lease.poll_action() {
            world.perform(action);
        }
        world.answer(false);
        let at = world.lease.next_deadline().expect("a retry is due");
        pauses.push(at.since_s(world.now));
        world.step(Step::Advance {
            seconds: at.since_s(world.now),
        });
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}
