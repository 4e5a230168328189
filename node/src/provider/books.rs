//! What is done on a clock, for all leases together: checkpoints, and reaping what nobody owns.

use std::{collections::HashSet, sync::Arc};

use souk_backend::Backend;
use souk_market::{
    lifecycle::Usage,
    log::{Entry, Hash, HourBucket, LeaseEntry, Opening, OutcomeClass},
    statement::{Outcome, Statement},
    units::{ImageHash, LeaseId, Meter, Money, Resources},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    Shared,
    backend::{lease_id, usage},
};
use crate::{
    failpoint::{failpoint, planted},
    store::{LogRecord, PublishError, StoreError, StoredOpening},
};

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
    #[cfg(feature = "failpoints")]
    if crate::failpoint::is_simulated() {
        let head = next_head(shared).await?;
        show(shared, head);
        return Ok(());
    }
    let runtime = tokio::runtime::Handle::current();
    let for_thread = Arc::clone(shared);
    // Files are written and synced: not on a thread that others need.
    let published =
        tokio::task::spawn_blocking(move || runtime.block_on(next_head(&for_thread))).await;
    // It fails only while the runtime goes down.
    if let Ok(head) = published {
        show(shared, head?);
    }
    Ok(())
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
        .head
        .send_if_modified(|last| std::mem::replace(last, head) != head);
}

/// Ends every instance that carries the id of no open lease: what an earlier life of this node left, or lost.
pub(super) async fn reap(shared: &Shared, backend: &Arc<dyn Backend>) {
    if planted!(ForgetsReaping) {
        return;
    }
    let known: HashSet<_> = shared.board.views().iter().map(|view| view.lease).collect();
    let instances = match backend.list().await {
        Ok(instances) => instances,
        Err(error) => {
            tracing::warn!(
                backend = backend.name(),
                error = &error as &dyn std::error::Error,
                "instances cannot be listed"
            );
            return;
        }
    };
    for instance in instances {
        let lease = LeaseId(instance.lease.0);
        // A lease that was accepted since the list was asked for is on the board by now.
        if known.contains(&lease) || shared.board.has(lease) {
            continue;
        }
        tracing::warn!(%lease, backend = backend.name(), "an instance of no open lease is removed");
        failpoint!(BeforeReap);
        let removed = backend.terminate(instance.lease).await;
        failpoint!(AfterReap);
        if let Err(error) = removed {
            tracing::error!(%lease, error = &error as &dyn std::error::Error, "an orphan could not be removed");
        }
    }
}

/// Ends a lease whose row was damaged, and gives it the entry that the log owes it.
pub(super) async fn settle(
    shared: &Shared,
    backends: &[Arc<dyn Backend>],
    lease: LeaseId,
) -> Result<(), StoreError> {
    if shared.store.log_index_of(lease)?.is_some() {
        return shared.store.mark_settled(lease).await;
    }
    let mut totals = Usage::UNKNOWN;
    for backend in backends {
        match backend.terminate(lease_id(lease)).await {
            Ok(sample) => totals = totals.then(&usage(&sample.usage)),
            Err(error) => {
                tracing::error!(%lease, error = &error as &dyn std::error::Error, "a lost lease could not be ended; it is tried again at the next start");
                return Ok(());
            }
        }
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
    let entry = Entry::Lease(LeaseEntry {
        commitment: opening.commitment(&shared.network),
        outcome: OutcomeClass::of(Outcome::RecordLost),
        hour: HourBucket::of(now),
    });
    let record = LogRecord {
        entry: entry.encode(),
        opening: Some(StoredOpening {
            lease,
            salt: opening.salt,
            statement: opening.statement,
        }),
    };
    shared.store.settle_lost(lease, record).await.map(drop)
}
