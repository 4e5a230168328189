//! Wire types and lifecycles of the souk market, without I/O.
//!
//! ```text
//!   card, capacity ──► directory ──► quorum ──► matching         what a requester may rent
//!   envelope ──► admission ──► lifecycle ──► statement ──► log   what becomes of a request
//!   statement ──► account                                        what it brought and cost
//!   receipt, refusal, status ◄── reply                           what the requester is told
//! ```
//!
//! Every object is canonical CBOR with integer keys inside a signed object of souk-crypto; its page in `docs/` has the
//! CDDL and the bounds. Everything that came from outside is a validated type before it can be read.

pub mod account;
pub mod admission;
pub mod capacity;
pub mod card;
pub mod directory;
pub mod envelope;
pub mod lifecycle;
pub mod log;
pub mod matching;
pub mod moment;
pub mod price;
pub mod quorum;
pub mod reconcile;
pub mod refusal;
pub mod reply;
pub mod request;
pub mod retirement;
pub mod sealed;
pub mod shares;
pub mod snapshot;
pub mod standing;
pub mod statement;
pub mod units;
pub mod wire;
pub mod work;
