//! The side of the control socket that the command line holds.
//!
//! Threats: a node of another version that misreads a call, so each carries its version; a node that does not answer, so each has
//! a deadline.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use souk_backend::LeaseId;
use tonic::{
    Code, Request, Response, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{
    MAX_REPLY_BYTES, VERSION, VERSION_KEY,
    v1::{self, control_client::ControlClient},
};

/// A node answers any call faster than this, or something is wrong with it.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the node on this machine.
#[derive(Debug)]
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

    /// Ends a lease as the operator.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] where there is no such lease, and the others.
    pub async fn end(&mut self, lease: LeaseId) -> Result<(), ClientError> {
        let lease = lease.to_string();
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
        reply.map(Response::into_inner).map_err(|status| {
            let message = status.message().to_owned();
            match status.code() {
                Code::FailedPrecondition => ClientError::OtherVersion(message),
                Code::Unimplemented => ClientError::OtherVersion(format!(
                    "the node at {} does not know this call; use the `souk` that belongs to the node",
                    self.path.display()
                )),
                Code::NotFound => ClientError::NotFound(message),
                Code::Unavailable => ClientError::NotNow(message),
                Code::Aborted => ClientError::Refused(message),
                code => ClientError::Failed {
                    path: self.path.clone(),
                    code,
                    message,
                },
            }
        })
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
