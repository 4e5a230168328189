//! The control descriptor: what the agent says to the driver, one JSON object per line.
//!
//! Nothing comes back on it. The driver may be gone or may not read; a message that cannot be written within
//! [`PATIENCE`] is lost, and nothing else of the instance notices.

use std::{os::unix::net::UnixStream as StdUnixStream, sync::Arc, time::Duration};

use souk_backend::{
    HostKey,
    agent::{AgentMessage, ExitReason, MAX_MESSAGE_BYTES},
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream, sync::Mutex, time::timeout};

/// How long a driver that does not read may hold up a message.
const PATIENCE: Duration = Duration::from_secs(2);

/// The way to the driver.
#[derive(Clone)]
pub(crate) struct Control {
    stream: Arc<Mutex<Option<UnixStream>>>,
}

impl Control {
    /// Takes the descriptor into the runtime.
    pub(crate) fn start(stream: StdUnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Arc::new(Mutex::new(Some(UnixStream::from_std(stream)?))),
        })
    }

    /// Says that the SSH server accepts.
    pub(crate) async fn ready(&self, host_key: HostKey) {
        self.send(&AgentMessage::Ready { host_key }).await;
    }

    /// Says what was counted.
    pub(crate) async fn meters(&self, logins: u64, spawned: u64) {
        self.send(&AgentMessage::Meters { logins, spawned }).await;
    }

    /// Says that the instance ends now.
    pub(crate) async fn exiting(&self, reason: ExitReason) {
        self.send(&AgentMessage::Exiting { reason }).await;
    }

    async fn send(&self, message: &AgentMessage) {
        let mut line = serde_json::to_vec(message).expect("these messages are plain data");
        line.push(b'\n');
        debug_assert!(line.len() <= MAX_MESSAGE_BYTES);
        let mut stream = self.stream.lock().await;
        if let Some(open) = stream.as_mut() {
            let written = timeout(PATIENCE, open.write_all(&line)).await;
            if !matches!(written, Ok(Ok(()))) {
                // Half a line may be out, so what follows could not be understood any more.
                *stream = None;
            }
        }
    }
}
