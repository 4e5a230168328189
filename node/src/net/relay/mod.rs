//! Relays: a requester reaches an instance without the provider seeing its address, and the provider needs no open port.
//!
//! ```text
//!  provider ══ relay-register: Add{hash of token} ══► relay          (long-lived, dialed by the provider)
//!  client   ── relay-connect: {provider, token} ────► relay          (one-session identity)
//!                                 relay ── relay-splice: {token} ──► provider
//!  client  ◄── status ── relay ◄── status ── provider
//!  client ◄═══════ bytes, copied with bounded buffers, a quota and an idle limit ═══════► provider
//! ```
//!
//! The relay learns that some address talks to some provider, and neither lease nor key: SSH runs end to end inside. The
//! provider learns the token, which it gave out itself. A token is a capability: the relay checks it by its hash, so that
//! a registry that leaks opens nothing, and nobody without a token reaches the provider at all.

mod client;
mod provider;
mod registry;
mod server;

use std::{fmt, time::Duration};

use minicbor::{Decode, Encode, bytes::ByteArray};
use souk_crypto::NodeId;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use client::{RelayConnectError, connect_via};
pub use provider::{MAX_REGISTRATIONS, RelayRegistrations, WARM_RELAYS};
pub(super) use server::Server;

use super::{
    peers::Peers,
    streams::{PeerStream, io_through},
};

/// How long each step of setting a session up may take.
const STEP: Duration = Duration::from_secs(10);

const REQUEST_CAP: usize = 96;
const ANSWER_CAP: usize = 16;

/// The capability to reach one lease through a relay: 32 random bytes that the provider draws and puts in the receipt.
#[derive(Clone, PartialEq, Eq, Hash, Zeroize, ZeroizeOnDrop)]
pub struct RelayToken([u8; 32]);

impl RelayToken {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes, for the receipt.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What relays are told in advance.
    fn hash(&self) -> TokenHash {
        TokenHash(blake3::derive_key("souk relay token v1", &self.0))
    }
}

impl fmt::Debug for RelayToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RelayToken(..)")
    }
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
    stream: PeerStream,
    // A client's swarm lives as long as its stream.
    _swarm: Option<Peers>,
}

io_through!(RelayStream, stream);

/// Provider to relay, on the registration stream.
#[derive(Debug, Encode, Decode)]
enum Registration {
    #[n(0)]
    #[cbor(map)]
    Add {
        #[n(0)]
        hash: ByteArray<32>,
        #[n(1)]
        lifetime_s: u32,
    },
    #[n(1)]
    #[cbor(map)]
    Remove {
        #[n(0)]
        hash: ByteArray<32>,
    },
}

/// Client to relay.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Connect {
    #[n(0)]
    provider: ByteArray<32>,
    #[n(1)]
    token: ByteArray<32>,
}

/// Relay to provider.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Splice {
    #[n(0)]
    token: ByteArray<32>,
}

/// The answer to each of the three.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Answer {
    #[n(0)]
    status: Status,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
enum Status {
    #[n(0)]
    Ok,
    /// No such token here: never given out, expired, or withdrawn.
    #[n(1)]
    Unknown,
    /// A bound was reached.
    #[n(2)]
    Busy,
    /// The provider did not answer.
    #[n(3)]
    Away,
}
