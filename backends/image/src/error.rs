//! Why an image was not built, imported, found or verified: one type for each operation.

use std::{io, path::PathBuf};

use souk_backend::ImageHash;

use crate::{
    manifest::ManifestError,
    path::{ImagePath, PathError},
};

/// Why a file could not be put into an image under construction. Whose fault it is depends on where the file came from.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// A path that cannot stand in an image.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A path that leads out of the image through a link.
    #[error("{path} leads out of the image through a link")]
    Escape {
        /// The path.
        path: ImagePath,
    },
    /// A hard link to something that is not a regular file of the image.
    #[error("{path} is a hard link to {target}, which is not a file of the image")]
    HardLink {
        /// The link.
        path: ImagePath,
        /// What it names.
        target: String,
    },
    /// A symbolic link without a target, or with one that is too long or holds a NUL byte.
    #[error("{path} is a link with an impossible target")]
    Target {
        /// The link.
        path: ImagePath,
    },
    /// More than the limits allow.
    #[error("{what}: more than {max}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        max: u64,
    },
    /// The staged files are not a valid manifest.
    #[error("not an image")]
    Manifest(#[from] ManifestError),
    /// The content could not be read, or the file not be written.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where in the image.
        path: ImagePath,
        /// What the system said.
        source: io::Error,
    },
}

/// Why an archive did not become an image. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be read: missing, cut short, damaged, of another format.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: io::Error,
    },
    /// The archive holds what an image cannot hold.
    #[error("the archive is refused")]
    Content(#[from] StageError),
    /// The OCI layout is not as its specification says.
    #[error("OCI layout: {reason}")]
    Oci {
        /// What is wrong.
        reason: String,
    },
    /// The store could not keep it.
    #[error("cannot store the image")]
    Store(#[from] StoreError),
}

/// Why no image could be built from this machine.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// There is no shell, and an image without one is of no use.
    #[error("found no shell (bash, dash or busybox) in /usr/bin or /bin")]
    NoShell,
    /// A program that was asked for is not there.
    #[error("found no program {name:?} in /usr/bin, /bin, /usr/sbin or /sbin")]
    Program {
        /// Its name.
        name: String,
    },
    /// A program needs a library that the loader would not find either.
    #[error("{} needs {library}, which is in none of the loader's directories", program.display())]
    Library {
        /// Who needs it.
        program: PathBuf,
        /// Its soname.
        library: String,
    },
    /// A file of this machine is not what its place says.
    #[error("{} is not a program or library of this machine", path.display())]
    Elf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: goblin::error::Error,
    },
    /// A file of this machine cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be put into the image.
    #[error("cannot put together the image")]
    Stage(#[from] StageError),
    /// The store could not keep it.
    #[error("cannot store the image")]
    Store(#[from] StoreError),
}

/// Why the store of images cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such image.
    #[error("image {image} is not in the store")]
    Missing {
        /// The image.
        image: ImageHash,
    },
    /// The manifest on the disk is damaged, or it or the root directory is gone.
    #[error("image {image} is damaged: its manifest or its root is not what was written")]
    Damaged {
        /// The image.
        image: ImageHash,
    },
    /// The image that was made is in the store already, and damaged there.
    #[error("image {image} is in the store already, and damaged there")]
    Occupied {
        /// The image.
        image: ImageHash,
        /// What is wrong with the one that is there.
        source: Box<VerifyError>,
    },
    /// The file system said no.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why an image on the disk is not what its name says.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be looked at.
    #[error("cannot verify the image")]
    Store(#[from] StoreError),
    /// Something in it cannot be read, or cannot be part of any image.
    #[error("the files of the image are damaged")]
    Content(#[from] StageError),
    /// A path is missing, was added, or differs.
    #[error("{path} is not as the manifest of image {image} says")]
    Differs {
        /// The image.
        image: ImageHash,
        /// The first path that differs.
        path: ImagePath,
    },
}
