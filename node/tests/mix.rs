//! A message through four nodes over real libp2p on loopback, and its reply through the mailbox at the entry.

use std::{path::Path, sync::Arc, time::Duration};

use souk_crypto::{NetworkId, NetworkParams, NodeId, NodeKey, UnixTime};
use souk_node::{
    mix::{
        FRAME_QUEUE, KeyRing, MailboxCollector, Mailroom, Messenger, MessengerParts, MixCounters,
        Mixer, MixerParts, Replier,
    },
    net::{
        self, CardValidator, Multiaddr, NodeConfig, Origin, Services, Snapshot, SnapshotSource,
        Topic, Verdict,
    },
};
use souk_sphinx::{
    EpochClock, Hop, HopAddress, Session, Surb, Topology,
    delay::MixDelay,
    message::{Admission, Class, Message, MessageId, Outgoing, Reply},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// No gossip and no snapshots in this test.
struct Silent;

impl CardValidator for Silent {
    fn validate(&self, _topic: Topic, _message: &[u8], _from: Origin) -> Verdict {
        Verdict::Ignore
    }
}

impl SnapshotSource for Silent {
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}

struct RunningNode {
    id: NodeId,
    net: net::Node,
    addresses: Vec<Multiaddr>,
    hop: Hop,
    counters: Arc<MixCounters>,
    messages: mpsc::Receiver<Message>,
    replier: Replier,
}

fn address(id: NodeId) -> HopAddress {
    HopAddress(*id.as_bytes())
}

fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.expect("after 1970").as_secs())
}

async fn start(
    folder: &Path,
    network: &NetworkId,
    params: &NetworkParams,
    stop: &CancellationToken,
) -> RunningNode {
    let key = NodeKey::generate(&mut rand::rng());
    let id = key.public();
    let (frames, from_links) = mpsc::channel(FRAME_QUEUE);
    let (relayed, _) = mpsc::channel(1);
    let config = NodeConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("an address")],
        allow_private_addresses: true,
        mailbox: true,
        ..NodeConfig::new(network.clone(), key)
    };
    let services = Services {
        validator: Arc::new(Silent),
        snapshot: Arc::new(Silent),
        pieces: None,
        log: None,
        frames,
        relayed,
    };
    let mut registry = prometheus_client::registry::Registry::default();
    let net = net::Node::start(config, services, &mut registry).expect("a free port");

    let (clock, delay) = (EpochClock::of(params), MixDelay::of(params));
    let keys = KeyRing::open(&folder.join(id.to_string()), clock, now()).expect("a fresh folder");
    let public = keys
        .epoch(clock.sending(now()))
        .expect("current or next")
        .public();
    let counters = Arc::new(MixCounters::default());
    let links = Arc::new(net.links().clone());
    let replier = Replier::new(links.clone(), clock, counters.clone());
    let (mailroom, messages) = Mailroom::start(delay, everybody, replier.clone(), stop.clone());
    let parts = MixerParts {
        keys: Arc::new(keys),
        node: address(id),
        delay,
        links,
        mailboxes: Arc::new(net.mailboxes().clone()),
        frames: from_links,
        mailroom: Some(mailroom),
        counters: counters.clone(),
        peelers: 1,
    };
    drop(Mixer::start(parts, stop));
    let addresses = loop {
        let listening = net.peers().info().await.listening;
        if !listening.is_empty() {
            break listening;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    RunningNode {
        id,
        net,
        addresses,
        hop: Hop {
            address: address(id),
            key: public,
        },
        counters,
        messages,
        replier,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_and_its_reply_travel_over_libp2p() {
    let folder = tempfile::tempdir().expect("a folder");
    let params = NetworkParams::new(5, 1_000, 3_600, true).expect("within bounds");
    let network = NetworkId::new("mix-test", &params).expect("a name");
    let stop = CancellationToken::new();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(start(folder.path(), &network, &params, &stop).await);
    }
    let mesh: Vec<(NodeId, Vec<Multiaddr>)> = nodes
        .iter()
        .map(|node| (node.id, node.addresses.clone()))
        .collect();
    for node in &nodes {
        node.net.links().set_links(mesh.clone());
    }

    let (clock, delay) = (EpochClock::of(&params), MixDelay::of(&params));
    let client = net::Client::start(&net::ClientConfig {
        network,
        allow_private_addresses: true,
    });
    let (entry, provider) = (nodes[0].id, nodes[3].id);
    client.links().set_links(vec![mesh[0].clone()]);
    client
        .peers()
        .connect(entry, &nodes[0].addresses)
        .await
        .expect("connected");
    let collector =
        MailboxCollector::open(client.peers().clone(), entry, nodes[0].addresses.clone())
            .await
            .expect("room");
    let session = Session::new(address(entry), collector.address(), delay, &mut rand::rng());
    let (to_session, frames) = mpsc::channel(64);
    let collecting = tokio::spawn(collector.run(to_session));
    let topology = Topology::new(clock.sending(now()), nodes.iter().map(|node| node.hop));
    let (_topology, topology) = watch::channel(Arc::new(topology));
    let links = Arc::new(client.links().clone());
    let messenger = Messenger::start(MessengerParts {
        session,
        links,
        frames,
        topology,
        clock,
    });

    let (surbs, mut replies) = messenger
        .reply_surbs(1, address(provider))
        .await
        .expect("routes");
    let request = Outgoing {
        id: MessageId::random(&mut rand::rng()),
        destination: address(provider),
        class: Class::Medium,
        admission: Admission::NONE,
        bytes: surbs[0].to_bytes().to_vec(),
    };
    let provider = &mut nodes[3];
    let (sent, arrived) = tokio::join!(messenger.send(request), provider.messages.recv());
    sent.expect("acknowledged");
    let surb = Surb::from_bytes(&arrived.expect("delivered").bytes).expect("as sent");
    provider
        .replier
        .reply(surb, &Reply::new(b"a receipt".to_vec()).expect("fits"))
        .expect("sent");
    assert_eq!(
        replies.next().await.expect("a reply").into_bytes(),
        b"a receipt"
    );

    assert!(
        nodes[0].counters.deposited.total() >= 2,
        "the acknowledgement and the reply wait at the entry"
    );
    drop((messenger, replies));
    collecting
        .await
        .expect("no panic")
        .expect("the collector ends with the messenger");
    stop.cancel();
}

/// A gate that is open.
fn everybody(_: MessageId, _: Class, _: &Admission) -> bool {
    true
}
