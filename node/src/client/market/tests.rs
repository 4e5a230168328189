//! Liars among the nodes that a client asks, over a real network on loopback.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use souk_crypto::NetworkParams;
use souk_market::{directory::Directory, quorum::LeftOut, shares::Source, units::Sequence};
use tokio::sync::mpsc;

use super::*;
use crate::net::{
    CardValidator, Node, NodeAddress, NodeConfig, Origin, Services, SnapshotSource, Topic, Verdict,
};

use crate::market_support as support;
use support::{NOW, list, network};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// An entry that shows what it likes.
struct Entry {
    keys: support::Node,
    node: Node,
    address: NodeAddress,
    shelf: Arc<Shelf>,
}

#[derive(Default)]
struct Shelf {
    set: Mutex<Snapshot>,
    asked: AtomicUsize,
}

impl SnapshotSource for Shelf {
    fn snapshot(&self) -> Snapshot {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.set.lock().expect("not poisoned").clone()
    }
}

struct NoGossip;

impl CardValidator for NoGossip {
    fn validate(&self, _: Topic, _: &[u8], _: Origin) -> Verdict {
        Verdict::Ignore
    }
}

impl Entry {
    async fn start(seed: u64) -> Self {
        let keys = support::Node::new(seed);
        let mut config = NodeConfig::new(network(), support::Node::new(seed).node);
        config.allow_private_addresses = true;
        config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a multiaddress")];
        let shelf = Arc::new(Shelf::default());
        let services = Services {
            validator: Arc::new(NoGossip),
            snapshot: Arc::clone(&shelf) as Arc<dyn SnapshotSource>,
            pieces: None,
            log: None,
            frames: mpsc::channel(1).0,
            relayed: mpsc::channel(1).0,
        };
        let node = Node::start(config, services, &mut Registry::default()).expect("it starts");
        let listening = async {
            loop {
                if let Some(address) = node.peers().info().await.listening.into_iter().next() {
                    return address;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let address = timeout(PATIENCE, listening).await.expect("it listens");
        let address = NodeAddress::new(keys.node.public(), address).expect("an address");
        Self {
            keys,
            node,
            address,
            shelf,
        }
    }

    fn card(&self, sequence: u64) -> VerifiedCard {
        let mut card = self.keys.plain_card(sequence);
        let at = self.address.address().to_string();
        card.addresses = list(vec![at.parse().expect("an address of a card")]);
        self.keys.sign(card)
    }

    fn id(&self) -> NodeId {
        self.keys.node.public()
    }

    fn show(&self, cards: &[&VerifiedCard]) {
        let mut directory = Directory::new(network(), true);
        for card in cards {
            directory.handle_card(NOW, Source::Own, card.as_bytes());
        }
        let set = directory.snapshot(NOW, 0);
        *self.shelf.set.lock().expect("not poisoned") = Snapshot {
            epoch: 0,
            root: set.root().0,
            objects: set.objects().map(Bytes::copy_from_slice).collect(),
        };
    }

    fn asked(&self) -> usize {
        self.shelf.asked.load(Ordering::Relaxed)
    }
}

/// Takes the market as a client that has these nodes configured.
async fn gather_from(entries: Vec<NodeAddress>) -> Result<Market, MarketError> {
    gather_at(NOW, entries).await
}

/// The same by another clock.
async fn gather_at(now: UnixTime, entries: Vec<NodeAddress>) -> Result<Market, MarketError> {
    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    let config = ClientConfig::new(network(), params, entries, "/usr/bin/souk".into());
    let net = NetClient::start(&crate::net::ClientConfig {
        network: network(),
        allow_private_addresses: true,
    });
    gather(&net, &config, now, &mut |_| ()).await
}

fn shown(market: &Market) -> Vec<NodeId> {
    market.cards.iter().map(|listed| listed.card.node).collect()
}

fn sorted(mut nodes: Vec<NodeId>) -> Vec<NodeId> {
    nodes.sort();
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_configured_entry_is_no_quorum_whomever_it_names() {
    let (liar, puppet) = (Entry::start(1).await, Entry::start(2).await);
    let cards = [&liar.card(1), &puppet.card(1)];
    liar.show(&cards);
    puppet.show(&cards);
    let error = gather_from(vec![liar.address.clone()])
        .await
        .expect_err("one");
    assert!(matches!(
        error,
        MarketError::TooFewConfigured {
            configured: 1,
            needed: 2
        }
    ));
    assert_eq!((liar.asked(), puppet.asked()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_does_not_bring_those_who_confirm_it() {
    let (liar, honest) = (Entry::start(1).await, Entry::start(2).await);
    let (puppet, another) = (Entry::start(3).await, Entry::start(4).await);
    let invented = support::Node::new(9).card(1);
    let (of_liar, of_honest) = (liar.card(1), honest.card(1));
    let (of_puppet, of_another) = (puppet.card(1), another.card(1));
    let lie = [&of_liar, &of_honest, &of_puppet, &of_another, &invented];
    for liar in [&liar, &puppet, &another] {
        liar.show(&lie);
    }
    honest.show(&[&of_liar, &of_honest]);
    // Three sets are wanted and two are configured.
    let entries = vec![liar.address.clone(), honest.address.clone()];
    let market = gather_from(entries).await.expect("two agree");
    assert_eq!(shown(&market), sorted(vec![liar.id(), honest.id()]));
    assert_eq!((puppet.asked(), another.asked()), (0, 0));
    let hidden = market.left_out.iter().map(|(node, _)| *node);
    assert!(hidden.clone().any(|node| node == invented.node));
    assert!(!market.is_unanimous());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_that_everybody_shows_makes_no_quorum_with_a_liar() {
    let (liar, honest, friend) = (
        Entry::start(1).await,
        Entry::start(2).await,
        Entry::start(3).await,
    );
    let away = Entry::start(4).await;
    away.node.peers().stop().await;
    let trap = support::Node::new(9).card(1);
    let all = [&liar.card(1), &honest.card(1), &friend.card(1)];
    let lie = [all[0], all[1], all[2], &trap];
    // The friend's card is as good as any: the honest entry shows it, too.
    honest.show(&all);
    liar.show(&lie);
    friend.show(&lie);
    for configured in [vec![&liar, &honest], vec![&liar, &honest, &away]] {
        let entries = configured.iter().map(|entry| entry.address.clone());
        let market = gather_from(entries.collect()).await.expect("two agree");
        assert_eq!(shown(&market), sorted(all.map(|card| card.node).to_vec()));
        assert_eq!(friend.asked(), 0);
    }
    // Where too few of the configured ones answer, there is no market rather than one of strangers.
    let entries = vec![liar.address.clone(), away.address.clone()];
    let error = gather_from(entries).await.expect_err("one answers");
    assert!(matches!(error, MarketError::TooFewEntries { got: 1, .. }));
    assert_eq!(friend.asked(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_hides_or_marks_cards_is_outvoted() {
    let (liar, one, two) = (
        Entry::start(1).await,
        Entry::start(2).await,
        Entry::start(3).await,
    );
    let provider = support::Node::new(9);
    let (of_liar, of_one, of_two) = (liar.card(1), one.card(1), two.card(1));
    let all = [&of_liar, &of_one, &of_two, &provider.card(1)];
    one.show(&all);
    two.show(&all);
    let entries = [&liar, &one, &two].map(|entry| entry.address.clone());

    liar.show(&[&of_liar]);
    let market = gather_from(entries.to_vec()).await.expect("two agree");
    let everybody = sorted(all.map(|card| card.node).to_vec());
    assert_eq!(shown(&market), everybody, "hidden cards");
    assert!(!market.is_unanimous());

    // A card of its own that only this client sees, to know it again by the route that it takes.
    let marked = liar.card(2);
    liar.show(&[&marked, &of_one, &of_two, &provider.card(1)]);
    let market = gather_from(entries.to_vec()).await.expect("two agree");
    assert_eq!(shown(&market), everybody);
    let used = market
        .card(&liar.id())
        .expect("the one that the others show");
    assert_eq!(used.card.sequence, Sequence(1));

    // A provider that nobody else knows.
    let trap = support::Node::new(10).card(1);
    liar.show(&[&of_liar, &of_one, &of_two, &provider.card(1), &trap]);
    let market = gather_from(entries.to_vec()).await.expect("two agree");
    assert_eq!(shown(&market), everybody);
    assert_eq!(
        market.left_out,
        [(trap.node, LeftOut::NoQuorum { seen: 1 })]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn by_a_clock_that_is_wrong_by_hours_there_is_an_error_and_no_empty_market() {
    let (one, two) = (Entry::start(1).await, Entry::start(2).await);
    let cards = [&one.card(1), &two.card(1)];
    one.show(&cards);
    two.show(&cards);
    let entries = [&one, &two].map(|entry| entry.address.clone());
    let late = gather_at(NOW.minus_s(6 * 3_600), entries.to_vec()).await;
    assert!(
        matches!(late, Err(MarketError::Clock(WrongClock::Behind { .. }))),
        "{late:?}"
    );
    let early = gather_at(NOW.plus_s(13 * 3_600), entries.to_vec()).await;
    assert!(
        matches!(early, Err(MarketError::Clock(WrongClock::Ahead { .. }))),
        "{early:?}"
    );
}
