//! The mix keys of this node: one per epoch, open from one epoch ahead until the end of the grace.
//!
//! ```text
//!  drawn ──► next ──► current ──► grace ──► removed from disk, zeroized
//!    └ key file (0600) and replay tags are one pair: without its tags a key is not used again
//! ```
//!
//! Two threats: somebody who recorded packets and takes the disk later (keys that are over are gone), and a node that
//! restarts with a key but without what it saw under it (the key would open every recorded packet once more).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use souk_crypto::{
    MixKey, MixPublicKey, UnixTime, Window,
    keyfile::{self, KeyFileError},
};
use souk_sphinx::{
    Epoch, EpochClock, Frame, MixPublic, MixSecret, Peeled, ReplayTag,
    packet::{PeelError, peel},
    replay::{ReplayTags, TAGS_PER_EPOCH, TagRefused},
};

use super::tag_log::{TagLog, TagLogError};

/// The form of packets that the keys are for, as cards name it: Sphinx over X25519.
const SUITE: u8 = 1;

/// The open epochs of a node.
#[derive(Debug)]
pub struct KeyRing {
    folder: PathBuf,
    clock: EpochClock,
    epochs: RwLock<BTreeMap<Epoch, Arc<EpochKeys>>>,
}

impl KeyRing {
    /// Opens the keys kept in `folder`, draws what is missing, and removes what is over.
    ///
    /// # Errors
    /// [`KeyRingError`] if the folder cannot be used, a key file is readable by others or broken, or the replay tags of
    /// a key are corrupt.
    pub fn open(folder: &Path, clock: EpochClock, now: UnixTime) -> Result<Self, KeyRingError> {
        fs::create_dir_all(folder).map_err(|source| KeyRingError::folder(folder, source))?;
        let ring = Self {
            folder: folder.into(),
            clock,
            epochs: RwLock::default(),
        };
        ring.rotate(now)?;
        Ok(ring)
    }

    /// Draws the keys that are due and removes those that are over. Returns whether anything changed, and with it the
    /// card of the node.
    ///
    /// # Errors
    /// [`KeyRingError`]; the epochs that are open stay open.
    pub fn rotate(&self, now: UnixTime) -> Result<bool, KeyRingError> {
        let oldest = self.clock.oldest(now);
        let current = self.clock.at(now);
        let mut changed = false;
        for epoch in [oldest, current, current.next()] {
            if self.epoch(epoch).is_some() {
                continue;
            }
            // The grace of an epoch in which this node was not there needs no key.
            let is_over = epoch < current;
            if let Some(keys) = EpochKeys::open(&self.folder, epoch, !is_over)? {
                self.write().insert(epoch, Arc::new(keys));
                changed = true;
            }
        }
        let dead: Vec<Epoch> = self
            .write()
            .extract_if(..oldest, |_, _| true)
            .map(|(epoch, _)| epoch)
            .collect();
        changed |= !dead.is_empty();
        self.remove_before(oldest)?;
        Ok(changed)
    }

    /// The keys of `epoch`, if it is open.
    #[must_use]
    pub fn epoch(&self, epoch: Epoch) -> Option<Arc<EpochKeys>> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        epochs.get(&epoch).cloned()
    }

    /// The clock of the epochs.
    #[must_use]
    pub fn clock(&self) -> EpochClock {
        self.clock
    }

    /// The public keys as the node's list of sub-keys names them, in rising order of epochs.
    #[must_use]
    pub fn mix_keys(&self) -> Vec<MixKey> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        epochs
            .values()
            .map(|keys| MixKey {
                epoch: keys.epoch.0,
                suite: SUITE,
                key: MixPublicKey::from_bytes(&keys.public().to_bytes()).expect("32 bytes"),
                window: Window::new(
                    self.clock.start(keys.epoch),
                    self.clock.retired_from(keys.epoch),
                )
                .expect("an epoch has a length"),
            })
            .collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<Epoch, Arc<EpochKeys>>> {
        self.epochs.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the files of epochs before `oldest`, also of those that this process never opened.
    fn remove_before(&self, oldest: Epoch) -> Result<(), KeyRingError> {
        let error = |source| KeyRingError::folder(&self.folder, source);
        for entry in fs::read_dir(&self.folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            let is_ours = path
                .extension()
                .is_some_and(|extension| extension == "key" || extension == "tags");
            let epoch = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse().ok())
                .map(Epoch);
            if is_ours && epoch.is_some_and(|epoch| epoch < oldest) {
                fs::remove_file(&path).map_err(error)?;
            }
        }
        Ok(())
    }
}

/// The key of one epoch and what passed under it.
#[derive(Debug)]
pub struct EpochKeys {
    epoch: Epoch,
    secret: MixSecret,
    tags: Mutex<ReplayTags>,
    log: Mutex<TagLog>,
}

impl EpochKeys {
    /// Opens the pair of key and tags, or draws it if `may_draw`.
    fn open(folder: &Path, epoch: Epoch, may_draw: bool) -> Result<Option<Self>, KeyRingError> {
        let key_path = folder.join(format!("{epoch}.key"));
        let tags_path = folder.join(format!("{epoch}.tags"));
        if key_path.exists() && tags_path.exists() {
            let secret = keyfile::load(&key_path)?;
            let (log, tags) = TagLog::open(&tags_path, epoch)?;
            let tags = ReplayTags::restore(TAGS_PER_EPOCH, tags);
            return Ok(Some(Self::new(epoch, secret, tags, log)));
        }
        if key_path.exists() {
            tracing::warn!(
                epoch = epoch.0,
                "a mix key without its replay tags is removed"
            );
            fs::remove_file(&key_path).map_err(|source| KeyRingError::folder(folder, source))?;
        }
        if !may_draw {
            return Ok(None);
        }
        let secret = MixSecret::generate(&mut rand::rng());
        // The tags come first: a crash in between leaves tags without a key, which harm nobody.
        let log = TagLog::create(&tags_path, epoch)?;
        keyfile::create(&key_path, &secret)?;
        Ok(Some(Self::new(
            epoch,
            secret,
            ReplayTags::new(TAGS_PER_EPOCH),
            log,
        )))
    }

    fn new(epoch: Epoch, secret: MixSecret, tags: ReplayTags, log: TagLog) -> Self {
        Self {
            epoch,
            secret,
            tags: Mutex::new(tags),
            log: Mutex::new(log),
        }
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> MixPublic {
        self.secret.public()
    }

    /// Takes one layer off a packet, and its replay tag into memory. The packet must not go on before
    /// [`Self::persist`] returned.
    pub(super) fn peel(&self, frame: &Frame) -> Result<Peeled, PeelError> {
        peel(&self.secret, &frame.packet, |tag| self.take(tag))
    }

    /// Writes all tags taken so far to the disk.
    pub(super) fn persist(&self) -> Result<(), TagLogError> {
        // The log is locked first, so that a second call cannot return before the tags that it misses are written.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let tags = self
            .tags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .unwritten();
        if tags.is_empty() {
            Ok(())
        } else {
            log.append(&tags)
        }
    }

    fn take(&self, tag: ReplayTag) -> Result<(), TagRefused> {
        self.tags
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(tag)
    }
}

/// Why the mix keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// The folder cannot be read or written.
    #[error("cannot use the folder of mix keys {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key file is broken, or others can read it.
    #[error("a mix key cannot be used")]
    Key(#[from] KeyFileError),
    /// The replay tags of a key are broken.
    #[error("the replay tags of a mix key cannot be used")]
    Tags(#[from] TagLogError),
}

impl KeyRingError {
    fn folder(path: &Path, source: io::Error) -> Self {
        Self::Folder {
            path: path.into(),
            source,
        }
    }
}
