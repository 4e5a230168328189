//! What the driver knows of its leases, on disk.
//!
//! ```text
//!  <lease>/lock       held by the lease's keeper for as long as it lives, and so for as long as an instance may live
//!  <lease>/intent     written before anything is started
//!  <lease>/keeper     which process the keeper is
//!  <lease>/instance   the host key, once the agent answers
//!  <lease>/final      the last sample, written by the keeper as the last thing
//!  <lease>/socket     where a living keeper answers
//!  <lease>/root       an empty folder to mount on, within the instance's own mount namespace
//!  closed/<lease>     the last sample of a terminated lease
//! ```
//!
//! Each file is written beside its name and renamed; intents and samples are synced, and their folder with them.
//! Whether a keeper lives is asked of the lock and never of a process number, which the kernel may have given to another
//! process since.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use souk_backend::{HostKey, LeaseId, UsageSample};

use crate::{
    process::ProcessId,
    wire::{Folders, Launch},
};

/// Last samples that are kept. The provider journals each as it is returned; this many survive a provider that was
/// killed in that moment over and over.
const MAX_CLOSED: usize = 4_096;

/// Largest state file that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Version of what an intent says. It rises when an earlier program would misunderstand a later one's. The questions that a keeper
/// answers have none: a keeper of any age knows `sample` and `terminate`, and one that does not answer is killed.
const INTENT_VERSION: u32 = 1;

/// An intent as it lies on the disk.
#[derive(Debug, Serialize, Deserialize)]
struct Intent<T> {
    /// Absent in those that were written before there were versions, which say the same as the first.
    #[serde(default = "first_version")]
    version: u32,
    #[serde(flatten)]
    launch: T,
}

const fn first_version() -> u32 {
    1
}

/// The folder of all leases.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
}

impl StateDir {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        // Keepers have another working folder.
        let path = std::path::absolute(path)?;
        make_private(&path.join("closed"))?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn lease(&self, lease: LeaseId) -> LeaseDir {
        LeaseDir {
            path: self.path.join(lease.to_string()),
        }
    }

    /// Every lease that has a folder.
    pub(crate) fn leases(&self) -> io::Result<Vec<LeaseId>> {
        let mut leases = vec![];
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            leases.extend(name.to_str().and_then(|n| n.parse::<LeaseId>().ok()));
        }
        Ok(leases)
    }

    pub(crate) fn closed(&self, lease: LeaseId) -> io::Result<Option<UsageSample>> {
        read(&self.path.join("closed").join(lease.to_string()))
    }

    /// Keeps the last sample of a lease, and forgets the oldest where there are too many.
    pub(crate) fn close(&self, lease: LeaseId, last: &UsageSample) -> io::Result<()> {
        let closed = self.path.join("closed");
        write(&closed, &lease.to_string(), last, Survives::Machine)?;
        let mut kept = fs::read_dir(&closed)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.metadata()?.modified()?, entry.path()))
            })
            .collect::<io::Result<Vec<_>>>()?;
        if kept.len() > MAX_CLOSED {
            kept.sort();
            for (_, path) in &kept[..kept.len() - MAX_CLOSED] {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Folders of a trial, removed when dropped.
#[derive(Debug)]
pub(crate) struct TrialDir {
    path: PathBuf,
}

impl TrialDir {
    /// Makes two empty folders in `parent`, one of which stands for an image.
    pub(crate) fn create(parent: &Path) -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("trial-{}-{number}", std::process::id());
        let path = std::path::absolute(parent)?.join(name);
        make_private(&path.join("scaffold"))?;
        // As images are: instances of root read them as users of their own.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path.join("image"))?;
        Ok(Self { path })
    }

    pub(crate) fn folders(&self) -> Folders {
        Folders {
            image: self.path.join("image"),
            scaffold: self.path.join("scaffold"),
        }
    }
}

impl Drop for TrialDir {
    fn drop(&mut self) {
        // Empty folders that stay behind do no harm; the next trial of this process id uses them.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The folder of one lease.
#[derive(Clone, Debug)]
pub(crate) struct LeaseDir {
    path: PathBuf,
}

/// Who the keeper of a lease is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct KeeperRecord {
    pub(crate) process: ProcessId,
}

/// What became known when the instance was up.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) host_key: HostKey,
}

impl LeaseDir {
    /// The folder as a keeper reaches it, through a descriptor.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        make_private(&self.scaffold())?;
        sync_folder(self.path.parent().unwrap_or(Path::new(".")))
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.exists()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn scaffold(&self) -> PathBuf {
        self.path.join("root")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("socket")
    }

    /// Takes the lock, or returns `None` where a keeper holds it.
    pub(crate) fn try_lock(&self) -> io::Result<Option<File>> {
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join("lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// What was to be started, as this or an earlier version of this program wrote it.
    ///
    /// # Errors
    /// `Unsupported` where a later version did: what it means by it is not guessed.
    pub(crate) fn intent(&self) -> io::Result<Option<Launch>> {
        let path = self.path.join("intent");
        let Some(intent) = read::<Intent<serde_json::Value>>(&path)? else {
            return Ok(None);
        };
        if intent.version > INTENT_VERSION {
            let what = format!(
                "it has version {}, and this program knows up to {INTENT_VERSION}: a later souk started the lease",
                intent.version
            );
            return Err(fault(&path, io::ErrorKind::Unsupported, &what));
        }
        serde_json::from_value(intent.launch)
            .map(Some)
            .map_err(|e| fault(&path, io::ErrorKind::InvalidData, &e.to_string()))
    }

    pub(crate) fn write_intent(&self, launch: &Launch) -> io::Result<()> {
        let version = INTENT_VERSION;
        let intent = Intent { version, launch };
        write(&self.path, "intent", &intent, Survives::Machine)
    }

    pub(crate) fn keeper(&self) -> io::Result<Option<KeeperRecord>> {
        read(&self.path.join("keeper"))
    }

    pub(crate) fn write_keeper(&self, keeper: KeeperRecord) -> io::Result<()> {
        write(&self.path, "keeper", &keeper, Survives::Node)
    }

    pub(crate) fn instance(&self) -> io::Result<Option<InstanceRecord>> {
        read(&self.path.join("instance"))
    }

    pub(crate) fn write_instance(&self, instance: InstanceRecord) -> io::Result<()> {
        write(&self.path, "instance", &instance, Survives::Node)
    }

    pub(crate) fn last_sample(&self) -> io::Result<Option<UsageSample>> {
        read(&self.path.join("final"))
    }

    pub(crate) fn write_last_sample(&self, last: &UsageSample) -> io::Result<()> {
        write(&self.path, "final", last, Survives::Machine)
    }

    /// Removes the folder; one that does not exist is removed already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

fn make_private(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Whether a file must survive a crash of the machine, or only of the node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Survives {
    Machine,
    /// It speaks of living processes, of which a machine that crashed has none.
    Node,
}

fn write<T: Serialize>(folder: &Path, name: &str, value: &T, survives: Survives) -> io::Result<()> {
    let fresh = folder.join(format!(".{name}"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if survives == Survives::Node {
        return fs::rename(fresh, folder.join(name));
    }
    file.sync_all()?;
    fs::rename(fresh, folder.join(name))?;
    sync_folder(folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let size = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found?.len(),
    };
    let invalid = |what: String| fault(path, io::ErrorKind::InvalidData, &what);
    if size == 0 {
        // What a crash of the machine leaves of a file that was renamed but not synced.
        return Ok(None);
    }
    if size > MAX_FILE_BYTES {
        return Err(invalid(format!("{size} bytes are too many")));
    }
    let bytes = fs::read(path)?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|e| invalid(e.to_string()))
}

fn fault(path: &Path, kind: io::ErrorKind, what: &str) -> io::Error {
    io::Error::new(kind, format!("{}: {what}", path.display()))
}

/// Whether what a file holds is lost to this program, however often it is read: the file is damaged, the disk does not give it
/// back, or a later program wrote it.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, Unsupported};
    matches!(error.kind(), InvalidData | Unsupported) || error.raw_os_error() == Some(libc::EIO)
}

#[cfg(test)]
mod tests {
    use souk_backend::{ImageHash, LeaseSpec, Limit, Resources, SshPublicKey, Usage};

    use super::*;
    use crate::{
        cgroup::CgroupParent,
        wire::{Folders, Ids},
    };

    const LEASE: LeaseId = LeaseId([3; 16]);

    #[test]
    fn a_lock_is_seen_by_others_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().join("sandbox")).unwrap();
        let dir = state.lease(LEASE);
        dir.create().unwrap();
        assert_eq!(state.leases().unwrap(), [LEASE]);
        let held = dir.try_lock().unwrap();
        assert!(held.is_some());
        assert!(dir.try_lock().unwrap().is_none());
        drop(held);
        assert!(dir.try_lock().unwrap().is_some());
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it_and_a_missing_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().to_owned()).unwrap();
        assert!(state.closed(LEASE).unwrap().is_none());
        let sample = UsageSample {
            taken_at_unix_ms: 7,
            usage: Usage::UNKNOWN,
        };
        state.close(LEASE, &sample).unwrap();
        assert_eq!(state.closed(LEASE).unwrap(), Some(sample));
        let path = folder.path().join("closed").join(LEASE.to_string());
        fs::write(&path, "").unwrap();
        assert!(state.closed(LEASE).unwrap().is_none());
        fs::write(&path, "{").unwrap();
        let error = state.closed(LEASE).unwrap_err().to_string();
        assert!(error.contains(&LEASE.to_string()), "{error}");
    }

    #[test]
    fn what_is_damaged_is_lost_and_what_is_refused_for_now_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let dir = StateDir::open(folder.path().to_owned())
            .unwrap()
            .lease(LEASE);
        dir.create().unwrap();
        let path = dir.path().join("intent");
        for damaged in ["{", "{}", r#"{"version":1,"slot":-1}"#] {
            fs::write(&path, damaged).unwrap();
            let error = dir.intent().unwrap_err();
            assert!(is_lost(&error), "{damaged}: {error}");
            assert!(error.to_string().contains("intent"), "{error}");
        }
        for number in [libc::EMFILE, libc::EACCES] {
            assert!(!is_lost(&io::Error::from_raw_os_error(number)));
        }
    }

    #[test]
    fn an_intent_of_an_earlier_program_is_read_and_one_of_a_later_program_is_refused_aloud() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().to_owned()).unwrap();
        let dir = state.lease(LEASE);
        dir.create().unwrap();
        let launch = Launch {
            spec: LeaseSpec {
                lease: LEASE,
                image: ImageHash([1; 32]),
                resources: Resources {
                    cpu_millicores: 500,
                    memory_mib: 64,
                    disk_mib: 8,
                    max_processes: 16,
                },
                required_limits: vec![Limit::Memory],
                authorized_key: SshPublicKey([2; 32]),
                valid_to_unix_s: 1_800_000_000,
                evidence: None,
            },
            slot: 3,
            port: 4_321,
            ids: Ids::Two { base: 100_000 },
            cgroup: CgroupParent::find().lease(LEASE),
            folders: Folders {
                image: "/image".into(),
                scaffold: dir.scaffold(),
            },
            memory_is_enforced: true,
            overlay: false,
        };
        dir.write_intent(&launch).unwrap();
        let path = dir.path().join("intent");
        let mut written: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(written["version"], INTENT_VERSION);

        // As programs wrote it before there were versions.
        written.as_object_mut().unwrap().remove("version");
        fs::write(&path, serde_json::to_vec(&written).unwrap()).unwrap();
        let read = dir.intent().unwrap().unwrap();
        assert_eq!((read.port, read.spec), (launch.port, launch.spec));

        written["version"] = (INTENT_VERSION + 1).into();
        written["what"] = "nobody knows yet".into();
        fs::write(&path, serde_json::to_vec(&written).unwrap()).unwrap();
        let error = dir.intent().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(is_lost(&error));
        assert!(error.to_string().contains("a later souk"), "{error}");
    }
}
