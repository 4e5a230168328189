//! What a provider must not forget: one redb file.
//!
//! ```text
//!   lease tasks ──┐                                ┌── leases     one row each, versioned
//!   refusals ─────┼──► writer: one transaction ───►├── log        entries with their openings
//!   replies ──────┘    for whatever waits          ├── requests, spent-surbs, meta
//!                                                  └── quarantine rows that could not be read
//!                        publisher ◄── log ──► tiles, then checkpoint, as files
//! ```
//!
//! - Every write is durable when its future returns. A lease is closed and its log entry appended in *one* transaction.
//! - Every row carries a checksum over its table, key and body. A row that fails it is [named](CorruptRow), moved to
//!   quarantine, and the others go on.
//! - The database says which layout it has; an older one is brought to this one in one transaction.
//! - A full disk is an [error](StoreError::Full) of the write that met it; what was written before stays, and writes
//!   succeed again once there is room.
//!
//! Threats: a process that dies between any two instructions; a disk that is full or returns what was never written;
//! a SURB that comes twice in two copies of one envelope ([`Store::spend_surb`]).

mod database;
#[cfg(test)]
mod faults;
mod files;
mod format;
mod frame;
mod publish;
#[cfg(test)]
mod published;
mod record;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(test)]
pub(crate) use {published::damage_entry, tests::damage_lease};

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
};

pub use publish::{Proven, PublishError, Publisher, Seen};
pub use record::{
    Accepted, Contract, InstanceEvidence, InstanceRecord, LeaseRecord, LogRecord, SignedHead,
    StoredOpening,
};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable};
use souk_market::units::{LeaseId, RequestId};
pub use survey::Survey;
use tokio::sync::{mpsc, oneshot};

use self::{
    database::Reopenable,
    frame::{decode, unframe},
    writer::{
        ACKNOWLEDGED, Encoded, EncodedMany, Job, LEASES, LOG, LOST_LEASE, META, Op, Outcome,
        QUARANTINE, REQUESTS, SETTLED,
    },
};

/// Name of the database in its directory.
const FILE: &str = "provider.redb";

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Too few bytes for any row.
    #[error("cut short")]
    Short,
    /// Written by a version that this one does not know.
    #[error("version {0} is not known")]
    Version(u8),
    /// The bytes are not those that were written.
    #[error("checksum does not match")]
    Checksum,
    /// The checksum matches and the content does not make sense.
    #[error("content cannot be read: {0}")]
    Body(String),
    /// Another row names it, and it is not there.
    #[error("it is gone")]
    Missing,
}

/// A row that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {key} of table {table}: {damage}")]
pub struct CorruptRow {
    /// Its table.
    pub table: &'static str,
    /// Its key, in hex.
    pub key: String,
    /// What is wrong.
    pub damage: Damage,
}

/// Why the store did not do what was asked. Nothing of the failed write is in it, all that was written before is.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("no space left for {}; free some, nothing recorded is lost", .path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<redb::Error>,
    },
    /// Another process has it open.
    #[error("{} is in use by another process", .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is no database, or damaged beyond single rows.
    #[error("{} is damaged; move it away and restore it from a backup", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<redb::Error>,
    },
    /// A newer program wrote it. Nothing was changed.
    #[error(
        "{} has layout {found}, and this program knows none above {known}: start a newer program, \
         or one as old as the backup that you restore",
        .path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its layout.
        found: u64,
        /// The newest that is known.
        known: u64,
    },
    /// Any other error of the database or its disk.
    #[error("{} cannot be used", .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The directory cannot be made.
    #[error("{} cannot be made", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: Arc<io::Error>,
    },
    /// The system gave no thread for the writer.
    #[error("no thread for the writer of the store")]
    Thread(#[source] Arc<io::Error>),
    /// A row that this read needs is damaged.
    #[error(transparent)]
    Row(#[from] CorruptRow),
    /// It could not be opened again after an error.
    #[error("{} could not be opened again after an error", .path.display())]
    Unavailable {
        /// The file.
        path: PathBuf,
    },
    /// The writer has ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    fn from_redb(path: &Path, error: &Arc<redb::Error>) -> Self {
        let (path, source) = (path.to_owned(), Arc::clone(error));
        match &**error {
            redb::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => {
                Self::Full { path, source }
            }
            redb::Error::DatabaseAlreadyOpen => Self::InUse { path },
            redb::Error::Corrupted(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted => Self::Damaged { path, source },
            redb::Error::Io(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Damaged { path, source }
            }
            _ => Self::Database { path, source },
        }
    }
}

/// What was found in the store when it was opened.
#[derive(Debug, Default)]
pub struct Found {
    /// Every lease that can be read.
    pub leases: Vec<LeaseRecord>,
    /// Every accepted request that can be read.
    pub requests: HashMap<RequestId, Accepted>,
    /// Rows that could not be read; they are in quarantine now.
    pub corrupt: Vec<CorruptRow>,
    /// Leases whose row was damaged, now or before, and that are not settled: their instances, if any, must go, and the
    /// log owes them an entry; see [`Store::settle_lost`].
    pub lost: Vec<LeaseId>,
}

/// A handle to the store; cheap to clone. The file is closed when the last one is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    database: Arc<Reopenable>,
    /// `None` only while the last handle is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    /// `None` also where the writer is a task of a simulation.
    writer: Option<JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends with its queue; whoever opens the file next must not find it still open.
        self.jobs = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of the store panicked");
        }
    }
}

/// What became of a SURB that was to be marked as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// It was fresh, and may be used once.
    Now,
    /// It was used before.
    Before,
    /// Too many are remembered; it must not be used.
    NoRoom,
}

impl Store {
    /// Opens or makes the store in a directory and reads the journal.
    ///
    /// # Errors
    /// [`StoreError`] where the file as a whole cannot be used; single rows that cannot be read are in [`Found::corrupt`].
    pub async fn open(directory: &Path) -> Result<(Self, Found), StoreError> {
        std::fs::create_dir_all(directory).map_err(|e| StoreError::Directory {
            path: directory.to_owned(),
            source: Arc::new(e),
        })?;
        let path = directory.join(FILE);
        let file = path.clone();
        Self::open_with(path, move || Database::create(&file)).await
    }

    async fn open_with(
        path: PathBuf,
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<(Self, Found), StoreError> {
        let database = Arc::new(Reopenable::open(path, Box::new(open))?);
        let (jobs, waiting) = mpsc::channel(writer::MAX_WAITING);
        let for_writer = Arc::clone(&database);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer::run(&for_writer, waiting))
            .map_err(|e| StoreError::Thread(Arc::new(e)))?;
        Self::begin(database, jobs, Some(writer)).await
    }

    /// Opens a store whose writer is a task of this runtime and whose file is whatever `open` opens, for a simulation that
    /// decides about both.
    ///
    /// # Errors
    /// As [`Store::open`].
    #[cfg(feature = "failpoints")]
    pub async fn open_simulated(
        open: impl Fn() -> Result<Database, DatabaseError> + Send + Sync + 'static,
    ) -> Result<(Self, Found), StoreError> {
        let database = Arc::new(Reopenable::open(FILE.into(), Box::new(open))?);
        let (jobs, waiting) = mpsc::channel(writer::MAX_WAITING);
        tokio::spawn(writer::run_here(Arc::clone(&database), waiting));
        Self::begin(database, jobs, None).await
    }

    async fn begin(
        database: Arc<Reopenable>,
        jobs: mpsc::Sender<Job>,
        writer: Option<JoinHandle<()>>,
    ) -> Result<(Self, Found), StoreError> {
        let store = Self {
            inner: Arc::new(Inner {
                database,
                jobs: Some(jobs),
                writer,
            }),
        };
        let mut found = store.read_journal()?;
        found.corrupt.extend(store.missing_leases(&found)?);
        for row in &found.corrupt {
            tracing::error!(%row, "a damaged row was moved to quarantine");
        }
        let quarantine = found.corrupt.iter().cloned().map(Op::Quarantine).collect();
        // A node must start on a full disk, to look after its leases.
        if !found.corrupt.is_empty() {
            store.write(quarantine).await?;
        }
        found.lost = store.quarantined(LOST_LEASE)?;
        Ok((store, found))
    }

    /// Leases that a request names and no row, not even a damaged one: a flipped byte can hide rows as well as change them.
    fn missing_leases(&self, found: &Found) -> Result<Vec<CorruptRow>, StoreError> {
        let damaged = found.corrupt.iter().map(|row| row.key.clone());
        let there = found.leases.iter().map(|lease| lease.row.lease());
        let settled = self.quarantined(SETTLED)?;
        let lost = self.quarantined(LOST_LEASE)?;
        let known: HashSet<_> = there
            .chain(settled)
            .chain(lost)
            .map(|lease| lease.to_string())
            .chain(damaged)
            .collect();
        let missing = found.requests.values().filter_map(|accepted| {
            let key = hex::encode(accepted.lease.0);
            (!known.contains(&key)).then_some(CorruptRow {
                table: "leases",
                key,
                damage: Damage::Missing,
            })
        });
        Ok(missing.collect())
    }

    /// Writes a lease that is new, and remembers the request it came from.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was written then.
    pub async fn accept(&self, record: LeaseRecord) -> Result<(), StoreError> {
        let accepted = Accepted {
            lease: record.row.lease(),
            envelope: record.contract.envelope,
            forget_at: record.contract.forget_at,
        };
        let request = record.contract.request.0;
        let ops = vec![Op::Accept(request, accepted), Op::Lease(Box::new(record))];
        self.write(ops).await.map(drop)
    }

    /// Writes the row of a lease.
    ///
    /// # Errors
    /// [`StoreError`]; the row is as it was before then.
    pub async fn save(&self, record: LeaseRecord) -> Result<(), StoreError> {
        self.write(vec![Op::Lease(Box::new(record))])
            .await
            .map(drop)
    }

    /// Closes a lease and appends its entry, in one transaction; returns the index of the entry. A lease that was closed
    /// before keeps the entry it has.
    ///
    /// # Errors
    /// [`StoreError`]; the lease is open and has no entry then.
    pub async fn close(&self, record: LeaseRecord, entry: LogRecord) -> Result<u64, StoreError> {
        let outcomes = self
            .write(vec![Op::Append(
                Encoded::of(&entry),
                Some(Box::new(record)),
            )])
            .await?;
        Ok(last_index(&outcomes).expect("an append gives an index"))
    }

    /// Appends entries to the log in one transaction, and writes what `meta` says beside them; returns the index of the
    /// last, if there was any.
    ///
    /// # Errors
    /// [`StoreError`]; nothing was appended then.
    pub async fn append(
        &self,
        entries: Vec<LogRecord>,
        meta: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Option<u64>, StoreError> {
        let mut ops: Vec<_> = meta
            .map(|(key, body)| Op::Meta(key, body))
            .into_iter()
            .collect();
        if !entries.is_empty() {
            ops.push(Op::AppendAll(EncodedMany::of(&entries)));
        }
        let outcomes = self.write(ops).await?;
        Ok(last_index(&outcomes))
    }

    /// Puts entries in the place of damaged rows of the log, which go to quarantine; rows that can be read stay.
    ///
    /// # Errors
    /// [`StoreError`]; all are as they were then.
    pub async fn restore(&self, rows: Vec<(u64, LogRecord)>) -> Result<(), StoreError> {
        let restore = |(index, record): &_| Op::Restore(*index, Encoded::of(record));
        self.write(rows.iter().map(restore).collect())
            .await
            .map(drop)
    }

    /// Appends the entry of a lease whose row was damaged; `None` where it was settled before.
    ///
    /// # Errors
    /// [`StoreError`]; it is not settled then.
    pub async fn settle_lost(
        &self,
        lease: LeaseId,
        entry: LogRecord,
    ) -> Result<Option<u64>, StoreError> {
        let outcomes = self
            .write(vec![Op::SettleLost(lease.0, Some(Encoded::of(&entry)))])
            .await?;
        Ok(last_index(&outcomes))
    }

    /// Takes note that a lease whose row was damaged has its entry already.
    ///
    /// # Errors
    /// [`StoreError`]; it is not settled then.
    pub async fn mark_settled(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(vec![Op::SettleLost(lease.0, None)])
            .await
            .map(drop)
    }

    /// Keeps the holder's signed agreement to its final statement, beside the log.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn acknowledge(&self, lease: LeaseId, signed: Vec<u8>) -> Result<(), StoreError> {
        self.write(vec![Op::Acknowledge(lease.0, signed)])
            .await
            .map(drop)
    }

    /// What the holder signed to agree to its final statement; none where it did not, and the lease is as complete without.
    ///
    /// # Errors
    /// [`StoreError`], also where the row is damaged.
    pub fn acknowledgement(&self, lease: LeaseId) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.read(|db| {
            let table = db.begin_read()?.open_table(ACKNOWLEDGED)?;
            Ok(table.get(lease.0)?.map(|row| row.value().to_vec()))
        })?;
        let signed = row.map(|row| unframe("acknowledged", &lease.0, &row).map(<[u8]>::to_vec));
        Ok(signed.transpose()?)
    }

    /// The record of a lease.
    ///
    /// # Errors
    /// [`StoreError`], also where the row is damaged.
    pub fn lease(&self, lease: LeaseId) -> Result<Option<LeaseRecord>, StoreError> {
        let row = self.read(|db| {
            let table = db.begin_read()?.open_table(LEASES)?;
            Ok(table.get(lease.0)?.map(|row| row.value().to_vec()))
        })?;
        Ok(row
            .map(|row| decode("leases", &lease.0, &row))
            .transpose()?)
    }

    /// Marks a SURB as used, before it is, where fewer than `most` are remembered. It is remembered until [`Store::forget_spent`].
    ///
    /// # Errors
    /// [`StoreError`]; the SURB must not be used then.
    pub async fn spend_surb(
        &self,
        surb: [u8; 32],
        epoch: u64,
        most: u64,
    ) -> Result<Spent, StoreError> {
        let outcomes = self.write(vec![Op::Spend { surb, epoch, most }]).await?;
        Ok(match outcomes[..] {
            [Outcome::Done] => Spent::Now,
            [Outcome::NoRoom] => Spent::NoRoom,
            _ => Spent::Before,
        })
    }

    /// Forgets SURBs whose epoch is over: they cannot be used any more. Other writes come in between.
    ///
    /// # Errors
    /// [`StoreError`]; some are forgotten then, and some not.
    pub async fn forget_spent(&self, before_epoch: u64) -> Result<(), StoreError> {
        let mut from = Some([0; 32]);
        while let Some(first) = from {
            let op = Op::ForgetSpent {
                before_epoch,
                from: first,
            };
            from = match self.write(vec![op]).await?[..] {
                // A page that is damaged may show its rows in another order.
                [Outcome::SweptTo(next)] => next.filter(|next| *next > first),
                _ => None,
            };
        }
        Ok(())
    }

    /// Forgets leases whose statements need not be served any more, in one transaction. Their log entries stay.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn forget_leases(&self, leases: &[(LeaseId, RequestId)]) -> Result<(), StoreError> {
        let ops = leases
            .iter()
            .map(|(lease, request)| Op::ForgetLease(lease.0, request.0));
        self.write(ops.collect()).await.map(drop)
    }

    /// Writes a value under a name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_meta(&self, key: &'static str, body: Vec<u8>) -> Result<(), StoreError> {
        self.write(vec![Op::Meta(key, body)]).await.map(drop)
    }

    /// The value under a name.
    ///
    /// # Errors
    /// [`StoreError`], also where the row is damaged.
    pub fn meta(&self, key: &'static str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.read(|db| {
            let table = db.begin_read()?.open_table(META)?;
            Ok(table.get(key)?.map(|row| row.value().to_vec()))
        })?;
        let body = row
            .map(|row| unframe("meta", key.as_bytes(), &row).map(<[u8]>::to_vec))
            .transpose()?;
        Ok(body)
    }

    /// Number of log entries.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn log_size(&self) -> Result<u64, StoreError> {
        self.read(|db| Ok(writer::next_index(&db.begin_read()?.open_table(LOG)?)?))
    }

    /// An entry of the log with its opening.
    ///
    /// # Errors
    /// [`StoreError`], also where the row is damaged.
    pub fn log_record(&self, index: u64) -> Result<Option<LogRecord>, StoreError> {
        Ok(self.log_records(index, index + 1)?.pop())
    }

    /// The entries from `start` up to, and without, `end`, as far as there are any.
    ///
    /// # Errors
    /// [`StoreError`], also where a row is damaged or missing.
    pub fn log_records(&self, start: u64, end: u64) -> Result<Vec<LogRecord>, StoreError> {
        let rows = self.read(|db| {
            let table = db.begin_read()?.open_table(LOG)?;
            let mut rows = Vec::new();
            for row in table.range(start..end)? {
                let (index, row) = row?;
                rows.push((index.value(), row.value().to_vec()));
            }
            Ok(rows)
        })?;
        (start..)
            .zip(rows)
            .map(|(expected, (index, row))| {
                // A key that flipped leaves a hole: the row that follows is not the one that was asked for.
                Ok(decode("log", &expected.to_be_bytes(), &row).map_err(
                    |mut corrupt: CorruptRow| {
                        if index != expected {
                            corrupt.damage =
                                Damage::Body(format!("row {index} stands in its place"));
                        }
                        corrupt
                    },
                )?)
            })
            .collect()
    }

    /// What opens the entries of the log that are `wanted`, by index, from the records of their leases.
    ///
    /// # Errors
    /// [`StoreError`] of the database; damaged rows are passed over.
    pub fn openings(
        &self,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<BTreeMap<u64, StoredOpening>, StoreError> {
        self.read(|db| {
            let mut found = BTreeMap::new();
            for row in db.begin_read()?.open_table(LEASES)?.iter()? {
                let (key, row) = row?;
                let record: Result<LeaseRecord, _> = decode("leases", &key.value(), row.value());
                if let Ok(LeaseRecord {
                    log_index: Some(index),
                    opening: Some(opening),
                    ..
                }) = record
                    && wanted(index)
                {
                    found.insert(index, opening);
                }
            }
            Ok(found)
        })
    }

    /// The log entry of a lease whose own record was lost: found by reading the log from its end.
    ///
    /// # Errors
    /// [`StoreError`] of the database; damaged log rows are passed over.
    pub fn log_index_of(&self, lease: LeaseId) -> Result<Option<u64>, StoreError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(LOG)?;
            for row in table.iter()?.rev() {
                let (index, row) = row?;
                let record: Result<LogRecord, _> =
                    decode("log", &index.value().to_be_bytes(), row.value());
                let owner = record.ok().and_then(|record| record.opening);
                if owner.is_some_and(|opening| opening.lease == lease) {
                    return Ok(Some(index.value()));
                }
            }
            Ok(None)
        })
    }

    fn read_journal(&self) -> Result<Found, StoreError> {
        self.read(|db| {
            let mut found = Found::default();
            let transaction = db.begin_read()?;
            for row in transaction.open_table(LEASES)?.iter()? {
                let (key, row) = row?;
                match decode("leases", &key.value(), row.value()) {
                    Ok(record) => found.leases.push(record),
                    Err(corrupt) => found.corrupt.push(corrupt),
                }
            }
            for row in transaction.open_table(REQUESTS)?.iter()? {
                let (key, row) = row?;
                match decode("requests", &key.value(), row.value()) {
                    Ok(accepted) => {
                        found.requests.insert(RequestId(key.value()), accepted);
                    }
                    Err(corrupt) => found.corrupt.push(corrupt),
                }
            }
            Ok(found)
        })
    }

    /// Leases in quarantine whose place begins so.
    fn quarantined(&self, prefix: &str) -> Result<Vec<LeaseId>, StoreError> {
        self.read(|db| {
            let table = db.begin_read()?.open_table(QUARANTINE)?;
            let mut leases = Vec::new();
            for row in table.range(prefix..)? {
                let (place, _) = row?;
                let Some(key) = place.value().strip_prefix(prefix) else {
                    break;
                };
                leases.extend(key.parse::<LeaseId>().ok());
            }
            Ok(leases)
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.inner.database.with(|db| Ok(work(db)?))
    }

    async fn write(&self, ops: Vec<Op>) -> Result<Vec<Outcome>, StoreError> {
        let (done, result) = oneshot::channel();
        let job = Job { ops, done };
        let jobs = self.inner.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

fn last_index(outcomes: &[Outcome]) -> Option<u64> {
    match outcomes.last() {
        Some(Outcome::Index(index)) => Some(*index),
        _ => None,
    }
}
