//! The published log over what goes wrong: crashes, full disks, damaged files and rows, old backups.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use futures::FutureExt as _;
use souk_crypto::LogKey;
use souk_market::{
    capacity::LogHead,
    log::{Checkpoint, KeyName, NoteVerifier, audit, leaf_hash, origin, verify_inclusion},
    units::Digest,
};
use tokio::sync::watch;

use super::{
    tests::{entry, open, open_on_small_disk},
    writer::{LOG, META},
    *,
};

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
