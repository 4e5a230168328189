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
