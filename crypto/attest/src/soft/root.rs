//! A test root that lasts: software TDXs of several processes stand under it, and one policy names them all.

use minicbor::{Decode, Encode, bytes::ByteVec};
use ring::{
    rand::SecureRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use souk_crypto::{UnixTime, cbor};
use zeroize::Zeroizing;

use super::{
    SoftError,
    der::{self, Algorithm, Key, ToSign},
    tdx::sign_der,
};
use crate::{
    digest::RootId,
    refusal::Part,
    x509::{self, Cert},
};

/// The file of a root is no larger, in bytes.
pub const MAX_ROOT_BYTES: usize = 4 * 1024;

/// How long a root lasts from the day before it was drawn, in seconds (ten years).
const LIFE_S: u64 = 3_650 * 86_400;
pub(super) const NAME: &str = "souk test root, proves nothing (TDX)";

/// The key and the certificate of a test root for TDX.
pub struct TestRoot {
    pkcs8: Zeroizing<Vec<u8>>,
    key: EcdsaKeyPair,
    cert: Cert,
}

#[derive(Encode, Decode)]
#[cbor(map)]
struct Wire {
    #[n(0)]
    pkcs8: ByteVec,
    #[n(1)]
    cert: ByteVec,
}

impl std::fmt::Debug for TestRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TestRoot").field(&self.id()).finish()
    }
}

impl TestRoot {
    /// Draws a root that holds from the day before `now`.
    ///
    /// # Errors
    /// [`SoftError::Randomness`].
    pub fn new(now: UnixTime, rng: &dyn SecureRandom) -> Result<Self, SoftError> {
        let from = now.minus_s(86_400);
        Self::between(from, from.plus_s(LIFE_S), rng)
    }

    pub(super) fn between(
        from: UnixTime,
        to: UnixTime,
        rng: &dyn SecureRandom,
    ) -> Result<Self, SoftError> {
        let drawn = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, rng)
            .map_err(|_| SoftError::Randomness)?;
        let pkcs8 = Zeroizing::new(drawn.as_ref().to_vec());
        let key = pair(&pkcs8, rng).ok_or(SoftError::Randomness)?;
        let cert = ToSign {
            serial: 1,
            issuer: NAME,
            subject: NAME,
            from,
            to,
            key: Key::P256(key.public_key().as_ref()),
            is_ca: true,
            extensions: Vec::new(),
        };
        let tbs = der::certificate(&cert, Algorithm::EcdsaSha256);
        let signature = sign_der(&key, &tbs, rng)?;
        let der = der::signed(&tbs, Algorithm::EcdsaSha256, &signature);
        let cert = Cert::from_der(&der, Part::Root).map_err(SoftError::Minted)?;
        Ok(Self { pkcs8, key, cert })
    }

    /// SHA-256 of its certificate, which a policy has to name.
    #[must_use]
    pub fn id(&self) -> RootId {
        RootId(x509::fingerprint(self.cert.der()))
    }

    /// What a file of it holds; whoever has it can mint evidence under it.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(cbor::encode(&Wire {
            pkcs8: self.pkcs8.to_vec().into(),
            cert: self.cert.der().to_vec().into(),
        }))
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`SoftError::Root`].
    pub fn from_bytes(bytes: &[u8], rng: &dyn SecureRandom) -> Result<Self, SoftError> {
        let wire: Wire = cbor::decode(bytes, MAX_ROOT_BYTES).map_err(|_| SoftError::Root)?;
        let pkcs8 = Zeroizing::new(Vec::from(wire.pkcs8));
        let key = pair(&pkcs8, rng).ok_or(SoftError::Root)?;
        let cert = Cert::from_der(&wire.cert, Part::Root).map_err(SoftError::Minted)?;
        if cert.public_key() != key.public_key().as_ref() {
            return Err(SoftError::Root);
        }
        Ok(Self { pkcs8, key, cert })
    }

    pub(super) const fn key(&self) -> &EcdsaKeyPair {
        &self.key
    }

    pub(super) const fn cert(&self) -> &Cert {
        &self.cert
    }
}

fn pair(pkcs8: &[u8], rng: &dyn SecureRandom) -> Option<EcdsaKeyPair> {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, rng).ok()
}
