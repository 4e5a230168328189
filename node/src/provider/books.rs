//! What concerns the log of all leases together: checkpoints on a clock, and the entries of leases whose row was damaged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::RngExt as _;
use souk_backend::{Backend, BackendError};
use souk_crypto::NetworkId;
use souk_market::{
    lifecycle::Usage,
    log::{Entry, Hash, HourBucket, LeaseEntry, Opening, OutcomeClass},
    statement::{Outcome, Statement},
    units::{Digest, ImageHash, LeaseId, Meter, Money, Resources},
};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    Shared,
    backend::{lease_id, usage},
};
use crate::store::{LogRecord, PublishError, Seen, StoreError, StoredOpening};

/// First and longest pause before a lost lease that could not be settled is tried again.
const FIRST_SETTLE_PAUSE: Duration = Duration::from_secs(1);
const MAX_SETTLE_PAUSE: Duration = Duration::from_secs(300);
/// Between two looks at some thousand entries: a log of ten million is held against its files within minutes, by a small part
/// of one processor.
const SURVEY_PAUSE: Duration = Duration::from_millis(50);

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

/// Holds every file of the log against the rows, once after each start and beside everything else.
pub(super) async fn survey(shared: Arc<Shared>) {
    let looked = tokio::select! {
        biased;
        // The next start begins anew.
        () = shared.shutdown.cancelled() => return,
        looked = survey_once(&shared) => looked,
    };
    if let Err(error) = looked {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "the files of the usage log could not be held against its rows"
        );
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
    shared
        .head
        .send_if_modified(|last| std::mem::replace(last, head) != head);
}

/// Settles every lease whose row was damaged, each in its own time: a backend that hangs holds up none of the others.
pub(super) async fn settle_all(
    shared: Arc<Shared>,
    backends: Vec<Arc<dyn Backend>>,
    lost: Vec<LeaseId>,
) {
    let mut settling = JoinSet::new();
    for lease in lost {
        let (shared, backends) = (Arc::clone(&shared), backends.clone());
        settling.spawn(async move {
            let mut pause = FIRST_SETTLE_PAUSE;
            while let Err(error) = settle(&shared, &backends, lease).await {
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

/// Ends a lease whose row was damaged, and gives it the entry that the log owes it.
async fn settle(
    shared: &Shared,
    backends: &[Arc<dyn Backend>],
    lease: LeaseId,
) -> Result<(), SettleError> {
    if shared.store.log_index_of(lease)?.is_some() {
        return Ok(shared.store.mark_settled(lease).await?);
    }
    let mut totals = Usage::UNKNOWN;
    for backend in backends {
        let sample = backend.terminate(lease_id(lease)).await;
        let sample = sample.map_err(|source| SettleError::Backend {
            backend: backend.name().to_owned(),
            source,
        })?;
        totals = totals.then(&usage(&sample.usage));
    }
    // Whatever is known is not all: nobody knows when it began.
    let at_least = |meter| match meter {
        Meter::Known(n) | Meter::AtLeast(n) => Meter::AtLeast(n),
        Meter::Unknown => Meter::Unknown,
    };
    let now = shared.clock.now();
    let statement = Statement {
        lease,
        image: ImageHash([0; 32]),
        resources: Resources::ZERO,
        from: now,
        to: now,
        cpu_core_ms: at_least(totals.cpu_core_ms),
        memory_mib_s: at_least(totals.memory_mib_s),
        net_rx_bytes: at_least(totals.net_rx_bytes),
        net_tx_bytes: at_least(totals.net_tx_bytes),
        outcome: Outcome::RecordLost,
        charge: Money(0),
        evidence: None,
    };
    let opening = Opening::draw(statement.to_bytes(), &mut shared.randomness.rng());
    let record = log_record(&shared.network, &statement, opening);
    shared.store.settle_lost(lease, record).await?;
    Ok(())
}
