//! Everything around the provider, which outlives each of its lives: time, machines, messages on their way, requesters.
//!
//! The world is passive. Whatever takes time is an effect in a queue, and the driver ([`super::life`]) brings it about when
//! its time has come, whether a provider runs or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rand::{CryptoRng, SeedableRng as _, rngs::StdRng};
use souk_backend::LeaseId;
use souk_crypto::UnixTime;
use souk_market::{
    lifecycle::Phase,
    moment::{ClockWatch, Moment, SteadyTime},
    units::RequestId,
};
use souk_node::{
    failpoint::Failpoint,
    provider::{Clock, Randomness},
    store::{LeaseRecord, Store},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::{
    check::SeenLog,
    disk::Disk,
    invariants::{Invariant, Violation},
    machines::{Machines, market_id},
    requester::{Keys, Requester},
    script::Steps,
    support,
};

/// What comes about at its time.
#[derive(Clone, Debug)]
pub(super) enum Effect {
    /// A machine comes up, if its lease has none.
    Make {
        lease: LeaseId,
        valid_to_unix_s: u64,
        mute: bool,
    },
    /// A machine is removed, if there is one.
    Remove { lease: LeaseId },
    /// A machine ends by itself.
    Exit { lease: LeaseId },
    /// A message arrives at the provider.
    ToProvider(Vec<u8>),
    /// A reply arrives at a requester.
    ToRequester {
        who: usize,
        surb: [u8; 32],
        sealed: Vec<u8>,
    },
    /// A requester does what it does next.
    Wake { who: usize },
    /// The client of a requester is killed and comes back with what it had stored.
    Forget { who: usize },
    /// The disk of the provider is full, or has room again.
    DiskFull(bool),
    /// The sync of the disk that is the `n`th from now fails after it has kept everything.
    SyncFails { n: u32 },
    /// The operator ends a lease.
    Withdraw,
    /// The clock of the wall is set, by so many seconds.
    ClockStep(i64),
    /// All faults are over.
    Settle,
}

/// How a life of the provider ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Killed at the nth failpoint or wait from its start.
    AtStep(u32),
    /// Killed at a time.
    At(u64),
    /// Told to stop at a time.
    Stopped(u64),
}

/// State of the world.
pub(super) struct World {
    pub(super) steps: Steps,
    /// Ids, keys and salts; apart from the steps, because its draws decide nothing.
    pub(super) crypto: StdRng,
    /// Milliseconds at the start of this life, and that start; milliseconds alone while nobody lives.
    time: (u64, Option<Instant>),
    wall_offset_s: i64,
    queue: BTreeMap<(u64, u64), Effect>,
    queued: u64,
    pub(super) machines: Machines,
    pub(super) requesters: Vec<Requester>,
    pub(super) keys: Arc<Keys>,
    pub(super) disk: Disk,
    /// The store of the provider that lives.
    pub(super) store: Option<Store>,
    /// The life has ended: nothing that its tasks still do is seen by anybody. Each life has its own.
    pub(super) dead: Arc<AtomicBool>,
    /// Failpoints and waits until this life ends.
    pub(super) steps_left: Option<u32>,
    /// All faults are over.
    pub(super) is_settling: bool,
    /// Since when, in milliseconds.
    pub(super) settled_at_ms: Option<u64>,
    /// So much time has passed that no closed lease is remembered any more.
    pub(super) must_have_forgotten: bool,
    pub(super) seen_log: SeenLog,
    pub(super) hits: BTreeMap<Failpoint, u64>,
    pub(super) faults: BTreeMap<String, u64>,
    pub(super) violations: Vec<Violation>,
    pub(super) used_surbs: BTreeSet<[u8; 32]>,
    /// The newest row of each lease that was seen on disk.
    pub(super) rows: BTreeMap<LeaseId, LeaseRecord>,
    /// The first lease of each request.
    pub(super) leases_of_requests: BTreeMap<RequestId, LeaseId>,
    names: BTreeMap<LeaseId, usize>,
}

impl World {
    pub(super) fn new(steps: Steps, seed: u64) -> Self {
        let mut crypto = StdRng::seed_from_u64(seed ^ 0x5eed);
        let keys = Keys::new(&mut crypto);
        Self {
            steps,
            crypto,
            time: (0, None),
            wall_offset_s: 0,
            queue: BTreeMap::new(),
            queued: 0,
            machines: Machines::default(),
            requesters: Vec::new(),
            keys: Arc::new(keys),
            disk: Disk::default(),
            store: None,
            dead: Arc::new(AtomicBool::new(true)),
            steps_left: None,
            is_settling: false,
            settled_at_ms: None,
            must_have_forgotten: false,
            seen_log: SeenLog::default(),
            hits: BTreeMap::new(),
            faults: BTreeMap::new(),
            violations: Vec::new(),
            used_surbs: BTreeSet::new(),
            rows: BTreeMap::new(),
            leases_of_requests: BTreeMap::new(),
            names: BTreeMap::new(),
        }
    }

    /// Milliseconds since the run began.
    pub(super) fn now_ms(&self) -> u64 {
        let (base, started) = self.time;
        base + started.map_or(0, |at| {
            u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)
        })
    }

    /// The clock of the wall, in milliseconds.
    pub(super) fn wall_ms(&self) -> u64 {
        (support::NOW.0 * 1_000 + self.now_ms()).saturating_add_signed(self.wall_offset_s * 1_000)
    }

    /// The clock of the wall.
    pub(super) fn wall(&self) -> UnixTime {
        UnixTime(self.wall_ms() / 1_000)
    }

    /// Time runs with the clock of this runtime from now on, or stands.
    pub(super) fn runs(&mut self, runs: bool) {
        self.time = (self.now_ms(), runs.then(Instant::now));
    }

    /// The clock of the wall is set.
    pub(super) fn step_clock(&mut self, by_s: i64) {
        self.wall_offset_s += by_s;
    }

    /// All faults are over at an instant.
    pub(super) fn settle_at(&mut self, at_ms: u64) {
        let after = at_ms.saturating_sub(self.now_ms());
        self.later(after, Effect::Settle);
    }

    /// The life in which that was to happen has ended before: faults go on.
    pub(super) fn settle_no_more(&mut self) {
        self.queue
            .retain(|_, effect| !matches!(effect, Effect::Settle));
    }

    /// All faults are over; whatever hangs goes on hanging.
    pub(super) fn settle(&mut self) {
        self.is_settling = true;
        self.settled_at_ms = Some(self.now_ms());
        self.disk.set_full(false);
        self.disk.fail_sync(0);
        for who in 0..self.requesters.len() {
            self.later(1, Effect::Wake { who });
        }
    }

    /// Time passes while nobody lives.
    pub(super) fn pass_to(&mut self, at_ms: u64) {
        self.time.0 = self.time.0.max(at_ms);
        self.steps.at_ms = self.now_ms();
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Ends this life.
    pub(super) fn die(&mut self) {
        self.dead.store(true, Ordering::SeqCst);
    }

    /// Puts an effect in the queue.
    pub(super) fn later(&mut self, after_ms: u64, effect: Effect) {
        self.queued += 1;
        self.queue
            .insert((self.now_ms() + after_ms, self.queued), effect);
    }

    /// When the next effect is due.
    pub(super) fn next_at_ms(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the next effect whose time has come.
    pub(super) fn due(&mut self) -> Option<Effect> {
        let now = self.now_ms();
        let first = self.queue.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Whether machines may still appear that nobody has asked for any more.
    pub(super) fn may_make_machines(&self) -> bool {
        self.queue
            .values()
            .any(|effect| matches!(effect, Effect::Make { .. }))
    }

    /// The name of a lease in steps: ids are drawn, names are counted.
    pub(super) fn name(&mut self, lease: LeaseId) -> String {
        let next = self.names.len() + 1;
        format!("lease {}", self.names.entry(lease).or_insert(next))
    }

    pub(super) fn saw(&mut self, what: impl FnOnce() -> String) {
        self.steps.saw(what);
    }

    /// Counts a fault that was made.
    pub(super) fn fault(&mut self, name: &str) {
        *self.faults.entry(name.to_owned()).or_default() += 1;
        self.steps.saw(|| format!("fault: {name}"));
    }

    /// Notes a promise that was not kept.
    pub(super) fn require(
        &mut self,
        invariant: Invariant,
        is_kept: bool,
        seen: impl FnOnce() -> String,
    ) {
        if !is_kept {
            let violation = Violation {
                invariant,
                seen: seen(),
            };
            self.steps.saw(|| format!("VIOLATED {violation}"));
            self.violations.push(violation);
        }
    }

    /// The row of a lease as it is durable now.
    pub(super) fn row_on_disk(&mut self, lease: LeaseId) -> Option<LeaseRecord> {
        let record = self.store.as_ref()?.lease(market_id(lease)).ok()??;
        self.note_row(&record);
        Some(record)
    }

    pub(super) fn phase_on_disk(&mut self, lease: LeaseId) -> Option<Phase> {
        self.row_on_disk(lease).map(|record| record.row.phase())
    }

    /// Compares a durable row with what was seen of it before.
    pub(super) fn note_row(&mut self, record: &LeaseRecord) {
        let lease = LeaseId(record.row.lease().0);
        let name = self.name(lease);
        let first = *self
            .leases_of_requests
            .entry(record.contract.request)
            .or_insert(lease);
        self.require(Invariant::OneLeasePerRequest, first == lease, || {
            format!("{name} is the second lease of one request")
        });
        let is_later = self.rows.get(&lease).is_none_or(|before| {
            before.row.version() <= record.row.version()
                && rank(before.row.phase()) <= rank(record.row.phase())
        });
        self.require(Invariant::NothingIsLost, is_later, || {
            format!("{name} has gone back to {:?}", record.row.phase())
        });
        self.rows.insert(lease, record.clone());
    }
}

fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Reserved => 0,
        Phase::Provisioning => 1,
        Phase::Active => 2,
        Phase::Draining { .. } => 3,
        Phase::Closed { .. } => 4,
    }
}

/// The payload of the unwinding that ends a life.
pub(super) struct Crashed;

struct Inner {
    world: Mutex<World>,
    /// The queue has changed.
    changed: Notify,
    /// The life has ended.
    crashed: Notify,
}

/// The world, shared with the tasks of a provider.
#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

impl Shared {
    pub(super) fn new(world: World) -> Self {
        Self(Arc::new(Inner {
            world: Mutex::new(world),
            changed: Notify::new(),
            crashed: Notify::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        let mut world = self.0.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.steps.at_ms = world.now_ms();
        world
    }

    pub(super) fn changed(&self) {
        self.0.changed.notify_one();
    }

    pub(super) async fn until_changed(&self) {
        self.0.changed.notified().await;
    }

    pub(super) async fn until_crashed(&self) {
        self.0.crashed.notified().await;
    }

    /// One more step of this life; it may be the last.
    fn step(&self) -> bool {
        let mut world = self.lock();
        if world.is_dead() {
            return false;
        }
        if let Some(left) = &mut world.steps_left {
            *left -= 1;
            if *left == 0 {
                world.die();
                self.0.crashed.notify_one();
                return false;
            }
        }
        true
    }

    /// A wait of a task of the provider: a life may end at any of them, and a task of a life that has ended waits for ever.
    pub(super) async fn alive(&self) {
        if !self.step() {
            std::future::pending::<()>().await;
        }
    }

    /// A failpoint: counted, and unwinding if this life ends here.
    pub(super) fn hit(&self, point: Failpoint) {
        *self.lock().hits.entry(point).or_default() += 1;
        if !self.step() {
            let mut world = self.lock();
            world.saw(|| format!("dies at {}", point.name()));
            drop(world);
            std::panic::resume_unwind(Box::new(Crashed));
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.lock().is_dead()
    }
}

/// The clock of the wall, as the provider sees it.
pub(super) struct SimulatedClock(pub(super) Shared);

/// Between two looks at the clock of the wall, as the provider's own clock does.
const LOOK: Duration = Duration::from_secs(10);

#[async_trait]
impl Clock for SimulatedClock {
    fn now(&self) -> UnixTime {
        self.0.lock().wall()
    }

    fn moment(&self) -> Moment {
        let world = self.0.lock();
        Moment {
            wall: world.wall(),
            steady: SteadyTime(Duration::from_millis(world.now_ms())),
        }
    }

    async fn sleep_until(&self, at: UnixTime) {
        let mut watch = ClockWatch::new(self.boot(), self.moment());
        while self.now() < at && watch.observe(self.moment()).is_none() {
            let left = Duration::from_secs(at.since_s(self.now()));
            sleep(left.min(LOOK).max(Duration::from_millis(100))).await;
        }
    }
}

/// Ids, keys and salts from the seed.
pub(super) struct SeededRandomness(pub(super) Shared);

impl Randomness for SeededRandomness {
    fn rng(&self) -> Box<dyn CryptoRng> {
        Box::new(StdRng::from_rng(&mut self.0.lock().crypto))
    }
}
