//! Checking the final account of a lease against the usage log of its provider.
//!
//! ```text
//!  statement, salt ─► commitment = entry ─► leaf ─ path ─► root = checkpoint ◄─ signed by the provider's log key
//! ```
//!
//! Threat: a provider that tells the holder one thing and the log another, or shows the holder an entry that is in no
//! log. Both fail here. A log that is shown to nobody else is found by comparing checkpoints, which travel with the
//! capacity messages.

use souk_crypto::{LogPublicKey, NetworkId, NodeId, cbor::DecodeError};
use souk_market::{
    envelope::Grant,
    log::{
        self, Checkpoint, CheckpointError, Entry, EntryError, Hash, HourBucket, InclusionProof,
        NoteError, NoteVerifier, Opening, OutcomeClass, ProofError, leaf_hash, verify_inclusion,
    },
    reply::{FinalStatement, Receipt},
    statement::{Outcome, Statement},
    units::{Digest, LeaseId, Money},
};

/// A statement that the provider's log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenStatement {
    /// The account.
    pub statement: Statement,
    /// Index of its entry.
    pub index: u64,
    /// Leaves of the log at the checkpoint.
    pub log_size: u64,
    /// Root of the log at the checkpoint.
    pub root: Hash,
    /// Hashes in the proof.
    pub path_len: usize,
    /// The signed checkpoint, as the provider publishes it.
    pub checkpoint: String,
}

/// What is wrong with a final statement; all of it is the provider's fault.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Not a statement.
    #[error("the statement does not read")]
    Statement(#[source] DecodeError),
    /// It is of another lease.
    #[error("the statement is of another lease")]
    OtherLease,
    /// Not an entry of a log.
    #[error("the log entry does not read")]
    Entry(#[source] EntryError),
    /// The entry is for something else, or says something else.
    #[error("the log entry differs from the statement in {0}")]
    Differs(&'static str),
    /// The provider claims more than was agreed, or something else.
    #[error("the statement differs from what was agreed in {0}")]
    Beyond(&'static str),
    /// The provider has no log key.
    #[error("the card of the provider names no log key")]
    NoLogKey,
    /// The name of the log is not one.
    #[error("the log has no name")]
    Origin(#[source] NoteError),
    /// The checkpoint is not the provider's.
    #[error("the checkpoint does not verify")]
    Checkpoint(#[source] CheckpointError),
    /// The path is cut short.
    #[error("the inclusion proof does not consist of hashes")]
    Path,
    /// The entry is not in the log.
    #[error("the entry is not in the log of the checkpoint")]
    NotIncluded(#[source] ProofError),
}

/// Checks a final statement of `lease` from `provider`, whose log key is `log_key`.
///
/// # Errors
/// [`StatementError`] names the first link of the chain that does not hold.
pub fn verify_statement(
    network: &NetworkId,
    provider: &NodeId,
    log_key: Option<&LogPublicKey>,
    lease: LeaseId,
    claimed: &FinalStatement,
) -> Result<ProvenStatement, StatementError> {
    let statement = Statement::from_bytes(&claimed.statement).map_err(StatementError::Statement)?;
    if claimed.lease != lease || statement.lease != lease {
        return Err(StatementError::OtherLease);
    }
    let commitment = Opening {
        salt: claimed.salt.clone(),
        statement: claimed.statement.to_vec(),
    }
    .commitment(network);
    check_entry(&claimed.entry, commitment, &statement)?;

    let origin = log::origin(network, provider).map_err(StatementError::Origin)?;
    let key = *log_key.ok_or(StatementError::NoLogKey)?;
    let verifier = NoteVerifier::new(origin.clone(), key);
    let checkpoint = Checkpoint::open(&claimed.checkpoint, &origin, &verifier)
        .map_err(StatementError::Checkpoint)?;

    let (hashes, rest) = claimed.path.as_chunks::<{ Hash::LEN }>();
    if !rest.is_empty() {
        return Err(StatementError::Path);
    }
    let proof = InclusionProof {
        index: claimed.index,
        size: checkpoint.size(),
        path: hashes.iter().copied().map(Hash).collect(),
    };
    verify_inclusion(&proof, &leaf_hash(&claimed.entry), checkpoint.root())
        .map_err(StatementError::NotIncluded)?;
    Ok(ProvenStatement {
        statement,
        index: claimed.index,
        log_size: checkpoint.size(),
        root: *checkpoint.root(),
        path_len: hashes.len(),
        checkpoint: String::from_utf8_lossy(&claimed.checkpoint).into_owned(),
    })
}

/// Checks a statement against the envelope: a provider must not get a counter-signature for more than was agreed.
///
/// A lease whose record the provider lost names neither image nor size, and costs nothing.
///
/// # Errors
/// [`StatementError::Beyond`].
pub(super) fn check_terms(
    statement: &Statement,
    grant: &Grant,
    receipt: Option<&Receipt>,
) -> Result<(), StatementError> {
    let most = receipt.map_or(grant.max_total, |receipt| {
        receipt.price.min(grant.max_total)
    });
    let is_lost = statement.outcome == Outcome::RecordLost;
    // Where the receipt was lost, the statement is the first to name any.
    let named = receipt.map(|receipt| receipt.evidence.first().map(|named| named.digest));
    let evidence = named.unwrap_or(statement.evidence);
    let agreed = [
        ("the charge", statement.charge <= most),
        ("the image", is_lost || statement.image == grant.image),
        (
            "the size",
            is_lost || statement.resources == grant.resources,
        ),
        ("the charge", !is_lost || statement.charge == Money(0)),
        ("the evidence", is_lost || statement.evidence == evidence),
    ];
    match agreed.into_iter().find(|(_, agreed)| !agreed) {
        None => Ok(()),
        Some((what, _)) => Err(StatementError::Beyond(what)),
    }
}

fn check_entry(
    bytes: &[u8],
    commitment: Digest,
    statement: &Statement,
) -> Result<(), StatementError> {
    let Entry::Lease(entry) = Entry::decode(bytes).map_err(StatementError::Entry)? else {
        return Err(StatementError::Differs("its kind"));
    };
    let same = [
        ("the commitment", entry.commitment == commitment),
        (
            "the outcome",
            entry.outcome == OutcomeClass::of(statement.outcome),
        ),
        ("the hour", entry.hour == HourBucket::of(statement.to)),
    ];
    match same.into_iter().find(|(_, same)| !same) {
        None => Ok(()),
        Some((what, _)) => Err(StatementError::Differs(what)),
    }
}
