//! The usage log: an append-only Merkle tree per provider, so that what was used cannot be rewritten afterwards.
//!
//! ```text
//!  statement + salt ──commit──► entry ──► leaf hash ─┐
//!                                                    ├─ tree (RFC 6962) ──► tiles, entry bundles ──► checkpoint (signed)
//!  totals of refusals ────────► entry ──► leaf hash ─┘
//! ```
//!
//! Threats:
//! - *A provider rewrites its past, or shows one log to a requester and another to the rest.* A checkpoint is signed and
//!   names size and root; [`checkpoint_extends`] finds a rollback and a fork, and [`audit()`] recomputes a whole log. Two
//!   [`LogClaim`]s that cannot both be true make a [`Contradiction`], which proves itself to everybody.
//! - *A stranger reads who used what.* An entry is a salted commitment, an outcome class and an hour; only the holder of
//!   the lease has the [`Opening`].
//! - *A leaf that passes for an inner node, or the other way round.* Leaf and node hashes have different prefixes
//!   ([RFC 6962 §2.1](https://www.rfc-editor.org/rfc/rfc6962#section-2.1)).
//!
//! Everything here is a function of bytes: where hashes and tiles come from is behind [`NodeSource`], [`TileSource`] and
//! [`BundleSource`]. The layout is that of <https://c2sp.org/tlog-tiles>, checkpoints are
//! <https://c2sp.org/tlog-checkpoint> in <https://c2sp.org/signed-note>, so that independent tools verify a log.

mod audit;
mod checkpoint;
mod claim;
mod contradiction;
mod entry;
mod hash;
mod note;
mod tile;
mod tree;

pub use audit::{
    AuditError, Audited, BundleSource, Extension, audit, audit_against, checkpoint_extends,
    prove_prefix,
};
pub use checkpoint::{Checkpoint, CheckpointError, MAX_CHECKPOINT_BYTES, origin};
pub use claim::{ClaimError, LogClaim, MAX_CLAIM_BYTES, SignedAt};
pub use contradiction::{Contradiction, ContradictionError, Contradicts, MAX_CONTRADICTION_BYTES};
pub use entry::{
    Entry, EntryError, HourBucket, LeaseEntry, MAX_ENTRY_BYTES, MAX_REFUSAL_REASONS,
    MAX_STATEMENT_BYTES, Opening, OutcomeClass, RefusalEntry,
};
pub use hash::{Hash, leaf_hash, node_hash};
pub use note::{KeyName, NoteError, NoteVerifier, SignedNote, key_id};
pub use tile::{
    BundleError, TILE_HEIGHT, TILE_WIDTH, TilePath, TilePathError, TileSource, TiledNodes,
    TilesError, bundle_entries, bundle_path, bundles_between, encode_bundle, tiles_between,
};
pub use tree::{
    ConsistencyProof, Frontier, InclusionProof, MAX_PROOF_HASHES, NodeSource, ProofError,
    prove_consistency, prove_inclusion, root_of, verify_consistency, verify_inclusion,
};
