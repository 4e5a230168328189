//! The card of a node: who it is, how to reach it, what it offers, to whom and for how much.
//!
//! ```text
//!   NodeKey ─ signs ─► SubKeys ─┐ (carried in the card)
//!   CardKey ─ signs ─► Card ────┴─► VerifiedCard ─► directory
//! ```
//!
//! A card lives for at most [`MAX_CARD_LIFE_S`]; the next one has a higher sequence. It is static: how much room there
//! is now travels apart ([`crate::capacity`]), coarsely, because exact figures would publish every lease.
//!
//! Threats: a card that is made for one reader only (caught by comparing card sets, [`crate::quorum`]), two cards under
//! one sequence (caught by [`crate::directory`]), texts that mean something to a shell or an `ssh_config` (refused by
//! their types), and addresses that make a reader ask a name server (only literal addresses pass).

use std::{fmt, net::IpAddr, ops::Deref, str::FromStr, sync::Arc};

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};
use souk_crypto::{
    CardKey, IssuerPublicKey, MAX_SKEW_S, NetworkId, NodeId, SealPublicKey, SignError, Signed,
    SubKeys, UnixTime, Verified,
    domain::{self, SignDomain},
    keys,
    sign::{self, Invalid, Object, OpenError},
};

use crate::{
    price::Prices,
    units::{
        Arch, BackendName, CardDigest, Digest, DurationS, ImageHash, ImageName, Limits, OperatorId,
        ParseError, Resources, Sequence, Tee,
    },
    wire::{List, wire_enum, wire_map},
};

/// Largest signed card in bytes.
pub const MAX_CARD_LEN: usize = domain::CARD.max_bytes();
/// Longest life of a card in seconds: a node that went away is forgotten within a day.
pub const MAX_CARD_LIFE_S: u64 = 24 * 3600;
/// Most addresses of a node: two transports over two address families.
pub const MAX_ADDRESSES: usize = 4;
/// Most backends of a node.
pub const MAX_OFFERS: usize = 4;
/// Most size classes of a backend.
pub const MAX_CLASSES: usize = 4;
/// Most images that a card can name within its size.
pub const MAX_IMAGES: usize = 16;
/// Most issuers that a provider can list.
pub const MAX_ISSUERS: usize = 8;
/// Most references to evidence: of the machine, and of another TEE in it.
pub const MAX_EVIDENCE: usize = 2;
/// Most leading zero bits that a provider may ask of a proof of work: about 17 million hashes, seconds on one core.
pub const MAX_WORK_BITS: u8 = 24;

wire_enum! {
    /// What a node does for others.
    pub enum Role {
        /// It rents out machines.
        Provider = 0 => "provider",
        /// It mixes packets.
        Mix = 1 => "mix",
        /// It joins SSH streams of requesters to providers.
        Relay = 2 => "relay",
        /// Requesters reach the network through it, and it holds their replies.
        Entry = 3 => "entry",
    }
}

wire_enum! {
    /// The transport of an address.
    pub enum Transport {
        /// TCP with Noise and Yamux.
        Tcp = 0 => "tcp",
        /// QUIC version 1.
        Quic = 1 => "quic",
    }
}

/// A literal address of a node. Its text is a multiaddr without a peer id: `/ip4/192.0.2.1/udp/4001/quic-v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// Where.
    pub ip: IpAddr,
    /// How.
    pub transport: Transport,
    /// At which port; never 0.
    pub port: u16,
}

wire_map! {
    /// One backend of a provider.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Offer {
        /// Name of the driver.
        0 => pub backend: BackendName,
        /// Architecture of the machine.
        1 => pub arch: Arch,
        /// The largest lease of each size class, rising.
        2 => pub classes: List<Resources, MAX_CLASSES>,
        /// Limits that are enforced for a whole lease.
        3 => pub enforced: Limits,
        /// Leases share the kernel of the host, which the provider opted in to.
        4 => pub shared_kernel: bool,
        /// Instances can open connections to the outside by themselves.
        5 => pub egress: bool,
        /// What protects the instance from the host.
        6 => pub tee: Tee,
    }
    check = Offer::check;
}

wire_map! {
    /// An image that a provider has ready.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Image {
        /// What counts.
        0 => pub hash: ImageHash,
        /// For people.
        1 => pub name: ImageName,
    }
}

wire_map! {
    /// Bounds for leases that nobody vouches for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AnonymousLimits {
        /// Leases at one time.
        0 => pub max_concurrent: u32,
        /// Length of one lease.
        1 => pub max_duration: DurationS,
        /// Size of one lease.
        2 => pub max_resources: Resources,
        /// Leases accepted within any hour.
        3 => pub max_per_hour: u32,
        /// Leading zero bits of the proof of work that each request carries; 0 asks for none.
        4 => pub work_bits: u8,
    }
    check = AnonymousLimits::check;
}

wire_map! {
    /// Whom a provider serves. Without anonymous limits it serves only grants signed by an issuer it lists.
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Policy {
        /// For requesters whom nobody vouches for.
        0 => pub anonymous: Option<AnonymousLimits>,
        /// Issuers whose signature is accepted.
        1 => pub issuers: List<IssuerPublicKey, MAX_ISSUERS>,
    }
}

wire_map! {
    /// A reference to evidence, which itself travels apart.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct EvidenceRef {
        /// What it is, by a registered number.
        0 => pub kind: u16,
        /// What it speaks about: [`EvidenceRef::NODE`] or [`EvidenceRef::INSTANCE`].
        1 => pub scope: u8,
        /// Hash of the digests: [`EvidenceRef::BLAKE3`].
        2 => pub algorithm: u8,
        /// The evidence.
        3 => pub digest: Digest,
        /// What is needed to check it.
        4 => pub collateral: Option<Digest>,
        /// When it stops to count.
        5 => pub not_after: UnixTime,
        /// Digest of the policy that its maker stands against, which the evidence binds; zero where it names none.
        6 => pub policy: Digest,
        /// The key epoch in which it was made, which the evidence binds.
        7 => pub epoch: u32,
    }
}

impl EvidenceRef {
    /// It speaks about the node whose card names it.
    pub const NODE: u8 = 0;
    /// It speaks about an instance.
    pub const INSTANCE: u8 = 1;
    /// The only hash there is.
    pub const BLAKE3: u8 = 0;

    /// What it claims to prove, which nobody has verified; `None` for a kind that is not known here.
    #[must_use]
    pub fn claimed(&self) -> Option<Tee> {
        Tee::from_code(self.kind.into()).filter(|tee| *tee != Tee::None)
    }
}

wire_map! {
    /// What a node says of itself.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Card {
        /// The node.
        0 => pub node: NodeId,
        /// Rises with every card of the node.
        1 => pub sequence: Sequence,
        /// First instant of its life.
        2 => pub from: UnixTime,
        /// First instant after its life.
        3 => pub to: UnixTime,
        /// What the node does, rising.
        4 => pub roles: List<Role, 4>,
        /// Where it listens; a provider behind a relay may have none.
        5 => pub addresses: List<Address, MAX_ADDRESSES>,
        /// The signed sub-keys: card key, log key, seal key, mix keys.
        6 => pub sub_keys: Signed<SubKeys>,
        /// Who runs it, so that requesters draw the mixes of a route, and relays, from different operators.
        7 => pub operator: Option<OperatorId>,
        /// Its backends.
        8 => pub offers: List<Offer, MAX_OFFERS>,
        /// Its images.
        9 => pub images: List<Image, MAX_IMAGES>,
        /// What it asks; absent where it asks nothing.
        10 => pub prices: Option<Prices>,
        /// Whom it serves.
        11 => pub policy: Policy,
        /// What proves what it runs on; may be empty.
        12 => pub evidence: List<EvidenceRef, MAX_EVIDENCE>,
        /// The node that this one succeeds; it counts only with the succession signed by both
        /// ([`crate::retirement`]).
        13 => pub succeeds: Option<NodeId>,
    }
    check = Card::check;
}

/// A card whose two signatures were checked: the node vouches for the card key, and the card key for the card.
///
/// Whether it is alive is a question of the time: [`VerifiedCard::age`].
#[derive(Clone, Debug)]
pub struct VerifiedCard {
    card: Verified<Card>,
    sub_keys: Verified<SubKeys>,
    digest: CardDigest,
}

/// Where a card stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It begins later than any honest clock could say.
    Future,
    /// It is good.
    Alive,
    /// It or its sub-keys have ended.
    Expired,
}

/// Why bytes are not a card.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The card does not open.
    #[error("the card does not open")]
    Card(#[source] OpenError),
    /// Its sub-keys do not open.
    #[error("the sub-keys of the card do not open")]
    SubKeys(#[source] OpenError),
    /// It could not be signed.
    #[error("the card could not be signed")]
    Sign(#[source] SignError),
    /// The sub-keys are another node's.
    #[error("the sub-keys belong to another node")]
    OtherNode,
    /// It was signed by another key than its sub-keys name.
    #[error("the card is not signed by the card key of its node")]
    OtherKey,
    /// A provider without a seal key, or a mix without mix keys.
    #[error("the sub-keys lack the {0} key that a role of the card needs")]
    MissingKey(&'static str),
}

impl CardError {
    /// Whether a later version of souk could have made the card; who passes it on is not to blame then.
    #[must_use]
    pub const fn may_be_of_later_version(&self) -> bool {
        match self {
            Self::Card(error) | Self::SubKeys(error) => error.may_be_of_later_version(),
            Self::Sign(_) | Self::OtherNode | Self::OtherKey | Self::MissingKey(_) => false,
        }
    }
}

impl VerifiedCard {
    /// Opens a signed card. `known` gives the card that is held of a node; where the new one carries the same sub-keys,
    /// their signature is not checked a second time.
    ///
    /// # Errors
    /// [`CardError`]; all of them are the fault of who made or sent the bytes.
    pub fn open<'k>(
        bytes: &[u8],
        network: &NetworkId,
        known: impl FnOnce(&NodeId) -> Option<&'k Self>,
    ) -> Result<Self, CardError> {
        let card: Verified<Card> = sign::open(bytes, network).map_err(CardError::Card)?;
        let sub_keys = match known(&card.node) {
            Some(known) if *known.sub_keys.signed() == card.sub_keys => known.sub_keys.clone(),
            _ => card.sub_keys.open(network).map_err(CardError::SubKeys)?,
        };
        if *sub_keys.signer() != card.node {
            return Err(CardError::OtherNode);
        }
        if *card.signer() != sub_keys.card_key {
            return Err(CardError::OtherKey);
        }
        if card.has_role(Role::Provider) && sub_keys.seal_key.is_none() {
            return Err(CardError::MissingKey("seal"));
        }
        // A provider is the last hop of what is sent to it.
        let is_hop = card.has_role(Role::Mix) || card.has_role(Role::Provider);
        if is_hop && sub_keys.mix_keys.is_empty() {
            return Err(CardError::MissingKey("mix"));
        }
        let digest = card.digest().into();
        Ok(Self {
            card,
            sub_keys,
            digest,
        })
    }

    /// Signs a card of one's own, and checks it as everybody else will.
    ///
    /// # Errors
    /// [`CardError`] where the card breaks a rule or is too large.
    pub fn sign(card: Card, key: &CardKey, network: &NetworkId) -> Result<Self, CardError> {
        let signed = sign::sign(card, key, network).map_err(CardError::Sign)?;
        Self::open(signed.signed().as_bytes(), network, |_| None)
    }

    /// Where the card stands at `now`.
    #[must_use]
    pub fn age(&self, now: UnixTime) -> Age {
        if now.plus_s(MAX_SKEW_S) < self.card.from {
            Age::Future
        } else if now >= self.card.to.plus_s(MAX_SKEW_S) || !self.sub_keys.is_current(now) {
            Age::Expired
        } else {
            Age::Alive
        }
    }

    /// The sub-keys of the node.
    #[must_use]
    pub fn sub_keys(&self) -> &SubKeys {
        &self.sub_keys
    }

    /// The list of sub-keys as the node signed it.
    #[must_use]
    pub fn key_list(&self) -> &Verified<SubKeys> {
        &self.sub_keys
    }

    /// Which of two cards of one node counts: the one with the later list of sub-keys, and under one list the later one.
    #[must_use]
    pub fn rank(&self) -> (u64, Sequence) {
        (self.sub_keys.serial, self.card.sequence)
    }

    /// To which key requests are sealed; `None` where the node is no provider.
    #[must_use]
    pub fn seal_key(&self) -> Option<&SealPublicKey> {
        self.sub_keys.seal_key.as_ref()
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn digest(&self) -> CardDigest {
        self.digest
    }

    /// The card as it was signed.
    #[must_use]
    pub fn signed(&self) -> &Signed<Card> {
        self.card.signed()
    }

    /// Its bytes, to be stored or passed on.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.card.signed().as_bytes()
    }

    pub(crate) fn shared_bytes(&self) -> &Arc<[u8]> {
        self.card.signed().shared_bytes()
    }
}

impl Deref for VerifiedCard {
    type Target = Card;
    fn deref(&self) -> &Card {
        &self.card
    }
}

impl Object for Card {
    type Signer = keys::Card;
    const DOMAIN: SignDomain<keys::Card> = domain::CARD;

    fn validate(&self) -> Result<(), Invalid> {
        self.check().map_err(|rule| Invalid::new("card", rule))
    }
}

impl Card {
    /// Whether the node does this.
    #[must_use]
    pub fn has_role(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.from >= self.to {
            return Err("the card ends before it begins");
        }
        if self.to.since_s(self.from) > MAX_CARD_LIFE_S {
            return Err("the card lives for more than a day");
        }
        if self.roles.is_empty() || !self.roles.windows(2).all(|pair| pair[0] < pair[1]) {
            return Err("roles are not a rising list");
        }
        if !self.has_role(Role::Provider) && !self.offers.is_empty() {
            return Err("offers without the role of a provider");
        }
        if self.succeeds == Some(self.node) {
            return Err("a node cannot succeed itself");
        }
        Ok(())
    }
}

impl Offer {
    fn check(&self) -> Result<(), &'static str> {
        if self.classes.is_empty() {
            return Err("an offer without a size class");
        }
        if !self
            .classes
            .windows(2)
            .all(|pair| pair[0] != pair[1] && pair[0].fits_in(&pair[1]))
        {
            return Err("size classes do not rise");
        }
        Ok(())
    }
}

impl AnonymousLimits {
    fn check(&self) -> Result<(), &'static str> {
        if self.work_bits > MAX_WORK_BITS {
            Err("too much work asked for")
        } else {
            Ok(())
        }
    }
}

impl Address {
    /// Whether the address can be one of the public internet; others pass on test networks only.
    #[must_use]
    pub fn is_public(&self) -> bool {
        is_public(self.ip)
    }
}

/// Whether an address can be one of the public internet.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let reserved = a == 0 || a >= 240;
            let inner = ip.is_private() || ip.is_loopback() || ip.is_link_local();
            !(inner || shared || reserved || ip.is_multicast())
        }
        // What is not 2000::/3 is loopback, local, multicast, mapped or not assigned.
        IpAddr::V6(ip) => ip.segments()[0] & 0xe000 == 0x2000,
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.ip.is_ipv4() { "ip4" } else { "ip6" };
        write!(f, "/{family}/{}", self.ip)?;
        match self.transport {
            Transport::Tcp => write!(f, "/tcp/{}", self.port),
            Transport::Quic => write!(f, "/udp/{}/quic-v1", self.port),
        }
    }
}

impl FromStr for Address {
    type Err = ParseError;

    /// Accepts exactly what [`Address`] displays, so that an address has one spelling.
    fn from_str(s: &str) -> Result<Self, ParseError> {
        let wrong =
            || ParseError("expected /ip4|ip6/ADDRESS/tcp/PORT or /udp/PORT/quic-v1".to_owned());
        // The longest is an IPv6 address of 39 characters between fixed words.
        if s.len() > 80 {
            return Err(wrong());
        }
        let mut parts = s.strip_prefix('/').ok_or_else(wrong)?.splitn(5, '/');
        let mut next = || parts.next().ok_or_else(wrong);
        let _family = next()?;
        let ip = next()?.parse().map_err(|_| wrong())?;
        let protocol = next()?;
        let port = next()?
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(wrong)?;
        let transport = match (protocol, parts.next()) {
            ("tcp", None) => Transport::Tcp,
            ("udp", Some("quic-v1")) => Transport::Quic,
            _ => return Err(wrong()),
        };
        let address = Self {
            ip,
            transport,
            port,
        };
        if address.to_string() == s {
            Ok(address)
        } else {
            Err(wrong())
        }
    }
}

impl<C> Encode<C> for Address {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Address {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
        d.str()?.parse().map_err(CborError::message)
    }
}
