//! The provider: from a sealed request to a closed lease.
//!
//! ```text
//!  messages ─► router ─► admission ─► one task per lease ─► backend
//!                │                     │     │
//!                │ refusals            │     └► store: row before act, log entry with the closing
//!                └──────► replies ◄────┘
//!  on a clock:  checkpoints · totals of refusals · reconciling with the backends · forgetting
//! ```
//!
//! Threats: a stranger who sends what it likes (every queue has a bound, and a refusal costs one unsealing); a process that
//! dies anywhere (rows come first, and every start goes on from them); an instance without an owner ([`souk_market::reconcile`]);
//! a reply that tells who asked (sealed to a one-time key, sent by SURB, of one size). Nothing here logs or keeps anything
//! of a requester but the one-time keys of its lease.

mod answer;
mod backend;
mod board;
pub(crate) mod books;
mod carry;
mod gate;
mod intake;
mod lease;
mod pausing;
mod reconcile;
mod requests;
mod router;
mod seams;
mod served;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use board::{LeaseChange, LeaseView};
pub use books::Head;
pub use carry::CarryError;
pub use gate::MessageGate;
pub(crate) use gate::work_bits;
pub use intake::Intake;
pub use pausing::PauseRefused;
pub use reconcile::{Findings, OrphanView};
pub use requests::Requests;
pub use seams::{
    Clock, Doors, Randomness, Relays, ReplySink, Settings, SystemClock, SystemRandomness, TcpDoors,
};
pub use served::PublishedLog;
use souk_backend::Backend;
use souk_crypto::{CardKey, NetworkId, NodeId, SealKey, UnixTime};
use souk_market::{
    capacity::Level,
    card::Card,
    refusal::RefusalTotals,
    units::{BackendName, CardDigest, LeaseId, RelayToken, Resources},
};
use souk_sphinx::{EpochClock, message::Message};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, Notify, Semaphore, broadcast, mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use self::{
    board::Board,
    reconcile::Reconciled,
    router::{Order, Router},
};
use crate::{
    attest::HostTee,
    failpoint::failpoint,
    store::{Found, LogRecord, Publisher, Store, StoreError},
};

/// Orders of the operator that wait.
const ORDER_QUEUE: usize = 16;

/// What is on offer now.
#[derive(Clone, Debug)]
pub struct Offering {
    /// The current card.
    pub card: Card,
    /// The cards whose offers are still honoured: the current one, and those before it that have not expired.
    pub honoured: Vec<CardDigest>,
}

/// A backend and all it may hand out.
pub struct Stand {
    /// Its name, as on the card.
    pub name: BackendName,
    /// The driver.
    pub backend: Arc<dyn Backend>,
    /// All it may hand out.
    pub total: Resources,
}

/// Keys of a provider that change with time.
#[derive(Debug)]
pub struct ProviderKeys {
    /// Signs replies.
    pub card: CardKey,
    /// Open requests: the current key and the one before it.
    pub seal: Vec<SealKey>,
}

impl ProviderKeys {
    /// Keys that do not change.
    #[must_use]
    pub fn lasting(card: CardKey, seal: Vec<SealKey>) -> watch::Receiver<Arc<Self>> {
        watch::Sender::new(Arc::new(Self { card, seal })).subscribe()
    }
}

/// What a provider works with.
pub struct ProviderParts {
    /// The network.
    pub network: NetworkId,
    /// This node.
    pub node: NodeId,
    /// The keys that its card announces, and a sign when others do.
    pub keys: watch::Receiver<Arc<ProviderKeys>>,
    /// The store, and what was found in it.
    pub store: Store,
    /// What was found in the store when it was opened.
    pub found: Found,
    /// Publishes the usage log of the store.
    pub publisher: Publisher,
    /// The backends.
    pub stands: Vec<Stand>,
    /// Where the requests that are accepted are shown to the gate.
    pub requests: Requests,
    /// What comes out of the mix for this node.
    pub messages: mpsc::Receiver<Message>,
    /// Where replies go.
    pub replies: Arc<dyn ReplySink>,
    /// Through whom requesters come.
    pub relays: Arc<dyn Relays>,
    /// What is on offer.
    pub offering: watch::Receiver<Arc<Offering>>,
    /// When SURBs die.
    pub epochs: EpochClock,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The TEE that this node runs in, which holds its instances to what they have to prove; none where it is in none.
    pub tee: Option<Arc<HostTee>>,
    /// How instances are tried.
    pub doors: Arc<dyn Doors>,
    /// Where ids, keys and salts are drawn from.
    pub randomness: Arc<dyn Randomness>,
    /// How the work is done.
    pub settings: Settings,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// Totals of this process, without labels, so that nobody is in them.
#[derive(Debug, Default)]
pub struct ProviderCounters {
    /// Replies that went out.
    pub replies: AtomicU64,
    /// Replies for which no SURB was left or none could be used.
    pub unanswered: AtomicU64,
    /// Messages that are no requests to this provider.
    pub unreadable: AtomicU64,
    /// Requests about leases that nobody knows.
    pub strays: AtomicU64,
    /// Messages and refusals that were dropped because too much was waiting.
    pub dropped: AtomicU64,
}

/// What all tasks of a provider share.
struct Shared {
    network: NetworkId,
    node: NodeId,
    keys: watch::Receiver<Arc<ProviderKeys>>,
    store: Store,
    publisher: Mutex<Publisher>,
    head: watch::Sender<Head>,
    /// Told of each new head. A [`watch`] wakes who waits in an order of its own; a simulation needs one that is always the same.
    head_changed: Notify,
    replies: Arc<dyn ReplySink>,
    relays: Arc<dyn Relays>,
    epochs: EpochClock,
    clock: Arc<dyn Clock>,
    tee: Option<Arc<HostTee>>,
    doors: Arc<dyn Doors>,
    randomness: Arc<dyn Randomness>,
    settings: Settings,
    board: Board,
    /// Backends at which the operator wants no new leases.
    paused: watch::Sender<BTreeSet<BackendName>>,
    /// Held while that is changed.
    pausing: Mutex<()>,
    /// When the last checkpoint was made, in Unix seconds; zero before the first of this process.
    checkpointed_at: AtomicU64,
    reconciled: Reconciled,
    sessions: Semaphore,
    /// Refusals since the process began, by reason.
    refused: watch::Sender<RefusalTotals>,
    counters: ProviderCounters,
    intake: watch::Sender<Intake>,
    shutdown: CancellationToken,
}

/// A provider at work.
#[derive(Clone)]
pub struct Provider {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    totals: Arc<HashMap<BackendName, Resources>>,
}

impl Provider {
    /// Takes up every lease of the store where it stood, and starts reading messages. The second value ends when all is at
    /// rest after a shutdown.
    #[must_use]
    pub fn start(parts: ProviderParts) -> (Self, JoinHandle<()>) {
        let head = Head {
            size: parts.publisher.size(),
            root: parts.publisher.root(),
        };
        let paused = pausing::read(&parts.store);
        let shared = Arc::new(Shared {
            network: parts.network,
            node: parts.node,
            keys: parts.keys,
            store: parts.store,
            publisher: Mutex::new(parts.publisher),
            head: watch::Sender::new(head),
            head_changed: Notify::new(),
            replies: parts.replies,
            relays: parts.relays,
            epochs: parts.epochs,
            clock: parts.clock,
            tee: parts.tee,
            doors: parts.doors,
            randomness: parts.randomness,
            intake: watch::Sender::new(parts.settings.intake),
            settings: parts.settings,
            board: Board::new(),
            paused: watch::Sender::new(paused),
            pausing: Mutex::default(),
            checkpointed_at: AtomicU64::new(0),
            reconciled: Reconciled::new(),
            sessions: Semaphore::new(carry::MAX_SESSIONS),
            refused: watch::Sender::default(),
            counters: ProviderCounters::default(),
            shutdown: parts.shutdown,
        });
        let backends: BTreeMap<_, _> = parts
            .stands
            .into_iter()
            .map(|stand| (stand.name, (stand.backend, stand.total)))
            .collect();
        let totals = backends
            .iter()
            .map(|(name, (_, total))| (name.clone(), *total))
            .collect();
        let drivers = backends.values().map(|(backend, _)| Arc::clone(backend));
        let settling = books::settle_all(
            Arc::clone(&shared),
            drivers.collect(),
            parts.found.lost.clone(),
        );
        let reconciling = backends.iter().map(|(name, (backend, _))| {
            reconcile::run(Arc::clone(&shared), name.clone(), Arc::clone(backend))
        });
        let reconciling: Vec<_> = reconciling.collect();
        let mut router = Router::new(
            Arc::clone(&shared),
            parts.offering,
            backends,
            parts.requests,
        );
        failpoint!(StoreOpened);
        router.recover(parts.found);
        failpoint!(Recovered);
        let (orders, to_obey) = mpsc::channel(ORDER_QUEUE);
        let (for_work, to_survey) = (Arc::clone(&shared), Arc::clone(&shared));
        let work = tokio::spawn(async move {
            // Each of them ends at a shutdown; the calls that they wait for end with them.
            let beside: JoinSet<()> = reconciling.into_iter().collect();
            tokio::join!(
                router.run(parts.messages, to_obey),
                books::publish(for_work),
                books::survey(to_survey),
                settling,
                beside.join_all(),
            );
        });
        let provider = Self {
            shared,
            orders,
            totals: Arc::new(totals),
        };
        (provider, work)
    }

    /// Every lease that is not closed, by when it was accepted.
    #[must_use]
    pub fn leases(&self) -> Vec<LeaseView> {
        self.shared.board.views()
    }

    /// Every lease whose state changes from now on; a slow reader misses some, and learns how many.
    #[must_use]
    pub fn changes(&self) -> broadcast::Receiver<LeaseChange> {
        self.shared.board.changes()
    }

    /// The backends, and all that each may hand out.
    #[must_use]
    pub fn backends(&self) -> BTreeMap<BackendName, Resources> {
        let totals = self.totals.iter();
        totals.map(|(name, total)| (name.clone(), *total)).collect()
    }

    /// What is left of a backend.
    #[must_use]
    pub fn free(&self, backend: &BackendName) -> Resources {
        let total = self.totals.get(backend);
        total.map_or(Resources::ZERO, |total| {
            self.shared.board.free(backend, total)
        })
    }

    /// Leases that there may be at one time.
    #[must_use]
    pub fn max_leases(&self) -> usize {
        router::MAX_TASKS
    }

    /// Removes an instance that nobody owns without waiting for the end of its grace; says whether there is one.
    #[must_use]
    pub fn reap(&self, backend: &BackendName, lease: LeaseId) -> bool {
        self.shared.reconciled.hurry(backend, lease)
    }

    /// When the last checkpoint of this process was made.
    #[must_use]
    pub fn checkpointed_at(&self) -> Option<UnixTime> {
        let at = self.shared.checkpointed_at.load(Ordering::Relaxed);
        (at != 0).then_some(UnixTime(at))
    }

    /// Entries of the log under the last checkpoint, from the first of these indices to before the last.
    ///
    /// # Errors
    /// [`StoreError`], also where a row is damaged.
    pub fn log_records(&self, start: u64, end: u64) -> Result<Vec<LogRecord>, StoreError> {
        let end = end.min(self.shared.head.borrow().size);
        self.shared.store.log_records(start.min(end), end)
    }

    /// When the last lease closed, by the clock as it is now; none where no closed one is known.
    #[must_use]
    pub fn last_closed(&self) -> Option<UnixTime> {
        self.shared.board.last_closed(self.shared.clock.moment())
    }

    /// What each backend was found to have that nobody owns.
    #[must_use]
    pub fn findings(&self) -> BTreeMap<BackendName, Findings> {
        self.shared.reconciled.findings()
    }

    /// Ends a lease; says whether there was one to end.
    pub async fn withdraw(&self, lease: LeaseId) -> bool {
        let (done, answer) = oneshot::channel();
        self.orders.send(Order::Withdraw(lease, done)).await.is_ok()
            && answer.await.unwrap_or(false)
    }

    /// Takes no new leases, or takes them again; those that run go on. Their holders are told at their next request; and those
    /// whose SURBs are at hand at once, one after the other with random pauses.
    pub fn set_intake(&self, intake: Intake) {
        let before = self.shared.intake.send_replace(intake);
        if before == intake || intake.is_open() {
            return;
        }
        let provider = self.clone();
        tokio::spawn(async move {
            let pause = provider.shared.settings.notice_pause;
            for view in provider.leases() {
                // Twice the mean at most; a longer one would keep the last of many waiting.
                tokio::time::sleep(pause.mul_f64(2.0 * rand::random::<f64>())).await;
                let is_old = *provider.shared.intake.borrow() != intake;
                if is_old || !provider.tell(view.lease, None).await {
                    return;
                }
            }
        });
    }

    /// Takes no new leases and tells every holder whose SURBs are at hand that the process ends. Returns when all were told, or
    /// after `patience`; instances go on.
    pub async fn suspend(&self, patience: Duration) {
        self.shared.intake.send_replace(Intake::Stopping);
        let (done, mut all_done) = mpsc::channel(1);
        let telling = async {
            for view in self.leases() {
                if !self.tell(view.lease, Some(done.clone())).await {
                    break;
                }
            }
            drop(done);
            // It ends when the last lease has dropped its end.
            while all_done.recv().await.is_some() {}
        };
        if timeout(patience, telling).await.is_err() {
            tracing::debug!("not every holder was told that the node stops");
        }
    }

    /// Has a lease tell its holder where it stands; false once the provider has shut down.
    async fn tell(&self, lease: LeaseId, done: Option<mpsc::Sender<()>>) -> bool {
        self.orders.send(Order::Tell(lease, done)).await.is_ok()
    }

    /// The room for each offer of a card and each of its size classes, as coarse as a capacity message tells it.
    #[must_use]
    pub fn levels(&self, card: &Card) -> Vec<Vec<Level>> {
        let level = |free: &Resources, class: &Resources| {
            let mut left = *free;
            let mut count = 0;
            while count < 4 && class.fits_in(&left) {
                left = left.saturating_sub(class);
                count += 1;
            }
            Level::of(count)
        };
        card.offers
            .iter()
            .map(|offer| {
                let free = match self.is_paused(&offer.backend) {
                    true => Resources::ZERO,
                    false => self.free(&offer.backend),
                };
                offer
                    .classes
                    .iter()
                    .map(|class| level(&free, class))
                    .collect()
            })
            .collect()
    }

    /// The last checkpoint, and the ones to come.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Head> {
        self.shared.head.subscribe()
    }

    /// Totals of this process.
    #[must_use]
    pub fn counters(&self) -> &ProviderCounters {
        &self.shared.counters
    }

    /// Refusals of this process by reason.
    #[must_use]
    pub fn refusals(&self) -> RefusalTotals {
        *self.shared.refused.borrow()
    }

    /// The same, and whenever there are more.
    #[must_use]
    pub fn refused(&self) -> watch::Receiver<RefusalTotals> {
        self.shared.refused.subscribe()
    }

    /// Joins a stream from a relay to the instance of its lease, until one of them ends.
    ///
    /// # Errors
    /// [`CarryError`].
    pub async fn carry(
        &self,
        token: &RelayToken,
        stream: impl AsyncRead + AsyncWrite + Unpin,
    ) -> Result<(), CarryError> {
        carry::carry(&self.shared, token, stream).await
    }
}
