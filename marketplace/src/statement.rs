//! What a lease used and how it ended: the record that its closing makes, once.
//!
//! The public log holds a salted commitment to it ([`crate::log`]); the statement itself goes to the holder of the
//! lease, who alone can open that commitment. A meter that failed is told as such: unknown is not zero.
//!
//! Threat: a provider that tells one thing to the log and another to the holder. The leaf commits to these bytes, so
//! the holder's copy either opens it or proves the lie.

use souk_crypto::{
    UnixTime,
    cbor::{self, DecodeError},
};

use crate::{
    units::{Digest, ImageHash, LeaseId, Meter, Money, Resources},
    wire::{wire_enum, wire_map},
};

/// Largest encoded statement in bytes: the fixed fields at their longest, with room for keys to come.
pub const MAX_STATEMENT_LEN: usize = 384;

wire_enum! {
    /// Why a lease ended.
    pub enum Outcome {
        /// The holder ended it.
        EndedByHolder = 0 => "ended-by-holder",
        /// Its time was over.
        Expired = 1 => "expired",
        /// The instance exited by itself.
        InstanceExited = 2 => "instance-exited",
        /// No instance came up; nothing is owed.
        ProvisionFailed = 3 => "provision-failed",
        /// The operator of the provider ended it.
        EndedByProvider = 4 => "ended-by-provider",
        /// The record of the lease was lost; what is known stands in the statement.
        RecordLost = 5 => "record-lost",
    }
}

wire_map! {
    /// The final account of one lease.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Statement {
        /// The lease.
        0 => pub lease: LeaseId,
        /// What ran.
        1 => pub image: ImageHash,
        /// What was reserved for it.
        2 => pub resources: Resources,
        /// When it was accepted.
        3 => pub from: UnixTime,
        /// When its instance was gone.
        4 => pub to: UnixTime,
        /// CPU time, in core-milliseconds.
        5 => pub cpu_core_ms: Meter,
        /// Memory in use over time, in MiB-seconds.
        6 => pub memory_mib_s: Meter,
        /// Bytes that entered the instance over its listeners.
        7 => pub net_rx_bytes: Meter,
        /// Bytes that left the instance over its listeners.
        8 => pub net_tx_bytes: Meter,
        /// Why it ended.
        9 => pub outcome: Outcome,
        /// What is owed, in the asset of the card.
        10 => pub charge: Money,
        /// Digest of the evidence of the instance, where there was any.
        11 => pub evidence: Option<Digest>,
    }
    check = Statement::check;
}

impl Statement {
    /// The canonical bytes, which the leaf of the log commits to.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// [`DecodeError`] for anything but one statement of at most [`MAX_STATEMENT_LEN`] bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode(bytes, MAX_STATEMENT_LEN)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.from <= self.to {
            Ok(())
        } else {
            Err("the lease ends before it begins")
        }
    }
}
