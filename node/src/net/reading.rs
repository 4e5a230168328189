//! A whole usage log, over as many streams as it takes.
//!
//! ```text
//!  file ──► came ───────────────────────────────────────────► next file
//!   ▲        │ the stream broke
//!   └─ pause ◄── tries left, a new stream (and connection)
//!                none left ──► error
//! ```
//!
//! Files that came are not asked for again: whoever verifies a log takes them in order, and goes on with the one that did not come. A
//! reader is served for ten minutes at most, so that a very large log always takes several streams.
//!
//! Threat: a node that breaks off again and again. Tries without a file between them are bounded; what it may drag out is then the time
//! of a reader who sees how far the log has come.

use bytes::Bytes;
use libp2p::Multiaddr;
use souk_crypto::NodeId;
use tokio::time::{Duration, sleep};

use super::{
    backoff::Backoff,
    frame::FrameError,
    log::{LogFetchError, LogPath, LogReader},
    peers::{ConnectError, Peers},
    streams::OpenError,
};

/// Tries to go on, one after the other, before a log counts as cut off: together with the pauses they outlast a restart of the node.
pub const MAX_RESUMES: u32 = 6;

/// The pause before the first of them; each is twice as long as the one before.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause: a try that fails costs the node nothing.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Why a file did not come, however often it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    /// The node was not reached.
    #[error("the node was not reached")]
    Connect(#[from] ConnectError),
    /// It was reached.
    #[error("the log was not read")]
    Fetch(#[from] LogFetchError),
}

impl LogReadError {
    /// Whether the next try may go better.
    fn may_pass(&self) -> bool {
        let is_final = matches!(
            self,
            Self::Connect(ConnectError::NoAddress | ConnectError::WrongNode)
                | Self::Fetch(
                    LogFetchError::Open(OpenError::Unsupported { .. } | OpenError::Stopped)
                        | LogFetchError::Frame(FrameError::TooLong { .. } | FrameError::Malformed)
                )
        );
        !is_final
    }
}

/// A log that is being read.
#[derive(Debug)]
pub struct LogReading {
    peers: Peers,
    node: NodeId,
    addresses: Vec<Multiaddr>,
    /// None after it broke.
    reader: Option<LogReader>,
}

impl Peers {
    /// Connects to a node and opens its log.
    ///
    /// # Errors
    /// [`LogReadError`] at the first failure: nothing was read yet.
    pub async fn read_log(
        &self,
        node: NodeId,
        addresses: Vec<Multiaddr>,
    ) -> Result<LogReading, LogReadError> {
        let mut reading = LogReading {
            peers: self.clone(),
            node,
            addresses,
            reader: None,
        };
        reading.stream().await?;
        Ok(reading)
    }
}

impl LogReading {
    /// Reads one file; `None` where the log has none. `resumes` hears of each try to go on after a failure.
    ///
    /// # Errors
    /// [`LogReadError`] of the last of [`MAX_RESUMES`] tries, or the first that cannot pass.
    pub async fn file(
        &mut self,
        path: &LogPath,
        mut resumes: impl FnMut(u32),
    ) -> Result<Option<Bytes>, LogReadError> {
        let mut pauses = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
        let mut tries = 0;
        loop {
            let error = match self.try_file(path).await {
                Ok(file) => return Ok(file),
                Err(error) => error,
            };
            self.reader = None;
            if tries >= MAX_RESUMES || !error.may_pass() {
                return Err(error);
            }
            tries += 1;
            resumes(tries);
            let pause = pauses.pause(&mut rand::rng());
            sleep(pause).await;
        }
    }

    async fn try_file(&mut self, path: &LogPath) -> Result<Option<Bytes>, LogReadError> {
        Ok(self.stream().await?.file(path).await?)
    }

    /// The stream, opened anew where it broke.
    async fn stream(&mut self) -> Result<&mut LogReader, LogReadError> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                self.peers.connect(self.node, &self.addresses).await?;
                self.peers.open_log(self.node).await?
            }
        };
        Ok(self.reader.insert(reader))
    }
}
