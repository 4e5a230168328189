//! The store on disks that fail: power cuts that drop and tear whatever was not synced, disks that fill up, bytes that flip.
//!
//! Everything is drawn from a seed, which a failing test names.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use redb::{Database, StorageBackend};

use super::{
    tests::{ROOM, entry, record},
    *,
};

/// What a disk writes whole or not at all, in bytes.
const SECTOR: usize = 512;
const SEEDS: u64 = 300;
/// Stores of which bytes are flipped.
const FLIPPED: u64 = 3;
/// Bytes that are flipped of each, each in a stretch of its own.
const FLIPS: usize = 200;
/// Disks that are filled; each takes longer.
const DISKS: u64 = 40;

/// A file on a disk that can fail, as the one who pulls the plug sees it.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    /// What is there after a power cut.
    durable: Vec<u8>,
    /// What is read until then.
    view: Vec<u8>,
    unsynced: Vec<Change>,
    /// Changes until the power is cut.
    left: u64,
    /// Longest file that fits.
    room: u64,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::Length(length) => file.resize(*length, 0),
            Self::Bytes(at, bytes) => {
                let end = at + bytes.len();
                file.resize(file.len().max(end), 0);
                file[*at..end].copy_from_slice(bytes);
            }
        }
    }
}

impl Disk {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Platter {
            durable: Vec::new(),
            view: Vec::new(),
            unsynced: Vec::new(),
            left: u64::MAX,
            room: u64::MAX,
        })))
    }

    /// With a file on it.
    fn of(file: &[u8]) -> Self {
        let disk = Self::new();
        disk.platter().view = file.to_vec();
        disk.platter().durable = file.to_vec();
        disk
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let mut platter = self.platter();
        platter.spend()?;
        let end = match &change {
            Change::Length(length) => *length,
            Change::Bytes(at, bytes) => at + bytes.len(),
        };
        if end as u64 > platter.room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change.apply(&mut platter.view);
        platter.unsynced.push(change);
        Ok(())
    }

    /// Of what was not synced, each change is there, not there, or torn. Any order in which a disk may have written them ends
    /// in one of these.
    fn power_on(&self, rng: &mut StdRng) {
        let mut platter = self.platter();
        let Platter {
            durable, unsynced, ..
        } = &mut *platter;
        for change in unsynced.drain(..) {
            match (rng.random_range(0..3), change) {
                (0, _) => {}
                (1, Change::Bytes(at, bytes)) => {
                    for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                        if rng.random() {
                            Change::Bytes(at + n * SECTOR, sector.to_vec()).apply(durable);
                        }
                    }
                }
                (_, change) => change.apply(durable),
            }
        }
        platter.view = platter.durable.clone();
        platter.left = u64::MAX;
    }

    async fn store(&self) -> Result<(Store, Found), StoreError> {
        let disk = self.clone();
        let open = move || {
            // Little room in memory, so that pages reach the disk before their commit.
            Database::builder()
                .set_cache_size(64 * 1024)
                .create_with_backend(disk.clone())
        };
        Store::open_with(FILE.into(), open).await
    }
}

impl Platter {
    fn spend(&mut self) -> io::Result<()> {
        self.left = self.left.saturating_sub(1);
        match self.left {
            0 => Err(io::Error::other("no power")),
            _ => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.platter().view.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let platter = self.platter();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at
            .checked_add(out.len())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let bytes = platter.view.get(at..end);
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.change(Change::Length(
            usize::try_from(len).map_err(io::Error::other)?,
        ))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut platter = self.platter();
        platter.spend()?;
        let Platter {
            durable, unsynced, ..
        } = &mut *platter;
        unsynced.drain(..).for_each(|change| change.apply(durable));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        self.change(Change::Bytes(at, data.to_vec()))
    }
}

/// What a store must hold.
#[derive(Clone, Debug, Default, PartialEq)]
struct Book {
    leases: Vec<LeaseRecord>,
    log: Vec<LogRecord>,
}

impl Book {
    fn read(store: &Store, found: &Found) -> Self {
        assert_eq!((&found.corrupt, &found.lost), (&Vec::new(), &Vec::new()));
        let size = store.log_size().expect("readable");
        Self {
            leases: found.leases.clone(),
            log: store.log_records(0, size).expect("readable"),
        }
    }

    /// Writes something; with it this is what the store holds.
    async fn step(
        &self,
        store: &Store,
        rng: &mut StdRng,
        most: u64,
    ) -> (Self, Result<(), StoreError>) {
        let mut after = self.clone();
        let next = u8::try_from(self.leases.len()).expect("few leases");
        let open = self
            .leases
            .iter()
            .position(|lease| lease.log_index.is_none());
        let result = match (rng.random_range(0..3), open) {
            (0, Some(at)) => {
                let entry = entry(1_000 + self.log.len() as u64);
                after.leases[at].log_index = Some(self.log.len() as u64);
                after.log.push(entry.clone());
                store.close(self.leases[at].clone(), entry).await.map(drop)
            }
            (1, _) if next < 200 => {
                after.leases.push(record(next));
                let record = after.leases.last().cloned().expect("just pushed");
                store.accept(record).await
            }
            _ => {
                let many = rng.random_range(1..most);
                let entries: Vec<_> = (0..many)
                    .map(|n| entry(self.log.len() as u64 + n))
                    .collect();
                after.log.extend(entries.iter().cloned());
                store.append(entries, None).await.map(drop)
            }
        };
        (after, result)
    }
}

#[tokio::test]
async fn a_power_cut_at_any_write_loses_nothing_that_was_promised() {
    let mut cuts = 0;
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::new();
        let mut book = Book::default();
        for _ in 0..3 {
            let Ok((store, found)) = disk.store().await else {
                panic!("seed {seed}: the store does not open after a power cut");
            };
            assert_eq!(Book::read(&store, &found), book, "seed {seed}");
            disk.platter().left = rng.random_range(1..120);
            let in_doubt = loop {
                let (after, result) = book.step(&store, &mut rng, 60).await;
                match result {
                    Ok(()) => book = after,
                    Err(_) => break after,
                }
            };
            drop(store);
            disk.power_on(&mut rng);
            cuts += 1;
            let (store, found) = disk.store().await.expect("opens");
            let held = Book::read(&store, &found);
            assert!(
                held == book || held == in_doubt,
                "seed {seed}: neither what was promised nor all that was asked for: {held:?}"
            );
            book = held;
        }
    }
    assert_eq!(cuts, 3 * SEEDS);
}

#[tokio::test]
async fn a_disk_that_fills_up_at_any_byte_loses_nothing_and_goes_on_when_there_is_room() {
    let mut full = 0;
    for seed in 0..DISKS {
        let mut rng = StdRng::seed_from_u64(seed);
        let disk = Disk::new();
        let (store, _) = disk.store().await.expect("opens");
        let mut book = Book::default();
        let room = disk.platter().view.len() as u64 + rng.random_range(0..400_000);
        disk.platter().room = room;
        for _ in 0..20 {
            let (after, result) = book.step(&store, &mut rng, 2_000).await;
            match result {
                Ok(()) => book = after,
                Err(error) => {
                    assert!(
                        matches!(
                            error,
                            StoreError::Full { .. } | StoreError::Unavailable { .. }
                        ),
                        "seed {seed}: {error:?}"
                    );
                    full += 1;
                    disk.platter().room = u64::MAX;
                }
            }
        }
        drop(store);
        let (store, found) = disk.store().await.expect("opens");
        assert_eq!(Book::read(&store, &found), book, "seed {seed}");
    }
    assert!(full >= DISKS / 2, "only {full} disks became full");
}

/// A disk with a store that has something in every table, left as the store was when it was closed or killed, and what it holds.
async fn filled(rng: &mut StdRng, is_closed: bool) -> (Vec<u8>, Book) {
    let disk = Disk::new();
    let (store, _) = disk.store().await.expect("opens");
    let mut book = Book::default();
    for n in 0..60 {
        let (after, result) = book.step(&store, rng, 60).await;
        result.expect("written");
        book = after;
        assert_eq!(
            store
                .spend_surb([n; 32], n.into(), ROOM)
                .await
                .expect("written"),
            Spent::Now
        );
    }
    for lease in &book.leases {
        let written = store.acknowledge(lease.row.lease(), AGREED.to_vec()).await;
        written.expect("written");
    }
    let written = store.put_meta("checkpoint", AGREED.to_vec()).await;
    written.expect("written");
    if is_closed {
        drop(store);
        return (disk.platter().durable.clone(), book);
    }
    let whole = disk.platter().durable.clone();
    (whole, book)
}

const AGREED: &[u8] = b"any bytes";

#[tokio::test]
async fn a_flipped_byte_anywhere_is_told_or_harmless() {
    let (mut told, mut panics, mut unopened) = (0, 0, [0, 0]);
    for (seed, is_closed) in (0..FLIPPED).flat_map(|seed| [(seed, true), (seed, false)]) {
        let mut rng = StdRng::seed_from_u64(seed);
        let (whole, book) = filled(&mut rng, is_closed).await;
        let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        // Over the whole file, one byte in each stretch.
        for stretch in used.chunks(used.len().div_ceil(FLIPS)) {
            let at = stretch[rng.random_range(0..stretch.len())];
            let bit = rng.random_range(0..8);
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let opened = Disk::of(&bytes).store().await;
            unopened[usize::from(is_closed)] += usize::from(opened.is_err());
            let damaged = Disk::of(&bytes);
            let place = format!("seed {seed}, closed {is_closed}, bit {bit} of byte {at}");
            let errors = errors_of(&damaged, &book, &place).await;
            told += usize::from(!errors.is_empty());
            let is_panic = |error: &StoreError| {
                matches!(error, StoreError::Damaged { source, .. }
                    if source.to_string().contains("contradicts itself"))
            };
            panics += usize::from(errors.iter().any(is_panic));
        }
    }
    assert!(told > 0, "no flip was ever seen");
    println!(
        "{unopened:?} of {} are not opened",
        FLIPPED as usize * FLIPS
    );
    assert!(
        unopened[0] <= 2 * unopened[1] + 10,
        "after a kill one byte keeps all from being read: {unopened:?}"
    );
    assert!(
        panics > 0,
        "no flip made the database panic: is it still contained?"
    );
}

/// Opens a damaged store and reads all of it, and writes: nothing in it is false, what is missing is named, and whatever cannot
/// be read is an error of that read.
async fn errors_of(disk: &Disk, book: &Book, place: &str) -> Vec<StoreError> {
    let mut errors = Vec::new();
    let (store, found) = match disk.store().await {
        Ok(opened) => opened,
        Err(error) => return vec![error],
    };
    for lease in &found.leases {
        assert!(book.leases.contains(lease), "{place}: {lease:?} is made up");
    }
    errors.extend(found.corrupt.iter().cloned().map(StoreError::Row));
    let missing = book.leases.len() - found.leases.len();
    assert!(
        missing == 0 || !found.corrupt.is_empty(),
        "{place}: {missing} leases are gone and nobody says so"
    );
    let size = store.log_size();
    let log = size.and_then(|size| Ok((size, store.log_records(0, size)?)));
    match log {
        Ok((size, log)) => {
            assert_eq!(log, book.log[..log.len().min(book.log.len())], "{place}");
            assert_eq!(size as usize, book.log.len(), "{place}: entries are gone");
        }
        Err(error) => errors.push(error),
    }
    for lease in &book.leases {
        let id = lease.row.lease();
        match store.lease(id) {
            Ok(found) => assert!(found.is_none_or(|found| found == *lease), "{place}"),
            Err(error) => errors.push(error),
        }
        match store.acknowledgement(id) {
            Ok(signed) => assert!(signed.is_none_or(|signed| signed == AGREED), "{place}"),
            Err(error) => errors.push(error),
        }
    }
    // Reads the whole log, from its end.
    match store.log_index_of(LeaseId([255; 16])) {
        Ok(index) => assert!(
            index.is_none_or(|index| index < book.log.len() as u64),
            "{place}"
        ),
        Err(error) => errors.push(error),
    }
    match store.meta("checkpoint") {
        Ok(body) => assert!(body.is_none_or(|body| body == AGREED), "{place}"),
        Err(error) => errors.push(error),
    }
    errors.extend(store.spend_surb([1; 32], 1, ROOM).await.err());
    errors.extend(store.forget_spent(30).await.err());
    let written = store.append(vec![entry(7)], None).await;
    errors.extend(written.err());
    errors.extend(store.accept(record(201)).await.err());
    for error in &errors {
        assert!(!error.to_string().is_empty());
    }
    errors
}

#[tokio::test]
async fn a_power_cut_at_any_write_of_a_change_of_layout_leaves_the_old_or_the_new_one() {
    let mut cuts = 0;
    loop {
        let disk = Disk::new();
        let mut rng = StdRng::seed_from_u64(cuts);
        disk.platter().durable = format::tests::LAYOUT_1.to_vec();
        disk.platter().view = format::tests::LAYOUT_1.to_vec();
        disk.platter().left = cuts + 1;
        let opened = disk.store().await;
        let is_over = opened.is_ok() && disk.platter().left > 1;
        drop(opened);
        disk.power_on(&mut rng);
        let (store, found) = disk.store().await.expect("opens");
        format::tests::check(&store, &found).await;
        if is_over {
            break;
        }
        cuts += 1;
    }
    assert!(cuts > 5, "{cuts} writes are no change of layout");
}
