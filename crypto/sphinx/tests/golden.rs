//! Golden packets: bytes made by `sphinx-packet` itself are pinned in `/fixtures/sphinx` and opened by our types, and
//! packets of ours are opened by `sphinx-packet`.
//!
//! `SOUK_PIN_FIXTURES=1 cargo test -p souk-sphinx --test golden` writes new ones, for a new version of the wire only.

use std::{path::PathBuf, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use souk_sphinx::{
    Epoch, Hop, HopAddress, MixSecret, Packet, Peeled, Route, Surb, SurbId,
    packet::{Body, HEADER_LEN, PAYLOAD_LEN, PeelError, USABLE_LEN, build, peel},
};
use sphinx_packet::{
    ProcessedPacketData, SURB, SURBMaterial, SphinxPacket, SphinxPacketBuilder,
    header::delays::Delay,
    payload::Payload,
    route::{Destination, DestinationAddressBytes, Node, NodeAddressBytes},
    version::{SINGLE_SEED_SURB_VERSION, Version},
};
use x25519_dalek::{PublicKey, StaticSecret};

const SURB_ID: [u8; 16] = [0x5b; 16];
const HOPS: usize = 4;

fn secret(n: usize) -> [u8; 32] {
    [n as u8 + 1; 32]
}

fn address(n: usize) -> [u8; 32] {
    [0x10 + n as u8; 32]
}

fn delay(n: usize) -> Duration {
    Duration::from_millis(10 * (n as u64 + 1))
}

fn body() -> Body {
    std::array::from_fn(|at| (at % 251) as u8)
}

fn their_nodes() -> Vec<Node> {
    (0..HOPS)
        .map(|n| {
            let key = PublicKey::from(&StaticSecret::from(secret(n)));
            Node::new(NodeAddressBytes::from_bytes(address(n)), key)
        })
        .collect()
}

fn their_delays() -> Vec<Delay> {
    (0..HOPS)
        .map(|n| Delay::new_from_nanos(delay(n).as_nanos() as u64))
        .collect()
}

fn their_destination(identifier: [u8; 16]) -> Destination {
    Destination::new(
        DestinationAddressBytes::from_bytes(address(HOPS - 1)),
        identifier,
    )
}

fn their_packet(version: Version) -> Vec<u8> {
    SphinxPacketBuilder::new()
        .with_version(version)
        .with_payload_size(PAYLOAD_LEN)
        .with_initial_secret(&StaticSecret::from([0x77; 32]))
        .build_packet(
            body(),
            &their_nodes(),
            &their_destination([0; 16]),
            &their_delays(),
        )
        .expect("four hops")
        .to_bytes()
}

fn our_route() -> Route {
    let hop = |n| Hop {
        address: HopAddress(address(n)),
        key: MixSecret::from_bytes(&secret(n)).public(),
    };
    Route::new((0..HOPS).map(hop).collect()).expect("four hops")
}

/// A pinned file, written first when fixtures are pinned anew.
fn fixture(name: &str, make: impl FnOnce() -> Vec<u8>) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../../fixtures/sphinx", name]
        .iter()
        .collect();
    if std::env::var_os("SOUK_PIN_FIXTURES").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        let text: String = make()
            .chunks(60)
            .map(|line| hex::encode(line) + "\n")
            .collect();
        std::fs::write(&path, text).expect("writable");
    }
    let text = std::fs::read_to_string(&path).expect("the fixture is pinned");
    hex::decode(text.split_whitespace().collect::<String>()).expect("hex")
}

/// Opens a packet with the secrets of all hops, and checks what each is told.
fn open_with_ours(bytes: &[u8]) -> Peeled {
    let mut packet = Packet::from_bytes(bytes).expect("one size");
    for n in 0..HOPS - 1 {
        match peel(&MixSecret::from_bytes(&secret(n)), &packet, |_| Ok(())) {
            Ok(Peeled::Forward {
                next,
                delay: told,
                packet: onward,
            }) => {
                assert_eq!((next, told), (HopAddress(address(n + 1)), delay(n)));
                packet = onward;
            }
            other => panic!("hop {n}: {other:?}"),
        }
    }
    peel(&MixSecret::from_bytes(&secret(HOPS - 1)), &packet, |_| {
        Ok(())
    })
    .expect("the last hop opens it")
}

fn open_with_theirs(bytes: &[u8]) -> ([u8; 16], Payload) {
    let mut packet = SphinxPacket::from_bytes(bytes).expect("one size");
    for n in 0..HOPS {
        let processed = packet
            .process(&StaticSecret::from(secret(n)))
            .expect("sound");
        match processed.data {
            ProcessedPacketData::ForwardHop {
                next_hop_packet,
                next_hop_address,
                delay: told,
            } => {
                assert_eq!(next_hop_address.to_bytes(), address(n + 1));
                assert_eq!(told.to_duration(), delay(n));
                packet = next_hop_packet;
            }
            ProcessedPacketData::FinalHop {
                identifier,
                payload,
                ..
            } => return (identifier, payload),
        }
    }
    panic!("the packet did not end");
}

#[test]
fn pinned_packets_of_sphinx_packet_are_opened_by_ours() {
    let bytes = fixture("forward-v260.hex", || {
        their_packet(SINGLE_SEED_SURB_VERSION)
    });
    match open_with_ours(&bytes) {
        Peeled::Message {
            destination,
            body: arrived,
        } => {
            assert_eq!(
                (destination, *arrived),
                (HopAddress(address(HOPS - 1)), body())
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn pinned_packets_of_older_formats_are_refused_at_every_hop() {
    for (version, name) in [
        (1, "forward-v1.hex"),
        (257, "forward-v257.hex"),
        (258, "forward-v258.hex"),
        (259, "forward-v259.hex"),
    ] {
        let bytes = fixture(name, || their_packet(Version::new(version)));
        let mut packet = Packet::from_bytes(&bytes).expect("one size");
        for n in 0..HOPS {
            let opened = peel(&MixSecret::from_bytes(&secret(n)), &packet, |_| Ok(()));
            assert_eq!(
                opened.err(),
                Some(PeelError::Version { got: version }),
                "hop {n}"
            );
            if n < HOPS - 1 {
                let theirs = SphinxPacket::from_bytes(packet.as_bytes()).expect("one size");
                let processed = theirs
                    .process(&StaticSecret::from(secret(n)))
                    .expect("they accept it");
                let ProcessedPacketData::ForwardHop {
                    next_hop_packet, ..
                } = processed.data
                else {
                    panic!("four hops")
                };
                packet = Packet::from_bytes(&next_hop_packet.to_bytes()).expect("one size");
            }
        }
    }
}

#[test]
fn a_pinned_reply_of_sphinx_packet_arrives_with_its_id() {
    let bytes = fixture("reply-v260.hex", || {
        let material = SURBMaterial::new(
            their_nodes(),
            their_delays(),
            their_destination(SURB_ID),
            SINGLE_SEED_SURB_VERSION,
        );
        let (surb, _) =
            SURB::new_recoverable(StaticSecret::from([0x78; 32]), material).expect("made");
        surb.use_surb(&body(), PAYLOAD_LEN)
            .expect("used")
            .0
            .to_bytes()
    });
    match open_with_ours(&bytes) {
        Peeled::Reply {
            destination, id, ..
        } => {
            assert_eq!(
                (destination, Some(id)),
                (HopAddress(address(HOPS - 1)), SurbId::from_bytes(SURB_ID))
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn packets_of_ours_are_opened_by_sphinx_packet() {
    let rng = &mut StdRng::seed_from_u64(4);
    let delays: Vec<Duration> = (0..HOPS).map(delay).collect();
    let packet = build(&our_route(), &body(), &delays, rng).expect("built");
    let (id, payload) = open_with_theirs(packet.as_bytes());
    assert_eq!(id, [0; 16]);
    assert_eq!(payload.recover_plaintext().expect("unharmed"), body());
}

#[test]
fn surbs_of_ours_are_used_by_sphinx_packet() {
    let rng = &mut StdRng::seed_from_u64(5);
    let delays: Vec<Duration> = (0..HOPS).map(delay).collect();
    let (surb, recovery) = Surb::make(&our_route(), &delays, Epoch(3), rng).expect("made");
    let bytes = surb.to_bytes();
    let (block, epoch) = bytes.split_at(HEADER_LEN + 32 + 16);
    assert_eq!(epoch, [0, 0, 0, 3]);
    let theirs = SURB::from_bytes(block).expect("theirs reads it");
    assert_eq!(
        (theirs.materials_count(), theirs.first_hop().to_bytes()),
        (1, address(0))
    );
    let (packet, _) = theirs.use_surb(&body(), PAYLOAD_LEN).expect("used");
    match open_with_ours(&packet.to_bytes()) {
        Peeled::Reply { id, sealed, .. } => {
            assert_eq!(id, recovery.id());
            assert_eq!(*recovery.recover(sealed).expect("unharmed"), body());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_payload_that_is_not_filled_is_refused() {
    let short = SphinxPacketBuilder::new()
        .with_version(SINGLE_SEED_SURB_VERSION)
        .with_payload_size(PAYLOAD_LEN)
        .build_packet(
            vec![1; USABLE_LEN - 1],
            &their_nodes()[..1],
            &their_destination([0; 16]),
            &their_delays()[..1],
        )
        .expect("one hop");
    let packet = Packet::from_bytes(&short.to_bytes()).expect("one size");
    let opened = peel(&MixSecret::from_bytes(&secret(0)), &packet, |_| Ok(()));
    assert_eq!(opened.err(), Some(PeelError::Payload));
}
