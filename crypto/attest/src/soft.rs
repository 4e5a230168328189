//! A software TEE for development and tests: it has the structures of the real ones, and proves nothing.
//!
//! ```text
//! TestTdx: root ─► PCK CA ─► PCK ─► quoting enclave ─► quote      TestAmd: ARK ─► ASK ─► TestSnp: VCEK ─► report
//! ```
//!
//! What it mints verifies under its own root only, as [`crate::VerifiedTest`], kind `none+test`; and only for callers whose
//! policy names that root by its SHA-256. Its certificates say in their names that they prove nothing.
//!
//! Threat: test evidence that is taken for the real thing. No function here gives out a [`crate::Verified`].

mod der;
mod root;
mod snp;
mod tdx;

pub use root::{MAX_ROOT_BYTES, TestRoot};
pub use snp::{SnpRecipe, TestAmd, TestSnp};
pub use tdx::{TdxRecipe, TestTdx};

use crate::refusal::Refusal;

/// Why nothing was minted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SoftError {
    /// The source of randomness gave none.
    #[error("no randomness")]
    Randomness,
    /// A file that holds no test root, or a certificate of another key.
    #[error("this is no test root")]
    Root,
    /// The recipe does not give what parses.
    #[error("the recipe gives something that does not parse")]
    Minted(#[source] Refusal),
}
