//! Peeling with our types against `sphinx-packet` alone.

#[path = "../../benches/measured/mod.rs"]
mod measured;

use std::{hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion};
use souk_sphinx::{
    Epoch, Hop, HopAddress, MixSecret, Packet, Route, Surb,
    packet::{USABLE_LEN, build, peel},
    replay::{ReplayTag, ReplayTags, TagSource},
};
use sphinx_packet::SphinxPacket;
use x25519_dalek::StaticSecret;

use measured::ratio;

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let rng = &mut rand::rng();
    let secrets: Vec<MixSecret> = (0..4).map(|_| MixSecret::generate(rng)).collect();
    let hops = secrets
        .iter()
        .map(|secret| Hop {
            address: HopAddress::random(rng),
            key: secret.public(),
        })
        .collect();
    let route = Route::new(hops).expect("four hops");
    let delays = [Duration::from_millis(50); 4];
    let packet = build(&route, &[7; USABLE_LEN], &delays, rng).expect("built");

    let mut group = c.benchmark_group("peel");
    let raw_secret = StaticSecret::from(*secrets[0].to_bytes());
    let alone = || {
        let packet = SphinxPacket::from_bytes(black_box(packet.as_bytes())).expect("one size");
        packet.process(&raw_secret).expect("sound")
    };
    // A table as full as after some minutes of traffic, so that the cache misses are in the figure.
    let mut tags = ReplayTags::new(2_000_000);
    let source = TagSource(0);
    for n in 0..1_000_000u64 {
        let tag = ReplayTag::from_bytes(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        tags.insert(tag, source).expect("room");
    }
    let mut ours = || {
        let take = |tag: ReplayTag| {
            let taken = tags.insert(tag, source);
            // The same packet again and again: what is measured is the look-up, which comes first either way.
            let _ = black_box(taken);
            Ok(())
        };
        peel(&secrets[0], black_box(&packet), take).expect("sound")
    };
    group.bench_function("sphinx-packet alone", |b| b.iter(alone));
    group.bench_function("ours, with the replay tag", |b| b.iter(&mut ours));
    group.finish();

    let mut group = c.benchmark_group("build");
    group.bench_function("packet", |b| {
        b.iter(|| build(&route, &[7; USABLE_LEN], &delays, &mut rand::rng()).expect("built"));
    });
    group.bench_function("SURB", |b| {
        b.iter(|| Surb::make(&route, &delays, Epoch(1), &mut rand::rng()).expect("made"));
    });
    group.bench_function("packet from bytes", |b| {
        b.iter_batched(
            || packet.clone(),
            |packet| Packet::from_bytes(packet.as_bytes()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
    ratio("peel", ours, alone);
}
