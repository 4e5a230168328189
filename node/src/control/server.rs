//! The side of the control socket that a node holds: versions, bounds, and the calls.
//!
//! Threats: a client of another version that is misunderstood: it is told the right one; a monitoring user who would act: every
//! call that changes something asks for [`Access::Full`] first. Sizes and calls in progress are bounded.

use std::{error::Error, sync::Arc};

use async_trait::async_trait;
use souk_backend::LeaseId;
use souk_crypto::{OpenError, with_causes};
use souk_market::units::BackendName;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    Happenings, MAX_CALLS, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, REVISION, Socket, VERSION,
    VERSION_KEY,
    feed::{self, MAX_WATCHERS, Snapshots},
    program,
    v1::{self, control_server},
};

/// What a node can be asked and told.
#[async_trait]
pub trait Operations: Send + Sync + 'static {
    /// How it stands.
    async fn status(&self) -> v1::StatusReply;

    /// Providers with valid cards.
    async fn offers(&self) -> Vec<v1::Offer>;

    /// Leases of this provider.
    async fn leases(&self) -> Vec<v1::Lease>;

    /// What the backends have that no lease owns; none where this is no provider.
    async fn orphans(&self) -> Option<v1::OrphansReply>;

    /// Ends a lease before its time.
    async fn end(&self, lease: LeaseId) -> Result<(), EndError>;

    /// How it stands to new leases.
    fn standing(&self) -> v1::StandingReply;

    /// Takes no new leases.
    async fn drain(&self, request: v1::DrainRequest) -> Result<(), ChangeRefused>;

    /// Takes leases again.
    async fn resume(&self) -> Result<(), ChangeRefused>;

    /// Drains, then ends for ever.
    async fn retire(&self, request: v1::RetireRequest) -> Result<(), ChangeRefused>;

    /// Agrees to take over from another node.
    fn agree(&self, request: v1::AgreeRequest) -> Result<v1::AgreeReply, ChangeRefused>;

    /// All that a dashboard shows.
    async fn snapshot(&self) -> v1::Snapshot;

    /// What happened last.
    fn happenings(&self) -> &Happenings;

    /// Makes and publishes a new card.
    async fn refresh_card(&self) -> Result<(), ChangeRefused>;

    /// Places no new leases at a backend, or places them again.
    async fn pause_backend(&self, backend: BackendName, paused: bool) -> Result<(), PauseError>;

    /// Removes an instance that no lease owns, without waiting for the end of its grace.
    async fn reap(&self, backend: BackendName, lease: LeaseId) -> Result<(), ReapError>;

    /// All metrics in OpenMetrics text.
    fn metrics(&self) -> String;

    /// Begins to stop, and returns at once.
    fn shutdown(&self);
}

/// Why a lease was not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndError {
    /// There is none.
    #[error("there is no lease {0} at this node")]
    NoSuchLease(LeaseId),
    /// The node is no provider, or it is stopping.
    #[error("this node has no leases now: it is no provider, or it is stopping")]
    NotNow,
}

/// Why new leases go on as before at a backend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// There is none.
    #[error("there is no backend {0} at this node")]
    NoSuchBackend(BackendName),
    /// The node is no provider, or it does not work yet.
    #[error("this node has no backends now: it is no provider, or its provider does not work yet")]
    NotNow,
    /// It could not be written down, so that it would not outlive the process.
    #[error("it could not be written down: {0}")]
    NotWritten(String),
}

impl From<PauseError> for Status {
    fn from(error: PauseError) -> Self {
        let text = error.to_string();
        match error {
            PauseError::NoSuchBackend(_) => Self::not_found(text),
            PauseError::NotNow => Self::unavailable(text),
            PauseError::NotWritten(_) => Self::aborted(text),
        }
    }
}

/// Why an instance was not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReapError {
    /// Nothing without an owner carries that id there.
    #[error("the backend {backend} has no instance {lease} without an owner")]
    NoSuchOrphan {
        /// Where.
        backend: BackendName,
        /// Which.
        lease: LeaseId,
    },
    /// The node is no provider, or it does not work yet.
    #[error("this node has no backends now: it is no provider, or its provider does not work yet")]
    NotNow,
}

impl From<ReapError> for Status {
    fn from(error: ReapError) -> Self {
        let text = error.to_string();
        match error {
            ReapError::NoSuchOrphan { .. } => Self::not_found(text),
            ReapError::NotNow => Self::unavailable(text),
        }
    }
}

/// Why the node does not change how it stands.
#[derive(Debug, thiserror::Error)]
pub enum ChangeRefused {
    /// It has no leases, and will have none.
    #[error("this node is no provider")]
    NoProvider,
    /// It is still starting.
    #[error("the provider does not work yet, so nobody knows what is open; try again")]
    NotYet,
    /// A successor that is not named as nodes are.
    #[error("{0:?} is no peer id of a node")]
    NoPeerId(String),
    /// It was asked to take over from itself.
    #[error("a node cannot succeed itself")]
    OwnSuccessor,
    /// It makes no cards any more.
    #[error("this node has retired and makes no cards")]
    Retired,
    /// It made none in time.
    #[error(
        "no new card was made: the node has no address that others can dial, or its log says why"
    )]
    NoCard,
    /// What the successor signed cannot be read.
    #[error("the agreement of the successor cannot be read")]
    Agreement(#[source] OpenError),
    /// The change itself was not made.
    #[error(transparent)]
    Change(Box<dyn Error + Send + Sync>),
}

impl From<ChangeRefused> for Status {
    fn from(refused: ChangeRefused) -> Self {
        Self::aborted(with_causes(&refused))
    }
}

/// What the clients of a socket may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything: they are the operator.
    Full,
    /// Only what changes nothing: they monitor.
    ReadOnly,
}

/// What all sockets of a node serve.
pub struct Serving {
    /// The node.
    pub node: Arc<dyn Operations>,
    /// When it is cancelled, calls in progress are answered and streams end.
    pub stop: CancellationToken,
    snapshots: Arc<Snapshots>,
}

impl Serving {
    /// Serves a node until `stop` is cancelled.
    #[must_use]
    pub fn new(node: Arc<dyn Operations>, stop: CancellationToken) -> Self {
        Self {
            node,
            stop,
            snapshots: Arc::default(),
        }
    }
}

/// Serves the API on one socket until the node stops.
///
/// # Errors
/// When the system refuses the socket.
pub async fn serve(
    mut socket: Socket,
    access: Access,
    serving: &Serving,
) -> Result<(), tonic::transport::Error> {
    let listener = socket
        .listener
        .take()
        .expect("a socket is served once: it is taken by value");
    let service = Service {
        node: Arc::clone(&serving.node),
        access,
        snapshots: Arc::clone(&serving.snapshots),
        // Those who monitor must not take the places of the operator.
        watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
        stop: serving.stop.clone(),
    };
    let service = control_server::ControlServer::new(service)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .add_service(service)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener),
            serving.stop.clone().cancelled_owned(),
        )
        .await
}

struct Service {
    node: Arc<dyn Operations>,
    access: Access,
    snapshots: Arc<Snapshots>,
    watchers: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Service {
    /// For calls that change something: the version must be ours, and the socket not one for monitoring.
    fn may_act<T>(&self, request: &Request<T>, call: &str) -> Result<(), Status> {
        same_version(request.metadata())?;
        match self.access {
            Access::Full => Ok(()),
            Access::ReadOnly => Err(Status::permission_denied(format!(
                "this socket is for monitoring and refuses {call}; use the one of control.socket, as the user that runs the node"
            ))),
        }
    }
}

#[async_trait]
impl control_server::Control for Service {
    /// Answers every version, so that a client of any can find out what runs.
    async fn version(
        &self,
        _: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionReply>, Status> {
        Ok(Response::new(v1::VersionReply {
            program: program(),
            control: VERSION,
            revision: REVISION.unwrap_or_default().to_owned(),
        }))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusReply>, Status> {
        same_version(request.metadata())?;
        Ok(Response::new(self.node.status().await))
    }

    async fn market(
        &self,
        request: Request<v1::MarketRequest>,
    ) -> Result<Response<v1::MarketReply>, Status> {
        same_version(request.metadata())?;
        let offers = self.node.offers().await;
        Ok(Response::new(v1::MarketReply { offers }))
    }

    async fn leases(
        &self,
        request: Request<v1::LeasesRequest>,
    ) -> Result<Response<v1::LeasesReply>, Status> {
        same_version(request.metadata())?;
        let leases = self.node.leases().await;
        Ok(Response::new(v1::LeasesReply { leases }))
    }

    async fn orphans(
        &self,
        request: Request<v1::OrphansRequest>,
    ) -> Result<Response<v1::OrphansReply>, Status> {
        same_version(request.metadata())?;
        let orphans = self.node.orphans().await;
        orphans
            .map(Response::new)
            .ok_or_else(|| Status::unavailable(EndError::NotNow.to_string()))
    }

    async fn end(
        &self,
        request: Request<v1::EndRequest>,
    ) -> Result<Response<v1::EndReply>, Status> {
        self.may_act(&request, "End")?;
        let lease = lease_id(&request.into_inner().lease)?;
        self.node.end(lease).await.map_err(|error| match error {
            EndError::NoSuchLease(_) => Status::not_found(error.to_string()),
            EndError::NotNow => Status::unavailable(error.to_string()),
        })?;
        Ok(Response::new(v1::EndReply {}))
    }

    async fn standing(
        &self,
        request: Request<v1::StandingRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        same_version(request.metadata())?;
        Ok(Response::new(self.node.standing()))
    }

    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        self.may_act(&request, "Drain")?;
        self.node.drain(request.into_inner()).await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        self.may_act(&request, "Resume")?;
        self.node.resume().await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn retire(
        &self,
        request: Request<v1::RetireRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        self.may_act(&request, "Retire")?;
        self.node.retire(request.into_inner()).await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn agree(
        &self,
        request: Request<v1::AgreeRequest>,
    ) -> Result<Response<v1::AgreeReply>, Status> {
        self.may_act(&request, "Agree")?;
        Ok(Response::new(self.node.agree(request.into_inner())?))
    }

    type WatchStream = ReceiverStream<feed::Reply>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        same_version(request.metadata())?;
        let place = Arc::clone(&self.watchers).try_acquire_owned();
        let place = place.map_err(|_| {
            Status::resource_exhausted(format!(
                "{MAX_WATCHERS} clients watch this node already; close one of them"
            ))
        })?;
        // One reply at a time: what a client does not take is not made.
        let (replies, stream) = mpsc::channel(1);
        tokio::spawn(feed::run(
            Arc::clone(&self.node),
            Arc::clone(&self.snapshots),
            feed::period(request.into_inner().period_ms),
            replies,
            self.stop.clone(),
            place,
        ));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn refresh_card(
        &self,
        request: Request<v1::RefreshCardRequest>,
    ) -> Result<Response<v1::RefreshCardReply>, Status> {
        self.may_act(&request, "RefreshCard")?;
        self.node.refresh_card().await?;
        Ok(Response::new(v1::RefreshCardReply {}))
    }

    async fn pause_backend(
        &self,
        request: Request<v1::PauseBackendRequest>,
    ) -> Result<Response<v1::PauseBackendReply>, Status> {
        self.may_act(&request, "PauseBackend")?;
        let v1::PauseBackendRequest { backend, paused } = request.into_inner();
        self.node
            .pause_backend(backend_name(&backend)?, paused)
            .await?;
        Ok(Response::new(v1::PauseBackendReply {}))
    }

    async fn reap(
        &self,
        request: Request<v1::ReapRequest>,
    ) -> Result<Response<v1::ReapReply>, Status> {
        self.may_act(&request, "Reap")?;
        let v1::ReapRequest { backend, lease } = request.into_inner();
        self.node
            .reap(backend_name(&backend)?, lease_id(&lease)?)
            .await?;
        Ok(Response::new(v1::ReapReply {}))
    }

    async fn metrics(
        &self,
        request: Request<v1::MetricsRequest>,
    ) -> Result<Response<v1::MetricsReply>, Status> {
        same_version(request.metadata())?;
        let text = self.node.metrics();
        Ok(Response::new(v1::MetricsReply { text }))
    }

    async fn shutdown(
        &self,
        request: Request<v1::ShutdownRequest>,
    ) -> Result<Response<v1::ShutdownReply>, Status> {
        self.may_act(&request, "Shutdown")?;
        self.node.shutdown();
        Ok(Response::new(v1::ShutdownReply {}))
    }
}

fn lease_id(text: &str) -> Result<LeaseId, Status> {
    text.parse()
        .map_err(|why| Status::invalid_argument(format!("{text:?} is no lease id: {why}")))
}

fn backend_name(text: &str) -> Result<BackendName, Status> {
    text.parse()
        .map_err(|why| Status::invalid_argument(format!("{text:?} is no name of a backend: {why}")))
}

/// Refuses a caller of another version, or of none, and says what would be right.
fn same_version(metadata: &MetadataMap) -> Result<(), Status> {
    let theirs = metadata
        .get(VERSION_KEY)
        .and_then(|value| value.to_str().ok());
    if theirs.and_then(|text| text.parse().ok()) == Some(VERSION) {
        return Ok(());
    }
    let theirs = theirs.unwrap_or("no");
    Err(Status::failed_precondition(format!(
        "this node is souk {program} and speaks control version {VERSION}, the caller speaks version {theirs}; \
         use the `souk` that belongs to the node",
        program = program(),
    )))
}
