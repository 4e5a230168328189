//! One hop of the mix: no change of a packet slips past the record of replays, and none makes a hop panic.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng as _, rngs::StdRng};
use souk_sphinx::{
    Hop, HopAddress, MixSecret, Packet, ReplayTag, Route,
    packet::{PACKET_LEN, USABLE_LEN, build, peel},
};

struct Genuine {
    secret: MixSecret,
    packet: Packet,
    tag: ReplayTag,
}

static GENUINE: LazyLock<Genuine> = LazyLock::new(|| {
    let secret = MixSecret::from_bytes(&[5; 32]);
    let hop = |secret: &MixSecret, address| Hop {
        address: HopAddress([address; 32]),
        key: secret.public(),
    };
    let next = MixSecret::from_bytes(&[6; 32]);
    let route = Route::new(vec![hop(&secret, 1), hop(&next, 2)]).expect("two nodes");
    let mut rng = StdRng::from_seed([7; 32]);
    let delays = [Duration::from_millis(1); 2];
    let packet = build(&route, &[8; USABLE_LEN], &delays, &mut rng).expect("a packet");
    let mut tag = None;
    peel(&secret, &packet, |t| {
        tag = Some(t);
        Ok(())
    })
    .expect("genuine");
    let tag = tag.expect("taken");
    Genuine {
        secret,
        packet,
        tag,
    }
});

fuzz_target!(|patch: &[u8]| {
    let genuine = &*GENUINE;
    let mut changed = *genuine.packet.as_bytes();
    changed
        .iter_mut()
        .zip(patch)
        .for_each(|(byte, patch)| *byte ^= patch);
    passes_only_with_its_tag(genuine, &changed);

    let mut made_up = [0; PACKET_LEN];
    made_up
        .iter_mut()
        .zip(patch)
        .for_each(|(byte, patch)| *byte = *patch);
    passes_only_with_its_tag(genuine, &made_up);
});

fn passes_only_with_its_tag(genuine: &Genuine, bytes: &[u8]) {
    let packet = Packet::from_bytes(bytes).expect("the one size");
    let peeled = peel(&genuine.secret, &packet, |tag| {
        assert!(tag == genuine.tag, "a changed packet has a tag of its own");
        Ok(())
    });
    if let Ok(peeled) = peeled {
        // A hop on the way cannot see a changed payload; but it must be this packet's header.
        assert!(
            matches!(peeled, souk_sphinx::Peeled::Forward { next, .. } if next == HopAddress([2; 32]))
        );
    }
}
