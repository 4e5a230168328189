//! The store over what goes wrong: crashes, flipped bytes, full disks, old backups.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rand::{SeedableRng as _, rngs::StdRng};
use redb::{BackendError, Database, StorageBackend, backends::FileBackend};
use souk_crypto::{HolderKey, ReplyKey, UnixTime};
use souk_market::{
    lifecycle::{Requested, Terms},
    log::{Entry, HourBucket, LeaseEntry, OutcomeClass},
    price::{Prices, Rounding},
    units::{
        CardDigest, Digest, DurationS, EnvelopeDigest, ImageHash, Limits, Money, RelayToken,
        ReplyKeyHash, RequestId, Resources, Salt, SshPublicKey,
    },
};

use super::{
    writer::{LEASES, SWEPT_AT_ONCE},
    *,
};

/// A lease of which every byte follows from its number, so that a failure is the same again.
pub(super) fn record(n: u8) -> LeaseRecord {
    let mut rng = StdRng::seed_from_u64(n.into());
    let terms = Terms::new(UnixTime(1_000), UnixTime(1_060), UnixTime(2_000)).expect("rising");
    LeaseRecord {
        row: *Requested { terms }.reserve(LeaseId([n; 16])).row(),
        contract: Contract {
            request: RequestId([n; 32]),
            envelope: EnvelopeDigest([n; 32]),
            holder: HolderKey::generate(&mut rng).public(),
            reply_key: ReplyKey::generate(&mut rng).public(),
            reply_key_hash: ReplyKeyHash([n; 32]),
            offer: CardDigest([n; 32]),
            ssh_key: SshPublicKey([n; 32]),
            image: ImageHash([n; 32]),
            resources: Resources::ZERO,
            required: Limits::default(),
            duration: DurationS(600),
            prices: Some(Prices {
                asset: "TEST".parse().expect("an asset"),
                exponent: 2,
                core_hour: Money(1),
                memory_gib_hour: Money(1),
                disk_gib_hour: Money(1),
                increment: DurationS(1),
                minimum: DurationS(1),
                rounding: Rounding::Up,
            }),
            price: Money(1),
            relay_token: RelayToken([n; 32]),
            anonymous: true,
            forget_at: UnixTime(1_200),
            backend: "sandbox".parse().expect("a name"),
            relays: souk_market::wire::List::empty(),
            tee: None,
        },
        instance: None,
        refusal: None,
        log_index: None,
        clock: None,
        opening: None,
        evidence: None,
        direct_port: None,
    }
}

pub(super) fn entry(n: u64) -> LogRecord {
    let mut commitment = [0; 32];
    commitment[..8].copy_from_slice(&n.to_be_bytes());
    LogRecord {
        entry: Entry::Lease(LeaseEntry {
            commitment: Digest(commitment),
            outcome: OutcomeClass::Completed,
            hour: HourBucket(1),
        })
        .encode(),
        opening: Some(StoredOpening {
            lease: LeaseId([n as u8; 16]),
            salt: Salt([1; 32]),
            statement: vec![2; 200],
        }),
    }
}

pub(super) async fn open(directory: &Path) -> (Store, Found) {
    Store::open(directory).await.expect("the store opens")
}

#[tokio::test]
async fn what_was_written_is_there_after_opening_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, found) = open(directory.path()).await;
    assert!(found.leases.is_empty());
    store.accept(record(1)).await.expect("written");
    let changed = LeaseRecord {
        refusal: Some(souk_market::refusal::Reason::NoCapacity),
        ..record(2)
    };
    store.accept(record(2)).await.expect("written");
    store.save(changed.clone()).await.expect("written");
    drop(store);
    let (_, found) = open(directory.path()).await;
    assert_eq!(found.leases.len(), 2);
    assert_eq!(found.leases[1].refusal, changed.refusal);
    assert_eq!(found.requests[&RequestId([1; 32])].lease, LeaseId([1; 16]));
    assert!(found.corrupt.is_empty());
}

#[tokio::test]
async fn closing_twice_leaves_one_entry() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    store.accept(record(1)).await.expect("written");
    store.append(vec![entry(9)], None).await.expect("appended");
    let first = store.close(record(1), entry(1)).await.expect("closed");
    let again = store.close(record(1), entry(1)).await.expect("closed");
    assert_eq!((first, again), (1, 1));
    assert_eq!(store.log_size().expect("read"), 2);
    assert_eq!(store.log_record(1).expect("read"), Some(entry(1)));
    assert_eq!(store.log_index_of(LeaseId([1; 16])).expect("read"), Some(1));
    drop(store);
    let (_, found) = open(directory.path()).await;
    assert_eq!(found.leases[0].log_index, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_wait_together_each_get_an_index_of_their_own() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..300 {
        let store = store.clone();
        tasks.spawn(async move { store.append(vec![entry(n)], None).await.expect("appended") });
    }
    let mut indexes: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    indexes.sort_unstable();
    assert_eq!(indexes, (0..300).collect::<Vec<_>>());
}

/// So many SURBs may be spent.
pub(super) const ROOM: u64 = 1_000_000;

#[tokio::test]
async fn spent_surbs_have_their_room_and_are_forgotten_part_by_part() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    let surb = |n: usize| {
        let mut surb = [0; 32];
        surb[..8].copy_from_slice(&(n as u64).to_be_bytes());
        surb
    };
    // Every third one lives on, over more than two parts.
    let count = 2 * SWEPT_AT_ONCE + 10;
    let ops = (0..count)
        .map(|n| Op::Spend {
            surb: surb(n),
            epoch: if n % 3 == 0 { 9 } else { 5 },
            most: ROOM,
        })
        .collect();
    store.write(ops).await.expect("written");
    let spend = async |n: usize, most: usize| {
        let most = u64::try_from(most).expect("small");
        store.spend_surb(surb(n), 9, most).await.expect("written")
    };
    assert_eq!(spend(count, count).await, Spent::NoRoom);
    assert_eq!(spend(0, count).await, Spent::Before);
    assert_eq!(spend(count, count + 1).await, Spent::Now);
    store.forget_spent(9).await.expect("written");
    for n in [
        0,
        1,
        2,
        SWEPT_AT_ONCE,
        SWEPT_AT_ONCE + 1,
        count - 2,
        count - 1,
    ] {
        let wanted = if n % 3 == 0 {
            Spent::Before
        } else {
            Spent::Now
        };
        assert_eq!(spend(n, count).await, wanted, "{n}");
    }
}

#[tokio::test]
async fn a_surb_is_fresh_once_even_across_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    assert_eq!(
        store.spend_surb([1; 32], 5, ROOM).await.expect("written"),
        Spent::Now
    );
    assert_eq!(
        store.spend_surb([1; 32], 5, ROOM).await.expect("written"),
        Spent::Before
    );
    drop(store);
    let (store, _) = open(directory.path()).await;
    assert_eq!(
        store.spend_surb([1; 32], 5, ROOM).await.expect("written"),
        Spent::Before
    );
    assert_eq!(
        store.spend_surb([2; 32], 6, ROOM).await.expect("written"),
        Spent::Now
    );
    store.forget_spent(6).await.expect("written");
    assert_eq!(
        store.spend_surb([1; 32], 5, ROOM).await.expect("written"),
        Spent::Now,
        "its epoch is over"
    );
    assert_eq!(
        store.spend_surb([2; 32], 6, ROOM).await.expect("written"),
        Spent::Before
    );
}

/// Changes the stored bytes of a lease behind the back of the store.
fn tamper(directory: &Path, from: [u8; 16], change: impl Fn(&mut Vec<u8>), to: [u8; 16]) {
    let db = Database::create(directory.join(FILE)).expect("opens");
    let write = db.begin_write().expect("a transaction");
    {
        let mut table = write.open_table(LEASES).expect("the table");
        let mut row = table
            .get(from)
            .expect("read")
            .expect("there")
            .value()
            .to_vec();
        change(&mut row);
        table.insert(to, row.as_slice()).expect("written");
    }
    write.commit().expect("durable");
}

/// Flips a bit in the row of a lease.
pub(crate) fn damage_lease(directory: &Path, lease: LeaseId) {
    tamper(directory, lease.0, |row| row[40] ^= 1, lease.0);
}

#[tokio::test]
async fn a_damaged_row_is_named_and_put_aside_while_the_others_go_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    for n in 1..=4 {
        store.accept(record(n)).await.expect("written");
    }
    drop(store);
    tamper(
        directory.path(),
        [2; 16],
        |row| *row.last_mut().expect("not empty") ^= 1,
        [2; 16],
    );
    tamper(directory.path(), [3; 16], |row| row[0] = 9, [3; 16]);
    tamper(directory.path(), [4; 16], |_| (), [5; 16]);
    let (store, found) = open(directory.path()).await;
    let alive: Vec<_> = found.leases.iter().map(|lease| lease.row.lease()).collect();
    assert_eq!(alive, [LeaseId([1; 16]), LeaseId([4; 16])]);
    let words: Vec<_> = found.corrupt.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        [
            "row 02020202020202020202020202020202 of table leases: checksum does not match",
            "row 03030303030303030303030303030303 of table leases: version 9 is not known",
            "row 05050505050505050505050505050505 of table leases: checksum does not match",
        ]
    );
    assert_eq!(found.lost, [2, 3, 5].map(|n| LeaseId([n; 16])));
    store.save(record(1)).await.expect("the others go on");
    drop(store);
    let (store, found) = open(directory.path()).await;
    assert_eq!(
        (found.leases.len(), found.corrupt.len()),
        (2, 0),
        "it is told once"
    );
    assert_eq!(found.lost.len(), 3, "and stays until it is settled");
    let settle = || store.settle_lost(LeaseId([2; 16]), entry(2));
    assert_eq!(settle().await.expect("settled"), Some(0));
    assert_eq!(settle().await.expect("settled"), None);
    drop(store);
    let (_, found) = open(directory.path()).await;
    assert_eq!(found.lost, [3, 5].map(|n| LeaseId([n; 16])));
}

#[tokio::test]
async fn a_lease_that_only_its_request_still_names_is_lost_and_settled_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let (store, _) = open(directory.path()).await;
    for n in 1..=2 {
        store.accept(record(n)).await.expect("written");
    }
    drop(store);
    let db = Database::create(directory.path().join(FILE)).expect("opens");
    let write = db.begin_write().expect("a transaction");
    {
        let mut table = write.open_table(LEASES).expect("the table");
        drop(table.remove([2; 16]).expect("removed"));
    }
    write.commit().expect("durable");
    drop(db);
    let (store, found) = open(directory.path()).await;
    let words: Vec<_> = found.corrupt.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        ["row 02020202020202020202020202020202 of table leases: it is gone"]
    );
    assert_eq!(found.lost, [LeaseId([2; 16])]);
    let settled = store.settle_lost(LeaseId([2; 16]), entry(2)).await;
    assert_eq!(settled.expect("settled"), Some(0));
    drop(store);
    let (store, found) = open(directory.path()).await;
    assert!(found.corrupt.is_empty() && found.lost.is_empty());
    store
        .forget_leases(&[(LeaseId([2; 16]), RequestId([2; 32]))])
        .await
        .expect("forgotten");
}

#[tokio::test]
async fn a_file_that_is_no_database_and_one_in_use_are_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join(FILE), vec![7; 8192]).expect("written");
    let error = Store::open(directory.path()).await.err().expect("refused");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("restore it from a backup"));

    let directory = tempfile::tempdir().expect("a directory");
    let (_store, _) = open(directory.path()).await;
    let error = Store::open(directory.path()).await.err().expect("refused");
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
}

/// A file on a disk of so many bytes.
#[derive(Debug)]
struct SmallDisk {
    file: FileBackend,
    bytes: Arc<AtomicU64>,
}

impl SmallDisk {
    fn check(&self, end: u64) -> io::Result<()> {
        if end > self.bytes.load(Ordering::SeqCst) {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        } else {
            Ok(())
        }
    }
}

impl StorageBackend for SmallDisk {
    fn len(&self) -> Result<u64, io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.check(len)?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.check(offset + data.len() as u64)?;
        self.file.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.file.close()
    }
    fn try_lock_range(
        &self,
        start: std::ops::Bound<u64>,
        end: std::ops::Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }
}

/// Opens the store on a disk whose size the test sets.
pub(super) async fn open_on_small_disk(path: &Path, bytes: &Arc<AtomicU64>) -> (Store, Found) {
    let (file, disk) = (path.to_owned(), Arc::clone(bytes));
    let opener = move || {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(redb::StorageError::Io)?;
        let backend = SmallDisk {
            file: FileBackend::new(file)?,
            bytes: Arc::clone(&disk),
        };
        Database::builder().create_with_backend(backend)
    };
    Store::open_with(path.to_owned(), opener)
        .await
        .expect("opens")
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_loses_nothing_and_passes_when_there_is_room() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join(FILE);
    let bytes = Arc::new(AtomicU64::new(u64::MAX));
    let (store, _) = open_on_small_disk(&path, &bytes).await;
    store.accept(record(1)).await.expect("written");
    store.append(vec![entry(0)], None).await.expect("appended");

    bytes.store(
        std::fs::metadata(&path).expect("a file").len(),
        Ordering::SeqCst,
    );
    let mut appended = 1;
    let error = loop {
        let many = (0..200).map(entry).collect();
        match store.append(many, None).await {
            Ok(_) => appended += 200,
            Err(error) => break error,
        }
        assert!(appended < 200_000, "the disk never became full");
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(
        store.log_size().expect("reading needs no room"),
        appended,
        "whole or not at all"
    );
    assert!(
        store
            .append((0..200).map(entry).collect(), None)
            .await
            .is_err()
    );

    bytes.store(u64::MAX, Ordering::SeqCst);
    let index = store
        .append(vec![entry(0)], None)
        .await
        .expect("there is room again");
    assert_eq!(index, Some(appended));
    drop(store);
    let (store, found) = open(directory.path()).await;
    assert_eq!((found.leases.len(), found.corrupt.len()), (1, 0));
    assert_eq!(store.log_size().expect("read"), appended + 1);
}
