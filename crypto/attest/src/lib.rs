//! Evidence of trusted execution environments (TEEs): collected, verified, and decided by policy.
//!
//! ```text
//!  guest ─ collect ─► Evidence ──┐
//!  PCCS, KDS ─ fetch ─► Collateral ┴─ verify(trust, now) ─► Verified ─ Policy::decide(expected, now) ─► Decision
//!                                          │
//!                                          └─► Refusal { reason, blame }
//! ```
//!
//! Verification is pure: no I/O, no clock, no randomness. What verified is a type that nothing else makes ([`Verified`]),
//! and a decision explains itself line by line ([`Decision`]).
//!
//! Threats: evidence with arbitrary reference values, of another day, bound to nothing, of another node, or minted by a
//! test. The crate knows nothing of the marketplace: cards, mixes and receipts use it, not the other way round.

pub mod binding;
mod bundle;
mod cache;
pub mod collect;
pub mod date;
mod digest;
pub mod fetch;
pub mod files;
pub mod measure;
mod policy;
mod reference;
mod refusal;
mod snp;
pub mod soft;
mod tdx;
mod verified;
mod x509;

pub use bundle::{Bundle, MAX_BUNDLE_BYTES};
pub use cache::{Answer, MAX_ANSWERS, REFUSAL_LIFE_S, VerifiedCache};
pub use digest::{CollateralDigest, EvidenceDigest, HexError, Measurement, ReportData, RootId};
pub use policy::{Decision, Expected, Line, MAX_POLICY_BYTES, Policy, Rule, Verdict};
pub use reference::{
    Believed, MAX_REFERENCE_BYTES, ReferenceError, ReferenceSignError, ReferenceValues, Seen,
    sign_reference, with_references,
};
pub use refusal::{Blame, Part, Refusal};
pub use snp::{
    GuestPolicy, MAX_SNP_COLLATERAL_BYTES, Product, REPORT_BYTES, SnpCollateral, SnpFacts,
    SnpPieces, SnpReport, SnpTcb,
};
pub use tdx::{
    MAX_COLLATERAL_BYTES, MAX_QUOTE_BYTES, TcbStatus, TdReport, TdVersion, TdxCollateral, TdxFacts,
    TdxQuote, UnknownStatus,
};
pub use verified::{
    Collateral, Evidence, Facts, FactsRef, Kind, Tee, Trust, Verified, VerifiedSnp, VerifiedTdx,
    VerifiedTest, verify,
};
