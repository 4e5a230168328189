//! Usage logs in bulk: `/souk/<network>/log/1`.
//!
//! ```text
//!  reader ──► path ◄── status, bytes      (as often as the reader likes, over one stream)
//! ```
//!
//! Paths are those of C2SP tlog-tiles and nothing else: they are parsed into a [`LogPath`] before anybody sees them, so no
//! path of a stranger ever reaches a file system. Whoever verifies a log takes all of it: asking for the one entry of a
//! lease would tell which lease it was.

use std::{fmt, str::FromStr, sync::Arc, time::Instant};

use bytes::Bytes;
use souk_crypto::NodeId;
use tokio::{
    io::AsyncWriteExt as _,
    sync::Semaphore,
    time::{Duration, sleep},
};

use super::{
    conduct::Offence,
    frame::{self, FrameError},
    names::What,
    peers::Peers,
    rate::TokenBucket,
    streams::{Acceptor, OpenError, PeerStream},
};

/// Largest file of a log: a full bundle of 256 entries of 254 bytes and their lengths.
pub const MAX_LOG_FILE_BYTES: usize = 64 * 1024;

/// Longest path, in bytes: eight levels of a 64-bit index with the width of a partial tile.
const PATH_CAP: usize = 64;

/// How long a reader may rest between two files.
const IDLE: Duration = Duration::from_secs(30);

/// How long a reader waits for a file.
const PATIENCE: Duration = Duration::from_secs(15);

/// Readers served at the same time; each holds one file.
const MAX_READERS: usize = 32;

/// Files of one reader; a faster one is slowed down to it. A log of a million entries has 7,800 files.
const FILES_PER_SECOND: f64 = 200.0;
const FILES_BURST: f64 = 400.0;

const FOUND: u8 = 0;
const NOT_FOUND: u8 = 1;
const BUSY: u8 = 2;

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

/// Where a served log comes from.
pub trait LogSource: Send + Sync + 'static {
    /// The file of a path, or `None` where the log has none. Called on a thread that may block.
    fn file(&self, path: &LogPath) -> Option<Bytes>;
}

/// Why a file of a log did not come.
#[derive(Debug, thiserror::Error)]
pub enum LogFetchError {
    /// The stream could not be opened: the node serves no log, most often.
    #[error("no stream to the log")]
    Open(#[from] OpenError),
    /// The node broke the protocol, or the stream broke.
    #[error("the log broke off")]
    Frame(#[from] FrameError),
    /// The node serves too many readers.
    #[error("the node is busy; ask again later")]
    Busy,
}

/// A stream over which the files of one log are read.
#[derive(Debug)]
pub struct LogReader {
    stream: PeerStream,
}

impl Peers {
    /// Opens the log of a connected node.
    ///
    /// # Errors
    /// [`LogFetchError::Open`].
    pub async fn open_log(&self, node: NodeId) -> Result<LogReader, LogFetchError> {
        let stream = self.open(node, What::Log).await?;
        Ok(LogReader { stream })
    }
}

impl LogReader {
    /// Reads one file; `None` where the log has none.
    ///
    /// # Errors
    /// [`LogFetchError`].
    pub async fn file(&mut self, path: &LogPath) -> Result<Option<Bytes>, LogFetchError> {
        frame::write(&mut self.stream, path.to_string().as_bytes()).await?;
        let answer = frame::read(&mut self.stream, 1 + MAX_LOG_FILE_BYTES, PATIENCE).await?;
        match answer.split_first() {
            Some((&FOUND, _)) => Ok(Some(Bytes::from(answer).slice(1..))),
            Some((&NOT_FOUND, [])) => Ok(None),
            Some((&BUSY, [])) => Err(LogFetchError::Busy),
            _ => Err(FrameError::Malformed.into()),
        }
    }
}

/// Answers all readers.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, source: Arc<dyn LogSource>) {
    let slots = Arc::new(Semaphore::new(MAX_READERS));
    while let Some(mut stream) = streams.recv().await {
        let (peers, source) = (peers.clone(), source.clone());
        let slot = slots.clone().try_acquire_owned();
        // Bounded by the slots; who gets none is told so and is done with.
        tokio::spawn(async move {
            let offence = match slot {
                Ok(_slot) => answer_all(&mut stream, source).await,
                Err(_) => {
                    let _ = frame::write(&mut stream, &[BUSY]).await;
                    let _ = stream.shutdown().await;
                    None
                }
            };
            if let Some(offence) = offence {
                peers.report(stream.peer(), offence).await;
            }
        });
    }
}

async fn answer_all(stream: &mut PeerStream, source: Arc<dyn LogSource>) -> Option<Offence> {
    let mut rate = TokenBucket::new(FILES_PER_SECOND, FILES_BURST, Instant::now());
    loop {
        let path = match frame::read(stream, PATH_CAP, IDLE).await {
            Ok(path) => path,
            Err(error) => return error.offence(),
        };
        let path = std::str::from_utf8(&path)
            .ok()
            .and_then(|path| path.parse::<LogPath>().ok());
        let Some(path) = path else {
            return Some(Offence::Framing);
        };
        sleep(rate.take(Instant::now())).await;
        let source = source.clone();
        let file = tokio::task::spawn_blocking(move || source.file(&path))
            .await
            .ok()
            .flatten()
            .filter(|file| file.len() <= MAX_LOG_FILE_BYTES);
        let mut answer = Vec::with_capacity(1 + file.as_ref().map_or(0, Bytes::len));
        match file {
            Some(file) => {
                answer.push(FOUND);
                answer.extend_from_slice(&file);
            }
            None => answer.push(NOT_FOUND),
        }
        // Not reading is no offence: such a reader holds one file here, and no longer than the deadline.
        frame::write(stream, &answer).await.ok()?;
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
