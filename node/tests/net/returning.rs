//! Nodes that vanish without a word, as by `kill -9` or a cut cable, and come back elsewhere.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use souk_crypto::{NodeKey, keys::Secret as _};
use souk_node::{
    mix::Links as _,
    net::{NodeAddress, NodeConfig, Peers, PublishError, Topic},
};
use tokio::{net::UdpSocket, task::JoinHandle};

use crate::support::{TestNode, config, frame, until};

/// A cable between a QUIC node and whoever dials it through here. Cut, it is silent: neither side is told.
struct Cable {
    end: NodeAddress,
    carrying: JoinHandle<()>,
    // Held on, so that not even the system says that nobody listens any more.
    _sockets: [std::sync::Arc<UdpSocket>; 2],
}

impl Cable {
    async fn to(node: &TestNode) -> Self {
        let far: SocketAddr = socket_address(&node.address("quic").await);
        let any = async || std::sync::Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let (front, back) = (any().await, any().await);
        let end = format!(
            "/ip4/127.0.0.1/udp/{}/quic-v1",
            front.local_addr().unwrap().port()
        );
        let end = NodeAddress::new(node.node.peers().local(), end.parse().unwrap()).unwrap();
        let sockets = [front.clone(), back.clone()];
        let carrying = tokio::spawn(async move {
            let mut near = None;
            let (mut out, mut home) = ([0; 2_048], [0; 2_048]);
            loop {
                tokio::select! {
                    packet = front.recv_from(&mut out) => {
                        let (len, from) = packet.unwrap();
                        near = Some(from);
                        back.send_to(&out[..len], far).await.unwrap();
                    }
                    packet = back.recv_from(&mut home) => {
                        let (len, _) = packet.unwrap();
                        if let Some(near) = near {
                            front.send_to(&home[..len], near).await.unwrap();
                        }
                    }
                }
            }
        });
        Self {
            end,
            carrying,
            _sockets: sockets,
        }
    }

    fn cut(&self) {
        self.carrying.abort();
    }
}

fn socket_address(address: &NodeAddress) -> SocketAddr {
    let text = address.address().to_string();
    let mut parts = text.split('/').skip(2);
    let (ip, _, port) = (parts.next().unwrap(), parts.next(), parts.next().unwrap());
    format!("{ip}:{port}").parse().unwrap()
}

/// The configuration of one and the same node, as often as it starts.
fn config_of(key: &NodeKey) -> NodeConfig {
    let mut config = config();
    config.key = NodeKey::from_secret_bytes(&key.secret_bytes());
    config
}

/// Publishes as soon as there is somebody to publish to, and sees to it that there is.
async fn publish(peers: &Peers, neighbour: Option<&NodeAddress>, message: &'static [u8]) {
    until("there is somebody to publish to", async || {
        if let Some(neighbour) = neighbour {
            // Refused for a moment where the two may have dialed each other at once.
            peers.connect_to(neighbour).await.unwrap();
        }
        match peers
            .publish(Topic::Cards, Bytes::from_static(message))
            .await
        {
            Ok(()) => true,
            Err(PublishError::NoNeighbours) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

/// A neighbour hears a node, the node vanishes, and is heard again as soon as it is back on other ports.
async fn is_heard_again(neighbour_dials: bool) {
    let key = NodeKey::generate(&mut rand::rng());
    let neighbour = TestNode::start(config()).await;
    let before = TestNode::start(config_of(&key)).await;
    let (dialed, dialer) = if neighbour_dials {
        (&before, &neighbour)
    } else {
        (&neighbour, &before)
    };
    let cable = Cable::to(dialed).await;
    dialer.node.peers().connect_to(&cable.end).await.unwrap();
    publish(before.node.peers(), None, b"+before").await;
    neighbour.judge.wait_for(b"+before").await;

    cable.cut();
    before.node.peers().stop().await;
    drop(before);

    let after = TestNode::start(config_of(&key)).await;
    let address = neighbour.address("quic").await;
    publish(after.node.peers(), Some(&address), b"+after").await;
    neighbour.judge.wait_for(b"+after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_dial_each_other_at_once_keep_one_connection_and_hear_each_other() {
    let (left, right) = (
        TestNode::start(config()).await,
        TestNode::start(config()).await,
    );
    let (of_left, of_right) = (left.address("quic").await, right.address("tcp").await);
    let (there, back) = tokio::join!(
        left.node.peers().connect_to(&of_right),
        right.node.peers().connect_to(&of_left)
    );
    there.unwrap();
    back.unwrap();
    publish(left.node.peers(), None, b"+left").await;
    publish(right.node.peers(), None, b"+right").await;
    right.judge.wait_for(b"+left").await;
    left.judge.wait_for(b"+right").await;
    for node in [&left, &right] {
        until("one connection is left", async || {
            node.node.peers().info().await.connections == 1
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_vanished_and_came_back_is_heard_by_the_neighbour_it_had_dialed() {
    is_heard_again(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_vanished_and_came_back_is_heard_by_the_neighbour_that_had_dialed_it() {
    is_heard_again(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_died_often_has_its_link_as_soon_as_it_is_back() {
    // Over so many short lives the pause of its link grows to at least so long.
    const DEATHS: u8 = 10;
    const LONGEST_PAUSE: Duration = Duration::from_secs(15);
    let key = NodeKey::generate(&mut rand::rng());
    let neighbour = TestNode::start(config()).await;
    let home = neighbour.address("tcp").await;
    let mut node = TestNode::start(config_of(&key)).await;
    let address = node.address("tcp").await;
    let to = souk_sphinx::HopAddress(*address.node().as_bytes());
    let links = neighbour.node.links();
    links.set_links(vec![(address.node(), vec![address.address().clone()])]);
    for _ in 0..DEATHS {
        has_a_link(&mut node, &home, &neighbour, to).await;
        node.node.peers().stop().await;
        drop(node);
        node = TestNode::start(config_of(&key)).await;
    }
    let back = Instant::now();
    has_a_link(&mut node, &home, &neighbour, to).await;
    assert!(back.elapsed() < LONGEST_PAUSE, "{:?}", back.elapsed());
}

/// A node connects to a neighbour, as all do at their start, and waits until a frame of it arrives.
async fn has_a_link(
    node: &mut TestNode,
    home: &NodeAddress,
    neighbour: &TestNode,
    to: souk_sphinx::HopAddress,
) {
    until("the link is there", async || {
        // Refused for a moment where the two may have dialed each other at once.
        let _ = node.node.peers().connect_to(home).await;
        // Full or gone for now: what counts is what arrives.
        let _ = neighbour.node.links().try_send(to, frame(1));
        node.had_frame()
    })
    .await;
}
