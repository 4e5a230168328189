//! Gossip between two nodes while one of them verifies 1,000 distinct bad quotes a second, against gossip at rest.
//!
//! `cargo bench -p souk-node --bench bad_evidence`: the time from publishing at one node to the validator of the other, over QUIC on
//! loopback. Each quote verifies in full and binds the wrong key, which is the dearest way to be bad.
#![expect(
    clippy::print_stderr,
    reason = "what stands beside a figure is for people"
)]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use ring::rand::SystemRandom;
use souk_attest::{
    CollateralDigest, EvidenceDigest, ReportData, Tee as Structure, Trust,
    soft::{TdxRecipe, TestTdx},
};
use souk_crypto::{NetworkParams, NodeKey};
use souk_market::{
    card::EvidenceRef,
    shares::Source,
    units::{Digest, Tee},
};
use souk_node::{
    attest::{Claim, Pieces, Verifier, Wanted},
    net::{
        CardValidator, Node, NodeAddress, NodeConfig, Origin, Services, Snapshot, SnapshotSource,
        Topic, Verdict,
    },
};
use souk_sphinx::EpochClock;
use tokio::sync::mpsc;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;
#[path = "../../marketplace/tests/support/mod.rs"]
mod support;

use measured::measured;
use support::{NOW, list, network};

const MESSAGES: u32 = 220;
/// Below what one neighbour may send in a second.
const EVERY: Duration = Duration::from_millis(25);
const QUOTES_A_SECOND: u32 = 1_000;
/// Enough for as long as the messages take.
const QUOTES: u32 = 6_000;

/// Notes when a message arrives.
#[derive(Default)]
struct Arrivals(Mutex<Vec<(u32, Instant)>>);

impl CardValidator for Arrivals {
    fn validate(&self, _: Topic, message: &[u8], _: Origin) -> Verdict {
        let now = Instant::now();
        if let Some(number) = message.first_chunk() {
            let mut arrived = self.0.lock().expect("nobody panics");
            arrived.push((u32::from_be_bytes(*number), now));
        }
        Verdict::Accept
    }
}

impl SnapshotSource for Arrivals {
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}

async fn start(arrivals: &Arc<Arrivals>) -> (Node, NodeAddress) {
    let mut config = NodeConfig::new(network(), NodeKey::generate(&mut rand::rng()));
    config.allow_private_addresses = true;
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address")];
    let services = Services {
        validator: arrivals.clone(),
        snapshot: arrivals.clone(),
        pieces: None,
        log: None,
        frames: mpsc::channel(1).0,
        relayed: mpsc::channel(1).0,
    };
    let node = Node::start(config, services, &mut Registry::default()).expect("a free port");
    let listening = loop {
        if let Some(listening) = node.peers().info().await.listening.pop() {
            break listening;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let address = NodeAddress::new(node.peers().local(), listening).expect("of the form");
    (node, address)
}

/// The times of `MESSAGES` messages, rising.
async fn gossip(from: &Node, at: &Arrivals, first: u32) -> Vec<Duration> {
    let mut sent = Vec::new();
    for number in first..first + MESSAGES {
        let mut message = vec![0; 1_000];
        message[..4].copy_from_slice(&number.to_be_bytes());
        sent.push((number, Instant::now()));
        from.peers()
            .publish(Topic::Cards, Bytes::from(message))
            .await
            .expect("there is a neighbour");
        tokio::time::sleep(EVERY).await;
    }
    let arrived = at.0.lock().expect("nobody panics").clone();
    let time = |(number, sent): (u32, Instant)| {
        let (_, at) = arrived.iter().find(|(arrived, _)| *arrived == number)?;
        Some(at.duration_since(sent))
    };
    let mut times: Vec<_> = sent.into_iter().filter_map(time).collect();
    assert!(times.len() as u32 > MESSAGES * 9 / 10, "gossip was lost");
    times.sort_unstable();
    times
}

/// Claims whose evidence verifies and binds something else, with everything on the disk.
fn claims(pieces: &Pieces) -> (Vec<Claim>, Trust) {
    let rng = SystemRandom::new();
    let machine = TestTdx::new(TdxRecipe::up_to_date(NOW), &rng).expect("minted");
    let collateral = machine.collateral().to_bytes();
    let name = Digest(CollateralDigest::of(Structure::Tdx, &collateral).0);
    pieces.put(&collateral, &Wanted::from([(name, Source::Own)]));
    let clock = EpochClock::of(&NetworkParams::new(50, 5_000, 3_600, true).expect("valid"));
    let node = support::Node::new(1);
    let claim = |number: u32| {
        let mut data = ReportData([7; 64]);
        data.0[..4].copy_from_slice(&number.to_be_bytes());
        let quote = machine.quote(data, &rng).expect("minted");
        let evidence = Digest(EvidenceDigest::of(Structure::Tdx, &quote).0);
        pieces.put(&quote, &Wanted::from([(evidence, Source::Own)]));
        let mut card = node.plain_card(u64::from(number));
        card.evidence = list(vec![EvidenceRef {
            kind: u16::try_from(Tee::NoneTest.code()).expect("small"),
            scope: EvidenceRef::NODE,
            algorithm: EvidenceRef::BLAKE3,
            digest: evidence,
            collateral: Some(name),
            not_after: NOW.plus_s(3_600),
            policy: Digest([0; 32]),
            epoch: clock.at(NOW).0,
        }]);
        let card = node.sign(card);
        let claim = Claim::of_card(&card, &node.network, clock).next();
        claim.expect("the card names evidence")
    };
    let claims = (0..QUOTES).map(claim).collect();
    (claims, Trust::with_test_roots([machine.root()]))
}

fn show(what: &str, times: &[Duration]) -> (Duration, Duration) {
    let at = |part: usize| times[times.len() * part / 100];
    let (half, most) = (at(50), at(99));
    eprintln!(
        "{what}: p50 {half:.1?}, p99 {most:.1?}, {} messages",
        times.len()
    );
    (half, most)
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let pieces = Arc::new(Pieces::open(folder.path()).expect("opens"));
    let (claims, trust) = claims(&pieces);
    let verifier = Verifier::start(trust, pieces, || NOW).expect("starts");
    let (sink, source) = (Arc::new(Arrivals::default()), Arc::new(Arrivals::default()));
    let ((near, _), (_far, at)) = (start(&source).await, start(&sink).await);
    let addresses = [at.address().clone()];
    near.peers()
        .connect(at.node(), &addresses)
        .await
        .expect("on loopback");
    // Gossipsub has a mesh a heartbeat later.
    while near
        .peers()
        .publish(Topic::Cards, Bytes::from_static(b"up"))
        .await
        .is_err()
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;

    let idle = show("at rest", &gossip(&near, &sink, 0).await);
    let flooding = verifier.clone();
    let flood = std::thread::spawn(move || {
        let (start, mut taken) = (Instant::now(), 0_u32);
        for (number, claim) in (0..).zip(claims) {
            let due = start + Duration::from_secs(1) * number / QUOTES_A_SECOND;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            taken += u32::from(flooding.offer(claim));
        }
        (taken, start.elapsed())
    });
    let flooded = show("under bad quotes", &gossip(&near, &sink, MESSAGES).await);
    let (taken, for_so_long) = flood.join().expect("it ends");
    let (_, refused) = verifier.totals();
    let refused: u64 = refused.values().sum();
    eprintln!(
        "offered {:.0} a second, {taken} of {QUOTES} taken, {refused} refused",
        f64::from(QUOTES) / for_so_long.as_secs_f64()
    );
    let times = flooded.0.as_secs_f64() / idle.0.as_secs_f64();
    measured("flooded-gossip-p50", times, "times");
    let more_ms = (flooded.1.as_secs_f64() - idle.1.as_secs_f64()) * 1e3;
    measured("flooded-gossip-p99", more_ms.max(0.0), "ms");
}
