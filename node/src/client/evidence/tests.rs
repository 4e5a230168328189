use souk_attest::{RootId, soft::TdxRecipe};

use super::*;
use crate::{
    attest::minted::{Minted, card, clock, minted, recipe},
    market_support::{NOW, Node},
};

/// A policy for minted evidence under `root`, with `mr_td` as its reference value.
fn policy(root: RootId, mr_td: &str) -> Policy {
    let TdxRecipe { td, .. } = recipe();
    let [r0, r1, r2, r3] = td.rtmr;
    let text = format!(
        "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{root}\"]\n\n[[measurement]]\nname = \"minted\"\ntee = \"tdx\"\nmr_td = \"{mr_td}\"\nrtmr0 = \"{r0}\"\nrtmr1 = \"{r1}\"\nrtmr2 = \"{r2}\"\nrtmr3 = \"{r3}\"\n"
    );
    Policy::parse(&text).expect("a policy")
}

fn judgement(node: &Node, made: &Minted, policy: &Policy) -> Judgement {
    let folder = tempfile::tempdir().expect("a folder");
    let pieces = Pieces::open(folder.path()).expect("opens");
    let wanted: Wanted = made.bytes.keys().map(|name| (*name, Source::Own)).collect();
    for bytes in made.bytes.values() {
        pieces.put(bytes, &wanted);
    }
    let card = card(node, 1, &made.reference);
    let claim = Claim::of_card(&card, &node.network, clock()).next();
    let claim = claim.expect("the card names evidence");
    let mut cache = VerifiedCache::new(policy.trust());
    judge_one(&claim, |name| pieces.get(name), &mut cache, policy, NOW)
}

fn reason(judgement: &Judgement) -> (Option<Tee>, &'static str) {
    match judgement {
        Judgement::Refused { kind, reason, .. } => (*kind, reason),
        Judgement::Accepted { .. } => panic!("it is accepted"),
    }
}

#[test]
fn a_policy_that_names_root_and_measurement_accepts_and_says_none_test() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    let mr_td = recipe().td.mr_td.to_string();
    let judged = judgement(&node, &made, &policy(made.root, &mr_td));
    let kind = Tee::NoneTest;
    assert_eq!(judged, Judgement::Accepted { kind });
    let other = policy(RootId([1; 32]), &mr_td);
    assert_eq!(
        reason(&judgement(&node, &made, &other)),
        (None, "unknown-root")
    );
}

#[test]
fn a_measurement_that_is_off_by_one_bit_is_refused() {
    let node = Node::new(1);
    let mut altered = recipe();
    altered.td.mr_td.0[47] ^= 1;
    let made = minted(&node, altered, |_| ());
    let policy = policy(made.root, &recipe().td.mr_td.to_string());
    let judged = judgement(&node, &made, &policy);
    assert_eq!(reason(&judged), (Some(Tee::NoneTest), "measurement"));
}

#[test]
fn without_a_reference_value_nothing_is_accepted() {
    let node = Node::new(1);
    let made = minted(&node, recipe(), |_| ());
    let text = format!(
        "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{}\"]\n",
        made.root
    );
    let policy = Policy::parse(&text).expect("a policy");
    let judged = judgement(&node, &made, &policy);
    assert_eq!(reason(&judged), (Some(Tee::NoneTest), "no-reference-value"));
}

#[test]
fn a_guest_under_debug_is_refused() {
    let node = Node::new(1);
    let mut debug = recipe();
    debug.td.attributes[0] |= 1;
    let made = minted(&node, debug, |_| ());
    let policy = policy(made.root, &recipe().td.mr_td.to_string());
    assert_eq!(reason(&judgement(&node, &made, &policy)).1, "debug");
}

#[test]
fn evidence_that_no_entry_has_is_refused_by_name() {
    let node = Node::new(1);
    let mut made = minted(&node, recipe(), |_| ());
    made.bytes.clear();
    let policy = policy(made.root, &recipe().td.mr_td.to_string());
    assert_eq!(
        reason(&judgement(&node, &made, &policy)),
        (None, "evidence-missing")
    );
}
