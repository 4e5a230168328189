//! Honest nodes and clients.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{identify, swarm::SwarmEvent};
use souk_node::{
    mix::{Deposit, Links as _, Mailboxes as _},
    net::{
        ConnectError, LogPath, MailboxError, MailboxKey, Node, NodeAddress, NodeConfig,
        PublishError, Services, Snapshot, StartError, Topic, peer_id,
    },
};

use crate::support::{
    Judge, PATIENCE, RawEvent, Shelf, TRANSPORTS, TestNode, client, config, frame, named_network,
    node_of, quiet_config, raw_swarm, until,
};

async fn publish(node: &TestNode, message: &'static [u8]) {
    until("there is somebody to publish to", async || {
        let message = Bytes::from_static(message);
        match node.node.peers().publish(Topic::Cards, message).await {
            Ok(()) => true,
            Err(PublishError::NoNeighbours) => false,
            Err(error) => panic!("{error}"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_passes_on_what_the_validator_accepts_and_nothing_else() {
    // first ── middle ── last; the outer two listen nowhere, so everything goes through the middle.
    let middle = TestNode::start(config()).await;
    let (first, last) = (
        TestNode::start(quiet_config()).await,
        TestNode::start(quiet_config()).await,
    );
    for outer in [&first, &last] {
        let address = middle.address("quic").await;
        outer.node.peers().connect_to(&address).await.unwrap();
    }
    until("the mesh is up", async || {
        middle.node.peers().info().await.mesh == 2
    })
    .await;

    publish(&first, b"+one").await;
    last.judge.wait_for(b"+one").await;
    publish(&first, b"!forged").await;
    publish(&first, b"?expired").await;
    publish(&first, b"+two").await;
    let asked = middle.judge.wait_for(b"+two").await;
    assert!(asked.contains(&b"!forged".to_vec()) && asked.contains(&b"?expired".to_vec()));
    let asked = last.judge.wait_for(b"+two").await;
    assert_eq!(asked, [b"+one", b"+two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_cards_arrives_whole() {
    const CARDS: u32 = 1_000;
    let (sender, receiver) = (
        TestNode::start(quiet_config()).await,
        TestNode::start(config()).await,
    );
    let address = receiver.address("tcp").await;
    sender.node.peers().connect_to(&address).await.unwrap();
    publish(&sender, b"+first").await;
    // In portions that fit the queue to one neighbour; the lists of what was sent lately grow past a single card with them.
    for n in 0..CARDS {
        let card = [b"+".as_slice(), &n.to_be_bytes().repeat(200)].concat();
        let published = sender.node.peers().publish(Topic::Cards, card.into());
        published.await.unwrap();
        if n % 200 == 199 {
            receiver.judge.wait_for_count(2 + n as usize).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_takes_a_snapshot_of_a_thousand_cards_over_each_transport() {
    let node = TestNode::start(config()).await;
    let objects: Arc<[Bytes]> = (0..1_000u32)
        .map(|n| Bytes::from(n.to_be_bytes().repeat(200)))
        .collect();
    let shelf = Snapshot {
        epoch: 7,
        root: [9; 32],
        objects,
    };
    *node.shelf.0.lock().unwrap() = shelf.clone();
    for transport in TRANSPORTS {
        let address = node.address(transport).await;
        let client = client();
        client.peers().connect_to(&address).await.unwrap();
        let head = client.peers().snapshot_head(address.node()).await.unwrap();
        assert_eq!((head.epoch, head.root, head.objects), (7, [9; 32], 1_000));
        let taken = client.peers().snapshot(address.node()).await.unwrap();
        assert_eq!(taken, shelf);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_collects_what_was_held_for_it_and_nobody_else_does() {
    let entry = TestNode::start(config()).await;
    let address = entry.address("quic").await;
    let (client, key) = (client(), MailboxKey::from_bytes([1; 32]));
    client.peers().connect_to(&address).await.unwrap();
    let day = Duration::from_secs(86_400);
    let mut mailbox = client
        .peers()
        .open_mailbox(address.node(), key.clone(), day, 100)
        .await
        .unwrap();

    assert!(mailbox.collect(Duration::ZERO).await.unwrap().is_empty());
    for n in 0..10 {
        let held = entry.node.mailboxes().try_deposit(key.address(), frame(n));
        assert_eq!(held, Deposit::Held);
    }
    let mut collected = Vec::new();
    while collected.len() < 10 {
        collected.extend(mailbox.collect(PATIENCE).await.unwrap());
    }
    let expected: Vec<_> = (0..10).map(frame).collect();
    assert_eq!(collected, expected);
    assert!(mailbox.collect(Duration::ZERO).await.unwrap().is_empty());

    let other = MailboxKey::from_bytes([2; 32]).address();
    let unknown = entry.node.mailboxes().try_deposit(other, frame(0));
    assert_eq!(unknown, Deposit::Unknown(frame(0)));

    mailbox.release().await.unwrap();
    let given_back = entry.node.mailboxes().try_deposit(key.address(), frame(0));
    assert_eq!(given_back, Deposit::Unknown(frame(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_waits_for_mail_and_a_broken_stream_loses_none() {
    let entry = TestNode::start(config()).await;
    let address = entry.address("tcp").await;
    let key = MailboxKey::from_bytes([1; 32]);
    let day = Duration::from_secs(86_400);
    let open = async || {
        let client = client();
        client.peers().connect_to(&address).await.unwrap();
        let opened = client
            .peers()
            .open_mailbox(address.node(), key.clone(), day, 100);
        let mailbox = opened.await;
        (client, mailbox)
    };
    let (_first, mailbox) = open().await;
    let mut mailbox = mailbox.unwrap();
    let (collected, ()) = tokio::join!(mailbox.collect(PATIENCE), async {
        let held = entry.node.mailboxes().try_deposit(key.address(), frame(1));
        assert_eq!(held, Deposit::Held);
    });
    assert_eq!(collected.unwrap(), [frame(1)]);
    // It was never acknowledged: the same client comes back with a fresh identity and gets it again.
    drop(mailbox);
    let (_second, mailbox) = open().await;
    let again = mailbox.unwrap().collect(Duration::ZERO).await.unwrap();
    assert_eq!(again, [frame(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_travel_over_links_in_order_and_a_link_comes_back() {
    let (left, mut right) = (
        TestNode::start(config()).await,
        TestNode::start(config()).await,
    );
    let target = right.address("tcp").await;
    let to = souk_sphinx::HopAddress(*target.node().as_bytes());
    assert!(left.node.links().try_send(to, frame(0)).is_err());
    left.node
        .links()
        .set_links(vec![(target.node(), vec![target.address().clone()])]);
    for n in 0..100 {
        left.node.links().try_send(to, frame(n)).unwrap();
    }
    for n in 0..100 {
        assert_eq!(right.next_frame().await, Some(frame(n)));
    }
    right
        .node
        .peers()
        .disconnect(left.node.peers().local())
        .await;
    // What was on its way is lost, as a network may; what comes after the link is back arrives.
    until("the link is back", async || {
        let _ = left.node.links().try_send(to, frame(7));
        right.had_frame()
    })
    .await;
    left.node.links().set_links(Vec::new());
    assert!(left.node.links().try_send(to, frame(0)).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_reads_a_whole_log() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let client = client();
    client.peers().connect_to(&address).await.unwrap();
    let mut log = client.peers().open_log(address.node()).await.unwrap();
    let checkpoint = log.file(&LogPath::Checkpoint).await.unwrap().unwrap();
    assert!(checkpoint.starts_with(b"origin\n"));
    let tile: LogPath = "tile/0/000".parse().unwrap();
    assert_eq!(log.file(&tile).await.unwrap().unwrap().len(), 8_192);
    let missing: LogPath = "tile/1/000".parse().unwrap();
    assert_eq!(log.file(&missing).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_there_is_told_with_the_reason() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let address = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let nobody = TestNode::start(quiet_config()).await.node.peers().local();
    let failed = client().peers().connect(nobody, &[address]).await;
    let error = failed.expect_err("nobody listens there").to_string();
    assert_eq!(
        error,
        "the node did not answer at its one address: Connection refused (os error 111)"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_shows_no_address_no_role_and_a_fresh_identity() {
    let mut server = raw_swarm();
    server
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let local = *server.local_peer_id();
    let listening = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break NodeAddress::new(node_of(&local), address).unwrap();
        }
    };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let client = client();
        let (connected, info) = tokio::join!(client.peers().connect_to(&listening), async {
            loop {
                if let SwarmEvent::Behaviour(RawEvent::Identify(identify::Event::Received {
                    info,
                    ..
                })) = server.select_next_some().await
                {
                    return info;
                }
            }
        });
        connected.unwrap();
        assert_eq!(info.listen_addrs, []);
        assert_eq!(info.agent_version, "souk");
        let mut spoken: Vec<_> = info.protocols.iter().map(|name| name.as_ref()).collect();
        spoken.sort_unstable();
        assert_eq!(
            spoken,
            ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"]
        );
        assert_eq!(
            peer_id(&client.peers().local()),
            info.public_key.to_peer_id()
        );
        seen.push(client.peers().local());
    }
    assert_ne!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_in_no_mesh_and_in_no_routing_table() {
    let (node, other) = (
        TestNode::start(config()).await,
        TestNode::start(config()).await,
    );
    let address = node.address("quic").await;
    other.node.peers().connect_to(&address).await.unwrap();
    let client = client();
    client.peers().connect_to(&address).await.unwrap();
    // An answer shows that the client is known to the node before we look.
    client.peers().snapshot_head(address.node()).await.unwrap();
    until("the nodes know each other", async || {
        let info = node.node.peers().info().await;
        info.mesh >= 1 && info.routable >= 1
    })
    .await;
    let info = node.node.peers().info().await;
    assert_eq!((info.peers, info.mesh, info.routable), (2, 1, 1));
    let refused = client
        .peers()
        .publish(Topic::Cards, Bytes::from_static(b"+card"))
        .await;
    assert_eq!(refused, Err(PublishError::NotANode));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_find_each_other_through_a_bootstrap_node() {
    let hub = TestNode::start(config()).await;
    let joining = async || {
        let mut config = config();
        config.bootstrap = vec![hub.address("quic").await];
        TestNode::start(config).await
    };
    let (one, two) = (joining().await, joining().await);
    until("both know two others", async || {
        one.node.peers().info().await.peers >= 2 && two.node.peers().info().await.peers >= 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_do_not_mix() {
    let node = TestNode::start(config()).await;
    let mut config = config();
    config.network = named_network("elsewhere");
    let stranger = TestNode::start(config).await;
    let address = node.address("tcp").await;
    stranger.node.peers().connect_to(&address).await.unwrap();
    until("they have parted", async || {
        node.node.peers().info().await.peers == 0
    })
    .await;
    // It is nobody's fault.
    assert_eq!(node.metric("souk_net_offences_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_addresses_are_not_dialed_unless_allowed() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let mut config = quiet_config();
    config.allow_private_addresses = false;
    let careful = TestNode::start(config).await;
    let refused = careful.node.peers().connect_to(&address).await;
    assert!(
        matches!(refused, Err(ConnectError::NoAddress)),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_gets_its_share_of_places() {
    let mut config = config();
    config.limits.per_ip = 2;
    let node = TestNode::start(config).await;
    let address = node.address("tcp").await;
    let (one, two, three) = (client(), client(), client());
    one.peers().connect_to(&address).await.unwrap();
    two.peers().connect_to(&address).await.unwrap();
    // The third is turned away; over TCP it may learn so only once the handshake is under way.
    let _ = three.peers().connect_to(&address).await;
    until("the third is out", async || {
        three.peers().info().await.peers == 0
    })
    .await;
    assert_eq!(node.node.peers().info().await.peers, 2);
    two.peers().stop().await;
    until("a place is free", async || {
        three.peers().connect_to(&address).await.is_ok()
            && node.node.peers().info().await.peers == 2
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_named_in_the_error() {
    let node = TestNode::start(config()).await;
    let taken = node.address("tcp").await.address().clone();
    let mut config: NodeConfig = quiet_config();
    config.listen = vec![taken.clone()];
    let (frames, _) = tokio::sync::mpsc::channel(1);
    let (relayed, _) = tokio::sync::mpsc::channel(1);
    let services = Services {
        validator: Judge::new(),
        snapshot: Arc::new(Shelf::default()),
        pieces: None,
        log: None,
        frames,
        relayed,
    };
    let mut registry = prometheus_client::registry::Registry::default();
    let refused = Node::start(config, services, &mut registry);
    match refused {
        Err(StartError::Listen { address, source }) => {
            assert_eq!(address, taken);
            assert_eq!(source.kind(), std::io::ErrorKind::AddrInUse);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_name_no_peer() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let client = client();
    client.peers().connect_to(&address).await.unwrap();
    until("it was counted", async || {
        node.metric("libp2p_swarm_connections_established_total") > 0
    })
    .await;
    let text = node.metrics();
    for peer in [client.peers().local(), node.node.peers().local()] {
        assert!(!text.contains(&peer_id(&peer).to_string()));
    }
    assert!(!text.contains("127.0.0.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_that_was_never_registered_is_unknown() {
    let mut no_role = config();
    no_role.mailbox = false;
    let node = TestNode::start(no_role).await;
    let address = node.address("tcp").await;
    let client = client();
    client.peers().connect_to(&address).await.unwrap();
    let opened = client
        .peers()
        .open_mailbox(
            address.node(),
            MailboxKey::from_bytes([1; 32]),
            Duration::from_secs(60),
            1,
        )
        .await;
    assert!(matches!(opened, Err(MailboxError::Open(_))));
}
