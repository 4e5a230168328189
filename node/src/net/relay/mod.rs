//! Relays: a requester reaches an instance without the provider seeing its address, and the provider needs no open port.
//!
//! ```text
//!  provider ══ relay-register: Add{hash of token} ══► relay          (long-lived, dialed by the provider)
//!  client   ── relay-connect: {provider, token} ────► relay          (one-session identity)
//!                                 relay ── relay-splice: {token} ──► provider
//!  client  ◄── status ── relay ◄── status ── provider
//!  client ◄══ bytes, with a quota and an idle limit ══► relay ◄══ bytes, paced by their reader ══► provider
//! ```
//!
//! The relay learns that some address talks to some provider, and neither lease nor key: SSH runs end to end inside. The
//! provider learns the token, which it gave out itself. A token is a capability: the relay checks it by its hash, so that
//! a registry that leaks opens nothing, and nobody without a token reaches the provider at all.

mod client;
mod paced;
mod provider;
mod registry;
mod server;

use std::time::Duration;

use souk_crypto::NodeId;
use souk_market::units::RelayToken;
use tokio::io::DuplexStream;
use tokio_util::{either::Either, sync::DropGuard};

pub use client::{RelayConnectError, connect_via};
pub use provider::{MAX_REGISTRATIONS, RelayRegistrations, WARM_RELAYS};
pub(super) use server::Server;

use super::{
    peers::Peers,
    streams::{PeerStream, io_through},
};

/// How long each step of setting a session up may take.
const STEP: Duration = Duration::from_secs(10);

/// How long a stream between provider and relay may be silent: its connection is watched by pings.
const SILENCE: Duration = Duration::from_secs(u32::MAX as u64);

/// What relays are told of a token in advance.
fn hash(token: &RelayToken) -> TokenHash {
    TokenHash(blake3::derive_key("souk relay token v1", &token.0))
}

/// Hash of a token; it opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct TokenHash([u8; 32]);

/// A session that a relay has spliced to this provider.
#[derive(Debug)]
pub struct RelayedStream {
    /// Which lease it is for.
    pub token: RelayToken,
    /// The relay that it came through.
    pub relay: NodeId,
    /// The bytes to and from the requester.
    pub stream: RelayStream,
}

/// Bytes that travel over a relay.
#[derive(Debug)]
pub struct RelayStream {
    /// A client's own stream, or a provider's end of one that is paced.
    stream: Either<PeerStream, DuplexStream>,
    /// A client's swarm lives as long as its stream; what paces a provider's stream ends with it.
    _held: Either<Peers, DropGuard>,
}

io_through!(RelayStream, stream);
