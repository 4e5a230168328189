//! `log`: the files of a usage log, by the paths of C2SP tlog-tiles.
//!
//! Threat: a path that leads elsewhere in somebody's file system. Paths are parsed into a [`LogPath`], which has one spelling, before
//! anybody sees them.

use std::{fmt, str::FromStr};

use crate::Malformed;

/// Largest file of a log: a full bundle of 256 entries of 254 bytes and their lengths.
pub const MAX_LOG_FILE_BYTES: usize = 64 * 1024;

/// Longest path, in bytes: eight levels of a 64-bit index with the width of a partial tile.
pub const PATH_CAP: usize = 64;

const FOUND: u8 = 0;
const NOT_FOUND: u8 = 1;
const BUSY: u8 = 2;

/// The path in the body of a frame.
///
/// # Errors
/// [`Malformed`]: anything but the one spelling of a path.
pub fn decode_path(body: &[u8]) -> Result<LogPath, Malformed> {
    let text = std::str::from_utf8(body).map_err(|_| Malformed)?;
    text.parse().map_err(|_| Malformed)
}

/// The answer to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'b> {
    /// The file; at most [`MAX_LOG_FILE_BYTES`].
    Found(&'b [u8]),
    /// The log has no such file.
    NotFound,
    /// A bound was reached.
    Busy,
}

/// An answer as it travels.
#[must_use]
pub fn encode_answer(answer: &Answer<'_>) -> Vec<u8> {
    match answer {
        Answer::Found(file) => [&[FOUND], *file].concat(),
        Answer::NotFound => vec![NOT_FOUND],
        Answer::Busy => vec![BUSY],
    }
}

/// Reads an answer.
///
/// # Errors
/// [`Malformed`].
pub fn decode_answer(body: &[u8]) -> Result<Answer<'_>, Malformed> {
    match body.split_first() {
        Some((&FOUND, file)) if file.len() <= MAX_LOG_FILE_BYTES => Ok(Answer::Found(file)),
        Some((&NOT_FOUND, [])) => Ok(Answer::NotFound),
        Some((&BUSY, [])) => Ok(Answer::Busy),
        _ => Err(Malformed),
    }
}

/// A path of C2SP tlog-tiles.
///
/// ```text
///  path  = "checkpoint" / "tile/" ( level / "entries" ) "/" index [ ".p/" width ]
///  level = 0 … 63, index = groups of three digits, all but the last with a leading "x", width = 1 … 255
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogPath {
    /// The latest signed checkpoint.
    Checkpoint,
    /// Hashes of one level of the tree.
    Tile {
        /// Level in units of 8 levels of the tree.
        level: u8,
        /// Index within the level.
        index: u64,
        /// Hashes in it; `None` for all 256.
        width: Option<u8>,
    },
    /// The entries below a tile of level 0.
    Entries {
        /// Index of the bundle.
        index: u64,
        /// Entries in it; `None` for all 256.
        width: Option<u8>,
    },
}

/// A text is not a path of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a path of C2SP tlog-tiles")]
pub struct LogPathError;

impl FromStr for LogPath {
    type Err = LogPathError;

    fn from_str(text: &str) -> Result<Self, LogPathError> {
        let path = if text == "checkpoint" {
            Self::Checkpoint
        } else {
            let rest = text.strip_prefix("tile/").ok_or(LogPathError)?;
            let (level, rest) = rest.split_once('/').ok_or(LogPathError)?;
            let (index, width) = match rest.split_once(".p/") {
                Some((index, width)) => {
                    let width = width.parse().ok().filter(|w| *w > 0);
                    (index, Some(width.ok_or(LogPathError)?))
                }
                None => (rest, None),
            };
            let index = parse_index(index)?;
            if level == "entries" {
                Self::Entries { index, width }
            } else {
                let level = level.parse().ok().filter(|level| *level < 64);
                let level = level.ok_or(LogPathError)?;
                Self::Tile {
                    level,
                    index,
                    width,
                }
            }
        };
        // The one spelling: no leading zeros, plus signs or needless groups.
        if path.to_string() == text {
            Ok(path)
        } else {
            Err(LogPathError)
        }
    }
}

fn parse_index(text: &str) -> Result<u64, LogPathError> {
    text.split('/').try_fold(0u64, |index, group| {
        let digits = group.strip_prefix('x').unwrap_or(group);
        let value: u64 = digits.parse().map_err(|_| LogPathError)?;
        if digits.len() != 3 {
            return Err(LogPathError);
        }
        index
            .checked_mul(1_000)
            .and_then(|index| index.checked_add(value))
            .ok_or(LogPathError)
    })
}

impl fmt::Display for LogPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, width) = match self {
            Self::Checkpoint => return f.write_str("checkpoint"),
            Self::Tile {
                level,
                index,
                width,
            } => {
                write!(f, "tile/{level}/")?;
                (*index, *width)
            }
            Self::Entries { index, width } => {
                f.write_str("tile/entries/")?;
                (*index, *width)
            }
        };
        let mut groups = vec![index % 1_000];
        let mut rest = index / 1_000;
        while rest > 0 {
            groups.push(rest % 1_000);
            rest /= 1_000;
        }
        for group in groups[1..].iter().rev() {
            write!(f, "x{group:03}/")?;
        }
        write!(f, "{:03}", groups[0])?;
        match width {
            Some(width) => write!(f, ".p/{width}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_paths_of_the_specification_are_read() {
        // C2SP tlog-tiles, section "Merkle Tree": 1234067 is x001/x234/067.
        let tile = |level, index, width| LogPath::Tile {
            level,
            index,
            width,
        };
        for (text, path) in [
            ("checkpoint", LogPath::Checkpoint),
            ("tile/0/000", tile(0, 0, None)),
            ("tile/0/x001/x234/067", tile(0, 1_234_067, None)),
            ("tile/1/005.p/112", tile(1, 5, Some(112))),
            (
                "tile/entries/x001/000.p/1",
                LogPath::Entries {
                    index: 1_000,
                    width: Some(1),
                },
            ),
        ] {
            assert_eq!(text.parse(), Ok(path), "{text}");
            assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn other_spellings_and_other_files_are_refused() {
        for text in [
            "",
            "/checkpoint",
            "checkpoint/",
            "tile/0/0",
            "tile/00/000",
            "tile/64/000",
            "tile/+1/000",
            "tile/0/x000/000",
            "tile/0/001/000",
            "tile/0/x001",
            "tile/0/000.p/0",
            "tile/0/000.p/256",
            "tile/0/000.p/01",
            "tile/0/../../../etc/passwd",
            "tile/entries/000/",
            "tile/0/x018/x446/x744/x073/x709/x551/616",
        ] {
            assert_eq!(text.parse::<LogPath>(), Err(LogPathError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_path_is_read_as_it_was_written(
            level in 0u8..64, index: u64, width in proptest::option::of(1u8..), entries: bool
        ) {
            let path = if entries {
                LogPath::Entries { index, width }
            } else {
                LogPath::Tile { level, index, width }
            };
            let text = path.to_string();
            prop_assert!(text.len() <= PATH_CAP);
            prop_assert_eq!(text.parse(), Ok(path));
        }

        #[test]
        fn what_is_read_has_one_spelling(text in "tile/[0-9x/.pentris]{0,30}") {
            if let Ok(path) = text.parse::<LogPath>() {
                prop_assert_eq!(path.to_string(), text);
            }
        }
    }
}
