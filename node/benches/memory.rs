//! Memory of the network of one node with 30 peers and 1,000 cards, in a process of its own.
//!
//! `cargo bench -p souk-node --bench memory` starts the measured node as a child, gives it 30 neighbours who publish the
//! cards, and reads the child's memory from /proc.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use souk_crypto::{NetworkId, NetworkParams, NodeKey};
use souk_node::net::{
    CardValidator, Node, NodeAddress, NodeConfig, Origin, PublishError, Services, Snapshot,
    SnapshotSource, Topic, Verdict,
};
use tokio::sync::mpsc;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::{measured, memory};

const PEERS: usize = 30;
const CARDS: usize = 1_000;
const CARD_BYTES: usize = 1_000;

#[derive(Default)]
struct Cards(Mutex<Vec<Bytes>>);

impl CardValidator for Cards {
    fn validate(&self, _: Topic, message: &[u8], _: Origin) -> Verdict {
        let mut cards = self.0.lock().expect("not poisoned");
        cards.push(Bytes::copy_from_slice(message));
        Verdict::Accept
    }
}

impl SnapshotSource for Cards {
    fn snapshot(&self) -> Snapshot {
        let cards = self.0.lock().expect("not poisoned");
        Snapshot {
            epoch: 0,
            root: [0; 32],
            objects: cards.clone().into(),
        }
    }
}

fn start(listen: bool) -> (Node, Arc<Cards>) {
    let params = NetworkParams::new(1, 1_000, 60, true).expect("parameters within bounds");
    let network = NetworkId::new("memory", &params).expect("a valid name");
    let mut config = NodeConfig::new(network, NodeKey::generate(&mut rand::rng()));
    config.allow_private_addresses = true;
    if listen {
        config.relay = true;
        config.mailbox = true;
        config.listen = vec![
            "/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address"),
            "/ip4/127.0.0.1/tcp/0".parse().expect("an address"),
        ];
    }
    let cards = Arc::new(Cards::default());
    let (frames, _) = mpsc::channel(64);
    let (relayed, _) = mpsc::channel(8);
    let services = Services {
        validator: cards.clone(),
        snapshot: cards.clone(),
        pieces: None,
        log: None,
        frames,
        relayed,
    };
    let node = Node::start(config, services, &mut Registry::default()).expect("the node starts");
    (node, cards)
}

/// The measured node: says where it listens, then, for each line it reads, how many peers and cards it has.
async fn child() {
    let (node, cards) = start(true);
    let listening = loop {
        let listening = node.peers().info().await.listening;
        if listening.len() == 2 {
            break listening;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let say = |line: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{line}")
            .and_then(|()| out.flush())
            .expect("the parent listens");
    };
    for address in listening {
        let address = NodeAddress::new(node.peers().local(), address).expect("of the two forms");
        say(address.to_string());
    }
    let mut line = String::new();
    loop {
        line.clear();
        let read = tokio::task::block_in_place(|| std::io::stdin().read_line(&mut line));
        if read.expect("standard input is there") == 0 {
            return;
        }
        let peers = node.peers().info().await.peers;
        let held = cards.0.lock().expect("not poisoned").len();
        say(format!("{peers} {held}"));
    }
}

async fn parent() {
    let mut child = Command::new(env::current_exe().expect("this program"))
        .arg("child")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut input = child.stdin.take().expect("piped");
    let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = move || output.next().expect("the child speaks").expect("in text");
    let addresses: Vec<NodeAddress> = (0..2)
        .map(|_| next().parse().expect("an address"))
        .collect();
    let alone = memory(child.id());

    let mut neighbours = Vec::new();
    for n in 0..PEERS {
        let (node, _) = start(false);
        let address = &addresses[n % addresses.len()];
        node.peers().connect_to(address).await.expect("connected");
        neighbours.push(node);
    }
    for n in 0..CARDS {
        let card = Bytes::from((n as u64).to_be_bytes().repeat(CARD_BYTES / 8));
        let peers = neighbours[n % PEERS].peers();
        // Refused until gossip has found its neighbours.
        while let Err(error) = peers.publish(Topic::Cards, card.clone()).await {
            assert_eq!(error, PublishError::NoNeighbours);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let full = format!("{PEERS} {CARDS}");
    for _ in 0..600 {
        writeln!(input, "?").expect("the child reads");
        if next() == full {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    writeln!(input, "?").expect("the child reads");
    assert_eq!(next(), full, "peers and cards of the measured node");
    let loaded = memory(child.id());
    drop(input);
    child.wait().expect("the child ends");

    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "alone: {:.1} MiB resident, {:.1} anonymous\n{PEERS} peers, {CARDS} cards: {:.1} MiB resident, {:.1} anonymous",
        alone.0, alone.1, loaded.0, loaded.1
    )
    .expect("standard output is there");
    // A debug build has tens of megabytes of code in its resident set; there the anonymous part is what counts.
    let counted = if cfg!(debug_assertions) {
        loaded.1
    } else {
        loaded.0
    };
    measured("network-memory", counted, "MiB");
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    if env::args().nth(1).as_deref() == Some("child") {
        runtime.block_on(child());
    } else {
        runtime.block_on(parent());
    }
}
