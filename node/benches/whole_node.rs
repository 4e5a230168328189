//! Memory of a whole node, a mix with all its parts, that has 30 peers and 1,000 signed cards, in a process of its own.
//!
//! `cargo bench -p souk-node --bench whole_node` starts the measured node as a child from a configuration, gives it 30 neighbours who publish
//! the cards of 1,000 nodes, waits until it has verified them all, and reads its memory from /proc.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use souk_crypto::{MixKey, MixPublicKey, NodeKey, SubKeys, UnixTime, Window, sign};
use souk_node::{
    config::{Config, Network},
    net::{
        self, CardValidator, NodeAddress, NodeConfig, Origin, PublishError, Services, Snapshot,
        SnapshotSource, Topic, Verdict,
    },
    node::Node,
    unix_now,
};
use souk_sphinx::EpochClock;
use tokio::sync::mpsc;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;
#[path = "../../marketplace/tests/support/mod.rs"]
mod support;

use measured::{measured, memory};

const PEERS: usize = 30;
const CARDS: usize = 1_000;
/// Between two cards of all neighbours together; each may bring some in a second.
const PAUSE: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(120);

/// Passes on everything; only the measured node is to verify.
struct Willing;

impl CardValidator for Willing {
    fn validate(&self, _: Topic, _: &[u8], _: Origin) -> Verdict {
        Verdict::Accept
    }
}

impl SnapshotSource for Willing {
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}

fn neighbour(network: &Network) -> net::Node {
    let key = NodeKey::generate(&mut rand::rng());
    let mut config = NodeConfig::new(network.id.clone(), key);
    config.allow_private_addresses = true;
    let services = Services {
        validator: Arc::new(Willing),
        snapshot: Arc::new(Willing),
        pieces: None,
        log: None,
        frames: mpsc::channel(64).0,
        relayed: mpsc::channel(8).0,
    };
    net::Node::start(config, services, &mut Registry::default()).expect("the node starts")
}

/// The card of a node of this network, as of now.
fn card(network: &Network, now: UnixTime, seed: u64) -> Bytes {
    let mut node = support::Node::new(seed);
    node.network = network.id.clone();
    let window = Window::new(now.minus_s(60), now.plus_s(90_000)).expect("not empty");
    let epoch = EpochClock::of(&network.params).at(now).0;
    let mix_key = |later: u8| MixKey {
        epoch: epoch + u32::from(later),
        suite: 1,
        key: MixPublicKey::from_bytes(&[later + 1; 32]).expect("32 bytes"),
        window,
    };
    let sub_keys = SubKeys {
        serial: 1,
        window,
        card_key: node.card.public(),
        log_key: Some(node.log.public()),
        seal_key: Some(node.seal.public()),
        mix_keys: (0..3).map(mix_key).collect(),
    };
    let signed = sign::sign(sub_keys, &node.node, &node.network).expect("valid");
    node.sub_keys = signed.signed().clone();
    let mut card = node.plain_card(1);
    card.from = now.minus_s(60);
    card.to = now.plus_s(12 * 3_600);
    Bytes::copy_from_slice(node.sign(card).as_bytes())
}

fn configuration(folder: &Path) -> String {
    format!(
        "[network]\nname = \"memory\"\ntest = true\n\n\
         [node]\ndata_dir = {:?}\nroles = [\"mix\", \"entry\", \"relay\"]\nlisten = [\"/ip4/127.0.0.1/udp/0/quic-v1\"]\nmdns = false\n\n\
         [metrics]\nlisten = \"127.0.0.1:0\"\n",
        folder.join("data")
    )
}

/// The measured node: says where it and its metrics listen, and runs until its standard input ends.
async fn child(config: &Path) {
    let node = Node::start(Config::load(config).expect("a configuration"));
    let node = node.await.expect("the node starts");
    let address = loop {
        if let Some(address) = node.announced().await.pop() {
            break address;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let metrics = node.metrics_address().expect("configured");
    let mut out = std::io::stdout();
    writeln!(out, "{address}\n{metrics}").expect("the parent listens");
    tokio::task::block_in_place(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .expect("standard input is there");
    node.stop().await;
}

/// How many valid cards the node has, by its own metrics.
fn cards(metrics: SocketAddr) -> usize {
    let mut stream = TcpStream::connect(metrics).expect("metrics are served");
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("souk_cards "));
    value.map_or(0, |value| value.trim().parse().expect("a number"))
}

async fn parent() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("souk.toml");
    fs::write(&path, configuration(folder.path())).expect("written");
    let network = Config::load(&path).expect("a configuration").network;
    let mut child = Command::new(env::current_exe().expect("this program"))
        .arg("child")
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || output.next().expect("the child speaks").expect("in text");
    let address: NodeAddress = next().parse().expect("an address");
    let metrics: SocketAddr = next().parse().expect("an address");
    let alone = memory(child.id());

    let mut neighbours = Vec::new();
    for _ in 0..PEERS {
        let node = neighbour(&network);
        node.peers().connect_to(&address).await.expect("connected");
        neighbours.push(node);
    }
    let now = unix_now();
    for n in 0..CARDS {
        let card = card(&network, now, n as u64);
        let peers = neighbours[n % PEERS].peers();
        // Refused until gossip has found its neighbours.
        while let Err(error) = peers.publish(Topic::Cards, card.clone()).await {
            assert_eq!(error, PublishError::NoNeighbours);
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let start = Instant::now();
    // Beside its own.
    while cards(metrics) <= CARDS {
        let held = cards(metrics);
        assert!(start.elapsed() < PATIENCE, "only {held} cards are there");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for node in &neighbours {
        assert_eq!(
            node.peers().info().await.peers,
            1,
            "all are still connected"
        );
    }
    let loaded = memory(child.id());
    drop(child.stdin.take());
    child.wait().expect("the child ends");
    let mut out = std::io::stdout();
    writeln!(
        out,
        "alone: {:.1} MiB resident, {:.1} anonymous\n{PEERS} peers, {CARDS} cards: {:.1} MiB resident, {:.1} anonymous",
        alone.0, alone.1, loaded.0, loaded.1
    )
    .expect("standard output is there");
    measured("node-memory", loaded.0, "MiB");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let args: Vec<String> = env::args().skip(1).collect();
    match args.as_slice() {
        [word, config] if word == "child" => runtime.block_on(child(Path::new(config))),
        _ => runtime.block_on(parent()),
    }
}
