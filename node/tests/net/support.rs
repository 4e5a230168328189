//! Nodes and clients on loopback, and a neighbour that keeps to no rule.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{PeerId, Swarm, SwarmBuilder, identify, noise, swarm::NetworkBehaviour, tcp, yamux};
use prometheus_client::registry::Registry;
use souk_crypto::{NetworkId, NetworkParams, NodeKey};
use souk_node::{
    mix::Arrival,
    net::{
        CardValidator, Client, ClientConfig, LogPath, LogSource, Multiaddr, Node, NodeAddress,
        NodeConfig, Origin, PieceSource, RelayedStream, Services, Snapshot, SnapshotSource, Topic,
        Verdict, node_id,
    },
};
use souk_sphinx::{Epoch, Frame, Packet, packet::PACKET_LEN};
use tokio::sync::{mpsc, watch};

/// Far longer than anything here takes; reached only by a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const TRANSPORTS: [&str; 2] = ["tcp", "quic"];

pub(crate) fn network() -> NetworkId {
    named_network("test")
}

pub(crate) fn named_network(name: &str) -> NetworkId {
    let params = NetworkParams::new(1, 1_000, 60, true).expect("parameters within bounds");
    NetworkId::new(name, &params).expect("a valid name")
}

/// Accepts what begins with `+`, ignores `?`, rejects the rest, and remembers all it was asked.
#[derive(Debug)]
pub(crate) struct Judge {
    asked: watch::Sender<Vec<Vec<u8>>>,
}

impl Judge {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            asked: watch::Sender::new(Vec::new()),
        })
    }

    /// Waits until it has been asked about `message`, and returns all that it was asked.
    pub(crate) async fn wait_for(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let mut asked = self.asked.subscribe();
        let found = asked.wait_for(|asked| asked.iter().any(|m| m == message));
        let found = tokio::time::timeout(PATIENCE, found).await;
        found
            .expect("the message arrives in time")
            .expect("the judge lives")
            .clone()
    }
}

impl Judge {
    /// What it has been asked about.
    pub(crate) fn asked_so_far(&self) -> Vec<Vec<u8>> {
        self.asked.borrow().clone()
    }

    /// Waits until it has been asked about `count` different messages.
    pub(crate) async fn wait_for_count(&self, count: usize) {
        let mut asked = self.asked.subscribe();
        let enough = asked.wait_for(|asked| asked.iter().collect::<HashSet<_>>().len() >= count);
        let enough = tokio::time::timeout(PATIENCE, enough).await;
        assert!(
            enough.is_ok(),
            "{} of {count} in time",
            self.asked.borrow().len()
        );
    }
}

impl CardValidator for Judge {
    fn validate(&self, _: Topic, message: &[u8], _: Origin) -> Verdict {
        self.asked.send_modify(|asked| asked.push(message.to_vec()));
        match message.first() {
            Some(b'+') => Verdict::Accept,
            Some(b'?') => Verdict::Ignore,
            _ => Verdict::Reject,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Shelf(pub(crate) Mutex<Snapshot>);

impl SnapshotSource for Shelf {
    fn snapshot(&self) -> Snapshot {
        self.0.lock().expect("not poisoned").clone()
    }
}

/// A log with one checkpoint and one tile.
pub(crate) struct TinyLog;

impl LogSource for TinyLog {
    fn file(&self, path: &LogPath) -> std::io::Result<Option<Bytes>> {
        Ok(match path {
            LogPath::Checkpoint => Some(Bytes::from_static(b"origin\n1\nroot\n")),
            LogPath::Tile {
                level: 0, index: 0, ..
            } => Some(Bytes::from(vec![7; 256 * 32])),
            _ => None,
        })
    }
}

/// A node with all ends of its services in hand.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) judge: Arc<Judge>,
    pub(crate) shelf: Arc<Shelf>,
    frames: mpsc::Receiver<Arrival>,
    pub(crate) relayed: mpsc::Receiver<RelayedStream>,
    pub(crate) registry: Registry,
}

pub(crate) fn config() -> NodeConfig {
    let mut config = NodeConfig::new(network(), NodeKey::generate(&mut rand::rng()));
    config.allow_private_addresses = true;
    config.listen = vec![
        "/ip4/127.0.0.1/tcp/0".parse().expect("a multiaddress"),
        "/ip4/127.0.0.1/udp/0/quic-v1"
            .parse()
            .expect("a multiaddress"),
    ];
    config.relay = true;
    config.mailbox = true;
    config
}

pub(crate) fn quiet_config() -> NodeConfig {
    let mut config = config();
    config.listen.clear();
    config
}

/// A node that serves evidence, and has none.
struct NoPieces;

impl PieceSource for NoPieces {
    fn names(&self) -> Vec<([u8; 32], usize)> {
        Vec::new()
    }

    fn piece(&self, _: &[u8; 32]) -> Option<Bytes> {
        None
    }
}

impl TestNode {
    pub(crate) async fn start(config: NodeConfig) -> Self {
        Self::start_serving(config, Some(Arc::new(TinyLog))).await
    }

    pub(crate) async fn start_with_log(config: NodeConfig, log: Arc<dyn LogSource>) -> Self {
        Self::start_serving(config, Some(log)).await
    }

    pub(crate) async fn start_without_log(config: NodeConfig) -> Self {
        Self::start_serving(config, None).await
    }

    async fn start_serving(config: NodeConfig, log: Option<Arc<dyn LogSource>>) -> Self {
        let (judge, shelf) = (Judge::new(), Arc::new(Shelf::default()));
        let (frames_in, frames) = mpsc::channel(64);
        let (relayed_in, relayed) = mpsc::channel(8);
        let mut registry = Registry::default();
        let listeners = config.listen.len();
        let services = Services {
            validator: judge.clone(),
            snapshot: shelf.clone(),
            pieces: Some(Arc::new(NoPieces)),
            log,
            frames: frames_in,
            relayed: relayed_in,
        };
        let node = Node::start(config, services, &mut registry).expect("the node starts");
        until("it listens", async || {
            node.peers().info().await.listening.len() >= listeners
        })
        .await;
        Self {
            node,
            judge,
            shelf,
            frames,
            relayed,
            registry,
        }
    }

    pub(crate) async fn addresses(&self) -> Vec<Multiaddr> {
        self.node.peers().info().await.listening
    }

    /// The address of one transport: `tcp` or `quic`.
    pub(crate) async fn address(&self, transport: &str) -> NodeAddress {
        let mut listening = self.addresses().await.into_iter();
        let found = listening.find(|address| address.to_string().contains(transport));
        NodeAddress::new(self.node.peers().local(), found.expect("it listens there"))
            .expect("an address of the two forms")
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a string");
        text
    }

    /// The next frame from any link.
    pub(crate) async fn next_frame(&mut self) -> Option<Frame> {
        self.frames.recv().await.map(|arrival| arrival.frame)
    }

    /// Whether there was one; it is gone.
    pub(crate) fn had_frame(&mut self) -> bool {
        self.frames.try_recv().is_ok()
    }

    /// Value of a counter, summed over its labels.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        self.metrics()
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .sum()
    }
}

pub(crate) fn client() -> Client {
    Client::start(&client_config())
}

pub(crate) fn client_config() -> ClientConfig {
    ClientConfig {
        network: network(),
        allow_private_addresses: true,
    }
}

pub(crate) fn frame(n: u32) -> Frame {
    Frame {
        epoch: Epoch(n),
        packet: Packet::from_bytes(&[0x5a; PACKET_LEN]).expect("the one size"),
    }
}

/// Looks again until `condition` holds; for states that announce themselves to nobody.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("in time: {what}"));
}

/// A plain libp2p peer with streams of its own making, which knows none of our code.
#[derive(NetworkBehaviour)]
pub(crate) struct Raw {
    pub(crate) identify: identify::Behaviour,
    pub(crate) streams: libp2p_stream::Behaviour,
}

pub(crate) fn raw_swarm() -> Swarm<Raw> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .expect("TCP is there")
        .with_quic()
        .with_behaviour(|key| Raw {
            identify: identify::Behaviour::new(identify::Config::new(
                format!("/souk/{}/1", network()),
                key.public(),
            )),
            streams: libp2p_stream::Behaviour::new(),
        })
        .expect("the behaviour is there")
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// A hostile neighbour of one node: its streams, and news of how it fares.
pub(crate) struct Hostile {
    pub(crate) control: libp2p_stream::Control,
    target: PeerId,
    connected: watch::Receiver<Option<bool>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hostile {
    pub(crate) async fn connect(target: &NodeAddress) -> Self {
        use libp2p::swarm::{SwarmEvent, dial_opts::DialOpts};

        let mut swarm = raw_swarm();
        let expected = souk_node::net::peer_id(&target.node());
        let control = swarm.behaviour().streams.new_control();
        let dial = DialOpts::peer_id(expected)
            .addresses(vec![target.address().clone()])
            .build();
        swarm.dial(dial).expect("the dial begins");
        let (tell, connected) = watch::channel(None);
        let task = tokio::spawn(async move {
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => drop(tell.send(Some(true))),
                    SwarmEvent::ConnectionClosed { .. }
                    | SwarmEvent::OutgoingConnectionError { .. } => drop(tell.send(Some(false))),
                    _ => {}
                }
            }
        });
        let mut hostile = Self {
            control,
            target: expected,
            connected,
            task,
        };
        hostile.wait_for(Some(true)).await;
        hostile
    }

    async fn wait_for(&mut self, state: Option<bool>) {
        let waiting = self.connected.wait_for(|now| *now == state);
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .unwrap_or_else(|_| panic!("in time: connected == {state:?}"))
            .expect("the swarm runs");
    }

    /// Waits until the node has closed the connection.
    pub(crate) async fn thrown_out(&mut self) {
        self.wait_for(Some(false)).await;
    }

    pub(crate) fn target(&self) -> PeerId {
        self.target
    }

    pub(crate) fn is_connected(&self) -> bool {
        *self.connected.borrow() == Some(true)
    }

    pub(crate) async fn open(&mut self, what: &str) -> libp2p::Stream {
        let name = format!("/souk/{}/{what}/1", network());
        let protocol = libp2p::StreamProtocol::try_from_owned(name).expect("a protocol name");
        self.control
            .open_stream(self.target, protocol)
            .await
            .expect("the node speaks it")
    }
}

pub(crate) fn node_of(peer: &PeerId) -> souk_crypto::NodeId {
    node_id(peer).expect("an Ed25519 identity")
}
