//! Measurements, report data and digests as types that cannot be taken for one another.

use std::{fmt, str::FromStr};

use souk_crypto::domain;

use crate::verified::Tee;

/// Not the hex digits of a value of this length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {} hex digits", bytes * 2)]
pub struct HexError {
    /// How many bytes were expected.
    pub bytes: usize,
}

macro_rules! fixed_bytes {
    ($($(#[$doc:meta])* $name:ident, $len:literal;)*) => {
        $($(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = HexError;

            fn from_str(text: &str) -> Result<Self, HexError> {
                let mut bytes = [0; $len];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| HexError { bytes: $len })?;
                Ok(Self(bytes))
            }
        })*
    };
}

fixed_bytes! {
    /// A SHA-384 measurement or digest, as both vendors use them.
    Measurement, 48;
    /// The 64 bytes that a guest asks to have signed.
    ReportData, 64;
    /// Digest of evidence, as a card names it.
    EvidenceDigest, 32;
    /// Digest of collateral, as a card names it.
    CollateralDigest, 32;
    /// SHA-256 of a root certificate.
    RootId, 32;
}

impl EvidenceDigest {
    /// The digest of bytes that are taken for evidence of `tee`.
    #[must_use]
    pub fn of(tee: Tee, bytes: &[u8]) -> Self {
        Self(domain::EVIDENCE.hash_unbound(&[tee.as_str().as_bytes(), bytes]))
    }
}

impl CollateralDigest {
    /// The digest of bytes that are taken for collateral of `tee`.
    #[must_use]
    pub fn of(tee: Tee, bytes: &[u8]) -> Self {
        Self(domain::COLLATERAL.hash_unbound(&[tee.as_str().as_bytes(), bytes]))
    }
}

impl Measurement {
    /// All zero: a field that nobody set.
    pub const ZERO: Self = Self([0; 48]);
}
