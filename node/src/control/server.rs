//! The side of the control socket that a node holds: versions, bounds, and the calls.
//!
//! Threat: a client of another version that is misunderstood: it is told the right one. Sizes and calls in progress are bounded.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use souk_backend::LeaseId;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::{
    MAX_CALLS, MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Socket, VERSION, VERSION_KEY,
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

/// Why the node does not change how it stands, in words for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChangeRefused(pub String);

impl From<ChangeRefused> for Status {
    fn from(refused: ChangeRefused) -> Self {
        Self::aborted(refused.0)
    }
}

/// Serves the API until `stopped` is ready; calls in progress are answered first.
///
/// # Errors
/// When the system refuses the socket.
pub async fn serve(
    mut socket: Socket,
    node: Arc<dyn Operations>,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let listener = socket
        .listener
        .take()
        .expect("a socket is served once: it is taken by value");
    let service = control_server::ControlServer::new(Service { node })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_REPLY_BYTES);
    tonic::transport::Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped)
        .await
}

struct Service {
    node: Arc<dyn Operations>,
}

#[async_trait]
impl control_server::Control for Service {
    /// Answers every version, so that a client of any can find out what runs.
    async fn version(
        &self,
        _: Request<v1::VersionRequest>,
    ) -> Result<Response<v1::VersionReply>, Status> {
        Ok(Response::new(v1::VersionReply {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            control: VERSION,
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
        same_version(request.metadata())?;
        let lease = request.into_inner().lease;
        let lease: LeaseId = lease
            .parse()
            .map_err(|why| Status::invalid_argument(format!("{lease:?} is no lease id: {why}")))?;
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
        same_version(request.metadata())?;
        self.node.drain(request.into_inner()).await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        same_version(request.metadata())?;
        self.node.resume().await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn retire(
        &self,
        request: Request<v1::RetireRequest>,
    ) -> Result<Response<v1::StandingReply>, Status> {
        same_version(request.metadata())?;
        self.node.retire(request.into_inner()).await?;
        Ok(Response::new(self.node.standing()))
    }

    async fn agree(
        &self,
        request: Request<v1::AgreeRequest>,
    ) -> Result<Response<v1::AgreeReply>, Status> {
        same_version(request.metadata())?;
        Ok(Response::new(self.node.agree(request.into_inner())?))
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
        same_version(request.metadata())?;
        self.node.shutdown();
        Ok(Response::new(v1::ShutdownReply {}))
    }
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
        program = env!("CARGO_PKG_VERSION"),
    )))
}
