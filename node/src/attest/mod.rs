//! Evidence of nodes: made, carried, and judged against what a card claims.
//!
//! ```text
//!  TEE ─ Source ─► evidence, collateral ─► Pieces (on disk, by digest) ◄── other nodes, in bulk
//!                        │                     │
//!                card: digests                 ▼
//!                        └────► Claim ───► examine ─► Outcome      Verifier: one thread, a bounded queue
//!                                             │
//!                            policy.decide ◄──┘                    (a requester's)
//! ```
//!
//! Evidence of an instance takes another way: made by a backend (`InTee`) as its lease orders it, held against that order by
//! [`HostTee`], named in the receipt, fetched in parts by the holder, and judged as a [`Claim`] like all other.
//!
//! The card key is the attested key: it signs the card, and the card holds the sub-keys with the mix keys. So one piece of
//! evidence binds all that a node signs in its name until it is renewed.
//!
//! Threats: evidence of another node, network, key or day (the binding is made from the card that was verified, never from what
//! the evidence says); bytes without end (sizes are checked first, places on the disk are shared out by origin); a flood of
//! evidence that does not hold (one thread with a bounded queue, and a node that published three of them is not looked at
//! for a while); an honest peer blamed for what it passed on (only who signed the card is).

mod examine;
mod host;
mod in_tee;
#[cfg(test)]
pub(crate) mod minted;
mod pieces;
mod policy_file;
mod source;
mod verifier;

pub use examine::Claim;
pub(crate) use examine::{LIFE_AFTER_EPOCH_S, Outcome, examine, market_tee};
pub use host::HostTee;
pub(crate) use host::{InstanceFlaw, backend_tee};
pub(crate) use in_tee::InTee;
pub(crate) use pieces::fetch;
pub use pieces::{Pieces, Put, Wanted};
pub use policy_file::{PolicyError, read_policy};
pub(crate) use source::Source;
pub use source::SourceError;
pub(crate) use verifier::Finding;
pub use verifier::Verifier;
