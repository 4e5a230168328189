//! The card directory of a running node: gossip and snapshots go in, what the other parts need comes out.
//!
//! What the others remember of our own usage log comes out as [`Seen`], for whoever signs it.
//!
//! Threats: bytes from strangers, judged by [`Directory`] alone; a clock of ours that is wrong, which makes cards and capacity
//! messages of the others look wrong (told as a warning, because the node would otherwise just see nobody); and somebody who makes
//! up nodes whose cards look wrong, so that we believe that of our clock ([`Words`]).

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use libp2p::{Multiaddr, multiaddr::Protocol};
use souk_crypto::{
    NetworkId, NodeId, UnixTime, Verified,
    sign::{self, Object},
};
use souk_market::{
    capacity::{Capacity, LogHead},
    card::{Address, Card, Role, Transport, VerifiedCard},
    directory::{Directory, Ignored, Newest, Verdict},
    log::{Contradiction, LogClaim},
    shares::Source,
    units::Digest,
};
use souk_sphinx::EpochClock;
use tokio::sync::watch;

use super::words::{OurClock, Words};
use crate::{
    net::{
        CardValidator, Origin, Snapshot, SnapshotSource, Topic, Verdict as NetVerdict, Wanted,
        peer_id,
    },
    store::Seen,
};

/// A set that was handed out is handed out again for so long, in seconds, while nothing changes: cards also end by themselves.
const SET_LIFE_S: u64 = 5;

/// The directory, shared by the tasks of a node.
#[derive(Debug)]
pub(super) struct Cards {
    directory: Mutex<Directory>,
    /// The set that was handed out last; none once anything has changed.
    set: Mutex<Option<Set>>,
    local: NodeId,
    network: NetworkId,
    clock: EpochClock,
    now: fn() -> UnixTime,
    /// What the network remembers of our own usage log.
    seen: watch::Sender<Seen>,
    /// What the others seem to say of our clock.
    words: Mutex<Words>,
    /// That our clock seems to be wrong was logged, and has been so since.
    clock_told: AtomicBool,
    changed: watch::Sender<()>,
    /// The newest card of ours that is known, whoever showed it.
    own: watch::Sender<Option<Newest>>,
    contradicted: watch::Sender<()>,
}

/// A set that is handed out to all who ask. However many are being sent, their objects are those of the directory.
#[derive(Debug)]
struct Set {
    made_at: UnixTime,
    snapshot: Snapshot,
}

/// A card with the last capacity of its node.
pub(super) type Listed = (Arc<VerifiedCard>, Option<Arc<Verified<Capacity>>>);

impl Cards {
    pub(super) fn new(
        local: NodeId,
        network: &NetworkId,
        private_addresses: bool,
        clock: EpochClock,
        now: fn() -> UnixTime,
    ) -> Self {
        Self {
            directory: Mutex::new(
                Directory::new(network.clone(), private_addresses).of_node(local),
            ),
            set: Mutex::default(),
            local,
            network: network.clone(),
            clock,
            now,
            seen: watch::Sender::new(Seen::Unasked),
            words: Mutex::default(),
            clock_told: AtomicBool::new(false),
            changed: watch::Sender::new(()),
            own: watch::Sender::new(None),
            contradicted: watch::Sender::new(()),
        }
    }

    /// Names nodes that this one was told to start from: what is known against them is kept in any case.
    pub(super) fn relying_on(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let directory = self.directory.into_inner();
        let directory = directory.unwrap_or_else(PoisonError::into_inner);
        self.directory = Mutex::new(directory.relying_on(nodes));
        self
    }

    /// Wakes its reader whenever the set of cards has changed.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The newest card of this node that the network knows: also one that this node does not remember.
    pub(super) fn own(&self) -> watch::Receiver<Option<Newest>> {
        self.own.subscribe()
    }

    /// What the network remembers of our own usage log: [`Seen::Unasked`] until [`Self::network_was_asked`].
    pub(super) fn seen(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// From now on, what nobody has told us is what nobody remembers.
    pub(super) fn network_was_asked(&self) {
        let remembered = self.remembered();
        self.seen.send_if_modified(|seen| match seen {
            Seen::Unasked => {
                *seen = Seen::Remembered(remembered);
                true
            }
            Seen::Remembered(_) => false,
        });
    }

    /// Takes one signed object of a snapshot, or of our own: a card, a capacity message, a retirement or a claim about a log.
    pub(super) fn take(&self, object: &[u8], source: Source) {
        if LogClaim::is_form_of(object) {
            if self.directory().handle_claim((self.now)(), source, object) {
                self.set().take();
            }
            self.heed();
            return;
        }
        if !matches!(self.card(object, source), Verdict::Reject(_)) {
            return;
        }
        if matches!(self.capacity(object, source), Verdict::Reject(_)) {
            self.retirement(object, source);
        }
    }

    /// Forgets what has expired, and says once when our clock seems to be wrong.
    pub(super) fn tick(&self) {
        let warning = self.clock_warning();
        let told = self.clock_told.swap(warning.is_some(), Ordering::Relaxed);
        if let Some(warning) = warning.filter(|_| !told) {
            tracing::warn!("{warning}");
        }
        if self.directory().handle_time((self.now)()) > 0 {
            self.tell();
        }
    }

    /// Usable cards.
    pub(super) fn all(&self) -> Vec<Listed> {
        let directory = self.directory();
        directory
            .cards((self.now)())
            .map(|(card, capacity)| (card.clone(), capacity.cloned()))
            .collect()
    }

    /// Who shares the room for what the card of a node names; nobody brought a card that is not here.
    pub(super) fn source(&self, node: &NodeId) -> Source {
        let known = self.directory().source_of(node);
        known.unwrap_or(Source::Neighbour(Origin::AWAY.number()))
    }

    /// Nodes with one of these roles, and the addresses that they can be dialed at.
    pub(super) fn dialable(&self, roles: &[Role]) -> Vec<(NodeId, Vec<Multiaddr>)> {
        let directory = self.directory();
        directory
            .cards((self.now)())
            .filter(|(card, _)| {
                roles.iter().any(|role| card.has_role(*role)) && !card.addresses.is_empty()
            })
            .map(|(card, _)| (card.node, card.addresses.iter().map(multiaddr).collect()))
            .collect()
    }

    /// Nodes with one of these roles, and where their cards came from: for links, which are shared out by it. Those without an address
    /// connect by themselves.
    pub(super) fn linkable(&self, roles: &[Role]) -> Vec<Wanted> {
        let directory = self.directory();
        let cards = directory.cards((self.now)()).map(|(card, _)| card);
        cards
            .filter(|card| roles.iter().any(|role| card.has_role(*role)))
            .map(|card| Wanted {
                node: card.node,
                addresses: card.addresses.iter().map(multiaddr).collect(),
                source: directory.source_of(&card.node).unwrap_or(Source::Own),
            })
            .collect()
    }

    /// Wakes its reader whenever a provider was seen to contradict itself.
    pub(super) fn contradicted(&self) -> watch::Receiver<()> {
        self.contradicted.subscribe()
    }

    /// Evidence against usage logs, oldest first.
    pub(super) fn contradictions(&self) -> Vec<Arc<Contradiction>> {
        self.directory().contradictions().cloned().collect()
    }

    /// Evidence against usage logs that came since this was last asked, oldest first.
    pub(super) fn new_contradictions(&self) -> Vec<Arc<Contradiction>> {
        let mut directory = self.directory();
        std::iter::from_fn(|| directory.poll_contradiction()).collect()
    }

    /// Takes up what an earlier life of this node has kept. Who brought it is forgotten, so that it counts as of one source, the
    /// oldest first, until cards say more.
    pub(super) fn remember_evidence(&self, kept: Vec<Contradiction>) {
        let source = Source::Neighbour(Origin::AWAY.number());
        let mut directory = self.directory();
        for evidence in kept {
            directory.handle_contradiction(source, evidence);
        }
        while directory.poll_contradiction().is_some() {}
    }

    /// What others can prove against this node, if anything.
    pub(super) fn log_warning(&self) -> Option<String> {
        let against = self.directory().contradiction(&self.local).cloned()?;
        Some(format!(
            "others have proof against this node: {}",
            against.how()
        ))
    }

    /// What is to be said about other providers that contradict themselves. Strangers can bring about as much of it as is kept, so
    /// it is no warning of this node.
    pub(super) fn unreliable(&self) -> Vec<String> {
        let all = self.contradictions();
        let others = all.iter().filter(|against| against.node() != self.local);
        others
            .map(|against| {
                let (node, how) = (peer_id(&against.node()), against.how());
                format!("do not rely on provider {node}: {how}")
            })
            .collect()
    }

    /// What is to be said about our own clock, if anything.
    pub(super) fn clock_warning(&self) -> Option<String> {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.warning((self.now)())
    }

    fn card(&self, bytes: &[u8], source: Source) -> Verdict {
        let now = (self.now)();
        let (verdict, own) = {
            let mut directory = self.directory();
            let verdict = directory.handle_card(now, source, bytes);
            (verdict, directory.newest(&self.local))
        };
        match &verdict {
            Verdict::Accept => {
                self.hear(source, OurClock::Fits);
                self.tell();
                self.own
                    .send_if_modified(|known| std::mem::replace(known, own) != own);
            }
            Verdict::Ignore(why) => {
                self.doubt::<Card>(bytes, source, *why, |card| card.node);
            }
            Verdict::Reject(_) => {}
        }
        verdict
    }

    fn capacity(&self, bytes: &[u8], source: Source) -> Verdict {
        let verdict = self.directory().handle_capacity((self.now)(), bytes);
        match &verdict {
            Verdict::Accept => {
                self.hear(source, OurClock::Fits);
                self.set().take();
            }
            // Cards live for hours: a clock that is ahead by less is seen by these alone, which come every minute.
            Verdict::Ignore(why) => {
                self.doubt::<Capacity>(bytes, source, *why, |capacity| capacity.node);
            }
            Verdict::Reject(_) => {}
        }
        // Also one that is of no other use any more can remind of what was signed.
        self.heed();
        verdict
    }

    /// The largest that we verifiably said of our own log.
    fn remembered(&self) -> Option<LogHead> {
        self.directory()
            .log_claim(&self.local)
            .map(|claim| LogHead {
                size: claim.size(),
                root: Digest(claim.root().0),
            })
    }

    /// Draws the conclusions from a new claim, where there are any.
    fn heed(&self) {
        if self.directory().has_new_contradiction() {
            self.contradicted.send_replace(());
        }
        let remembered = self.remembered();
        self.seen.send_if_modified(|seen| {
            let news = seen.is_asked() && *seen != Seen::Remembered(remembered);
            if news {
                *seen = Seen::Remembered(remembered);
            }
            news
        });
    }

    fn retirement(&self, bytes: &[u8], source: Source) -> Verdict {
        let verdict = self
            .directory()
            .handle_retirement((self.now)(), source, bytes);
        if matches!(verdict, Verdict::Accept) {
            self.tell();
        }
        verdict
    }

    /// The set of cards is another one now.
    fn tell(&self) {
        self.set().take();
        self.changed.send_replace(());
    }

    /// Taken before the directory where both are needed, so that no set outlives what was changed while it was made.
    fn set(&self) -> MutexGuard<'_, Option<Set>> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in mind that an object was not of our time, where its node was good before, or where nobody is.
    fn doubt<T: Object>(
        &self,
        bytes: &[u8],
        source: Source,
        why: Ignored,
        node: impl Fn(&T) -> NodeId,
    ) {
        let clock = match why {
            Ignored::Future => OurClock::Behind,
            Ignored::Expired => OurClock::Ahead,
            _ => return,
        };
        let Ok(object) = sign::open::<T>(bytes, &self.network) else {
            return;
        };
        let is_witness = {
            let directory = self.directory();
            let own = usize::from(directory.holds_card_of(&self.local));
            directory.holds_card_of(&node(&object)) || directory.len() == own
        };
        if is_witness {
            self.hear(source, clock);
        }
    }

    fn hear(&self, source: Source, clock: OurClock) {
        let mut words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.hear((self.now)(), source, clock);
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl CardValidator for Cards {
    fn validate(&self, topic: Topic, message: &[u8], from: Origin) -> NetVerdict {
        let source = Source::Neighbour(from.number());
        let verdict = match topic {
            Topic::Cards => match self.card(message, source) {
                Verdict::Reject(_) => self.retirement(message, source),
                verdict => verdict,
            },
            Topic::Capacity => self.capacity(message, source),
        };
        match verdict {
            Verdict::Accept => NetVerdict::Accept,
            Verdict::Ignore(_) => NetVerdict::Ignore,
            Verdict::Reject(_) => NetVerdict::Reject,
        }
    }
}

impl SnapshotSource for Cards {
    fn snapshot(&self) -> Snapshot {
        let now = (self.now)();
        let epoch = u64::from(self.clock.at(now).0);
        let mut set = self.set();
        let holds =
            |set: &Set| set.snapshot.epoch == epoch && now.since_s(set.made_at) < SET_LIFE_S;
        if let Some(set) = set.as_ref().filter(|set| holds(set)) {
            return set.snapshot.clone();
        }
        let made = self.directory().snapshot(now, epoch);
        let snapshot = Snapshot {
            epoch: made.epoch(),
            root: made.root().0,
            objects: made
                .shared_objects()
                .map(|object| Bytes::from_owner(Arc::clone(object)))
                .collect(),
        };
        let made_at = now;
        *set = Some(Set {
            made_at,
            snapshot: snapshot.clone(),
        });
        snapshot
    }
}

/// The address of a card as libp2p writes it.
pub(super) fn multiaddr(address: &Address) -> Multiaddr {
    let ip = Multiaddr::from(address.ip);
    match address.transport {
        Transport::Tcp => ip.with(Protocol::Tcp(address.port)),
        Transport::Quic => ip.with(Protocol::Udp(address.port)).with(Protocol::QuicV1),
    }
}

/// The address of a card for one that libp2p listens on or announces; `None` for what a card cannot hold.
pub(super) fn card_address(address: &Multiaddr) -> Option<Address> {
    let parts: Vec<_> = address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect();
    let (ip, rest) = parts.split_first()?;
    let ip = match ip {
        Protocol::Ip4(ip) => (*ip).into(),
        Protocol::Ip6(ip) => (*ip).into(),
        _ => return None,
    };
    let (transport, port) = match rest {
        [Protocol::Tcp(port)] => (Transport::Tcp, *port),
        [Protocol::Udp(port), Protocol::QuicV1] => (Transport::Quic, *port),
        _ => return None,
    };
    (port != 0).then_some(Address {
        ip,
        transport,
        port,
    })
}

#[cfg(test)]
mod tests {
    use souk_crypto::{CardKey, MixKey, MixPublicKey, NetworkParams, NodeKey, SubKeys, Window};
    use souk_market::{card::Policy, units::Sequence, wire::List};

    use super::{super::keys::Keys, *};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn params() -> NetworkParams {
        NetworkParams::new(50, 1_000, 3_600, true).expect("in bounds")
    }

    fn network() -> NetworkId {
        NetworkId::new("test", &params()).expect("a name")
    }

    /// The card of a mix that nobody has seen before.
    fn card() -> VerifiedCard {
        let node = NodeKey::generate(&mut rand::rng());
        card_of(&node, 1, NOW)
    }

    /// The card that a mix made at an instant.
    fn card_of(node: &NodeKey, sequence: u64, made_at: UnixTime) -> VerifiedCard {
        let key = CardKey::generate(&mut rand::rng());
        let window = Window::new(NOW.minus_s(3_600), NOW.plus_s(86_400)).expect("not empty");
        let mix_key = MixKey {
            epoch: 1,
            suite: 1,
            key: MixPublicKey::from_bytes(&[1; 32]).expect("32 bytes"),
            window,
        };
        let sub_keys = SubKeys {
            serial: sequence,
            window,
            card_key: key.public(),
            log_key: None,
            seal_key: None,
            mix_keys: vec![mix_key],
        };
        let sub_keys = sign::sign(sub_keys, node, &network()).expect("valid");
        let card = Card {
            node: node.public(),
            sequence: Sequence(sequence),
            from: made_at.minus_s(60),
            to: made_at.plus_s(3_600),
            roles: List::new(vec![Role::Mix]).expect("few"),
            addresses: List::empty(),
            sub_keys: sub_keys.signed().clone(),
            operator: None,
            offers: List::empty(),
            images: List::empty(),
            prices: None,
            policy: Policy::default(),
            evidence: List::empty(),
            succeeds: None,
        };
        VerifiedCard::sign(card, &key, &network()).expect("valid")
    }

    fn cards() -> Cards {
        let local = NodeKey::generate(&mut rand::rng()).public();
        Cards::new(local, &network(), true, EpochClock::of(&params()), || NOW)
    }

    #[test]
    fn a_set_is_made_once_and_anew_when_a_card_comes() {
        let (cards, first) = (cards(), card());
        cards.take(first.as_bytes(), Source::Own);
        let set = cards.snapshot();
        assert!(Arc::ptr_eq(&set.objects, &cards.snapshot().objects));
        cards.take(card().as_bytes(), Source::Own);
        let later = cards.snapshot();
        assert_ne!(later.root, set.root);
        assert_eq!((set.objects.len(), later.objects.len()), (1, 2));
        // The card that both hold is in memory once.
        let of_first = |set: &Snapshot| {
            let object = set
                .objects
                .iter()
                .find(|object| **object == first.as_bytes());
            object.expect("it is in the set").as_ptr()
        };
        assert_eq!(of_first(&set), of_first(&later));
    }

    #[test]
    fn a_card_of_a_later_version_is_ignored_by_gossip_and_noise_is_rejected() {
        let (cards, from) = (cards(), Origin::AWAY);
        let good = card();
        let text = b"souk/1/card";
        let mut later = good.as_bytes().to_vec();
        let at = later.windows(text.len()).position(|part| part == text);
        later[at.expect("the domain is in the header") + 5] = b'2';
        let validate = |message: &[u8]| cards.validate(Topic::Cards, message, from);
        assert_eq!(validate(&later), NetVerdict::Ignore);
        assert_eq!(validate(b"noise"), NetVerdict::Reject);
        assert_eq!(validate(good.as_bytes()), NetVerdict::Accept);
    }

    #[test]
    fn made_up_nodes_from_one_neighbour_say_nothing_of_our_clock_and_known_ones_do() {
        let cards = cards();
        let nodes = [(); 3].map(|()| NodeKey::generate(&mut rand::rng()));
        for (n, node) in (1..).zip(&nodes) {
            let good = card_of(node, 1, NOW);
            cards.take(good.as_bytes(), Source::Neighbour(n));
        }
        for made_at in [NOW.plus_s(7_200), NOW.minus_s(7_200)] {
            for _ in 0..20 {
                let made_up = card_of(&NodeKey::generate(&mut rand::rng()), 1, made_at);
                cards.take(made_up.as_bytes(), Source::Neighbour(9));
            }
            assert_eq!(cards.clock_warning(), None);
        }
        // The same neighbour with a node that was good, over and over.
        for sequence in 2..9 {
            let late = card_of(&nodes[0], sequence, NOW.plus_s(7_200));
            cards.take(late.as_bytes(), Source::Neighbour(9));
        }
        assert_eq!(cards.clock_warning(), None);
        for (n, node) in (1..).zip(&nodes) {
            let late = card_of(node, 10, NOW.plus_s(7_200));
            cards.take(late.as_bytes(), Source::Neighbour(n));
        }
        let warning = cards.clock_warning().expect("all say so");
        assert!(warning.contains("behind"), "{warning}");
    }

    #[test]
    fn a_clock_that_is_ahead_by_less_than_a_card_lives_is_told_by_what_comes_every_minute() {
        let network = network();
        let cards = cards();
        for n in 1..=2 {
            let folder = tempfile::tempdir().expect("temporary folder");
            let keys = Keys::open(folder.path(), NOW).expect("makes keys");
            let card = Card {
                node: keys.node.public(),
                sub_keys: keys
                    .list(&network, &keys.dated(), true, Vec::new(), 1, NOW)
                    .expect("signs"),
                roles: List::new(vec![Role::Relay]).expect("one"),
                ..(*card()).clone()
            };
            let card = VerifiedCard::sign(card, &keys.dated().keys.card, &network).expect("signs");
            cards.take(card.as_bytes(), Source::Neighbour(n));
            assert_eq!(cards.clock_warning(), None);
            let capacity = Capacity {
                node: keys.node.public(),
                card: Sequence(1),
                at: NOW.minus_s(1_800),
                levels: List::empty(),
                log: None,
            };
            let capacity = sign::sign(capacity, &keys.dated().keys.card, &network).expect("signs");
            cards.take(capacity.signed().as_bytes(), Source::Neighbour(n));
        }
        let warning = cards.clock_warning().expect("both say so");
        assert!(warning.contains("ahead of"), "{warning}");
    }

    fn claim(keys: &Keys, signer: &Keys, network: &NetworkId, size: u64) -> Option<Vec<u8>> {
        let root = Digest([1; 32]);
        claim_of(keys, signer, network, LogHead { size, root })
    }

    fn claim_of(keys: &Keys, signer: &Keys, network: &NetworkId, head: LogHead) -> Option<Vec<u8>> {
        let capacity = Capacity {
            node: keys.node.public(),
            card: Sequence(1),
            at: NOW,
            levels: List::empty(),
            log: Some(head),
        };
        let capacity = sign::sign(capacity, &signer.dated().keys.card, network).expect("signs");
        let list = signer.list(network, &signer.dated(), true, Vec::new(), 1, NOW);
        let list = list.expect("signs").open(network).expect("opens");
        let claim = LogClaim::of_capacity(list, capacity).ok()?;
        Some(claim.as_bytes().to_vec())
    }

    #[test]
    fn a_node_is_reminded_of_what_it_signed_and_of_nothing_that_somebody_else_did() {
        let (network, clock) = (network(), EpochClock::of(&params()));
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("temporary folder"));
        let [own, stranger] = folders
            .each_ref()
            .map(|data| Keys::open(data.path(), NOW).expect("makes keys"));
        let cards = Cards::new(own.node.public(), &network, true, clock, || NOW);
        let seen = cards.seen();
        let source = Source::Neighbour(1);
        let take = |bytes: Option<Vec<u8>>| cards.take(&bytes.expect("a claim"), source);
        take(claim(&own, &own, &network, 7));
        assert_eq!(*seen.borrow(), Seen::Unasked);
        cards.network_was_asked();
        let size = || match *seen.borrow() {
            Seen::Remembered(Some(head)) => head.size,
            _ => 0,
        };
        assert_eq!(size(), 7);
        take(claim(&stranger, &stranger, &network, 9));
        assert_eq!(claim(&own, &stranger, &network, 9), None, "not its key");
        assert_eq!(size(), 7);
        take(claim(&own, &own, &network, 8));
        take(claim(&own, &own, &network, 6));
        assert_eq!(size(), 8, "the largest counts");
    }

    #[test]
    fn a_contradiction_of_a_stranger_is_no_warning_and_one_of_this_node_is() {
        let (network, clock) = (network(), EpochClock::of(&params()));
        let folders = [(); 2].map(|()| tempfile::tempdir().expect("temporary folder"));
        let [own, stranger] = folders
            .each_ref()
            .map(|data| Keys::open(data.path(), NOW).expect("makes keys"));
        let cards = Cards::new(own.node.public(), &network, true, clock, || NOW);
        let forks = |keys: &Keys| {
            for root in [1, 2] {
                let root = Digest([root; 32]);
                let claim = claim_of(keys, keys, &network, LogHead { size: 7, root });
                cards.take(&claim.expect("a claim"), Source::Neighbour(1));
            }
        };
        forks(&stranger);
        assert_eq!(cards.log_warning(), None);
        let others = cards.unreliable();
        let [told] = &others[..] else {
            panic!("it is told once: {others:?}");
        };
        let id = peer_id(&stranger.node.public()).to_string();
        assert!(told.contains(&id), "{told}");
        forks(&own);
        let warning = cards.log_warning().expect("it is of this node");
        assert!(warning.contains("against this node"), "{warning}");
        assert_eq!(cards.unreliable(), others);
    }
}
