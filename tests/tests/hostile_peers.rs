//! Strangers on the network who send what they like on every protocol.
//!
//! What must hold: the node stays up with its memory bounded, whoever broke the framing is disconnected, and nobody
//! else is.

use std::{collections::BTreeSet, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, multiaddr::Protocol, noise,
    swarm::SwarmEvent, tcp, yamux,
};
use souk_node::net::PROTOCOLS;
use souk_tests::{Network, NodeUnderTest, PATIENCE, Plan, needs};
use tokio::time::timeout;

/// Longest that a neighbour which broke the framing stays connected: the deadline for a frame, on a busy machine.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(60);

/// Memory that attacks may cost a node, in KiB.
const GROWTH_KIB: u64 = 64 * 1024;

struct Stranger {
    swarm: Swarm<libp2p_stream::Behaviour>,
    peer: PeerId,
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The node does not speak the protocol.
    Unsupported,
    /// The node closed the connection.
    Disconnected,
    /// The node let the connection live.
    Connected,
}

impl Stranger {
    async fn connect(node: &NodeUnderTest) -> Self {
        let address: Multiaddr = node.addresses()[0].parse().expect("a multiaddress");
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            panic!("{address} names no node");
        };
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .expect("a transport")
            .with_behaviour(|_| libp2p_stream::Behaviour::new())
            .expect("a behaviour")
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE * 10))
            .build();
        swarm.dial(address).expect("dials");
        let mut stranger = Self { swarm, peer };
        timeout(PATIENCE, async {
            loop {
                match stranger.swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => return,
                    SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                    _ => {}
                }
            }
        })
        .await
        .expect("the node lets strangers in");
        stranger
    }

    /// Opens a protocol, sends bytes, ends the stream if asked to, and waits for what the node does.
    async fn attack(&mut self, protocol: &str, bytes: &[u8], end: bool, wait: Duration) -> Outcome {
        let protocol = StreamProtocol::try_from_owned(protocol.to_owned()).expect("a name");
        let mut control = self.swarm.behaviour().new_control();
        let peer = self.peer;
        let send = async {
            let mut stream = match control.open_stream(peer, protocol).await {
                Ok(stream) => stream,
                Err(libp2p_stream::OpenStreamError::UnsupportedProtocol(_)) => {
                    return Outcome::Unsupported;
                }
                // Perhaps closed while it was being opened; whether it was is seen below.
                Err(_) => return std::future::pending().await,
            };
            // The node may have closed before everything is sent.
            let _ = stream.write_all(bytes).await;
            let _ = stream.flush().await;
            if end {
                let _ = stream.close().await;
            }
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            std::future::pending().await
        };
        let swarm = &mut self.swarm;
        let closed = async {
            loop {
                if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                    return Outcome::Disconnected;
                }
            }
        };
        tokio::select! {
            outcome = send => outcome,
            outcome = closed => outcome,
            () = tokio::time::sleep(wait) => Outcome::Connected,
        }
    }

    /// Whether the connection still stands, judged by everything that has happened until now.
    async fn is_connected(&mut self) -> bool {
        let _ = timeout(Duration::from_millis(200), async {
            loop {
                self.swarm.select_next_some().await;
            }
        })
        .await;
        self.swarm.is_connected(&self.peer)
    }
}

/// What every attack must leave behind: a node that answers, and has not grown since it used `before` KiB.
fn is_up_and_small(node: &NodeUnderTest, before: u64) {
    assert!(node.status().is_some(), "the node does not answer");
    let after = node.resident_kib();
    assert!(
        after < before + GROWTH_KIB,
        "{before} KiB before, {after} KiB after"
    );
}

fn name(node: &NodeUnderTest, protocol: &str) -> String {
    format!("/souk/{}/{protocol}/1", node.network_id())
}

/// Bytes that look random, the same for the same seed.
fn noise_bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(len)
    .collect()
}

fn plan() -> Plan {
    Plan {
        mixes: 1,
        sells: true,
        ..Plan::default()
    }
}

fn network() -> Network {
    Network::start(&plan())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_framing_is_disconnected_and_nobody_else_is() {
    needs!(Leases);
    let network = network();
    let mut spoken = BTreeSet::new();
    for node in [network.provider(), &network.mixes()[0]] {
        let mut innocent = Stranger::connect(node).await;
        let before = node.resident_kib();
        for protocol in PROTOCOLS {
            let full = name(node, protocol);
            // A length that no message may have, and the same with a version that no frame of the mix has.
            for (what, bytes) in [
                (
                    "an endless length",
                    [&[0xff; 8][..], &noise_bytes(64, 1)].concat(),
                ),
                (
                    "an endless length and much after it",
                    [&[0xfe; 8][..], &noise_bytes(1 << 20, 2)].concat(),
                ),
            ] {
                let mut stranger = Stranger::connect(node).await;
                match stranger.attack(&full, &bytes, false, CUT_OFF_WITHIN).await {
                    Outcome::Unsupported => {}
                    Outcome::Disconnected => {
                        spoken.insert(*protocol);
                    }
                    Outcome::Connected => panic!("{protocol}: {what} is tolerated"),
                }
            }
        }
        assert!(
            innocent.is_connected().await,
            "an innocent neighbour was cut off"
        );
        is_up_and_small(node, before);
    }
    // Between them the two nodes speak everything.
    assert_eq!(spoken, PROTOCOLS.iter().copied().collect());
}

/// Whoever may reach the sockets of this machine, and what they may send there.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_on_the_control_socket_and_to_the_metrics_leave_the_node_up_and_small() {
    needs!(Leases);
    let network = Network::start(&Plan {
        more: "[metrics]\nlisten = \"127.0.0.1:0\"".to_owned(),
        ..plan()
    });
    let node = network.provider();
    let before = node.resident_kib();
    // Of HTTP/2, which the control API speaks (RFC 9113): the preface, then frames.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let cases = [
        noise_bytes(64 * 1024, 1),
        preface[..10].to_vec(),
        [&preface[..], &noise_bytes(64 * 1024, 2)].concat(),
        // A frame of 16 MiB, a window that overflows, headers that never end.
        [
            &preface[..],
            &settings,
            &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        ]
        .concat(),
        [
            &preface[..],
            &settings,
            &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff],
        ]
        .concat(),
        [
            &preface[..],
            &settings,
            &[0, 0x40, 0, 9, 0, 0, 0, 0, 1].repeat(8),
            &noise_bytes(1 << 17, 3),
        ]
        .concat(),
        [&b"GET /metrics HTTP/1.1\r\nx: "[..], &vec![b'a'; 1 << 21]].concat(),
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n".repeat(4_096),
        b"POST /metrics HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
    ];
    for bytes in &cases {
        let socket = tokio::net::UnixStream::connect(node.control_socket()).await;
        hurl(socket.expect("the node takes it"), bytes).await;
        let socket = tokio::net::TcpStream::connect(node.metrics_address()).await;
        hurl(socket.expect("the node takes it"), bytes).await;
    }
    // Some come and say nothing; they are not waited for.
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(
            tokio::net::UnixStream::connect(node.control_socket())
                .await
                .expect("room"),
        );
    }
    is_up_and_small(node, before);
    let mut metrics = tokio::net::TcpStream::connect(node.metrics_address())
        .await
        .expect("the node takes it");
    let get = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut metrics, get)
        .await
        .expect("taken");
    let mut answer = String::new();
    let read = tokio::io::AsyncReadExt::read_to_string(&mut metrics, &mut answer);
    timeout(PATIENCE, read)
        .await
        .expect("in time")
        .expect("an answer");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

/// Sends, ends, and reads what comes back until the node closes or has said nothing for a while.
async fn hurl(socket: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, bytes: &[u8]) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (mut from, mut to) = tokio::io::split(socket);
    let send = async {
        // The node may close before everything is sent.
        let _ = to.write_all(bytes).await;
        let _ = to.shutdown().await;
    };
    let mut answer = Vec::new();
    let answers = async {
        let _ = (&mut from).take(1 << 20).read_to_end(&mut answer).await;
    };
    let _ = timeout(Duration::from_secs(1), async {
        tokio::join!(send, answers)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_and_random_messages_leave_the_node_up_and_small() {
    needs!(Leases);
    let network = network();
    let protocols: Vec<String> = PROTOCOLS
        .iter()
        .map(|protocol| name(network.provider(), protocol))
        .chain([
            name(network.provider(), "kad"),
            format!("/souk/{}/gossip/1/1.1.0", network.provider().network_id()),
            "/ipfs/id/1.0.0".to_owned(),
            "/ipfs/id/push/1.0.0".to_owned(),
            "/ipfs/ping/1.0.0".to_owned(),
        ])
        .collect();
    for node in [network.provider(), &network.mixes()[0]] {
        let before = node.resident_kib();
        for (n, protocol) in protocols.iter().enumerate() {
            let seed = n as u64 + 10;
            let valid_length = [&[0, 0, 0, 40][..], &noise_bytes(40, seed)].concat();
            let cases = [
                Vec::new(),
                vec![0],
                vec![0, 0, 0],
                valid_length[..20].to_vec(),
                valid_length,
                noise_bytes(4_000, seed),
                [&[1][..], &noise_bytes(2_400 * 40, seed)].concat(),
            ];
            for bytes in cases {
                let mut stranger = Stranger::connect(node).await;
                stranger
                    .attack(protocol, &bytes, true, Duration::from_millis(50))
                    .await;
            }
        }
        is_up_and_small(node, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_well_framed_nonsense_costs_no_memory_and_no_third_party() {
    needs!(Leases);
    let network = network();
    let mix = &network.mixes()[0];
    let mut innocent = Stranger::connect(mix).await;
    let before = mix.resident_kib();
    // Version 1, an epoch, and a packet that no key opens: anybody could have been made to forward it.
    let frame = |seed| [&[1, 0, 0, 0, 0][..], &noise_bytes(2_396, seed)].concat();
    let flood: Vec<u8> = (0..2_000).flat_map(frame).collect();
    let protocol = name(mix, "mix");
    let floods = (0..4).map(|_| async {
        let mut stranger = Stranger::connect(mix).await;
        stranger
            .attack(&protocol, &flood, false, Duration::from_secs(5))
            .await
    });
    for outcome in futures::future::join_all(floods).await {
        assert_ne!(outcome, Outcome::Unsupported);
    }
    assert!(
        innocent.is_connected().await,
        "an innocent neighbour was cut off"
    );
    is_up_and_small(mix, before);
}
