//! What a requester's client keeps: one folder, everything in it readable by its owner only.
//!
//! ```text
//!  <home>/entry                        the entries on record ([`super::entries`])
//!  <home>/ssh_config                   includes the fragments of all leases
//!  <home>/logs/<provider>/             what providers signed of their logs ([`super::logs`])
//!  <home>/evidence/                    what they signed that cannot all be true
//!  <home>/leases/<request>/            made whole under another name, then renamed: it is there whole or not at all
//!      holder.key reply.key ssh_key    the secrets of this lease; nothing else of the requester is in them
//!      card envelope                   what was accepted and what was sent, as signed
//!      counter                         the last counter used; written before a request with it leaves
//!      receipt refusal statement       what the provider answered, as signed
//!      status                          the answer that says last where it stands, as signed
//!      acknowledged                    digest of the statement of which the provider has the holder's agreement
//!      disputed                        a receipt or final statement that does not hold, as signed
//!      notice                          the answer in which the provider said last that it leaves, as signed
//!      way                             over relays, or straight
//!      quote collateral policy         what the instance proved, and by which policy it was believed
//!      relays known_hosts ssh_config   how to reach the instance
//!      lock                            held by the process that works on the lease
//! ```
//!
//! There is no second record beside the signed objects that could contradict them: where a lease stands is told by
//! which of them are there, and each is verified again when it is read.
//!
//! Threats: a crash between two writes (each file is on the disk before the step that relies on it), two processes at
//! one lease (a lock on its folder), another user of the machine (modes are checked and never loosened).

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use souk_market::units::RequestId;

use crate::durable;

/// Largest file that is read back; the largest one written is evidence of two checkpoints.
const MAX_FILE_BYTES: u64 = 32 * 1024;

const _: () = assert!(souk_market::log::MAX_CONTRADICTION_BYTES as u64 <= MAX_FILE_BYTES);

/// Leases that one folder holds; each is a few files of the user's own, so the bound only guards against a loop.
pub const MAX_LEASES: usize = 10_000;

/// Hex digits of a request id that name the folder of its lease.
const NAME_DIGITS: usize = 16;

/// The folder of a client.
#[derive(Clone, Debug)]
pub(super) struct Home {
    path: PathBuf,
}

/// The folder of one lease.
#[derive(Clone, Debug)]
pub(super) struct LeaseFolder {
    path: PathBuf,
}

/// Holds a lease for one process; released when dropped.
#[derive(Debug)]
pub(super) struct LeaseLock(#[expect(dead_code, reason = "held for its lock")] File);

/// Why the folder of a client cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system refused.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others can read the folder.
    #[error("others have access to {path} (mode {mode:o}): chmod 700 it")]
    Mode {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The path has a character that an `ssh_config` cannot hold safely.
    #[error("{path} has a character other than letters, digits and /._+@:,=- in its path")]
    Path {
        /// The folder.
        path: PathBuf,
    },
    /// A file is larger than any that the client writes.
    #[error("{path} is larger than {most} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it may have.
        most: u64,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another process works on the lease.
    #[error("another process works on the lease in {path}")]
    Busy {
        /// The folder of the lease.
        path: PathBuf,
    },
    /// A key file cannot be used.
    #[error("a key of the lease cannot be used")]
    Key(#[from] souk_crypto::keyfile::KeyFileError),
    /// No lease has this name, or several do.
    #[error("{} matches {name:?}", if *.found == 0 { "no lease".to_owned() } else { format!("more than one lease ({found})") })]
    Name {
        /// What was looked for.
        name: String,
        /// How many there are.
        found: usize,
    },
    /// The folder is full.
    #[error("there are {most} {what} in {path}: move old ones away")]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there are, and may be.
        most: usize,
        /// The folder of all of them.
        path: PathBuf,
    },
}

impl Home {
    /// Opens the folder, making it where there is none.
    pub(super) fn open(path: &Path) -> Result<Self, StateError> {
        let path = std::path::absolute(path).map_err(io_error("find", path))?;
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._+@:,=-".contains(b);
        let text = path.as_os_str().as_encoded_bytes();
        if !text.iter().all(plain) {
            return Err(StateError::Path { path });
        }
        for folder in [path.clone(), path.join("leases")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(io_error("make", &folder))?;
        }
        let meta = fs::metadata(&path).map_err(io_error("look at", &path))?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(StateError::Mode { path, mode });
        }
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A folder below this one, made where there is none.
    pub(super) fn folder(&self, names: &[&str]) -> Result<PathBuf, StateError> {
        let path = names
            .iter()
            .fold(self.path.clone(), |path, name| path.join(name));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(io_error("make", &path))?;
        Ok(path)
    }

    /// The files of a folder below this one, in order of their names; none where there is no such folder, and none that a
    /// crash left half written.
    pub(super) fn files(&self, names: &[&str]) -> Result<Vec<PathBuf>, StateError> {
        let path = names
            .iter()
            .fold(self.path.clone(), |path, name| path.join(name));
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", &path))?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("list", &path))?;
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                files.push(entry.path());
            }
        }
        files.sort();
        Ok(files)
    }

    /// The folder of the lease of that very name, where there is one.
    pub(super) fn lease(&self, name: &str) -> Option<LeaseFolder> {
        let path = self.path.join("leases").join(name);
        (is_name(name.as_bytes()) && path.is_dir()).then_some(LeaseFolder { path })
    }

    /// The folders of all leases, in no order. What a crash left half made is not among them.
    pub(super) fn leases(&self) -> Result<Vec<LeaseFolder>, StateError> {
        let parent = self.path.join("leases");
        let mut found = Vec::new();
        for entry in fs::read_dir(&parent).map_err(io_error("list", &parent))? {
            let entry = entry.map_err(io_error("list", &parent))?;
            let name = entry.file_name();
            if is_name(name.as_encoded_bytes()) {
                found.push(LeaseFolder { path: entry.path() });
            }
            if found.len() > MAX_LEASES {
                return Err(StateError::Full {
                    what: "leases",
                    most: MAX_LEASES,
                    path: parent,
                });
            }
        }
        Ok(found)
    }

    /// Makes the folder of a lease: `fill` writes into it under another name, and it appears whole. On return all of
    /// it is on the disk.
    pub(super) fn create_lease<E: From<StateError>>(
        &self,
        request: RequestId,
        fill: impl FnOnce(&LeaseFolder) -> Result<(), E>,
    ) -> Result<LeaseFolder, E> {
        let parent = self.path.join("leases");
        let name = LeaseFolder::name_of(request);
        let (half, whole) = (parent.join(format!(".{name}")), parent.join(&name));
        // What a crash left half made never left this machine.
        match fs::remove_dir_all(&half) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &half)(error).into());
            }
            _ => {}
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&half)
            .map_err(io_error("make", &half))?;
        let folder = LeaseFolder { path: half.clone() };
        if let Err(error) = fill(&folder).and_then(|()| Ok(sync_folder(&half)?)) {
            // Nothing has left yet, so nothing is lost with it.
            fs::remove_dir_all(&half).map_err(io_error("remove", &half))?;
            return Err(error);
        }
        fs::rename(&half, &whole).map_err(io_error("rename", &half))?;
        sync_folder(&parent)?;
        Ok(LeaseFolder { path: whole })
    }

    /// Reads a small text of the client.
    pub(super) fn read_text(&self, name: &str) -> Result<Option<String>, StateError> {
        read_text(&self.path.join(name))
    }

    /// Replaces a small text of the client.
    pub(super) fn write_text(&self, name: &str, text: &str) -> Result<(), StateError> {
        replace(&self.path.join(name), text.as_bytes())
    }
}

impl LeaseFolder {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the lease of a request.
    pub(super) fn name_of(request: RequestId) -> String {
        request.to_string()[..NAME_DIGITS].to_owned()
    }

    /// The name of the lease in this folder: the start of its request id.
    pub(super) fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Takes the lease for this process.
    pub(super) fn lock(&self) -> Result<LeaseLock, StateError> {
        let path = self.file("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(LeaseLock(file)),
            Err(TryLockError::WouldBlock) => Err(StateError::Busy {
                path: self.path.clone(),
            }),
            Err(TryLockError::Error(source)) => Err(StateError::Io {
                doing: "lock",
                path,
                source,
            }),
        }
    }

    pub(super) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        read(&self.file(name))
    }

    /// As [`Self::read`], of a file that may have up to `most` bytes.
    pub(super) fn read_within(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, StateError> {
        read_within(&self.file(name), most)
    }

    /// Writes a file whole, replacing what was there; it is on the disk on return.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        replace(&self.file(name), bytes)
    }

    /// Removes a file, where it is there.
    pub(super) fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Reads a text and parses it; `None` where there is no such file.
    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, StateError> {
        let Some(text) = read_text(&self.file(name))? else {
            return Ok(None);
        };
        let value = text
            .trim_end()
            .parse()
            .map_err(|e| self.damaged(name, &e))?;
        Ok(Some(value))
    }

    pub(super) fn damaged(&self, name: &str, what: &impl ToString) -> StateError {
        StateError::Damaged {
            path: self.file(name),
            what: what.to_string(),
        }
    }
}

/// Whether a folder can be that of a lease; what a crash left half made has a dot before its name.
fn is_name(name: &[u8]) -> bool {
    let is_digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    name.len() == NAME_DIGITS && name.iter().all(is_digit)
}

fn read_text(path: &Path) -> Result<Option<String>, StateError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|e| StateError::Damaged {
            path: path.into(),
            what: e.to_string(),
        })
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    read_within(path, MAX_FILE_BYTES)
}

fn read_within(path: &Path, most: u64) -> Result<Option<Vec<u8>>, StateError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("read", path)(source)),
    };
    let mut bytes = Vec::new();
    file.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > most {
        let path = path.into();
        return Err(StateError::TooLarge { path, most });
    }
    Ok(Some(bytes))
}

pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    durable::replace(path, bytes).map_err(io_error("write", path))
}

fn sync_folder(path: &Path) -> Result<(), StateError> {
    durable::sync_folder(path).map_err(io_error("write", path))
}

pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io {
        doing,
        path: path.into(),
        source,
    }
}
