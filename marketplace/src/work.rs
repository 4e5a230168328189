//! Proof of work bound to one request: a price for strangers that costs no name.
//!
//! The work is a nonce whose hash together with the request id begins with enough zero bits. The request id binds
//! network, provider and holder key, so work cannot be saved up for another provider or sold to another requester.
//!
//! Threat: a flood of requests that fill the anonymous places of a provider. Checking costs one hash.

use souk_crypto::{NetworkId, domain};

use crate::{card::MAX_WORK_BITS, units::RequestId};

/// Work that was done for a request.
pub type Nonce = u64;

/// Leading zero bits that `nonce` shows for `request`.
#[must_use]
pub fn bits(network: &NetworkId, request: RequestId, nonce: Nonce) -> u32 {
    let hash = domain::WORK.hash(network, &[&request.0, &nonce.to_be_bytes()]);
    let head: [u8; 8] = hash[..8].try_into().expect("a hash has 32 bytes");
    u64::from_be_bytes(head).leading_zeros()
}

/// Finds work of `wanted` bits, at most [`MAX_WORK_BITS`]; takes 2^`wanted` hashes on average.
#[must_use]
pub fn find(network: &NetworkId, request: RequestId, wanted: u8) -> Nonce {
    let wanted = u32::from(wanted.min(MAX_WORK_BITS));
    (0..=Nonce::MAX)
        .find(|nonce| bits(network, request, *nonce) >= wanted)
        .expect("2^64 nonces hold 24 zero bits")
}
