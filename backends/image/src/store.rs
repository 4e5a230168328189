//! The store: one directory for each image, named by its hash.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, open, renameat, syncfs};
use souk_backend::ImageHash;

use crate::{
    build::{self, BuildOptions},
    error::{BuildError, ImportError, StoreError, VerifyError},
    manifest::{Entry, Manifest},
    oci,
    path::ImagePath,
    staging::{self, Limits, ROOTFS, Staging},
    tarball,
};

const IMAGES: &str = "images";
const MANIFEST: &str = "manifest";
const LOCK: &str = ".lock";
/// Names of directories that are not images yet, or no longer.
const TEMPORARY: &str = ".tmp-";

/// Images on this machine, below `<data>/images`.
///
/// Several processes may use one store: images appear whole or not at all.
#[derive(Clone, Debug)]
pub struct Store {
    images: PathBuf,
    limits: Limits,
}

impl Store {
    /// Opens the store in `data`, makes it where there is none, and removes what a crash left unfinished.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(data: &Path) -> Result<Self, StoreError> {
        let store = Self {
            images: data.join(IMAGES),
            limits: Limits::default(),
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&store.images)
            .map_err(|e| failed("create", &store.images, e))?;
        store.sweep()?;
        Ok(store)
    }

    /// The same store with other limits for what is built and imported from now on.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Makes an image from the programs of this machine, without any download.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left behind.
    pub fn build(&self, options: &BuildOptions) -> Result<ImageHash, BuildError> {
        let (_lock, mut staging) = self.stage()?;
        build::stage(&mut staging, options)?;
        let manifest = staging.manifest()?;
        Ok(self.publish(staging, &manifest)?)
    }

    /// Imports a root file system from a tar file, plain or gzipped.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is left behind.
    pub fn import_tar(&self, archive: &Path) -> Result<ImageHash, ImportError> {
        let (_lock, mut staging) = self.stage()?;
        tarball::stage_file(&mut staging, archive)?;
        let manifest = staging.manifest()?;
        Ok(self.publish(staging, &manifest)?)
    }

    /// Imports the image for this machine's architecture from an OCI image layout directory.
    ///
    /// # Errors
    /// [`ImportError`]; nothing is left behind.
    pub fn import_oci_layout(&self, layout: &Path) -> Result<ImageHash, ImportError> {
        let (_lock, mut staging) = self.stage()?;
        oci::stage_layout(&mut staging, layout)?;
        let manifest = staging.manifest()?;
        Ok(self.publish(staging, &manifest)?)
    }

    /// Every image, sorted by hash.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn list(&self) -> Result<Vec<ImageHash>, StoreError> {
        let on_error = |e| failed("list", &self.images, e);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.images).map_err(on_error)? {
            let name = entry.map_err(on_error)?.file_name();
            found.extend(
                name.to_str()
                    .and_then(|name| name.parse::<ImageHash>().ok()),
            );
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The root directory of an image. It is shared by all leases and must only be mounted read-only.
    ///
    /// # Errors
    /// [`StoreError::Missing`].
    pub fn path(&self, image: ImageHash) -> Result<PathBuf, StoreError> {
        let rootfs = self.folder(image).join(ROOTFS);
        if rootfs.is_dir() {
            Ok(rootfs)
        } else {
            Err(StoreError::Missing { image })
        }
    }

    /// The manifest of an image.
    ///
    /// # Errors
    /// [`StoreError::Missing`]; [`StoreError::Damaged`] where the file is gone or not what the hash says.
    pub fn manifest(&self, image: ImageHash) -> Result<Manifest, StoreError> {
        let folder = self.folder(image);
        let path = folder.join(MANIFEST);
        let text = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound if folder.exists() => StoreError::Damaged { image },
            io::ErrorKind::NotFound => StoreError::Missing { image },
            _ => failed("read", &path, e),
        })?;
        let text = String::from_utf8(text).map_err(|_| StoreError::Damaged { image })?;
        let manifest = Manifest::from_text(&text).map_err(|_| StoreError::Damaged { image })?;
        if manifest.hash() == image {
            Ok(manifest)
        } else {
            Err(StoreError::Damaged { image })
        }
    }

    /// Reads every file of an image and compares it with the manifest.
    ///
    /// # Errors
    /// [`VerifyError::Differs`] names the first path that is missing, was added, or changed.
    pub fn verify(&self, image: ImageHash) -> Result<(), VerifyError> {
        let expected = self.manifest(image)?;
        let rootfs = self
            .path(image)
            .map_err(|_| StoreError::Damaged { image })?;
        let found = staging::scan(Self::open_dir(&rootfs)?)?;
        match first_difference(expected.entries(), found.entries()) {
            None => Ok(()),
            Some(path) => Err(VerifyError::Differs {
                image,
                path: path.clone(),
            }),
        }
    }

    /// Removes an image, damaged or not. Leases that run on it must have ended.
    ///
    /// # Errors
    /// [`StoreError::Missing`], or [`StoreError::Io`].
    pub fn remove(&self, image: ImageHash) -> Result<(), StoreError> {
        let _lock = self.lock()?;
        let folder = self.folder(image);
        let doomed = self.images.join(format!("{TEMPORARY}{image}"));
        fs::rename(&folder, &doomed).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { image },
            _ => failed("remove", &folder, e),
        })?;
        fs::remove_dir_all(&doomed).map_err(|e| failed("remove", &doomed, e))
    }

    fn stage(&self) -> Result<(File, Staging), StoreError> {
        let lock = self.lock()?;
        let staging = Staging::new(&self.images, TEMPORARY, self.limits)
            .map_err(|e| failed("create a directory in", &self.images, e))?;
        Ok((lock, staging))
    }

    /// Writes the manifest, brings everything to the disk, and gives the image its name. One that is there already is
    /// looked at and never replaced: leases may run on it.
    fn publish(&self, staging: Staging, manifest: &Manifest) -> Result<ImageHash, StoreError> {
        let image = manifest.hash();
        let temporary = staging.into_folder();
        let path = temporary.path().join(MANIFEST);
        fs::write(&path, manifest.to_text()).map_err(|e| failed("write", &path, e))?;
        let folder = self.folder(image);
        if folder.exists() {
            return match self.verify(image) {
                Ok(()) => Ok(image),
                Err(damage) => Err(StoreError::Occupied {
                    image,
                    source: Box::new(damage),
                }),
            };
        }
        let images = Self::open_dir(&self.images)?;
        syncfs(&images).map_err(|e| failed("sync", &self.images, e.into()))?;
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755))
            .map_err(|e| failed("open up", temporary.path(), e))?;
        renameat(CWD, temporary.path(), CWD, &folder)
            .map_err(|e| failed("name", &folder, e.into()))?;
        // It has its name now; there is nothing left to clean up.
        let _ = temporary.keep();
        File::from(images)
            .sync_all()
            .map_err(|e| failed("sync", &self.images, e))?;
        Ok(image)
    }

    /// Removes unfinished images, unless somebody is at work on one.
    fn sweep(&self) -> Result<(), StoreError> {
        let lock = self.open_lock()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(()),
            Err(TryLockError::Error(e)) => return Err(failed("lock", &self.images, e)),
        }
        let on_error = |e| failed("clean up", &self.images, e);
        for entry in fs::read_dir(&self.images).map_err(on_error)? {
            let entry = entry.map_err(on_error)?;
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(TEMPORARY.as_bytes())
            {
                fs::remove_dir_all(entry.path()).map_err(|e| failed("remove", &entry.path(), e))?;
            }
        }
        Ok(())
    }

    /// Waits until nobody else changes the store; the lock goes with the file.
    fn lock(&self) -> Result<File, StoreError> {
        let lock = self.open_lock()?;
        lock.lock().map_err(|e| failed("lock", &self.images, e))?;
        Ok(lock)
    }

    fn open_lock(&self) -> Result<File, StoreError> {
        let path = self.images.join(LOCK);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        file.map_err(|e| failed("open", &path, e))
    }

    fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        open(path, flags, Mode::empty()).map_err(|e| failed("open", path, e.into()))
    }

    fn folder(&self, image: ImageHash) -> PathBuf {
        self.images.join(image.to_string())
    }
}

fn failed(doing: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.into(),
        source,
    }
}

fn first_difference<'e>(expected: &'e [Entry], found: &'e [Entry]) -> Option<&'e ImagePath> {
    let at = expected.iter().zip(found).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| expected.len().min(found.len()));
    match (expected.get(at), found.get(at)) {
        (Some(a), Some(b)) => Some((&a.path).min(&b.path)),
        (one, other) => one.or(other).map(|entry| &entry.path),
    }
}
