//! Signed objects: COSE_Sign1 (RFC 9052) with Ed25519 over canonical CBOR.
//!
//! ```text
//!             sign                       bytes                      open
//!  Object ───────────► Verified ──────────────────► Signed ─────────────────────► Verified
//!                                  (no readable field)       size ≤ cap, canonical,
//!                                                            header = this kind and network,
//!                                                            strict signature, payload valid
//! ```
//!
//! The protected header holds exactly: `alg` (Ed25519, RFC 9864), `kid` (the signer's public key), `typ` (RFC 9596), the
//! domain string and the network id, which objects of no network leave out ([`Anywhere`]); the unprotected header is empty. The raw bytes are kept and passed on unchanged.
//!
//! Threats: an object of another kind, network or version that is taken for this one; a second encoding of the same
//! object; a signature that verifies here and not there (RFC 8032 leaves room; verification here is strict); an
//! unopened object that is believed; memory spent before the size is known.
//!
//! A valid signature says only that the holder of [`Verified::signer`] signed. Whether that key may speak for somebody
//! is for the caller to check.

use std::{fmt, marker::PhantomData, ops::Deref, sync::Arc};

use coset::{
    Algorithm, CoseSign1, CoseSign1Builder, Header, Label, TaggedCborSerializable as _,
    cbor::Value, iana,
};
use ed25519_dalek::Signature;
use minicbor::{
    Decode, Decoder, Encode, Encoder, decode,
    encode::{self, Write},
};

use crate::{
    NetworkId,
    bytes::public_32_bytes,
    cbor::{self, CanonicalError, DecodeError},
    domain::{self, SignDomain},
    keys::{KeyError, KeyUse, PublicKey, SecretKey},
};

/// A kind of object that can be signed.
///
/// The type derives `Encode` and `Decode` with integer keys in rising order; whatever those cannot express is checked
/// by [`Object::validate`], both before signing and after opening.
pub trait Object: Encode<()> + for<'b> Decode<'b, ()> {
    /// Use of the key that signs it.
    type Signer: KeyUse;

    /// Its domain string, media type and largest size.
    const DOMAIN: SignDomain<Self::Signer>;

    /// Checks bounds and relations between fields.
    ///
    /// # Errors
    /// [`Invalid`] names the first field that is wrong.
    fn validate(&self) -> Result<(), Invalid> {
        Ok(())
    }
}

/// A kind of object that means the same on every network: its header names none, and it opens on none that an [`Object`] is opened on.
pub trait Anywhere: Object {}

/// A field that breaks a rule of its kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it.
    pub rule: &'static str,
}

impl Invalid {
    /// `field` is wrong in this way.
    #[must_use]
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}

/// Signs an object for a network.
///
/// # Errors
/// [`SignError`] where the object breaks its own rules or is too large; it is never made then.
pub fn sign<T: Object>(
    object: T,
    key: &SecretKey<T::Signer>,
    network: &NetworkId,
) -> Result<Verified<T>, SignError> {
    sign_for(object, key, Some(network))
}

/// Signs an object that means the same on every network.
///
/// # Errors
/// As [`sign`].
pub fn sign_anywhere<T: Anywhere>(
    object: T,
    key: &SecretKey<T::Signer>,
) -> Result<Verified<T>, SignError> {
    sign_for(object, key, None)
}

fn sign_for<T: Object>(
    object: T,
    key: &SecretKey<T::Signer>,
    network: Option<&NetworkId>,
) -> Result<Verified<T>, SignError> {
    object.validate()?;
    let signer = key.public();
    let bytes = CoseSign1Builder::new()
        .protected(header::<T>(&signer, network))
        .payload(cbor::encode(&object))
        .create_signature(&[], |tbs| key.sign_bytes(tbs).to_vec())
        .build()
        .to_tagged_vec()
        .expect("a header of integers and text always encodes");
    let max = T::DOMAIN.max_bytes();
    if bytes.len() > max {
        return Err(SignError::TooLarge {
            len: bytes.len(),
            max,
        });
    }
    Ok(Verified {
        object,
        signer,
        signed: Signed::unchecked(bytes.into()),
    })
}

/// Why an object could not be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// It breaks a rule of its kind.
    #[error("invalid object")]
    Invalid(#[from] Invalid),
    /// It is larger than its kind may be.
    #[error("{len} bytes signed, at most {max} are allowed")]
    TooLarge {
        /// Size with signature.
        len: usize,
        /// Size allowed.
        max: usize,
    },
}

/// Opens bytes as a signed object of type `T` on `network`: the only way from bytes to fields.
///
/// # Errors
/// [`OpenError`]; all of them are the fault of who made or sent the bytes.
pub fn open<T: Object>(bytes: &[u8], network: &NetworkId) -> Result<Verified<T>, OpenError> {
    open_signed(Signed::from_bytes(bytes)?, Some(network))
}

/// Opens bytes as a signed object that means the same on every network.
///
/// # Errors
/// As [`open`].
pub fn open_anywhere<T: Anywhere>(bytes: &[u8]) -> Result<Verified<T>, OpenError> {
    open_signed(Signed::from_bytes(bytes)?, None)
}

fn open_signed<T: Object>(
    signed: Signed<T>,
    network: Option<&NetworkId>,
) -> Result<Verified<T>, OpenError> {
    let max = T::DOMAIN.max_bytes();
    let untagged = signed
        .bytes
        .strip_prefix(&[COSE_SIGN1_TAG])
        .ok_or(OpenError::Form)?;
    cbor::check_canonical(untagged, max)?;
    let cose = CoseSign1::from_tagged_slice(&signed.bytes).map_err(|_| OpenError::Form)?;

    let protected = cose.protected.original_data.as_deref().unwrap_or_default();
    cbor::check_canonical(protected, max)?;
    check_version::<T>(&cose.protected.header)?;
    let (signer, verifying) = PublicKey::<T::Signer>::parse(&cose.protected.header.key_id)?;
    check_header(&cose, &header::<T>(&signer, network))?;

    cose.verify_signature(&[], |signature, tbs| {
        let signature = Signature::from_slice(signature).map_err(|_| OpenError::Signature)?;
        verifying
            .verify_strict(tbs, &signature)
            .map_err(|_| OpenError::Signature)
    })?;

    let payload = cose.payload.ok_or(OpenError::Form)?;
    let object: T = cbor::decode(&payload, max).map_err(OpenError::Payload)?;
    object.validate()?;
    Ok(Verified {
        object,
        signer,
        signed,
    })
}

/// Why bytes did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Larger than the kind of object may be; nothing was decoded.
    #[error("{len} bytes, at most {max} are allowed")]
    TooLarge {
        /// Bytes received.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not in the one canonical form.
    #[error("not canonical CBOR")]
    Canonical(#[from] CanonicalError),
    /// Not a tagged COSE_Sign1 with a payload.
    #[error("not a COSE_Sign1 with a payload")]
    Form,
    /// Another kind of object, another version, or another network.
    #[error("signed as another {field}")]
    Header {
        /// What differs: `algorithm`, `kind`, `domain`, `network`, or `header` for anything that should not be there.
        field: &'static str,
    },
    /// The same kind of object in a later version of its format; nothing else of it was looked at.
    #[error("signed as version {version} of its kind, which this program does not know")]
    LaterVersion {
        /// The version in the domain string.
        version: u32,
    },
    /// The signer named in the header is not a key.
    #[error("no valid signer")]
    Signer(#[from] KeyError),
    /// The signature is not the signer's.
    #[error("signature does not verify")]
    Signature,
    /// The signed content is not what this kind of object holds.
    #[error("payload is not understood")]
    Payload(#[source] DecodeError),
    /// The content breaks a rule of its kind.
    #[error("invalid object")]
    Invalid(#[from] Invalid),
}

impl OpenError {
    /// Whether a later version of souk could have made the object: one of a later version, or one whose signature verifies and
    /// whose content holds what is not known here. Who passes it on is not to blame.
    #[must_use]
    pub const fn may_be_of_later_version(&self) -> bool {
        matches!(
            self,
            Self::LaterVersion { .. }
                | Self::Payload(DecodeError::Structure(_) | DecodeError::NotUnderstood)
        )
    }
}

/// Bytes that claim to be a signed `T`; nothing in them can be read before [`Signed::open`].
///
/// Inside another object it stands as a byte string.
pub struct Signed<T> {
    bytes: Arc<[u8]>,
    kind: PhantomData<fn() -> T>,
}

impl<T: Object> Signed<T> {
    /// Takes bytes that came from outside; copies nothing where they are too large.
    ///
    /// # Errors
    /// [`OpenError::TooLarge`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OpenError> {
        let max = T::DOMAIN.max_bytes();
        if bytes.len() > max {
            return Err(OpenError::TooLarge {
                len: bytes.len(),
                max,
            });
        }
        Ok(Self::unchecked(bytes.into()))
    }

    /// Opens the object on `network`.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open(&self, network: &NetworkId) -> Result<Verified<T>, OpenError> {
        open_signed(self.clone(), Some(network))
    }
}

impl<T> Signed<T> {
    /// The raw bytes, to be stored or passed on unchanged.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same bytes without a copy, to be kept for as long as they are being sent.
    #[must_use]
    pub const fn shared_bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }

    /// Digest of the raw bytes.
    #[must_use]
    pub fn digest(&self) -> ObjectDigest {
        ObjectDigest(domain::OBJECT.hash_unbound(&[&self.bytes]))
    }

    const fn unchecked(bytes: Arc<[u8]>) -> Self {
        Self {
            bytes,
            kind: PhantomData,
        }
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self::unchecked(Arc::clone(&self.bytes))
    }
}
impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl<T> Eq for Signed<T> {}

impl<T: Object> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Signed<{}>({} bytes)",
            T::DOMAIN.name(),
            self.bytes.len()
        )
    }
}

impl<C, T> Encode<C> for Signed<T> {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.bytes)?.ok()
    }
}

impl<'b, C, T: Object> Decode<'b, C> for Signed<T> {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        Self::from_bytes(d.bytes()?).map_err(|e| decode::Error::custom(e).at(at))
    }
}

/// An object whose signature and content were checked; it reads like a `&T`.
pub struct Verified<T: Object> {
    object: T,
    signer: PublicKey<T::Signer>,
    signed: Signed<T>,
}

impl<T: Object> Verified<T> {
    /// Who signed it.
    #[must_use]
    pub const fn signer(&self) -> &PublicKey<T::Signer> {
        &self.signer
    }

    /// The signed bytes, to be stored or passed on.
    #[must_use]
    pub const fn signed(&self) -> &Signed<T> {
        &self.signed
    }

    /// Digest of the signed bytes.
    #[must_use]
    pub fn digest(&self) -> ObjectDigest {
        self.signed.digest()
    }

    /// The object without its proof.
    #[must_use]
    pub fn into_object(self) -> T {
        self.object
    }
}

impl<T: Object> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T: Object + Clone> Clone for Verified<T> {
    fn clone(&self) -> Self {
        Self {
            object: self.object.clone(),
            signer: self.signer,
            signed: self.signed.clone(),
        }
    }
}

impl<T: Object + PartialEq> PartialEq for Verified<T> {
    fn eq(&self, other: &Self) -> bool {
        self.signed == other.signed
    }
}

impl<T: Object + Eq> Eq for Verified<T> {}

impl<T: Object + fmt::Debug> fmt::Debug for Verified<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verified")
            .field("signer", &self.signer)
            .field("object", &self.object)
            .finish()
    }
}

/// BLAKE3 digest of a whole signed object, signature included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectDigest([u8; 32]);

impl ObjectDigest {
    /// A digest that somebody else computed.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

public_32_bytes!(ObjectDigest);

/// CBOR tag 18 in its only form.
const COSE_SIGN1_TAG: u8 = 0xd2;
/// Label of `typ` (RFC 9596).
const TYP: Label = Label::Int(16);
/// Labels of domain and network, from the range for private use.
const DOMAIN: Label = Label::Int(-65_537);
const NETWORK: Label = Label::Int(-65_538);

/// The protected header of every `T` of `signer` on `network`, or on none, in canonical order.
fn header<T: Object>(signer: &PublicKey<T::Signer>, network: Option<&NetworkId>) -> Header {
    let mut rest = vec![
        (TYP, Value::Text(T::DOMAIN.typ().into())),
        (DOMAIN, Value::Text(T::DOMAIN.name().into())),
    ];
    rest.extend(network.map(|network| (NETWORK, Value::Text(network.as_str().into()))));
    Header {
        alg: Some(Algorithm::Assigned(iana::Algorithm::Ed25519)),
        key_id: signer.as_bytes().to_vec(),
        rest,
        ..Header::default()
    }
}

fn check_header(cose: &CoseSign1, expected: &Header) -> Result<(), OpenError> {
    let found = &cose.protected.header;
    if found == expected && cose.unprotected.is_empty() {
        return Ok(());
    }
    let differs = |label: &Label| {
        let value = |header: &Header| {
            let entry = header.rest.iter().find(|(l, _)| l == label);
            entry.map(|(_, value)| value.clone())
        };
        value(found) != value(expected)
    };
    let field = if found.alg != expected.alg {
        "algorithm"
    } else if differs(&TYP) {
        "kind"
    } else if differs(&DOMAIN) {
        "domain"
    } else if differs(&NETWORK) {
        "network"
    } else {
        "header"
    };
    Err(OpenError::Header { field })
}

/// Refuses another version of the same kind before anything in it is taken for a mistake.
fn check_version<T: Object>(found: &Header) -> Result<(), OpenError> {
    let text = |label: &Label| {
        let entry = found.rest.iter().find(|(l, _)| l == label);
        entry.and_then(|(_, value)| value.as_text())
    };
    if text(&TYP) != Some(T::DOMAIN.typ()) {
        return Ok(());
    }
    match text(&DOMAIN).and_then(domain::version) {
        Some(version) if version > domain::VERSION => Err(OpenError::LaterVersion { version }),
        _ => Ok(()),
    }
}
