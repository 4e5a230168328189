//! Sessions over a relay to a provider without an open port.

use std::time::Duration;

use souk_market::units::RelayToken;
use souk_node::{
    mix::Links as _,
    net::{RelayConnectError, RelayStream, RelayedStream, connect_via},
};
use souk_sphinx::HopAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    Hostile, PATIENCE, TRANSPORTS, TestNode, client_config, config, frame, quiet_config, until,
};

/// A provider without an open port, registered with `relay`, and its token.
async fn provider_behind(relay: &TestNode) -> (TestNode, RelayToken) {
    let provider = TestNode::start(quiet_config()).await;
    let token = RelayToken([3; 32]);
    register(&provider, relay, &token).await;
    (provider, token)
}

/// Lets the holder of `token` in through `relay`.
async fn register(provider: &TestNode, relay: &TestNode, token: &RelayToken) {
    let address = relay.address("quic").await;
    let registrations = provider.node.registrations();
    registrations.set_known(vec![(address.node(), vec![address.address().clone()])]);
    registrations.add_token(token, Duration::from_secs(3600), &[address.node()]);
    let relays = registrations.relays_with(token, PATIENCE, PATIENCE).await;
    assert_eq!(relays, [address.node()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_carries_16_mib_each_way_to_a_provider_without_an_open_port() {
    const LEN: usize = 16 << 20;
    let relay = TestNode::start(config()).await;
    let (mut provider, token) = provider_behind(&relay).await;
    for transport in TRANSPORTS {
        let address = relay.address(transport).await;
        let at = provider.node.peers().local();
        let mut near = connect_via(&client_config(), &address, at, &token)
            .await
            .unwrap();
        let mut far = provider.relayed.recv().await.unwrap();
        assert_eq!(far.token, token);
        assert_eq!(far.relay, address.node());

        let mut data = vec![0; LEN];
        blake3::Hasher::new()
            .update(transport.as_bytes())
            .finalize_xof()
            .fill(&mut data);
        let expected = blake3::hash(&data);
        let there = async {
            near.write_all(&data).await.unwrap();
            let mut back = vec![0; LEN];
            near.read_exact(&mut back).await.unwrap();
            near.shutdown().await.unwrap();
            blake3::hash(&back)
        };
        let and_back = async {
            let mut seen = vec![0; LEN];
            far.stream.read_exact(&mut seen).await.unwrap();
            let hash = blake3::hash(&seen);
            far.stream.write_all(&seen).await.unwrap();
            far.stream.flush().await.unwrap();
            // The requester's end arrives as an end.
            assert_eq!(far.stream.read(&mut [0; 1]).await.unwrap(), 0);
            hash
        };
        let (back, seen) = tokio::join!(there, and_back);
        assert_eq!((back, seen), (expected, expected));
    }
    // The provider met the relay and nobody else.
    assert_eq!(provider.node.peers().info().await.peers, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_lets_nobody_through_without_a_living_token() {
    let relay = TestNode::start(config()).await;
    let (provider, token) = provider_behind(&relay).await;
    let (address, at) = (relay.address("quic").await, provider.node.peers().local());
    let try_with =
        async |token: &RelayToken| connect_via(&client_config(), &address, at, token).await;
    let guessed = try_with(&RelayToken([4; 32])).await;
    assert!(matches!(guessed, Err(RelayConnectError::Unknown)));
    try_with(&token).await.unwrap();
    provider.node.registrations().remove_token(&token);
    until("the relay has heard of it", async || {
        matches!(try_with(&token).await, Err(RelayConnectError::Unknown))
    })
    .await;
}

/// A relay whose clients all connect from this machine.
async fn busy_relay() -> TestNode {
    let mut config = config();
    config.limits.per_ip = 512;
    TestNode::start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_is_not_blamed_for_its_clients_and_other_leases_get_through() {
    const OF_TOKEN: usize = 8;
    let relay = busy_relay().await;
    let mut provider = TestNode::start(quiet_config()).await;
    let tokens = [1, 2, 3, 4, 5].map(|n| RelayToken([n; 32]));
    for token in &tokens {
        register(&provider, &relay, token).await;
    }
    let (address, at) = (relay.address("quic").await, provider.node.peers().local());
    let connect = async |token| connect_via(&client_config(), &address, at, token).await;
    let mut sessions = Vec::new();
    let (fifth, greedy) = tokens.split_last().unwrap();
    for token in greedy {
        for _ in 0..OF_TOKEN {
            let near = connect(token).await.unwrap();
            sessions.push((near, provider.relayed.recv().await.unwrap()));
        }
    }
    for token in greedy.iter().cycle().take(40) {
        let refused = connect(token).await;
        assert!(matches!(refused, Err(RelayConnectError::Busy)));
    }
    let mut near = connect(fifth).await.unwrap();
    let mut far = provider.relayed.recv().await.unwrap();
    near.write_all(b"souk").await.unwrap();
    let mut seen = [0; 4];
    far.stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"souk");
    assert_eq!(provider.metric("souk_net_offences_total"), 0);
    assert_eq!(provider.node.peers().info().await.connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_spliced_streams_than_there_are_places_cost_the_neighbour_nothing() {
    let mut node = TestNode::start(config()).await;
    let mut neighbour = Hostile::connect(&node.address("quic").await).await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(neighbour.open("relay-splice").await);
    }
    // All are negotiated by now, and its own streams have their places still.
    let mut link = neighbour.open("mix").await;
    let bytes = frame(1).to_bytes();
    futures::AsyncWriteExt::write_all(&mut link, &*bytes)
        .await
        .unwrap();
    futures::AsyncWriteExt::flush(&mut link).await.unwrap();
    assert_eq!(node.next_frame().await, Some(frame(1)));
    assert_eq!(node.metric("souk_net_offences_total"), 0);
    assert!(neighbour.is_connected());
    // Too many of its own are its own doing.
    for _ in 0..30 {
        held.push(neighbour.open("log").await);
    }
    until("the offences are counted", async || {
        node.metric("souk_net_offences_total") >= 6
    })
    .await;
}

/// Sessions of one lease, and one that is to go on whatever the others do.
async fn sessions(
    relay: &TestNode,
    provider: &mut TestNode,
    token: &RelayToken,
) -> (
    Vec<(RelayStream, RelayedStream)>,
    (RelayStream, RelayedStream),
) {
    let (address, at) = (relay.address("quic").await, provider.node.peers().local());
    let mut all = Vec::new();
    for _ in 0..7 {
        let near = connect_via(&client_config(), &address, at, token).await;
        all.push((near.unwrap(), provider.relayed.recv().await.unwrap()));
    }
    let last = all.pop().unwrap();
    (all, last)
}

/// Writes more than all buffers on the way hold, and tells once they must be full.
fn flood(mut to: impl tokio::io::AsyncWrite + Unpin + Send + 'static) -> impl Future<Output = ()> {
    let (tell, full) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        to.write_all(&[7; 600 << 10]).await.unwrap();
        let _ = tell.send(());
        // It ends with the test.
        let _ = to.write_all(&vec![7; 8 << 20]).await;
    });
    async { full.await.unwrap() }
}

/// The last session carries 4 MiB there and back, and frames of the mix pass from one node to the other.
async fn goes_on(
    last: (RelayStream, RelayedStream),
    provider: &mut TestNode,
    relay: &mut TestNode,
) {
    const LEN: usize = 4 << 20;
    let (near, far) = last;
    let (mut near_reader, mut near_writer) = tokio::io::split(near);
    let (mut far_reader, mut far_writer) = tokio::io::split(far.stream);
    let (mut there, mut back) = (vec![0; LEN], vec![0; LEN]);
    let (near_data, far_data) = (vec![1; LEN], vec![2; LEN]);
    let all = async {
        tokio::try_join!(
            near_writer.write_all(&near_data),
            far_writer.write_all(&far_data),
            far_reader.read_exact(&mut there),
            near_reader.read_exact(&mut back),
        )
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap().unwrap();
    assert!(there == near_data && back == far_data);
    pass_a_frame(provider, relay).await;
    pass_a_frame(relay, provider).await;
}

/// A frame of the mix from one node to the other, which are connected.
async fn pass_a_frame(from: &TestNode, to: &mut TestNode) {
    let id = to.node.peers().local();
    from.node.links().set_links(vec![(id, Vec::new())]);
    let hop = HopAddress(*id.as_bytes());
    from.node.links().try_send(hop, frame(5)).unwrap();
    let arrived = tokio::time::timeout(PATIENCE, to.next_frame()).await;
    assert_eq!(arrived.unwrap(), Some(frame(5)));
    assert_eq!(from.metric("souk_net_offences_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_hold_up_nobody_else() {
    let mut relay = busy_relay().await;
    let (mut provider, token) = provider_behind(&relay).await;
    let (greedy, last) = sessions(&relay, &mut provider, &token).await;
    let mut unread = Vec::new();
    for (near, far) in greedy {
        unread.push(near);
        flood(far.stream).await;
    }
    goes_on(last, &mut provider, &mut relay).await;
    assert_eq!(provider.node.peers().info().await.connections, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_do_not_read_hold_up_nobody_else() {
    let mut relay = busy_relay().await;
    let (mut provider, token) = provider_behind(&relay).await;
    let (greedy, last) = sessions(&relay, &mut provider, &token).await;
    let mut unread = Vec::new();
    for (near, far) in greedy {
        unread.push(far);
        flood(near).await;
    }
    goes_on(last, &mut provider, &mut relay).await;
    assert_eq!(provider.node.peers().info().await.connections, 1);
}
