//! The requester's side of a relay.
//!
//! Threat: sessions over one relay that can be joined to one requester by its identity: each has an identity of its own.

use souk_crypto::NodeId;
use souk_market::units::RelayToken;
use souk_wire::relay::{ANSWER_CAP, Answer, Connect, Status};

use tokio_util::either::Either;

use crate::net::{
    address::NodeAddress,
    config::ClientConfig,
    frame::{self, FrameError},
    names::What,
    node::Client,
    peers::ConnectError,
    streams::OpenError,
};

use super::{RelayStream, STEP};

/// Why a session over a relay did not come about.
#[derive(Debug, thiserror::Error)]
pub enum RelayConnectError {
    /// The relay could not be reached.
    #[error("the relay could not be reached")]
    Connect(#[from] ConnectError),
    /// The node is no relay, or the stream broke off.
    #[error("no stream to the relay")]
    Open(#[from] OpenError),
    /// The relay broke the protocol, or the stream broke.
    #[error("the relay broke off")]
    Frame(#[from] FrameError),
    /// The token is not known there: the lease is over, or the provider is registered elsewhere.
    #[error("the relay does not know the token; the lease may have ended")]
    Unknown,
    /// The relay or the provider has no room.
    #[error("the relay has no room for another session")]
    Busy,
    /// The provider did not answer the relay.
    #[error("the provider does not answer the relay")]
    Away,
}

/// Connects to `provider` over the relay at `relay`, with an identity that is made for this session alone.
///
/// # Errors
/// [`RelayConnectError`].
pub async fn connect_via(
    config: &ClientConfig,
    relay: &NodeAddress,
    provider: NodeId,
    token: &RelayToken,
) -> Result<RelayStream, RelayConnectError> {
    let peers = Client::start(config).peers().clone();
    peers.connect_to(relay).await?;
    let mut stream = peers.open(relay.node(), What::RelayConnect).await?;
    let request = Connect {
        provider: (*provider.as_bytes()).into(),
        token: token.0.into(),
    };
    frame::write_message(&mut stream, &request).await?;
    // The relay waits for the provider in between.
    let answer: Answer = frame::read_message(&mut stream, ANSWER_CAP, 3 * STEP).await?;
    match answer.status {
        Status::Ok => Ok(RelayStream {
            stream: Either::Left(stream),
            _held: Either::Left(peers),
        }),
        Status::Unknown => Err(RelayConnectError::Unknown),
        Status::Busy => Err(RelayConnectError::Busy),
        Status::Away => Err(RelayConnectError::Away),
    }
}
