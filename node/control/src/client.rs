//! The side of the control socket that the command line and the dashboard hold.
//!
//! Threats: a node of another version that misreads a call, so each carries its version; a node that does not answer, so each has
//! a deadline.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::{
    Code, Request, Response, Status, Streaming,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::{
    MAX_REPLY_BYTES, VERSION, VERSION_KEY,
    v1::{self, control_client::ControlClient},
};

/// A node answers any call faster than this, or something is wrong with it.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the node on this machine; clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    calls: ControlClient<InterceptedService<Channel, OwnVersion>>,
}

/// Why the node was not reached, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No node runs there.
    #[error("no node is running at {path}")]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket belongs to another user.
    #[error("the node at {path} belongs to another user")]
    NotPermitted {
        /// The socket.
        path: PathBuf,
    },
    /// Node and client are of different versions.
    #[error("{0}")]
    OtherVersion(String),
    /// It is not there.
    #[error("{0}")]
    NotFound(String),
    /// The node cannot do that now.
    #[error("{0}")]
    NotNow(String),
    /// What was asked for makes no sense now.
    #[error("{0}")]
    Refused(String),
    /// The socket is there for monitoring, and the call would change something.
    #[error("{0}")]
    ReadOnly(String),
    /// The system refused the connection.
    #[error("cannot reach the node at {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Whatever else the node answered.
    #[error("the node at {path} failed: {message} ({code:?})")]
    Failed {
        /// The socket.
        path: PathBuf,
        /// gRPC status.
        code: Code,
        /// What it said.
        message: String,
    },
}

impl Client {
    /// Connects to the node whose control socket is `path`.
    ///
    /// # Errors
    /// Tells apart that no node runs, that it is not ours, and what else the system says.
    pub async fn connect(path: &Path) -> Result<Self, ClientError> {
        // gRPC would hide which of these it was.
        tokio::net::UnixStream::connect(path)
            .await
            .map_err(|source| {
                let path = path.to_owned();
                match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ClientError::NotRunning { path }
                    }
                    io::ErrorKind::PermissionDenied => ClientError::NotPermitted { path },
                    _ => ClientError::Io { path, source },
                }
            })?;
        let refused = |error: tonic::transport::Error| ClientError::Io {
            path: path.to_owned(),
            source: io::Error::other(error),
        };
        let absolute = std::path::absolute(path).map_err(|source| ClientError::Io {
            path: path.to_owned(),
            source,
        })?;
        let channel = Endpoint::from_shared(format!("unix://{}", absolute.display()))
            .map_err(refused)?
            .timeout(CALL_TIMEOUT)
            .connect()
            .await
            .map_err(refused)?;
        Ok(Self {
            path: path.to_owned(),
            calls: ControlClient::with_interceptor(channel, OwnVersion)
                .max_decoding_message_size(MAX_REPLY_BYTES),
        })
    }

    /// What is running.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn version(&mut self) -> Result<v1::VersionReply, ClientError> {
        let reply = self.calls.version(v1::VersionRequest {}).await;
        self.taken(reply)
    }

    /// How the node stands.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn status(&mut self) -> Result<v1::StatusReply, ClientError> {
        let reply = self.calls.status(v1::StatusRequest {}).await;
        self.taken(reply)
    }

    /// Providers whose cards are valid now.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn offers(&mut self) -> Result<Vec<v1::Offer>, ClientError> {
        let reply = self.calls.market(v1::MarketRequest {}).await;
        self.taken(reply).map(|reply| reply.offers)
    }

    /// Leases of this provider.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leases(&mut self) -> Result<Vec<v1::Lease>, ClientError> {
        let reply = self.calls.leases(v1::LeasesRequest {}).await;
        self.taken(reply).map(|reply| reply.leases)
    }

    /// What the backends of this provider have that no lease owns.
    ///
    /// # Errors
    /// [`ClientError::NotNow`] where the node is no provider, and the others.
    pub async fn orphans(&mut self) -> Result<v1::OrphansReply, ClientError> {
        let reply = self.calls.orphans(v1::OrphansRequest {}).await;
        self.taken(reply)
    }

    /// Ends a lease, by its 32 hex digits, as the operator.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] where there is no such lease, and the others.
    pub async fn end(&mut self, lease: String) -> Result<(), ClientError> {
        let reply = self.calls.end(v1::EndRequest { lease }).await;
        self.taken(reply).map(|_| ())
    }

    /// How the node stands to new leases.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn standing(&mut self) -> Result<v1::StandingReply, ClientError> {
        let reply = self.calls.standing(v1::StandingRequest {}).await;
        self.taken(reply)
    }

    /// Takes no new leases, and ends the open ones at the deadline, in Unix seconds, if there is one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where that makes no sense now, and the others.
    pub async fn drain(
        &mut self,
        deadline_unix_s: Option<u64>,
    ) -> Result<v1::StandingReply, ClientError> {
        let reply = self.calls.drain(v1::DrainRequest { deadline_unix_s }).await;
        self.taken(reply)
    }

    /// Takes leases again.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub async fn resume(&mut self) -> Result<v1::StandingReply, ClientError> {
        let reply = self.calls.resume(v1::ResumeRequest {}).await;
        self.taken(reply)
    }

    /// Drains, and ends the node for ever once no lease is open.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub async fn retire(
        &mut self,
        request: v1::RetireRequest,
    ) -> Result<v1::StandingReply, ClientError> {
        let reply = self.calls.retire(request).await;
        self.taken(reply)
    }

    /// What the node signs to take over from the one with this peer id.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub async fn agree(&mut self, old: String) -> Result<Vec<u8>, ClientError> {
        let reply = self.calls.agree(v1::AgreeRequest { node_id: old }).await;
        self.taken(reply).map(|reply| reply.agreement)
    }

    /// Snapshots of the node, one each `period_ms` at most, and what happens at it. Zero leaves the period to the node.
    ///
    /// # Errors
    /// [`ClientError::NotNow`] where too many watch already, and the others.
    pub async fn watch(&mut self, period_ms: u32) -> Result<Updates, ClientError> {
        let reply = self.calls.watch(v1::WatchRequest { period_ms }).await;
        let replies = self.taken(reply)?;
        let path = self.path.clone();
        Ok(Updates { path, replies })
    }

    /// Makes and publishes a new card of the node.
    ///
    /// # Errors
    /// [`ClientError::Refused`] where it has none to make, and the others.
    pub async fn refresh_card(&mut self) -> Result<(), ClientError> {
        let reply = self.calls.refresh_card(v1::RefreshCardRequest {}).await;
        self.taken(reply).map(|_| ())
    }

    /// Places no new leases at a backend, or places them again.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] where there is no such backend, and the others.
    pub async fn pause_backend(
        &mut self,
        backend: String,
        paused: bool,
    ) -> Result<(), ClientError> {
        let request = v1::PauseBackendRequest { backend, paused };
        let reply = self.calls.pause_backend(request).await;
        self.taken(reply).map(|_| ())
    }

    /// Removes an instance that no lease owns, without waiting for the end of its grace.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] where there is no such orphan, and the others.
    pub async fn reap(&mut self, backend: String, lease: String) -> Result<(), ClientError> {
        let reply = self.calls.reap(v1::ReapRequest { backend, lease }).await;
        self.taken(reply).map(|_| ())
    }

    /// All metrics in OpenMetrics text.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn metrics(&mut self) -> Result<String, ClientError> {
        let reply = self.calls.metrics(v1::MetricsRequest {}).await;
        self.taken(reply).map(|reply| reply.text)
    }

    /// Stops the node; it has begun to stop when this returns.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn shutdown(&mut self) -> Result<(), ClientError> {
        let reply = self.calls.shutdown(v1::ShutdownRequest {}).await;
        self.taken(reply).map(|_| ())
    }

    fn taken<T>(&self, reply: Result<Response<T>, Status>) -> Result<T, ClientError> {
        reply
            .map(Response::into_inner)
            .map_err(|status| ClientError::of(&self.path, &status))
    }
}

impl ClientError {
    fn of(path: &Path, status: &Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition => Self::OtherVersion(message),
            Code::Unimplemented => Self::OtherVersion(format!(
                "the node at {} does not know this call; use the `souk` that belongs to the node",
                path.display()
            )),
            Code::NotFound => Self::NotFound(message),
            Code::Unavailable | Code::ResourceExhausted => Self::NotNow(message),
            Code::Aborted => Self::Refused(message),
            Code::PermissionDenied => Self::ReadOnly(message),
            code => Self::Failed {
                path: path.to_owned(),
                code,
                message,
            },
        }
    }
}

/// What a node tells to one who watches it.
#[derive(Debug)]
pub struct Updates {
    path: PathBuf,
    replies: Streaming<v1::WatchReply>,
}

impl Updates {
    /// The next one; none once the node has stopped.
    ///
    /// # Errors
    /// See [`ClientError`]; there is nothing more to come then.
    pub async fn next(&mut self) -> Result<Option<v1::watch_reply::What>, ClientError> {
        let failed = |status| ClientError::of(&self.path, &status);
        loop {
            match self.replies.message().await.map_err(failed)? {
                // What a newer node says beside what this client knows.
                Some(v1::WatchReply { what: None }) => {}
                Some(reply) => return Ok(reply.what),
                None => return Ok(None),
            }
        }
    }
}

/// Puts the version that this client speaks on every call.
#[derive(Clone, Copy, Debug)]
struct OwnVersion;

impl Interceptor for OwnVersion {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(VERSION_KEY, VERSION.into());
        Ok(request)
    }
}
