//! Evidence and collateral on the disk, each under its digest.
//!
//! ```text
//!  cards name digests ─► wanted ─► missing ─► asked for ─► bytes ─► digest wanted? ─► file <digest>
//!                          └─────► what no card names any more goes
//! ```
//!
//! Threats: bytes that nobody asked for (only what has a wanted digest is kept); a stranger with many cards that name large
//! collateral (room is shared out by the source of the card: when it is full, the latest piece of the source that has most goes);
//! a file that somebody changed (the digest is compared whenever one is read).

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use souk_attest::{CollateralDigest, EvidenceDigest, MAX_QUOTE_BYTES, Tee};
use souk_crypto::NodeId;
use souk_market::{shares::Source, units::Digest};
use souk_wire::evidence::{MAX_PIECE_BYTES, Name};

use crate::{
    durable,
    net::{MAX_PIECES, MAX_PIECES_BYTES, Peers, PieceSource, PiecesError},
};

/// What cards name, and where each card came from.
pub type Wanted = BTreeMap<Digest, Source>;

/// The pieces of one folder.
#[derive(Debug)]
pub struct Pieces {
    folder: PathBuf,
    table: Mutex<Table>,
    most_bytes: usize,
}

#[derive(Debug, Default)]
struct Table {
    held: HashMap<Digest, Held>,
    bytes: usize,
    arrivals: u64,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    len: usize,
    source: Source,
    /// Rises from piece to piece.
    serial: u64,
}

/// What became of bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// They are kept.
    Kept(Digest),
    /// Nobody wants them.
    Unwanted,
    /// There is no room for more of this source, or no disk.
    NoRoom(Digest),
}

/// The digests that bytes have as evidence or as collateral; a card names one of them.
fn digests(bytes: &[u8]) -> impl Iterator<Item = Digest> + '_ {
    let evidence = bytes.len() <= MAX_QUOTE_BYTES;
    Tee::ALL
        .into_iter()
        .flat_map(move |tee| {
            let evidence = evidence.then(|| Digest(EvidenceDigest::of(tee, bytes).0));
            [evidence, Some(Digest(CollateralDigest::of(tee, bytes).0))]
        })
        .flatten()
}

impl Pieces {
    /// Opens the folder, making it where there is none. Files that are no pieces are passed over.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Self::with_room(folder, MAX_PIECES_BYTES)
    }

    fn with_room(folder: &Path, most_bytes: usize) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let mut table = Table::default();
        for entry in fs::read_dir(folder)?.take(2 * MAX_PIECES) {
            let entry = entry?;
            let (name, len) = (entry.file_name(), entry.metadata()?.len());
            let Some(name) = name.to_str().and_then(named) else {
                continue;
            };
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            if len <= MAX_PIECE_BYTES && table.bytes + len <= most_bytes {
                // Whose it is, the cards say.
                table.insert(name, len, Source::Neighbour(u64::MAX));
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            table: Mutex::new(table),
            most_bytes,
        })
    }

    /// Drops what is not wanted any more, and learns whose the rest is.
    pub(crate) fn keep(&self, wanted: &Wanted) {
        let mut table = self.table();
        let gone: Vec<_> = table
            .held
            .keys()
            .filter(|name| !wanted.contains_key(name))
            .copied()
            .collect();
        for name in gone {
            self.remove(&mut table, &name);
        }
        for (name, held) in &mut table.held {
            held.source = wanted[name];
        }
    }

    /// Up to `most` of what is wanted and not here, in turns of all sources: one that names what nobody has keeps nobody else's.
    pub(crate) fn missing(&self, wanted: &Wanted, most: usize) -> Vec<Digest> {
        let table = self.table();
        let mut turns: BTreeMap<Source, usize> = BTreeMap::new();
        let mut missing: Vec<_> = wanted
            .iter()
            .filter(|(name, _)| !table.held.contains_key(name))
            .map(|(name, source)| {
                let turn = turns.entry(*source).or_default();
                *turn += 1;
                (*turn, *name)
            })
            .collect();
        missing.sort_unstable_by_key(|(turn, _)| *turn);
        missing.truncate(most);
        missing.into_iter().map(|(_, name)| name).collect()
    }

    /// Takes bytes whose digest is wanted; writes to the disk.
    pub fn put(&self, bytes: &[u8], wanted: &Wanted) -> Put {
        if bytes.len() > MAX_PIECE_BYTES {
            return Put::Unwanted;
        }
        let Some((name, source)) = digests(bytes).find_map(|d| Some((d, *wanted.get(&d)?))) else {
            return Put::Unwanted;
        };
        let mut table = self.table();
        if table.held.contains_key(&name) {
            return Put::Kept(name);
        }
        if !self.make_room(&mut table, bytes.len(), source) {
            return Put::NoRoom(name);
        }
        if let Err(error) = durable::replace(&self.path(&name), bytes) {
            tracing::warn!(folder = %self.folder.display(), %error, "evidence cannot be kept");
            return Put::NoRoom(name);
        }
        table.insert(name, bytes.len(), source);
        Put::Kept(name)
    }

    /// A piece that is still what its name says; reads from the disk.
    pub(crate) fn get(&self, name: &Digest) -> Option<Vec<u8>> {
        if !self.table().held.contains_key(name) {
            return None;
        }
        let path = self.path(name);
        let sized = fs::metadata(&path).is_ok_and(|m| m.len() <= MAX_PIECE_BYTES as u64);
        let bytes = sized.then(|| fs::read(&path).ok()).flatten();
        let bytes = bytes.filter(|bytes| digests(bytes).any(|digest| digest == *name));
        if bytes.is_none() {
            self.remove(&mut self.table(), name);
        }
        bytes
    }

    /// Whether it is here.
    pub(crate) fn has(&self, name: &Digest) -> bool {
        self.table().held.contains_key(name)
    }

    fn make_room(&self, table: &mut Table, len: usize, source: Source) -> bool {
        while table.bytes + len > self.most_bytes || table.held.len() >= MAX_PIECES {
            let mut shares: BTreeMap<Source, (usize, u64, Digest)> = BTreeMap::new();
            for (name, held) in &table.held {
                let share = shares.entry(held.source).or_insert((0, 0, *name));
                share.0 += held.len;
                if held.serial >= share.1 {
                    (share.1, share.2) = (held.serial, *name);
                }
            }
            let own = shares.get(&source).map_or(0, |share| share.0);
            shares.remove(&Source::Own);
            let most = shares
                .into_values()
                .max_by_key(|(bytes, latest, _)| (*bytes, *latest));
            // As with cards, a source with (almost) as much does not take room from another one for ever.
            let gone = most.filter(|(bytes, ..)| source == Source::Own || own + len < *bytes);
            let Some((_, _, gone)) = gone else {
                return false;
            };
            self.remove(table, &gone);
        }
        true
    }

    fn remove(&self, table: &mut Table, name: &Digest) {
        if let Some(held) = table.held.remove(name) {
            table.bytes -= held.len;
        }
        // What stays is found at the next start, and goes then.
        let _ = fs::remove_file(self.path(name));
    }

    fn path(&self, name: &Digest) -> PathBuf {
        self.folder.join(hex::encode(name.0))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, name: Digest, len: usize, source: Source) {
        self.arrivals += 1;
        let serial = self.arrivals;
        self.bytes += len;
        self.held.insert(
            name,
            Held {
                len,
                source,
                serial,
            },
        );
    }
}

/// Takes pieces from a connected node, by name or all of them, onto the disk. What came before it broke off is kept; gives those
/// for which there was no room.
///
/// # Errors
/// [`PiecesError`].
pub(crate) async fn fetch(
    peers: &Peers,
    node: NodeId,
    names: Option<&[Digest]>,
    (pieces, wanted): (&Arc<Pieces>, &Arc<Wanted>),
) -> Result<Vec<Digest>, PiecesError> {
    let (pieces, wanted) = (Arc::clone(pieces), Arc::clone(wanted));
    // The disk is written to on a thread that may block; what waits for it is one answer at most.
    let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
    let writing = tokio::task::spawn_blocking(move || {
        let put = |bytes: Vec<u8>| match pieces.put(&bytes, &wanted) {
            Put::NoRoom(name) => Some(name),
            Put::Kept(_) | Put::Unwanted => None,
        };
        receiver.into_iter().filter_map(put).collect()
    });
    let names: Option<Vec<_>> = names.map(|names| names.iter().map(|name| name.0).collect());
    // Nobody takes what comes only if the writing has failed.
    let take = move |bytes| sender.send(bytes).unwrap_or_default();
    let came = peers.pieces(node, names.as_deref(), take).await;
    let no_room = writing.await.unwrap_or_default();
    came.map(|()| no_room)
}

impl PieceSource for Pieces {
    fn names(&self) -> Vec<(Name, usize)> {
        let table = self.table();
        let mut names: Vec<_> = table
            .held
            .iter()
            .map(|(name, held)| (name.0, held.len))
            .collect();
        names.sort_unstable_by_key(|(_, len)| *len);
        names
    }

    fn piece(&self, name: &Name) -> Option<Bytes> {
        self.get(&Digest(*name)).map(Bytes::from)
    }
}

/// The digest that a file is named by.
fn named(name: &str) -> Option<Digest> {
    let bytes: [u8; 32] = hex::decode(name).ok()?.try_into().ok()?;
    // Only names as they are written here.
    (hex::encode(bytes) == name).then_some(Digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collateral(n: u32, len: usize) -> (Vec<u8>, Digest) {
        let mut bytes = vec![0; len];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let digest = Digest(CollateralDigest::of(Tee::Tdx, &bytes).0);
        (bytes, digest)
    }

    #[test]
    fn only_what_a_card_names_is_kept_and_a_changed_file_is_no_piece() {
        let folder = tempfile::tempdir().expect("a folder");
        let pieces = Pieces::open(folder.path()).expect("opens");
        let ((wanted_bytes, name), (other, _)) = (collateral(1, 99), collateral(2, 99));
        let wanted = Wanted::from([(name, Source::Own)]);
        assert_eq!(pieces.missing(&wanted, 9), [name]);
        assert_eq!(pieces.put(&other, &wanted), Put::Unwanted);
        assert_eq!(
            pieces.put(&vec![0; MAX_PIECE_BYTES + 1], &wanted),
            Put::Unwanted
        );
        assert_eq!(pieces.put(&wanted_bytes, &wanted), Put::Kept(name));
        assert!(pieces.missing(&wanted, 9).is_empty());

        let again = Pieces::open(folder.path()).expect("opens");
        assert_eq!(again.get(&name), Some(wanted_bytes));
        fs::write(again.path(&name), "something else").expect("written");
        assert_eq!(again.get(&name), None);
        assert_eq!(again.missing(&wanted, 9), [name], "it is asked for again");

        assert_eq!(pieces.names().len(), 1);
        pieces.keep(&Wanted::new());
        assert!(pieces.names().is_empty());
    }

    #[test]
    fn one_source_never_keeps_the_room_of_all() {
        const LEN: usize = 1_000;
        let folder = tempfile::tempdir().expect("a folder");
        let pieces = Pieces::with_room(folder.path(), 8 * LEN).expect("opens");
        let (greedy, other) = (Source::Neighbour(1), Source::Neighbour(2));
        let mut wanted = Wanted::new();
        let mut put = |n, source| {
            let (bytes, name) = collateral(n, LEN);
            wanted.insert(name, source);
            (pieces.put(&bytes, &wanted), name)
        };
        let (_, first) = put(0, greedy);
        for n in 1..20 {
            put(n, greedy);
        }
        assert_eq!(pieces.names().len(), 8);
        let kept = (100..120)
            .filter(|n| matches!(put(*n, other).0, Put::Kept(_)))
            .count();
        assert!((3..=4).contains(&kept), "{kept} of a newcomer are kept");
        assert!(pieces.has(&first), "what came first stays");
        let (own, name) = put(200, Source::Own);
        assert_eq!(own, Put::Kept(name));
    }

    #[test]
    fn a_source_that_names_what_nobody_has_does_not_hide_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let pieces = Pieces::open(folder.path()).expect("opens");
        let mut wanted: Wanted = (0..1_000u32)
            .map(|n| (collateral(n, 9).1, Source::Neighbour(1)))
            .collect();
        let honest = collateral(5_000, 9).1;
        wanted.insert(honest, Source::Neighbour(2));
        assert!(pieces.missing(&wanted, 4).contains(&honest));
    }
}
