//! What the provider shows of its leases: to its operator, to its relays, and to itself when it counts what is free.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_crypto::UnixTime;
use souk_market::{
    lifecycle::Usage,
    moment::{Boot, ClockWatch, Moment},
    reply::LeaseState,
    units::{BackendName, LeaseId, RelayToken, Resources},
};

use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use super::{carry::MAX_SESSIONS_OF_LEASE, lease::state_of};
use crate::store::LeaseRecord;

/// A lease as its operator sees it: nothing of the requester.
#[derive(Clone, Debug)]
pub struct LeaseView {
    /// The lease.
    pub lease: LeaseId,
    /// Where it stands.
    pub state: LeaseState,
    /// Which backend carries it.
    pub backend: BackendName,
    /// How much of the machine it has.
    pub resources: Resources,
    /// Nobody vouched for the holder.
    pub anonymous: bool,
    /// When it was accepted.
    pub accepted_at: UnixTime,
    /// When it ends.
    pub valid_to: UnixTime,
    /// What was measured last.
    pub usage: Usage,
}

/// Changes of states that wait for who reads them; more are told as missed.
const MAX_CHANGES: usize = 64;

/// A lease has another state.
#[derive(Clone, Debug)]
pub struct LeaseChange {
    /// The lease.
    pub lease: LeaseId,
    /// Where it stands now.
    pub state: LeaseState,
    /// Which backend carries it.
    pub backend: BackendName,
}

/// Every lease that is not closed, and when the last one closed.
#[derive(Debug)]
pub(super) struct Board {
    lines: Mutex<HashMap<LeaseId, Line>>,
    changes: broadcast::Sender<LeaseChange>,
    /// By the clocks of then.
    closed: Mutex<Option<(UnixTime, Moment)>>,
}

#[derive(Debug)]
struct Line {
    view: LeaseView,
    /// How to reach the instance, while it runs.
    door: Option<(RelayToken, SocketAddr)>,
    sessions: Arc<Sessions>,
}

/// The relayed sessions of one lease.
#[derive(Debug)]
pub(super) struct Sessions {
    /// Places for them.
    pub(super) places: Semaphore,
    /// The lease is closed. A relay that holds its stream open must not hold a place for ever.
    pub(super) over: CancellationToken,
}

impl Board {
    pub(super) fn new() -> Self {
        Self {
            lines: Mutex::default(),
            changes: broadcast::Sender::new(MAX_CHANGES),
            closed: Mutex::default(),
        }
    }

    /// Every lease whose state changes from now on.
    pub(super) fn changes(&self) -> broadcast::Receiver<LeaseChange> {
        self.changes.subscribe()
    }

    /// Shows a lease as it was written; takes it away once it is closed.
    pub(super) fn show(&self, record: &LeaseRecord, now: Moment) {
        let (row, contract) = (&record.row, &record.contract);
        let state = state_of(row);
        let before = self.lines().get(&row.lease()).map(|line| line.view.state);
        if before != Some(state) {
            // Without a reader there is nobody to tell.
            let _ = self.changes.send(LeaseChange {
                lease: row.lease(),
                state,
                backend: contract.backend.clone(),
            });
        }
        if state == LeaseState::Closed {
            if self.has(row.lease()) {
                // Said before it is gone, so that nobody finds no lease and no closing.
                self.closed(now.wall, now);
                self.remove(row.lease());
            }
            return;
        }
        let door = record
            .instance
            .as_ref()
            .filter(|_| state == LeaseState::Active)
            .map(|instance| (contract.relay_token.clone(), instance.ssh));
        let view = LeaseView {
            lease: row.lease(),
            state,
            backend: contract.backend.clone(),
            resources: contract.resources,
            anonymous: contract.anonymous,
            accepted_at: row.terms().accepted_at(),
            valid_to: row.terms().valid_to(),
            usage: *row.usage(),
        };
        let mut lines = self.lines();
        let sessions = lines
            .get(&row.lease())
            .map_or_else(Sessions::fresh, |line| Arc::clone(&line.sessions));
        let line = Line {
            view,
            door,
            sessions,
        };
        lines.insert(row.lease(), line);
    }

    pub(super) fn remove(&self, lease: LeaseId) {
        if let Some(line) = self.lines().remove(&lease) {
            line.sessions.over.cancel();
        }
    }

    /// Takes note that a lease closed, before now perhaps.
    pub(super) fn closed(&self, at: UnixTime, now: Moment) {
        let at = self.last_closed(now).max(Some(at.min(now.wall)));
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = at.map(|at| (at, now));
    }

    /// When the last lease closed, by the clock as it is now.
    pub(super) fn last_closed(&self, now: Moment) -> Option<UnixTime> {
        let closed = *self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, then) = closed?;
        let step = ClockWatch::new(Boot([0; 16]), then).observe(now);
        Some(step.map_or(at, |step| step.shift(at)).min(now.wall))
    }

    pub(super) fn views(&self) -> Vec<LeaseView> {
        let mut views: Vec<_> = self
            .lines()
            .values()
            .map(|line| line.view.clone())
            .collect();
        views.sort_by_key(|view| (view.accepted_at, view.lease));
        views
    }

    pub(super) fn has(&self, lease: LeaseId) -> bool {
        self.lines().contains_key(&lease)
    }

    /// Which backend carries an open lease.
    pub(super) fn backend_of(&self, lease: LeaseId) -> Option<BackendName> {
        self.lines()
            .get(&lease)
            .map(|line| line.view.backend.clone())
    }

    /// Where the SSH server of a token's lease answers, and the lease's sessions.
    pub(super) fn door_of(&self, token: &RelayToken) -> Option<(SocketAddr, Arc<Sessions>)> {
        self.lines()
            .values()
            .filter_map(|line| Some((line.door.as_ref()?, &line.sessions)))
            .find(|((theirs, _), _)| theirs == token)
            .map(|((_, ssh), sessions)| (*ssh, Arc::clone(sessions)))
    }

    /// What is left of `total` on a backend.
    pub(super) fn free(&self, backend: &BackendName, total: &Resources) -> Resources {
        self.lines()
            .values()
            .filter(|line| line.view.backend == *backend)
            .fold(*total, |free, line| {
                free.saturating_sub(&line.view.resources)
            })
    }

    pub(super) fn anonymous(&self) -> u32 {
        let count = self
            .lines()
            .values()
            .filter(|line| line.view.anonymous)
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<LeaseId, Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    fn fresh() -> Arc<Self> {
        Arc::new(Self {
            places: Semaphore::new(MAX_SESSIONS_OF_LEASE),
            over: CancellationToken::new(),
        })
    }
}
