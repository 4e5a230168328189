//! A simulation of the provider: the node's own code, with a virtual clock, a seed, and everything around it that goes wrong.
//!
//! ```text
//!   requesters ──► mixes ──► provider (souk-node) ──► backend
//!        ▲    lost, late,      │ journal, log          lost, late and doubled calls, errors that took
//!        └──── doubled ────────┘ on a disk that        effect, lists of the past, hanging for ever
//!                                loses what is not
//!                                synced, and fills up
//! ```
//!
//! A run is a seed. For twelve minutes of virtual time requesters come and go, the provider is killed at failpoints, waits
//! and instants and started again, and every fault happens. Then all faults stop, and by [`Invariant`] everything must come
//! to its end. All of it is on one thread: the same seed is the same run, step by step, and the steps of a run can be written
//! to a file and [replayed](replay) against it.
//!
//! What is simulated: the messages between requester and provider are sealed and signed as always, but no packet is made of
//! them, and mixes are what they do to a message. The provider is driven from `Provider::start` on, over its real store.

mod check;
mod disk;
mod invariants;
mod life;
mod machines;
mod requester;
mod script;
#[path = "../../../marketplace/tests/support/mod.rs"]
mod support;
mod world;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use souk_node::{
    failpoint::{self, Failpoint, PlantedBug},
    provider::Provider,
};

pub use self::{
    invariants::{Invariant, Violation},
    script::{Divergence, Script, ScriptError, Step, Timed},
};
use self::{
    life::{Ended, live},
    requester::Requester,
    script::Steps,
    world::{Effect, Ending, Shared, World},
};

/// How long faults happen, in virtual milliseconds.
const CHAOS_MS: u64 = 720_000;
/// How long everything may take to come to its end after that: the longest lease, and what reconciliation may need.
const SETTLE_MS: u64 = 1_200_000;
/// By how much the clock of the wall is set at most, in seconds; less than what closed leases are remembered for.
const CLOCK_STEP_S: u32 = 1_800;
/// Lives in one run at most; more would be a provider that cannot start.
const MAX_LIVES: u32 = 64;

/// Every fault, by the name it is counted under; a batch that never made one of them has shown less than it says.
pub const FAULTS: &[&str] = &[
    "clock-set-back",
    "clock-set-forward",
    "disk-full",
    "instance-mute",
    "list-fails",
    "list-hangs",
    "list-of-the-past",
    "machine-exits",
    "message-doubled",
    "message-late",
    "message-lost",
    "provision-answer-lost",
    "provision-call-lost",
    "provision-delivered-twice",
    "provision-error-late",
    "provision-error-then-effect",
    "provision-error-with-effect",
    "provision-error-without-effect",
    "provision-slow",
    "relays-away",
    "requester-killed",
    "sample-fails",
    "sample-hangs",
    "stopped",
    "sync-fails",
    "terminate-answer-lost",
    "terminate-call-lost",
    "terminate-delivered-twice",
    "terminate-error-late",
    "terminate-error-then-effect",
    "terminate-error-with-effect",
    "terminate-error-without-effect",
    "terminate-slow",
    "unsynced-write-lost",
    "watch-fails",
    "withdrawn",
];

/// What came of one run.
#[derive(Debug)]
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// Promises that were not kept.
    pub violations: Vec<Violation>,
    /// Times that each failpoint was passed.
    pub hits: BTreeMap<Failpoint, u64>,
    /// Times that each fault was made.
    pub faults: BTreeMap<String, u64>,
    /// Lives that ended in the middle.
    pub deaths: u64,
    /// Leases that got a row.
    pub leases: u64,
    /// Virtual time, in seconds.
    pub virtual_s: u64,
    /// Its steps, where they were kept.
    pub script: Script,
    /// Where a replay went another way.
    pub divergence: Option<Divergence>,
}

/// Runs a seed.
///
/// # Panics
/// If the machine gives no temporary folder.
#[must_use]
pub fn run(seed: u64, bug: Option<PlantedBug>, keep_steps: bool) -> Run {
    run_with(Steps::drawn(seed, keep_steps), seed, bug)
}

/// Runs a script again: its decisions, compared step by step.
///
/// # Panics
/// As [`run`].
#[must_use]
pub fn replay(script: &Script) -> Run {
    let bug = script.bug.as_deref().and_then(PlantedBug::named);
    run_with(Steps::replayed(script), script.seed, bug)
}

fn run_with(steps: Steps, seed: u64, bug: Option<PlantedBug>) -> Run {
    catch_panics();
    PANICS.take();
    failpoint::plant(bug);
    let folder = temporary_folder();
    let world = Shared::new(World::new(steps, seed));
    prepare(&world);
    let deaths = chaos(&world, folder.path());
    settle(&world, folder.path());
    failpoint::plant(None);
    let mut guard = world.lock();
    let state = &mut *guard;
    for panic in PANICS.take() {
        state.require(Invariant::StaysUp, false, || panic);
    }
    let virtual_s = state.now_ms() / 1_000;
    let divergence = state.steps.divergence().cloned();
    let steps = std::mem::replace(&mut state.steps, Steps::drawn(0, false)).into_kept();
    Run {
        seed,
        violations: std::mem::take(&mut state.violations),
        hits: std::mem::take(&mut state.hits),
        faults: std::mem::take(&mut state.faults),
        deaths,
        leases: state.rows.len() as u64,
        virtual_s,
        script: Script {
            seed,
            bug: bug.map(|bug| bug.name().to_owned()),
            steps,
        },
        divergence,
    }
}

/// In memory where there is such a folder: syncing is what a run would wait for otherwise.
fn temporary_folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(memory)
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

/// Draws who comes, and what happens by itself.
fn prepare(world: &Shared) {
    let mut guard = world.lock();
    let state = &mut *guard;
    let requesters = 2 + state.steps.choose("requesters", 4) as usize;
    for who in 0..requesters {
        let requester = Requester::draw(state);
        state.requesters.push(requester);
        let after = state.steps.delay_ms("a requester comes", 1, 300_000);
        state.later(after, Effect::Wake { who });
        if state.steps.happens("a client is killed", 30) {
            let after = state.steps.delay_ms("a client is killed after", 1, 500_000);
            state.later(after, Effect::Forget { who });
        }
    }
    if state.steps.happens("the disk fills up", 25) {
        let from = state
            .steps
            .delay_ms("the disk fills up after", 1_000, 500_000);
        let lasts = state.steps.delay_ms("the disk is full for", 1_000, 90_000);
        state.later(from, Effect::DiskFull(true));
        state.later(from + lasts, Effect::DiskFull(false));
    }
    if state.steps.happens("a sync fails", 30) {
        let after = state.steps.delay_ms("a sync fails after", 1_000, 600_000);
        let n = 1 + state.steps.choose("syncs before one fails", 8);
        state.later(after, Effect::SyncFails { n });
    }
    if state.steps.happens("the clock is set", 30) {
        let after = state
            .steps
            .delay_ms("the clock is set after", 1_000, 600_000);
        let by_s = i64::from(state.steps.choose("the clock is set by", 2 * CLOCK_STEP_S));
        state.later(after, Effect::ClockStep(by_s - i64::from(CLOCK_STEP_S)));
    }
    if state.steps.happens("the operator ends a lease", 25) {
        let after = state
            .steps
            .delay_ms("the operator ends a lease after", 1_000, 500_000);
        state.later(after, Effect::Withdraw);
    }
}

/// Lives and dies until the time of faults is over; says how often it died.
fn chaos(world: &Shared, log: &Path) -> u64 {
    let mut deaths = 0;
    for _ in 0..MAX_LIVES {
        if world.lock().is_settling {
            break;
        }
        let ending = {
            let mut guard = world.lock();
            let state = &mut *guard;
            let now = state.now_ms();
            match state.steps.choose("a life ends", 100) {
                0..40 => Some(Ending::AtStep(1 + state.steps.choose("at step", 120))),
                40..60 => Some(Ending::At(now + state.steps.delay_ms("at", 1, 300_000))),
                60..75 => Some(Ending::Stopped(
                    now + state.steps.delay_ms("stopped at", 1, 300_000),
                )),
                _ => None,
            }
        };
        // The last life either goes on without faults, with whatever hangs in it, or begins anew.
        let until = if ending.is_none() && world.lock().steps.happens("it goes on", 60) {
            world.lock().settle_at(CHAOS_MS);
            CHAOS_MS + SETTLE_MS
        } else {
            CHAOS_MS
        };
        let ended = live(world, log, ending, until, everything_is_over);
        if ended != Ended::Over {
            // One that cannot start, on a full disk, does not go on.
            world.lock().settle_no_more();
        }
        match ended {
            Ended::Over => break,
            Ended::Died => deaths += 1,
            Ended::Stopped => world.lock().fault("stopped"),
        }
        let until = {
            let mut guard = world.lock();
            let state = &mut *guard;
            state.now_ms() + state.steps.delay_ms("it starts again after", 1, 60_000)
        };
        pass(world, until.min(CHAOS_MS));
        if world.lock().now_ms() >= CHAOS_MS {
            break;
        }
    }
    deaths
}

/// Time passes while no provider lives.
fn pass(world: &Shared, until_ms: u64) {
    loop {
        let due = {
            let mut state = world.lock();
            match state.next_at_ms() {
                Some(at) if at <= until_ms => {
                    state.pass_to(at);
                    state.due()
                }
                _ => None,
            }
        };
        match due {
            Some(effect) => life::bring_about(world, effect, None),
            None => return world.lock().pass_to(until_ms),
        }
    }
}

/// All faults stop, and everything comes to its end.
fn settle(world: &Shared, log: &Path) {
    let was_settled = world.lock().is_settling;
    if !was_settled {
        let until = {
            let mut state = world.lock();
            state.settle();
            state.now_ms() + SETTLE_MS
        };
        live(world, log, None, until, everything_is_over);
    }
    // In some runs one sees how closed leases are forgotten.
    let forgets = world.lock().steps.choose("time goes on", 8) == 0;
    if forgets {
        let until = {
            let mut state = world.lock();
            state.must_have_forgotten = true;
            state.now_ms() + (life::RETENTION_S + u64::from(CLOCK_STEP_S) + 700) * 1_000
        };
        live(world, log, None, until, |_, _| false);
    }
}

fn everything_is_over(world: &Shared, provider: &Provider) -> bool {
    let state = world.lock();
    let now = state.wall();
    state.is_settling
        && provider.leases().is_empty()
        && state.machines.running.is_empty()
        && !state.may_make_machines()
        && state.requesters.iter().all(|requester| {
            let has_lease = state.leases_of_requests.contains_key(&requester.request());
            requester.is_told() || (!has_lease && requester::is_out_of_time(requester, now))
        })
}

thread_local! {
    /// Panics of this thread's run. A provider may survive them, and they are bugs all the same.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what panics say, for the run in whose thread they happen.
fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if failpoint::is_simulated() {
                PANICS.with_borrow_mut(|panics| panics.push(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Batch {
    /// How many.
    pub seeds: u64,
    /// Those that broke a promise, by seed.
    pub failures: BTreeMap<u64, Vec<Violation>>,
    /// Times that each failpoint was passed.
    pub hits: BTreeMap<Failpoint, u64>,
    /// Times that each fault was made.
    pub faults: BTreeMap<String, u64>,
    /// Lives that ended in the middle.
    pub deaths: u64,
    /// Leases that got a row.
    pub leases: u64,
    /// Virtual time, in seconds.
    pub virtual_s: u64,
}

impl Batch {
    /// Runs seeds from `first` on, on as many threads as there are cores, and stops after the first that fails where
    /// `stops` says so.
    #[must_use]
    pub fn run(first: u64, count: u64, bug: Option<PlantedBug>, stops: bool) -> Self {
        let next = AtomicU64::new(first);
        let batch = Mutex::new(Self::default());
        let threads = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed - first >= count {
                            return;
                        }
                        let run = run(seed, bug, false);
                        let mut batch = batch.lock().unwrap_or_else(PoisonError::into_inner);
                        batch.add(run);
                        if stops && !batch.failures.is_empty() {
                            next.store(first + count, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        batch.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&mut self, run: Run) {
        self.seeds += 1;
        self.deaths += run.deaths;
        self.leases += run.leases;
        self.virtual_s += run.virtual_s;
        for (point, count) in run.hits {
            *self.hits.entry(point).or_default() += count;
        }
        for (fault, count) in run.faults {
            *self.faults.entry(fault).or_default() += count;
        }
        if !run.violations.is_empty() {
            self.failures.insert(run.seed, run.violations);
        }
    }

    /// Failpoints that were never passed and faults that were never made.
    #[must_use]
    pub fn unreached(&self) -> Vec<&'static str> {
        let points = Failpoint::ALL
            .iter()
            .filter(|point| !self.hits.contains_key(point))
            .map(|point| point.name());
        let faults = FAULTS
            .iter()
            .copied()
            .filter(|fault| !self.faults.contains_key(*fault));
        points.chain(faults).collect()
    }
}
