//! Tiles and checkpoints: derived from the log in the store, as files that anybody may read.
//!
//! ```text
//!   log rows ──► tiles and bundles ──► durable ──► sign ──► row "checkpoint" ──► file "checkpoint"
//! ```
//!
//! The row comes before the file: what was signed is never forgotten, so a smaller or different log is never signed
//! again. Everything before the row can be repeated at will, and everything after it can be made from it.
//!
//! Threats: a crash between any two files; a store that was restored from an old backup, or whose past was changed
//! ([`PublishError::Rollback`], [`PublishError::Fork`]): nothing is signed then, because two checkpoints that
//! contradict each other are proof against the provider. A backup that is whole does not know that it is old, so the
//! network is asked what it remembers ([`Seen`]) before anything is signed.

use std::{
    cmp::Ordering,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use souk_crypto::LogKey;
use souk_market::{
    capacity::LogHead,
    log::{
        BundleSource, Checkpoint, Frontier, Hash, InclusionProof, KeyName, NoteVerifier,
        TILE_HEIGHT, TILE_WIDTH, TilePath, TileSource, TiledNodes, TilesError, bundles_between,
        encode_bundle, leaf_hash, prove_inclusion, tiles_between, verify_inclusion,
    },
};
use tokio::sync::watch;

use super::{SignedHead, Store, StoreError, writer::encode};
use crate::failpoint::failpoint;

/// Name of the row that holds the last checkpoint, and of its file.
const CHECKPOINT: &str = "checkpoint";
/// Entries read from the store at once.
const CHUNK: u64 = 16 * TILE_WIDTH;

/// Why no checkpoint was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The store cannot be read or written.
    #[error("the usage log in the store cannot be used")]
    Store(#[from] StoreError),
    /// A file of the log cannot be written or read.
    #[error("{}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// What was signed before is damaged.
    #[error("the record of the last checkpoint cannot be read: {0}")]
    Head(String),
    /// The store has fewer entries than were signed, or than the network has seen.
    #[error(
        "the usage log has {stored} entries, and {signed} were signed: \
         the store was restored from an old backup; nothing is signed until it is complete again"
    )]
    Rollback {
        /// Entries in the store.
        stored: u64,
        /// Entries that were signed.
        signed: u64,
    },
    /// The entries in the store are not those that were signed.
    #[error(
        "the first {size} entries lead to root {found}, and {signed} was signed; nothing is signed any more"
    )]
    Fork {
        /// Size of what was signed.
        size: u64,
        /// Root that was signed.
        signed: Hash,
        /// Root of the entries in the store.
        found: Hash,
    },
    /// A tile is missing or damaged although a checkpoint covers it.
    #[error("a tile of the usage log cannot be used: {0}")]
    Tile(String),
}

/// A log entry with the proof that the last checkpoint covers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Path from the entry to the root.
    pub proof: InclusionProof,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// What the network remembers of this log: the largest that it verifiably heard from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was not asked yet: nothing is signed until it has been.
    Unasked,
    /// It remembers this; `None` where it remembers nothing, or nobody is there to ask.
    Remembered(Option<LogHead>),
}

impl Seen {
    /// Whether the network was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self != Self::Unasked
    }

    /// Whether a log of this head may be spoken of: it is not smaller than, nor another than, what is remembered.
    #[must_use]
    pub fn allows(&self, head: &LogHead) -> bool {
        match self {
            Self::Unasked => false,
            Self::Remembered(None) => true,
            Self::Remembered(Some(seen)) => seen.size < head.size || seen == head,
        }
    }
}

/// Publishes one usage log. Blocking: it reads and writes files.
#[derive(Debug)]
pub struct Publisher {
    directory: Directory,
    origin: KeyName,
    key: LogKey,
    frontier: Frontier,
    /// The last checkpoint; empty before the first.
    note: String,
    /// The file of the last checkpoint is there.
    is_shown: bool,
    seen: watch::Receiver<Seen>,
    /// What the network remembers and the entries of the store were found to lead to.
    agreed: Option<LogHead>,
    refusal: watch::Sender<Option<String>>,
}

impl Publisher {
    /// Continues a log that nobody else can have seen more of: [`Publisher::heeding`] with a network that remembers nothing.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn open(
        store: &Store,
        directory: &Path,
        origin: KeyName,
        key: LogKey,
    ) -> Result<Self, PublishError> {
        let (_, seen) = watch::channel(Seen::Remembered(None));
        Self::heeding(store, directory, origin, key, seen).await
    }

    /// Continues the log in `directory`: checks that the store leads to what was signed, makes tiles that are missing, and
    /// publishes what is new, where what the network has `seen` allows it.
    ///
    /// # Errors
    /// [`PublishError`] where the store contradicts what it says itself that was signed, or files cannot be written. That
    /// it contradicts the network is a [refusal](Self::refusal), and the log goes on without checkpoints.
    pub async fn heeding(
        store: &Store,
        directory: &Path,
        origin: KeyName,
        key: LogKey,
        seen: watch::Receiver<Seen>,
    ) -> Result<Self, PublishError> {
        let mut publisher = Self {
            directory: Directory(directory.to_owned()),
            origin,
            key,
            frontier: Frontier::new(),
            note: String::new(),
            is_shown: false,
            seen,
            agreed: None,
            refusal: watch::Sender::new(None),
        };
        if let Some(head) = publisher.last_head(store)? {
            publisher.resume(store, head)?;
        }
        match publisher.publish(store).await {
            Err(error) if publisher.refusal.borrow().is_none() => Err(error),
            _ => Ok(publisher),
        }
    }

    /// Publishes a checkpoint over all entries, if there are new ones and the network was asked; says how many the last one
    /// covers.
    ///
    /// # Errors
    /// [`PublishError`]; the last checkpoint stays the one that counts then.
    pub async fn publish(&mut self, store: &Store) -> Result<u64, PublishError> {
        let seen = *self.seen.borrow();
        let Seen::Remembered(seen) = seen else {
            return Ok(self.size());
        };
        let checked = seen.map_or(Ok(()), |seen| self.check_seen(store, seen));
        self.refusal.send_if_modified(|last| {
            let refusal = checked.as_ref().err().map(ToString::to_string);
            let news = *last != refusal;
            *last = refusal;
            news
        });
        checked?;
        let size = store.log_size()?;
        let is_new = size > self.size();
        if is_new {
            failpoint!(BeforeTiles);
            let signed = self.frontier.clone();
            self.extend(store, size)?;
            failpoint!(TilesWritten);
            if let Err(error) = self.sign(store).await {
                // What is not signed is not the head: no proof may lead to it, and the next attempt signs it.
                self.frontier = signed;
                return Err(error);
            }
        } else if self.note.is_empty() {
            self.sign(store).await?;
        }
        self.show()?;
        Ok(size)
    }

    /// What the network remembers, and when that changes.
    #[must_use]
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.clone()
    }

    /// Why nothing is signed although the node works: what the network remembers is not in the store.
    #[must_use]
    pub fn refusal(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }

    /// Entries that the last checkpoint covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Root of the last checkpoint.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// The last checkpoint, signed; empty before the first.
    #[must_use]
    pub fn checkpoint(&self) -> &str {
        &self.note
    }

    /// The proof that the last checkpoint covers an entry; `None` where it does not yet. It was checked.
    ///
    /// # Errors
    /// [`PublishError::Tile`].
    pub fn prove(&self, index: u64, entry: &[u8]) -> Result<Option<Proven>, PublishError> {
        let nodes = TiledNodes::new(&self.directory, self.size());
        let Ok(proof) = prove_inclusion(&nodes, index, self.size()).map_err(|e| tile_error(&e))?
        else {
            return Ok(None);
        };
        verify_inclusion(&proof, &leaf_hash(entry), &self.root())
            .map_err(|e| PublishError::Tile(e.to_string()))?;
        Ok(Some(Proven {
            proof,
            checkpoint: self.note.clone(),
        }))
    }

    /// Checks that the entries of the store lead to what the network remembers.
    fn check_seen(&mut self, store: &Store, seen: LogHead) -> Result<(), PublishError> {
        if self.agreed == Some(seen) {
            return Ok(());
        }
        let stored = store.log_size()?;
        if seen.size > stored {
            return Err(PublishError::Rollback {
                stored,
                signed: seen.size,
            });
        }
        let nodes = TiledNodes::new(&self.directory, self.size());
        let found = match seen.size.cmp(&self.size()) {
            Ordering::Equal => self.root(),
            Ordering::Less => match Frontier::load(&nodes, seen.size) {
                Ok(frontier) => frontier.root(),
                // A tile is damaged, and the entries are not for that.
                Err(_) => root_in_store(store, seen.size)?,
            },
            Ordering::Greater => root_in_store(store, seen.size)?,
        };
        if found.0 != seen.root.0 {
            return Err(PublishError::Fork {
                size: seen.size,
                signed: Hash(seen.root.0),
                found,
            });
        }
        self.agreed = Some(seen);
        Ok(())
    }

    fn last_head(&self, store: &Store) -> Result<Option<SignedHead>, PublishError> {
        let Some(body) = store.meta(CHECKPOINT)? else {
            return Ok(None);
        };
        let head: SignedHead =
            minicbor::decode(&body).map_err(|e| PublishError::Head(e.to_string()))?;
        let verifier = NoteVerifier::new(self.origin.clone(), self.key.public());
        let checkpoint = Checkpoint::open(head.note.as_bytes(), &self.origin, &verifier)
            .map_err(|e| PublishError::Head(e.to_string()))?;
        if (checkpoint.size(), checkpoint.root().0) == (head.size, head.root) {
            Ok(Some(head))
        } else {
            Err(PublishError::Head("it names another root".to_owned()))
        }
    }

    /// Takes up the log at the head that was signed last.
    fn resume(&mut self, store: &Store, head: SignedHead) -> Result<(), PublishError> {
        let stored = store.log_size()?;
        if stored < head.size {
            return Err(PublishError::Rollback {
                stored,
                signed: head.size,
            });
        }
        let signed = Hash(head.root);
        let from_tiles = Frontier::load(&TiledNodes::new(&self.directory, head.size), head.size);
        match from_tiles {
            Ok(frontier) if frontier.root() == signed => self.frontier = frontier,
            // Tiles are derived: what is missing or damaged is made again, once the entries are known to be the signed ones.
            _ => {
                let found = root_in_store(store, head.size)?;
                if found != signed {
                    return Err(PublishError::Fork {
                        size: head.size,
                        signed,
                        found,
                    });
                }
                self.extend(store, head.size)?;
            }
        }
        self.note = head.note;
        Ok(())
    }

    /// Writes the tiles and bundles by which the tree of `size` differs from the current one, durably.
    fn extend(&mut self, store: &Store, size: u64) -> Result<(), PublishError> {
        let old = self.size();
        let mut frontier = self.frontier.clone();
        let mut rows = Rows::load(&self.directory, old)?;
        for bundle in bundles_between(old, size)
            .collect::<Vec<_>>()
            .chunks((CHUNK / TILE_WIDTH) as usize)
        {
            let (Some(first), Some(last)) = (bundle.first(), bundle.last()) else {
                break;
            };
            let start = first.index() * TILE_WIDTH;
            let end = last.index() * TILE_WIDTH + u64::from(last.width());
            let records = store.log_records(start, end)?;
            if (records.len() as u64) < end - start {
                return Err(PublishError::Rollback {
                    stored: start + records.len() as u64,
                    signed: size,
                });
            }
            for (path, records) in bundle.iter().zip(records.chunks(TILE_WIDTH as usize)) {
                let entries = records.iter().map(|record| record.entry.as_slice());
                let bytes =
                    encode_bundle(entries).map_err(|e| PublishError::Tile(e.to_string()))?;
                self.directory.write(&path.to_string(), &bytes)?;
                failpoint!(BundleWritten);
            }
            // The first bundle may begin with entries that the tree has already.
            let known = frontier.size().saturating_sub(start) as usize;
            for record in &records[known..] {
                frontier.append(leaf_hash(&record.entry), |level, index, hash| {
                    rows.add(level, index, hash);
                });
            }
            let reached = frontier.size();
            for path in tiles_between(rows.written, reached) {
                self.directory.write(&path.to_string(), &rows.tile(&path))?;
            }
            rows.drop_full(reached);
        }
        self.frontier = frontier;
        Ok(())
    }

    /// Signs the current tree and writes the row; the file comes after it.
    async fn sign(&mut self, store: &Store) -> Result<(), PublishError> {
        let checkpoint = Checkpoint::new(self.origin.clone(), self.size(), self.root());
        let note = checkpoint.sign(&self.key).to_string();
        let head = SignedHead {
            size: self.size(),
            root: self.root().0,
            note: note.clone(),
        };
        store.put_meta(CHECKPOINT, encode(&head)).await?;
        failpoint!(CheckpointRowWritten);
        self.note = note;
        self.is_shown = false;
        Ok(())
    }

    /// Writes the file of the last checkpoint, unless it is there.
    fn show(&mut self) -> Result<(), PublishError> {
        if !self.is_shown {
            self.directory.write(CHECKPOINT, self.note.as_bytes())?;
            self.is_shown = true;
            failpoint!(CheckpointPublished);
        }
        Ok(())
    }
}

/// Hashes of the tiles that are not full, by level of tile.
struct Rows {
    /// For each level of tiles: index of the first hash that is kept, and the hashes from there.
    levels: Vec<(u64, Vec<Hash>)>,
    /// Size of the tree whose tiles are on disk.
    written: u64,
}

impl Rows {
    fn load(directory: &Directory, size: u64) -> Result<Self, PublishError> {
        let mut levels = Vec::new();
        for level in 0..8u8 {
            let row = size >> (u32::from(level) * u32::from(TILE_HEIGHT));
            let first = row - row % TILE_WIDTH;
            let mut hashes = Vec::new();
            if let Some(path) = TilePath::tile(level, first / TILE_WIDTH, (row - first) as u16) {
                let bytes = directory.read(&path.to_string())?;
                let (chunks, rest) = bytes.as_chunks::<{ Hash::LEN }>();
                if chunks.len() as u64 != row - first || !rest.is_empty() {
                    return Err(PublishError::Tile(format!(
                        "{path} has {} bytes",
                        bytes.len()
                    )));
                }
                hashes = chunks.iter().map(|hash| Hash(*hash)).collect();
            }
            levels.push((first, hashes));
        }
        Ok(Self {
            levels,
            written: size,
        })
    }

    fn add(&mut self, level: u8, index: u64, hash: Hash) {
        if level.is_multiple_of(TILE_HEIGHT)
            && let Some((first, hashes)) = self.levels.get_mut(usize::from(level / TILE_HEIGHT))
        {
            debug_assert_eq!(*first + hashes.len() as u64, index);
            hashes.push(hash);
        }
    }

    fn tile(&self, path: &TilePath) -> Vec<u8> {
        let (first, hashes) = &self.levels[usize::from(path.level().unwrap_or(0))];
        let start = (path.index() * TILE_WIDTH - first) as usize;
        hashes[start..start + usize::from(path.width())]
            .iter()
            .flat_map(|hash| hash.0)
            .collect()
    }

    fn drop_full(&mut self, written: u64) {
        self.written = written;
        for (first, hashes) in &mut self.levels {
            let full = hashes.len() - hashes.len() % TILE_WIDTH as usize;
            hashes.drain(..full);
            *first += full as u64;
        }
    }
}

/// The directory of a published log.
#[derive(Debug)]
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    fn read(&self, name: &str) -> Result<Vec<u8>, PublishError> {
        let path = self.0.join(name);
        fs::read(&path).map_err(|source| PublishError::File { path, source })
    }

    /// Writes a file so that after a crash it is there whole or not at all.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), PublishError> {
        let path = self.0.join(name);
        let write = || {
            let parent = path.parent().unwrap_or(&self.0);
            fs::create_dir_all(parent)?;
            let mut draft = path.clone().into_os_string();
            draft.push("~");
            let mut file = File::create(&draft)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            // The names have to last, too: this directory's, and its own in the ones above.
            for directory in parent.ancestors().take_while(|d| d.starts_with(&self.0)) {
                File::open(directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(|source| PublishError::File { path, source })
    }
}

impl TileSource for Directory {
    type Error = io::Error;

    fn tile(&self, path: &TilePath) -> Result<Vec<u8>, io::Error> {
        fs::read(self.0.join(path.to_string()))
    }
}

impl BundleSource for Directory {
    type Error = io::Error;

    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, io::Error> {
        fs::read(self.0.join(path.to_string()))
    }
}

fn root_in_store(store: &Store, size: u64) -> Result<Hash, PublishError> {
    let mut frontier = Frontier::new();
    while frontier.size() < size {
        let start = frontier.size();
        let records = store.log_records(start, size.min(start + CHUNK))?;
        if records.is_empty() {
            return Err(PublishError::Rollback {
                stored: start,
                signed: size,
            });
        }
        for record in records {
            frontier.append(leaf_hash(&record.entry), |_, _, _| ());
        }
    }
    Ok(frontier.root())
}

fn tile_error(error: &TilesError<io::Error>) -> PublishError {
    PublishError::Tile(error.to_string())
}
