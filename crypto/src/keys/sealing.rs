//! HPKE keys ([RFC 9180](https://www.rfc-editor.org/rfc/rfc9180)), with the suite beside the bytes so that another can follow.
//!
//! Threats: a secret that is read from memory or logs later, or compared byte by byte; a message for one use that another key opens.

use std::{fmt, marker::PhantomData};

use minicbor::{
    Decode, Decoder, Encode, Encoder, decode,
    encode::{self, Write},
};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{KeyError, Secret, dhkem};

/// A combination of KEM, KDF and AEAD of HPKE, as one byte on the wire.
///
/// 2 is kept for X-Wing with HKDF-SHA256 and ChaCha20-Poly1305.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Suite {
    /// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305 (RFC 9180 §7: 0x0020, 0x0001, 0x0003).
    X25519ChaCha20Poly1305 = 1,
}

impl Suite {
    /// Its byte on the wire.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }

    /// The suite of a byte on the wire.
    ///
    /// # Errors
    /// [`KeyError::Suite`] for one that this version does not know.
    pub const fn from_id(id: u8) -> Result<Self, KeyError> {
        match id {
            1 => Ok(Self::X25519ChaCha20Poly1305),
            _ => Err(KeyError::Suite(id)),
        }
    }
}

/// Whom a sealed message is for.
pub trait SealUse: 'static {
    /// Word for it in errors and key files.
    const NAME: &'static str;
    /// Whether the public key may stand in logs; not so for keys of a requester.
    const LOGGABLE: bool;
}

/// A provider, for weeks.
#[derive(Debug)]
pub enum Seal {}
/// The requester of one lease.
#[derive(Debug)]
pub enum Reply {}

impl SealUse for Seal {
    const NAME: &'static str = "seal";
    const LOGGABLE: bool = true;
}
impl SealUse for Reply {
    const NAME: &'static str = "reply";
    const LOGGABLE: bool = false;
}

/// A secret key that opens sealed messages of one use.
pub struct HpkeKey<U>(dhkem::PrivateKey, PhantomData<fn() -> U>);

/// Opens what is sealed to a provider.
pub type SealKey = HpkeKey<Seal>;
/// Opens the replies of one lease.
pub type ReplyKey = HpkeKey<Reply>;

impl<U: SealUse> HpkeKey<U> {
    /// A fresh key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_secret_bytes(&seed)
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> HpkePublicKey<U> {
        HpkePublicKey {
            suite: Suite::X25519ChaCha20Poly1305,
            bytes: *self.0.public().as_bytes(),
            recipient: PhantomData,
        }
    }

    pub(crate) const fn x25519(&self) -> &dhkem::PrivateKey {
        &self.0
    }
}

impl<U: SealUse> Secret for HpkeKey<U> {
    const USE: &'static str = U::NAME;

    fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(*self.0.as_bytes())
    }

    fn from_secret_bytes(bytes: &[u8; 32]) -> Self {
        Self(dhkem::PrivateKey::new(*bytes), PhantomData)
    }
}

impl<U> Clone for HpkeKey<U> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<U> PartialEq for HpkeKey<U> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl<U> Eq for HpkeKey<U> {}

impl<U: SealUse> fmt::Debug for HpkeKey<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HpkeKey<{}>(..)", U::NAME)
    }
}

/// A public key to seal to: `[suite, bytes]` on the wire.
pub struct HpkePublicKey<U> {
    suite: Suite,
    bytes: [u8; 32],
    recipient: PhantomData<fn() -> U>,
}

/// Seals to a provider.
pub type SealPublicKey = HpkePublicKey<Seal>;
/// Seals to the requester of one lease. Its `Debug` shows nothing of it.
pub type ReplyPublicKey = HpkePublicKey<Reply>;

impl<U: SealUse> HpkePublicKey<U> {
    /// The key of these bytes in this suite.
    ///
    /// # Errors
    /// [`KeyError::Length`] for another number of bytes than the suite has.
    pub fn new(suite: Suite, bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = bytes.try_into().map_err(|_| KeyError::Length {
            key: U::NAME,
            expected: 32,
            len: bytes.len(),
        })?;
        Ok(Self {
            suite,
            bytes,
            recipient: PhantomData,
        })
    }

    /// The suite it belongs to.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        self.suite
    }

    /// Its bytes in the suite's KEM.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn x25519(&self) -> dhkem::PublicKey {
        dhkem::PublicKey::new(self.bytes)
    }
}

impl<U> Clone for HpkePublicKey<U> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<U> Copy for HpkePublicKey<U> {}
impl<U> PartialEq for HpkePublicKey<U> {
    fn eq(&self, other: &Self) -> bool {
        self.suite == other.suite && self.bytes == other.bytes
    }
}
impl<U> Eq for HpkePublicKey<U> {}

impl<U: SealUse> fmt::Debug for HpkePublicKey<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if U::LOGGABLE {
            f.write_str(&hex::encode(self.bytes))
        } else {
            write!(f, "HpkePublicKey<{}>(..)", U::NAME)
        }
    }
}

impl<C, U> Encode<C> for HpkePublicKey<U> {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.u8(self.suite.id())?.bytes(&self.bytes)?.ok()
    }
}

impl<'b, C, U: SealUse> Decode<'b, C> for HpkePublicKey<U> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a sealing key is [suite, bytes]").at(at));
        }
        let suite = Suite::from_id(d.u8()?).map_err(|e| decode::Error::custom(e).at(at))?;
        Self::new(suite, d.bytes()?).map_err(|e| decode::Error::custom(e).at(at))
    }
}
