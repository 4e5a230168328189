//! The manifest: one line of text for each path, in bytewise order.
//!
//! ```text
//! souk image manifest v1
//! d 755 usr
//! f 755 1234 <blake3> usr/bin/env
//! l usr/bin bin
//! ```
//!
//! Bytes of a path that are not printable ASCII, and `%`, are written as `%xx`. The text is its own canonical form: a
//! manifest that would be written otherwise is refused.

use std::{fmt::Write as _, str};

use souk_backend::ImageHash;

use crate::path::{ImagePath, MAX_PATH_BYTES, PathError};

const HEADER: &str = "souk image manifest v1";

/// Permission bits that an image may carry; setuid and setgid are not among them.
pub(crate) const MODE_BITS: u32 = 0o1777;

/// What lies at one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: ImagePath,
    /// What.
    pub kind: Kind,
}

/// The kinds of file that an image may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir {
        /// Permission bits; the owner's are always all set.
        mode: u32,
    },
    /// A regular file.
    File {
        /// Permission bits; the owner can always read.
        mode: u32,
        /// Size in bytes.
        size: u64,
        /// BLAKE3 of the content.
        hash: [u8; 32],
    },
    /// A symbolic link.
    Symlink {
        /// Where it points; data only, nothing follows it.
        target: Vec<u8>,
    },
}

/// All paths of an image, in order, each with its parent before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest(Vec<Entry>);

impl Manifest {
    /// A manifest of these entries, in any order.
    ///
    /// # Errors
    /// [`ManifestError`] where a path stands twice, has no parent directory, or carries a mode or target that is not
    /// allowed.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, ManifestError> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Self::check(&entries)?;
        Ok(Self(entries))
    }

    /// The entries in order.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Sum of the sizes of all files, in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        let size = |entry: &Entry| match entry.kind {
            Kind::File { size, .. } => size,
            Kind::Dir { .. } | Kind::Symlink { .. } => 0,
        };
        self.0.iter().map(size).fold(0, u64::saturating_add)
    }

    /// The name of the image: BLAKE3 of the manifest's text.
    #[must_use]
    pub fn hash(&self) -> ImageHash {
        ImageHash(blake3::hash(self.to_text().as_bytes()).into())
    }

    /// The canonical text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\n");
        for Entry { path, kind } in &self.0 {
            let path = escape(path.as_bytes());
            let written = match kind {
                Kind::Dir { mode } => writeln!(text, "d {mode:o} {path}"),
                Kind::File { mode, size, hash } => {
                    writeln!(text, "f {mode:o} {size} {} {path}", hex::encode(hash))
                }
                Kind::Symlink { target } => writeln!(text, "l {} {path}", escape(target)),
            };
            written.expect("writing to a String cannot fail");
        }
        text
    }

    /// Reads a canonical text.
    ///
    /// # Errors
    /// [`ManifestError`] for anything that [`Manifest::to_text`] would not have written.
    pub fn from_text(text: &str) -> Result<Self, ManifestError> {
        let body = text.strip_prefix(HEADER).and_then(|t| t.strip_prefix('\n'));
        let lines = body
            .ok_or(ManifestError::Line { line: 1 })?
            .lines()
            .enumerate();
        let entries: Result<_, _> = lines
            .map(|(i, line)| parse_line(line).ok_or(ManifestError::Line { line: i + 2 }))
            .collect();
        let manifest = Self(entries?);
        Self::check(&manifest.0)?;
        if manifest.to_text() == text {
            Ok(manifest)
        } else {
            Err(ManifestError::NotCanonical)
        }
    }

    fn check(entries: &[Entry]) -> Result<(), ManifestError> {
        let is_dir = |path: &ImagePath| {
            let found = entries.binary_search_by(|e| e.path.cmp(path));
            found.is_ok_and(|at| matches!(entries[at].kind, Kind::Dir { .. }))
        };
        if !entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(ManifestError::Order);
        }
        for Entry { path, kind } in entries {
            let error = |reason| ManifestError::Entry {
                path: path.clone(),
                reason,
            };
            let (parent, _) = path.split().ok_or_else(|| error("the root is implied"))?;
            if !parent.is_root() && !is_dir(&parent) {
                return Err(error("its parent is not a directory"));
            }
            match kind {
                Kind::Dir { mode } if mode & !MODE_BITS != 0 || mode & 0o700 != 0o700 => {
                    return Err(error("mode of a directory"));
                }
                Kind::File { mode, .. } if mode & !MODE_BITS != 0 || mode & 0o400 == 0 => {
                    return Err(error("mode of a file"));
                }
                Kind::Symlink { target } if !is_target(target) => {
                    return Err(error("target of a link"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether a symbolic link may hold these bytes.
pub(crate) fn is_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= MAX_PATH_BYTES && !target.contains(&0)
}

/// Why a text or a list of entries is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A line of another form.
    #[error("line {line} is not of a souk image manifest v1")]
    Line {
        /// Its number, from one.
        line: usize,
    },
    /// Paths out of order or repeated.
    #[error("paths are out of order or repeated")]
    Order,
    /// An entry that an image cannot hold.
    #[error("{path}: {reason}")]
    Entry {
        /// Its path.
        path: ImagePath,
        /// What is wrong.
        reason: &'static str,
    },
    /// The same content written in another form.
    #[error("not in canonical form")]
    NotCanonical,
    /// A path that cannot stand in an image.
    #[error(transparent)]
    Path(#[from] PathError),
}

fn parse_line(line: &str) -> Option<Entry> {
    let (kind, rest) = line.split_once(' ')?;
    let mode = |text| u32::from_str_radix(text, 8).ok();
    let (kind, path) = match kind {
        "d" => {
            let (m, path) = rest.split_once(' ')?;
            (Kind::Dir { mode: mode(m)? }, path)
        }
        "f" => {
            let mut parts = rest.splitn(4, ' ');
            let (m, size) = (mode(parts.next()?)?, parts.next()?.parse().ok()?);
            let mut hash = [0; 32];
            hex::decode_to_slice(parts.next()?, &mut hash).ok()?;
            (
                Kind::File {
                    mode: m,
                    size,
                    hash,
                },
                parts.next()?,
            )
        }
        "l" => {
            let (target, path) = rest.split_once(' ')?;
            let target = unescape(target)?;
            (Kind::Symlink { target }, path)
        }
        _ => return None,
    };
    let path = ImagePath::new(unescape(path)?).ok()?;
    Some(Entry { path, kind })
}

fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for b in bytes {
        match b {
            b'!'..=b'~' if *b != b'%' => out.push(char::from(*b)),
            _ => write!(out, "%{b:02x}").expect("writing to a String cannot fail"),
        }
    }
    out
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        let path = ImagePath::new(path).expect("valid path");
        Entry { path, kind }
    }

    fn sample() -> Manifest {
        let file = Kind::File {
            mode: 0o755,
            size: 3,
            hash: [7; 32],
        };
        let link = Kind::Symlink {
            target: b"usr/bin".to_vec(),
        };
        Manifest::new(vec![
            entry("usr/bin/a b", file.clone()),
            entry("bin", link),
            entry("usr", Kind::Dir { mode: 0o755 }),
            entry("usr/bin", Kind::Dir { mode: 0o755 }),
        ])
        .expect("valid")
    }

    #[test]
    fn a_manifest_reads_back_as_written_and_its_hash_never_changes() {
        let manifest = sample();
        let text = manifest.to_text();
        assert_eq!(Manifest::from_text(&text).expect("reads back"), manifest);
        assert_eq!(
            text,
            format!(
                "souk image manifest v1\nl usr/bin bin\nd 755 usr\nd 755 usr/bin\nf 755 3 {} usr/bin/a%20b\n",
                "07".repeat(32)
            )
        );
        assert_eq!(
            manifest.hash().to_string(),
            blake3::hash(text.as_bytes()).to_hex().as_str()
        );
    }

    #[test]
    fn what_an_image_cannot_hold_is_refused() {
        let dir = |mode| Kind::Dir { mode };
        let link = |target: &[u8]| Kind::Symlink {
            target: target.to_vec(),
        };
        for bad in [
            vec![entry("a/b", dir(0o755))],
            vec![entry("a", link(b"b")), entry("a/b", dir(0o755))],
            vec![entry("a", dir(0o755)), entry("a", dir(0o755))],
            vec![entry("a", dir(0o4755))],
            vec![entry("a", dir(0o655))],
            vec![entry("a", link(b""))],
            vec![entry("", dir(0o755))],
        ] {
            assert!(Manifest::new(bad.clone()).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_second_form_of_the_same_manifest_is_refused() {
        let text = sample().to_text();
        for (from, to) in [
            ("%20", "%2"),
            ("d 755", "d 0755"),
            ("usr/bin/a", "usr//bin/a"),
            ("a%20b", "%61%20b"),
        ] {
            let other = text.replace(from, to);
            assert!(Manifest::from_text(&other).is_err(), "{other}");
        }
        assert!(Manifest::from_text(text.trim_end()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_survive_the_escape(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(unescape(&escape(&bytes)), Some(bytes));
        }

        #[test]
        fn text_that_reads_is_text_that_was_written(text in ".{0,200}") {
            let text = format!("{HEADER}\n{text}");
            if let Ok(manifest) = Manifest::from_text(&text) {
                prop_assert_eq!(manifest.to_text(), text);
            }
        }
    }
}
