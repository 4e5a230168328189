//! A database that survives its errors: a full disk, for instance, must not end a node that has leases.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use redb::{Database, DatabaseError};

use super::StoreError;

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A database that is opened again after an error, because redb refuses everything from then on.
pub(super) struct Reopenable {
    path: PathBuf,
    open: Opener,
    database: RwLock<Option<Database>>,
}

impl Reopenable {
    pub(super) fn open(path: PathBuf, open: Opener) -> Result<Self, StoreError> {
        let database = open().map_err(|e| StoreError::from_redb(&path, &Arc::new(e.into())))?;
        Ok(Self {
            path,
            open,
            database: RwLock::new(Some(database)),
        })
    }

    /// Runs `work` on the database, opening it first where the last attempt failed.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, Arc<redb::Error>>,
    ) -> Result<T, StoreError> {
        if self
            .database
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none()
        {
            self.reopen();
        }
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match &*guard {
            Some(database) => work(database).map_err(|e| StoreError::from_redb(&self.path, &e)),
            None => Err(StoreError::Unavailable {
                path: self.path.clone(),
            }),
        }
    }

    /// Closes it and opens it again; where that fails, the next use tries once more.
    pub(super) fn reopen(&self) {
        let mut guard = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        // The old one has to let go of its lock first.
        *guard = None;
        match (self.open)() {
            Ok(database) => *guard = Some(database),
            Err(error) => tracing::warn!(%error, "the store could not be opened again"),
        }
    }
}
