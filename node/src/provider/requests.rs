//! The requests that were accepted and are still answered about.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use souk_market::units::{LeaseId, RequestId};

/// Each with its lease. The router writes it, and bounds it; the gate asks it.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<RwLock<HashMap<RequestId, Request>>>);

#[derive(Clone, Copy, Debug)]
struct Request {
    lease: LeaseId,
    is_open: bool,
}

impl Requests {
    /// The lease of a request.
    #[must_use]
    pub fn lease(&self, request: &RequestId) -> Option<LeaseId> {
        self.read().get(request).map(|request| request.lease)
    }

    /// Whether the lease of a request is open; `None` where the request was not accepted, or is forgotten.
    #[must_use]
    pub fn is_open(&self, request: &RequestId) -> Option<bool> {
        self.read().get(request).map(|request| request.is_open)
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    /// Takes in a request whose lease is open.
    pub(super) fn insert(&self, request: RequestId, lease: LeaseId) {
        let is_open = true;
        self.write().insert(request, Request { lease, is_open });
    }

    /// Its lease has closed, and is only asked about any more.
    pub(super) fn close(&self, request: &RequestId) {
        if let Some(request) = self.write().get_mut(request) {
            request.is_open = false;
        }
    }

    pub(super) fn remove(&self, request: &RequestId) {
        self.write().remove(request);
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<RequestId, Request>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<RequestId, Request>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
