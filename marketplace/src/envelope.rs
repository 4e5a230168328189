//! The envelope: everything a provider needs to start one lease, from somebody it does not know.
//!
//! ```text
//!   HolderKey (one lease only) ── signs ──► Envelope { grant, reply key, ssh key, image, SURBs, relays }
//!                                               │ sealed to the provider's seal key (crate::sealed)
//!                                               ▼
//!                                     VerifiedEnvelope ──► crate::admission
//! ```
//!
//! The holder key is drawn for one lease at one provider, and the request id is its hash: nobody else can use the id,
//! and two leases of one requester share nothing.
//!
//! Threats: an envelope that is replayed, changed, or used at another provider (all bound by the holder's signature
//! and the request id); an image that is not the one that was granted ([`crate::admission`] compares both); a provider
//! that sends its requester over a relay of its own and so learns an address (the requester names the relays).

use std::ops::Deref;

use souk_crypto::{
    HolderKey, HolderPublicKey, IssuerPublicKey, NetworkId, NodeId, ReplyPublicKey, SignError,
    UnixTime, Verified,
    domain::{self, SignDomain},
    keys,
    sign::{self, Invalid, Object, OpenError},
};

use crate::{
    reply::{Endpoint, Expected, MAX_ENDPOINTS, Receipt},
    units::{
        CardDigest, DurationS, EnvelopeDigest, ImageHash, Limits, Money, ReplyKeyHash, RequestId,
        Resources, SshPublicKey, Tee,
    },
    wire::{Blob, List, wire_map},
};

/// Bytes of a reply block as it travels: packet header and expiry epoch.
pub const SURB_LEN: usize = 400;
/// Most reply blocks in one request, so that nobody can make a provider store much for nothing.
pub const MAX_SURBS: usize = 16;
/// `accept_by` is a multiple of this many seconds, so that it does not tell the second at which a requester acted.
pub const ACCEPT_BY_BUCKET_S: u64 = 300;
/// `accept_by` lies at most this far ahead, which bounds how long request ids are remembered.
pub const MAX_ACCEPT_AHEAD_S: u64 = 2 * 3600;
/// Most relays that a request names, so that with an address of the provider all of them fit a receipt. One is enough;
/// the others are there because a relay may be away.
pub const MAX_NAMED_RELAYS: usize = MAX_ENDPOINTS - 1;
/// Largest authorization in bytes.
pub const MAX_AUTHORIZATION_LEN: usize = 1024;

/// An authorization without anything: the requester is anonymous.
pub const AUTHORIZATION_NONE: u16 = 0;
/// An authorization by a signed [`Voucher`]. The issuer, together with the provider, can identify its holder.
pub const AUTHORIZATION_ISSUER_LINKABLE: u16 = 1;

/// Relays that a requester has drawn.
pub type NamedRelays = List<NodeId, MAX_NAMED_RELAYS>;

/// One reply block, opaque here.
pub type Surb = Blob<SURB_LEN, SURB_LEN>;

wire_map! {
    /// Something with a registered type, whose bytes only that type explains.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Typed {
        /// What it is.
        0 => pub kind: u16,
        /// Its bytes.
        1 => pub bytes: Blob<0, MAX_AUTHORIZATION_LEN>,
    }
}

wire_map! {
    /// What is asked for.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Grant {
        /// Names the holder at this provider.
        0 => pub request: RequestId,
        /// Who is asked.
        1 => pub provider: NodeId,
        /// What is to run.
        2 => pub image: ImageHash,
        /// How much of the machine.
        3 => pub resources: Resources,
        /// Limits that must be enforced, else the lease is refused.
        4 => pub required: Limits,
        /// How long.
        5 => pub duration: DurationS,
        /// First instant at which the grant is no more good; a multiple of [`ACCEPT_BY_BUCKET_S`].
        6 => pub accept_by: UnixTime,
        /// The most that may be charged, in the asset of the card.
        7 => pub max_total: Money,
        /// The card whose offer was accepted.
        8 => pub offer: CardDigest,
        /// Why the provider should serve this requester.
        9 => pub authorization: Typed,
        /// How what was paid too much comes back; absent where nothing is paid.
        10 => pub refund: Option<Typed>,
        /// Proof of work ([`crate::work`]).
        11 => pub work: Option<u64>,
        /// The TEE of which the instance has to bring evidence, else the lease is refused; none is asked for where absent.
        12 => pub tee: Option<Tee>,
    }
    check = Grant::check;
}

wire_map! {
    /// A request for a lease.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Envelope {
        /// The key that signs this and every later request about the lease.
        0 => pub holder: HolderPublicKey,
        /// What is asked for.
        1 => pub grant: Grant,
        /// To which key the replies are sealed.
        2 => pub reply_key: ReplyPublicKey,
        /// Who may log in.
        3 => pub ssh_key: SshPublicKey,
        /// The image to start; must be the one of the grant.
        4 => pub image: ImageHash,
        /// How the replies travel.
        5 => pub surbs: List<Surb, MAX_SURBS>,
        /// The relays over which the holder will come, rising; none where it will come straight to the provider. The
        /// receipt names no others.
        6 => pub relays: NamedRelays,
    }
}

wire_map! {
    /// An issuer's word for the holder of one key.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Voucher {
        /// Who vouches.
        0 => pub issuer: IssuerPublicKey,
        /// For whom; the key is used for one lease, so is the voucher.
        1 => pub holder: HolderPublicKey,
        /// At which provider; absent where any provider that lists the issuer may accept it.
        2 => pub provider: Option<NodeId>,
        /// Size of the lease.
        3 => pub max_resources: Resources,
        /// Length of the lease.
        4 => pub max_duration: DurationS,
        /// First instant at which it is no more good.
        5 => pub not_after: UnixTime,
    }
}

/// An envelope whose signature is its holder's and whose request id is the holder's at the provider it names.
#[derive(Clone, Debug)]
pub struct VerifiedEnvelope {
    envelope: Verified<Envelope>,
    digest: EnvelopeDigest,
    reply_key: ReplyKeyHash,
}

/// Why bytes are not an envelope.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// It does not open.
    #[error("the envelope does not open")]
    Open(#[source] OpenError),
    /// It could not be signed.
    #[error("the envelope could not be signed")]
    Sign(#[source] SignError),
    /// It was signed by another key than it names.
    #[error("the envelope is not signed by its holder")]
    OtherKey,
    /// The request id belongs to another holder, provider or network.
    #[error("the request id is not that of the holder and the provider")]
    OtherRequest,
}

impl VerifiedEnvelope {
    /// Opens a signed envelope.
    ///
    /// # Errors
    /// [`EnvelopeError`]; all of them are the sender's fault.
    pub fn open(bytes: &[u8], network: &NetworkId) -> Result<Self, EnvelopeError> {
        Self::checked(
            sign::open(bytes, network).map_err(EnvelopeError::Open)?,
            network,
        )
    }

    /// Signs an envelope, and checks it as the provider will.
    ///
    /// # Errors
    /// [`EnvelopeError`] where it breaks a rule or is too large.
    pub fn sign(
        envelope: Envelope,
        key: &HolderKey,
        network: &NetworkId,
    ) -> Result<Self, EnvelopeError> {
        Self::checked(
            sign::sign(envelope, key, network).map_err(EnvelopeError::Sign)?,
            network,
        )
    }

    fn checked(envelope: Verified<Envelope>, network: &NetworkId) -> Result<Self, EnvelopeError> {
        if *envelope.signer() != envelope.holder {
            return Err(EnvelopeError::OtherKey);
        }
        let grant = &envelope.grant;
        if grant.request != RequestId::of(network, &grant.provider, &envelope.holder) {
            return Err(EnvelopeError::OtherRequest);
        }
        let digest = envelope.digest().into();
        let reply_key = ReplyKeyHash::of(network, &envelope.reply_key);
        Ok(Self {
            envelope,
            digest,
            reply_key,
        })
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> EnvelopeDigest {
        self.digest
    }

    /// The digest of its reply key.
    #[must_use]
    pub fn reply_key_hash(&self) -> ReplyKeyHash {
        self.reply_key
    }

    /// What every reply to this envelope is bound to.
    #[must_use]
    pub fn expected_reply(&self) -> Expected {
        Expected {
            request: self.grant.request,
            envelope: self.digest,
            reply_key: self.reply_key,
            provider: self.grant.provider,
            card: self.grant.offer,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.envelope.signed().as_bytes()
    }
}

impl Deref for VerifiedEnvelope {
    type Target = Envelope;
    fn deref(&self) -> &Envelope {
        &self.envelope
    }
}

impl Object for Envelope {
    type Signer = keys::Holder;
    const DOMAIN: SignDomain<keys::Holder> = domain::ENVELOPE;

    fn validate(&self) -> Result<(), Invalid> {
        self.grant
            .check()
            .map_err(|rule| Invalid::new("grant", rule))?;
        if !self.relays.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err(Invalid::new("relays", "not a rising list"));
        }
        if self.relays.contains(&self.grant.provider) {
            return Err(Invalid::new("relays", "the provider is no relay to itself"));
        }
        Ok(())
    }
}

impl Envelope {
    /// The first relay of a receipt that this request did not name. Whoever answers with one wants to choose who sees
    /// the holder's address.
    #[must_use]
    pub fn unnamed_relay(&self, receipt: &Receipt) -> Option<NodeId> {
        receipt
            .endpoints
            .iter()
            .find_map(|endpoint| match endpoint {
                Endpoint::Relay { relay, .. } if !self.relays.contains(relay) => Some(*relay),
                Endpoint::Relay { .. } | Endpoint::Direct(_) => None,
            })
    }
}

impl Object for Voucher {
    type Signer = keys::Issuer;
    const DOMAIN: SignDomain<keys::Issuer> = domain::VOUCHER;
}

impl Typed {
    /// No authorization.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            kind: AUTHORIZATION_NONE,
            bytes: Blob::default(),
        }
    }

    /// A voucher as an authorization; `None` where it is larger than an authorization may be.
    #[must_use]
    pub fn voucher(signed: &[u8]) -> Option<Self> {
        let bytes = Blob::new(signed.to_vec())?;
        Some(Self {
            kind: AUTHORIZATION_ISSUER_LINKABLE,
            bytes,
        })
    }
}

/// The `accept_by` of a request that is made at `now` and should be good for at least `patience_s` seconds.
#[must_use]
pub const fn accept_by(now: UnixTime, patience_s: u64) -> UnixTime {
    now.plus_s(patience_s + ACCEPT_BY_BUCKET_S)
        .bucket(ACCEPT_BY_BUCKET_S)
}

impl Grant {
    fn check(&self) -> Result<(), &'static str> {
        if !self.accept_by.0.is_multiple_of(ACCEPT_BY_BUCKET_S) {
            Err("accept_by is not a multiple of five minutes")
        } else if self.duration.0 == 0 {
            Err("a lease of no duration")
        } else if self.tee == Some(Tee::None) {
            Err("evidence of no TEE")
        } else {
            Ok(())
        }
    }
}
