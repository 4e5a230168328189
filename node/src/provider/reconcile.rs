//! Holds what each backend has against the journal, with the core of [`souk_market::reconcile`].
//!
//! ```text
//!   one task a backend:  list ─► board, journal ─► orphans ─► terminate, a few at a time
//! ```
//!
//! Threat: a backend that hangs in a list or a removal. Each call has a patience and a task of its own, so it holds up no other
//! backend, no lease, and not the lists to come.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use souk_backend::{Backend, BackendError};
use souk_crypto::with_causes;
use souk_market::{
    lifecycle::Phase,
    moment::SteadyTime,
    reconcile::{OrphanReason, Periods, Reconcile, Step, Totals},
    units::{BackendName, LeaseId},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{Shared, backend::lease_id};
use crate::{
    failpoint::{failpoint, planted},
    store::{Store, StoreError},
};

/// How long a backend may take to list what it has; a cloud with pages of instances takes seconds.
const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// Orphans that the operator wants gone at once and that wait to be taken up.
const HURRY_QUEUE: usize = 16;
/// How long one removal of an orphan may take.
const REMOVE_PATIENCE: Duration = Duration::from_secs(60);

/// What was found at one backend, for its operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Instances in the last whole list, and how long ago it came.
    pub listed: Option<(usize, Duration)>,
    /// Lists that failed since then.
    pub failures: u32,
    /// What the last of them failed with.
    pub error: Option<String>,
    /// Instances that nobody owns, oldest first.
    pub orphans: Vec<OrphanView>,
    /// What was seen and done since the process began.
    pub totals: Totals,
}

/// An instance that nobody owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrphanView {
    /// Whose id it carries.
    pub lease: LeaseId,
    /// Why nobody owns it.
    pub reason: OrphanReason,
    /// For how long that has been known to this process.
    pub age: Duration,
    /// `waiting`, `removing` or `failing`.
    pub state: &'static str,
    /// Attempts to remove it that failed.
    pub failed: u32,
}

/// The cores of all backends, as their tasks last left them.
#[derive(Debug)]
pub(super) struct Reconciled {
    began: Instant,
    cores: Mutex<BTreeMap<BackendName, Seen>>,
    /// Where the operator's wishes for each backend go.
    hurries: Mutex<BTreeMap<BackendName, mpsc::Sender<LeaseId>>>,
}

#[derive(Debug)]
struct Seen {
    core: Reconcile,
    error: Option<String>,
}

impl Reconciled {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            cores: Mutex::default(),
            hurries: Mutex::default(),
        }
    }

    /// Has an orphan removed without waiting for the end of its grace; says whether there is such an orphan.
    pub(super) fn hurry(&self, backend: &BackendName, lease: LeaseId) -> bool {
        let is_orphan = {
            let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = cores.get(backend);
            seen.is_some_and(|seen| seen.core.orphans().any(|(orphan, _)| orphan == lease))
        };
        let hurries = self.hurries.lock().unwrap_or_else(PoisonError::into_inner);
        // One that finds the queue full waits behind sixteen others, and is removed after its grace anyway.
        is_orphan
            && hurries
                .get(backend)
                .is_some_and(|hurry| hurry.try_send(lease).is_ok())
    }

    fn hurries(&self, backend: &BackendName) -> mpsc::Receiver<LeaseId> {
        let (hurry, hurries) = mpsc::channel(HURRY_QUEUE);
        let mut all = self.hurries.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(backend.clone(), hurry);
        hurries
    }

    /// What was found at each backend.
    pub(super) fn findings(&self) -> BTreeMap<BackendName, Findings> {
        let now = self.now();
        let cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores
            .iter()
            .map(|(name, seen)| (name.clone(), findings(now, seen)))
            .collect()
    }

    fn show(&self, backend: &BackendName, core: &Reconcile, error: Option<&String>) {
        let seen = Seen {
            core: core.clone(),
            error: error.cloned(),
        };
        let mut cores = self.cores.lock().unwrap_or_else(PoisonError::into_inner);
        cores.insert(backend.clone(), seen);
    }

    fn now(&self) -> SteadyTime {
        SteadyTime(self.began.elapsed())
    }
}

fn findings(now: SteadyTime, seen: &Seen) -> Findings {
    let mut orphans: Vec<_> = seen
        .core
        .orphans()
        .map(|(lease, orphan)| OrphanView {
            lease,
            reason: orphan.reason,
            age: now.since(orphan.since),
            state: orphan.state(),
            failed: orphan.failed,
        })
        .collect();
    orphans.sort_by_key(|orphan| (std::cmp::Reverse(orphan.age), orphan.lease));
    Findings {
        listed: seen.core.listed().map(|(at, count)| (count, now.since(at))),
        failures: seen.core.list_failures(),
        error: seen.error.clone(),
        orphans,
        totals: *seen.core.totals(),
    }
}

/// What a call brought.
enum Done {
    Listed(Result<Vec<LeaseId>, String>),
    Removed(LeaseId, Result<(), String>),
}

/// Looks after one backend until the node shuts down.
pub(super) async fn run(shared: Arc<Shared>, name: BackendName, backend: Arc<dyn Backend>) {
    let seen = &shared.reconciled;
    let periods = Periods {
        list: shared.settings.reap_period,
        grace: shared.settings.orphan_grace,
    };
    let mut core = Reconcile::new(seen.now(), periods);
    let mut error = None;
    let mut calls = JoinSet::new();
    let mut hurries = seen.hurries(&name);
    while !planted!(ForgetsReaping) {
        while let Some(step) = core.poll(seen.now()) {
            let backend = Arc::clone(&backend);
            match step {
                Step::List => drop(calls.spawn(list(backend))),
                Step::Remove(lease) => match owner(&shared, &name, lease) {
                    Ok(Some(reason)) => {
                        tracing::warn!(%lease, backend = %name, reason = reason.as_str(), "an instance that nobody owns is removed");
                        calls.spawn(remove(backend, lease));
                    }
                    Ok(None) => core.handle_owned(lease),
                    // Nothing is removed on a guess; the next lists show it again.
                    Err(_) => core.handle_removed(seen.now(), lease, false),
                },
            }
        }
        seen.show(&name, &core, error.as_ref());
        let wake = core.next_at().map(|at| seen.began + at.0);
        tokio::select! {
            biased;
            () = shared.shutdown.cancelled() => return,
            Some(Ok(done)) = calls.join_next() => match done {
                Done::Listed(Ok(instances)) => {
                    error = None;
                    take_list(&shared, &name, &mut core, &instances);
                }
                Done::Listed(Err(why)) => {
                    tracing::warn!(backend = %name, why, "instances cannot be listed");
                    error = Some(why);
                    core.handle_list_failed(seen.now());
                }
                Done::Removed(lease, Ok(())) => core.handle_removed(seen.now(), lease, true),
                Done::Removed(lease, Err(why)) => {
                    tracing::error!(%lease, backend = %name, why, "an instance that nobody owns could not be removed; it is tried again");
                    core.handle_removed(seen.now(), lease, false);
                }
            },
            Some(lease) = hurries.recv() => {
                if core.handle_hurry(lease) {
                    tracing::info!(%lease, backend = %name, "the operator wants an instance gone that nobody owns");
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
        }
    }
}

fn take_list(shared: &Shared, name: &BackendName, core: &mut Reconcile, instances: &[LeaseId]) {
    core.handle_list(shared.reconciled.now(), instances, |lease| {
        owner(shared, name, lease)
            .inspect_err(|error| {
                tracing::error!(%lease, error = error as &dyn std::error::Error, "it cannot be told whether an instance has an owner");
            })
            .unwrap_or(None)
    });
}

/// Why nobody owns what carries a lease's id on this backend; none where its lease is open.
fn owner(
    shared: &Shared,
    backend: &BackendName,
    lease: LeaseId,
) -> Result<Option<OrphanReason>, StoreError> {
    // The board first: a lease that is accepted after the look into the journal is on it before it has a row.
    if let Some(carried_by) = shared.board.backend_of(lease) {
        return Ok((carried_by != *backend).then_some(OrphanReason::OtherBackend));
    }
    reason_in_journal(&shared.store, lease)
}

fn reason_in_journal(store: &Store, lease: LeaseId) -> Result<Option<OrphanReason>, StoreError> {
    match store.lease(lease) {
        Ok(Some(record)) => {
            let closed = matches!(record.row.phase(), Phase::Closed { .. });
            Ok(closed.then_some(OrphanReason::ClosedLease))
        }
        Ok(None) => Ok(Some(OrphanReason::UnknownLease)),
        Err(StoreError::Row(_)) => Ok(Some(OrphanReason::RecordLost)),
        Err(error) => Err(error),
    }
}

async fn list(backend: Arc<dyn Backend>) -> Done {
    let call = async move { backend.list().await };
    let listed = within(LIST_PATIENCE, call).await.map(|instances| {
        instances
            .into_iter()
            .map(|instance| LeaseId(instance.lease.0))
            .collect()
    });
    Done::Listed(listed)
}

async fn remove(backend: Arc<dyn Backend>, lease: LeaseId) -> Done {
    failpoint!(BeforeReap);
    let call = async move { backend.terminate(lease_id(lease)).await };
    let removed = within(REMOVE_PATIENCE, call).await;
    failpoint!(AfterReap);
    Done::Removed(lease, removed.map(drop))
}

/// What a call brought, unless it takes too long or panics.
async fn within<T: Send + 'static>(
    patience: Duration,
    call: impl Future<Output = Result<T, BackendError>> + Send + 'static,
) -> Result<T, String> {
    let mut task = JoinSet::new();
    task.spawn(call);
    match timeout(patience, task.join_next()).await {
        Ok(Some(Ok(Ok(brought)))) => Ok(brought),
        Ok(Some(Ok(Err(error)))) => Err(with_causes(&error)),
        Ok(Some(Err(_)) | None) => Err("the driver panicked".to_owned()),
        Err(_) => Err(format!("no answer within {} s", patience.as_secs())),
    }
}
