//! The soak: many leases over a long time, with deaths now and then, after which memory and file descriptors must be flat.
//!
//! Mixes live from beginning to end, and are held against what they used after a quarter of the leases, when caches are
//! warm. Providers are killed at random; each of their lives is held against what it used after its first lease.

use std::{
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{Kill, leave, provider::Provider, run};
use crate::{
    network::{Network, NodeUnderTest, Plan},
    simulation::Violation,
};

/// One lease in so many has a death in it.
const LEASES_PER_DEATH: u32 = 20;
/// Longest time into a lease of a death.
const LONGEST_MS: u32 = 4_000;
/// Of all runs, those that have to end with a closed lease: a provider that has just started may refuse.
const LEAST_CLOSED_PERCENT: u64 = 95;
/// Growth that is still flat: what an allocator keeps, and the sessions of a few leases.
const FLAT_KIB: u64 = 8 << 10;
const FLAT_DESCRIPTORS: u64 = 16;

/// What is soaked.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// At least so many leases.
    pub leases: u64,
    /// For at least so long.
    pub lasts: Duration,
    /// Providers side by side.
    pub workers: u64,
    /// What deaths are drawn from.
    pub seed: u64,
}

/// What a process uses of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Resident memory, in KiB.
    pub resident_kib: u64,
    /// Open file descriptors.
    pub descriptors: u64,
}

impl Footprint {
    /// Of a process; `None` where it is gone.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self {
            resident_kib: line.trim().strip_suffix(" kB")?.parse().ok()?,
            descriptors: descriptors as u64,
        })
    }
}

/// A process that lived for long enough to tell.
#[derive(Clone, Debug)]
pub struct Growth {
    /// Which.
    pub process: String,
    /// When it was warm.
    pub before: Footprint,
    /// At its end.
    pub after: Footprint,
}

impl Soaked {
    /// Whether it has shown what it is for: nothing was broken or has grown, nearly every run had a lease that came to its end, and
    /// providers died.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.failures.is_empty()
            && self.growth.iter().all(Growth::is_flat)
            && self.closed * 100 >= self.runs * LEAST_CLOSED_PERCENT
            && (self.deaths > 0 || self.runs < 8 * u64::from(LEASES_PER_DEATH))
    }
}

impl Growth {
    /// Whether it is there, and has not grown by more than what comes and goes.
    #[must_use]
    pub fn is_flat(&self) -> bool {
        self.after.resident_kib > 0
            && self.after.resident_kib <= self.before.resident_kib + FLAT_KIB
            && self.after.descriptors <= self.before.descriptors + FLAT_DESCRIPTORS
    }
}

/// What came of a soak.
#[derive(Debug, Default)]
pub struct Soaked {
    /// Leases that ended with a proven statement.
    pub closed: u64,
    /// Runs of one lease each.
    pub runs: u64,
    /// Providers that were killed.
    pub deaths: u64,
    /// Promises that were broken, by run.
    pub failures: Vec<(u64, Violation)>,
    /// Of every mix, and of every life of a provider that had two leases or more.
    pub growth: Vec<Growth>,
}

/// Soaks.
///
/// # Panics
/// If the network does not start.
#[must_use]
pub fn soak(plan: &Soak) -> Soaked {
    let network = Network::start(&Plan {
        mixes: 4,
        mean_delay_ms: 1,
        sells: false,
        ..Plan::default()
    });
    let start = Instant::now();
    let (next, warm) = (AtomicU64::new(0), Mutex::new(None));
    let soaked = Mutex::new(Soaked::default());
    thread::scope(|scope| {
        for worker in 0..plan.workers {
            let (network, next, warm, soaked) = (&network, &next, &warm, &soaked);
            scope.spawn(move || {
                let mut provider = Provider::set_up(network, worker, None, "warn");
                provider.start(None);
                let mut life = Life::new(format!("provider {worker}"));
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= plan.leases && start.elapsed() >= plan.lasts {
                        break;
                    }
                    let requester = network.requester(&format!("requester{number}"), None);
                    let run = run(&requester, &mut provider, death(plan.seed, number), false);
                    leave(&requester);
                    if number >= plan.leases / 4 {
                        let mut warm = warm.lock().unwrap_or_else(PoisonError::into_inner);
                        warm.get_or_insert_with(|| footprints(network.mixes()));
                    }
                    let ended = if run.died { life.end() } else { None };
                    life.grow(provider.footprint());
                    let mut soaked = soaked.lock().unwrap_or_else(PoisonError::into_inner);
                    soaked.growth.extend(ended);
                    soaked.runs += 1;
                    soaked.deaths += u64::from(run.died);
                    soaked.closed += u64::from(run.closed);
                    let failures = run.violations.into_iter();
                    soaked
                        .failures
                        .extend(failures.map(|violation| (number, violation)));
                }
                provider.kill();
                let left = provider.look(None, true);
                let mut soaked = soaked.lock().unwrap_or_else(PoisonError::into_inner);
                soaked.growth.extend(life.end());
                soaked
                    .failures
                    .extend(left.into_iter().map(|violation| (plan.leases, violation)));
            });
        }
    });
    let mut soaked = soaked.into_inner().unwrap_or_else(PoisonError::into_inner);
    let warm = warm.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mixes = warm
        .unwrap_or_default()
        .into_iter()
        .zip(footprints(network.mixes()));
    soaked
        .growth
        .extend(mixes.enumerate().map(|(number, (before, after))| Growth {
            process: format!("mix {number}"),
            before,
            after,
        }));
    soaked
}

fn footprints(nodes: &[NodeUnderTest]) -> Vec<Footprint> {
    let of = |node: &NodeUnderTest| Footprint::of(node.pid()).unwrap_or_default();
    nodes.iter().map(of).collect()
}

fn death(seed: u64, number: u64) -> Option<Kill> {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
    (rng.random_range(0..LEASES_PER_DEATH) == 0).then(|| {
        let ms = rng.random_range(1..LONGEST_MS);
        Kill::After(Duration::from_millis(ms.into()))
    })
}

/// One life of a provider.
struct Life {
    process: String,
    seen: Option<(Footprint, Footprint)>,
    leases: u32,
}

impl Life {
    fn new(process: String) -> Self {
        Self {
            process,
            seen: None,
            leases: 0,
        }
    }

    fn grow(&mut self, now: Option<Footprint>) {
        let Some(now) = now else { return };
        self.leases += 1;
        let before = self.seen.map_or(now, |(before, _)| before);
        self.seen = Some((before, now));
    }

    /// The life is over; the next one begins.
    fn end(&mut self) -> Option<Growth> {
        let leases = std::mem::take(&mut self.leases);
        let (before, after) = self.seen.take()?;
        (leases >= 2).then(|| Growth {
            process: self.process.clone(),
            before,
            after,
        })
    }
}
