//! The one thread that writes: whatever waits is committed together, so that the disk is awaited once for many.
//!
//! A group is one transaction: all of it is durable when the callers hear of it, or none of it is. After an
//! input/output error redb refuses everything until it is opened again, which the writer does before the next group:
//! a disk that was full and has room again needs no restart.

use std::sync::Arc;

use redb::{
    Database, ReadableTable, ReadableTableMetadata as _, StorageError, Table, TableDefinition,
    WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Accepted, Damage, LeaseRecord, LogRecord, StoreError,
    database::Reopenable,
    frame::{decode, frame, table, unframe},
};
use crate::failpoint::failpoint;

pub(super) const LEASES: TableDefinition<[u8; 16], &[u8]> = table("leases");
pub(super) const REQUESTS: TableDefinition<[u8; 32], &[u8]> = table("requests");
pub(super) const LOG: TableDefinition<u64, &[u8]> = table("log");
pub(super) const META: TableDefinition<&str, &[u8]> = table("meta");
/// Signed agreements of holders to their final statements.
pub(super) const ACKNOWLEDGED: TableDefinition<[u8; 16], &[u8]> = table("acknowledged");
/// Fingerprints of SURBs that were used, with the epoch they die in.
pub(super) const SPENT: TableDefinition<[u8; 32], &[u8]> = table("spent-surbs");
/// Rows that could not be read, as they were, by table and key.
pub(super) const QUARANTINE: TableDefinition<&str, &[u8]> = table("quarantine");

/// Every table there is.
pub(super) const ALL_TABLES: [&str; 7] = [
    "leases",
    "requests",
    "log",
    "meta",
    "spent-surbs",
    "quarantine",
    "acknowledged",
];

/// Begins the place of a damaged lease row in quarantine; [`SETTLED`] once its lease has a log entry.
pub(super) const LOST_LEASE: &str = "leases/";
pub(super) const SETTLED: &str = "settled/";

/// Transactions that are committed together: above this the disk is no longer what is waited for.
const MAX_GROUP: usize = 256;
/// Transactions that may wait. Each lease has at most one, so this is above any number of leases.
pub(super) const MAX_WAITING: usize = 1024;

/// For how many epochs a SURB can still be good at most: those of the last epoch, the current and the next.
const SURB_EPOCHS: u64 = 3;

/// Rows of spent SURBs that one transaction looks at when some are forgotten: a few milliseconds.
pub(super) const SWEPT_AT_ONCE: usize = 4_096;

/// Room that an encoder begins with, so that it need not grow: a log record has 223 bytes.
const USUAL_ROW_BYTES: usize = 256;

/// One change.
pub(super) enum Op {
    Lease(Box<LeaseRecord>),
    Accept([u8; 32], Accepted),
    /// Appends to the log; of a lease also the record that closes it, which gets the index.
    Append(Encoded, Option<Box<LeaseRecord>>),
    /// Appends many, of no lease.
    AppendAll(EncodedMany),
    Spend {
        surb: [u8; 32],
        epoch: u64,
        /// Nothing is written where so many are remembered.
        most: u64,
    },
    Meta(&'static str, Vec<u8>),
    ForgetLease([u8; 16], [u8; 32]),
    /// Of those from this one on, a part.
    ForgetSpent {
        before_epoch: u64,
        from: [u8; 32],
    },
    Acknowledge([u8; 16], Vec<u8>),
    Quarantine(super::CorruptRow),
    /// Replaces a row of the log that cannot be read.
    Restore(u64, Encoded),
    /// Appends the entry of a lease whose row was damaged, where it has none yet, and marks it as settled.
    SettleLost([u8; 16], Option<Encoded>),
}

/// A log record as CBOR, made by the caller: what many callers can do must not be left to the one writer.
pub(super) struct Encoded(Vec<u8>);

impl Encoded {
    pub(super) fn of(record: &LogRecord) -> Self {
        Self(encode(record))
    }
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    /// Index of the log entry.
    Index(u64),
    /// The SURB had been used before.
    AlreadySpent,
    /// Too many SURBs are remembered.
    NoRoom,
    /// Where the next part begins, if there is one.
    SweptTo(Option<[u8; 32]>),
}

/// The same of many, in one buffer.
#[derive(Default)]
pub(super) struct EncodedMany {
    bytes: Vec<u8>,
    /// Where each of them ends.
    ends: Vec<usize>,
}

impl EncodedMany {
    pub(super) fn of(records: &[LogRecord]) -> Self {
        let mut many = Self {
            bytes: Vec::with_capacity(records.len() * USUAL_ROW_BYTES),
            ends: Vec::with_capacity(records.len()),
        };
        for record in records {
            cbor(record)(&mut many.bytes);
            many.ends.push(many.bytes.len());
        }
        many
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }
}

pub(super) struct Job {
    pub(super) ops: Vec<Op>,
    pub(super) done: oneshot::Sender<Result<Vec<Outcome>, StoreError>>,
}

/// Runs until every [`super::Store`] is gone.
pub(super) fn run(database: &Reopenable, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.blocking_recv() {
        serve(database, first, &mut jobs);
    }
}

/// The same without a thread, so that a simulation decides when it runs.
#[cfg(feature = "failpoints")]
pub(super) async fn run_here(database: Arc<Reopenable>, mut jobs: mpsc::Receiver<Job>) {
    while let Some(first) = jobs.recv().await {
        serve(&database, first, &mut jobs);
    }
}

/// Commits one job and those that wait behind it.
fn serve(database: &Reopenable, first: Job, jobs: &mut mpsc::Receiver<Job>) {
    let mut group = vec![first];
    while group.len() < MAX_GROUP
        && let Ok(job) = jobs.try_recv()
    {
        group.push(job);
    }
    let result = database.with(|db| commit(db, &group));
    if result.is_err() {
        database.reopen();
    }
    match result {
        Ok(outcomes) => {
            for (job, outcomes) in group.into_iter().zip(outcomes) {
                // Who no longer waits has gone; the rows are durable all the same.
                let _ = job.done.send(Ok(outcomes));
            }
        }
        Err(error) => {
            for job in group {
                let _ = job.done.send(Err(error.clone()));
            }
        }
    }
}

fn commit(db: &Database, group: &[Job]) -> Result<Vec<Vec<Outcome>>, Arc<redb::Error>> {
    let mut transaction = db.begin_write().map_err(redb::Error::from)?;
    make_sure(&mut transaction);
    let outcomes = apply(&transaction, group)?;
    failpoint!(BeforeCommit);
    transaction.commit().map_err(redb::Error::from)?;
    failpoint!(Committed);
    Ok(outcomes)
}

/// Has redb sync before it makes a commit the newest, and keep what tells which pages are taken. Else it reads all pages after a
/// kill, the whole log among them, and then one damaged page keeps all the others from being read.
pub(super) fn make_sure(transaction: &mut WriteTransaction) {
    transaction.set_quick_repair(true);
}

fn apply(transaction: &WriteTransaction, group: &[Job]) -> Result<Vec<Vec<Outcome>>, redb::Error> {
    let mut tables = Tables::open(transaction)?;
    tables.next_index = next_index(&tables.log)?;
    let mut outcomes = Vec::with_capacity(group.len());
    for job in group {
        let done: Result<Vec<_>, _> = job.ops.iter().map(|op| tables.apply(op)).collect();
        outcomes.push(done?);
    }
    Ok(outcomes)
}

/// Makes all tables that are not there.
pub(super) fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    Tables::open(transaction).map(drop)
}

/// The index of the next entry of the log.
pub(super) fn next_index(
    log: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<u64, StorageError> {
    let next = log.last()?.map_or(0, |(index, _)| index.value() + 1);
    let rows = log.len()?;
    if rows > next {
        // A page that hides the last entries: another one in their place would be a fork of what was signed.
        let said = format!("the log has {rows} entries, and only {next} are found");
        return Err(StorageError::Corrupted(said));
    }
    Ok(next)
}

struct Tables<'t> {
    leases: Table<'t, [u8; 16], &'static [u8]>,
    requests: Table<'t, [u8; 32], &'static [u8]>,
    log: Table<'t, u64, &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
    spent: Table<'t, [u8; 32], &'static [u8]>,
    quarantine: Table<'t, &'static str, &'static [u8]>,
    acknowledged: Table<'t, [u8; 16], &'static [u8]>,
    next_index: u64,
    /// Where rows are framed, one after the other.
    row: Vec<u8>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            leases: transaction.open_table(LEASES)?,
            requests: transaction.open_table(REQUESTS)?,
            log: transaction.open_table(LOG)?,
            meta: transaction.open_table(META)?,
            spent: transaction.open_table(SPENT)?,
            quarantine: transaction.open_table(QUARANTINE)?,
            acknowledged: transaction.open_table(ACKNOWLEDGED)?,
            next_index: 0,
            row: Vec::new(),
        })
    }

    fn apply(&mut self, op: &Op) -> Result<Outcome, redb::Error> {
        match op {
            Op::Lease(record) => self.put_lease(record)?,
            Op::Accept(request, accepted) => {
                let row = frame(&mut self.row, "requests", request, cbor(accepted));
                self.requests.insert(*request, row)?;
            }
            Op::Append(record, closed) => return self.append(&record.0, closed.as_deref()),
            Op::AppendAll(records) => {
                let mut last = Outcome::Done;
                for record in records.iter() {
                    last = self.append(record, None)?;
                }
                return Ok(last);
            }
            Op::Spend { surb, epoch, most } => {
                if self.spent.len()? >= *most {
                    return Ok(match self.spent.get(*surb)? {
                        Some(_) => Outcome::AlreadySpent,
                        None => Outcome::NoRoom,
                    });
                }
                let row = frame(&mut self.row, "spent-surbs", surb, epoch_bytes(*epoch));
                if self.spent.insert(*surb, row)?.is_some() {
                    return Ok(Outcome::AlreadySpent);
                }
            }
            Op::Meta(key, body) => {
                let row = frame(&mut self.row, "meta", key.as_bytes(), bytes(body));
                self.meta.insert(*key, row)?;
            }
            Op::ForgetLease(lease, request) => {
                self.leases.remove(*lease)?;
                self.acknowledged.remove(*lease)?;
                self.requests.remove(*request)?;
            }
            Op::ForgetSpent { before_epoch, from } => {
                let next = self.forget_spent(*before_epoch, *from)?;
                return Ok(Outcome::SweptTo(next));
            }
            Op::Acknowledge(lease, signed) => {
                let row = frame(&mut self.row, "acknowledged", lease, bytes(signed));
                self.acknowledged.insert(*lease, row)?;
            }
            Op::Quarantine(row) => self.quarantine(row)?,
            Op::Restore(index, record) => self.restore(*index, record)?,
            Op::SettleLost(lease, entry) => return self.settle_lost(*lease, entry.as_ref()),
        }
        Ok(Outcome::Done)
    }

    fn put_lease(&mut self, record: &LeaseRecord) -> Result<(), redb::Error> {
        let key = record.row.lease().0;
        let row = frame(&mut self.row, "leases", &key, cbor(record));
        self.leases.insert(key, row)?;
        Ok(())
    }

    fn append(
        &mut self,
        record: &[u8],
        closed: Option<&LeaseRecord>,
    ) -> Result<Outcome, redb::Error> {
        if let Some(closed) = closed
            && let Some(index) = self.entry_of(closed)?
        {
            // The transaction that closed it was durable, and its caller died before it heard so.
            return Ok(Outcome::Index(index));
        }
        let index = self.next_index;
        let row = frame(&mut self.row, "log", &index.to_be_bytes(), bytes(record));
        self.log.insert(index, row)?;
        self.next_index += 1;
        if let Some(closed) = closed {
            self.put_lease(&LeaseRecord {
                log_index: Some(index),
                ..closed.clone()
            })?;
        }
        Ok(Outcome::Index(index))
    }

    /// The log entry that the stored record of a lease names, where it can be read.
    fn entry_of(&self, record: &LeaseRecord) -> Result<Option<u64>, redb::Error> {
        let key = record.row.lease().0;
        let Some(row) = self.leases.get(key)? else {
            return Ok(None);
        };
        let stored: Result<LeaseRecord, _> = decode("leases", &key, row.value());
        Ok(stored.ok().and_then(|stored| stored.log_index))
    }

    /// Looks at some rows, so that whoever waits for a write waits no longer for a sweep than for other writes; the first row that was
    /// not looked at.
    fn forget_spent(
        &mut self,
        before_epoch: u64,
        from: [u8; 32],
    ) -> Result<Option<[u8; 32]>, redb::Error> {
        let (mut over, mut damaged, mut next) = (Vec::new(), Vec::new(), None);
        for (looked_at, row) in self.spent.range(from..)?.enumerate() {
            let (surb, row) = row?;
            let surb = surb.value();
            if looked_at == SWEPT_AT_ONCE {
                next = Some(surb);
                break;
            }
            let body = unframe("spent-surbs", &surb, row.value()).ok();
            match body.and_then(|body| body.try_into().ok().map(u64::from_be_bytes)) {
                Some(epoch) if epoch < before_epoch => over.push(surb),
                Some(_) => {}
                None => damaged.push(surb),
            }
        }
        for surb in over {
            self.spent.remove(surb)?;
        }
        for surb in damaged {
            // It stays spent for as long as any SURB can be good.
            tracing::error!(surb = %hex::encode(surb), "a damaged row of the spent SURBs is written anew");
            let epoch = before_epoch.saturating_add(SURB_EPOCHS);
            let row = frame(&mut self.row, "spent-surbs", &surb, epoch_bytes(epoch));
            self.spent.insert(surb, row)?;
        }
        Ok(next)
    }

    fn settle_lost(
        &mut self,
        lease: [u8; 16],
        entry: Option<&Encoded>,
    ) -> Result<Outcome, redb::Error> {
        let key = hex::encode(lease);
        let Some(bytes) = self
            .quarantine
            .remove(format!("{LOST_LEASE}{key}").as_str())?
            .map(|row| row.value().to_vec())
        else {
            return Ok(Outcome::Done);
        };
        self.quarantine
            .insert(format!("{SETTLED}{key}").as_str(), bytes.as_slice())?;
        match entry {
            Some(entry) => self.append(&entry.0, None),
            None => Ok(Outcome::Done),
        }
    }

    fn restore(&mut self, index: u64, record: &Encoded) -> Result<(), redb::Error> {
        let key = index.to_be_bytes();
        let found = self.log.get(index)?.map(|row| row.value().to_vec());
        if let Some(damaged) = found {
            if decode::<LogRecord>("log", &key, &damaged).is_ok() {
                return Ok(());
            }
            let place = format!("log/{}", hex::encode(key));
            self.quarantine.insert(place.as_str(), damaged.as_slice())?;
        }
        let row = frame(&mut self.row, "log", &key, bytes(&record.0));
        self.log.insert(index, row)?;
        Ok(())
    }

    fn quarantine(&mut self, row: &super::CorruptRow) -> Result<(), redb::Error> {
        let place = format!("{}/{}", row.table, row.key);
        let key = hex::decode(&row.key).unwrap_or_default();
        let taken = match (
            row.table,
            <[u8; 16]>::try_from(&*key),
            <[u8; 32]>::try_from(&*key),
        ) {
            ("leases", Ok(key), _) => self.leases.remove(key)?.map(|v| v.value().to_vec()),
            ("requests", _, Ok(key)) => self.requests.remove(key)?.map(|v| v.value().to_vec()),
            _ => None,
        };
        // Of a row that is gone, its name is kept: its lease has to be settled.
        let kept = taken.or_else(|| (row.damage == Damage::Missing).then(Vec::new));
        if let Some(bytes) = kept {
            self.quarantine.insert(place.as_str(), bytes.as_slice())?;
        }
        Ok(())
    }
}

pub(super) fn encode<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(USUAL_ROW_BYTES);
    cbor(value)(&mut out);
    out
}

/// Appends a value as CBOR.
pub(super) fn cbor<T: minicbor::Encode<()>>(value: &T) -> impl FnOnce(&mut Vec<u8>) {
    move |out| minicbor::encode(value, out).expect("a Vec takes every write")
}

/// Appends the epoch in which a spent SURB dies.
pub(super) fn epoch_bytes(epoch: u64) -> impl FnOnce(&mut Vec<u8>) {
    move |out| out.extend_from_slice(&epoch.to_be_bytes())
}

/// Appends bytes as they are.
fn bytes(body: &[u8]) -> impl FnOnce(&mut Vec<u8>) {
    move |out| out.extend_from_slice(body)
}
