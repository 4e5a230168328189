//! Reading a whole log and holding it to its checkpoints, one bundle in memory at a time.
//!
//! Threat: a provider that takes entries back, rewrites them, or shows several logs: each is told apart, with the sizes and roots.

use std::{cell::RefCell, collections::BTreeMap, convert::Infallible};

use super::{
    BundleError, Checkpoint, ConsistencyProof, Entry, EntryError, Frontier, Hash, NodeSource,
    OutcomeClass, ProofError, TilePath, bundle_entries, bundles_between, leaf_hash,
    prove_consistency, verify_consistency,
};

/// How a checkpoint stands to an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// The log has not grown.
    Same,
    /// The log has grown by so many entries.
    Grown(u64),
}

/// Why a log or a checkpoint was not accepted. All but `Source` are the provider's doing.
#[derive(Debug, thiserror::Error)]
pub enum AuditError<E: std::error::Error + 'static> {
    /// The two checkpoints are of different logs.
    #[error("checkpoints are of different logs")]
    OtherLog,
    /// The log got shorter: the provider took entries back.
    #[error("log was rolled back from {known} to {shown} entries")]
    Rollback {
        /// Size that was signed before.
        known: u64,
        /// Size that is shown now.
        shown: u64,
    },
    /// Two signed checkpoints cannot both be true: the provider shows different logs, or rewrote one.
    #[error("log was forked: the first {size} entries have root {shown}, and {known} was signed")]
    Fork {
        /// Size of the earlier checkpoint.
        size: u64,
        /// Root that was signed for it.
        known: Hash,
        /// Root that the log now leads to.
        shown: Hash,
    },
    /// The proof that was offered does not connect the two checkpoints.
    #[error("consistency with the checkpoint of {known} entries is not proven")]
    NotProven {
        /// Size of the earlier checkpoint.
        known: u64,
        /// The cause.
        #[source]
        source: ProofError,
    },
    /// A bundle could not be had.
    #[error("entry bundle {path} cannot be read")]
    Source {
        /// Which bundle.
        path: TilePath,
        /// The cause.
        #[source]
        source: E,
    },
    /// A bundle is malformed.
    #[error("entry bundle {path} is malformed")]
    Bundle {
        /// Which bundle.
        path: TilePath,
        /// The cause.
        #[source]
        source: BundleError,
    },
    /// An entry is malformed.
    #[error("entry {index} is malformed")]
    Entry {
        /// Which entry.
        index: u64,
        /// The cause.
        #[source]
        source: EntryError,
    },
    /// The entries are not those that were signed.
    #[error("entries lead to root {found}, the checkpoint says {signed}")]
    Root {
        /// Root in the checkpoint.
        signed: Hash,
        /// Root of the entries.
        found: Hash,
    },
}

/// Checks that `new` extends `old`, which is a checkpoint of the same log that was believed before.
///
/// # Errors
/// [`AuditError::Rollback`] and [`AuditError::Fork`] are proof of misbehaviour: both checkpoints are signed.
/// [`AuditError::NotProven`] is not yet proof: the proof may have been damaged on its way.
pub fn checkpoint_extends(
    old: &Checkpoint,
    new: &Checkpoint,
    proof: &ConsistencyProof,
) -> Result<Extension, AuditError<Infallible>> {
    compare(old, new)?;
    if old.size() == new.size() {
        return Ok(Extension::Same);
    }
    let grown = Extension::Grown(new.size() - old.size());
    if old.size() == 0 {
        return Ok(grown);
    }
    let not_proven = |source| AuditError::NotProven {
        known: old.size(),
        source,
    };
    if (proof.old_size, proof.new_size) != (old.size(), new.size()) {
        return Err(not_proven(ProofError::OutOfRange {
            position: proof.old_size,
            size: proof.new_size,
        }));
    }
    verify_consistency(proof, old.root(), new.root()).map_err(not_proven)?;
    Ok(grown)
}

/// What two checkpoints say of each other without a proof.
fn compare<E: std::error::Error>(old: &Checkpoint, new: &Checkpoint) -> Result<(), AuditError<E>> {
    if old.origin() != new.origin() {
        return Err(AuditError::OtherLog);
    }
    if new.size() < old.size() {
        return Err(AuditError::Rollback {
            known: old.size(),
            shown: new.size(),
        });
    }
    if new.size() == old.size() && new.root() != old.root() {
        return Err(AuditError::Fork {
            size: old.size(),
            known: *old.root(),
            shown: *new.root(),
        });
    }
    Ok(())
}

/// Where entry bundles come from.
pub trait BundleSource {
    /// What goes wrong when one cannot be had.
    type Error: std::error::Error + 'static;

    /// Bytes of a bundle.
    ///
    /// # Errors
    /// Whatever the source says of a bundle that it cannot give.
    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, Self::Error>;
}

/// What a whole log holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Entries.
    pub size: u64,
    /// Closed leases, by the class of their outcome.
    pub leases: BTreeMap<OutcomeClass, u64>,
    /// Refused requests, by the code of the reason.
    pub refusals: BTreeMap<u16, u64>,
}

/// Recomputes a whole downloaded log from its entries, one bundle at a time, and compares it with its checkpoint and with
/// one that was believed before.
///
/// # Errors
/// [`AuditError`].
pub fn audit<S: BundleSource>(
    source: &S,
    checkpoint: &Checkpoint,
    known: Option<&Checkpoint>,
) -> Result<Audited, AuditError<S::Error>> {
    audit_against(source, checkpoint, known.map_or(&[], std::slice::from_ref))
}

/// The same with any number of checkpoints that were believed before.
///
/// # Errors
/// [`AuditError`].
pub fn audit_against<S: BundleSource>(
    source: &S,
    checkpoint: &Checkpoint,
    known: &[Checkpoint],
) -> Result<Audited, AuditError<S::Error>> {
    for known in known {
        compare(known, checkpoint)?;
    }
    let mut known: Vec<&Checkpoint> = known.iter().collect();
    known.sort_by_key(|known| known.size());
    let mut next = known.into_iter().peekable();
    let mut fork = None;
    let mut frontier = Frontier::new();
    let mut audited = Audited::default();
    read(source, checkpoint.size(), |bytes| {
        let index = frontier.size();
        while let Some(known) = next.next_if(|known| known.size() <= index) {
            if fork.is_none() && known.size() == index && frontier.root() != *known.root() {
                fork = Some((known, frontier.root()));
            }
        }
        let entry = Entry::decode(bytes).map_err(|source| AuditError::Entry { index, source })?;
        audited.count(&entry);
        frontier.append(leaf_hash(bytes), |_, _, _| ());
        Ok(())
    })?;
    let found = frontier.root();
    if found != *checkpoint.root() {
        return Err(AuditError::Root {
            signed: *checkpoint.root(),
            found,
        });
    }
    if let Some((known, shown)) = fork {
        return Err(AuditError::Fork {
            size: known.size(),
            known: *known.root(),
            shown,
        });
    }
    audited.size = frontier.size();
    Ok(audited)
}

/// What a whole downloaded log has as its first `size` entries: their root, and the proof that it is a prefix of the log
/// that `checkpoint` speaks of. It makes a fork between two sizes evidence.
///
/// # Errors
/// [`AuditError`]; [`AuditError::NotProven`] where the log has no such prefix.
pub fn prove_prefix<S: BundleSource>(
    source: &S,
    checkpoint: &Checkpoint,
    size: u64,
) -> Result<(Hash, ConsistencyProof), AuditError<S::Error>> {
    // First which hashes the proof asks for, so that the log is read once and never held.
    let asked = Asked::default();
    let Ok(outline) = prove_consistency(&asked, size, checkpoint.size());
    outline.map_err(|source| AuditError::NotProven {
        known: size,
        source,
    })?;
    let mut nodes = Nodes(asked.0.into_inner());
    let mut frontier = Frontier::new();
    let mut root = Hash::empty_tree();
    read(source, checkpoint.size(), |bytes| {
        frontier.append(leaf_hash(bytes), |level, index, hash| {
            if let Some(node) = nodes.0.get_mut(&(level, index)) {
                *node = hash;
            }
        });
        if frontier.size() == size {
            root = frontier.root();
        }
        Ok(())
    })?;
    let Ok(proof) = prove_consistency(&nodes, size, checkpoint.size());
    let proof = proof.map_err(|source| AuditError::NotProven {
        known: size,
        source,
    })?;
    Ok((root, proof))
}

/// Notes which hashes are asked for.
#[derive(Default)]
struct Asked(RefCell<BTreeMap<(u8, u64), Hash>>);

impl NodeSource for Asked {
    type Error = Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
        let unknown = Hash::empty_tree();
        self.0.borrow_mut().insert((level, index), unknown);
        Ok(unknown)
    }
}

/// The hashes that were asked for.
struct Nodes(BTreeMap<(u8, u64), Hash>);

impl NodeSource for Nodes {
    type Error = Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
        Ok(self.0[&(level, index)])
    }
}

/// Hands over the first `size` entries of a log, one after the other.
fn read<S: BundleSource>(
    source: &S,
    size: u64,
    mut take: impl FnMut(&[u8]) -> Result<(), AuditError<S::Error>>,
) -> Result<(), AuditError<S::Error>> {
    for path in bundles_between(0, size) {
        let bundle = source
            .bundle(&path)
            .map_err(|source| AuditError::Source { path, source })?;
        let entries = bundle_entries(&bundle, path.width())
            .map_err(|source| AuditError::Bundle { path, source })?;
        entries.into_iter().try_for_each(&mut take)?;
    }
    Ok(())
}

impl Audited {
    fn count(&mut self, entry: &Entry) {
        match entry {
            Entry::Lease(lease) => {
                *self.leases.entry(lease.outcome).or_default() += 1;
            }
            Entry::Refusals(totals) => {
                for (&reason, &count) in totals.by_reason() {
                    let total = self.refusals.entry(reason).or_default();
                    *total = total.saturating_add(u64::from(count));
                }
            }
        }
    }
}
