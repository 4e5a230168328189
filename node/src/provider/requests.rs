//! The requests that were accepted and are still answered about.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use souk_market::units::{LeaseId, RequestId};

/// Each with its lease. The router writes it, and bounds it; the gate asks it.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<RwLock<HashMap<RequestId, LeaseId>>>);

impl Requests {
    /// The lease of a request.
    #[must_use]
    pub fn lease(&self, request: &RequestId) -> Option<LeaseId> {
        self.read().get(request).copied()
    }

    /// Whether a request was accepted.
    #[must_use]
    pub fn has(&self, request: &RequestId) -> bool {
        self.read().contains_key(request)
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    pub(super) fn insert(&self, request: RequestId, lease: LeaseId) {
        self.write().insert(request, lease);
    }

    pub(super) fn remove(&self, request: &RequestId) {
        self.write().remove(request);
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<RequestId, LeaseId>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<RequestId, LeaseId>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
