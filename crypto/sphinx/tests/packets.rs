//! Packets and SURBs through real hops: what comes out is what went in, and nothing else passes.

use std::time::Duration;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use souk_sphinx::{
    Epoch, Hop, HopAddress, MixSecret, Packet, Peeled, Route, Surb,
    packet::{Body, HEADER_LEN, PACKET_LEN, PeelError, USABLE_LEN, build, peel},
    replay::{ReplayTags, TagRefused, TagSource},
    surb::{SURB_LEN, SurbError},
};

struct Hops {
    secrets: Vec<MixSecret>,
    route: Route,
    delays: Vec<Duration>,
}

fn hops(count: usize, rng: &mut StdRng) -> Hops {
    let secrets: Vec<MixSecret> = (0..count).map(|_| MixSecret::generate(rng)).collect();
    let hops = secrets
        .iter()
        .map(|secret| Hop {
            address: HopAddress::random(rng),
            key: secret.public(),
        })
        .collect();
    let delays = (1..=count as u64).map(Duration::from_millis).collect();
    Hops {
        secrets,
        route: Route::new(hops).expect("up to five hops"),
        delays,
    }
}

fn body(fill: u8) -> Body {
    let mut body = [fill; USABLE_LEN];
    body[0] = 1;
    body
}

/// Peels without a memory of tags.
fn open(secret: &MixSecret, packet: &Packet) -> Result<Peeled, PeelError> {
    peel(secret, packet, |_| Ok(()))
}

/// Takes all layers but the last off, and checks what each hop is told.
fn travel(hops: &Hops, mut packet: Packet) -> Packet {
    for (at, secret) in hops.secrets.iter().enumerate().take(hops.secrets.len() - 1) {
        let Ok(Peeled::Forward {
            next,
            delay,
            packet: onward,
        }) = open(secret, &packet)
        else {
            panic!("hop {at} cannot forward");
        };
        assert_eq!(next, hops.route.hops()[at + 1].address);
        assert_eq!(delay, hops.delays[at]);
        packet = onward;
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_packet_arrives_over_any_number_of_hops(seed: u64, count in 1usize..=5, fill: u8) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let hops = hops(count, rng);
        let packet = build(&hops.route, &body(fill), &hops.delays, rng).expect("built");
        let last = travel(&hops, packet);
        match open(hops.secrets.last().expect("one"), &last) {
            Ok(Peeled::Message { destination, body: arrived }) => {
                prop_assert_eq!(destination, hops.route.last().address);
                prop_assert_eq!(*arrived, body(fill));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_reply_comes_back_over_any_number_of_hops(seed: u64, count in 1usize..=5, fill: u8) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let hops = hops(count, rng);
        let (surb, recovery) = Surb::make(&hops.route, &hops.delays, Epoch(9), rng).expect("made");
        let surb = Surb::from_bytes(&surb.to_bytes()).expect("as written");
        prop_assert_eq!(surb.epoch(), Epoch(9));
        let (first, frame) = surb.send_with(&body(fill)).expect("used");
        prop_assert_eq!((first, frame.epoch), (hops.route.first().address, Epoch(9)));
        let last = travel(&hops, frame.packet);
        match open(hops.secrets.last().expect("one"), &last) {
            Ok(Peeled::Reply { destination, id, sealed }) => {
                prop_assert_eq!((destination, id), (hops.route.last().address, recovery.id()));
                prop_assert_eq!(*recovery.recover(sealed).expect("unharmed"), body(fill));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }

    /// A bit flipped in the header stops the packet at the next hop, before its tag is taken; a bit flipped in the
    /// payload is seen by whoever opens it. The one exception changes nothing: X25519 ignores the top bit of a key, so
    /// that packet has the same tag as the original.
    #[test]
    fn a_changed_packet_is_noticed(seed: u64, at in 0..PACKET_LEN, bit in 0u8..8) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let hops = hops(2, rng);
        let packet = build(&hops.route, &body(5), &hops.delays, rng).expect("built");
        let mut changed = *packet.as_bytes();
        changed[at] ^= 1 << bit;
        let changed = Packet::from_bytes(&changed).expect("one size");
        let mut tags = ReplayTags::new(10);
        let opened = peel(&hops.secrets[0], &changed, |tag| tags.insert(tag, TagSource(0)));
        if at == 31 && bit == 7 {
            prop_assert!(opened.is_ok());
            let again = peel(&hops.secrets[0], &packet, |tag| tags.insert(tag, TagSource(0)));
            prop_assert_eq!(again.err(), Some(PeelError::Tag(TagRefused::Seen)));
        } else if at < HEADER_LEN {
            prop_assert_eq!(opened.err(), Some(PeelError::Header));
            prop_assert!(tags.is_empty(), "a forgery took a tag");
        } else {
            let Ok(Peeled::Forward { packet, .. }) = opened else { panic!("the header is sound") };
            prop_assert_eq!(open(&hops.secrets[1], &packet).err(), Some(PeelError::Payload));
        }
    }

    #[test]
    fn bytes_of_a_stranger_never_pass(seed: u64, bytes in proptest::collection::vec(any::<u8>(), 64)) {
        let rng = &mut StdRng::seed_from_u64(seed);
        let secret = MixSecret::generate(rng);
        let mut packet = [0; PACKET_LEN];
        packet.iter_mut().zip(bytes.iter().cycle()).for_each(|(to, from)| *to = *from);
        let packet = Packet::from_bytes(&packet).expect("one size");
        prop_assert_eq!(open(&secret, &packet).err(), Some(PeelError::Header));
        prop_assert!(Surb::from_bytes(&bytes).is_err());
    }
}

#[test]
fn a_packet_passes_a_hop_once() {
    let rng = &mut StdRng::seed_from_u64(1);
    let hops = hops(3, rng);
    let packet = build(&hops.route, &body(1), &hops.delays, rng).expect("built");
    let mut tags = ReplayTags::new(10);
    assert!(
        peel(&hops.secrets[0], &packet, |tag| tags
            .insert(tag, TagSource(0)))
        .is_ok()
    );
    let again = peel(&hops.secrets[0], &packet, |tag| {
        tags.insert(tag, TagSource(0))
    });
    assert_eq!(again.err(), Some(PeelError::Tag(TagRefused::Seen)));
}

#[test]
fn a_surb_has_one_size_and_so_one_seed() {
    let rng = &mut StdRng::seed_from_u64(2);
    let hops = hops(4, rng);
    let (surb, _) = Surb::make(&hops.route, &hops.delays, Epoch(1), rng).expect("made");
    let bytes = surb.to_bytes();
    for seeds in [0usize, 2, 5] {
        let mut other = bytes.to_vec();
        other.resize(SURB_LEN - 16 + 16 * seeds, 0);
        assert_eq!(
            Surb::from_bytes(&other).err(),
            Some(SurbError::Length { got: other.len() })
        );
    }
}

#[test]
fn the_recovery_material_of_another_surb_opens_nothing() {
    let rng = &mut StdRng::seed_from_u64(3);
    let hops = hops(2, rng);
    let (surb, recovery) = Surb::make(&hops.route, &hops.delays, Epoch(1), rng).expect("made");
    let (_, other) = Surb::make(&hops.route, &hops.delays, Epoch(1), rng).expect("made");
    let (_, frame) = surb.send_with(&body(4)).expect("used");
    let last = travel(&hops, frame.packet);
    let sealed = || match open(&hops.secrets[1], &last) {
        Ok(Peeled::Reply { sealed, .. }) => sealed,
        other => panic!("{other:?}"),
    };
    assert_eq!(other.recover(sealed()).err(), Some(PeelError::Payload));
    // The wrong attempt did not cost the right one.
    assert!(recovery.recover(sealed()).is_ok());
}
