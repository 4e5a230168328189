//! The store over what goes wrong: crashes, flipped bytes, full disks, old backups.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::FutureExt as _;
use rand::{SeedableRng as _, rngs::StdRng};
use redb::{BackendError, Database, StorageBackend, backends::FileBackend};
use souk_crypto::{HolderKey, LogKey, ReplyKey, UnixTime};
use souk_market::{
    capacity::LogHead,
    lifecycle::{Requested, Terms},
    log::{
        Checkpoint, Entry, HourBucket, KeyName, LeaseEntry, NoteVerifier, OutcomeClass, audit,
        leaf_hash, origin, verify_inclusion,
    },
    price::{Prices, Rounding},
    units::{
        CardDigest, Digest, DurationS, EnvelopeDigest, ImageHash, Limits, Money, RelayToken,
        ReplyKeyHash, RequestId, Resources, Salt, SshPublicKey,
    },
};

use tokio::sync::watch;

use super::{
    writer::{LEASES, LOG, META, SWEPT_AT_ONCE},
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
async fn open_on_small_disk(path: &Path, bytes: &Arc<AtomicU64>) -> (Store, Found) {
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

pub(super) struct Log {
    pub(super) directory: tempfile::TempDir,
    origin: KeyName,
    key: LogKey,
}

impl Log {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            origin: origin("test.00000000", "provider").expect("a name"),
            key: LogKey::generate(&mut rand::rng()),
        }
    }

    pub(super) fn files(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    /// A publisher that heeds what the network remembers.
    async fn heeding(&self, store: &Store, seen: &watch::Sender<Seen>) -> Publisher {
        let (origin, key) = (self.origin.clone(), self.key.clone());
        Publisher::heeding(store, &self.files(), origin, key, seen.subscribe())
            .await
            .expect("a refusal is no error at the start")
    }

    fn head(&self) -> LogHead {
        let checkpoint = self.checkpoint();
        LogHead {
            size: checkpoint.size(),
            root: Digest(checkpoint.root().0),
        }
    }

    pub(super) async fn publisher(&self, store: &Store) -> Result<Publisher, PublishError> {
        Publisher::open(store, &self.files(), self.origin.clone(), self.key.clone()).await
    }

    fn checkpoint(&self) -> Checkpoint {
        let note = std::fs::read(self.files().join("checkpoint")).expect("published");
        let verifier = NoteVerifier::new(self.origin.clone(), self.key.public());
        Checkpoint::open(&note, &self.origin, &verifier).expect("signed")
    }

    pub(super) fn audited_size(&self, known: Option<&Checkpoint>) -> u64 {
        let source = files::Directory(self.files());
        audit(&source, &self.checkpoint(), known)
            .expect("an honest log")
            .size
    }
}

pub(super) async fn append(store: &Store, n: std::ops::Range<u64>) {
    store
        .append(n.map(entry).collect(), None)
        .await
        .expect("appended");
}

#[tokio::test]
async fn a_checkpoint_that_found_no_room_proves_nothing_and_is_signed_when_there_is() {
    let log = Log::new();
    let bytes = Arc::new(AtomicU64::new(u64::MAX));
    let (store, _) = open_on_small_disk(&log.directory.path().join(FILE), &bytes).await;
    let mut publisher = log.publisher(&store).await.expect("opens");
    append(&store, 0..1).await;
    bytes.store(0, Ordering::SeqCst);
    assert!(publisher.publish(&store).await.is_err());
    assert_eq!(publisher.size(), 0);
    assert_eq!(
        publisher
            .prove(0, &entry(0).entry)
            .expect("no tile is read"),
        None
    );
    bytes.store(u64::MAX, Ordering::SeqCst);
    assert_eq!(publisher.publish(&store).await.expect("published"), 1);
    assert_eq!(log.checkpoint().size(), 1);
    let proven = publisher.prove(0, &entry(0).entry).expect("tiles");
    assert_eq!(proven.expect("covered").checkpoint, publisher.checkpoint());
}

#[tokio::test]
async fn a_published_log_passes_its_audit_and_proves_each_entry() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    let mut publisher = log.publisher(&store).await.expect("opens");
    assert_eq!(log.audited_size(None), 0);
    let mut known = log.checkpoint();
    let mut size = 0;
    for grown in [1, 1, 253, 1, 1, 300, 4_000, 70] {
        append(&store, size..size + grown).await;
        size += grown;
        assert_eq!(
            publisher
                .prove(size - 1, &entry(size - 1).entry)
                .expect("tiles"),
            None
        );
        assert_eq!(publisher.publish(&store).await.expect("published"), size);
        assert_eq!(log.audited_size(Some(&known)), size);
        known = log.checkpoint();
        for index in [0, size / 2, size - 1] {
            let entry = entry(index).entry;
            let proven = publisher
                .prove(index, &entry)
                .expect("tiles")
                .expect("covered");
            assert_eq!(
                verify_inclusion(&proven.proof, &leaf_hash(&entry), known.root()),
                Ok(())
            );
        }
    }
    drop(publisher);
    append(&store, size..size + 5).await;
    let publisher = log.publisher(&store).await.expect("goes on where it stood");
    assert_eq!(publisher.size(), size + 5);
    assert_eq!(log.audited_size(Some(&known)), size + 5);
}

#[tokio::test]
async fn files_that_were_lost_or_damaged_are_made_again_from_the_store() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    append(&store, 0..700).await;
    drop(log.publisher(&store).await.expect("published"));
    let before = log.checkpoint();
    let partial = log.files().join("tile/0/002.p/188");
    let mut bytes = std::fs::read(&partial).expect("a tile");
    bytes[3] ^= 1;
    std::fs::write(&partial, bytes).expect("written");
    std::fs::remove_file(log.files().join("checkpoint")).expect("removed");
    drop(log.publisher(&store).await.expect("made again"));
    assert_eq!(log.checkpoint(), before);
    std::fs::remove_dir_all(log.files()).expect("removed");
    drop(log.publisher(&store).await.expect("made again"));
    assert_eq!(log.audited_size(Some(&before)), 700);
}

/// Flips a bit in the row of the last checkpoint.
fn damage_checkpoint(directory: &Path) {
    let db = Database::create(directory.join(FILE)).expect("opens");
    let write = db.begin_write().expect("a transaction");
    {
        let mut table = write.open_table(META).expect("the table");
        let mut row = table
            .get("checkpoint")
            .expect("read")
            .expect("there")
            .value()
            .to_vec();
        row[40] ^= 1;
        table.insert("checkpoint", row.as_slice()).expect("written");
    }
    write.commit().expect("durable");
}

#[tokio::test]
async fn a_damaged_row_of_the_last_checkpoint_is_made_again_from_its_file() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    append(&store, 0..300).await;
    drop((log.publisher(&store).await.expect("published"), store));
    let before = log.checkpoint();
    damage_checkpoint(log.directory.path());
    let (store, _) = open(log.directory.path()).await;
    assert!(store.meta("checkpoint").is_err());
    let mut publisher = log.publisher(&store).await.expect("goes on");
    assert_eq!((publisher.size(), log.checkpoint()), (300, before.clone()));
    assert!(store.meta("checkpoint").is_ok());
    append(&store, 300..310).await;
    assert_eq!(publisher.publish(&store).await.expect("signs"), 310);
    assert_eq!(log.audited_size(Some(&before)), 310);
}

#[tokio::test]
async fn where_nobody_knows_what_was_signed_last_nothing_is_signed_and_no_row_is_replaced() {
    let log = Log::new();
    let data = log.directory.path();
    let file = log.files().join("checkpoint");
    let (store, _) = open(data).await;
    append(&store, 0..300).await;
    drop((log.publisher(&store).await.expect("published"), store));
    let (before, whole) = (log.checkpoint(), std::fs::read(&file).expect("a file"));
    damage_checkpoint(data);
    let mut flipped = whole.clone();
    flipped[60] ^= 1;
    std::fs::write(&file, &flipped).expect("written");

    let (store, _) = open(data).await;
    append(&store, 300..301).await;
    let mut publisher = log.publisher(&store).await.expect("a refusal is no error");
    let error = publisher.publish(&store).await.expect_err("refused");
    assert!(matches!(error, PublishError::Head(_)), "{error:?}");
    let refusal = publisher.refusal().borrow().clone();
    assert_eq!(refusal, Some(error.to_string()));
    assert_eq!(publisher.size(), 0);
    assert_eq!(std::fs::read(&file).expect("a file"), flipped);
    let due = publisher.survey_due();
    assert!(due.notified().now_or_never().is_none());
    drop((publisher, store));

    // Somebody who read the log gives it back.
    std::fs::write(&file, &whole).expect("written");
    let (store, _) = open(data).await;
    let publisher = log.publisher(&store).await.expect("goes on");
    assert_eq!(*publisher.refusal().borrow(), None);
    assert_eq!(log.audited_size(Some(&before)), 301);
    drop((publisher, store));

    // The store has less than the file says.
    damage_checkpoint(data);
    change_entry(data, 300, None);
    let (store, _) = open(data).await;
    let publisher = log.publisher(&store).await.expect("a refusal is no error");
    let refusal = publisher.refusal().borrow().clone();
    let refusal = refusal.expect("it is told");
    assert!(refusal.contains("old backup"), "{refusal}");
}

#[tokio::test]
async fn a_tile_that_goes_bad_makes_no_fork_of_what_the_network_remembers() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    let seen = watch::Sender::new(Seen::Remembered(None));
    let mut publisher = log.heeding(&store, &seen).await;
    append(&store, 0..300).await;
    publisher.publish(&store).await.expect("signs");
    let small = log.head();
    append(&store, 300..600).await;
    publisher.publish(&store).await.expect("signs");
    let tile = log.files().join("tile/0/001");
    let mut bytes = std::fs::read(&tile).expect("published");
    bytes[3] ^= 1;
    std::fs::write(&tile, bytes).expect("written");
    seen.send_replace(Seen::Remembered(Some(small)));
    assert_eq!(publisher.publish(&store).await.expect("agrees"), 600);
    assert_eq!(*publisher.refusal().borrow(), None);
}

#[tokio::test]
async fn a_store_from_an_old_backup_signs_nothing_until_it_is_whole_again() {
    let log = Log::new();
    let (data, backup) = (log.directory.path(), tempfile::tempdir().expect("a folder"));
    let (store, _) = open(data).await;
    append(&store, 0..10).await;
    drop((log.publisher(&store).await.expect("published"), store));
    copy(data, &backup.path().join("old"));
    let (store, _) = open(data).await;
    append(&store, 10..11).await;
    drop((log.publisher(&store).await.expect("published"), store));
    let signed = log.head();
    copy(data, &backup.path().join("new"));

    std::fs::remove_dir_all(data).expect("removed");
    copy(&backup.path().join("old"), data);
    let old = log.head();
    let seen = watch::Sender::new(Seen::Unasked);
    let (store, _) = open(data).await;
    let mut publisher = log.heeding(&store, &seen).await;
    seen.send_replace(Seen::Remembered(Some(signed)));
    let error = publisher.publish(&store).await.expect_err("refused");
    assert!(
        matches!(
            error,
            PublishError::Rollback {
                stored: 10,
                signed: 11
            }
        ),
        "{error:?}"
    );
    // The log grows on, and would come to that size with another entry.
    append(&store, 70..73).await;
    let error = publisher.publish(&store).await.expect_err("refused");
    assert!(
        matches!(error, PublishError::Fork { size: 11, .. }),
        "{error:?}"
    );
    let refusal = publisher.refusal().borrow().clone();
    assert_eq!(refusal, Some(error.to_string()));
    assert_eq!((publisher.size(), log.head()), (10, old));
    drop(publisher);
    let publisher = log.heeding(&store, &seen).await;
    assert_eq!(publisher.refusal().borrow().clone(), refusal);
    assert_eq!(log.head(), old, "also after a restart");
    drop((publisher, store));

    std::fs::remove_dir_all(data).expect("removed");
    copy(&backup.path().join("new"), data);
    let (store, _) = open(data).await;
    append(&store, 11..13).await;
    let publisher = log.heeding(&store, &seen).await;
    assert_eq!(*publisher.refusal().borrow(), None);
    assert_eq!(log.head().size, 13);
}

#[tokio::test]
async fn nothing_is_signed_before_the_network_was_asked() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    append(&store, 0..300).await;
    let seen = watch::Sender::new(Seen::Unasked);
    let mut publisher = log.heeding(&store, &seen).await;
    assert_eq!(publisher.publish(&store).await.expect("waits"), 0);
    assert!(!log.files().join("checkpoint").exists());
    seen.send_replace(Seen::Remembered(None));
    assert_eq!(publisher.publish(&store).await.expect("signs"), 300);
    let small = log.head();
    append(&store, 300..600).await;
    publisher.publish(&store).await.expect("signs");
    drop(publisher);
    // The others may have missed the last checkpoints.
    seen.send_replace(Seen::Remembered(Some(small)));
    let mut publisher = log.heeding(&store, &seen).await;
    assert_eq!(publisher.publish(&store).await.expect("agrees"), 600);
    let root = Digest([7; 32]);
    seen.send_replace(Seen::Remembered(Some(LogHead { size: 299, root })));
    let error = publisher.publish(&store).await.expect_err("another log");
    assert!(
        matches!(error, PublishError::Fork { size: 299, .. }),
        "{error:?}"
    );
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

/// Changes the stored bytes of a log row behind the back of the store, or takes it away.
pub(super) fn change_entry(directory: &Path, index: u64, row: Option<Vec<u8>>) {
    let db = Database::create(directory.join(FILE)).expect("opens");
    let write = db.begin_write().expect("a transaction");
    {
        let mut table = write.open_table(LOG).expect("the table");
        match row {
            Some(row) => drop(table.insert(index, row.as_slice()).expect("written")),
            None => drop(table.remove(index).expect("removed")),
        }
    }
    write.commit().expect("durable");
}

/// Puts other bytes in the place of a log row.
pub(crate) fn damage_entry(directory: &Path, index: u64) {
    change_entry(directory, index, Some(vec![1; 40]));
}

#[tokio::test]
async fn nothing_is_signed_over_a_log_that_was_rolled_back_or_rewritten() {
    let log = Log::new();
    let (store, _) = open(log.directory.path()).await;
    append(&store, 0..10).await;
    drop((log.publisher(&store).await.expect("published"), store));
    std::fs::remove_dir_all(log.files()).expect("removed");

    let change = |index, row| change_entry(log.directory.path(), index, row);
    let mut buffer = Vec::new();
    let row = frame::frame(
        &mut buffer,
        "log",
        &3u64.to_be_bytes(),
        writer::cbor(&entry(99)),
    );
    change(3, Some(row.to_vec()));
    let (store, _) = open(log.directory.path()).await;
    let error = log.publisher(&store).await.expect_err("refused");
    assert!(
        matches!(error, PublishError::Fork { size: 10, .. }),
        "{error:?}"
    );
    drop(store);

    change(9, None);
    let (store, _) = open(log.directory.path()).await;
    let error = log.publisher(&store).await.expect_err("refused");
    assert!(
        matches!(
            error,
            PublishError::Rollback {
                stored: 9,
                signed: 10
            }
        ),
        "{error:?}"
    );
    drop(store);

    change(3, Some(vec![1; 40]));
    let (store, _) = open(log.directory.path()).await;
    let error = store.log_records(0, 9).expect_err("a damaged row");
    assert!(
        error
            .to_string()
            .starts_with("row 0000000000000003 of table log"),
        "{error}"
    );
}
