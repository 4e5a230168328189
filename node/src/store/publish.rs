//! Tiles and checkpoints: derived from the log in the store, as files that anybody may read.
//!
//! ```text
//!   log rows ──► tiles and bundles ──► durable ──► sign ──► row "checkpoint" ──► file "checkpoint"
//! ```
//!
//! The row comes before the file: what was signed is never forgotten, so a smaller or different log is never signed
//! again. Everything before the row can be repeated at will, and everything after it can be made from it. A damaged row is
//! made again from its file, which carries the same signature.
//!
//! Threats: a crash between any two files; a tile that goes bad at any time, which must neither be built on nor stop the log
//! for longer than it takes to make it again; a store that was restored from an old backup, or whose past was changed
//! ([`PublishError::Rollback`], [`PublishError::Fork`]): nothing is signed then, because two checkpoints that
//! contradict each other are proof against the provider. A backup that is whole does not know that it is old, so the
//! network is asked what it remembers ([`Seen`]) before anything is signed.

use std::{
    cmp::Ordering,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use souk_crypto::{LogKey, with_causes};
use souk_market::{
    capacity::LogHead,
    log::{
        Checkpoint, Frontier, Hash, InclusionProof, KeyName, NoteVerifier, TiledNodes, leaf_hash,
        prove_consistency, prove_inclusion, verify_consistency, verify_inclusion,
    },
};
use tokio::sync::{Notify, watch};

use super::{
    SignedHead, Store, StoreError,
    files::{CHUNK, Derived, Directory, entries},
    survey::Survey,
    writer::encode,
};
use crate::failpoint::failpoint;

/// Name of the row that holds the last checkpoint, and of its file.
const CHECKPOINT: &str = "checkpoint";

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
    /// Why nobody knows what was signed last; nothing is signed then.
    unknown: Option<String>,
    refusal: watch::Sender<Option<String>>,
    survey_due: Arc<Notify>,
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
    /// it contradicts the network, or does not know any more what was signed, is a [refusal](Self::refusal), and the log
    /// goes on without checkpoints.
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
            unknown: None,
            refusal: watch::Sender::new(None),
            survey_due: Arc::default(),
        };
        publisher.take_up(store).await?;
        if publisher.unknown.is_none() {
            // A survey of a tree that nobody knows would take every damaged row for one that was never published.
            publisher.survey_due.notify_one();
        }
        match publisher.publish(store).await {
            Err(PublishError::Store(StoreError::Row(row))) => {
                // A survey replaces it; leases go on meanwhile.
                tracing::error!(%row, "no checkpoint: a row of the usage log is damaged");
                Ok(publisher)
            }
            Err(error) if publisher.refusal.borrow().is_none() => Err(error),
            _ => Ok(publisher),
        }
    }

    /// A survey of all files that the last checkpoint covers.
    #[must_use]
    pub fn survey(&self) -> Survey {
        Survey::of(self.directory.clone(), self.size(), self.root())
    }

    /// Told when a survey is due: once after each start, and since then where a damaged tile or row stood in the way.
    #[must_use]
    pub fn survey_due(&self) -> Arc<Notify> {
        Arc::clone(&self.survey_due)
    }

    /// Publishes a checkpoint over all entries, if there are new ones and the network was asked; says how many the last one
    /// covers.
    ///
    /// # Errors
    /// [`PublishError`]; the last checkpoint stays the one that counts then. Where damage was the cause, a
    /// [survey](Self::survey_due) is due.
    pub async fn publish(&mut self, store: &Store) -> Result<u64, PublishError> {
        let published = self.publish_new(store).await;
        published.inspect_err(|error| self.heed(error))
    }

    async fn publish_new(&mut self, store: &Store) -> Result<u64, PublishError> {
        let seen = *self.seen.borrow();
        let checked = match (self.unknown.clone(), seen) {
            (Some(why), _) => Err(PublishError::Head(why)),
            (None, Seen::Unasked) => return Ok(self.size()),
            (None, Seen::Remembered(seen)) => {
                seen.map_or(Ok(()), |seen| self.check_seen(store, seen))
            }
        };
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

    /// Why nothing is signed although the node works: what the network remembers is not in the store, or nobody knows what
    /// was signed last.
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
    /// [`PublishError::Tile`]; a [survey](Self::survey_due) is due then.
    pub fn prove(&self, index: u64, entry: &[u8]) -> Result<Option<Proven>, PublishError> {
        let proven = self.prove_by_tiles(index, entry);
        proven.inspect_err(|error| self.heed(error))
    }

    fn prove_by_tiles(&self, index: u64, entry: &[u8]) -> Result<Option<Proven>, PublishError> {
        let nodes = TiledNodes::new(&self.directory, self.size());
        let proof = prove_inclusion(&nodes, index, self.size());
        let Ok(proof) = proof.map_err(|e| PublishError::Tile(e.to_string()))? else {
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
        let found = match seen.size.cmp(&self.size()) {
            Ordering::Equal => self.root(),
            Ordering::Less => match self.root_in_tiles(seen.size) {
                Some(root) => root,
                // A tile is damaged, and the entries are not for that.
                None => root_in_store(store, seen.size)?,
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

    /// Root of the first `size` entries as the tiles have it; none where they do not lead to what was signed.
    fn root_in_tiles(&self, size: u64) -> Option<Hash> {
        let nodes = TiledNodes::new(&self.directory, self.size());
        let root = Frontier::load(&nodes, size).ok()?.root();
        let proof = prove_consistency(&nodes, size, self.size()).ok()?.ok()?;
        verify_consistency(&proof, &root, &self.root()).ok()?;
        Some(root)
    }

    /// Has everything looked at where damage is why something failed.
    fn heed(&self, error: &PublishError) {
        if let PublishError::Tile(_) | PublishError::Store(StoreError::Row(_)) = error {
            self.survey_due.notify_one();
        }
    }

    /// Takes up the log where it was signed last. Where the row that says so is damaged its file does, and becomes the row; where
    /// that is damaged, too, nothing can be signed that might not contradict it.
    async fn take_up(&mut self, store: &Store) -> Result<(), PublishError> {
        let damaged = match self.head_in_row(store) {
            Ok(None) => return Ok(()),
            Ok(Some(head)) => return self.resume(store, head).await,
            Err(error @ (PublishError::Head(_) | PublishError::Store(StoreError::Row(_)))) => error,
            Err(error) => return Err(error),
        };
        match self.head_in_file(store) {
            Ok(head) => {
                tracing::error!(
                    error = &damaged as &dyn std::error::Error,
                    size = head.size,
                    "the row of the last checkpoint is damaged; it is made again from its file"
                );
                self.resume(store, head.clone()).await?;
                store.put_meta(CHECKPOINT, encode(&head)).await?;
            }
            Err(error) => {
                self.unknown = Some(format!(
                    "{}; neither can its file: {}; put that file back, everybody who read the log has it, and start the node again",
                    with_causes(&damaged),
                    with_causes(&error)
                ));
            }
        }
        Ok(())
    }

    fn head_in_row(&self, store: &Store) -> Result<Option<SignedHead>, PublishError> {
        let Some(body) = store.meta(CHECKPOINT)? else {
            return Ok(None);
        };
        let head: SignedHead =
            minicbor::decode(&body).map_err(|e| PublishError::Head(e.to_string()))?;
        let checkpoint = self.verified(head.note.as_bytes())?;
        if (checkpoint.size(), checkpoint.root().0) == (head.size, head.root) {
            Ok(Some(head))
        } else {
            Err(PublishError::Head("it names another root".to_owned()))
        }
    }

    /// What the file of the last checkpoint says. It comes after the row, so after a crash it may be the one before.
    fn head_in_file(&self, store: &Store) -> Result<SignedHead, PublishError> {
        let note = self.directory.read(CHECKPOINT)?;
        let checkpoint = self.verified(&note)?;
        let (stored, signed) = (store.log_size()?, checkpoint.size());
        if stored < signed {
            return Err(PublishError::Rollback { stored, signed });
        }
        Ok(SignedHead {
            size: signed,
            root: checkpoint.root().0,
            note: String::from_utf8(note).map_err(|e| PublishError::Head(e.to_string()))?,
        })
    }

    /// A checkpoint that this log's own key signed.
    fn verified(&self, note: &[u8]) -> Result<Checkpoint, PublishError> {
        let verifier = NoteVerifier::new(self.origin.clone(), self.key.public());
        Checkpoint::open(note, &self.origin, &verifier)
            .map_err(|e| PublishError::Head(e.to_string()))
    }

    /// Takes up the log at the head that was signed last.
    async fn resume(&mut self, store: &Store, head: SignedHead) -> Result<(), PublishError> {
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
                let mut survey = Survey::of(self.directory.clone(), head.size, signed);
                while !survey.step(store)? {}
                self.frontier = survey.mend(store).await?;
            }
        }
        self.note = head.note;
        Ok(())
    }

    /// Writes the tiles and bundles by which the tree of `size` differs from the current one, durably.
    fn extend(&mut self, store: &Store, size: u64) -> Result<(), PublishError> {
        let mut derived = Derived::load(&self.directory, self.frontier.clone())?;
        while derived.size() < size {
            derived.step(
                size,
                |start, end| entries(store, start, end),
                |path, bytes| {
                    self.directory.write(&path.to_string(), bytes)?;
                    if path.level().is_none() {
                        failpoint!(BundleWritten);
                    }
                    Ok(())
                },
            )?;
        }
        self.frontier = derived.into_frontier();
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

fn root_in_store(store: &Store, size: u64) -> Result<Hash, PublishError> {
    let mut frontier = Frontier::new();
    while frontier.size() < size {
        let start = frontier.size();
        for entry in entries(store, start, size.min(start + CHUNK))? {
            frontier.append(leaf_hash(&entry), |_, _, _| ());
        }
    }
    Ok(frontier.root())
}
