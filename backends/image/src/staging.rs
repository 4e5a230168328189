//! An image under construction: a directory that is only ever reached through its descriptor.
//!
//! Threat: paths and links in an archive are chosen by a stranger. The kernel resolves the parent of every path beneath
//! the descriptor of the root (`openat2` with `RESOLVE_BENEATH`), and the last name is created, never opened or followed.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, linkat, mkdirat, openat,
        openat2, readlinkat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use tempfile::TempDir;

use crate::{
    error::StageError,
    manifest::{Entry, Kind, MODE_BITS, Manifest, is_target},
    path::{ImagePath, MAX_DEPTH},
};

/// How large an image may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Paths. The default, 262,144, is twice a full desktop system and a manifest of about 30 MiB.
    pub max_entries: u64,
    /// Bytes of content, each hard link counted as a file of its own. The default is 16 GiB.
    pub max_content_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_entries: 1 << 18,
            max_content_bytes: 16 << 30,
        }
    }
}

/// How often a path is resolved while renames elsewhere on the machine make the kernel unsure of a `..` in a link
/// (openat2(2), EAGAIN).
const MAX_TRIES: usize = 128;

/// Files on their way to become an image; removed when dropped.
pub(crate) struct Staging {
    folder: TempDir,
    root: OwnedFd,
    limits: Limits,
    entries: u64,
    content_bytes: u64,
}

impl Staging {
    /// An empty image in a new directory inside of `images`.
    pub(crate) fn new(images: &Path, prefix: &str, limits: Limits) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(images)?;
        let path = folder.path().join(ROOTFS);
        mkdirat(CWD, &path, Mode::from_raw_mode(0o755))?;
        let root = openat(CWD, &path, DIRECTORY, Mode::empty())?;
        fchmod(&root, Mode::from_raw_mode(0o755))?;
        Ok(Self {
            folder,
            root,
            limits,
            entries: 0,
            content_bytes: 0,
        })
    }

    /// Bytes of content that may still come.
    pub(crate) const fn content_bytes_left(&self) -> u64 {
        self.limits.max_content_bytes - self.content_bytes
    }

    /// Makes a directory, and those above it; of an existing one it sets the mode.
    pub(crate) fn dir(&mut self, path: &ImagePath, mode: u32) -> Result<(), StageError> {
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        let parent_fd = self.parents(&parent)?;
        let io = at("create directory", path);
        let made = match mkdirat(&parent_fd, name, Mode::RWXU) {
            Err(Errno::EXIST) if self.file_type(&parent_fd, name) == Some(FileType::Directory) => {
                false
            }
            Err(Errno::EXIST) => {
                self.clear(&parent_fd, name, path)?;
                mkdirat(&parent_fd, name, Mode::RWXU).map_err(&io)?;
                true
            }
            made => made.map(|()| true).map_err(&io)?,
        };
        if made {
            self.count_entry()?;
        }
        let fd = openat(&parent_fd, name, DIRECTORY, Mode::empty()).map_err(&io)?;
        fchmod(&fd, Mode::from_raw_mode(mode & MODE_BITS | 0o700)).map_err(&io)
    }

    /// Writes a regular file from `content`, which must end before the limits do.
    pub(crate) fn file(
        &mut self,
        path: &ImagePath,
        mode: u32,
        content: &mut impl Read,
    ) -> Result<(), StageError> {
        let (parent_fd, name) = self.place(path)?;
        let io = at("write", path);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&parent_fd, name, flags, Mode::RUSR | Mode::WUSR).map_err(&io)?;
        let mut file = File::from(fd);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => {
                    return Err(StageError::Io {
                        doing: "read the content of",
                        path: path.clone(),
                        source,
                    });
                }
            };
            self.count_content(n as u64)?;
            file.write_all(&buffer[..n])
                .map_err(|source| StageError::Io {
                    doing: "write",
                    path: path.clone(),
                    source,
                })?;
        }
        fchmod(&file, Mode::from_raw_mode(mode & MODE_BITS | 0o400)).map_err(&io)
    }

    /// Makes a symbolic link.
    pub(crate) fn symlink(&mut self, path: &ImagePath, target: &[u8]) -> Result<(), StageError> {
        if !is_target(target) {
            return Err(StageError::Target { path: path.clone() });
        }
        let (parent_fd, name) = self.place(path)?;
        symlinkat(OsStr::from_bytes(target), &parent_fd, name).map_err(at("link", path))
    }

    /// Makes a hard link to a regular file that is already in the image.
    pub(crate) fn hard_link(&mut self, path: &ImagePath, target: &[u8]) -> Result<(), StageError> {
        let refused = || StageError::HardLink {
            path: path.clone(),
            target: String::from_utf8_lossy(target).into_owned(),
        };
        let target = ImagePath::new(target)?;
        let (from, from_name) = target.split().ok_or_else(refused)?;
        if target == *path {
            return Err(refused());
        }
        let from_fd = self.resolve(&from)?.ok_or_else(refused)?;
        let stat = statat(&from_fd, from_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| refused())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused());
        }
        self.count_content(u64::try_from(stat.st_size).unwrap_or(u64::MAX))?;
        let (parent_fd, name) = self.place(path)?;
        // The new name may be the old one by another path; clearing it removed the target then.
        linkat(&from_fd, from_name, &parent_fd, name, AtFlags::empty()).map_err(|_| refused())
    }

    /// Removes whatever is at `path`, if anything is.
    pub(crate) fn remove(&mut self, path: &ImagePath) -> Result<(), StageError> {
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        match self.resolve(&parent)? {
            Some(fd) => self.clear(&fd, name, path),
            None => Ok(()),
        }
    }

    /// Names in the directory at `path`; none where there is no directory.
    pub(crate) fn names(&self, path: &ImagePath) -> Result<Vec<OsString>, StageError> {
        match self.resolve(path)? {
            Some(fd) => read_names(fd).map_err(at("list", path)),
            None => Ok(Vec::new()),
        }
    }

    /// What was staged, read back from the disk.
    pub(crate) fn manifest(&self) -> Result<Manifest, StageError> {
        let root = self.root.try_clone().map_err(|source| StageError::Io {
            doing: "open",
            path: ImagePath::default(),
            source,
        })?;
        scan(root)
    }

    /// Hands the directory over to who renames it into place.
    pub(crate) fn into_folder(self) -> TempDir {
        self.folder
    }

    /// The parent of `path`, made where it is missing, with nothing under the last name.
    fn place<'p>(&mut self, path: &'p ImagePath) -> Result<(OwnedFd, &'p OsStr), StageError> {
        let (parent, name) = path
            .split()
            .ok_or_else(|| StageError::Escape { path: path.clone() })?;
        let fd = self.parents(&parent)?;
        self.clear(&fd, name, path)?;
        self.count_entry()?;
        Ok((fd, name))
    }

    fn parents(&mut self, dir: &ImagePath) -> Result<OwnedFd, StageError> {
        if let Some(fd) = self.resolve(dir)? {
            return Ok(fd);
        }
        for dir in dir.ancestors().chain([dir.clone()]) {
            if self.resolve(&dir)?.is_none() {
                let (parent, name) = dir.split().expect("the root resolves");
                let fd = self
                    .resolve(&parent)?
                    .ok_or_else(|| StageError::Escape { path: dir.clone() })?;
                // What is in the way is a file, or a link that leads nowhere.
                self.clear(&fd, name, &dir)?;
                mkdirat(&fd, name, Mode::RWXU).map_err(at("create directory", &dir))?;
                let made = openat(&fd, name, DIRECTORY, Mode::empty()).map_err(at("open", &dir))?;
                fchmod(&made, Mode::from_raw_mode(0o755)).map_err(at("open", &dir))?;
                self.count_entry()?;
            }
        }
        self.resolve(dir)?
            .ok_or_else(|| StageError::Escape { path: dir.clone() })
    }

    /// Opens a directory beneath the root, or `None` where there is no directory.
    fn resolve(&self, dir: &ImagePath) -> Result<Option<OwnedFd>, StageError> {
        let path = if dir.is_root() {
            Path::new(".")
        } else {
            dir.as_path()
        };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let flags = DIRECTORY & !OFlags::NOFOLLOW;
        let mut opened = Err(Errno::AGAIN);
        for _ in 0..MAX_TRIES {
            opened = openat2(&self.root, path, flags, Mode::empty(), how);
            if !matches!(opened, Err(Errno::AGAIN)) {
                break;
            }
        }
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(Errno::XDEV | Errno::LOOP) => Err(StageError::Escape { path: dir.clone() }),
            Err(errno) => Err(at("open", dir)(errno)),
        }
    }

    fn file_type(&self, parent: &OwnedFd, name: &OsStr) -> Option<FileType> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }

    fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        path: &ImagePath,
    ) -> Result<(), StageError> {
        let io = at("replace", path);
        match self.file_type(parent, name) {
            None => Ok(()),
            Some(FileType::Directory) => self.clear_tree(parent, name, MAX_DEPTH + 1).map_err(io),
            Some(_) => unlinkat(parent, name, AtFlags::empty()).map_err(io),
        }
    }

    fn clear_tree(&mut self, parent: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), Errno> {
        if depth == 0 {
            return Err(Errno::NAMETOOLONG);
        }
        let dir = openat(parent, name, DIRECTORY, Mode::empty())?;
        for child in read_names(dir.try_clone().map_err(|_| Errno::MFILE)?)? {
            if self.file_type(&dir, &child) == Some(FileType::Directory) {
                self.clear_tree(&dir, &child, depth - 1)?;
            } else {
                unlinkat(&dir, &child, AtFlags::empty())?;
            }
        }
        unlinkat(parent, name, AtFlags::REMOVEDIR)
    }

    /// Counts what was ever made, replaced or not, so that replacing costs as much as adding.
    const fn count_entry(&mut self) -> Result<(), StageError> {
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return Err(StageError::Limit {
                what: "paths",
                max: self.limits.max_entries,
            });
        }
        Ok(())
    }

    const fn count_content(&mut self, bytes: u64) -> Result<(), StageError> {
        if bytes > self.content_bytes_left() {
            return Err(StageError::Limit {
                what: "bytes of content",
                max: self.limits.max_content_bytes,
            });
        }
        self.content_bytes += bytes;
        Ok(())
    }
}

/// Name of the root inside of an image's directory.
pub(crate) const ROOTFS: &str = "rootfs";

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The manifest of the files below `root`, as they are on the disk.
pub(crate) fn scan(root: OwnedFd) -> Result<Manifest, StageError> {
    let mut entries = Vec::new();
    scan_dir(root, &ImagePath::default(), &mut entries, MAX_DEPTH + 1)?;
    Ok(Manifest::new(entries)?)
}

fn scan_dir(
    dir: OwnedFd,
    path: &ImagePath,
    entries: &mut Vec<Entry>,
    depth: usize,
) -> Result<(), StageError> {
    if depth == 0 {
        return Err(at("scan", path)(Errno::NAMETOOLONG));
    }
    let listed = dir.try_clone().map_err(|source| StageError::Io {
        doing: "list",
        path: path.clone(),
        source,
    })?;
    for name in read_names(listed).map_err(at("list", path))? {
        let child = path.join(&name)?;
        let io = at("scan", &child);
        let stat = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(&io)?;
        let mode = stat.st_mode & 0o7777;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let fd = openat(&dir, &name, DIRECTORY, Mode::empty()).map_err(&io)?;
                entries.push(Entry {
                    path: child.clone(),
                    kind: Kind::Dir { mode },
                });
                scan_dir(fd, &child, entries, depth - 1)?;
                continue;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = File::from(openat(&dir, &name, flags, Mode::empty()).map_err(&io)?);
                let mut hasher = blake3::Hasher::new();
                hasher
                    .update_reader(&file)
                    .map_err(|source| StageError::Io {
                        doing: "read",
                        path: child.clone(),
                        source,
                    })?;
                Kind::File {
                    mode,
                    size: hasher.count(),
                    hash: hasher.finalize().into(),
                }
            }
            FileType::Symlink => Kind::Symlink {
                target: readlinkat(&dir, &name, Vec::new())
                    .map_err(&io)?
                    .into_bytes(),
            },
            _ => return Err(io(Errno::INVAL)),
        };
        entries.push(Entry { path: child, kind });
    }
    Ok(())
}

fn read_names(dir: OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir.as_fd())? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

fn at(doing: &'static str, path: &ImagePath) -> impl Fn(Errno) -> StageError + use<> {
    let path = path.clone();
    move |errno| StageError::Io {
        doing,
        path: path.clone(),
        source: errno.into(),
    }
}
