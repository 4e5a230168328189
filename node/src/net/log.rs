//! Usage logs in bulk: `/souk/<network>/log/1`.
//!
//! ```text
//!  reader ──► path ◄── status, bytes      (as often as the reader likes, over one stream)
//! ```
//!
//! Paths are those of C2SP tlog-tiles and nothing else: they are parsed into a [`LogPath`] before anybody sees them, so no
//! path of a stranger ever reaches a file system. Whoever verifies a log takes all of it: asking for the one entry of a
//! lease would tell which lease it was.

use std::{io, sync::Arc, time::Instant};

use bytes::Bytes;
use souk_crypto::NodeId;
use souk_wire::log::{Answer, PATH_CAP, decode_answer, decode_path, encode_answer};
pub use souk_wire::log::{LogPath, LogPathError, MAX_LOG_FILE_BYTES};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::{Duration, sleep, timeout},
};

use super::{
    conduct::Offence,
    frame::{self, FrameError},
    names::What,
    peers::Peers,
    rate::TokenBucket,
    slots::{Slot, Slots},
    streams::{Acceptor, OpenError, PeerStream},
};

/// How long a reader may rest between two files.
const IDLE: Duration = Duration::from_secs(30);

/// How long a reader waits for a file.
const PATIENCE: Duration = Duration::from_secs(15);

/// Readers served at the same time; each holds one file.
const MAX_READERS: usize = 32;

/// Of those, the ones at one address: some nodes behind one router at once, and four addresses to take them all.
const MAX_READERS_OF_ORIGIN: usize = 8;

/// A reader is served for so long: a log of a million entries takes 40 s at the rate below.
const READER_DEADLINE: Duration = Duration::from_secs(600);

/// Files of one reader; a faster one is slowed down to it. A log of a million entries has 7,800 files.
const FILES_PER_SECOND: f64 = 200.0;
const FILES_BURST: f64 = 400.0;

/// Where a served log comes from.
pub trait LogSource: Send + Sync + 'static {
    /// The file of a path, or `None` where the log has none. Called on a thread that may block.
    ///
    /// # Errors
    /// Where it cannot be said: the stream breaks, and the reader asks again.
    fn file(&self, path: &LogPath) -> io::Result<Option<Bytes>>;
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
        match decode_answer(&answer).map_err(FrameError::from)? {
            Answer::Found(file) => Ok(Some(Bytes::copy_from_slice(file))),
            Answer::NotFound => Ok(None),
            Answer::Busy => Err(LogFetchError::Busy),
        }
    }
}

/// Answers all readers.
///
/// A place is taken with the first path: whoever opens a stream and is silent costs the others nothing.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, source: Arc<dyn LogSource>) {
    let slots = Slots::new(MAX_READERS, MAX_READERS_OF_ORIGIN);
    while let Some(mut stream) = streams.recv().await {
        let (peers, source, slots) = (peers.clone(), source.clone(), slots.clone());
        // Bounded by the connections and by the streams of each.
        tokio::spawn(async move {
            let origin = peers.origin_of(&stream.peer());
            let place = || slots.try_take(origin);
            let answered = timeout(READER_DEADLINE, answer_all(&mut stream, source, place)).await;
            if let Ok(Some(offence)) = answered {
                peers.report(stream.peer(), offence).await;
            }
        });
    }
}

async fn answer_all(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    source: Arc<dyn LogSource>,
    place: impl Fn() -> Option<Slot>,
) -> Option<Offence> {
    let mut rate = TokenBucket::new(FILES_PER_SECOND, FILES_BURST, Instant::now());
    let mut slot = None;
    loop {
        let path = match frame::read(stream, PATH_CAP, IDLE).await {
            Ok(path) => path,
            Err(error) => return error.offence(),
        };
        let Ok(path) = decode_path(&path) else {
            return Some(Offence::Framing);
        };
        slot = slot.or_else(&place);
        if slot.is_none() {
            // Who gets none is told so and is done with.
            let _ = frame::write(stream, &encode_answer(&Answer::Busy)).await;
            let _ = stream.shutdown().await;
            return None;
        }
        sleep(rate.take(Instant::now())).await;
        let source = source.clone();
        let file = tokio::task::spawn_blocking(move || source.file(&path))
            .await
            .ok()?;
        let file = file
            .inspect_err(|error| tracing::warn!(%error, "a file of the log cannot be read"))
            .ok()?
            .filter(|file| file.len() <= MAX_LOG_FILE_BYTES);
        let answer = file.as_deref().map_or(Answer::NotFound, Answer::Found);
        // Not reading is no offence: such a reader holds one file here, and no longer than the deadline.
        frame::write(stream, &encode_answer(&answer)).await.ok()?;
    }
}
