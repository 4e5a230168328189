//! Requests and replies as they travel: sealed to one key and framed.
//!
//! ```text
//!   request = version (1) ‖ request id (32) ‖ HPKE( kind (1) ‖ signed object )          to the provider's seal key
//!   reply   = HPKE( length (2) ‖ signed reply ‖ zeros )     always SEALED_REPLY_LEN     to the reply key
//! ```
//!
//! The request id stands outside as the associated data of the seal. Only the provider sees it: the whole frame is the
//! payload of a Sphinx packet. A reply carries no id outside; its recipient knows which SURB it came by.
//!
//! Threat: a reply whose size tells what it says. All have one size, whatever is inside.

use rand_core::CryptoRng;
use souk_crypto::{
    CardKey, CardPublicKey, HolderKey, NetworkId, ReplyKey, ReplyPublicKey, SealKey, SealPublicKey,
    SignError, Verified, domain,
    seal::{self, SealError, UnsealError},
    sign::{self, OpenError},
};

use crate::{
    envelope::{EnvelopeError, VerifiedEnvelope},
    reply::{Expected, Reply},
    request::{HolderRequest, HolderRequestError},
    units::RequestId,
};

/// Bytes of every sealed reply: what one Sphinx packet carries, less the head of a reply in it.
pub const SEALED_REPLY_LEN: usize = 2028;
/// Version of the request frame.
pub const FRAME_VERSION: u8 = 1;

const REPLY_PLAIN_LEN: usize = SEALED_REPLY_LEN - seal::OVERHEAD_BYTES;
const LENGTH_LEN: usize = 2;
const REQUEST_HEAD_LEN: usize = 1 + 32;
const KIND_ENVELOPE: u8 = 0;
const KIND_HOLDER_REQUEST: u8 = 1;

// Whatever can be signed as a reply must fit.
const _: () = assert!(domain::REPLY.max_bytes() + LENGTH_LEN <= REPLY_PLAIN_LEN);

/// A request as the provider reads it.
#[derive(Debug)]
pub enum Request {
    /// For a new lease.
    Envelope(Box<VerifiedEnvelope>),
    /// About a lease.
    Holder(Box<Verified<HolderRequest>>),
}

/// Why a frame is not a request to this provider; all of it is the sender's fault, who is not known.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Shorter than any request, or of another version.
    #[error("not a request frame of version {FRAME_VERSION}")]
    Frame,
    /// Not sealed to a key of this provider.
    #[error("the request does not unseal")]
    Unseal(#[source] UnsealError),
    /// A kind of request that this version does not know.
    #[error("unknown kind {0} of request")]
    Kind(u8),
    /// Not a valid envelope.
    #[error("not a valid envelope")]
    Envelope(#[source] EnvelopeError),
    /// Not a valid request of a holder.
    #[error("not a valid request of a holder")]
    Holder(#[source] HolderRequestError),
    /// The request id outside is not the one that was signed.
    #[error("the request id of the frame is not the one that was signed")]
    OtherRequest,
}

/// Why a request could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealRequestError {
    /// It could not be signed.
    #[error("the request could not be signed")]
    Sign(#[source] SignError),
    /// It could not be sealed.
    #[error("the request could not be sealed")]
    Seal(#[source] SealError),
}

/// Seals an envelope to a provider.
///
/// # Errors
/// [`SealRequestError::Seal`] where `to` is no key to seal to.
pub fn seal_envelope(
    envelope: &VerifiedEnvelope,
    to: &SealPublicKey,
    network: &NetworkId,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealRequestError> {
    seal_request(
        KIND_ENVELOPE,
        envelope.grant.request,
        envelope.as_bytes(),
        to,
        network,
        rng,
    )
    .map_err(SealRequestError::Seal)
}

/// Signs a request of a holder and seals it to a provider.
///
/// # Errors
/// [`SealRequestError`] where it breaks a rule or `to` is no key to seal to.
pub fn seal_holder_request(
    request: HolderRequest,
    key: &HolderKey,
    to: &SealPublicKey,
    network: &NetworkId,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealRequestError> {
    let signed = sign::sign(request, key, network).map_err(SealRequestError::Sign)?;
    let bytes = signed.signed().as_bytes();
    seal_request(KIND_HOLDER_REQUEST, signed.request, bytes, to, network, rng)
        .map_err(SealRequestError::Seal)
}

/// Which request a frame says it is about. Nothing of it is verified; but only who made the request, its provider, and who signed a
/// voucher for it know its id before it is opened.
#[must_use]
pub fn claimed_request(frame: &[u8]) -> Option<RequestId> {
    split_head(frame).map(|(request, _)| request)
}

fn split_head(frame: &[u8]) -> Option<(RequestId, &[u8])> {
    let (head, sealed) = frame.split_first_chunk::<REQUEST_HEAD_LEN>()?;
    let (version, request) = head.split_first_chunk::<1>()?;
    (version[0] == FRAME_VERSION).then(|| {
        (
            RequestId(request.try_into().expect("the head is 1 and 32 bytes")),
            sealed,
        )
    })
}

/// Opens a frame with one of the provider's seal keys: the current one and the one before it.
///
/// # Errors
/// [`RequestError`]; there is nobody to answer and nobody to blame, so a provider counts it and goes on.
pub fn open_request(
    frame: &[u8],
    keys: &[SealKey],
    network: &NetworkId,
) -> Result<Request, RequestError> {
    let (request, sealed) = split_head(frame).ok_or(RequestError::Frame)?;
    let mut outcome = Err(RequestError::Frame);
    for key in keys {
        outcome = seal::open(&domain::TO_PROVIDER, network, key, &request.0, sealed)
            .map_err(RequestError::Unseal);
        if outcome.is_ok() {
            break;
        }
    }
    let plain = outcome?;
    let (kind, object) = plain.split_first().ok_or(RequestError::Frame)?;
    let (opened, signed_id) = match *kind {
        KIND_ENVELOPE => {
            let envelope =
                VerifiedEnvelope::open(object, network).map_err(RequestError::Envelope)?;
            let id = envelope.grant.request;
            (Request::Envelope(Box::new(envelope)), id)
        }
        KIND_HOLDER_REQUEST => {
            let holder = HolderRequest::open(object, network).map_err(RequestError::Holder)?;
            let id = holder.request;
            (Request::Holder(Box::new(holder)), id)
        }
        other => return Err(RequestError::Kind(other)),
    };
    if signed_id == request {
        Ok(opened)
    } else {
        Err(RequestError::OtherRequest)
    }
}

/// Why a reply could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SealReplyError {
    /// It could not be signed: what it says does not fit the one size of replies.
    #[error("the reply could not be signed")]
    Sign(#[source] SignError),
    /// The reply key of the requester is no key.
    #[error("the reply could not be sealed")]
    Seal(#[source] SealError),
}

/// Signs a reply, pads it and seals it; always [`SEALED_REPLY_LEN`] bytes.
///
/// # Errors
/// [`SealReplyError`].
pub fn seal_reply(
    reply: Reply,
    key: &CardKey,
    to: &ReplyPublicKey,
    network: &NetworkId,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealReplyError> {
    let request = reply.request;
    let signed = sign::sign(reply, key, network).map_err(SealReplyError::Sign)?;
    let bytes = signed.signed().as_bytes();
    let len = u16::try_from(bytes.len()).expect("a reply is smaller than a packet");
    let mut plain = zeroize::Zeroizing::new(vec![0; REPLY_PLAIN_LEN]);
    plain[..LENGTH_LEN].copy_from_slice(&len.to_be_bytes());
    plain[LENGTH_LEN..][..bytes.len()].copy_from_slice(bytes);
    seal::seal(&domain::TO_HOLDER, network, to, &request.0, &plain, rng)
        .map_err(SealReplyError::Seal)
}

/// Why bytes are not the reply that was waited for.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// Another size than every reply has.
    #[error("{0} bytes where every reply has {SEALED_REPLY_LEN}")]
    Size(usize),
    /// Not sealed to this reply key, or not for this request.
    #[error("the reply does not unseal")]
    Unseal(#[source] UnsealError),
    /// Something else than zeros behind the reply, or no length.
    #[error("the reply is not padded as it should be")]
    Padding,
    /// Not a signed reply.
    #[error("the reply does not open")]
    Open(#[source] OpenError),
    /// Signed by somebody else than the provider.
    #[error("the reply is not signed by the provider's card key")]
    OtherSigner,
    /// Bound to something else.
    #[error("the reply is bound to another {0}")]
    Binding(&'static str),
}

/// Opens a reply of the provider whose card key is `signer`, and checks that it answers what was asked.
///
/// # Errors
/// [`ReplyError`].
pub fn open_reply(
    sealed: &[u8],
    key: &ReplyKey,
    signer: &CardPublicKey,
    expected: &Expected,
    network: &NetworkId,
) -> Result<Verified<Reply>, ReplyError> {
    if sealed.len() != SEALED_REPLY_LEN {
        return Err(ReplyError::Size(sealed.len()));
    }
    let plain = seal::open(
        &domain::TO_HOLDER,
        network,
        key,
        &expected.request.0,
        sealed,
    )
    .map_err(ReplyError::Unseal)?;
    let (len, rest) = plain
        .split_first_chunk::<LENGTH_LEN>()
        .ok_or(ReplyError::Padding)?;
    let (bytes, padding) = rest
        .split_at_checked(usize::from(u16::from_be_bytes(*len)))
        .ok_or(ReplyError::Padding)?;
    if padding.iter().any(|b| *b != 0) {
        return Err(ReplyError::Padding);
    }
    let reply: Verified<Reply> = sign::open(bytes, network).map_err(ReplyError::Open)?;
    if reply.signer() != signer {
        return Err(ReplyError::OtherSigner);
    }
    expected.check(&reply).map_err(ReplyError::Binding)?;
    Ok(reply)
}

fn seal_request(
    kind: u8,
    request: RequestId,
    object: &[u8],
    to: &SealPublicKey,
    network: &NetworkId,
    rng: &mut impl CryptoRng,
) -> Result<Vec<u8>, SealError> {
    let mut plain = Vec::with_capacity(1 + object.len());
    plain.push(kind);
    plain.extend_from_slice(object);
    let sealed = seal::seal(&domain::TO_PROVIDER, network, to, &request.0, &plain, rng)?;
    let mut frame = Vec::with_capacity(REQUEST_HEAD_LEN + sealed.len());
    frame.push(FRAME_VERSION);
    frame.extend_from_slice(&request.0);
    frame.extend_from_slice(&sealed);
    Ok(frame)
}
