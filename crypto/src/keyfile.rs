//! Key files: one secret each, readable by their owner only, never overwritten.
//!
//! ```text
//! souk secret key v1
//! use: node
//! secret: <64 lowercase hex digits>
//! ```
//!
//! Threats: another user of the machine who reads the key, or swaps the file for one of theirs or for a link to it; a
//! crash that leaves half a key; a second start that replaces an identity; a file that is used as the key of something
//! else.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::{fs::OFlags, process::geteuid};
use zeroize::Zeroizing;

use crate::keys::Secret;

const HEADER: &str = "souk secret key v1";

/// A key file has about 100 bytes; more is something else.
const MAX_FILE_BYTES: usize = 256;

/// Reads the key of a file.
///
/// # Errors
/// [`KeyFileError`]: besides the file system's errors, when anybody but the owner has access, when the owner is another
/// user, and when the file holds something else or a key for another use.
pub fn load<K: Secret>(path: &Path) -> Result<K, KeyFileError> {
    let io_error = |source| KeyFileError::Io {
        path: path.into(),
        doing: "read",
        source,
    };
    // Not blocking, or a pipe in the place of the file would hold the caller for ever.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("flags of open fit its int");
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error)?;
    let meta = file.metadata().map_err(io_error)?;
    if !meta.is_file() {
        return Err(KeyFileError::NotAFile { path: path.into() });
    }
    let user = geteuid().as_raw();
    if meta.uid() != user {
        return Err(KeyFileError::Owner {
            path: path.into(),
            owner: meta.uid(),
            user,
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode {
            path: path.into(),
            mode,
        });
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    let limit = MAX_FILE_BYTES as u64 + 1;
    file.take(limit).read_to_end(&mut text).map_err(io_error)?;
    parse(&text, path)
}

/// Writes a key to a new file with mode 0600. The file appears whole or not at all, and is on the disk on return.
///
/// # Errors
/// [`KeyFileError::Exists`] where there is a file; it is never overwritten. Else the file system's errors.
pub fn create<K: Secret>(path: &Path, key: &K) -> Result<(), KeyFileError> {
    let io_error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyFileError::Exists { path: path.into() },
        _ => KeyFileError::Io {
            path: path.into(),
            doing: "write",
            source,
        },
    };
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".souk-key-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .map_err(io_error)?;
    file.write_all(render(key).as_bytes()).map_err(io_error)?;
    file.as_file().sync_all().map_err(io_error)?;
    file.persist_noclobber(path)
        .map_err(|e| io_error(e.error))?;
    File::open(folder)
        .and_then(|f| f.sync_all())
        .map_err(io_error)
}

/// Reads the key of a file, or makes one and writes it where there is no file.
///
/// # Errors
/// As [`load`] and [`create`].
pub fn load_or_create<K: Secret>(
    path: &Path,
    generate: impl FnOnce() -> K,
) -> Result<K, KeyFileError> {
    match load(path) {
        Err(KeyFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let key = generate();
            match create(path, &key) {
                Ok(()) => Ok(key),
                // Somebody else was faster; theirs is the key then.
                Err(KeyFileError::Exists { .. }) => load(path),
                Err(error) => Err(error),
            }
        }
        outcome => outcome,
    }
}

/// Why a key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file system said no.
    #[error("cannot {doing} key file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `write`.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A folder, a device, a pipe.
    #[error("key file {} is not a regular file", path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others have access.
    #[error(
        "key file {} has mode {mode:04o}: others can read or change it; run `chmod 600` on it, and make a new key if they may have",
        path.display()
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("key file {} belongs to user {owner}, and this is user {user}", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// There is a file already.
    #[error("key file {} exists and is not overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It is no key file, or damaged.
    #[error("{} is not a souk key file of version 1", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// It holds a key for something else.
    #[error("key file {} holds another kind of key, not a {expected} key", path.display())]
    Use {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: &'static str,
    },
}

fn render<K: Secret>(key: &K) -> Zeroizing<String> {
    let secret = Zeroizing::new(hex::encode(*key.secret_bytes()));
    let text = format!("{HEADER}\nuse: {}\nsecret: {}\n", K::USE, *secret);
    Zeroizing::new(text)
}

fn parse<K: Secret>(text: &[u8], path: &Path) -> Result<K, KeyFileError> {
    let form = || KeyFileError::Form { path: path.into() };
    let text = str::from_utf8(text).map_err(|_| form())?;
    let rest = text
        .strip_prefix(HEADER)
        .and_then(|t| t.strip_prefix("\nuse: "))
        .ok_or_else(form)?;
    let (name, rest) = rest.split_once("\nsecret: ").ok_or_else(form)?;
    if name != K::USE {
        return Err(KeyFileError::Use {
            path: path.into(),
            expected: K::USE,
        });
    }
    let mut secret = Zeroizing::new([0; 32]);
    let digits = rest.strip_suffix('\n').ok_or_else(form)?;
    hex::decode_to_slice(digits, &mut *secret).map_err(|_| form())?;
    Ok(K::from_secret_bytes(&secret))
}

#[cfg(test)]
mod tests {
    use std::{error::Error as _, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::keys::{CardKey, NodeKey, SealKey};

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    fn node(seed: u8) -> NodeKey {
        NodeKey::from_secret_bytes(&[seed; 32])
    }

    #[test]
    fn a_key_file_is_private_and_reads_back() {
        let dir = folder();
        let path = dir.path().join("node.key");
        create(&path, &node(1)).expect("a new file");
        let mode = fs::metadata(&path).expect("there").mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert!(load::<NodeKey>(&path).expect("reads back") == node(1));
        let names = fs::read_dir(dir.path()).expect("readable").count();
        assert_eq!(names, 1, "a temporary file was left");
    }

    #[test]
    fn a_key_file_is_never_overwritten() {
        let dir = folder();
        let path = dir.path().join("node.key");
        create(&path, &node(1)).expect("a new file");
        assert!(matches!(
            create(&path, &node(2)),
            Err(KeyFileError::Exists { .. })
        ));
        assert!(load_or_create(&path, || node(3)).expect("loads") == node(1));
        let names = fs::read_dir(dir.path()).expect("readable").count();
        assert_eq!(names, 1, "a temporary file was left");
    }

    #[test]
    fn a_missing_key_is_made_once() {
        let dir = folder();
        let path = dir.path().join("seal.key");
        let made = load_or_create(&path, || SealKey::generate(&mut rand::rng())).expect("made");
        let again = load_or_create(&path, || SealKey::generate(&mut rand::rng()));
        assert!(again.expect("loads") == made);
    }

    #[test]
    fn a_file_that_others_can_open_is_refused_with_its_mode() {
        let dir = folder();
        let path = dir.path().join("node.key");
        create(&path, &node(1)).expect("a new file");
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("ours");
            let error = load::<NodeKey>(&path).expect_err("too open");
            assert!(
                matches!(error, KeyFileError::Mode { mode: m, .. } if m == mode),
                "{error}"
            );
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("ours");
        assert!(load::<NodeKey>(&path).is_ok());
    }

    #[test]
    fn links_folders_and_pipes_are_not_key_files() {
        let dir = folder();
        let path = dir.path().join("node.key");
        create(&path, &node(1)).expect("a new file");
        let link = dir.path().join("link");
        symlink(&path, &link).expect("writable");
        assert!(load::<NodeKey>(&link).is_err());
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("writable");
        assert!(matches!(
            load::<NodeKey>(&pipe),
            Err(KeyFileError::NotAFile { .. })
        ));
        assert!(matches!(
            load::<NodeKey>(dir.path()),
            Err(KeyFileError::NotAFile { .. })
        ));
    }

    #[test]
    fn a_key_for_another_use_and_damaged_files_are_refused() {
        let dir = folder();
        let path = dir.path().join("a.key");
        create(&path, &node(1)).expect("a new file");
        assert!(matches!(
            load::<CardKey>(&path),
            Err(KeyFileError::Use {
                expected: "card",
                ..
            })
        ));

        let good = fs::read_to_string(&path).expect("readable");
        let halved = &good[..good.len() / 2];
        let longer = good.clone() + &"x".repeat(400);
        for bad in [
            "",
            "souk secret key v2\n",
            halved,
            &good.replace("01", "0x"),
            &longer,
            good.trim_end(),
        ] {
            fs::write(&path, bad).expect("ours");
            let error = load::<NodeKey>(&path).expect_err("damaged");
            assert!(matches!(error, KeyFileError::Form { .. }), "{error}");
        }
    }

    #[test]
    fn needs_root_a_file_of_another_user_is_refused() {
        let dir = folder();
        let path = dir.path().join("node.key");
        create(&path, &node(1)).expect("a new file");
        if std::os::unix::fs::chown(&path, Some(12_345), None).is_err() {
            eprintln!("skipped: needs root");
            return;
        }
        let error = load::<NodeKey>(&path).expect_err("theirs");
        assert!(
            matches!(error, KeyFileError::Owner { owner: 12_345, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_error_says_once_what_the_system_said() {
        let error = create(Path::new("/nonexistent/folder/key"), &node(1)).expect_err("no folder");
        let source = error.source().expect("the system's error").to_string();
        assert!(!error.to_string().contains(&source));
        assert!(error.to_string().contains("/nonexistent/folder/key"));
    }
}
