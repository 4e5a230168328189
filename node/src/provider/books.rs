//! What concerns the log of all leases together: checkpoints on a clock, and the entries of leases whose row was damaged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use rand::RngExt as _;
use souk_backend::{Backend, BackendError, UsageSample};
use souk_crypto::{NetworkId, UnixTime};
use souk_market::{
    lifecycle::Usage,
    log::{Entry, Hash, HourBucket, LeaseEntry, Opening, OutcomeClass},
    statement::{Outcome, Statement},
    units::{Digest, ImageHash, LeaseId, Meter, Money, Resources},
};
use tokio::{
    sync::Mutex,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Shared,
    backend::{lease_id, usage},
};
use crate::store::{LogRecord, PublishError, Seen, StoreError, StoredOpening};

/// First and longest pause before a lost lease that could not be settled is tried again.
const FIRST_SETTLE_PAUSE: Duration = Duration::from_secs(1);
const MAX_SETTLE_PAUSE: Duration = Duration::from_secs(300);
/// How long a backend may take to end a lost lease before it is asked again.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at some thousand entries: a log of ten million is held against its files within minutes, by a small part
/// of one processor.
const SURVEY_PAUSE: Duration = Duration::from_millis(50);
/// Before files are looked at once more after they could not be written.
const SURVEY_AGAIN: Duration = Duration::from_secs(60);

/// Size and root of the last checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Entries it covers.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

/// Publishes a checkpoint on each beat of the clock, until the node shuts down.
///
/// The period is fixed, and nothing else makes a checkpoint: one at the closing of a lease would tell everybody when it
/// was closed.
pub(super) async fn publish(shared: Arc<Shared>) {
    let mut seen = shared.publisher.lock().await.seen();
    tokio::select! {
        biased;
        () = shared.shutdown.cancelled() => return,
        // Without anybody who could still say it, the last word holds.
        _ = seen.wait_for(Seen::is_asked) => {}
    }
    let mut beats = interval(shared.settings.checkpoint_period);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            _ = beats.tick() => {}
        }
        if let Err(error) = publish_once(&shared).await {
            tracing::error!(error = &error as &dyn std::error::Error, "no checkpoint");
        }
    }
}

async fn publish_once(shared: &Arc<Shared>) -> Result<(), PublishError> {
    let for_thread = Arc::clone(shared);
    if let Some(published) = beside(async move { next_head(&for_thread).await }).await {
        show(shared, published?);
    }
    Ok(())
}

/// Does what waits for files, not on a thread that others need. `None` only while the runtime goes down.
async fn beside<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Option<T> {
    #[cfg(feature = "failpoints")]
    if crate::failpoint::is_simulated() {
        return Some(work.await);
    }
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work))
        .await
        .ok()
}

/// Holds every file of the log against the rows, beside everything else: once after each start, and again where damage stood
/// in the way of a checkpoint or a proof.
pub(super) async fn survey(shared: Arc<Shared>) {
    let due = shared.publisher.lock().await.survey_due();
    loop {
        let look = async {
            due.notified().await;
            let looked = survey_once(&shared).await;
            if let Err(error) = &looked {
                tracing::error!(
                    error = error as &dyn std::error::Error,
                    "the files of the usage log could not be held against its rows"
                );
            }
            // What cannot be mended is met again and again, by every holder who asks.
            sleep(shared.settings.checkpoint_period).await;
            if let Err(PublishError::File { .. }) = looked {
                // A full disk, most likely: nobody else asks for what it left undone.
                sleep(SURVEY_AGAIN).await;
                due.notify_one();
            }
        };
        tokio::select! {
            biased;
            // The next start begins anew.
            () = shared.shutdown.cancelled() => return,
            () = look => {}
        }
    }
}

async fn survey_once(shared: &Arc<Shared>) -> Result<(), PublishError> {
    let mut survey = shared.publisher.lock().await.survey();
    loop {
        let store = shared.store.clone();
        let step = async move {
            let is_over = survey.step(&store);
            (survey, is_over)
        };
        let Some((looked, is_over)) = beside(step).await else {
            return Ok(());
        };
        survey = looked;
        if is_over? {
            break;
        }
        sleep(SURVEY_PAUSE).await;
    }
    let (store, for_thread) = (shared.store.clone(), Arc::clone(shared));
    let mend = async move {
        let damaged = survey.unpublished();
        if !damaged.is_empty() {
            let mut copies = store.openings(|index| damaged.binary_search(&index).is_ok())?;
            let rows = damaged.iter().map(|index| {
                let copy = copies.remove(index);
                let again = copy.and_then(|copy| log_record_again(&for_thread.network, copy));
                (*index, again.unwrap_or_else(|| lost_entry(&for_thread)))
            });
            store.restore(rows.collect()).await?;
        }
        survey.mend(&store).await
    };
    match beside(mend).await {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// The entry of a closed lease, with what opens it. Its hour is that of the statement, which the holder compares with it.
pub(crate) fn log_record(
    network: &NetworkId,
    statement: &Statement,
    opening: Opening,
) -> LogRecord {
    let entry = Entry::Lease(LeaseEntry {
        commitment: opening.commitment(network),
        outcome: OutcomeClass::of(statement.outcome),
        hour: HourBucket::of(statement.to),
    });
    LogRecord {
        entry: entry.encode(),
        opening: Some(StoredOpening {
            lease: statement.lease,
            salt: opening.salt,
            statement: opening.statement,
        }),
    }
}

/// The same from what the record of the lease keeps.
pub(super) fn log_record_again(network: &NetworkId, copy: StoredOpening) -> Option<LogRecord> {
    let statement = Statement::from_bytes(&copy.statement).ok()?;
    let opening = Opening {
        salt: copy.salt,
        statement: copy.statement,
    };
    Some(log_record(network, &statement, opening))
}

/// Stands in the log for an entry of which nothing is left.
fn lost_entry(shared: &Shared) -> LogRecord {
    let entry = Entry::Lease(LeaseEntry {
        // Nobody can open it, and nobody could open the one that is gone.
        commitment: Digest(shared.randomness.rng().random()),
        outcome: OutcomeClass::of(Outcome::RecordLost),
        hour: HourBucket::of(shared.clock.now()),
    });
    LogRecord {
        entry: entry.encode(),
        opening: None,
    }
}

/// Publishes what is new and says where the log stands. It waits for files.
async fn next_head(shared: &Shared) -> Result<Head, PublishError> {
    let mut publisher = shared.publisher.lock().await;
    publisher.publish(&shared.store).await?;
    Ok(Head {
        size: publisher.size(),
        root: publisher.root(),
    })
}

fn show(shared: &Shared, head: Head) {
    shared
        .checkpointed_at
        .store(shared.clock.now().0, Ordering::Relaxed);
    let is_new = |last: &mut Head| std::mem::replace(last, head) != head;
    if shared.head.send_if_modified(is_new) {
        shared.head_changed.notify_waiters();
    }
}

/// Settles every lease whose row was damaged, each in its own time: a backend that hangs holds up none of the others.
pub(super) async fn settle_all(
    shared: Arc<Shared>,
    backends: Vec<Arc<dyn Backend>>,
    lost: Vec<LeaseId>,
) {
    let reading = Arc::new(Mutex::new(()));
    let mut settling = JoinSet::new();
    for lease in lost {
        let (shared, reading) = (Arc::clone(&shared), Arc::clone(&reading));
        let mut lost = Lost {
            lease,
            has_entry: None,
            left: backends.clone(),
            totals: Usage::UNKNOWN,
        };
        settling.spawn(async move {
            let mut pause = FIRST_SETTLE_PAUSE;
            while let Err(error) = lost.settle(&shared, &reading).await {
                tracing::error!(%lease, error = &error as &dyn std::error::Error, "a lost lease was not settled; it is tried again");
                sleep(pause).await;
                pause = (pause * 2).min(MAX_SETTLE_PAUSE);
            }
        });
    }
    tokio::select! {
        biased;
        // The next start goes on with those that are left.
        () = shared.shutdown.cancelled() => {}
        () = async { while settling.join_next().await.is_some() {} } => {}
    }
}

/// Why a lost lease is not settled yet.
#[derive(Debug, thiserror::Error)]
enum SettleError {
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something may still run.
    #[error("the backend {backend} did not end it")]
    Backend {
        /// Its name.
        backend: String,
        /// The cause.
        #[source]
        source: BackendError,
    },
}

/// A lease whose row was damaged, on its way to its entry.
struct Lost {
    lease: LeaseId,
    /// Whether the log has its entry already; none before that was looked up.
    has_entry: Option<bool>,
    /// Backends that may still run it.
    left: Vec<Arc<dyn Backend>>,
    /// The meters, as its backend knew them.
    totals: Usage,
}

impl Lost {
    /// Ends it, and gives it the entry that the log owes it.
    async fn settle(&mut self, shared: &Shared, reading: &Mutex<()>) -> Result<(), SettleError> {
        if self.has_entry(shared, reading).await? {
            return Ok(shared.store.mark_settled(self.lease).await?);
        }
        self.end().await?;
        let statement = self.statement(shared.clock.now());
        let opening = Opening::draw(statement.to_bytes(), &mut shared.randomness.rng());
        let record = log_record(&shared.network, &statement, opening);
        shared.store.settle_lost(self.lease, record).await?;
        Ok(())
    }

    /// Whether the log has its entry already. That may take all of the log to read, so it is done once, and for one lease at a time.
    async fn has_entry(
        &mut self,
        shared: &Shared,
        reading: &Mutex<()>,
    ) -> Result<bool, StoreError> {
        if let Some(known) = self.has_entry {
            return Ok(known);
        }
        let _turn = reading.lock().await;
        let (store, lease) = (shared.store.clone(), self.lease);
        let index = beside(async move { store.log_index_of(lease) }).await;
        let has_entry = index.unwrap_or(Err(StoreError::Closed))?.is_some();
        self.has_entry = Some(has_entry);
        Ok(has_entry)
    }

    /// Ends it at the backends that did not answer yet. It can be on one only: where that has ended it, none of the others is
    /// waited for.
    async fn end(&mut self) -> Result<(), SettleError> {
        let left = std::mem::take(&mut self.left).into_iter();
        let mut calls: FuturesUnordered<_> =
            left.map(|backend| end_at(backend, self.lease)).collect();
        let mut failed = None;
        while self.totals == Usage::UNKNOWN
            && let Some((backend, ended)) = calls.next().await
        {
            match ended {
                Ok(sample) => self.totals = usage(&sample.usage),
                Err(source) => {
                    failed = Some(SettleError::Backend {
                        backend: backend.name().to_owned(),
                        source,
                    });
                    self.left.push(backend);
                }
            }
        }
        match failed {
            Some(error) if self.totals == Usage::UNKNOWN => Err(error),
            _ => Ok(()),
        }
    }

    fn statement(&self, now: UnixTime) -> Statement {
        // Whatever is known is not all: nobody knows when it began.
        let at_least = |meter| match meter {
            Meter::Known(n) | Meter::AtLeast(n) => Meter::AtLeast(n),
            Meter::Unknown => Meter::Unknown,
        };
        Statement {
            lease: self.lease,
            image: ImageHash([0; 32]),
            resources: Resources::ZERO,
            from: now,
            to: now,
            cpu_core_ms: at_least(self.totals.cpu_core_ms),
            memory_mib_s: at_least(self.totals.memory_mib_s),
            net_rx_bytes: at_least(self.totals.net_rx_bytes),
            net_tx_bytes: at_least(self.totals.net_tx_bytes),
            outcome: Outcome::RecordLost,
            charge: Money(0),
            evidence: None,
        }
    }
}

/// One call to end a lost lease, with the backend that it was made to.
async fn end_at(
    backend: Arc<dyn Backend>,
    lease: LeaseId,
) -> (Arc<dyn Backend>, Result<UsageSample, BackendError>) {
    let lease = lease_id(lease);
    let ended = timeout(SETTLE_PATIENCE, backend.terminate(lease)).await;
    let ended = ended.unwrap_or_else(|_| {
        Err(BackendError::Unknown {
            lease,
            what: format!("no answer within {} s", SETTLE_PATIENCE.as_secs()),
        })
    });
    (backend, ended)
}
