//! The disk of a simulated provider: a file in memory that a crash leaves as a real one would.
//!
//! Threats: what was never synced. At a crash each write since the last sync is there or not, on its own, and the last one
//! may be torn; whatever a dying process still writes is not there. And a sync that fails after it has kept everything.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use redb::{Database, DatabaseError, StorageBackend};

/// Cache of the database, in bytes: its default is made for gigabytes.
const CACHE_BYTES: usize = 1 << 20;

#[derive(Debug, Default)]
struct Content {
    /// What a read gives.
    bytes: Vec<u8>,
    /// What is there after a crash, whatever happens.
    synced: Vec<u8>,
    /// What may be there after a crash.
    unsynced: Vec<Write>,
}

#[derive(Debug)]
enum Write {
    Bytes(usize, Vec<u8>),
    Len(usize),
}

impl Write {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Self::Bytes(at, data) => {
                if to.len() < at + data.len() {
                    to.resize(at + data.len(), 0);
                }
                to[*at..at + data.len()].copy_from_slice(data);
            }
            Self::Len(len) => to.resize(*len, 0),
        }
    }
}

/// A disk with one file on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    content: Arc<Mutex<Content>>,
    is_full: Arc<AtomicBool>,
    /// Syncs until one says that it failed; none does at 0.
    syncs_left: Arc<AtomicU32>,
    has_failed: Arc<AtomicBool>,
}

impl Disk {
    /// What opens the file for one life of the provider; nothing is written any more once `dead` is set.
    pub(super) fn opener(
        &self,
        dead: &Arc<AtomicBool>,
    ) -> impl Fn() -> Result<Database, DatabaseError> + Send + Sync + use<> {
        let (disk, dead) = (self.clone(), Arc::clone(dead));
        move || {
            let open = OpenFile {
                disk: disk.clone(),
                dead: Arc::clone(&dead),
            };
            Database::builder()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(open)
        }
    }

    /// Takes room away, or gives it back.
    pub(super) fn set_full(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::SeqCst);
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::SeqCst)
    }

    /// Has the `n`th sync from now say that it failed, though everything is kept.
    pub(super) fn fail_sync(&self, n: u32) {
        self.syncs_left.store(n, Ordering::SeqCst);
    }

    /// Whether a sync has failed since this was asked last.
    pub(super) fn take_failure(&self) -> bool {
        self.has_failed.swap(false, Ordering::SeqCst)
    }

    /// Whether this sync says that it failed.
    fn is_failing(&self) -> bool {
        let left = self.syncs_left.load(Ordering::SeqCst);
        self.syncs_left
            .store(left.saturating_sub(1), Ordering::SeqCst);
        let fails = left == 1;
        self.has_failed.fetch_or(fails, Ordering::SeqCst);
        fails
    }

    /// The power goes: of what was not synced, `survives` says what is there. Says whether a write was lost.
    pub(super) fn crash(&self, mut survives: impl FnMut() -> Survival) -> bool {
        let mut content = self.content();
        let mut is_lost = false;
        let unsynced = std::mem::take(&mut content.unsynced);
        for write in unsynced {
            match (survives(), write) {
                (Survival::Whole, write) => write.apply(&mut content.synced),
                (Survival::Torn, Write::Bytes(at, data)) => {
                    is_lost = true;
                    let half = data[..data.len() / 2].to_vec();
                    Write::Bytes(at, half).apply(&mut content.synced);
                }
                _ => is_lost = true,
            }
        }
        content.bytes = content.synced.clone();
        is_lost
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a crash leaves of one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Survival {
    Whole,
    Torn,
    Lost,
}

#[derive(Debug)]
struct OpenFile {
    disk: Disk,
    dead: Arc<AtomicBool>,
}

impl OpenFile {
    fn write_down(&self, write: Write) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        if self.disk.is_full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = self.disk.content();
        write.apply(&mut content.bytes);
        content.unsynced.push(write);
        Ok(())
    }
}

impl StorageBackend for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.content().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.disk.content();
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = content.bytes.get(start..start + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.write_down(Write::Len(usize::try_from(len).map_err(io::Error::other)?))
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.dead.load(Ordering::SeqCst) {
            return Ok(());
        }
        let mut content = self.disk.content();
        for write in std::mem::take(&mut content.unsynced) {
            write.apply(&mut content.synced);
        }
        if self.disk.is_failing() {
            return Err(io::Error::other("the disk does not know"));
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.write_down(Write::Bytes(at, data.to_vec()))
    }
}
