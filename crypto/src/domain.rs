//! Every domain string of the network, in one place.
//!
//! A domain string stands in front of, or in the protected header of, everything that is signed, sealed or hashed. Each
//! constant says which confusion it stops. A format that changes its meaning gets a new version, never a new meaning
//! under the old string.
//!
//! A [`SignDomain`] also fixes which key may sign ([`KeyUse`]) and how large the signed object may be, so that neither
//! can be forgotten where an object is opened.

use std::marker::PhantomData;

use crate::{
    keys::{Card, Holder, Issuer, KeyUse, Node, Reference, Reply, Seal, SealUse},
    network::NetworkId,
};

/// The version in the domain strings of signed objects.
pub(crate) const VERSION: u32 = 1;

/// The version in a domain string: `souk/<version>/…`, written without a leading zero.
pub(crate) fn version(domain: &str) -> Option<u32> {
    let (version, _) = domain.strip_prefix("souk/")?.split_once('/')?;
    let digits = version.bytes().all(|byte| byte.is_ascii_digit());
    version
        .parse()
        .ok()
        .filter(|_| digits && !version.starts_with('0'))
}

/// A kind of signed object: its domain string, its media type, its signer and its largest size.
pub struct SignDomain<U> {
    name: &'static str,
    typ: &'static str,
    max_bytes: usize,
    signer: PhantomData<fn() -> U>,
}

impl<U: KeyUse> SignDomain<U> {
    /// The versioned domain string.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The media type in the `typ` header (RFC 9596).
    #[must_use]
    pub const fn typ(&self) -> &'static str {
        self.typ
    }

    /// Largest size of the whole signed object, in bytes.
    #[must_use]
    pub const fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

macro_rules! sign_domains {
    ($($(#[$doc:meta])* $name:ident: $signer:ty = $text:literal, max $max:literal;)*) => {
        $($(#[$doc])* pub const $name: SignDomain<$signer> = SignDomain {
            name: concat!("souk/1/", $text),
            typ: concat!("application/vnd.souk.", $text, "+cose"),
            max_bytes: $max,
            signer: PhantomData,
        };)*

        #[cfg(test)]
        const SIGN_NAMES: &[&str] = &[$(concat!("souk/1/", $text)),*];
    };
}

sign_domains! {
    /// The dated sub-keys of a node. Stops a key list from being taken for a card or a retirement, which the same key signs.
    SUB_KEYS: Node = "sub-keys", max 1536;
    /// The tombstone of a node. Stops any other statement of the node key from ending it.
    RETIREMENT: Node = "retirement", max 1024;
    /// A node that hands over to another one, signed by both. Stops a retirement from naming a heir that did not agree.
    SUCCESSION: Node = "succession", max 1024;
    /// A card. Stops a capacity message or a receipt from being read as an offer.
    CARD: Card = "card", max 4096;
    /// A capacity message. Stops the head of a log in it from being lifted into another kind of object.
    CAPACITY: Card = "capacity", max 1024;
    /// An answer to a holder: receipt, refusal, status or final statement, told apart by a critical field. Stops an offer
    /// from being read as an answer.
    REPLY: Card = "reply", max 1976;
    /// A named issuer's word for a holder. Stops a signature made for anything else from authorising a lease.
    VOUCHER: Issuer = "voucher", max 512;
    /// A request for a lease. Stops an end or a poll from being read as a new request.
    ENVELOPE: Holder = "envelope", max 12_288;
    /// What a holder says of its lease later: end, poll, top-up or acknowledgement, told apart by a critical field. Stops
    /// any of them from being read as a request for a lease.
    HOLDER_REQUEST: Holder = "holder-request", max 8_192;
    /// Reference values for evidence, which are the same on every network. Stops them from being taken for what a network binds.
    REFERENCE_VALUES: Reference = "reference-values", max 131_072;
}

/// Input that is hashed in one piece, in bytes: a statement with all that stands before it.
const SMALL_INPUT: usize = 640;

/// A kind of hash over length-prefixed parts.
pub struct HashDomain(&'static str);

impl HashDomain {
    /// The parameters of a network. Stops their hash from being met by a hash of anything else.
    pub(crate) const NETWORK_PARAMETERS: Self = Self("souk/1/hash/network-parameters");

    /// The versioned domain string.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.0
    }

    /// BLAKE3 over domain, network and each of `parts`, every one behind its length, so that no two lists of parts give
    /// the same input.
    #[must_use]
    pub fn hash(&self, network: &NetworkId, parts: &[&[u8]]) -> [u8; 32] {
        self.of(network.as_str().as_bytes(), parts)
    }

    /// Like [`Self::hash`], for input that names its network itself, that is what makes a network, or that means the same
    /// on every network.
    #[must_use]
    pub fn hash_unbound(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.of(b"", parts)
    }

    fn of(&self, network: &[u8], parts: &[&[u8]]) -> [u8; 32] {
        let whole = [self.0.as_bytes(), network];
        let all = || whole.iter().chain(parts);
        let len: usize = all().map(|part| 8 + part.len()).sum();
        // In one piece, where it is small: each update has a price of its own.
        let mut piece = [0; SMALL_INPUT];
        if let Some(piece) = piece.get_mut(..len) {
            let mut rest = &mut *piece;
            for part in all() {
                let (length, tail) = rest.split_at_mut(8);
                length.copy_from_slice(&(part.len() as u64).to_le_bytes());
                let (bytes, tail) = tail.split_at_mut(part.len());
                bytes.copy_from_slice(part);
                rest = tail;
            }
            return blake3::hash(piece).into();
        }
        let mut hasher = blake3::Hasher::new();
        for part in all() {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }
}

macro_rules! hash_domains {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: HashDomain = HashDomain(concat!("souk/1/hash/", $text));)*

        #[cfg(test)]
        const HASH_NAMES: &[&str] = &[$(concat!("souk/1/hash/", $text)),*];
    };
}

hash_domains! {
    /// Digest of a whole signed object. Stops the hash of a payload from standing for the hash of a signed object.
    OBJECT = "object";
    /// The id of a request: provider and holder key. Stops one id from meaning two requests.
    REQUEST_ID = "request-id";
    /// Digest of a reply key, as a receipt names it. Stops a receipt from being resealed to somebody else.
    REPLY_KEY = "reply-key";
    /// The public leaf of the usage log: salt and statement. Stops a leaf from being a hash known from elsewhere.
    LOG_LEAF = "log-leaf";
    /// The name of evidence against a log. Stops other hashes of the same bytes from standing for it.
    LOG_EVIDENCE = "log-evidence";
    /// The root over a set of cards. Stops a single card's digest from standing for a set of one.
    CARD_SET = "card-set";
    /// Proof of work that admits a request. Stops work for one request from paying for another.
    WORK = "work";
    /// Digest of a quote or report. Stops the digest of collateral from standing for evidence.
    EVIDENCE = "evidence";
    /// Digest of collateral. Stops the digest of evidence from standing for what supports it.
    COLLATERAL = "collateral";
    /// What a node's evidence binds. Stops evidence of an instance from standing for its provider.
    NODE_EVIDENCE = "node-evidence";
    /// What an instance's evidence binds. Stops evidence of a node from standing for a machine that it rents out.
    INSTANCE_EVIDENCE = "instance-evidence";
    /// Digest of a policy. Stops the digest of any other text from standing for a policy.
    EVIDENCE_POLICY = "evidence-policy";
    /// Proof of work that lets a message of several packets in. Stops it from standing for work that admits a request.
    MESSAGE_WORK = "message-work";
}

/// A kind of sealed message: its domain string, whose key opens it, and its largest size.
pub struct SealDomain<U> {
    name: &'static str,
    max_bytes: usize,
    recipient: PhantomData<fn() -> U>,
}

impl<U: SealUse> SealDomain<U> {
    /// The versioned domain string.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Largest size of the sealed message, in bytes.
    #[must_use]
    pub const fn max_bytes(&self) -> usize {
        self.max_bytes
    }
}

macro_rules! seal_domains {
    ($($(#[$doc:meta])* $name:ident: $recipient:ty = $text:literal, max $max:literal;)*) => {
        $($(#[$doc])* pub const $name: SealDomain<$recipient> = SealDomain {
            name: concat!("souk/1/seal/", $text),
            max_bytes: $max,
            recipient: PhantomData,
        };)*

        #[cfg(test)]
        const SEAL_NAMES: &[&str] = &[$(concat!("souk/1/seal/", $text)),*];
    };
}

seal_domains! {
    /// A request to a provider's `seal_key`. Stops a reply from being reflected as a request.
    TO_PROVIDER: Seal = "to-provider", max 49_152;
    /// A reply to a one-time reply key. Stops a sealed request from being reflected as a reply.
    TO_HOLDER: Reply = "to-holder", max 2_048;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_domain_string_is_used_twice_or_is_the_start_of_another_kind() {
        let all: Vec<_> = [SIGN_NAMES, HASH_NAMES, SEAL_NAMES].concat();
        let distinct: HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn moving_bytes_from_one_part_to_the_next_changes_the_hash() {
        let one = OBJECT.hash_unbound(&[b"ab", b"c"]);
        assert_ne!(one, OBJECT.hash_unbound(&[b"a", b"bc"]));
        assert_ne!(one, OBJECT.hash_unbound(&[b"abc"]));
        assert_ne!(one, LOG_LEAF.hash_unbound(&[b"ab", b"c"]));
    }
}
