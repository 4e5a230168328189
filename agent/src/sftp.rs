//! The SFTP server: this program again, started with [`SFTP_ARG`] as a process of the tenant.
//!
//! Threat: file transfer inside of the agent would hand a tenant the agent's own `/proc/self`, memory and descriptors.
//! So it has a process of its own with the rights of a tenant, and the kernel judges every path.
//!
//! Version 3 of the protocol (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions for limits, rename, hard links,
//! fsync and statvfs. The library knows names in UTF-8 only; others are shown with replacement characters.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions, Permissions, ReadDir},
    io::{self, ErrorKind},
    os::{
        fd::AsFd,
        unix::{
            fs::{
                DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _,
                PermissionsExt as _,
            },
            net::UnixStream as StdUnixStream,
        },
    },
    path::{Component, Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use russh_sftp::{
    de,
    extensions::{
        FSYNC, FsyncExtension, HARDLINK, HardlinkExtension, LIMITS, LimitsExtension, STATVFS,
        Statvfs, StatvfsExtension,
    },
    protocol::{
        Attrs, Data, ExtendedReply, File as Entry, FileAttributes, Handle, Name, OpenFlags, Packet,
        Status, StatusCode, Version,
    },
    server::{Config, Handler, run_with_config},
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, futimens, statvfs, utimensat};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::oneshot,
};

use crate::{StartError, doing};

/// The argument that makes this program an SFTP server on its standard input, which is a socket.
pub(crate) const SFTP_ARG: &str = "sftp-server";

/// Longest packet, in bytes; the same as OpenSSH.
const MAX_PACKET_BYTES: u32 = 256 << 10;

/// Longest read or write, in bytes: a packet less its header, as OpenSSH has it.
const MAX_TRANSFER_BYTES: u32 = 255 << 10;

/// Open files and directories of one session; clients open one file at a time, or as many as they copy in parallel.
const MAX_HANDLES: usize = 256;

/// Entries of a directory in one answer.
const ENTRIES: usize = 128;

/// Renames over an existing file, as POSIX does and version 3 does not.
const POSIX_RENAME: &str = "posix-rename@openssh.com";

/// Serves until the client is done.
pub(crate) fn serve() -> Result<(), StartError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(doing("start the runtime"))?
        .block_on(async {
            let stdin = rustix::stdio::stdin()
                .try_clone_to_owned()
                .map_err(doing("use standard input"))?;
            let stream = StdUnixStream::from(stdin);
            stream
                .set_nonblocking(true)
                .map_err(doing("use standard input"))?;
            let stream = UnixStream::from_std(stream).map_err(doing("use standard input"))?;
            let (alive, done) = oneshot::channel();
            let stream = Stream {
                stream,
                _alive: alive,
            };
            let config = Config {
                max_client_packet_len: MAX_PACKET_BYTES,
            };
            run_with_config(stream, Files::default(), config).await;
            // The library serves in a task of its own and drops the stream when that ends.
            let _ = done.await;
            Ok(())
        })
}

/// Everything that one session has open.
#[derive(Default)]
struct Files {
    open: HashMap<String, Open>,
    opened: u64,
}

enum Open {
    File { file: File, append: bool },
    Directory(ReadDir),
}

/// Why a request was not done, as the client is told.
struct Refused(StatusCode);

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            ErrorKind::NotFound => StatusCode::NoSuchFile,
            ErrorKind::PermissionDenied => StatusCode::PermissionDenied,
            ErrorKind::Unsupported => StatusCode::OpUnsupported,
            _ => StatusCode::Failure,
        })
    }
}

impl From<rustix::io::Errno> for Refused {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<Refused> for StatusCode {
    fn from(refused: Refused) -> Self {
        refused.0
    }
}

impl Files {
    fn insert(&mut self, id: u32, open: Open) -> Result<Handle, Refused> {
        if self.open.len() >= MAX_HANDLES {
            return Err(Refused(StatusCode::Failure));
        }
        self.opened += 1;
        let handle = self.opened.to_string();
        self.open.insert(handle.clone(), open);
        Ok(Handle { id, handle })
    }

    fn file(&self, handle: &str) -> Result<(&File, bool), Refused> {
        match self.open.get(handle) {
            Some(Open::File { file, append }) => Ok((file, *append)),
            _ => Err(Refused(StatusCode::Failure)),
        }
    }
}

impl Handler for Files {
    type Error = Refused;

    fn unimplemented(&self) -> Refused {
        Refused(StatusCode::OpUnsupported)
    }

    async fn init(
        &mut self,
        _version: u32,
        _extensions: HashMap<String, String>,
    ) -> Result<Version, Refused> {
        let mut version = Version::new();
        for (name, revision) in [
            (POSIX_RENAME, "1"),
            (STATVFS, "2"),
            (HARDLINK, "1"),
            (FSYNC, "1"),
            (LIMITS, "1"),
        ] {
            version
                .extensions
                .insert(name.to_owned(), revision.to_owned());
        }
        Ok(version)
    }

    async fn open(
        &mut self,
        id: u32,
        filename: String,
        flags: OpenFlags,
        attrs: FileAttributes,
    ) -> Result<Handle, Refused> {
        let append = flags.contains(OpenFlags::APPEND);
        let mut options = OpenOptions::new();
        options
            .read(flags.contains(OpenFlags::READ))
            .write(flags.contains(OpenFlags::WRITE) && !append)
            .append(append)
            .truncate(flags.contains(OpenFlags::TRUNCATE) && !append)
            .mode(attrs.permissions.map_or(0o666, permission_bits));
        if flags.contains(OpenFlags::CREATE) {
            if flags.contains(OpenFlags::EXCLUDE) {
                options.create_new(true);
            } else {
                options.create(true);
            }
        }
        let file = options.open(filename)?;
        if file.metadata()?.is_dir() {
            return Err(Refused(StatusCode::Failure));
        }
        self.insert(id, Open::File { file, append })
    }

    async fn close(&mut self, id: u32, handle: String) -> Result<Status, Refused> {
        match self.open.remove(&handle) {
            Some(_) => Ok(done(id)),
            None => Err(Refused(StatusCode::Failure)),
        }
    }

    async fn read(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        len: u32,
    ) -> Result<Data, Refused> {
        let (file, _) = self.file(&handle)?;
        let mut data = vec![0; len.min(MAX_TRANSFER_BYTES) as usize];
        let mut filled = 0;
        while filled < data.len() {
            match file.read_at(&mut data[filled..], offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if filled == 0 && len > 0 {
            return Err(Refused(StatusCode::Eof));
        }
        data.truncate(filled);
        Ok(Data { id, data })
    }

    async fn write(
        &mut self,
        id: u32,
        handle: String,
        offset: u64,
        data: Vec<u8>,
    ) -> Result<Status, Refused> {
        let (mut file, append) = self.file(&handle)?;
        if append {
            io::Write::write_all(&mut file, &data)?;
        } else {
            file.write_all_at(&data, offset)?;
        }
        Ok(done(id))
    }

    async fn lstat(&mut self, id: u32, path: String) -> Result<Attrs, Refused> {
        Ok(attrs_reply(id, &fs::symlink_metadata(path)?))
    }

    async fn stat(&mut self, id: u32, path: String) -> Result<Attrs, Refused> {
        Ok(attrs_reply(id, &fs::metadata(path)?))
    }

    async fn fstat(&mut self, id: u32, handle: String) -> Result<Attrs, Refused> {
        let (file, _) = self.file(&handle)?;
        Ok(attrs_reply(id, &file.metadata()?))
    }

    async fn setstat(
        &mut self,
        id: u32,
        path: String,
        attrs: FileAttributes,
    ) -> Result<Status, Refused> {
        if let Some(size) = attrs.size {
            OpenOptions::new().write(true).open(&path)?.set_len(size)?;
        }
        if let Some(mode) = attrs.permissions {
            fs::set_permissions(&path, Permissions::from_mode(permission_bits(mode)))?;
        }
        if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))?;
        }
        if let Some(times) = times(&attrs) {
            utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        Ok(done(id))
    }

    async fn fsetstat(
        &mut self,
        id: u32,
        handle: String,
        attrs: FileAttributes,
    ) -> Result<Status, Refused> {
        let (file, _) = self.file(&handle)?;
        if let Some(size) = attrs.size {
            file.set_len(size)?;
        }
        if let Some(mode) = attrs.permissions {
            file.set_permissions(Permissions::from_mode(permission_bits(mode)))?;
        }
        if let (Some(uid), Some(gid)) = (attrs.uid, attrs.gid) {
            std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
        }
        if let Some(times) = times(&attrs) {
            futimens(file.as_fd(), &times)?;
        }
        Ok(done(id))
    }

    async fn opendir(&mut self, id: u32, path: String) -> Result<Handle, Refused> {
        let directory = fs::read_dir(path)?;
        self.insert(id, Open::Directory(directory))
    }

    async fn readdir(&mut self, id: u32, handle: String) -> Result<Name, Refused> {
        let Some(Open::Directory(directory)) = self.open.get_mut(&handle) else {
            return Err(Refused(StatusCode::Failure));
        };
        let mut files = Vec::new();
        for entry in directory.by_ref().take(ENTRIES) {
            let entry = entry?;
            // What has vanished since, or may not be looked at, is still an entry.
            let attrs = entry
                .metadata()
                .map_or_else(|_| FileAttributes::empty(), |meta| attributes(&meta));
            files.push(Entry::new(entry.file_name().to_string_lossy(), attrs));
        }
        if files.is_empty() {
            return Err(Refused(StatusCode::Eof));
        }
        Ok(Name { id, files })
    }

    async fn remove(&mut self, id: u32, filename: String) -> Result<Status, Refused> {
        fs::remove_file(filename)?;
        Ok(done(id))
    }

    async fn mkdir(
        &mut self,
        id: u32,
        path: String,
        attrs: FileAttributes,
    ) -> Result<Status, Refused> {
        fs::DirBuilder::new()
            .mode(attrs.permissions.map_or(0o777, permission_bits))
            .create(path)?;
        Ok(done(id))
    }

    async fn rmdir(&mut self, id: u32, path: String) -> Result<Status, Refused> {
        fs::remove_dir(path)?;
        Ok(done(id))
    }

    async fn realpath(&mut self, id: u32, path: String) -> Result<Name, Refused> {
        let path = fs::canonicalize(&path).or_else(|_| absolute(Path::new(&path)))?;
        let name = path.to_string_lossy().into_owned();
        Ok(Name {
            id,
            files: vec![Entry::dummy(name)],
        })
    }

    async fn rename(&mut self, id: u32, old: String, new: String) -> Result<Status, Refused> {
        // Version 3 refuses to replace, and only a link does so without a race; directories cannot be linked.
        if fs::symlink_metadata(&old)?.is_dir() {
            if fs::symlink_metadata(&new).is_ok() {
                return Err(Refused(StatusCode::Failure));
            }
            fs::rename(old, new)?;
        } else {
            fs::hard_link(&old, &new)?;
            fs::remove_file(old)?;
        }
        Ok(done(id))
    }

    async fn readlink(&mut self, id: u32, path: String) -> Result<Name, Refused> {
        let target = fs::read_link(path)?;
        Ok(Name {
            id,
            files: vec![Entry::dummy(target.to_string_lossy())],
        })
    }

    /// OpenSSH sends the target first, against the draft, and everybody does as OpenSSH; the names of the library are
    /// those of the draft.
    async fn symlink(&mut self, id: u32, target: String, link: String) -> Result<Status, Refused> {
        std::os::unix::fs::symlink(target, link)?;
        Ok(done(id))
    }

    async fn extended(
        &mut self,
        id: u32,
        request: String,
        data: Vec<u8>,
    ) -> Result<Packet, Refused> {
        let bad = |_| Refused(StatusCode::BadMessage);
        let mut data = data.into();
        match request.as_str() {
            LIMITS => reply(
                id,
                &LimitsExtension {
                    max_packet_len: MAX_PACKET_BYTES.into(),
                    max_read_len: MAX_TRANSFER_BYTES.into(),
                    max_write_len: MAX_TRANSFER_BYTES.into(),
                    max_open_handles: MAX_HANDLES as u64,
                },
            ),
            // Two paths, like a hard link.
            POSIX_RENAME => {
                let paths: HardlinkExtension = de::from_bytes(&mut data).map_err(bad)?;
                fs::rename(paths.oldpath, paths.newpath)?;
                Ok(done(id).into())
            }
            HARDLINK => {
                let paths: HardlinkExtension = de::from_bytes(&mut data).map_err(bad)?;
                fs::hard_link(paths.oldpath, paths.newpath)?;
                Ok(done(id).into())
            }
            FSYNC => {
                let wanted: FsyncExtension = de::from_bytes(&mut data).map_err(bad)?;
                self.file(&wanted.handle)?.0.sync_all()?;
                Ok(done(id).into())
            }
            STATVFS => {
                let wanted: StatvfsExtension = de::from_bytes(&mut data).map_err(bad)?;
                let vfs = statvfs(wanted.path.as_str())?;
                reply(
                    id,
                    &Statvfs {
                        block_size: vfs.f_bsize,
                        fragment_size: vfs.f_frsize,
                        blocks: vfs.f_blocks,
                        blocks_free: vfs.f_bfree,
                        blocks_avail: vfs.f_bavail,
                        inodes: vfs.f_files,
                        inodes_free: vfs.f_ffree,
                        inodes_avail: vfs.f_favail,
                        fs_id: vfs.f_fsid,
                        flags: vfs.f_flag.bits(),
                        name_max: vfs.f_namemax,
                    },
                )
            }
            _ => Err(self.unimplemented()),
        }
    }
}

fn done(id: u32) -> Status {
    Status {
        id,
        status_code: StatusCode::Ok,
        error_message: String::new(),
        language_tag: String::new(),
    }
}

fn reply<T: serde::Serialize>(id: u32, value: &T) -> Result<Packet, Refused> {
    let data = russh_sftp::ser::to_bytes(value).map_err(|_| Refused(StatusCode::Failure))?;
    Ok(Packet::ExtendedReply(ExtendedReply {
        id,
        data: data.to_vec(),
    }))
}

fn attrs_reply(id: u32, meta: &Metadata) -> Attrs {
    Attrs {
        id,
        attrs: attributes(meta),
    }
}

/// Times are 32 bits wide in version 3; what does not fit is left out.
fn attributes(meta: &Metadata) -> FileAttributes {
    FileAttributes {
        size: Some(meta.len()),
        uid: Some(meta.uid()),
        gid: Some(meta.gid()),
        permissions: Some(meta.mode()),
        atime: u32::try_from(meta.atime()).ok(),
        mtime: u32::try_from(meta.mtime()).ok(),
        ..FileAttributes::empty()
    }
}

fn permission_bits(mode: u32) -> u32 {
    mode & 0o7777
}

fn times(attrs: &FileAttributes) -> Option<Timestamps> {
    let spec = |seconds: u32| Timespec {
        tv_sec: seconds.into(),
        tv_nsec: 0,
    };
    Some(Timestamps {
        last_access: spec(attrs.atime?),
        last_modification: spec(attrs.mtime?),
    })
}

/// A path that does not exist, made absolute and free of dots by its text alone.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for component in std::path::absolute(path)?.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// A stream that tells when it was dropped.
struct Stream {
    stream: UnixStream,
    _alive: oneshot::Sender<()>,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_is_cleaned_by_its_text() {
        let cleaned = |path: &str| absolute(Path::new(path)).expect("absolute");
        assert_eq!(cleaned("/nowhere/./a/../b"), Path::new("/nowhere/b"));
        assert_eq!(cleaned("/../../nowhere"), Path::new("/nowhere"));
    }
}
