//! What a provider answers: a receipt, a refusal, the status of a lease, a part of its evidence, or its final statement.
//!
//! ```text
//!   Reply { binding, body } ── card key signs ──► padded ──► sealed to the reply key ──► SURB ──► requester
//! ```
//!
//! All of them have one size ([`crate::sealed::SEALED_REPLY_LEN`]), which fits one packet: nobody on the way learns
//! whether a request was accepted. The signature stands inside the seal and covers the binding, so a reply can neither
//! be forged by who knows the reply key nor resealed to somebody else.
//!
//! Threats: a reply for another request, from another provider, to another requester, or an old one (all refused by
//! [`Expected::check`]); a host name or user name that means something to `ssh` (their types have no such characters).

use std::net::{IpAddr, SocketAddr};

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};
use souk_crypto::{
    NodeId, UnixTime,
    domain::{self, SignDomain},
    keys,
    sign::{Invalid, Object},
};

use crate::{
    card::EvidenceRef,
    refusal::Reason,
    statement::MAX_STATEMENT_LEN,
    units::{
        CardDigest, Counter, Digest, EnvelopeDigest, HostKey, LeaseId, Money, RelayToken,
        ReplyKeyHash, RequestId, Salt, UserName,
    },
    wire::{Blob, List, definite, wire_enum, wire_map},
};

/// Most endpoints of an instance.
pub const MAX_ENDPOINTS: usize = 4;
/// Most bytes of a log entry.
pub const MAX_ENTRY_LEN: usize = 128;
/// Most bytes of a checkpoint with its signatures.
pub const MAX_CHECKPOINT_LEN: usize = 512;
/// Bytes of evidence in one reply.
pub const EVIDENCE_PART_LEN: usize = 1536;
/// Most parts of the evidence of an instance: as many as the largest quote has, 16 KiB.
pub const MAX_EVIDENCE_PARTS: u8 = 11;
/// Most bytes of an inclusion proof: 26 hashes of 32 bytes, enough for a log of 67 million leaves.
pub const MAX_PATH_LEN: usize = 26 * 32;

/// Where an instance can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Straight at the provider. Who uses it shows the provider an address.
    Direct(SocketAddr),
    /// Through a relay that keeps a connection to the provider.
    Relay {
        /// The relay.
        relay: NodeId,
        /// What it asks for.
        token: RelayToken,
    },
}

wire_map! {
    /// The lease stands, and this is how to use it.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Receipt {
        /// The lease.
        0 => pub lease: LeaseId,
        /// First instant after it.
        1 => pub valid_to: UnixTime,
        /// Where its SSH server answers.
        2 => pub endpoints: List<Endpoint, MAX_ENDPOINTS>,
        /// The host key, made inside of the instance.
        3 => pub host_key: HostKey,
        /// The user to log in as.
        4 => pub user: UserName,
        /// What the whole duration costs, in the asset of the card.
        5 => pub price: Money,
        /// Evidence of the instance.
        6 => pub evidence: List<EvidenceRef, 2>,
    }
    check = Receipt::check;
}

wire_map! {
    /// The answer is no.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Refusal {
        /// Why.
        0 => pub reason: Reason,
    }
}

wire_enum! {
    /// Where a lease stands, for its holder.
    pub enum LeaseState {
        /// Accepted; no instance yet.
        Provisioning = 0 => "provisioning",
        /// The instance accepts SSH.
        Active = 1 => "active",
        /// It is being ended.
        Draining = 2 => "draining",
        /// It has ended; the statement is not in a checkpoint yet.
        Closed = 3 => "closed",
    }
}

wire_map! {
    /// How a lease stands.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status {
        /// The lease.
        0 => pub lease: LeaseId,
        /// Where it stands.
        1 => pub state: LeaseState,
        /// First instant after it.
        2 => pub valid_to: UnixTime,
    }
}

wire_map! {
    /// The final account of a lease, with the proof that the usage log holds it. How to check it is the log's matter.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct FinalStatement {
        /// The lease.
        0 => pub lease: LeaseId,
        /// The bytes of a [`crate::statement::Statement`].
        1 => pub statement: Blob<1, MAX_STATEMENT_LEN>,
        /// Opens the commitment of the log entry.
        2 => pub salt: Salt,
        /// The entry of the log.
        3 => pub entry: Blob<1, MAX_ENTRY_LEN>,
        /// Its index.
        4 => pub index: u64,
        /// The hashes from the entry up to the root of the checkpoint, 32 bytes each.
        5 => pub path: Blob<0, MAX_PATH_LEN>,
        /// The signed checkpoint.
        6 => pub checkpoint: Blob<1, MAX_CHECKPOINT_LEN>,
    }
}

wire_map! {
    /// A part of the evidence that a receipt names: too much for one reply.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct EvidencePart {
        /// The lease.
        0 => pub lease: LeaseId,
        /// Digest of the whole.
        1 => pub digest: Digest,
        /// Which part this is, from 0.
        2 => pub part: u8,
        /// How many there are.
        3 => pub parts: u8,
        /// Its bytes; all parts but the last have [`EVIDENCE_PART_LEN`].
        4 => pub bytes: Blob<1, EVIDENCE_PART_LEN>,
    }
    check = EvidencePart::check;
}

wire_enum! {
    /// What a provider has to say to all of its holders.
    pub enum NoticeKind {
        /// Its process ends and comes back; the instance goes on meanwhile.
        Stops = 0 => "stops",
        /// It takes no new leases.
        Drains = 1 => "drains",
        /// It takes no new leases, and will not come back.
        Retires = 2 => "retires",
    }
}

wire_map! {
    /// Something that a holder should know beside the answer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Notice {
        /// What.
        0 => pub kind: NoticeKind,
        /// The provider ends the lease then, if it is still open; absent where it runs to its own end.
        1 => pub ends_by: Option<UnixTime>,
    }
}

/// What a reply says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// The lease stands.
    Receipt(Receipt),
    /// The answer is no.
    Refusal(Refusal),
    /// How the lease stands.
    Status(Status),
    /// The final account.
    Statement(FinalStatement),
    /// A part of the evidence.
    Evidence(EvidencePart),
}

wire_map! {
    /// An answer, bound to what it answers.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Reply {
        /// The request.
        0 => pub request: RequestId,
        /// The envelope that started it.
        1 => pub envelope: EnvelopeDigest,
        /// The reply key of that envelope.
        2 => pub reply_key: ReplyKeyHash,
        /// Who answers.
        3 => pub provider: NodeId,
        /// The card whose offer was accepted.
        4 => pub card: CardDigest,
        /// The counter of the request that is answered; 0 for the envelope.
        5 => pub counter: Counter,
        /// When it was made.
        6 => pub at: UnixTime,
        /// What it says.
        7 => pub body: Body,
        /// What the provider has to say beside it. Who does not know the key may pass over it.
        128 => pub notice: Option<Notice>,
    }
}

/// What a requester knows of the reply it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// The request.
    pub request: RequestId,
    /// Its envelope.
    pub envelope: EnvelopeDigest,
    /// The reply key of the envelope.
    pub reply_key: ReplyKeyHash,
    /// Who was asked.
    pub provider: NodeId,
    /// The card whose offer was accepted.
    pub card: CardDigest,
}

impl Expected {
    /// The reply that passes [`check`](Self::check), without a notice.
    #[must_use]
    pub fn reply(&self, counter: Counter, at: UnixTime, body: Body) -> Reply {
        Reply {
            request: self.request,
            envelope: self.envelope,
            reply_key: self.reply_key,
            provider: self.provider,
            card: self.card,
            counter,
            at,
            body,
            notice: None,
        }
    }

    /// Checks that a reply answers this and nothing else.
    ///
    /// # Errors
    /// The name of the first field that differs.
    pub fn check(&self, reply: &Reply) -> Result<(), &'static str> {
        let same = [
            ("request", reply.request == self.request),
            ("envelope", reply.envelope == self.envelope),
            ("reply key", reply.reply_key == self.reply_key),
            ("provider", reply.provider == self.provider),
            ("card", reply.card == self.card),
        ];
        same.into_iter()
            .find(|(_, same)| !same)
            .map_or(Ok(()), |(field, _)| Err(field))
    }
}

impl Object for Reply {
    type Signer = keys::Card;
    const DOMAIN: SignDomain<keys::Card> = domain::REPLY;

    fn validate(&self) -> Result<(), Invalid> {
        match &self.body {
            Body::Receipt(receipt) => receipt
                .check()
                .map_err(|rule| Invalid::new("receipt", rule)),
            Body::Evidence(part) => part.check().map_err(|rule| Invalid::new("evidence", rule)),
            Body::Refusal(_) | Body::Status(_) | Body::Statement(_) => Ok(()),
        }
    }
}

impl Receipt {
    fn check(&self) -> Result<(), &'static str> {
        if self.endpoints.is_empty() {
            Err("a receipt without an endpoint")
        } else {
            Ok(())
        }
    }
}

impl EvidencePart {
    /// One part of `evidence`, which has this digest; `None` where it has no such part, or is longer than all of them.
    #[must_use]
    pub fn of(lease: LeaseId, digest: Digest, evidence: &[u8], part: u8) -> Option<Self> {
        let parts = u8::try_from(evidence.len().div_ceil(EVIDENCE_PART_LEN)).ok()?;
        let bytes = evidence.chunks(EVIDENCE_PART_LEN).nth(part.into())?;
        (parts <= MAX_EVIDENCE_PARTS).then(|| Self {
            lease,
            digest,
            part,
            parts,
            bytes: Blob::new(bytes.to_vec()).expect("a chunk has its size at most"),
        })
    }

    fn check(&self) -> Result<(), &'static str> {
        let is_last = self.part.checked_add(1) == Some(self.parts);
        if self.parts > MAX_EVIDENCE_PARTS || self.part >= self.parts {
            Err("a part of evidence that cannot be")
        } else if !is_last && self.bytes.len() != EVIDENCE_PART_LEN {
            Err("a part of evidence that is not full")
        } else {
            Ok(())
        }
    }
}

impl<C> Encode<C> for Endpoint {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::Direct(address) => {
                e.array(3)?.u8(0)?;
                match address.ip() {
                    IpAddr::V4(ip) => e.bytes(&ip.octets())?,
                    IpAddr::V6(ip) => e.bytes(&ip.octets())?,
                };
                e.u16(address.port())?.ok()
            }
            Self::Relay { relay, token } => {
                e.array(3)?.u8(1)?;
                relay.encode(e, ctx)?;
                token.encode(e, ctx)
            }
        }
    }
}

impl<'b, C> Decode<'b, C> for Endpoint {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        match (definite(d.array()?)?, d.u8()?) {
            (3, 0) => {
                let bytes = d.bytes()?;
                let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
                    IpAddr::from(v4)
                } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
                    IpAddr::from(v6)
                } else {
                    return Err(CborError::message("not an IP address"));
                };
                match d.u16()? {
                    0 => Err(CborError::message("port 0")),
                    port => Ok(Self::Direct(SocketAddr::new(ip, port))),
                }
            }
            (3, 1) => Ok(Self::Relay {
                relay: NodeId::decode(d, ctx)?,
                token: RelayToken::decode(d, ctx)?,
            }),
            _ => Err(CborError::message("not an endpoint")),
        }
    }
}

impl<C> Encode<C> for Body {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(2)?;
        match self {
            Self::Receipt(body) => body.encode(e.u8(0)?, ctx),
            Self::Refusal(body) => body.encode(e.u8(1)?, ctx),
            Self::Status(body) => body.encode(e.u8(2)?, ctx),
            Self::Statement(body) => body.encode(e.u8(3)?, ctx),
            Self::Evidence(body) => body.encode(e.u8(4)?, ctx),
        }
    }
}

impl<'b, C> Decode<'b, C> for Body {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        match (definite(d.array()?)?, d.u8()?) {
            (2, 0) => Receipt::decode(d, ctx).map(Self::Receipt),
            (2, 1) => Refusal::decode(d, ctx).map(Self::Refusal),
            (2, 2) => Status::decode(d, ctx).map(Self::Status),
            (2, 3) => FinalStatement::decode(d, ctx).map(Self::Statement),
            (2, 4) => EvidencePart::decode(d, ctx).map(Self::Evidence),
            _ => Err(CborError::message("not a reply")),
        }
    }
}
