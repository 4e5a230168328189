//! A Unix socket that only its owner can reach, or those whom its mode lets in.
//!
//! Threat: another user who connects before the mode is set, or puts a socket of their own in its place.

use std::{
    fs, io,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

/// `sun_path` of `sockaddr_un` holds 108 bytes with the final zero (unix(7)).
const MAX_PATH_BYTES: usize = 107;

/// A listening control socket; the name is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: Option<UnixListener>,
    path: PathBuf,
}

/// Why the control socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Unix limits the length.
    #[error(
        "{path} is longer than the {MAX_PATH_BYTES} bytes that a Unix socket's path may have; set control.socket to a shorter one"
    )]
    PathTooLong {
        /// The socket.
        path: PathBuf,
    },
    /// A node answers there.
    #[error("another node answers on {path}; stop it, or give this one a data_dir of its own")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has the name.
    #[error("{path} exists and is no socket; remove it or set control.socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Its owner could put a socket of their own in its place.
    #[error(
        "the folder {folder} belongs to the user with the number {owner}; make control.socket a path in a folder of your own"
    )]
    OthersFolder {
        /// The folder.
        folder: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others could put a socket of their own in its place.
    #[error("the folder {folder} can be written to by others (mode {mode:o}); `chmod 700 {folder}`", mode = mode & 0o7777)]
    OpenFolder {
        /// The folder.
        folder: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The system refused.
    #[error("cannot make the control socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Socket {
    /// Listens on `path` with mode 0600, in a folder that is made with mode 0700 if it is missing. A socket that a dead node left
    /// is replaced.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_for(path, 0o600)
    }

    /// The same with another mode. Whom it lets in, a folder that is made here lets pass.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind_for(path: &Path, mode: u32) -> Result<Self, SocketError> {
        let owned = || path.to_owned();
        let io = |source| SocketError::Io {
            path: owned(),
            source,
        };
        // The temporary name is the longer one.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        if fresh.as_os_str().len() > MAX_PATH_BYTES {
            return Err(SocketError::PathTooLong { path: owned() });
        }
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700 | pass(mode, 0o070) | pass(mode, 0o007))
            .create(folder)
            .map_err(io)?;
        let of_folder = fs::metadata(folder).map_err(io)?;
        // Root can do everything anyway.
        let trusted = [0, rustix::process::geteuid().as_raw()];
        if !trusted.contains(&of_folder.uid()) {
            return Err(SocketError::OthersFolder {
                folder: folder.to_owned(),
                owner: of_folder.uid(),
            });
        }
        if of_folder.mode() & 0o022 != 0 {
            return Err(SocketError::OpenFolder {
                folder: folder.to_owned(),
                mode: of_folder.mode(),
            });
        }
        match fs::symlink_metadata(path) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(SocketError::NotASocket { path: owned() });
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::InUse { path: owned() });
            }
            Ok(_) | Err(_) => {}
        }
        // It gets its mode before it gets the name that others know.
        let _ = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(io)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode)).map_err(io)?;
        fs::rename(&fresh, path).map_err(io)?;
        Ok(Self {
            listener: Some(listener),
            path: owned(),
        })
    }
}

/// Read and search of a folder for a class of users that may open the socket in it.
fn pass(mode: u32, class: u32) -> u32 {
    if mode & class == 0 { 0 } else { class & 0o055 }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A name that stays behind is replaced by the next node.
        let _ = fs::remove_file(&self.path);
    }
}
