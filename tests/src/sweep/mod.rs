//! The crash sweep: real nodes, real sandboxes, real requesters, and a provider that is killed at every step of a lease.
//!
//! ```text
//!   start, with a failpoint ─► rent ─► end ─► … killed ─► look ─► start again ─► … ─► all is over ─► killed ─► look
//! ```
//!
//! One run is one lease. Runs take the failpoints in turn, then instants at random. Mixes are shared by all runs; several
//! providers live side by side, each with runs of its own, because a run mostly waits. What is looked at is what anybody
//! with the machine can see: the processes that keep instances, the files of the provider while it is dead, and what the
//! requester was told.

mod look;
mod provider;
mod soak;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use souk_node::failpoint::{Failpoint, PlantedBug};

use self::provider::Provider;
pub use self::soak::{Footprint, Growth, Soak, Soaked, soak};
use crate::{
    network::{Network, NodeUnderTest, Plan},
    process::Process,
    requester::Requester,
    simulation::{Invariant, Violation},
};

/// How long one run may take; more is a promise broken.
const RUN_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Leases that a run asks for at most, until its provider has died.
const MAX_RENTS: u32 = 4;
/// Longest time into a run of a kill at random.
const LONGEST_LIFE_MS: u32 = 4_000;
/// One run in so many lets its lease come to the end of its time.
const RUNS_PER_EXPIRY: u64 = 5;
/// How long such a lease lasts, in seconds; of every other one its requester asks for the end.
const SHORT_LEASE: &str = "8";
const LONG_LEASE: &str = "90";
/// How long after its time an instance may be there: one period of reconciliation.
const RECONCILE: Duration = Duration::from_secs(60);

/// Of all runs, those that must have a death and a closed lease: an instant at random may come when all is over, and a provider that
/// has just started may refuse.
const LEAST_PERCENT: u64 = 80;

/// What is swept.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// How many leases.
    pub runs: u64,
    /// What instants of death are drawn from.
    pub seed: u64,
    /// Providers that live side by side.
    pub workers: u64,
    /// The bug that is planted.
    pub bug: Option<PlantedBug>,
    /// These failpoints only; all that processes reach if there are none.
    pub points: Vec<Failpoint>,
    /// Ends with the first promise that is broken.
    pub stops: bool,
    /// Where everything is put that the processes of a run said which broke a promise.
    pub logs: Option<PathBuf>,
}

/// How a provider is killed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kill {
    /// At the nth time that it comes to a failpoint.
    At(Failpoint, u32),
    /// At an instant after its start.
    After(Duration),
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct Swept {
    /// Leases.
    pub runs: u64,
    /// Providers that died by their kill, at whichever step.
    pub deaths: u64,
    /// Deaths by failpoint.
    pub died_at: BTreeMap<Failpoint, u64>,
    /// Times that each failpoint was passed.
    pub hits: BTreeMap<Failpoint, u64>,
    /// Leases that ended with a proven statement.
    pub closed: u64,
    /// Of these, those whose time was over.
    pub expired: u64,
    /// Leases that were refused.
    pub refused: u64,
    /// Promises that were broken, with the run.
    pub failures: Vec<(String, Violation)>,
}

impl Swept {
    /// Whether every promise was kept, in runs that had what they are for: a death, and a lease that came to its end.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let of_most = |count: u64| count * 100 >= self.runs * LEAST_PERCENT;
        self.failures.is_empty() && of_most(self.deaths) && of_most(self.closed)
    }

    /// Failpoints that processes reach and that were never passed.
    #[must_use]
    pub fn unreached(&self) -> Vec<&'static str> {
        Failpoint::ALL
            .iter()
            .filter(|point| point.is_reached_by_processes() && !self.hits.contains_key(point))
            .map(|point| point.name())
            .collect()
    }
}

/// Sweeps.
///
/// # Panics
/// If the network does not start.
#[must_use]
pub fn sweep(plan: &Sweep) -> Swept {
    let network = Network::start(&Plan {
        mixes: 4,
        mean_delay_ms: 1,
        sells: false,
        ..Plan::default()
    });
    let points: Vec<_> = if plan.points.is_empty() {
        let all = Failpoint::ALL.iter().copied();
        all.filter(|point| point.is_reached_by_processes())
            .collect()
    } else {
        plan.points.clone()
    };
    let next = AtomicU64::new(0);
    let swept = Mutex::new(Swept::default());
    thread::scope(|scope| {
        for worker in 0..plan.workers {
            let (network, points, next, swept) = (&network, &points, &next, &swept);
            scope.spawn(move || {
                let logged = if plan.logs.is_some() { "debug" } else { "warn" };
                let mut provider = Provider::set_up(network, worker, plan.bug, logged);
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.runs {
                        break;
                    }
                    let kill = kill(plan.seed, number, points);
                    provider.start(Some(kill));
                    let requester = network.requester(&format!("requester{number}"), None);
                    let expires = number % RUNS_PER_EXPIRY == RUNS_PER_EXPIRY - 1;
                    let mut run = run(&requester, &mut provider, Some(kill), expires);
                    // Whatever was promised must hold while it is dead, too.
                    provider.kill();
                    run.violations.extend(provider.look(None, true));
                    if let (Some(logs), false) = (&plan.logs, run.violations.is_empty()) {
                        keep_logs(
                            &logs.join(number.to_string()),
                            network,
                            &provider,
                            &requester,
                        );
                    }
                    provider.forget_logs();
                    leave(&requester);
                    let mut swept = swept.lock().unwrap_or_else(PoisonError::into_inner);
                    swept.add(number, kill, run);
                    if plan.stops && !swept.failures.is_empty() {
                        next.store(plan.runs, Ordering::Relaxed);
                    }
                }
                let hits = provider.hits();
                let mut swept = swept.lock().unwrap_or_else(PoisonError::into_inner);
                for (point, count) in hits {
                    *swept.hits.entry(point).or_default() += count;
                }
            });
        }
    });
    swept.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The failpoints in turn, every third time an instant in their place.
fn kill(seed: u64, number: u64, points: &[Failpoint]) -> Kill {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
    let round = number / points.len() as u64;
    if round % 3 == 2 {
        let ms = rng.random_range(1..LONGEST_LIFE_MS);
        return Kill::After(Duration::from_millis(ms.into()));
    }
    let point = points[usize::try_from(number).unwrap_or(0) % points.len()];
    // Steps that every row passes are also met later in a life.
    let nth = if matches!(point, Failpoint::BeforeCommit | Failpoint::Committed) {
        rng.random_range(1..16)
    } else {
        1
    };
    Kill::At(point, nth)
}

/// What came of one run.
#[derive(Default)]
struct Run {
    died: bool,
    closed: bool,
    expired: bool,
    refused: u64,
    violations: Vec<Violation>,
}

impl Swept {
    fn add(&mut self, number: u64, kill: Kill, run: Run) {
        self.runs += 1;
        self.deaths += u64::from(run.died);
        if let (true, Kill::At(point, _)) = (run.died, kill) {
            *self.died_at.entry(point).or_default() += 1;
        }
        self.closed += u64::from(run.closed);
        self.expired += u64::from(run.closed && run.expired);
        self.refused += run.refused;
        let failures = run.violations.into_iter();
        self.failures
            .extend(failures.map(|violation| (format!("run {number}, {kill:?}"), violation)));
    }
}

/// One lease, with one death in it if there is to be one; its requester ends it, or waits until its time is over.
fn run(requester: &Requester, provider: &mut Provider, kill: Option<Kill>, expires: bool) -> Run {
    let mut run = Run::default();
    let start = Instant::now();
    let mut scene = Scene {
        provider,
        requester,
        run: &mut run,
        start,
        kill,
        expires,
        rents: 0,
        acts: 0,
        said: String::new(),
    };
    scene.play();
    let leases = leases(requester);
    run.closed = leases.iter().any(|lease| lease.stage == "closed");
    run.refused = leases
        .iter()
        .filter(|lease| lease.stage == "refused")
        .count() as u64;
    run
}

/// A requester is done. Thousands of their folders would fill the disk; what cannot be removed goes with the network.
fn leave(requester: &Requester) {
    let _ = fs::remove_dir_all(requester.folder());
}

/// Copies what the processes of a run said into a folder of its own.
fn keep_logs(to: &Path, network: &Network, provider: &Provider, requester: &Requester) {
    fs::create_dir_all(to).expect("the folder for logs takes folders");
    let mixes = network.mixes().iter().map(NodeUnderTest::folder);
    for from in mixes.chain([provider.folder(), requester.folder()]) {
        for path in logs_in(from) {
            let name = path.file_name().expect("it was listed");
            fs::copy(&path, to.join(name)).expect("the folder for logs takes files");
        }
    }
}

/// The files in a folder that hold what processes said.
fn logs_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten();
    files
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|name| name == "log"))
}

/// A lease as its requester knows it.
struct Known {
    name: String,
    stage: String,
}

impl Known {
    /// Nothing more will be heard of it.
    fn is_over(&self) -> bool {
        matches!(self.stage.as_str(), "closed" | "refused")
    }
}

fn leases(requester: &Requester) -> Vec<Known> {
    let output = requester.souk(&["leases", "--json"]).output();
    let leases: Value = output
        .ok()
        .and_then(|output| serde_json::from_slice(&output.stdout).ok())
        .unwrap_or_default();
    let known = |lease: &Value| {
        let text = |field: &str| lease[field].as_str().map(str::to_owned);
        Some(Known {
            name: text("name")?,
            stage: text("stage")?,
        })
    };
    leases
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(known)
        .collect()
}

struct Scene<'a> {
    provider: &'a mut Provider,
    requester: &'a Requester,
    run: &'a mut Run,
    start: Instant,
    kill: Option<Kill>,
    expires: bool,
    rents: u32,
    /// Commands that the requester has run.
    acts: u32,
    /// What the last command of the requester said.
    said: String,
}

impl Scene<'_> {
    /// Rents, ends, and asks until it is told.
    fn play(&mut self) {
        let id = self.provider.id().to_owned();
        let rent = [
            "rent",
            "--json",
            "--provider",
            &id,
            "--duration-s",
            if self.expires {
                SHORT_LEASE
            } else {
                LONG_LEASE
            },
            "--cpu-millicores",
            "200",
            "--memory-mib",
            "128",
            "--disk-mib",
            "16",
        ];
        loop {
            let known = leases(self.requester);
            let open = known.iter().find(|lease| !lease.is_over());
            if self.start.elapsed() >= RUN_PATIENCE {
                if let Some(lease) = open {
                    let seen = format!("{} is still {}; {}", lease.name, lease.stage, self.said);
                    self.broken(Invariant::RequesterIsTold, seen);
                }
                break;
            }
            match open {
                Some(lease) if lease.stage == "requested" => {
                    self.act(&["rent", "--json", "--resume", &lease.name]);
                }
                Some(lease) if self.expires && lease.stage == "active" => self.pause(),
                Some(_) if self.expires && !self.run.expired => {
                    self.run.expired = true;
                    self.settle(RECONCILE, Invariant::NoLeasePastItsDeadline);
                }
                Some(lease) => self.act(&["end", "--json", "--wait-s", "10", &lease.name]),
                // A provider that has just started may not know the relays yet, and refuses; it is asked again, so that
                // its death is met.
                None if known.is_empty() || (self.kill.is_some() && self.rents < MAX_RENTS) => {
                    self.rents += 1;
                    self.act(&rent);
                }
                None => break,
            }
        }
        self.settle(RUN_PATIENCE, Invariant::NoOrphan);
    }

    /// Lets a moment pass.
    fn pause(&mut self) {
        self.tend();
        thread::sleep(LOOK_AGAIN);
    }

    /// Lets a command of the requester run to its end, whatever the provider does meanwhile.
    fn act(&mut self, arguments: &[&str]) {
        let command = self.requester.souk(arguments);
        self.acts += 1;
        let name = format!("requester-{}-{}", self.acts, arguments[0]);
        let mut process = Process::start(&name, command, self.requester.folder());
        while process.ended().is_none() {
            self.pause();
            if self.start.elapsed() > 2 * RUN_PATIENCE {
                process.kill();
            }
        }
        self.said = process.said();
    }

    /// Kills the provider when its time has come, and starts it again when it is dead.
    fn tend(&mut self) {
        if let Some(Kill::After(life)) = self.kill
            && self.start.elapsed() >= life
        {
            self.provider.kill();
        }
        if self.provider.is_dead() {
            self.run.died |= self.kill.take().is_some();
            let seen = self.provider.look(Some(self.requester), false);
            self.run.violations.extend(seen);
            self.provider.start(None);
        }
    }

    /// Within `patience` nothing is left of the lease, or a promise is broken.
    fn settle(&mut self, patience: Duration, promise: Invariant) {
        let start = Instant::now();
        while !self.provider.instances().is_empty() {
            if start.elapsed() > patience {
                let left = self.provider.instances();
                self.broken(promise, format!("{left:?} are still there"));
                return;
            }
            self.pause();
        }
    }

    fn broken(&mut self, invariant: Invariant, seen: String) {
        self.run.violations.push(Violation { invariant, seen });
    }
}
