//! Sealed messages: HPKE (RFC 9180) in Base mode.
//!
//! ```text
//! sealed = suite (1 byte) ‖ enc (32) ‖ ciphertext ‖ tag (16)
//! info   = canonical CBOR [domain, network, suite]
//! ```
//!
//! Base mode authenticates nobody: what has to come from somebody in particular is signed inside. X-Wing, the
//! post-quantum suite to come, has no Auth mode either.
//!
//! Threats: a message that is opened for another purpose, network or suite (`info`), or taken for part of another
//! request (`aad`); a public key of small order, under which everybody knows the secret (refused when sealing).

use hpke::{
    Deserializable as _, HpkeError, OpModeR, OpModeS, Serializable as _,
    aead::{AeadTag, ChaCha20Poly1305},
    inout::InOutBuf,
    kdf::HkdfSha256,
    single_shot_open_inout_detached, single_shot_seal_inout_detached_with_rng,
};
use minicbor::Encoder;
use rand_core::CryptoRng;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    NetworkId,
    domain::SealDomain,
    keys::{HpkeKey, HpkePublicKey, KeyError, SealUse, Suite, X25519Kem},
};

type Aead = ChaCha20Poly1305;
type Kdf = HkdfSha256;
type Kem = X25519Kem;

const SUITE_BYTES: usize = 1;
const ENC_BYTES: usize = 32;
const TAG_BYTES: usize = 16;

/// Bytes that sealing adds to a plaintext.
pub const OVERHEAD_BYTES: usize = SUITE_BYTES + ENC_BYTES + TAG_BYTES;

/// Seals `plaintext` to the holder of `to`, bound to `aad`, which both sides know and which is not sent.
///
/// # Errors
/// [`SealError`] where the message would be too large for its kind, or `to` is a key of small order.
pub fn seal<U: SealUse>(
    domain: &SealDomain<U>,
    network: &NetworkId,
    to: &HpkePublicKey<U>,
    aad: &[u8],
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let len = plaintext.len() + OVERHEAD_BYTES;
    if len > domain.max_bytes() {
        return Err(SealError::TooLarge {
            len,
            max: domain.max_bytes(),
        });
    }
    seal_with_info(&info(domain, network, to.suite()), to, aad, plaintext, rng)
}

/// Opens a sealed message.
///
/// # Errors
/// [`UnsealError`]; all of them are the fault of who made or sent the message. A message for another key, purpose,
/// network or `aad` cannot be told from a damaged one.
pub fn open<U: SealUse>(
    domain: &SealDomain<U>,
    network: &NetworkId,
    key: &HpkeKey<U>,
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    if !(OVERHEAD_BYTES..=domain.max_bytes()).contains(&sealed.len()) {
        return Err(UnsealError::Size {
            len: sealed.len(),
            min: OVERHEAD_BYTES,
            max: domain.max_bytes(),
        });
    }
    let suite = Suite::from_id(sealed[0])?;
    open_with_info(&info(domain, network, suite), key, aad, sealed)
}

/// Why a message could not be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Larger than its kind may be.
    #[error("{len} bytes sealed, at most {max} are allowed")]
    TooLarge {
        /// Size when sealed.
        len: usize,
        /// Size allowed.
        max: usize,
    },
    /// The recipient's key is of small order.
    #[error("the recipient's key cannot be sealed to")]
    Recipient(#[source] HpkeError),
}

/// Why a message did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Larger or smaller than its kind may be; nothing was decrypted.
    #[error("{len} bytes, allowed are {min} to {max}")]
    Size {
        /// Bytes received.
        len: usize,
        /// Bytes needed.
        min: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A suite that this version does not know.
    #[error("sealed in another suite")]
    Suite(#[from] KeyError),
    /// Damaged, or meant for another key, purpose, network or request.
    #[error("does not open with this key")]
    Open(#[source] HpkeError),
}

fn seal_with_info<U: SealUse>(
    info: &[u8],
    to: &HpkePublicKey<U>,
    aad: &[u8],
    plaintext: &[u8],
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD_BYTES);
    sealed.push(to.suite().id());
    sealed.extend_from_slice(&[0; ENC_BYTES]);
    sealed.extend_from_slice(plaintext);
    let (head, body) = sealed.split_at_mut(SUITE_BYTES + ENC_BYTES);
    let outcome = single_shot_seal_inout_detached_with_rng::<Aead, Kdf, Kem>(
        &OpModeS::Base,
        &to.x25519(),
        info,
        InOutBuf::from(&mut *body),
        aad,
        rng,
    );
    match outcome {
        Ok((enc, tag)) => {
            enc.write_exact(&mut head[SUITE_BYTES..]);
            sealed.extend_from_slice(&tag.to_bytes());
            Ok(sealed)
        }
        Err(error) => {
            sealed.zeroize();
            Err(SealError::Recipient(error))
        }
    }
}

/// `sealed` has at least the size of the overhead.
fn open_with_info<U: SealUse>(
    info: &[u8],
    key: &HpkeKey<U>,
    aad: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let (enc, rest) = sealed[SUITE_BYTES..].split_at(ENC_BYTES);
    let (ciphertext, tag) = rest.split_at(rest.len() - TAG_BYTES);
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(UnsealError::Open)?;
    let tag = AeadTag::<Aead>::from_bytes(tag).map_err(UnsealError::Open)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    single_shot_open_inout_detached::<Aead, Kdf, Kem>(
        &OpModeR::Base,
        key.x25519(),
        &enc,
        info,
        InOutBuf::from(plaintext.as_mut_slice()),
        aad,
        &tag,
    )
    .map_err(UnsealError::Open)?;
    Ok(plaintext)
}

fn info<U: SealUse>(domain: &SealDomain<U>, network: &NetworkId, suite: Suite) -> Vec<u8> {
    let mut e = Encoder::new(Vec::with_capacity(96));
    let written = e
        .array(3)
        .and_then(|e| e.str(domain.name()))
        .and_then(|e| e.str(network.as_str()))
        .and_then(|e| e.u8(suite.id()));
    written.expect("writing to a Vec cannot fail");
    e.into_writer()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;
    use rand_core::{TryCryptoRng, TryRng};

    use super::*;
    use crate::{
        domain,
        keys::{Reply, ReplyKey, Seal, SealKey, SealPublicKey, Secret as _},
    };

    /// Gives out bytes that a vector prescribes, once.
    struct Prescribed(Vec<u8>);

    impl TryRng for Prescribed {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            unreachable!("HPKE draws whole seeds")
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            unreachable!("HPKE draws whole seeds")
        }
        fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
            out.copy_from_slice(&self.0.split_off(0));
            Ok(())
        }
    }
    impl TryCryptoRng for Prescribed {}

    fn network(text: &str) -> NetworkId {
        text.parse().expect("a network id")
    }

    fn reply_key(seed: u8) -> ReplyKey {
        ReplyKey::from_secret_bytes(&[seed; 32])
    }

    fn sealed(plaintext: &[u8]) -> Vec<u8> {
        let to = reply_key(1).public();
        seal(
            &domain::TO_HOLDER,
            &network("souk.00000000"),
            &to,
            b"id",
            plaintext,
            &mut rand::rng(),
        )
        .expect("fits")
    }

    #[test]
    fn rfc_9180_appendix_a_2_1_seals_and_opens_as_published() {
        let text = include_str!("../../fixtures/crypto/rfc9180-a2.1.json");
        let vector: serde_json::Value = serde_json::from_str(text).expect("the fixture is JSON");
        let field = |name: &str| hex::decode(vector[name].as_str().expect(name)).expect(name);
        let secret: [u8; 32] = field("sk_r").try_into().expect("32 bytes");
        let key = SealKey::from_secret_bytes(&secret);
        assert_eq!(key.public().as_bytes(), field("pk_r"));
        let (_, derived) = <Kem as hpke::Kem>::derive_keypair(&field("ikm_r"));
        assert_eq!(derived.as_bytes(), key.public().as_bytes());

        let mut rng = Prescribed(field("ikm_e"));
        let sealed = seal_with_info::<Seal>(
            &field("info"),
            &key.public(),
            &field("aad"),
            &field("pt"),
            &mut rng,
        )
        .expect("a good key");
        assert_eq!(sealed, [vec![1], field("enc"), field("ct")].concat());
        let opened = open_with_info(&field("info"), &key, &field("aad"), &sealed).expect("opens");
        assert_eq!(*opened, field("pt"));
    }

    #[test]
    fn only_the_same_key_network_purpose_and_aad_open() {
        let sealed = sealed(b"reply");
        let here = network("souk.00000000");
        let open_as = |network: &NetworkId, key: &ReplyKey, aad: &[u8]| {
            open(&domain::TO_HOLDER, network, key, aad, &sealed)
        };
        assert_eq!(
            **open_as(&here, &reply_key(1), b"id").expect("opens"),
            *b"reply"
        );
        assert!(open_as(&network("souk.00000001"), &reply_key(1), b"id").is_err());
        assert!(open_as(&here, &reply_key(2), b"id").is_err());
        assert!(open_as(&here, &reply_key(1), b"other").is_err());
        let as_request = SealKey::from_secret_bytes(&[1; 32]);
        assert!(open(&domain::TO_PROVIDER, &here, &as_request, b"id", &sealed).is_err());
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let here = network("souk.00000000");
        let mut one = [0; 32];
        one[0] = 1;
        for weak in [[0; 32], one] {
            let to = SealPublicKey::new(Suite::X25519ChaCha20Poly1305, &weak).expect("32 bytes");
            let refused = seal(
                &domain::TO_PROVIDER,
                &here,
                &to,
                b"",
                b"x",
                &mut rand::rng(),
            );
            assert!(matches!(refused, Err(SealError::Recipient(_))));
        }
    }

    #[test]
    fn sizes_and_suites_are_checked_before_any_key_is_used() {
        let here = network("souk.00000000");
        let max = domain::TO_HOLDER.max_bytes();
        let open = |bytes: &[u8]| open(&domain::TO_HOLDER, &here, &reply_key(1), b"id", bytes);
        assert!(matches!(
            open(&vec![1; max + 1]),
            Err(UnsealError::Size { .. })
        ));
        assert!(matches!(
            open(&[1; OVERHEAD_BYTES - 1]),
            Err(UnsealError::Size { .. })
        ));
        assert!(matches!(
            open(&[2; OVERHEAD_BYTES]),
            Err(UnsealError::Suite(KeyError::Suite(2)))
        ));
        let fits = vec![0; max - OVERHEAD_BYTES];
        assert_eq!(sealed(&fits).len(), max);
        let to = HpkeKey::<Reply>::generate(&mut rand::rng()).public();
        let refused = seal(
            &domain::TO_HOLDER,
            &here,
            &to,
            b"",
            &[fits, vec![0]].concat(),
            &mut rand::rng(),
        );
        assert!(matches!(refused, Err(SealError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_plaintext_opens_and_no_flipped_bit_does(
            plaintext in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let here = network("souk.00000000");
            let mut sealed = sealed(&plaintext);
            let opened = open(&domain::TO_HOLDER, &here, &reply_key(1), b"id", &sealed);
            prop_assert_eq!(&**opened.expect("opens"), &plaintext);
            let at = at.index(sealed.len());
            // The top bit of an x25519 value is ignored by RFC 7748, but not by the KEM's context.
            sealed[at] ^= 1 << bit;
            prop_assert!(open(&domain::TO_HOLDER, &here, &reply_key(1), b"id", &sealed).is_err());
        }
    }
}
