//! Nodes, cards and envelopes with fixed seeds, for tests and benchmarks.

#![allow(
    dead_code,
    reason = "every test binary uses its own part of this module"
)]

use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{
    CardKey, HolderKey, LogKey, MixKey, MixPublicKey, NetworkId, NetworkParams, NodeId, NodeKey,
    ReplyKey, SealKey, Signed, SubKeys, UnixTime, Window, sign,
};
use souk_market::{
    capacity::{Capacity, Level},
    card::{Address, AnonymousLimits, Card, EvidenceRef, Image, Offer, Policy, Role, VerifiedCard},
    envelope::{Envelope, Grant, Surb, Typed, VerifiedEnvelope, accept_by},
    price::{Prices, Rounding},
    shares::Source,
    units::{
        CardDigest, Digest, DurationS, ImageHash, Limit, Limits, Money, RequestId, Resources,
        Sequence, SshPublicKey, Tee,
    },
    wire::{Blob, List},
};

/// The instant at which tests happen.
pub(crate) const NOW: UnixTime = UnixTime(1_800_000_000);
/// Where the messages of tests come from.
pub(crate) const SOURCE: Source = Source::Neighbour(1);
/// The image that providers of tests have.
pub(crate) const IMAGE: ImageHash = ImageHash([7; 32]);

/// A test network.
pub(crate) fn network() -> NetworkId {
    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    NetworkId::new("test", &params).expect("a name")
}

/// One core, one GiB.
pub(crate) fn small() -> Resources {
    Resources {
        cpu_millicores: 1_000,
        memory_mib: 1_024,
        disk_mib: 1_024,
        gpus: 0,
        max_processes: 128,
    }
}

/// Four cores, eight GiB.
pub(crate) fn large() -> Resources {
    Resources {
        cpu_millicores: 4_000,
        memory_mib: 8_192,
        disk_mib: 8_192,
        gpus: 0,
        max_processes: 512,
    }
}

/// A node with all its keys.
pub(crate) struct Node {
    pub(crate) rng: StdRng,
    pub(crate) network: NetworkId,
    pub(crate) node: NodeKey,
    pub(crate) card: CardKey,
    pub(crate) log: LogKey,
    pub(crate) seal: SealKey,
    pub(crate) sub_keys: Signed<SubKeys>,
}

impl Node {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let network = network();
        let (node, card) = (NodeKey::generate(&mut rng), CardKey::generate(&mut rng));
        let (log, seal) = (LogKey::generate(&mut rng), SealKey::generate(&mut rng));
        let window = Window::new(NOW.minus_s(3_600), NOW.plus_s(30 * 86_400)).expect("not empty");
        let mix_keys = (0..3)
            .map(|epoch| MixKey {
                epoch,
                suite: 1,
                key: MixPublicKey::from_bytes(&[epoch as u8 + 1; 32]).expect("32 bytes"),
                window: Window::new(NOW.plus_s(3_600 * u64::from(epoch)), NOW.plus_s(90_000))
                    .expect("not empty"),
            })
            .collect();
        let sub_keys = SubKeys {
            serial: 1,
            window,
            card_key: card.public(),
            log_key: Some(log.public()),
            seal_key: Some(seal.public()),
            mix_keys,
        };
        let sub_keys = sign::sign(sub_keys, &node, &network)
            .expect("valid")
            .signed()
            .clone();
        Self {
            rng,
            network,
            node,
            card,
            log,
            seal,
            sub_keys,
        }
    }

    /// The same node with another card key, which its next list of keys names.
    pub(crate) fn rotated(mut self, seed: u64) -> Self {
        self.card = CardKey::generate(&mut StdRng::seed_from_u64(seed));
        let old = self.sub_keys.open(&self.network).expect("valid");
        let list = SubKeys {
            serial: old.serial + 1,
            card_key: self.card.public(),
            ..(*old).clone()
        };
        let list = sign::sign(list, &self.node, &self.network).expect("valid");
        self.sub_keys = list.signed().clone();
        self
    }

    /// What a provider and mix would say of itself.
    pub(crate) fn plain_card(&self, sequence: u64) -> Card {
        Card {
            node: self.node.public(),
            sequence: Sequence(sequence),
            from: NOW.minus_s(60),
            to: NOW.plus_s(12 * 3_600),
            roles: list(vec![Role::Provider, Role::Mix, Role::Relay, Role::Entry]),
            addresses: list(vec![address("/ip4/127.0.0.1/udp/4001/quic-v1")]),
            sub_keys: self.sub_keys.clone(),
            operator: None,
            offers: list(vec![Offer {
                backend: "sandbox".parse().expect("a name"),
                arch: "x86_64".parse().expect("an arch"),
                classes: list(vec![small(), large()]),
                enforced: Limits::of(&[Limit::Memory, Limit::Processes]),
                shared_kernel: true,
                egress: false,
                tee: Tee::None,
            }]),
            images: list(vec![Image {
                hash: IMAGE,
                name: "host-tools".parse().expect("a name"),
            }]),
            prices: Some(Prices {
                asset: "TEST".parse().expect("an asset"),
                exponent: 2,
                core_hour: Money(4),
                memory_gib_hour: Money(1),
                disk_gib_hour: Money(0),
                increment: DurationS(60),
                minimum: DurationS(60),
                rounding: Rounding::Up,
            }),
            policy: Policy {
                anonymous: Some(AnonymousLimits {
                    max_concurrent: 4,
                    max_duration: DurationS(7_200),
                    max_resources: large(),
                    max_per_hour: 10,
                    work_bits: 0,
                }),
                issuers: List::empty(),
            },
            evidence: List::empty(),
            succeeds: None,
        }
    }

    /// The signed card.
    pub(crate) fn card(&self, sequence: u64) -> VerifiedCard {
        self.sign(self.plain_card(sequence))
    }

    pub(crate) fn sign(&self, card: Card) -> VerifiedCard {
        VerifiedCard::sign(card, &self.card, &self.network).expect("a valid card")
    }

    /// A signed capacity message.
    pub(crate) fn capacity(&self, card: u64, at: UnixTime, level: Level) -> Vec<u8> {
        let capacity = Capacity {
            node: self.node.public(),
            card: Sequence(card),
            at,
            levels: list(vec![list(vec![level, level])]),
            log: None,
        };
        let signed = sign::sign(capacity, &self.card, &self.network).expect("valid");
        signed.signed().as_bytes().to_vec()
    }
}

/// A requester of one lease.
pub(crate) struct Requester {
    pub(crate) holder: HolderKey,
    pub(crate) reply: ReplyKey,
    pub(crate) network: NetworkId,
}

impl Requester {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (holder, reply) = (HolderKey::generate(&mut rng), ReplyKey::generate(&mut rng));
        Self {
            holder,
            reply,
            network: network(),
        }
    }

    /// An anonymous request for an hour of a small machine.
    pub(crate) fn plain_envelope(&self, provider: &Node, offer: CardDigest) -> Envelope {
        let provider = provider.node.public();
        let holder = self.holder.public();
        Envelope {
            holder,
            grant: Grant {
                request: RequestId::of(&self.network, &provider, &holder),
                provider,
                image: IMAGE,
                resources: small(),
                required: Limits::of(&[Limit::Memory]),
                duration: DurationS(3_600),
                accept_by: accept_by(NOW, 600),
                max_total: Money(100),
                offer,
                authorization: Typed::anonymous(),
                refund: None,
                work: None,
                tee: None,
            },
            reply_key: self.reply.public(),
            ssh_key: SshPublicKey([9; 32]),
            image: IMAGE,
            surbs: list(vec![surb(1), surb(2)]),
            relays: list(vec![relay()]),
        }
    }

    pub(crate) fn sign(&self, envelope: Envelope) -> VerifiedEnvelope {
        VerifiedEnvelope::sign(envelope, &self.holder, &self.network).expect("a valid envelope")
    }

    pub(crate) fn envelope(&self, provider: &Node, offer: CardDigest) -> VerifiedEnvelope {
        self.sign(self.plain_envelope(provider, offer))
    }
}

/// The relay that every request here names.
pub(crate) fn relay() -> NodeId {
    NodeKey::generate(&mut StdRng::seed_from_u64(77)).public()
}

pub(crate) fn surb(fill: u8) -> Surb {
    Blob::new(vec![fill; souk_market::envelope::SURB_LEN]).expect("the size of a SURB")
}

pub(crate) fn list<T, const MAX: usize>(items: Vec<T>) -> List<T, MAX> {
    List::new(items).expect("within its bound")
}

pub(crate) fn address(text: &str) -> Address {
    text.parse().expect("an address")
}

/// The largest card that the bounds of its fields allow on the wire, or nearly so.
pub(crate) fn full_card(node: &Node, images: usize) -> Card {
    let mut card = node.plain_card(1);
    card.addresses = list(vec![
        address(
            "/ip6/2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/udp/65535/quic-v1"
        );
        4
    ]);
    card.images = list(
        (0..images)
            .map(|i| Image {
                hash: ImageHash([i as u8; 32]),
                name: format!("image-with-a-long-name-{i:09}")
                    .parse()
                    .expect("a name"),
            })
            .collect(),
    );
    let offer = card.offers[0].clone();
    card.offers = list(vec![offer; 4]);
    card.evidence = list(vec![
        EvidenceRef {
            kind: u16::MAX,
            scope: 0,
            algorithm: 0,
            digest: Digest([1; 32]),
            collateral: Some(Digest([2; 32])),
            not_after: NOW,
            policy: Digest([3; 32]),
            epoch: u32::MAX,
        };
        2
    ]);
    card
}
