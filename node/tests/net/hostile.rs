//! Neighbours that keep to no rule: thrown out where they broke a rule themselves, and only there.

use futures::AsyncWriteExt as _;
use libp2p::StreamProtocol;
use rand::RngExt as _;
use souk_node::net::{NodeAddress, PROTOCOLS, Topic};
use souk_sphinx::Frame;

use crate::support::{Hostile, TestNode, client, config, frame, until};

/// What libp2p calls the protocol by which a peer says anew who it is.
const IDENTIFY_PUSH: StreamProtocol = StreamProtocol::new("/ipfs/id/push/1.0.0");

/// Sends `bytes` on a fresh connection and waits to be thrown out.
async fn is_thrown_out_for(address: &NodeAddress, what: &str, bytes: &[u8]) {
    let mut hostile = Hostile::connect(address).await;
    let mut stream = hostile.open(what).await;
    // The node may close while we still write.
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    hostile.thrown_out().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oversized_announcement_ends_the_connection_on_every_protocol() {
    let node = TestNode::start(config()).await;
    for what in PROTOCOLS {
        let address = node.address("tcp").await;
        is_thrown_out_for(&address, what, &[0xff; 4]).await;
    }
    assert_eq!(
        node.metric("souk_net_offences_total"),
        PROTOCOLS.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_end_the_connection_on_every_protocol() {
    let node = TestNode::start(config()).await;
    for what in PROTOCOLS {
        let mut bytes = vec![0; 4_096];
        rand::rng().fill(&mut bytes[..]);
        // A first byte that is neither the frame version nor a length within any cap.
        bytes[0] |= 0x80;
        is_thrown_out_for(&node.address("quic").await, what, &bytes).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn well_sized_nonsense_ends_the_connection_on_every_protocol() {
    let node = TestNode::start(config()).await;
    for what in PROTOCOLS {
        // A frame of one byte that is a valid CBOR integer, and no message; for a link, a frame of another version.
        is_thrown_out_for(&node.address("tcp").await, what, &[0, 0, 0, 1, 7]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_never_ends_ends_the_connection() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let trickle = async |what, first: &'static [u8]| {
        let mut hostile = Hostile::connect(&address).await;
        let mut stream = hostile.open(what).await;
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        hostile.thrown_out().await;
    };
    tokio::join!(
        trickle("mix", &[1]),
        trickle("cards", &[0, 0, 0, 4, 1]),
        trickle("log", &[0])
    );
    assert_eq!(node.metric("souk_net_offences_total"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_message_of_identify_ends_the_connection() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    // A length that never ends, one above the cap, and a message whose only field is of a type that does not exist.
    for bytes in [&[0xff; 11][..], &[0xff, 0xff, 0x03], &[1, 0x07]] {
        let mut hostile = Hostile::connect(&address).await;
        let target = hostile.target();
        let stream = hostile.control.open_stream(target, IDENTIFY_PUSH).await;
        let mut stream = stream.unwrap();
        // The node may close while we still write.
        let _ = stream.write_all(bytes).await;
        let _ = stream.flush().await;
        hostile.thrown_out().await;
    }
    assert_eq!(node.metric("souk_net_offences_total"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_open_nothing_cost_their_carrier_nothing() {
    // A stranger can make an honest mix forward packets with a bad MAC, an old epoch, or twice: all of it is well framed.
    let mut node = TestNode::start(config()).await;
    let mut carrier = Hostile::connect(&node.address("tcp").await).await;
    let mut stream = carrier.open("mix").await;
    for n in [0, 0, u32::MAX] {
        stream.write_all(&*frame(n).to_bytes()).await.unwrap();
    }
    stream.flush().await.unwrap();
    for n in [0, 0, u32::MAX] {
        assert_eq!(node.next_frame().await, Some(frame(n)));
    }
    assert!(carrier.is_connected());
    assert_eq!(node.metric("souk_net_offences_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_off_is_nobodys_fault() {
    let mut node = TestNode::start(config()).await;
    let mut peer = Hostile::connect(&node.address("tcp").await).await;
    for what in PROTOCOLS {
        let mut stream = peer.open(what).await;
        // Three bytes of a length; for a link, the version and two bytes of the epoch.
        let first = u8::from(*what == "mix");
        stream.write_all(&[first, 0, 0]).await.unwrap();
        stream.close().await.unwrap();
    }
    // Of identify nothing at all, and two bytes of a message of five.
    for bytes in [&b""[..], &[5, 0x0a, 3]] {
        let target = peer.target();
        let stream = peer.control.open_stream(target, IDENTIFY_PUSH).await;
        let mut stream = stream.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.close().await.unwrap();
    }
    // The node still answers on the same connection.
    let mut stream = peer.open("mix").await;
    stream.write_all(&*frame(1).to_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(node.next_frame().await, Some(frame(1)));
    assert_eq!(node.metric("souk_net_offences_total"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_keeps_breaking_the_rules_is_kept_out() {
    let node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let mut hostile = Hostile::connect(&address).await;
    // The stream control dials again by itself, with the same identity.
    let target = souk_node::net::peer_id(&address.node());
    let mut refused = false;
    for _ in 0..10 {
        match hostile
            .control
            .open_stream(target, hostile_protocol("cards"))
            .await
        {
            Ok(mut stream) => {
                let _ = stream.write_all(&[0xff; 4]).await;
                let _ = stream.flush().await;
                hostile.thrown_out().await;
            }
            Err(_) => {
                refused = true;
                break;
            }
        }
    }
    assert!(refused);
    // Others behind the same address are not.
    let client = client();
    client.peers().connect_to(&address).await.unwrap();
    client.peers().snapshot_head(address.node()).await.unwrap();
}

fn hostile_protocol(what: &str) -> StreamProtocol {
    StreamProtocol::try_from_owned(format!("/souk/{}/{what}/1", crate::support::network())).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_streams_and_frames_leaves_memory_bounded_and_the_node_at_work() {
    const FLOODERS: usize = 16;
    let mut node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let before = resident_mib();
    let mut flood = Vec::new();
    for _ in 0..FLOODERS {
        let mut hostile = Hostile::connect(&address).await;
        flood.push(tokio::spawn(async move {
            let mut streams = Vec::new();
            // As many streams as it gets, each with as much as it takes; nothing is read here, and nobody takes the frames there.
            for what in PROTOCOLS.iter().cycle().take(64) {
                let name = hostile_protocol(what);
                let target = hostile.target();
                if let Ok(stream) = hostile.control.open_stream(target, name).await {
                    streams.push(stream);
                }
            }
            let bytes = frame(1).to_bytes().repeat(512);
            for stream in &mut streams {
                let write = stream.write_all(&bytes);
                let _ = tokio::time::timeout(std::time::Duration::from_millis(50), write).await;
            }
            (hostile, streams)
        }));
    }
    let mut held = Vec::new();
    for flooder in flood {
        held.push(flooder.await.unwrap());
    }
    // The flooders' own buffers are part of this process, too.
    let grown = resident_mib().saturating_sub(before);
    assert!(grown < 192, "grown by {grown} MiB");

    // An honest neighbour is served as before.
    let honest = TestNode::start(config()).await;
    honest.node.peers().connect_to(&address).await.unwrap();
    until("the card arrives", async || {
        let card = bytes::Bytes::from_static(b"+card");
        honest
            .node
            .peers()
            .publish(Topic::Cards, card)
            .await
            .is_ok()
    })
    .await;
    node.judge.wait_for(b"+card").await;
    drop(held);
    while node.had_frame() {}
    assert!(node.metric("souk_net_link_frames_received_total") as usize * Frame::LEN < 64 << 20);
}

fn resident_mib() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_and_identities_of_one_address_carry_no_more_frames_than_one() {
    const STRANGERS: usize = 8;
    let mut node = TestNode::start(config()).await;
    let address = node.address("tcp").await;
    let begun = std::time::Instant::now();
    let mut held = Vec::new();
    for n in 0..2 * STRANGERS {
        if n % 2 == 0 {
            held.push((Hostile::connect(&address).await, Vec::new()));
        }
        let (stranger, streams) = held.last_mut().unwrap();
        let mut stream = stranger.open("mix").await;
        let burst: Vec<u8> = (0..64).flat_map(|n| frame(n).to_bytes().to_vec()).collect();
        stream.write_all(&burst).await.unwrap();
        stream.flush().await.unwrap();
        streams.push(stream);
    }
    for _ in 0..2 * STRANGERS * 64 {
        assert!(node.next_frame().await.is_some());
    }
    // 1,024 frames, of which 512 come at once and the others at 200 in a second.
    let least = std::time::Duration::from_millis(2_500);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
}
