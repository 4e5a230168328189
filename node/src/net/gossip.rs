//! Cards and capacity by gossip: nothing is forwarded before the validator has said yes.
//!
//! ```text
//!  neighbour ──► size cap ──► rate of this neighbour ──► CardValidator ──► Accept: forwarded to the mesh
//!                  │ over        │ over                        ├─────────► Ignore: dropped (expired, future, later version)
//!                  ▼             ▼                             └─────────► Reject: dropped, the neighbour pays (form, signature)
//!               dropped       Ignore, counted
//! ```
//!
//! Messages are anonymous at this layer: each carries its own signature, and its id is the hash of its bytes, so one card
//! has one id whoever sends it. A neighbour is punished for what it forwards against the rules that every node checks in
//! the same way, and for its own framing, size and rate; never for what it does not deliver, since these topics are slow.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::{
    PeerId,
    gossipsub::{
        self, ConfigBuilder, MessageAcceptance, MessageAuthenticity, MessageId, PeerScoreParams,
        PeerScoreThresholds, TopicHash, TopicScoreParams, ValidationMode, Version,
    },
};

use super::{
    afresh::Afresh,
    names::Names,
    origin::Origin,
    rate::{SharedBucket, TokenBucket},
};

/// Largest card or retirement, in bytes.
pub const MAX_CARD_BYTES: usize = 4_096;

/// Largest capacity message, in bytes.
pub const MAX_CAPACITY_BYTES: usize = 1_024;

/// Largest gossip message with its framing: a card plus the topic.
const MAX_TRANSMIT_BYTES: usize = MAX_CARD_BYTES + 512;

/// Largest packet between two neighbours. It also carries lists of message ids, a thousand for each topic after a burst; and
/// libp2p measures what has arrived of the *following* packets against it, so it must be far above one card.
const MAX_RPC_BYTES: usize = 64 * 1024;
const MAX_CONTROL_BYTES: usize = 48 * 1024;

/// Messages per second that one neighbour may forward, over time. A thousand cards refreshed every ten minutes, with
/// capacity every minute, make twenty.
const RATE_PER_SECOND: f64 = 64.0;

/// Messages that one neighbour may forward at once, as after a partition has healed.
const BURST: f64 = 2_048.0;

/// The same for all neighbours together, and below what one may do: so an honest node, which forwards only what it let in
/// itself, can never be made to exceed the rate of one neighbour by a third party who floods it. It is shared out by
/// [`Origin`], so that one address leaves room to the others.
const RATE_OF_ALL_PER_SECOND: f64 = 48.0;
const BURST_OF_ALL: f64 = 1_536.0;

/// Messages that wait for the validator: more than all neighbours together may send at once, so that a burst is not lost
/// while the validator sleeps. 8 MiB at worst.
pub(super) const VALIDATION_QUEUE: usize = 2_048;

/// Which of the two topics a message is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Cards and retirements.
    Cards,
    /// Capacity.
    Capacity,
}

/// What becomes of a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Keep it and forward it.
    Accept,
    /// Drop it. Nobody is to blame: expired, from the future, of a later version, already superseded, unknown provider.
    Ignore,
    /// Drop it and blame the neighbour, who should have checked: form or signature are bad.
    Reject,
}

/// Decides about gossip messages. It is called outside the swarm's task, one message after the other.
pub trait CardValidator: Send + Sync + 'static {
    /// Judges one message of `topic`, and keeps what it accepts. `from` is where the neighbour connects from who passed it on: to
    /// share out what strangers can fill, never to blame anybody by.
    fn validate(&self, topic: Topic, message: &[u8], from: Origin) -> Verdict;
}

/// A message on its way to the validator.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) id: MessageId,
    pub(super) from: PeerId,
    pub(super) origin: Origin,
    pub(super) topic: Topic,
    pub(super) message: Bytes,
}

impl From<Verdict> for MessageAcceptance {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accept => Self::Accept,
            Verdict::Ignore => Self::Ignore,
            Verdict::Reject => Self::Reject,
        }
    }
}

/// The topics of a network and how fast each neighbour speaks on them.
#[derive(Debug)]
pub(super) struct Floodgate {
    cards: TopicHash,
    capacity: TopicHash,
    rates: HashMap<PeerId, TokenBucket>,
    all: SharedBucket,
}

/// What the floodgate says before the validator is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Ask the validator.
    Ask(Topic),
    /// Too large for its topic: the neighbour should have refused it.
    Oversized,
    /// The neighbour is too fast.
    TooFast,
    /// All neighbours together are too fast, or those of one address: nobody's fault.
    Crowded,
}

impl Floodgate {
    pub(super) fn new(names: &Names, now: Instant) -> Self {
        Self {
            cards: names.cards().hash(),
            capacity: names.capacity().hash(),
            rates: HashMap::new(),
            all: SharedBucket::new(RATE_OF_ALL_PER_SECOND, BURST_OF_ALL, now),
        }
    }

    /// The hash of a topic's name.
    pub(super) fn hash(&self, topic: Topic) -> TopicHash {
        match topic {
            Topic::Cards => self.cards.clone(),
            Topic::Capacity => self.capacity.clone(),
        }
    }

    /// Judges a message by its neighbour, where that one connects from, topic and size.
    pub(super) fn handle_message(
        &mut self,
        from: PeerId,
        origin: Origin,
        topic: &TopicHash,
        len: usize,
        now: Instant,
    ) -> Admission {
        let (topic, cap) = if *topic == self.capacity {
            (Topic::Capacity, MAX_CAPACITY_BYTES)
        } else {
            (Topic::Cards, MAX_CARD_BYTES)
        };
        if len > cap {
            return Admission::Oversized;
        }
        let rate = self
            .rates
            .entry(from)
            .or_insert_with(|| TokenBucket::new(RATE_PER_SECOND, BURST, now));
        if !rate.try_take(now) {
            Admission::TooFast
        } else if !self.all.try_take(origin, now) {
            Admission::Crowded
        } else {
            Admission::Ask(topic)
        }
    }

    /// Forgets a neighbour that is no longer connected, so that the record is bounded by the connections.
    pub(super) fn handle_disconnected(&mut self, peer: &PeerId) {
        self.rates.remove(peer);
    }
}

/// Only the two topics of this network may be subscribed to; a stranger cannot grow the table of topics.
type OwnTopics = gossipsub::WhitelistSubscriptionFilter;

/// The gossipsub behaviour of a node, subscribed to both topics.
pub(super) fn behaviour(names: &Names) -> Behaviour {
    let topics = [names.cards(), names.capacity()];
    let config = ConfigBuilder::default()
        .protocol_id(names.gossip(), Version::V1_1)
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| {
            let mut hasher = blake3::Hasher::new_derive_key("souk gossip message id v1");
            hasher.update(message.topic.as_str().as_bytes());
            hasher.update(&[0]);
            hasher.update(&message.data);
            MessageId::new(&hasher.finalize().as_bytes()[..20])
        })
        .max_transmit_size(MAX_RPC_BYTES)
        .max_transmit_size_for_topic(MAX_TRANSMIT_BYTES, topics[0].hash())
        .max_transmit_size_for_topic(MAX_TRANSMIT_BYTES, topics[1].hash())
        .max_control_message_size(MAX_CONTROL_BYTES)
        .heartbeat_interval(Duration::from_secs(1))
        .heartbeat_initial_delay(Duration::from_millis(200))
        // A message seen twice within this time is dropped unread; only ids are kept for it.
        .duplicate_cache_time(Duration::from_secs(120))
        // Bodies are kept this many heartbeats for neighbours that ask for them.
        .history_length(8)
        .history_gossip(4)
        // One queue of at most this many messages for each neighbour, in place of 5,000: 2 MiB at worst.
        .connection_handler_queue_len(512)
        // Cards live for hours: late is better than lost.
        .publish_queue_duration(Duration::from_secs(30))
        .forward_queue_duration(Duration::from_secs(15))
        .iwant_followup_time(Duration::from_secs(20))
        .max_publish_messages(500)
        .max_control_messages_sent(512)
        .max_ihave_messages_heartbeat(8)
        .prune_backoff(Duration::from_secs(30))
        .build()
        .expect("constants that the tests build");
    let mut router = Router::new_with_subscription_filter(
        MessageAuthenticity::Anonymous,
        config,
        gossipsub::WhitelistSubscriptionFilter(
            topics
                .iter()
                .map(|topic| topic.hash())
                .collect::<HashSet<_>>(),
        ),
    )
    .expect("anonymous messages fit the anonymous validation mode");
    router
        .with_peer_score(
            score(topics.iter().map(|topic| topic.hash())),
            PeerScoreThresholds {
                gossip_threshold: -10.0,
                publish_threshold: -20.0,
                graylist_threshold: -40.0,
                accept_px_threshold: 1_000.0,
                opportunistic_graft_threshold: 1.0,
            },
        )
        .expect("constants that the tests build");
    for topic in topics {
        router
            .subscribe(&topic)
            .expect("the filter holds these very topics");
    }
    Afresh::new(router)
}

/// gossipsub with this network's filter.
pub(super) type Router = gossipsub::Behaviour<gossipsub::IdentityTransform, OwnTopics>;

/// The behaviour that the swarm drives.
pub(super) type Behaviour = Afresh<Router>;

fn score(topics: impl Iterator<Item = TopicHash>) -> PeerScoreParams {
    let topic = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 300.0,
        first_message_deliveries_weight: 0.1,
        first_message_deliveries_decay: 0.9,
        first_message_deliveries_cap: 50.0,
        // Slow topics: whoever delivers nothing may simply have had nothing to deliver.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Squared: one bad message is forgiven, five are not.
        invalid_message_deliveries_weight: -2.0,
        invalid_message_deliveries_decay: 0.95,
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: topics.map(|hash| (hash, topic.clone())).collect(),
        topic_score_cap: 20.0,
        app_specific_weight: 1.0,
        // Several nodes behind one address are normal.
        ip_colocation_factor_weight: 0.0,
        // Squared above the threshold. It also counts messages that were promised and came late, which a busy machine does.
        behaviour_penalty_weight: -0.05,
        behaviour_penalty_threshold: 20.0,
        behaviour_penalty_decay: 0.9,
        decay_interval: Duration::from_secs(5),
        retain_score: Duration::from_secs(600),
        // Slow is not hostile.
        slow_peer_weight: 0.0,
        ..PeerScoreParams::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flooding_neighbour_is_told_apart_from_a_crowd() {
        let (names, now) = (Names::new(&"test"), Instant::now());
        let mut gate = Floodgate::new(&names, now);
        let cards = gate.hash(Topic::Cards);
        let one = PeerId::random();
        let answers: Vec<_> = (0..3_000)
            .map(|_| gate.handle_message(one, Origin::numbered(1), &cards, 100, now))
            .collect();
        let count = |admission| answers.iter().filter(|a| **a == admission).count();
        // Three quarters of what all may send at once.
        assert_eq!(count(Admission::Ask(Topic::Cards)), 1_152);
        assert_eq!(count(Admission::Crowded), 2_048 - 1_152);
        assert_eq!(count(Admission::TooFast), 3_000 - 2_048);
        // Somebody else at the same address is not blamed for the crowd, and somebody elsewhere is let in.
        let mut ask = |origin| {
            let origin = Origin::numbered(origin);
            gate.handle_message(PeerId::random(), origin, &cards, 100, now)
        };
        assert_eq!(ask(1), Admission::Crowded);
        assert_eq!(ask(2), Admission::Ask(Topic::Cards));
    }

    #[test]
    fn one_address_that_floods_with_many_identities_leaves_room_to_another() {
        let (names, start) = (Names::new(&"test"), Instant::now());
        let mut gate = Floodgate::new(&names, start);
        let cards = gate.hash(Topic::Cards);
        let flooders: Vec<_> = (0..64).map(|_| PeerId::random()).collect();
        let (honest, mut asked) = (PeerId::random(), 0);
        for tick in 0..64 * 120 {
            let now = start + Duration::from_secs(1) * tick / 64;
            for flooder in &flooders {
                gate.handle_message(*flooder, Origin::numbered(1), &cards, 100, now);
            }
            if tick % 64 == 63 {
                let admission = gate.handle_message(honest, Origin::numbered(2), &cards, 100, now);
                asked += u32::from(admission == Admission::Ask(Topic::Cards));
            }
        }
        assert!(asked >= 108, "{asked} of 120");
    }

    #[test]
    fn an_honest_node_under_a_flood_never_exceeds_what_its_neighbour_allows() {
        let names = Names::new(&"test");
        let start = Instant::now();
        let (mut middle, mut far) = (Floodgate::new(&names, start), Floodgate::new(&names, start));
        let cards = middle.hash(Topic::Cards);
        let (flooders, honest) = ([PeerId::random(), PeerId::random()], PeerId::random());
        let origin = Origin::numbered(1);
        for ms in 0..60_000 {
            let now = start + Duration::from_millis(ms);
            for flooder in flooders {
                let admission = middle.handle_message(flooder, origin, &cards, 100, now);
                if admission == Admission::Ask(Topic::Cards) {
                    let answer = far.handle_message(honest, origin, &cards, 100, now);
                    assert_ne!(answer, Admission::TooFast);
                }
            }
        }
    }

    #[test]
    fn each_topic_has_its_cap() {
        let (names, now) = (Names::new(&"test"), Instant::now());
        let mut gate = Floodgate::new(&names, now);
        let peer = PeerId::random();
        let mut ask = |topic, len| {
            let topic = gate.hash(topic);
            gate.handle_message(peer, Origin::AWAY, &topic, len, now)
        };
        assert_eq!(
            ask(Topic::Cards, MAX_CARD_BYTES),
            Admission::Ask(Topic::Cards)
        );
        assert_eq!(ask(Topic::Cards, MAX_CARD_BYTES + 1), Admission::Oversized);
        assert_eq!(
            ask(Topic::Capacity, MAX_CAPACITY_BYTES + 1),
            Admission::Oversized
        );
    }
}
