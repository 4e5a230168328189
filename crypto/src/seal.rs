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
    kem::X25519HkdfSha256,
    single_shot_open_inout_detached, single_shot_seal_inout_detached_with_rng,
};
use minicbor::Encoder;
use rand_core::CryptoRng;
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    NetworkId,
    domain::SealDomain,
    keys::{HpkeKey, HpkePublicKey, KeyError, SealUse, Suite},
};

type Aead = ChaCha20Poly1305;
type Kdf = HkdfSha256;
type Kem = X25519HkdfSha256;

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
    let info = info(domain, network, to.suite());
    let mut sealed = Vec::with_capacity(len);
    sealed.push(to.suite().id());
    sealed.extend_from_slice(&[0; ENC_BYTES]);
    sealed.extend_from_slice(plaintext);
    let (head, body) = sealed.split_at_mut(SUITE_BYTES + ENC_BYTES);
    let outcome = single_shot_seal_inout_detached_with_rng::<Aead, Kdf, Kem>(
        &OpModeS::Base,
        &to.x25519(),
        &info,
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
    let (enc, rest) = sealed[SUITE_BYTES..].split_at(ENC_BYTES);
    let (ciphertext, tag) = rest.split_at(rest.len() - TAG_BYTES);
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(UnsealError::Open)?;
    let tag = AeadTag::<Aead>::from_bytes(tag).map_err(UnsealError::Open)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    single_shot_open_inout_detached::<Aead, Kdf, Kem>(
        &OpModeR::Base,
        key.x25519(),
        &enc,
        &info(domain, network, suite),
        InOutBuf::from(plaintext.as_mut_slice()),
        aad,
        &tag,
    )
    .map_err(UnsealError::Open)?;
    Ok(plaintext)
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
