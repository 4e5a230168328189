//! Holds every file of the published log, and every row it was made from, against one another.
//!
//! Whoever verifies the log reads these files, and what a disk does to them nobody else tells: at each start, and where one
//! of them stood in the way since, all of them are compared with the rows. Rows are the truth, once they lead to the root that was signed. A file that is not what follows from
//! them is put aside and written again. A damaged row gets its entry back from its bundle, and salt and statement from the record of
//! its lease; where that is forgotten too they are lost, and the proofs of all other leases go on.
//!
//! Threat: a survey that makes it worse. Nothing is written before all entries together lead to the signed root.

use std::{
    collections::{BTreeMap, HashSet},
    fs, io,
};

use souk_market::log::{
    BundleSource as _, Frontier, Hash, TILE_WIDTH, TilePath, bundle_entries, bundle_path,
};

use super::{
    CorruptRow, Damage, LogRecord, PublishError, Store, StoreError,
    files::{CHUNK, Derived, Directory, entries},
};

/// Folder of files that were put aside.
const QUARANTINE: &str = "quarantine";
/// Files that are kept in it; of a disk that damages more, these are enough to tell.
const MAX_KEPT: usize = 256;
/// Files that are named in the log of the node, one by one.
const MAX_NAMED: usize = 32;
/// Damaged rows that are mended; where more are, a backup is the better copy.
const MAX_MENDED: usize = 65_536;

/// A survey of one published tree, a chunk at a time.
#[derive(Debug)]
pub struct Survey {
    directory: Directory,
    size: u64,
    root: Hash,
    derived: Derived,
    /// Files that are missing or not what they should be.
    wrong: HashSet<TilePath>,
    /// Entries of damaged rows, from their bundles.
    mended: BTreeMap<u64, Vec<u8>>,
    /// Where the rows that nothing was published of are read next.
    next: u64,
    /// Places of those that are damaged.
    unpublished: Vec<u64>,
}

impl Survey {
    /// Of the tree of `size`, for which `root` was signed.
    pub(super) fn of(directory: Directory, size: u64, root: Hash) -> Self {
        Self {
            directory,
            size,
            root,
            derived: Derived::new(),
            wrong: HashSet::new(),
            mended: BTreeMap::new(),
            next: size,
            unpublished: Vec::new(),
        }
    }

    /// Looks at the next few thousand entries; true once all are seen. Blocking, for some ten milliseconds.
    ///
    /// # Errors
    /// [`PublishError`] where an entry is damaged in its row and in its bundle.
    pub fn step(&mut self, store: &Store) -> Result<bool, PublishError> {
        if self.derived.size() < self.size {
            let Self {
                directory,
                size,
                derived,
                wrong,
                mended,
                ..
            } = self;
            derived.step(
                *size,
                |start, end| match entries(store, start, end) {
                    Err(PublishError::Store(StoreError::Row(_))) => {
                        one_by_one(store, directory, *size, start..end, mended)
                    }
                    read => read,
                },
                |path, bytes| {
                    let is_right = directory.bundle(path).is_ok_and(|found| found == bytes);
                    wrong.extend((!is_right).then_some(*path));
                    Ok(())
                },
            )?;
            return Ok(false);
        }
        let end = store.log_size()?.min(self.next + CHUNK);
        for index in self.next..end {
            match row(store, index) {
                Ok(_) => {}
                Err(StoreError::Row(row)) => {
                    tracing::error!(%row, "a damaged row of the usage log was never published");
                    self.unpublished.push(index);
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.next = end;
        Ok(end == store.log_size()?)
    }

    /// Where rows are damaged that no checkpoint covers: nobody can have seen their entries, and no file has a copy.
    pub fn unpublished(&self) -> &[u64] {
        &self.unpublished
    }

    /// Writes anew what was found to be wrong, and gives back the tree. Blocking; short where nothing was.
    ///
    /// # Errors
    /// [`PublishError::Fork`] where the entries do not lead to the signed root: nothing was changed then.
    pub async fn mend(self, store: &Store) -> Result<Frontier, PublishError> {
        let frontier = self.derived.into_frontier();
        if frontier.root() != self.root {
            return Err(PublishError::Fork {
                size: self.size,
                signed: self.root,
                found: frontier.root(),
            });
        }
        if !self.mended.is_empty() {
            let mut copies = store.openings(|index| self.mended.contains_key(&index))?;
            let rows: Vec<_> = self
                .mended
                .into_iter()
                .map(|(index, entry)| {
                    let opening = copies.remove(&index);
                    (index, LogRecord { entry, opening })
                })
                .collect();
            for (index, record) in rows.iter().take(MAX_NAMED) {
                tracing::error!(
                    index,
                    has_statement = record.opening.is_some(),
                    "a damaged row of the usage log has its entry back"
                );
            }
            let count = rows.len();
            store.restore(rows).await?;
            tracing::error!(count, "rows of the usage log were damaged");
        }
        if !self.wrong.is_empty() {
            rewrite(store, &self.directory, self.size, &self.wrong)?;
        }
        Ok(frontier)
    }
}

/// A row of the log that has to be there.
fn row(store: &Store, index: u64) -> Result<LogRecord, StoreError> {
    store.log_record(index)?.ok_or_else(|| {
        StoreError::Row(CorruptRow {
            table: "log",
            key: hex::encode(index.to_be_bytes()),
            damage: Damage::Missing,
        })
    })
}

/// Entries, where at least one row is damaged: that one's from its bundle.
fn one_by_one(
    store: &Store,
    directory: &Directory,
    size: u64,
    range: std::ops::Range<u64>,
    mended: &mut BTreeMap<u64, Vec<u8>>,
) -> Result<Vec<Vec<u8>>, PublishError> {
    let mut all = Vec::new();
    for index in range {
        match row(store, index) {
            Ok(record) => all.push(record.entry),
            Err(StoreError::Row(damaged)) => {
                let copy = in_bundle(directory, size, index).filter(|_| mended.len() < MAX_MENDED);
                let entry = copy.ok_or(StoreError::Row(damaged))?;
                mended.insert(index, entry.clone());
                all.push(entry);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// An entry as its bundle has it.
fn in_bundle(directory: &Directory, size: u64, index: u64) -> Option<Vec<u8>> {
    let bundle = index / TILE_WIDTH;
    let width = (size - bundle * TILE_WIDTH).min(TILE_WIDTH) as u16;
    let bytes = directory.bundle(&bundle_path(bundle, width)?).ok()?;
    let entries = bundle_entries(&bytes, width).ok()?;
    entries
        .get((index % TILE_WIDTH) as usize)
        .map(|entry| entry.to_vec())
}

/// Puts wrong files aside and writes what follows from the rows.
fn rewrite(
    store: &Store,
    directory: &Directory,
    size: u64,
    wrong: &HashSet<TilePath>,
) -> Result<(), PublishError> {
    let mut derived = Derived::new();
    let kept = fs::read_dir(directory.0.join(QUARANTINE)).map_or(0, Iterator::count);
    let mut count = 0;
    while derived.size() < size {
        derived.step(
            size,
            |start, end| entries(store, start, end),
            |path, bytes| {
                if !wrong.contains(path) {
                    return Ok(());
                }
                if count < MAX_NAMED {
                    tracing::error!(%path, "a file of the usage log was missing or damaged; it is written again from the store");
                }
                put_aside(directory, path, kept + count)?;
                count += 1;
                directory.write(&path.to_string(), bytes)
            },
        )?;
    }
    tracing::error!(count, "files of the usage log were missing or damaged");
    Ok(())
}

/// Keeps a wrong file for whoever wants to know what happened to it. It stays in its place, too, until there is a better one.
fn put_aside(directory: &Directory, path: &TilePath, count: usize) -> Result<(), PublishError> {
    let (from, folder) = (
        directory.0.join(path.to_string()),
        directory.0.join(QUARANTINE),
    );
    let file_error = |source| PublishError::File {
        path: from.clone(),
        source,
    };
    if count >= MAX_KEPT || !from.try_exists().map_err(file_error)? {
        return Ok(());
    }
    fs::create_dir_all(&folder).map_err(file_error)?;
    let kept = folder.join(path.to_string().replace('/', "-"));
    match fs::hard_link(&from, &kept) {
        // The first that was found is the most telling.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(file_error),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use futures::FutureExt as _;
    use redb::ReadableDatabase as _;
    use souk_market::log::{leaf_hash, verify_inclusion};

    use super::{
        super::{
            FILE, LeaseRecord, Publisher,
            frame::frame,
            published::{Log, append, change_entry},
            tests::{entry, open, record},
            writer::{self, QUARANTINE as ROWS},
        },
        *,
    };

    /// Two levels of tiles, and the last of each is not full.
    const ENTRIES: u64 = 1_300;

    async fn run(publisher: &Publisher, store: &Store) -> Result<Frontier, PublishError> {
        let mut survey = publisher.survey();
        while !survey.step(store)? {}
        survey.mend(store).await
    }

    /// Every tile and bundle, and the checkpoint, with their bytes.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.ends_with(QUARANTINE) {
                continue;
            }
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                let bytes = fs::read(&path).expect("readable");
                found.insert(path, bytes);
            }
        }
        found
    }

    fn quarantined_rows(log: &Log) -> Vec<String> {
        let db = redb::Database::create(log.directory.path().join(FILE)).expect("opens");
        let table = db.begin_read().expect("reads").open_table(ROWS);
        let table = table.expect("there");
        let places = redb::ReadableTable::iter(&table).expect("reads");
        places
            .map(|row| row.expect("readable").0.value().to_owned())
            .collect()
    }

    #[tokio::test]
    async fn every_file_that_was_flipped_cut_or_removed_is_put_aside_and_made_again() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..ENTRIES).await;
        let publisher = log.publisher(&store).await.expect("published");
        let whole = files(&log.files());
        let derived: Vec<_> = whole
            .keys()
            .filter(|path| !path.ends_with("checkpoint"))
            .collect();
        // Six bundles, six tiles of hashes of entries, and one above them.
        assert_eq!(derived.len(), 13);
        run(&publisher, &store).await.expect("nothing is wrong");
        assert!(!log.files().join(QUARANTINE).exists());
        for (n, path) in derived.iter().enumerate() {
            let mut bytes = whole[*path].clone();
            match n % 3 {
                0 => fs::remove_file(path).expect("removed"),
                1 => fs::write(path, &bytes[..bytes.len() - 1]).expect("cut"),
                _ => {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 0x10;
                    fs::write(path, bytes).expect("written");
                }
            }
        }
        let tree = run(&publisher, &store).await.expect("mended");
        assert_eq!(tree.root(), publisher.root());
        assert_eq!(files(&log.files()), whole);
        assert_eq!(log.audited_size(None), ENTRIES);
        let kept = fs::read_dir(log.files().join(QUARANTINE)).expect("a folder");
        assert_eq!(kept.count(), 8, "what was there, and not what was removed");
    }

    #[tokio::test]
    async fn a_tile_that_goes_bad_under_a_publisher_is_not_built_on_and_a_survey_is_due() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..ENTRIES).await;
        let mut publisher = log.publisher(&store).await.expect("published");
        let due = publisher.survey_due();
        let is_due = || due.notified().now_or_never().is_some();
        assert!(is_due(), "after the start");
        assert!(!is_due());
        for (size, damage) in (ENTRIES..).zip(["flipped", "cut", "gone"]) {
            let newest = log.files().join(format!("tile/0/005.p/{}", size % 256));
            let mut bytes = fs::read(&newest).expect("published");
            match damage {
                "flipped" => bytes[3] ^= 1,
                _ => bytes.truncate(3),
            }
            match damage {
                "gone" => fs::remove_file(&newest).expect("removed"),
                _ => fs::write(&newest, bytes).expect("written"),
            }
            append(&store, size..size + 1).await;
            let error = publisher.publish(&store).await.expect_err("told");
            assert!(matches!(error, PublishError::Tile(_)), "{error:?}");
            assert_eq!(publisher.size(), size);
            assert!(is_due(), "{damage}");
            run(&publisher, &store).await.expect("mended");
            let published = publisher.publish(&store).await.expect("signs again");
            assert_eq!(published, size + 1);
            let proven = publisher.prove(size, &entry(size).entry).expect("tiles");
            assert!(proven.is_some());
        }
        let full = log.files().join("tile/0/001");
        let mut bytes = fs::read(&full).expect("published");
        bytes[3] ^= 1;
        fs::write(&full, bytes).expect("written");
        let prove = || publisher.prove(300, &entry(300).entry);
        assert!(prove().is_err());
        assert!(is_due());
        run(&publisher, &store).await.expect("mended");
        assert!(prove().expect("tiles").is_some());
        assert_eq!(log.audited_size(None), ENTRIES + 3);
    }

    #[tokio::test]
    async fn a_damaged_row_gets_its_entry_back_and_all_others_are_proven_as_before() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..ENTRIES).await;
        drop((log.publisher(&store).await.expect("published"), store));
        change_entry(log.directory.path(), 300, Some(vec![1; 40]));
        change_entry(log.directory.path(), 301, None);
        let (store, _) = open(log.directory.path()).await;
        let publisher = log.publisher(&store).await.expect("its edge is whole");
        assert!(store.log_record(300).is_err());
        run(&publisher, &store).await.expect("mended");
        for index in [299, 300, 301, 302] {
            let record = store.log_record(index).expect("read").expect("there");
            assert_eq!(record.entry, entry(index).entry);
            assert_eq!(record.opening.is_some(), ![300, 301].contains(&index));
            let proven = publisher.prove(index, &record.entry).expect("tiles");
            let proof = proven.expect("covered").proof;
            let leaf = leaf_hash(&record.entry);
            assert_eq!(verify_inclusion(&proof, &leaf, &publisher.root()), Ok(()));
        }
        drop((publisher, store));
        assert_eq!(quarantined_rows(&log), ["log/000000000000012c"]);
    }

    #[tokio::test]
    async fn a_damaged_row_gets_back_what_opens_it_from_the_record_of_its_lease() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        let mut written = Vec::new();
        for n in 0..3 {
            let row = entry(n.into());
            let lease = LeaseRecord {
                opening: row.opening.clone().filter(|_| n != 2),
                ..record(n)
            };
            store.close(lease, row.clone()).await.expect("closed");
            written.push(row);
        }
        drop((log.publisher(&store).await.expect("published"), store));
        for index in [1, 2] {
            change_entry(log.directory.path(), index, Some(vec![1; 40]));
        }
        let (store, _) = open(log.directory.path()).await;
        let publisher = log.publisher(&store).await.expect("opens");
        run(&publisher, &store).await.expect("mended");
        written[2].opening = None;
        assert_eq!(store.log_records(0, 3).expect("whole"), written);
    }

    #[tokio::test]
    async fn an_entry_that_is_damaged_in_row_and_bundle_is_named_and_nothing_is_made_worse() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..ENTRIES).await;
        drop((log.publisher(&store).await.expect("published"), store));
        change_entry(log.directory.path(), 300, Some(vec![1; 40]));
        fs::remove_file(log.files().join("tile/entries/001")).expect("removed");
        let before = files(&log.files());
        let (store, _) = open(log.directory.path()).await;
        let publisher = log.publisher(&store).await.expect("its edge is whole");
        let error = run(&publisher, &store).await.expect_err("two copies gone");
        let PublishError::Store(StoreError::Row(row)) = error else {
            panic!("{error:?}");
        };
        assert_eq!(row.key, "000000000000012c");
        assert_eq!(files(&log.files()), before);
    }

    #[tokio::test]
    async fn rows_that_do_not_lead_to_the_signed_root_change_no_file() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..ENTRIES).await;
        drop((log.publisher(&store).await.expect("published"), store));
        let (mut buffer, key) = (Vec::new(), 300u64.to_be_bytes());
        let row = frame(&mut buffer, "log", &key, writer::cbor(&entry(9_999)));
        change_entry(log.directory.path(), 300, Some(row.to_vec()));
        let before = files(&log.files());
        let (store, _) = open(log.directory.path()).await;
        let publisher = log.publisher(&store).await.expect("its edge is whole");
        let error = run(&publisher, &store).await.expect_err("refused");
        assert!(matches!(error, PublishError::Fork { .. }), "{error:?}");
        assert_eq!(files(&log.files()), before);
    }

    #[tokio::test]
    async fn a_damaged_row_that_was_never_published_holds_up_neither_the_start_nor_the_log() {
        let log = Log::new();
        let (store, _) = open(log.directory.path()).await;
        append(&store, 0..10).await;
        drop(log.publisher(&store).await.expect("published"));
        append(&store, 10..14).await;
        drop(store);
        change_entry(log.directory.path(), 12, Some(vec![1; 40]));
        let (store, _) = open(log.directory.path()).await;
        let mut publisher = log.publisher(&store).await.expect("opens all the same");
        assert_eq!(publisher.size(), 10);
        let mut survey = publisher.survey();
        while !survey.step(&store).expect("readable") {}
        assert_eq!(survey.unpublished(), [12]);
        let instead = LogRecord {
            opening: None,
            ..entry(77)
        };
        let rows = [11, 12].map(|index| (index, instead.clone()));
        store.restore(rows.to_vec()).await.expect("written");
        assert_eq!(publisher.publish(&store).await.expect("signs"), 14);
        assert_eq!(log.audited_size(None), 14);
        assert_eq!(store.log_record(12).expect("read"), Some(instead));
        assert_eq!(
            store.log_record(11).expect("read"),
            Some(entry(11)),
            "what can be read stays"
        );
    }
}
