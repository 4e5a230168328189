//! Bad evidence counts against the node whose card names it, and never against the one that passed it on.

use std::time::Instant;

use prometheus_client::registry::Registry;
use souk_attest::{Trust, soft::TestRoot};
use souk_crypto::NodeKey;
use tokio::sync::mpsc;

use super::*;
use crate::{
    attest::minted::{clock, minted_under, recipe},
    market_support::{NOW, Node as Publisher, list, network},
    net::{self, NodeConfig, Services},
};

struct Running {
    net: net::Node,
    cards: Arc<Cards>,
    pieces: Arc<Pieces>,
    registry: Registry,
    _folder: tempfile::TempDir,
}

fn start() -> Running {
    let key = NodeKey::generate(&mut rand::rng());
    let folder = tempfile::tempdir().expect("a folder");
    let pieces = Arc::new(Pieces::open(folder.path()).expect("opens"));
    let cards = Arc::new(Cards::new(key.public(), &network(), true, clock(), || NOW));
    let mut config = NodeConfig::new(network(), key);
    config.allow_private_addresses = true;
    config.listen = vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")];
    let services = Services {
        validator: cards.clone(),
        snapshot: cards.clone(),
        pieces: Some(pieces.clone()),
        log: None,
        frames: mpsc::channel(1).0,
        relayed: mpsc::channel(1).0,
    };
    let mut registry = Registry::default();
    let net = net::Node::start(config, services, &mut registry).expect("a free port");
    Running {
        net,
        cards,
        pieces,
        registry,
        _folder: folder,
    }
}

async fn address(node: &Running) -> NodeAddress {
    loop {
        if let Some(at) = node.net.peers().info().await.listening.pop() {
            return NodeAddress::new(node.net.peers().local(), at).expect("of the form");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(120), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_bad_quotes_from_one_peer_count_against_who_published_them_and_not_against_it()
{
    const PUBLISHERS: u64 = 200;
    let (forwarder, us) = (start(), start());
    let root = TestRoot::new(NOW, &ring::rand::SystemRandom::new()).expect("drawn");
    for seed in 1..=PUBLISHERS {
        let publisher = Publisher::new(seed);
        let made = minted_under(&root, &publisher, recipe(), |b| b.attested_key = [0; 32]);
        let wanted = made.bytes.keys().map(|name| (*name, Origin::Own)).collect();
        for bytes in made.bytes.values() {
            forwarder.pieces.put(bytes, &wanted);
        }
        let mut card = publisher.plain_card(1);
        // Nobody dials them: all that is had of them comes from the one who passes it on.
        card.addresses = List::empty();
        card.evidence = list(vec![made.reference.clone()]);
        let card = publisher.sign(card);
        us.cards.take(card.as_bytes(), Origin::Neighbour(1));
    }
    let trust = Trust::with_test_roots([root.id()]);
    let verifier = Verifier::start(trust, us.pieces.clone(), || NOW).expect("starts");
    let gatherer = Gatherer {
        network: network(),
        clock: clock(),
        peers: us.net.peers().clone(),
        cards: us.cards.clone(),
        bootstrap: vec![address(&forwarder).await],
        pieces: us.pieces.clone(),
        verifier: verifier.clone(),
        own: watch::Sender::new(None).subscribe(),
        now: || NOW,
    };
    let stop = CancellationToken::new();
    let work = tokio::spawn(gatherer.run(stop.clone()));
    let bad = || verifier.totals().1.get("report-data").copied();
    until("all are looked at", || bad() == Some(PUBLISHERS)).await;
    stop.cancel();
    work.await.expect("ends");

    let found = verifier.found();
    assert_eq!(found.len() as u64, PUBLISHERS);
    assert!(found.iter().all(|(_, finding)| finding.bad == 1));
    let neighbours = us.net.peers().neighbours().await;
    assert!(
        neighbours.contains(&forwarder.net.peers().local()),
        "it is still a neighbour"
    );
    for node in [&us, &forwarder] {
        let metrics = crate::metrics::text(&node.registry);
        let offences: Vec<_> = metrics
            .lines()
            .filter(|line| line.contains("offences_total{"))
            .collect();
        assert!(!offences.is_empty(), "they are counted");
        let blamed = offences.iter().find(|line| !line.ends_with(" 0"));
        assert_eq!(blamed, None, "nobody is blamed");
    }
}
