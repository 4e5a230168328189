//! What stands in the log: commitments to closed leases, and totals of refusals.
//!
//! Threat: entries that tell leases or requesters apart. A commitment is salted, outcomes are four classes, times are hours.

use std::{collections::BTreeMap, fmt};

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};
use rand_core::CryptoRng;
use souk_crypto::{NetworkId, UnixTime, cbor, domain};

use crate::{
    refusal::RefusalTotals,
    statement::Outcome,
    units::{Digest, Salt},
    wire::{definite, wire_enum, wire_map},
};

/// Largest entry, so that a full bundle stays below 64 KiB. A closed lease takes about 50 bytes.
pub const MAX_ENTRY_BYTES: usize = 254;
/// Largest statement that a commitment is opened with.
pub const MAX_STATEMENT_BYTES: usize = 512;
/// Reasons in one entry of totals; as many as fit. Wire version 1 has fewer.
pub const MAX_REFUSAL_REASONS: usize = 30;

const KIND_LEASE: u8 = 1;
const KIND_REFUSALS: u8 = 2;

wire_enum! {
    /// How a lease ended, as coarse as the public sees it.
    pub enum OutcomeClass {
        /// It lasted as long as its holder wanted or paid for.
        Completed = 1 => "completed",
        /// Its instance never came up, or died before the lease ended.
        Failed = 2 => "failed",
        /// The provider ended it early.
        Withdrawn = 3 => "withdrawn",
        /// The provider lost its record; nothing is known of what was used.
        Lost = 4 => "lost",
    }
}

impl OutcomeClass {
    /// The class of an outcome.
    #[must_use]
    pub fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::EndedByHolder | Outcome::Expired => Self::Completed,
            Outcome::InstanceExited | Outcome::ProvisionFailed => Self::Failed,
            Outcome::EndedByProvider => Self::Withdrawn,
            Outcome::RecordLost => Self::Lost,
        }
    }
}

/// An hour of the clock, counted from 1970. Finer times of public entries would tell leases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct HourBucket(pub u32);

impl HourBucket {
    /// The hour an instant lies in.
    #[must_use]
    pub fn of(instant: UnixTime) -> Self {
        Self(u32::try_from(instant.0 / 3600).unwrap_or(u32::MAX))
    }
}

/// What stands in the log for everybody to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A lease was closed.
    Lease(LeaseEntry),
    /// Requests were refused.
    Refusals(RefusalEntry),
}

wire_map! {
    /// The public side of a closed lease.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LeaseEntry {
        /// Salted hash of the statement; see [`Opening::commitment`].
        0 => pub commitment: Digest,
        /// How it ended.
        1 => pub outcome: OutcomeClass,
        /// The hour in which it was closed.
        2 => pub hour: HourBucket,
    }
}

wire_map! {
    /// How many requests were refused in a period, by reason. Single refusals are not entries: a stranger could fill the
    /// log for nothing.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct RefusalEntry {
        /// The hour in which the period ended.
        0 => pub hour: HourBucket,
        /// Counts by the code of the reason; a count that is larger than its type stands at the largest.
        1 => by_reason: ByReason,
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ByReason(BTreeMap<u16, u32>);

impl RefusalEntry {
    /// Totals of a period; none where nothing was refused or where there are more than [`MAX_REFUSAL_REASONS`].
    #[must_use]
    pub fn new(hour: HourBucket, by_reason: BTreeMap<u16, u32>) -> Option<Self> {
        (1..=MAX_REFUSAL_REASONS)
            .contains(&by_reason.len())
            .then_some(Self {
                hour,
                by_reason: ByReason(by_reason),
            })
    }

    /// The entry of a period; none where nothing was refused.
    #[must_use]
    pub fn of(hour: HourBucket, totals: &RefusalTotals) -> Option<Self> {
        let by_reason = totals.iter().map(|(reason, count)| {
            let code = u16::try_from(reason.code()).expect("codes are below 100");
            (code, u32::try_from(count).unwrap_or(u32::MAX))
        });
        Self::new(hour, by_reason.collect())
    }

    /// Counts by the code of the reason.
    #[must_use]
    pub fn by_reason(&self) -> &BTreeMap<u16, u32> {
        &self.by_reason.0
    }
}

/// Why bytes are not an entry.
#[derive(Debug, thiserror::Error)]
#[error("not an entry of a usage log")]
pub struct EntryError(#[from] cbor::DecodeError);

impl Entry {
    /// Its canonical bytes, which are hashed as a leaf.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`EntryError`] where the bytes are too many, not canonical, or of a kind that this version does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, EntryError> {
        Ok(cbor::decode(bytes, MAX_ENTRY_BYTES)?)
    }
}

impl<C> Encode<C> for Entry {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(2)?;
        match self {
            Self::Lease(lease) => lease.encode(e.u8(KIND_LEASE)?, ctx),
            Self::Refusals(totals) => totals.encode(e.u8(KIND_REFUSALS)?, ctx),
        }
    }
}

impl<'b, C> Decode<'b, C> for Entry {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        match (definite(d.array()?)?, d.u8()?) {
            (2, KIND_LEASE) => LeaseEntry::decode(d, ctx).map(Self::Lease),
            (2, KIND_REFUSALS) => RefusalEntry::decode(d, ctx).map(Self::Refusals),
            _ => Err(CborError::message("unknown kind of entry")),
        }
    }
}

impl<C> Encode<C> for ByReason {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.map(self.0.len() as u64)?;
        for (reason, count) in &self.0 {
            e.u16(*reason)?.u32(*count)?;
        }
        Ok(())
    }
}

impl<'b, C> Decode<'b, C> for ByReason {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
        let len = definite(d.map()?)?;
        if !(1..=MAX_REFUSAL_REASONS as u64).contains(&len) {
            return Err(CborError::message("no reasons, or too many"));
        }
        let mut by_reason = BTreeMap::new();
        for _ in 0..len {
            by_reason.insert(d.u16()?, d.u32()?);
        }
        Ok(Self(by_reason))
    }
}

/// What opens the commitment of a lease. The holder of the lease gets it; nobody else does.
#[derive(Clone, PartialEq, Eq)]
pub struct Opening {
    /// Drawn for this lease alone.
    pub salt: Salt,
    /// Canonical bytes of the statement, at most [`MAX_STATEMENT_BYTES`].
    pub statement: Vec<u8>,
}

impl Opening {
    /// An opening with a fresh salt.
    pub fn draw(statement: Vec<u8>, rng: &mut impl CryptoRng) -> Self {
        let mut salt = [0; 32];
        rng.fill_bytes(&mut salt);
        Self {
            salt: Salt(salt),
            statement,
        }
    }

    /// What it opens: a hash over domain, network, salt and statement.
    #[must_use]
    pub fn commitment(&self, network: &NetworkId) -> Digest {
        Digest(domain::LOG_LEAF.hash(network, &[&self.salt.0, &self.statement]))
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}
