//! A neighbour that speaks gossipsub by its rules and sends what no card can be.

use std::time::Duration;

use futures::StreamExt as _;
use libp2p::{
    Swarm, SwarmBuilder,
    gossipsub::{
        self, ConfigBuilder, IdentTopic, MessageAuthenticity, MessageId, ValidationMode, Version,
    },
    identify, noise,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use souk_node::net::{MAX_CARD_BYTES, NodeAddress};

use crate::support::{PATIENCE, TestNode, config, network, quiet_config, until};

/// Identify, so that it is taken for a node of this network, and gossip without any of our bounds.
#[derive(NetworkBehaviour)]
struct Gossiper {
    identify: identify::Behaviour,
    gossip: gossipsub::Behaviour,
}

fn swarm() -> Swarm<Gossiper> {
    let gossip = ConfigBuilder::default()
        .protocol_id(format!("/souk/{}/gossip/1", network()), Version::V1_1)
        .validation_mode(ValidationMode::Anonymous)
        .max_transmit_size(1 << 20)
        .message_id_fn(|message| MessageId::new(blake3::hash(&message.data).as_bytes()))
        .heartbeat_interval(Duration::from_millis(200))
        .build()
        .expect("a valid configuration");
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            noise::Config::new,
            yamux::Config::default,
        )
        .expect("TCP is there")
        .with_behaviour(|key| Gossiper {
            identify: identify::Behaviour::new(identify::Config::new(
                format!("/souk/{}/1", network()),
                key.public(),
            )),
            gossip: gossipsub::Behaviour::new(MessageAuthenticity::Anonymous, gossip)
                .expect("anonymous messages fit"),
        })
        .expect("the behaviour is there")
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// Publishes `messages` as cards and waits until `over` says what became of them.
async fn publish(target: &NodeAddress, messages: Vec<Vec<u8>>, over: impl AsyncFnMut() -> bool) {
    let mut swarm = swarm();
    let cards = IdentTopic::new(format!("souk/{}/cards", network()));
    swarm
        .dial(target.address().clone())
        .expect("the dial begins");
    let gossip = async {
        let mut unsent = messages;
        loop {
            // It subscribes on its side, which is when there is somebody to publish to.
            let subscribed = matches!(
                swarm.select_next_some().await,
                SwarmEvent::Behaviour(GossiperEvent::Gossip(gossipsub::Event::Subscribed { .. }))
            );
            if !subscribed {
                continue;
            }
            for message in unsent.drain(..) {
                let published = swarm.behaviour_mut().gossip.publish(cards.clone(), message);
                published.expect("it is within the bounds of this side");
            }
        }
    };
    tokio::select! {
        () = gossip => {}
        () = until("the node has answered", over) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cards_above_their_size_are_dropped_unread_and_cost_their_sender_alone() {
    let (node, honest) = (
        TestNode::start(config()).await,
        TestNode::start(quiet_config()).await,
    );
    let address = node.address("tcp").await;
    honest.node.peers().connect_to(&address).await.unwrap();
    let peers = || async { node.node.peers().info().await.peers };
    until("the honest neighbour is there", async || peers().await == 1).await;

    let too_long = [b"+", &[0; MAX_CARD_BYTES][..]].concat();
    publish(&address, vec![too_long], async || {
        node.metric("souk_net_offences_total") == 1 && peers().await == 1
    })
    .await;
    assert!(node.judge.asked_so_far().is_empty());

    // One that not even the router takes: it is dropped there, and the next card of the same neighbour is heard.
    let huge = [b"+", &[1; 32 * 1_024][..]].concat();
    publish(&address, vec![huge, b"+small".to_vec()], async || {
        !honest.judge.asked_so_far().is_empty()
    })
    .await;
    assert_eq!(node.judge.asked_so_far(), [b"+small"]);
    assert_eq!(honest.judge.asked_so_far(), [b"+small"]);
}
