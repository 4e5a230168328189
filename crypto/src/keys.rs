//! Keys that name their use in their type: a key for cards cannot sign a log, and does not compile where it tries.
//!
//! | key | algorithm | life | signs or opens |
//! |---|---|---|---|
//! | [`NodeKey`] | Ed25519 | the node's | its sub-keys, retirement, the libp2p handshake |
//! | [`CardKey`] | Ed25519 | weeks | cards, capacity, receipts, statements |
//! | [`LogKey`] | Ed25519 | the log's | checkpoints of the usage log |
//! | [`IssuerKey`] | Ed25519 | the issuer's | grants |
//! | [`HolderKey`] | Ed25519 | one lease | the envelope and everything else of one lease |
//! | [`ReferenceKey`] | Ed25519 | a release line's | reference values for evidence, on no network |
//! | [`SealKey`] | HPKE | weeks | requests |
//! | [`ReplyKey`] | HPKE | one lease | replies |
//!
//! Threats: a key used for two purposes; a public key of small order or in a second encoding; a secret in a log; a
//! requester's key in a log. Secrets are wiped when dropped and print as `..`; so do public keys of requesters.

mod dhkem;
mod sealing;
mod signing;

pub(crate) use dhkem::X25519Kem;
pub use sealing::{
    HpkeKey, HpkePublicKey, Reply, ReplyKey, ReplyPublicKey, Seal, SealKey, SealPublicKey, SealUse,
    Suite,
};
pub use signing::{
    Card, CardKey, CardPublicKey, Holder, HolderKey, HolderPublicKey, Issuer, IssuerKey,
    IssuerPublicKey, KeyUse, Log, LogKey, LogPublicKey, Node, NodeId, NodeKey, PublicKey,
    Reference, ReferenceKey, ReferencePublicKey, SecretKey,
};

/// Why bytes or text are not a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Another number of bytes.
    #[error("a {key} key has {expected} bytes, not {len}")]
    Length {
        /// Which key.
        key: &'static str,
        /// Bytes of such a key.
        expected: usize,
        /// Bytes at hand.
        len: usize,
    },
    /// Bytes that are no point of the curve in its only valid form, or a point of small order.
    #[error("not a valid {key} public key")]
    Point {
        /// Which key.
        key: &'static str,
    },
    /// A suite that this version does not know.
    #[error("unknown sealing suite {0}")]
    Suite(u8),
    /// Text of another form.
    #[error("not the text of a {key} key: expected {form}")]
    Text {
        /// Which key.
        key: &'static str,
        /// What it looks like.
        form: &'static str,
    },
}

/// A secret that a key file can hold.
pub trait Secret: Sized {
    /// Word in the key file that says what the key is for.
    const USE: &'static str;

    /// The 32 secret bytes.
    fn secret_bytes(&self) -> zeroize::Zeroizing<[u8; 32]>;

    /// The key of these secret bytes.
    fn from_secret_bytes(bytes: &[u8; 32]) -> Self;
}
