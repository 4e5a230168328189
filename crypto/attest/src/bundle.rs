//! Evidence with its collateral, as a provider carries them.
//!
//! A requester that is given both need not tell Intel or AMD whom it is looking at. The receiver believes neither: it verifies.

use minicbor::{Decode, Encode, bytes::ByteVec};
use souk_crypto::cbor;

use crate::{
    refusal::{Part, Refusal},
    tdx::{MAX_COLLATERAL_BYTES, MAX_QUOTE_BYTES},
    verified::{Collateral, Evidence},
};

/// A bundle is no larger, in bytes.
pub const MAX_BUNDLE_BYTES: usize = MAX_COLLATERAL_BYTES + MAX_QUOTE_BYTES + 64;

/// Evidence with its collateral.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The evidence.
    pub evidence: Evidence,
    /// What it is verified with.
    pub collateral: Collateral,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    evidence: ByteVec,
    #[n(1)]
    collateral: ByteVec,
}

impl Bundle {
    /// Reads a bundle.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::Malformed`], or why the evidence does not parse.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        let wire: Wire = cbor::decode(bytes, MAX_BUNDLE_BYTES)
            .map_err(|error| Refusal::malformed(Part::Evidence, error))?;
        let evidence = Evidence::parse(&wire.evidence)?;
        if evidence.as_bytes() != wire.evidence.as_slice() {
            return Err(Refusal::malformed(Part::Evidence, "padding in a bundle"));
        }
        let collateral = Collateral::from_bytes(evidence.tee(), &wire.collateral)?;
        Ok(Self {
            evidence,
            collateral,
        })
    }

    /// The only form of it.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::encode(&Wire {
            evidence: self.evidence.as_bytes().to_vec().into(),
            collateral: self.collateral.to_bytes().into(),
        })
    }
}
