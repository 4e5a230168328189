//! Names of files in an image.
//!
//! Threat: an archive that names what lies outside of its root (`..`, absolute names), or nests so deeply that reading it runs out
//! of descriptors.

use std::{ffi::OsStr, fmt, os::unix::ffi::OsStrExt as _, path::Path};

/// Longest path inside an image, in bytes; a quarter of Linux's PATH_MAX, so that a host prefix always fits.
pub const MAX_PATH_BYTES: usize = 1_024;

/// Deepest nesting of directories; each level costs a descriptor while an image is read.
pub(crate) const MAX_DEPTH: usize = 128;

/// Longest name of one component, in bytes (NAME_MAX).
const MAX_NAME_BYTES: usize = 255;

/// A path below the root of an image: relative, without `.`, `..` or empty components. The root itself is empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ImagePath(Vec<u8>);

impl ImagePath {
    /// Takes a path in the form in which archives write it: a leading `./` and a trailing `/` are dropped.
    ///
    /// # Errors
    /// [`PathError`] for an absolute path, one with `..`, a NUL byte, or a length above the limits.
    pub fn new(path: impl AsRef<[u8]>) -> Result<Self, PathError> {
        let path = path.as_ref();
        let error = |reason| PathError {
            path: String::from_utf8_lossy(&path[..path.len().min(MAX_PATH_BYTES)]).into_owned(),
            reason,
        };
        if path.starts_with(b"/") {
            return Err(error("is absolute"));
        }
        if path.contains(&0) {
            return Err(error("holds a NUL byte"));
        }
        let mut clean = Vec::new();
        let mut depth = 0;
        for name in path.split(|b| *b == b'/') {
            match name {
                b"" | b"." => continue,
                b".." => return Err(error("holds `..`")),
                _ if name.len() > MAX_NAME_BYTES => {
                    return Err(error("has a name above 255 bytes"));
                }
                _ => {}
            }
            depth += 1;
            if depth > MAX_DEPTH || clean.len() + name.len() >= MAX_PATH_BYTES {
                return Err(error("is longer than 1024 bytes or 128 names"));
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(name);
        }
        Ok(Self(clean))
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its bytes, without a leading slash.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative path of the system.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The directory it is in and its name there; the root has neither.
    #[must_use]
    pub fn split(&self) -> Option<(Self, &OsStr)> {
        let name_at = self
            .0
            .iter()
            .rposition(|b| *b == b'/')
            .map_or(0, |slash| slash + 1);
        let parent = &self.0[..name_at.saturating_sub(1)];
        (!self.is_root()).then(|| (Self(parent.to_vec()), OsStr::from_bytes(&self.0[name_at..])))
    }

    /// Every directory above it, from the root's children down, without the path itself.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        let slashes = self.0.iter().enumerate().filter(|(_, b)| **b == b'/');
        slashes.map(|(at, _)| Self(self.0[..at].to_vec()))
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// As [`ImagePath::new`].
    pub fn join(&self, name: &OsStr) -> Result<Self, PathError> {
        if self.is_root() {
            return Self::new(name.as_bytes());
        }
        Self::new([&self.0, b"/".as_slice(), name.as_bytes()].concat())
    }
}

impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A path that cannot stand in an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} {reason}")]
pub struct PathError {
    /// The path, as text.
    pub path: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_forms_of_one_path_are_one_path() {
        let path = ImagePath::new("usr/bin/env").expect("plain");
        for form in ["./usr/bin/env", "usr//bin/env", "usr/./bin/env/"] {
            assert_eq!(ImagePath::new(form).expect(form), path);
        }
        assert!(ImagePath::new("./").expect("root").is_root());
    }

    #[test]
    fn paths_that_leave_the_root_are_refused() {
        let long_name = "n".repeat(256);
        let long_path = format!("{}/", "n".repeat(250)).repeat(5);
        let deep_path = "d/".repeat(129);
        for bad in [
            "/etc/passwd",
            "..",
            "a/../../b",
            "a/..",
            "a\0b",
            &long_name,
            &long_path,
            &deep_path,
        ] {
            assert!(ImagePath::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_path_splits_into_parent_and_name_and_joins_again() {
        let path = ImagePath::new("usr/bin/env").expect("plain");
        let (parent, name) = path.split().expect("not the root");
        assert_eq!(parent, ImagePath::new("usr/bin").expect("plain"));
        assert_eq!(parent.join(name).expect("valid"), path);
        let above: Vec<_> = path.ancestors().map(|p| p.to_string()).collect();
        assert_eq!(above, ["/usr", "/usr/bin"]);
        assert!(ImagePath::default().split().is_none());
    }
}
