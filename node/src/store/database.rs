//! A database that survives its errors: a full disk, for instance, must not end a node that has leases.
//!
//! Threat: redb trusts what its pages say of themselves and panics where a flipped byte makes that impossible, in whatever
//! thread reads. Nothing but [`Reopenable`] calls it, and there a panic is damage of the file.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use redb::{Database, DatabaseError};

use super::{
    StoreError,
    format::{self, Unfit},
};

type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

/// A database that is opened again after an error, because redb refuses everything from then on.
pub(super) struct Reopenable {
    path: PathBuf,
    open: Opener,
    database: RwLock<Option<Database>>,
}

impl Reopenable {
    /// Opens it and brings it to the current layout.
    pub(super) fn open(path: PathBuf, open: Opener) -> Result<Self, StoreError> {
        let taken_up = contained(|| {
            let database = open()?;
            format::take_up(&database)?;
            Ok(database)
        });
        let database = taken_up.map_err(|unfit| match unfit {
            Unfit::TooNew(found) => StoreError::TooNew {
                path: path.clone(),
                found,
                known: format::CURRENT,
            },
            Unfit::Redb(error) => StoreError::from_redb(&path, &Arc::new(error)),
        })?;
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
            Some(database) => contained(|| work(database).map_err(Failed))
                .map_err(|Failed(e)| StoreError::from_redb(&self.path, &e)),
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
        let opened: Result<_, redb::Error> = contained(|| {
            // The old one has to let go of its lock first.
            drop(guard.take());
            Ok((self.open)()?)
        });
        match opened {
            Ok(database) => *guard = Some(database),
            Err(error) => tracing::warn!(%error, "the store could not be opened again"),
        }
    }
}

impl Drop for Reopenable {
    fn drop(&mut self) {
        let database = self
            .database
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let closed: Result<_, redb::Error> = contained(|| {
            drop(database);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(%error, "the store was not closed as it should be; the next start repairs it");
        }
    }
}

/// An error of what is done with a database, shared because many wait for one transaction.
struct Failed(Arc<redb::Error>);

impl From<redb::Error> for Failed {
    fn from(error: redb::Error) -> Self {
        Self(Arc::new(error))
    }
}

/// Runs what calls redb; a panic in it is damage.
fn contained<T, E: From<redb::Error>>(work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    // What a panic leaves half done is in redb's own memory. Its locks are poisoned then, so that it is told again until the
    // writer opens it anew; what is on the disk is as it was.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let said = format!("a page contradicts itself: {}", words(payload));
        Err(redb::Error::Corrupted(said).into())
    })
}

/// What a panic says. Whatever unwinds without a word is none: a simulation ends its lives so.
fn words(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(said) => *said,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(said) => (*said).to_owned(),
            Err(payload) => resume_unwind(payload),
        },
    }
}
