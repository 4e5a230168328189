//! Backends at which the operator wants no new leases for a while.
//!
//! Open leases go on. A paused backend has no room, for admission and on the card's capacity messages, so requesters go elsewhere;
//! the store remembers it, so that a restart does not take leases that nobody wanted.

use std::collections::BTreeSet;

use souk_market::units::BackendName;

use super::{Provider, Shared};
use crate::store::{Store, StoreError};

/// Under which name the store has them.
const META: &str = "paused";

/// Why a backend was not paused, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum PauseRefused {
    /// There is none.
    #[error("there is no backend {0}")]
    NoSuchBackend(BackendName),
    /// It would not outlive the process.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Provider {
    /// Places no new leases at a backend, or places them again; it is written down before it holds.
    ///
    /// # Errors
    /// [`PauseRefused`]; it is as it was before then.
    pub async fn pause(&self, backend: &BackendName, paused: bool) -> Result<(), PauseRefused> {
        if !self.totals.contains_key(backend) {
            return Err(PauseRefused::NoSuchBackend(backend.clone()));
        }
        let _turn = self.shared.pausing.lock().await;
        let mut all = self.shared.paused.borrow().clone();
        let changes = match paused {
            true => all.insert(backend.clone()),
            false => all.remove(backend),
        };
        if changes {
            let names: Vec<_> = all.iter().map(BackendName::as_str).collect();
            let body = minicbor::to_vec(names).expect("a Vec takes all bytes");
            self.shared.store.put_meta(META, body).await?;
            self.shared.paused.send_replace(all);
            tracing::info!(%backend, paused, "the operator pauses a backend, or has it go on");
        }
        Ok(())
    }

    /// Whether new leases are kept from a backend.
    #[must_use]
    pub fn is_paused(&self, backend: &BackendName) -> bool {
        self.shared.is_paused(backend)
    }
}

impl Shared {
    pub(super) fn is_paused(&self, backend: &BackendName) -> bool {
        self.paused.borrow().contains(backend)
    }
}

/// Those that were paused before the process began.
pub(super) fn read(store: &Store) -> BTreeSet<BackendName> {
    let body = store.meta(META).unwrap_or_else(|error| {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "which backends were paused cannot be read; none is"
        );
        None
    });
    let names: Vec<String> = body
        .and_then(|body| minicbor::decode(&body).ok())
        .unwrap_or_default();
    names.iter().filter_map(|name| name.parse().ok()).collect()
}
