//! Evidence that a provider showed logs that cannot both be true: two of its own claims that contradict each other.
//!
//! | kind | the claims | what else is needed |
//! |---|---|---|
//! | fork | of one size, with two roots | nothing |
//! | fork | of two sizes | a proof of which root the larger log has at the smaller size |
//! | rollback | the later one of a smaller log | nothing: capacity messages say in which order they were signed |
//!
//! It proves itself to anybody who has it, without asking the provider or whoever passed it on.
//!
//! Threats: evidence that was made up (every part is checked anew when it is read, and only the provider's own signatures
//! count); an honest provider whose clock was set back, and who seems to have gone back with it (the order is that of its
//! cards, whose sequences rise whatever the clock does).

use std::fmt;

use souk_crypto::{NetworkId, NodeId, cbor, domain};

use super::{
    ConsistencyProof, Hash, LogClaim, MAX_CLAIM_BYTES, MAX_PROOF_HASHES, ProofError,
    claim::ClaimError, verify_consistency,
};
use crate::{
    units::Digest,
    wire::{Blob, List, wire_map},
};

/// Largest evidence, in bytes.
pub const MAX_CONTRADICTION_BYTES: usize =
    2 * MAX_CLAIM_BYTES + (MAX_PROOF_HASHES + 1) * (Hash::LEN + 2) + 64;

wire_map! {
    #[derive(Clone, Debug)]
    struct Parts {
        /// The claim of the smaller log, or of one of the same size.
        0 => smaller: Blob<1, MAX_CLAIM_BYTES>,
        1 => larger: Blob<1, MAX_CLAIM_BYTES>,
        /// The root that the larger log has at the size of the smaller one.
        2 => shown: Option<Digest>,
        /// The proof of that (RFC 6962 §2.1.2).
        3 => proof: Option<List<Digest, MAX_PROOF_HASHES>>,
    }
}

/// How two claims contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradicts {
    /// Two logs: at this size there are two roots.
    Fork {
        /// Entries.
        size: u64,
        /// One root.
        first: Hash,
        /// The other.
        second: Hash,
    },
    /// Entries that were signed are gone.
    Rollback {
        /// Entries that were signed.
        from: u64,
        /// Entries that were signed later.
        to: u64,
    },
}

impl fmt::Display for Contradicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fork {
                size,
                first,
                second,
            } => write!(
                f,
                "its usage log was forked: the first {size} entries have root {first} and root {second}"
            ),
            Self::Rollback { from, to } => {
                write!(
                    f,
                    "its usage log was rolled back from {from} to {to} entries"
                )
            }
        }
    }
}

/// Two claims of one provider that cannot both be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contradiction {
    smaller: LogClaim,
    larger: LogClaim,
    prefix: Option<(Hash, ConsistencyProof)>,
    how: Contradicts,
}

/// Why something is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum ContradictionError {
    /// The bytes around it.
    #[error("not the form of evidence")]
    Form(#[source] cbor::DecodeError),
    /// One of the claims is none.
    #[error("one of the claims does not hold")]
    Claim(#[from] ClaimError),
    /// The proof does not connect the claims.
    #[error("the proof does not hold")]
    Proof(#[source] ProofError),
    /// Both claims can be true.
    #[error("the claims do not contradict each other")]
    None,
}

impl Contradiction {
    /// Finds what two claims of one provider show without a proof: a fork at one size, or a rollback.
    #[must_use]
    pub fn between(one: &LogClaim, other: &LogClaim) -> Option<Self> {
        let (smaller, larger) = if one.size() <= other.size() {
            (one, other)
        } else {
            (other, one)
        };
        let how = contradicts(smaller, larger, None)?;
        Some(Self {
            smaller: smaller.clone(),
            larger: larger.clone(),
            prefix: None,
            how,
        })
    }

    /// A fork between logs of two sizes: `proof` shows that the larger one has root `shown` at the size of the smaller one.
    ///
    /// # Errors
    /// [`ContradictionError::Proof`] where the proof does not hold, [`ContradictionError::None`] where that is the root
    /// that was claimed.
    pub fn by_prefix(
        smaller: LogClaim,
        larger: LogClaim,
        shown: Hash,
        proof: ConsistencyProof,
    ) -> Result<Self, ContradictionError> {
        if (proof.old_size, proof.new_size) != (smaller.size(), larger.size()) {
            let (position, size) = (proof.old_size, proof.new_size);
            return Err(ContradictionError::Proof(ProofError::OutOfRange {
                position,
                size,
            }));
        }
        verify_consistency(&proof, &shown, &larger.root()).map_err(ContradictionError::Proof)?;
        let how = contradicts(&smaller, &larger, Some(shown)).ok_or(ContradictionError::None)?;
        Ok(Self {
            smaller,
            larger,
            prefix: Some((shown, proof)),
            how,
        })
    }

    /// Reads evidence that came from anywhere.
    ///
    /// # Errors
    /// [`ContradictionError`].
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Self, ContradictionError> {
        let parts: Parts =
            cbor::decode(bytes, MAX_CONTRADICTION_BYTES).map_err(ContradictionError::Form)?;
        let smaller = LogClaim::open(&parts.smaller, network)?;
        let larger = LogClaim::open(&parts.larger, network)?;
        match (parts.shown, parts.proof) {
            (Some(shown), Some(path)) => {
                let proof = ConsistencyProof {
                    old_size: smaller.size(),
                    new_size: larger.size(),
                    path: path.iter().map(|hash| Hash(hash.0)).collect(),
                };
                Self::by_prefix(smaller, larger, Hash(shown.0), proof)
            }
            _ => Self::between(&smaller, &larger).ok_or(ContradictionError::None),
        }
    }

    /// As it is kept and passed on.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let claim = |claim: &LogClaim| {
            Blob::new(claim.as_bytes().to_vec()).expect("a claim is within its bound")
        };
        cbor::encode(&Parts {
            smaller: claim(&self.smaller),
            larger: claim(&self.larger),
            shown: self.prefix.as_ref().map(|(shown, _)| Digest(shown.0)),
            proof: self.prefix.as_ref().map(|(_, proof)| {
                let hashes = proof.path.iter().map(|hash| Digest(hash.0)).collect();
                List::new(hashes).expect("it was verified, so it is no longer than any proof")
            }),
        })
    }

    /// Who contradicts itself.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.larger.node()
    }

    /// How.
    #[must_use]
    pub fn how(&self) -> Contradicts {
        self.how
    }

    /// A name for this evidence, the same everywhere.
    #[must_use]
    pub fn digest(&self, network: &NetworkId) -> Digest {
        Digest(domain::LOG_EVIDENCE.hash(network, &[&self.to_bytes()]))
    }
}

/// How two claims contradict each other, where `smaller` is not of a larger log. `shown` is the root that the larger log
/// was proven to have at the size of the smaller.
fn contradicts(smaller: &LogClaim, larger: &LogClaim, shown: Option<Hash>) -> Option<Contradicts> {
    if smaller.node() != larger.node() {
        return None;
    }
    let size = smaller.size();
    let second = if size == larger.size() {
        Some(larger.root())
    } else {
        shown
    };
    if let Some(second) = second.filter(|second| *second != smaller.root()) {
        return Some(Contradicts::Fork {
            size,
            first: smaller.root(),
            second,
        });
    }
    let later = smaller
        .signed_at()
        .zip(larger.signed_at())
        .is_some_and(|(smaller, larger)| larger < smaller);
    (later && size < larger.size()).then_some(Contradicts::Rollback {
        from: larger.size(),
        to: size,
    })
}
