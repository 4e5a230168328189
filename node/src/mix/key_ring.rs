//! The mix keys of this node: one per epoch, known to others one epoch ahead and kept until the end of the grace.
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
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use souk_crypto::{
    MixKey, MixPublicKey, UnixTime, Window,
    keyfile::{self, KeyFileError},
};
use souk_sphinx::{
    Epoch, EpochClock, Frame, MixPublic, MixSecret, Peeled, ReplayTag,
    packet::{PeelError, peel},
    replay::{ReplayTags, TAGS_PER_EPOCH, TagRefused, TagSource},
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
        let oldest = clock.oldest(now);
        // The grace of an epoch in which this node was not there needs no key.
        if oldest < clock.at(now)
            && let Some(keys) = EpochKeys::open(folder, oldest, false)?
        {
            ring.write().insert(oldest, Arc::new(keys));
        }
        ring.rotate(now)?;
        ring.remove_before(oldest)?;
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
        let mut drawn = false;
        for epoch in [current, current.next()] {
            if self.epoch(epoch).is_none()
                && let Some(keys) = EpochKeys::open(&self.folder, epoch, true)?
            {
                self.write().insert(epoch, Arc::new(keys));
                drawn = true;
            }
        }
        let dead = self.write().extract_if(..oldest, |_, _| true).count();
        if dead > 0 {
            self.remove_before(oldest)?;
        }
        Ok(drawn || dead > 0)
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

    /// Takes one layer off a packet that came from `source`, and its replay tag into memory. The packet must not go on before
    /// [`Self::persist`] returned.
    pub(super) fn peel(&self, frame: &Frame, source: TagSource) -> Result<Peeled, PeelError> {
        peel(&self.secret, &frame.packet, |tag| self.take(tag, source))
    }

    /// Writes all tags taken so far to the disk. After an error they are written with the next.
    pub(super) fn persist(&self) -> Result<(), TagLogError> {
        // The log is locked first, so that a second call cannot return before the tags that it misses are written.
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let tags = self.tags().unwritten();
        if tags.is_empty() {
            return Ok(());
        }
        let written = log.append(&tags);
        if written.is_err() {
            // Among them are tags of packets that wait for a later call: it must not find nothing to write.
            self.tags().put_back(tags);
        }
        written
    }

    fn take(&self, tag: ReplayTag, source: TagSource) -> Result<(), TagRefused> {
        self.tags().insert(tag, source)
    }

    fn tags(&self) -> MutexGuard<'_, ReplayTags> {
        self.tags.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::Duration};

    use souk_crypto::NetworkParams;
    use souk_sphinx::{
        Hop, HopAddress, Route,
        packet::{USABLE_LEN, build},
    };

    use super::*;

    fn clock() -> EpochClock {
        let params = NetworkParams::new(50, 1_000, 100, true).expect("within bounds");
        EpochClock::of(&params)
    }

    fn open(folder: &Path, now: u64) -> KeyRing {
        KeyRing::open(folder, clock(), UnixTime(now)).expect("a folder of ours")
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let mut names: Vec<String> = entries
            .map(|entry| name(entry).into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn keys_are_drawn_ahead_and_removed_after_the_grace() {
        let folder = tempfile::tempdir().expect("a folder");
        let ring = open(folder.path(), 1000);
        let epochs =
            |ring: &KeyRing| -> Vec<u32> { ring.mix_keys().iter().map(|k| k.epoch).collect() };
        assert_eq!(epochs(&ring), [10, 11]);
        assert!(!ring.rotate(UnixTime(1099)).expect("nothing to do"));
        assert!(ring.rotate(UnixTime(1100)).expect("room on the disk"));
        assert_eq!(epochs(&ring), [10, 11, 12]);
        // The grace is a quarter of the epoch.
        assert!(ring.rotate(UnixTime(1125)).expect("removed"));
        assert_eq!(epochs(&ring), [11, 12]);
        assert_eq!(
            files(folder.path()),
            ["11.key", "11.tags", "12.key", "12.tags"]
        );
    }

    #[test]
    fn a_restart_finds_its_keys_also_within_the_grace_and_removes_the_dead() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = open(folder.path(), 1000).mix_keys();
        assert_eq!(open(folder.path(), 1099).mix_keys(), before);
        let within_grace = open(folder.path(), 1110).mix_keys();
        assert_eq!(within_grace[..2], before);
        assert_eq!(open(folder.path(), 5000).mix_keys().len(), 2);
        assert_eq!(
            files(folder.path()),
            ["50.key", "50.tags", "51.key", "51.tags"]
        );
    }

    #[test]
    fn a_key_without_what_it_saw_is_not_used_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let before = open(folder.path(), 1000).mix_keys();
        fs::remove_file(folder.path().join("10.tags")).expect("there");
        let after = open(folder.path(), 1000).mix_keys();
        assert_ne!(after[0], before[0]);
        assert_eq!(after[1], before[1]);
    }

    /// Packets under the key of an epoch that holds eight tags.
    struct Small {
        keys: EpochKeys,
        folder: tempfile::TempDir,
    }

    impl Small {
        fn new(log: impl FnOnce(&Path) -> TagLog) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let secret = MixSecret::generate(&mut rand::rng());
            let log = log(&folder.path().join("7.tags"));
            Self {
                keys: EpochKeys::new(Epoch(7), secret, ReplayTags::new(8), log),
                folder,
            }
        }

        /// Takes a fresh packet from `source`.
        fn peel(&self, source: TagSource) -> Result<Peeled, PeelError> {
            let hop = Hop {
                address: HopAddress([1; 32]),
                key: self.keys.public(),
            };
            let route = Route::new(vec![hop]).expect("one hop");
            let packet = build(
                &route,
                &[7; USABLE_LEN],
                &[Duration::ZERO],
                &mut rand::rng(),
            );
            let frame = Frame {
                epoch: Epoch(7),
                packet: packet.expect("built"),
            };
            self.keys.peel(&frame, source)
        }
    }

    fn empty_log(path: &Path) -> TagLog {
        TagLog::create(path, Epoch(7)).expect("created")
    }

    #[test]
    fn packets_of_others_pass_when_one_source_has_sent_all_that_it_could() {
        let small = Small::new(empty_log);
        let (greedy, honest) = (TagSource(1), TagSource(2));
        let passed = (0..20).filter(|_| small.peel(greedy).is_ok()).count();
        assert_eq!(passed, 4);
        let refused = small.peel(greedy).expect_err("its share is used");
        assert!(matches!(refused, PeelError::Tag(TagRefused::ShareUsed)));
        assert!(small.peel(honest).is_ok());
    }

    #[test]
    fn tags_that_a_full_disk_did_not_take_are_written_before_any_packet_goes_on() {
        let small = Small::new(|_| TagLog::on_a_full_disk());
        // Two batches wait for their tags; the first call is about both.
        small.peel(TagSource(1)).expect("a first packet");
        small.peel(TagSource(2)).expect("a second one");
        small.keys.persist().expect_err("the disk is full");
        small.keys.persist().expect_err("nothing is written yet");
        let path = small.folder.path().join("7.tags");
        *small.keys.log.lock().expect("no test panicked") = empty_log(&path);
        small.keys.persist().expect("there is room again");
        let (_, written) = TagLog::open(&path, Epoch(7)).expect("sound");
        assert_eq!(written.len(), 2);
    }

    #[test]
    fn a_key_that_others_can_read_stops_the_start() {
        let folder = tempfile::tempdir().expect("a folder");
        open(folder.path(), 1000);
        let path = folder.path().join("10.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
        let refused = KeyRing::open(folder.path(), clock(), UnixTime(1000));
        assert!(matches!(
            refused,
            Err(KeyRingError::Key(KeyFileError::Mode { .. }))
        ));
    }
}
