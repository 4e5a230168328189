//! Keys, sealing and signed objects of souk.
//!
//! Everything that two parties of the network have to agree on in secret or by signature goes through this crate:
//!
//! ```text
//!                     NodeKey ── signs ──► SubKeys { card key, log key, seal_key, mix keys }
//!                                             │           │         │
//!   Object ── sign::sign ──► Signed ── bytes ─┘           │         └─ seal::seal / seal::open
//!     ▲                         │                         └─ raw signatures of checkpoints
//!     └──── Verified ◄── Signed::open(network)
//! ```
//!
//! Threats: bytes of a stranger that are too large, ambiguous or signed for something else; a key used for two
//! purposes; a secret that leaks through a log, a file mode or a comparison. The answers are one function that opens
//! ([`Signed::open`]), one canonical form that is checked on the bytes ([`cbor`]), one place for domain strings
//! ([`domain`]), and key types that name their use ([`keys`]).
//!
//! The crate knows nothing of the marketplace, holds no clock and draws no randomness by itself.

mod bytes;
mod causes;
pub mod cbor;
pub mod domain;
pub mod keyfile;
pub mod keys;
mod network;
pub mod seal;
pub mod sign;
mod subkeys;
mod time;

pub use causes::{causes, with_causes};
pub use keys::{
    CardKey, CardPublicKey, HolderKey, HolderPublicKey, IssuerKey, IssuerPublicKey, LogKey,
    LogPublicKey, NodeId, NodeKey, ReferenceKey, ReferencePublicKey, ReplyKey, ReplyPublicKey,
    SealKey, SealPublicKey,
};
pub use network::{NetworkError, NetworkId, NetworkParams};
pub use sign::{Invalid, Object, ObjectDigest, OpenError, SignError, Signed, Verified};
pub use subkeys::{MAX_MIX_KEYS, MAX_SUB_KEYS_LIFE_S, MixKey, MixPublicKey, SubKeys};
pub use time::{MAX_SKEW_S, UnixTime, Window, WindowError};
