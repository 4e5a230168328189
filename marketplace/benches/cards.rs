//! How much of the speed of bare Ed25519 is left when cards are verified.
//!
//! `cards/first` opens a card of a node that is not known yet: two signatures; `cards/refresh` the next card of a node
//! whose sub-keys are known: one. `ed25519/strict` is one bare strict verification of as many bytes.

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use criterion::Criterion;
use ed25519_dalek::{Signer as _, SigningKey};
use souk_market::card::VerifiedCard;

use measured::ratio;

fn main() {
    let mut c = Criterion::default().configure_from_args();
    let node = support::Node::new(1);
    let (card, next) = (node.card(1), node.card(2));
    let key = SigningKey::from_bytes(&[7; 32]);
    let signature = key.sign(card.as_bytes());
    let public = key.verifying_key().to_bytes();

    let strict = || {
        let public = ed25519_dalek::VerifyingKey::from_bytes(black_box(&public));
        let public = public.expect("a key");
        public
            .verify_strict(black_box(card.as_bytes()), &signature)
            .expect("verifies");
    };
    let first =
        || VerifiedCard::open(black_box(card.as_bytes()), &node.network, |_| None).expect("opens");
    let refresh = || {
        VerifiedCard::open(black_box(next.as_bytes()), &node.network, |_| Some(&card))
            .expect("opens")
    };
    c.bench_function("ed25519/strict", |b| b.iter(strict));
    c.bench_function("cards/first", |b| b.iter(first));
    c.bench_function("cards/refresh", |b| b.iter(refresh));
    let strict_twice = || (strict(), strict());
    ratio("card-first", first, strict_twice);
    ratio("card-refresh", refresh, strict);
}
