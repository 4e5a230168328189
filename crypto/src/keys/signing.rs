//! Ed25519 keys ([RFC 8032](https://www.rfc-editor.org/rfc/rfc8032)), each with its use in its type.
//!
//! Threats: a key of small order or in a second encoding, under which one signature is good for several messages or keys; a
//! requester's key in a log.

use std::{fmt, hash, marker::PhantomData, str::FromStr};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use minicbor::{
    Decode, Decoder, Encode, Encoder, decode,
    encode::{self, Write},
};
use rand_core::CryptoRng;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{KeyError, Secret};
use crate::bytes::parse_hex_32;

/// What an Ed25519 key is for.
pub trait KeyUse: 'static {
    /// Word for it in errors and key files.
    const NAME: &'static str;
    /// Whether the public key may stand in logs; not so for keys of a requester.
    const LOGGABLE: bool = true;
    /// How the public key is written, for errors.
    const FORM: &'static str = "64 lowercase hex digits";

    /// The public key as text.
    fn text(key: &[u8; 32]) -> String {
        hex::encode(key)
    }

    /// The bytes of a public key from its only valid text.
    fn parse(text: &str) -> Option<[u8; 32]> {
        parse_hex_32(text)
    }
}

/// Node identity; also the libp2p identity.
#[derive(Debug)]
pub enum Node {}
/// Offers and answers of a provider.
#[derive(Debug)]
pub enum Card {}
/// Checkpoints of a usage log.
#[derive(Debug)]
pub enum Log {}
/// Grants of a named issuer.
#[derive(Debug)]
pub enum Issuer {}
/// One lease, drawn by the requester.
#[derive(Debug)]
pub enum Holder {}
/// Reference values of a release.
#[derive(Debug)]
pub enum Reference {}

/// Protobuf and identity-multihash header of an Ed25519 key in a libp2p peer id (libp2p specs, peer-ids).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

impl KeyUse for Node {
    const NAME: &'static str = "node";
    const FORM: &'static str = "a libp2p peer id of an Ed25519 key (12D3KooW…)";

    fn text(key: &[u8; 32]) -> String {
        let mut id = PEER_ID_PREFIX.to_vec();
        id.extend_from_slice(key);
        bs58::encode(id).into_string()
    }

    fn parse(text: &str) -> Option<[u8; 32]> {
        let mut id = [0; PEER_ID_PREFIX.len() + 32];
        // Base58 of 38 bytes has at most 52 characters; longer text is not worth its quadratic decoding.
        if text.len() > 52 || bs58::decode(text).onto(&mut id).ok()? != id.len() {
            return None;
        }
        id.strip_prefix(&PEER_ID_PREFIX)?.try_into().ok()
    }
}

impl KeyUse for Card {
    const NAME: &'static str = "card";
}
impl KeyUse for Log {
    const NAME: &'static str = "log";
}
impl KeyUse for Issuer {
    const NAME: &'static str = "issuer";
}
impl KeyUse for Reference {
    const NAME: &'static str = "reference";
}
impl KeyUse for Holder {
    const NAME: &'static str = "holder";
    const LOGGABLE: bool = false;
}

/// An Ed25519 secret key for one use.
pub struct SecretKey<U>(SigningKey, PhantomData<fn() -> U>);

/// Secret key of a node.
pub type NodeKey = SecretKey<Node>;
/// Secret key of a provider's offers.
pub type CardKey = SecretKey<Card>;
/// Secret key of a usage log.
pub type LogKey = SecretKey<Log>;
/// Secret key of an issuer of grants.
pub type IssuerKey = SecretKey<Issuer>;
/// Secret key of one lease.
pub type HolderKey = SecretKey<Holder>;
/// Secret key of whoever vouches for reference values.
pub type ReferenceKey = SecretKey<Reference>;

impl<U: KeyUse> SecretKey<U> {
    /// A fresh key.
    pub fn generate(rng: &mut impl CryptoRng) -> Self {
        Self(SigningKey::generate(rng), PhantomData)
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey<U> {
        PublicKey(self.0.verifying_key().to_bytes(), PhantomData)
    }

    /// Signs bytes that already carry a domain; only [`crate::sign`] and the note format of the log do that.
    pub(crate) fn sign_bytes(&self, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(bytes).to_bytes()
    }
}

impl LogKey {
    /// Signs the text of a checkpoint, which begins with the log's origin line and so is its own domain (C2SP
    /// signed-note).
    #[must_use]
    pub fn sign_note(&self, text: &[u8]) -> [u8; 64] {
        self.sign_bytes(text)
    }
}

impl<U: KeyUse> Secret for SecretKey<U> {
    const USE: &'static str = U::NAME;

    fn secret_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    fn from_secret_bytes(bytes: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(bytes), PhantomData)
    }
}

impl<U> Clone for SecretKey<U> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<U> PartialEq for SecretKey<U> {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl<U> Eq for SecretKey<U> {}

impl<U: KeyUse> fmt::Debug for SecretKey<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey<{}>(..)", U::NAME)
    }
}

/// An Ed25519 public key for one use: a point of the curve in its only valid encoding, not of small order.
pub struct PublicKey<U>([u8; 32], PhantomData<fn() -> U>);

/// Who a node is; written as its libp2p peer id.
pub type NodeId = PublicKey<Node>;
/// Public key of a provider's offers.
pub type CardPublicKey = PublicKey<Card>;
/// Public key of a usage log.
pub type LogPublicKey = PublicKey<Log>;
/// Public key of an issuer of grants.
pub type IssuerPublicKey = PublicKey<Issuer>;
/// Public key of one lease. Its `Debug` shows nothing of it.
pub type HolderPublicKey = PublicKey<Holder>;
/// Public key of whoever vouches for reference values.
pub type ReferencePublicKey = PublicKey<Reference>;

impl<U: KeyUse> PublicKey<U> {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`] unless they are 32, [`KeyError::Point`] unless they are a valid key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        Self::parse(bytes).map(|(key, _)| key)
    }

    /// The 32 bytes of RFC 8032.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key together with its decompressed point, for who verifies right away.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, VerifyingKey), KeyError> {
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| KeyError::Length {
            key: U::NAME,
            expected: 32,
            len: bytes.len(),
        })?;
        let point = KeyError::Point { key: U::NAME };
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| point)?;
        if key.is_weak() || !is_reduced(bytes) {
            return Err(point);
        }
        Ok((Self(*bytes, PhantomData), key))
    }

    fn verifying(&self) -> VerifyingKey {
        VerifyingKey::from_bytes(&self.0).expect("checked when the key was made")
    }
}

impl LogPublicKey {
    /// Whether `signature` is this key's over the text of a checkpoint; strict verification.
    #[must_use]
    pub fn verifies_note(&self, text: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.verifying().verify_strict(text, &signature).is_ok()
    }
}

/// Whether the y coordinate is below 2^255 − 19: the curve crate accepts second encodings above it.
fn is_reduced(y: &[u8; 32]) -> bool {
    let all_ones = y[31] | 0x80 == 0xff && y[1..31].iter().all(|b| *b == 0xff);
    !(all_ones && y[0] >= 0xed)
}

impl<U> Clone for PublicKey<U> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<U> Copy for PublicKey<U> {}
impl<U> PartialEq for PublicKey<U> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<U> Eq for PublicKey<U> {}
impl<U> PartialOrd for PublicKey<U> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<U> Ord for PublicKey<U> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<U> hash::Hash for PublicKey<U> {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl<U: KeyUse> fmt::Display for PublicKey<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&U::text(&self.0))
    }
}

impl<U: KeyUse> fmt::Debug for PublicKey<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if U::LOGGABLE {
            fmt::Display::fmt(self, f)
        } else {
            write!(f, "PublicKey<{}>(..)", U::NAME)
        }
    }
}

impl<U: KeyUse> FromStr for PublicKey<U> {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = U::parse(text).ok_or(KeyError::Text {
            key: U::NAME,
            form: U::FORM,
        })?;
        Self::from_bytes(&bytes)
    }
}

impl<C, U> Encode<C> for PublicKey<U> {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C, U: KeyUse> Decode<'b, C> for PublicKey<U> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        Self::from_bytes(d.bytes()?).map_err(|e| decode::Error::custom(e).at(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(seed: u8) -> NodeKey {
        NodeKey::from_secret_bytes(&[seed; 32])
    }

    #[test]
    fn a_node_id_is_written_as_libp2p_writes_it() {
        for seed in 0..8 {
            let id = node(seed).public();
            let theirs = libp2p_identity::ed25519::PublicKey::try_from_bytes(id.as_bytes())
                .expect("the same curve");
            let theirs = libp2p_identity::PublicKey::from(theirs).to_peer_id();
            assert_eq!(id.to_string(), theirs.to_string());
            assert_eq!(theirs.to_string().parse::<NodeId>(), Ok(id));
        }
    }

    #[test]
    fn a_secret_makes_the_libp2p_identity_of_the_same_id() {
        let key = node(3);
        let theirs = libp2p_identity::Keypair::ed25519_from_bytes(*key.secret_bytes())
            .expect("32 secret bytes");
        assert_eq!(
            theirs.public().to_peer_id().to_string(),
            key.public().to_string()
        );
    }

    #[test]
    fn text_that_is_no_key_is_refused() {
        let id = node(1).public().to_string();
        let longer = format!("{id}1");
        // A secp256k1 peer id, a prefix, and characters that base58 lacks.
        let foreign = "16Uiu2HAm9yPbSkzfRbcVPnTeJVKzAdhZXPsCkkY9ZHKfSzKhP5KC";
        for bad in [
            "",
            &id[1..],
            &id[..51],
            &longer,
            foreign,
            &id.replace('1', "0"),
            &"1".repeat(99),
        ] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
        let hex = CardKey::from_secret_bytes(&[1; 32]).public().to_string();
        assert!(hex.parse::<CardPublicKey>().is_ok());
        assert!(hex.to_uppercase().parse::<CardPublicKey>().is_err());
        assert!(hex.parse::<NodeId>().is_err());
    }

    #[test]
    fn points_of_small_order_and_second_encodings_are_no_keys() {
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut order_two = [0xff; 32];
        (order_two[0], order_two[31]) = (0xec, 0x7f);
        // y = p + 3, 5, 9, …: the curve crate reads them as y = 3, 5, 9, …, which are good points.
        let second = (0..19u8).map(|y| {
            let mut encoding = [0xff; 32];
            (encoding[0], encoding[31]) = (0xed + y, 0x7f);
            encoding
        });
        let accepted_by_the_curve_crate = second
            .clone()
            .filter(|e| VerifyingKey::from_bytes(e).is_ok());
        assert!(
            accepted_by_the_curve_crate.count() > 2,
            "else this test shows nothing"
        );
        for bad in second.chain([identity, order_two, [0; 32]]) {
            assert_eq!(
                NodeId::from_bytes(&bad),
                Err(KeyError::Point { key: "node" }),
                "{bad:02x?}"
            );
        }
        assert!(matches!(
            NodeId::from_bytes(&[1; 31]),
            Err(KeyError::Length { len: 31, .. })
        ));
    }

    #[test]
    fn secrets_and_keys_of_requesters_do_not_print() {
        let holder = HolderKey::from_secret_bytes(&[0xab; 32]);
        assert_eq!(format!("{holder:?}"), "SecretKey<holder>(..)");
        assert_eq!(format!("{:?}", holder.public()), "PublicKey<holder>(..)");
        assert_eq!(format!("{:?}", node(2)), "SecretKey<node>(..)");
        assert_eq!(
            format!("{:?}", node(2).public()),
            node(2).public().to_string()
        );
    }

    proptest! {
        #[test]
        fn a_note_verifies_under_its_own_log_and_text_only(
            seed in any::<[u8; 32]>(), text in ".{1,80}", bit in 0usize..512,
        ) {
            let key = LogKey::from_secret_bytes(&seed);
            let mut signature = key.sign_note(text.as_bytes());
            prop_assert!(key.public().verifies_note(text.as_bytes(), &signature));
            prop_assert!(!key.public().verifies_note(&text.as_bytes()[1..], &signature));
            signature[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!key.public().verifies_note(text.as_bytes(), &signature));
        }
    }
}
