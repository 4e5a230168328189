use souk_attest::{RootId, Trust};

use super::*;
use crate::{
    attest::minted::{Bytes, card, clock, end, minted, minted_under, recipe},
    market_support::{NOW, Node},
};

/// What becomes of the only claim of a card at `now`, for who names `root`.
fn outcome(card: &VerifiedCard, bytes: &Bytes, root: RootId, now: UnixTime) -> Outcome {
    let mut cache = VerifiedCache::new(Trust::with_test_roots([root]));
    let network = Node::new(1).network;
    let claim = Claim::of_card(card, &network, clock()).next();
    let claim = claim.expect("the card names evidence");
    examine(&claim, |name| bytes.get(name).cloned(), &mut cache, now)
}

/// The name of the reason, and whose fault it is.
fn flaw(card: &VerifiedCard, bytes: &Bytes, root: RootId, now: UnixTime) -> (&'static str, Blame) {
    match outcome(card, bytes, root, now) {
        Outcome::Flawed(flaw) => (flaw.reason(), flaw.blame()),
        other => panic!("{other:?} is no flaw"),
    }
}

#[test]
fn evidence_that_binds_node_and_card_key_is_sound_under_its_root_only() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    let card = card(&node, 1, &made.reference);
    assert!(matches!(
        outcome(&card, &made.bytes, made.root, NOW),
        Outcome::Sound(_)
    ));
    assert!(matches!(
        outcome(&card, &Bytes::new(), made.root, NOW),
        Outcome::Absent
    ));
    let (reason, _) = flaw(&card, &made.bytes, RootId([0; 32]), NOW);
    assert_eq!(reason, "unknown-root");
}

#[test]
fn a_wrong_key_in_the_report_data_counts_against_who_published_it() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |binding| binding.attested_key[0] ^= 1);
    let card = card(&node, 1, &made.reference);
    let told = flaw(&card, &made.bytes, made.root, NOW);
    assert_eq!(told, ("report-data", Blame::Publisher));
}

#[test]
fn a_replayed_quote_of_another_node_counts_against_who_published_it() {
    let (honest, thief) = (Node::new(1), Node::new(2));
    let made = minted(&honest, recipe(), |_| ());
    let card = card(&thief, 1, &made.reference);
    let told = flaw(&card, &made.bytes, made.root, NOW);
    assert_eq!(told, ("report-data", Blame::Publisher));
}

#[test]
fn another_policy_or_epoch_than_the_card_says_is_another_binding() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    let mut other = made.reference.clone();
    other.policy.0[0] ^= 1;
    let (reason, _) = flaw(&card(&node, 1, &other), &made.bytes, made.root, NOW);
    assert_eq!(reason, "report-data");
    let mut other = made.reference.clone();
    other.epoch -= 1;
    let (reason, _) = flaw(&card(&node, 1, &other), &made.bytes, made.root, NOW);
    assert_eq!(reason, "report-data");
}

#[test]
fn swapped_collateral_is_not_believed() {
    let node = Node::new(1);
    let rng = ring::rand::SystemRandom::new();
    let root = souk_attest::soft::TestRoot::new(NOW, &rng).expect("drawn");
    let made = minted_under(&root, &node, recipe(), |_| ());
    let mut elsewhere = recipe();
    elsewhere.fmspc[5] ^= 1;
    elsewhere.collateral_fmspc[5] ^= 1;
    let other = minted_under(&root, &node, elsewhere, |_| ());
    let mut reference = made.reference;
    reference.collateral = other.reference.collateral;
    let mut bytes = made.bytes;
    bytes.extend(other.bytes);
    let (reason, _) = flaw(&card(&node, 1, &reference), &bytes, made.root, NOW);
    assert!(
        ["other-platform", "signature", "chain"].contains(&reason),
        "{reason}"
    );
}

#[test]
fn a_clock_that_is_early_or_late_refuses_and_blames_nobody_for_the_future() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    let card = card(&node, 1, &made.reference);
    let start = clock().start(clock().at(NOW));
    let early = start.minus_s(MAX_SKEW_S + 1);
    assert_eq!(
        flaw(&card, &made.bytes, made.root, early),
        ("not-yet-valid", Blame::Clock)
    );
    let late = end().plus_s(MAX_SKEW_S);
    let (reason, blame) = flaw(&card, &made.bytes, made.root, late);
    assert_eq!((reason, blame), ("expired", Blame::Collateral));
    assert!(matches!(
        outcome(&card, &made.bytes, made.root, late.minus_s(1)),
        Outcome::Sound(_)
    ));
}

#[test]
fn a_card_cannot_make_a_software_tee_look_like_a_real_one() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    for claimed in [Tee::Tdx, Tee::SevSnp] {
        let mut reference = made.reference.clone();
        reference.kind = u16::try_from(claimed.code()).expect("small");
        let told = flaw(&card(&node, 1, &reference), &made.bytes, made.root, NOW);
        assert_eq!(told, ("kind", Blame::Publisher));
    }
    let mut reference = made.reference;
    reference.kind = 77;
    let (reason, _) = flaw(&card(&node, 1, &reference), &made.bytes, made.root, NOW);
    assert_eq!(reason, "unknown-kind");
}

#[test]
fn bytes_in_another_form_are_not_the_evidence_of_a_card() {
    let node = Node::new(1);
    let mut made = minted(&node, recipe(), |_| ());
    let mut padded = made.bytes[&made.reference.digest].clone();
    padded.push(0);
    let name = Digest(EvidenceDigest::of(souk_attest::Tee::Tdx, &padded).0);
    made.bytes.insert(name, padded);
    made.reference.digest = name;
    let told = flaw(
        &card(&node, 1, &made.reference),
        &made.bytes,
        made.root,
        NOW,
    );
    assert_eq!(told, ("malformed", Blame::Publisher));
}
