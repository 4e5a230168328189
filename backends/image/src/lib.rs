//! Root file systems by content: built from this machine, or imported, and always named by their BLAKE3 hash.
//!
//! ```text
//!  programs of this machine ─ build ──────┐
//!  tar, tar.gz              ─ import_tar ─┼─► staging ─► manifest ─► fsync ─► rename ─► images/<hash>/{manifest,rootfs}
//!  OCI layout               ─ import_oci ─┘      │
//!                                                └─ any error: removed, nothing left behind
//! ```
//!
//! An image is its [`Manifest`]: sorted paths with type, mode, size and content hash. Owners are squashed to the user who
//! runs the node; setuid, setgid, devices, sockets and extended attributes are dropped. The hash of the manifest is the
//! [`ImageHash`](souk_backend::ImageHash) that a lease asks for. No step needs root.
//!
//! Threats: an archive that writes outside of its root (`..`, absolute names, links), that grows without bound, or that
//! fills memory with a header; a file of the host (a user, a key, a configuration) that slips into an image; an image that
//! changed on the disk after it was named ([`Store::verify`]).

mod build;
mod elf;
mod error;
mod manifest;
mod oci;
mod path;
mod skeleton;
mod staging;
mod store;
mod tarball;

pub use build::BuildOptions;
pub use error::{BuildError, ImportError, StageError, StoreError, VerifyError};
pub use manifest::{Entry, Kind, Manifest, ManifestError};
pub use path::{ImagePath, MAX_PATH_BYTES, PathError};
pub use staging::Limits;
pub use store::Store;
