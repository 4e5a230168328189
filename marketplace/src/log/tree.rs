//! The Merkle tree of RFC 6962: roots, and proofs of inclusion and consistency.
//!
//! Threat: a proof of a stranger for a leaf outside of the tree, or with other hashes than the sizes ask for: it is refused, and
//! read no further than the tree is deep.

use super::{Hash, hash::node_hash};

/// Hashes a proof can hold: a tree has at most 2^63 leaves, and a consistency proof has one hash more than levels.
pub const MAX_PROOF_HASHES: usize = 64;

/// Where the hashes of complete subtrees come from.
pub trait NodeSource {
    /// What goes wrong when one cannot be had.
    type Error;

    /// Hash of the complete subtree over the leaves `index << level .. (index + 1) << level`.
    ///
    /// # Errors
    /// Whatever the source says of a hash that it cannot give.
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// Why a proof does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The leaf or the older tree lies outside of the tree.
    #[error("position {position} is not in a tree of size {size}")]
    OutOfRange {
        /// Index of the leaf or size of the older tree.
        position: u64,
        /// Size of the tree.
        size: u64,
    },
    /// The proof has too many or too few hashes for the sizes it speaks of.
    #[error("a proof of {0} hashes does not fit these tree sizes")]
    Length(usize),
    /// The hashes do not lead to the root.
    #[error("the proof does not lead to the root of the checkpoint")]
    Root,
}

/// That a leaf is in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// Index of the leaf, from 0.
    pub index: u64,
    /// Size of the tree.
    pub size: u64,
    /// Siblings from the leaf upwards.
    pub path: Vec<Hash>,
}

/// That a tree is a prefix of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// Size of the older tree.
    pub old_size: u64,
    /// Size of the newer tree.
    pub new_size: u64,
    /// Hashes in the order of RFC 6962 §2.1.2.
    pub path: Vec<Hash>,
}

/// Root of the first `size` leaves.
///
/// # Errors
/// What the source says of a hash that it cannot give.
pub fn root_of<S: NodeSource>(source: &S, size: u64) -> Result<Hash, S::Error> {
    if size == 0 {
        return Ok(Hash::empty_tree());
    }
    subtree(source, 0, size)
}

/// Proof that leaf `index` is in the tree of `size` leaves (RFC 6962 §2.1.1).
///
/// # Errors
/// `Ok(Err(_))` where the leaf is not in the tree, `Err(_)` what the source says.
pub fn prove_inclusion<S: NodeSource>(
    source: &S,
    index: u64,
    size: u64,
) -> Result<Result<InclusionProof, ProofError>, S::Error> {
    if index >= size {
        return Ok(Err(ProofError::OutOfRange {
            position: index,
            size,
        }));
    }
    let (mut start, mut end) = (0, size);
    let mut path = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            path.push(subtree(source, middle, end)?);
            end = middle;
        } else {
            path.push(subtree(source, start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(Ok(InclusionProof { index, size, path }))
}

/// Proof that the tree of `old_size` leaves is a prefix of that of `new_size` leaves (RFC 6962 §2.1.2).
///
/// # Errors
/// `Ok(Err(_))` where the older tree is empty or larger, `Err(_)` what the source says.
pub fn prove_consistency<S: NodeSource>(
    source: &S,
    old_size: u64,
    new_size: u64,
) -> Result<Result<ConsistencyProof, ProofError>, S::Error> {
    if old_size == 0 || old_size > new_size {
        return Ok(Err(ProofError::OutOfRange {
            position: old_size,
            size: new_size,
        }));
    }
    let (mut start, mut end) = (0, new_size);
    let mut path = Vec::new();
    while end != old_size {
        let middle = start + split(end - start);
        if old_size <= middle {
            path.push(subtree(source, middle, end)?);
            end = middle;
        } else {
            path.push(subtree(source, start, middle)?);
            start = middle;
        }
    }
    // Where the older tree is itself a complete left subtree, the verifier knows its root already.
    if start != 0 {
        path.push(subtree(source, start, end)?);
    }
    path.reverse();
    Ok(Ok(ConsistencyProof {
        old_size,
        new_size,
        path,
    }))
}

/// Checks that `leaf` is at its place under `root` (RFC 9162 §2.1.3.2).
///
/// # Errors
/// [`ProofError`] where it is not, or where the proof has not the one length that fits.
pub fn verify_inclusion(
    proof: &InclusionProof,
    leaf: &Hash,
    root: &Hash,
) -> Result<(), ProofError> {
    if proof.index >= proof.size {
        return Err(ProofError::OutOfRange {
            position: proof.index,
            size: proof.size,
        });
    }
    let (mut node, mut last) = (proof.index, proof.size - 1);
    let mut hash = *leaf;
    for sibling in &proof.path {
        if last == 0 {
            return Err(ProofError::Length(proof.path.len()));
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::Length(proof.path.len()));
    }
    if hash == *root {
        Ok(())
    } else {
        Err(ProofError::Root)
    }
}

/// Checks that the tree with root `old_root` is a prefix of the tree with root `new_root` (RFC 9162 §2.1.4.2).
///
/// # Errors
/// [`ProofError`] where it is not. An empty older tree has no proof: it is a prefix of everything.
pub fn verify_consistency(
    proof: &ConsistencyProof,
    old_root: &Hash,
    new_root: &Hash,
) -> Result<(), ProofError> {
    let (old_size, new_size) = (proof.old_size, proof.new_size);
    if old_size == 0 || old_size > new_size {
        return Err(ProofError::OutOfRange {
            position: old_size,
            size: new_size,
        });
    }
    let length = || ProofError::Length(proof.path.len());
    if old_size == new_size {
        if !proof.path.is_empty() {
            return Err(length());
        }
        return if old_root == new_root {
            Ok(())
        } else {
            Err(ProofError::Root)
        };
    }
    let mut path = proof.path.iter();
    let first = if old_size.is_power_of_two() {
        *old_root
    } else {
        *path.next().ok_or_else(length)?
    };
    let (mut node, mut last) = (old_size - 1, new_size - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    let (mut old, mut new) = (first, first);
    for hash in path {
        if last == 0 {
            return Err(length());
        }
        if node & 1 == 1 || node == last {
            old = node_hash(hash, &old);
            new = node_hash(hash, &new);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new = node_hash(&new, hash);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(length());
    }
    if old == *old_root && new == *new_root {
        Ok(())
    } else {
        Err(ProofError::Root)
    }
}

/// The right edge of a tree: all that is needed to append to it and to know its root.
///
/// One hash for each bit set in the size, at most 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// Roots of the complete subtrees, the largest first.
    peaks: Vec<Hash>,
}

impl Default for Frontier {
    fn default() -> Self {
        Self::new()
    }
}

impl Frontier {
    /// The frontier of the tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self {
            size: 0,
            peaks: Vec::new(),
        }
    }

    /// The frontier of a tree that has been stored.
    ///
    /// # Errors
    /// What the source says of a hash that it cannot give.
    pub fn load<S: NodeSource>(source: &S, size: u64) -> Result<Self, S::Error> {
        let mut peaks = Vec::new();
        let mut start = 0;
        while start < size {
            let level = (size - start).ilog2() as u8;
            peaks.push(source.node(level, start >> level)?);
            start += 1 << level;
        }
        Ok(Self { size, peaks })
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Appends a leaf and calls `complete` with level, index and hash of each subtree that it completes, the leaf first.
    pub fn append(&mut self, leaf: Hash, mut complete: impl FnMut(u8, u64, Hash)) {
        let mut hash = leaf;
        let mut index = self.size;
        complete(0, index, hash);
        for level in 1..=self.size.trailing_ones() as u8 {
            let left = self
                .peaks
                .pop()
                .expect("one peak for each bit set in the size");
            hash = node_hash(&left, &hash);
            index >>= 1;
            complete(level, index, hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// Root of the tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.peaks
            .iter()
            .rev()
            .copied()
            .reduce(|right, left| node_hash(&left, &right))
            .unwrap_or_else(Hash::empty_tree)
    }
}

/// Largest power of two that is smaller than `n`, which is at least 2 (the `k` of RFC 6962 §2.1).
fn split(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// Root of the leaves `start..end`, where `start` is where a subtree of that size begins.
fn subtree<S: NodeSource>(source: &S, start: u64, end: u64) -> Result<Hash, S::Error> {
    let n = end - start;
    if n.is_power_of_two() {
        let level = n.ilog2() as u8;
        return source.node(level, start >> level);
    }
    let middle = start + split(n);
    Ok(node_hash(
        &subtree(source, start, middle)?,
        &subtree(source, middle, end)?,
    ))
}
