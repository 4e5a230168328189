//! `relay-register`, `relay-connect`, `relay-splice`: sessions to providers without an open port.
//!
//! Threat: a token in a log. It travels as bytes here and is made a type of its own, which does not show itself, by whoever
//! takes it out; nothing in this module prints one.

use std::fmt;

use minicbor::{Decode, Encode, bytes::ByteArray};

/// Longest request, in bytes.
pub const REQUEST_CAP: usize = 96;

/// Longest answer, in bytes.
pub const ANSWER_CAP: usize = 16;

/// Most bytes of a session in one message of a spliced stream.
pub const SPLICED_BYTES: usize = 16 * 1024;

/// Longest message of a spliced stream, in bytes.
pub const SPLICED_CAP: usize = SPLICED_BYTES + 16;

/// Bytes of a session that either side of a spliced stream may send before the other has said that it passed some on.
pub const SPLICED_WINDOW: usize = 256 * 1024;

/// Provider to relay, on the registration stream.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
pub enum Registration {
    /// Add a token, or renew it.
    #[n(0)]
    #[cbor(map)]
    Add {
        /// Hash of the token; it opens nothing.
        #[n(0)]
        hash: ByteArray<32>,
        /// How long it is good for, in seconds.
        #[n(1)]
        lifetime_s: u32,
    },
    /// Withdraw a token.
    #[n(1)]
    #[cbor(map)]
    Remove {
        /// Hash of the token.
        #[n(0)]
        hash: ByteArray<32>,
    },
}

/// Client to relay.
#[derive(PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Connect {
    /// Node id of the provider.
    #[n(0)]
    pub provider: ByteArray<32>,
    /// The token of the receipt.
    #[n(1)]
    pub token: ByteArray<32>,
}

/// Relay to provider.
#[derive(PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Splice {
    /// The token that the client brought.
    #[n(0)]
    pub token: ByteArray<32>,
}

/// What relay and provider send each other over a spliced stream once it stands.
#[derive(PartialEq, Eq, Encode, Decode)]
pub enum Spliced {
    /// Bytes of the session; at least one, at most [`SPLICED_BYTES`].
    #[n(0)]
    Bytes(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// So many more bytes were passed on, and may be sent again.
    #[n(1)]
    Taken(#[n(0)] u32),
    /// The session has no more bytes in this direction.
    #[n(2)]
    End,
}

impl fmt::Debug for Spliced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
            Self::Taken(count) => write!(f, "Taken({count})"),
            Self::End => f.write_str("End"),
        }
    }
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connect(..)")
    }
}

impl fmt::Debug for Splice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Splice(..)")
    }
}

/// The answer to each of the three.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Answer {
    /// What became of it.
    #[n(0)]
    pub status: Status,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Status {
    /// Done.
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
