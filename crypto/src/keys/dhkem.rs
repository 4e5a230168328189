//! DHKEM(X25519, HKDF-SHA256) of RFC 9180 §4.1 in Base mode, with the public key kept beside the secret.
//!
//! The KEM of the `hpke` crate computes a public key anew when it opens, and twice when it seals: 13 µs of 64 and 91. This
//! one differs in nothing else; key schedule, KDF and AEAD are those of the crate, and the RFC's vectors check the whole.

use hpke::{Deserializable, HpkeError, Kem, Serializable, kdf::Kdf, kem::SharedSecret};
use rand_core::CryptoRng;
use subtle::{Choice, ConstantTimeEq};
use x25519_dalek::StaticSecret;
use zeroize::Zeroizing;

type HkdfSha256 = hpke::kdf::HkdfSha256;
type U32 = hpke::hybrid_array::typenum::U32;

/// `"KEM"` and the KEM's number (RFC 9180 §4.1, §7.1).
const SUITE_ID: &[u8; 5] = b"KEM\x00\x20";

/// The KEM as the `hpke` crate takes it.
pub(crate) enum X25519Kem {}

/// A secret and its public key.
#[derive(Clone)]
pub(crate) struct PrivateKey {
    secret: StaticSecret,
    public: PublicKey,
}

impl PrivateKey {
    pub(crate) fn new(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        let public = PublicKey((&secret).into());
        Self { secret, public }
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.secret.as_bytes()
    }

    pub(crate) const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The KEM's shared secret with the owner of `other`, for this encapsulated and this recipient's key.
    fn shared(
        &self,
        other: &PublicKey,
        enc: &PublicKey,
        recipient: &PublicKey,
    ) -> Option<SharedSecret<X25519Kem>> {
        let dh = self.secret.diffie_hellman(&other.0);
        if !dh.was_contributory() {
            return None;
        }
        let context = [enc.0.to_bytes(), recipient.0.to_bytes()].concat();
        let mut shared = SharedSecret::default();
        HkdfSha256::extract_and_expand(dh.as_bytes(), SUITE_ID, &context, &mut shared.0)
            .expect("32 bytes are within what HKDF gives");
        Some(shared)
    }
}

impl ConstantTimeEq for PrivateKey {
    fn ct_eq(&self, other: &Self) -> Choice {
        self.as_bytes().ct_eq(other.as_bytes())
    }
}

impl Serializable for PrivateKey {
    type OutputSize = U32;

    fn write_exact(&self, buf: &mut [u8]) {
        buf.copy_from_slice(self.as_bytes());
    }
}

impl Deserializable for PrivateKey {
    fn from_bytes(bytes: &[u8]) -> Result<Self, HpkeError> {
        let bytes = Zeroizing::new(exactly_32(bytes)?);
        Ok(Self::new(*bytes))
    }
}

/// A public key, or the encapsulated one of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PublicKey(x25519_dalek::PublicKey);

impl PublicKey {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

impl Serializable for PublicKey {
    type OutputSize = U32;

    fn write_exact(&self, buf: &mut [u8]) {
        buf.copy_from_slice(self.as_bytes());
    }
}

impl Deserializable for PublicKey {
    fn from_bytes(bytes: &[u8]) -> Result<Self, HpkeError> {
        exactly_32(bytes).map(Self::new)
    }
}

fn exactly_32(bytes: &[u8]) -> Result<[u8; 32], HpkeError> {
    bytes
        .try_into()
        .map_err(|_| HpkeError::IncorrectInputLength(32, bytes.len()))
}

impl Kem for X25519Kem {
    type PublicKey = PublicKey;
    type PrivateKey = PrivateKey;
    type EncappedKey = PublicKey;
    type NSecret = U32;

    const KEM_ID: u16 = 0x0020;

    fn sk_to_pk(secret: &PrivateKey) -> PublicKey {
        *secret.public()
    }

    fn derive_keypair(ikm: &[u8]) -> (PrivateKey, PublicKey) {
        let secret = Zeroizing::new(HkdfSha256::derive_x25519_sk_eph_bytes(SUITE_ID, ikm));
        let key = PrivateKey::new(*secret);
        let public = key.public;
        (key, public)
    }

    fn encap_with_rng(
        recipient: &PublicKey,
        sender: Option<(&PrivateKey, &PublicKey)>,
        rng: &mut impl CryptoRng,
    ) -> Result<(SharedSecret<Self>, PublicKey), HpkeError> {
        // This KEM has Base mode only.
        if sender.is_some() {
            return Err(HpkeError::EncapError);
        }
        let (ephemeral, enc) = Self::gen_keypair_with_rng(rng);
        let shared = ephemeral.shared(recipient, &enc, recipient);
        shared
            .map(|shared| (shared, enc))
            .ok_or(HpkeError::EncapError)
    }

    fn decap(
        key: &PrivateKey,
        sender: Option<&PublicKey>,
        enc: &PublicKey,
    ) -> Result<SharedSecret<Self>, HpkeError> {
        if sender.is_some() {
            return Err(HpkeError::DecapError);
        }
        key.shared(enc, enc, &key.public)
            .ok_or(HpkeError::DecapError)
    }
}
