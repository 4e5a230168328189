//! What a provider signed about its log, with the proof that it was this provider.
//!
//! ```text
//!  node key ──signs──► list of sub-keys ──names──► card key ──signs──► capacity message ─┐
//!                                      └─names──► log key  ──signs──► checkpoint ────────┴──► size and root
//! ```
//!
//! A claim proves itself to anybody, whenever and from wherever it comes: so the network can remind a provider of what it
//! signed, and two claims that contradict each other are evidence ([`Contradiction`](super::Contradiction)).
//!
//! Threat: a claim that somebody else made, to silence a provider or to blame it: only keys that the node itself listed count.

use std::sync::Arc;

use souk_crypto::{
    LogPublicKey, MAX_SKEW_S, NetworkId, NodeId, Signed, SubKeys, UnixTime, Verified, cbor,
    sign::{self, OpenError},
};

use super::{Checkpoint, CheckpointError, Hash, MAX_CHECKPOINT_BYTES, NoteVerifier, origin};
use crate::{
    capacity::Capacity,
    units::Sequence,
    wire::{Blob, wire_map},
};

/// Largest claim, in bytes: a list of sub-keys, a checkpoint with all its signatures, and what frames them.
pub const MAX_CLAIM_BYTES: usize = 1_536 + MAX_CHECKPOINT_BYTES + 32;

wire_map! {
    /// A claim as it is written.
    #[derive(Clone, Debug)]
    struct Parts {
        /// What the node key signed.
        0 => list: Signed<SubKeys>,
        /// What the card key of the list signed; either this,
        1 => capacity: Option<Signed<Capacity>>,
        /// or what its log key signed.
        2 => checkpoint: Option<Blob<1, MAX_CHECKPOINT_BYTES>>,
    }
}

/// Size and root of a log, as its provider verifiably signed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogClaim {
    list: Verified<SubKeys>,
    said: Said,
    size: u64,
    root: Hash,
    bytes: Arc<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Capacity(Box<Verified<Capacity>>),
    Checkpoint(String),
}

/// When a provider signed something, in its own order: sequences of its cards rise, and times rise under one card, also
/// where its clock was set back.
pub type SignedAt = (Sequence, UnixTime);

/// Why something is not a claim of a provider about its log. All of it is the fault of who made it.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The bytes around it.
    #[error("not the form of a claim")]
    Form(#[source] cbor::DecodeError),
    /// The list of sub-keys does not open.
    #[error("its list of sub-keys does not open")]
    List(#[source] OpenError),
    /// The capacity message does not open.
    #[error("its capacity message does not open")]
    Capacity(#[source] OpenError),
    /// The checkpoint does not open.
    #[error("its checkpoint does not open")]
    Checkpoint(#[source] CheckpointError),
    /// The parts do not belong together, or one of them says nothing of a log.
    #[error("its parts do not make a claim: {0}")]
    Parts(&'static str),
}

impl LogClaim {
    /// What a capacity message says, and the list that names the key it was signed with.
    ///
    /// # Errors
    /// [`ClaimError::Parts`] where the message says nothing of a log, or the list is not the one for it.
    pub fn of_capacity(
        list: Verified<SubKeys>,
        capacity: Verified<Capacity>,
    ) -> Result<Self, ClaimError> {
        let head = capacity.log.ok_or(ClaimError::Parts("no word of a log"))?;
        if capacity.node != *list.signer() {
            return Err(ClaimError::Parts("two nodes"));
        }
        if *capacity.signer() != list.card_key {
            return Err(ClaimError::Parts("not signed by the card key of the list"));
        }
        // What was signed before the list began counts: a key is often in a later list as well, and whoever has it could
        // name any instant anyway. What it signs after the list has ended is not the node's word any more.
        if capacity.at >= list.window.to().plus_s(MAX_SKEW_S) {
            return Err(ClaimError::Parts("signed when the list had ended"));
        }
        let root = Hash(head.root.0);
        Ok(Self::new(
            list,
            Said::Capacity(Box::new(capacity)),
            head.size,
            root,
        ))
    }

    /// What a checkpoint says, and the list that names the key of the log.
    ///
    /// # Errors
    /// [`ClaimError`] where the list names no such key or the checkpoint is not signed with it.
    pub fn of_checkpoint(
        list: Verified<SubKeys>,
        network: &NetworkId,
        note: &str,
    ) -> Result<Self, ClaimError> {
        let key = list.log_key.ok_or(ClaimError::Parts("no log key"))?;
        let origin = origin(network, list.signer())
            .map_err(|error| ClaimError::Checkpoint(CheckpointError::Note(error)))?;
        let verifier = NoteVerifier::new(origin.clone(), key);
        let checkpoint = Checkpoint::open(note.as_bytes(), &origin, &verifier)
            .map_err(ClaimError::Checkpoint)?;
        let said = Said::Checkpoint(note.to_owned());
        Ok(Self::new(list, said, checkpoint.size(), *checkpoint.root()))
    }

    /// Reads a claim that came from anywhere.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Self, ClaimError> {
        let parts: Parts = cbor::decode(bytes, MAX_CLAIM_BYTES).map_err(ClaimError::Form)?;
        let list = parts.list.open(network).map_err(ClaimError::List)?;
        match (parts.capacity, parts.checkpoint) {
            (Some(capacity), None) => {
                let capacity = sign::open(capacity.as_bytes(), network);
                Self::of_capacity(list, capacity.map_err(ClaimError::Capacity)?)
            }
            (None, Some(note)) => {
                let note = std::str::from_utf8(&note)
                    .map_err(|_| ClaimError::Checkpoint(CheckpointError::Bytes))?;
                Self::of_checkpoint(list, network, note)
            }
            _ => Err(ClaimError::Parts("one of two kinds is due")),
        }
    }

    /// Whether bytes begin as those of a claim do, and of no signed object: a map of two, where those have a tag.
    #[must_use]
    pub fn is_form_of(bytes: &[u8]) -> bool {
        bytes.first() == Some(&0xa2)
    }

    /// As it is kept and passed on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn shared_bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Whose log it is.
    #[must_use]
    pub fn node(&self) -> NodeId {
        *self.list.signer()
    }

    /// The key of the log, as the node listed it.
    #[must_use]
    pub fn log_key(&self) -> Option<&LogPublicKey> {
        self.list.log_key.as_ref()
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root over them.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.root
    }

    /// When it was signed; `None` of a checkpoint, which does not say.
    #[must_use]
    pub fn signed_at(&self) -> Option<SignedAt> {
        match &self.said {
            Said::Capacity(capacity) => Some((capacity.card, capacity.at)),
            Said::Checkpoint(_) => None,
        }
    }

    /// Whether it is the word of this capacity message.
    #[must_use]
    pub fn is_of(&self, capacity: &Verified<Capacity>) -> bool {
        matches!(&self.said, Said::Capacity(own) if **own == *capacity)
    }

    fn new(list: Verified<SubKeys>, said: Said, size: u64, root: Hash) -> Self {
        let (capacity, checkpoint) = match &said {
            Said::Capacity(capacity) => (Some(capacity.signed().clone()), None),
            Said::Checkpoint(note) => (None, Blob::new(note.clone().into_bytes())),
        };
        let bytes = cbor::encode(&Parts {
            list: list.signed().clone(),
            capacity,
            checkpoint,
        });
        Self {
            list,
            said,
            size,
            root,
            bytes: bytes.into(),
        }
    }
}
