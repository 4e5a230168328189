//! What a provider said of its log: kept, handed on, and held against it.

mod support;

use souk_crypto::{MAX_SKEW_S, UnixTime, Verified, sign};
use souk_market::{
    capacity::{CAPACITY_LIFE_S, CAPACITY_PERIOD_S, Capacity, LogHead},
    directory::{CLAIM_LIFE_S, Directory, MAX_CONTRADICTIONS},
    log::{
        Checkpoint, ConsistencyProof, Contradiction, ContradictionError, Contradicts, Frontier,
        Hash, LogClaim, NodeSource, leaf_hash, origin, prove_consistency, root_of,
    },
    shares::Source,
    units::{Digest, Sequence},
};
use support::{NOW, Node, SOURCE, list, network};

const PERIOD_S: u64 = CAPACITY_PERIOD_S;

fn capacity(node: &Node, card: u64, at: UnixTime, size: u64, root: u8) -> Verified<Capacity> {
    let capacity = Capacity {
        node: node.node.public(),
        card: Sequence(card),
        at,
        levels: list(vec![]),
        log: Some(LogHead {
            size,
            root: Digest([root; 32]),
        }),
    };
    sign::sign(capacity, &node.card, &node.network).expect("valid")
}

fn claim(node: &Node, card: u64, at: UnixTime, size: u64, root: u8) -> LogClaim {
    let list = node.sub_keys.open(&network()).expect("a list");
    LogClaim::of_capacity(list, capacity(node, card, at, size, root)).expect("a claim")
}

/// A directory that knows the first card of each node.
fn directory(nodes: &[&Node]) -> Directory {
    let mut directory = Directory::new(network(), true);
    for node in nodes {
        directory.handle_card(NOW, SOURCE, node.card(1).as_bytes());
    }
    directory
}

fn hear(directory: &mut Directory, now: UnixTime, capacity: &Verified<Capacity>) {
    directory.handle_capacity(now, capacity.signed().as_bytes());
}

#[test]
fn the_last_claim_outlives_capacity_and_card_and_reaches_a_directory_that_heard_neither() {
    let node = Node::new(1);
    let id = node.node.public();
    let mut old = directory(&[&node]);
    hear(&mut old, NOW, &capacity(&node, 1, NOW, 7, 1));
    let later = NOW.plus_s(CAPACITY_LIFE_S + 1_000);
    old.handle_time(later);
    let day = NOW.plus_s(86_400);
    old.handle_time(day);
    assert!(old.card(day, &id).is_none(), "the card has ended");

    let mut young = Directory::new(network(), true);
    let news = old
        .snapshot(day, 1)
        .objects()
        .filter(|object| young.handle_claim(day, SOURCE, object))
        .count();
    assert_eq!(news, 1);
    assert_eq!(young.log_claim(&id).expect("known").size(), 7);
    let over = NOW.plus_s(CLAIM_LIFE_S);
    young.handle_time(UnixTime(over.0 - 1));
    assert!(young.log_claim(&id).is_some());
    young.handle_time(over);
    assert!(young.log_claim(&id).is_none(), "bounded in time");
}

#[test]
fn claims_of_nodes_that_nobody_knows_keep_none_of_a_known_one_out() {
    let mut full = directory(&[]).with_places_for_claims(8);
    for seed in 0..8 {
        let unknown = claim(&Node::new(1_000 + seed), 1, NOW, 1, 1);
        assert!(full.handle_claim(NOW, SOURCE, unknown.as_bytes()));
    }
    let late = claim(&Node::new(500), 1, NOW, 1, 1);
    assert!(!full.handle_claim(NOW, SOURCE, late.as_bytes()));
    let other = Source::Neighbour(2);
    assert!(full.handle_claim(NOW, other, late.as_bytes()));

    let known = Node::new(1);
    let id = known.node.public();
    full.handle_card(NOW, SOURCE, known.card(1).as_bytes());
    hear(&mut full, NOW, &capacity(&known, 1, NOW, 7, 1));
    assert_eq!(full.log_claim(&id).expect("kept").size(), 7);
    let fork = claim(&known, 1, NOW.plus_s(PERIOD_S), 7, 2);
    full.handle_claim(NOW, other, fork.as_bytes());
    assert!(full.contradiction(&id).is_some());
}

#[test]
fn a_claim_that_rides_in_a_capacity_message_does_not_travel_twice() {
    let node = Node::new(1);
    let mut directory = directory(&[&node]);
    hear(&mut directory, NOW, &capacity(&node, 1, NOW, 7, 1));
    assert_eq!(directory.snapshot(NOW, 1).objects().count(), 2);
}

#[test]
fn a_node_that_replaced_its_card_is_still_reminded_of_what_it_signed_before() {
    let node = Node::new(1);
    let mut directory = directory(&[]);
    directory.handle_card(NOW, SOURCE, node.card(2).as_bytes());
    hear(
        &mut directory,
        NOW,
        &capacity(&node, 1, NOW.minus_s(9_000), 7, 1),
    );
    let claim = directory.log_claim(&node.node.public()).expect("kept");
    assert_eq!((claim.size(), claim.root()), (7, Hash([1; 32])));
}

#[test]
fn nobody_else_can_claim_for_a_node() {
    let (node, stranger) = (Node::new(1), Node::new(2));
    let mut directory = directory(&[&node, &stranger]);
    let mut forged = capacity(&stranger, 1, NOW, 99, 1).into_object();
    forged.node = node.node.public();
    let forged = sign::sign(forged, &stranger.card, &network()).expect("signs");
    hear(&mut directory, NOW, &forged);
    assert!(directory.log_claim(&node.node.public()).is_none());

    let list = stranger.sub_keys.open(&network()).expect("a list");
    assert!(LogClaim::of_capacity(list, forged.clone()).is_err());
    let list = node.sub_keys.open(&network()).expect("a list");
    assert!(LogClaim::of_capacity(list, forged).is_err());
    let good = claim(&node, 1, NOW, 7, 1);
    for at in 0..good.as_bytes().len() {
        let mut bytes = good.as_bytes().to_vec();
        bytes[at] ^= 1;
        assert!(LogClaim::open(&bytes, &network()).is_err(), "byte {at}");
    }
    assert_eq!(
        LogClaim::open(good.as_bytes(), &network()).expect("opens"),
        good
    );
}

#[test]
fn a_key_speaks_for_its_node_until_its_list_has_ended() {
    let node = Node::new(1);
    let list = || node.sub_keys.open(&network()).expect("a list");
    let (from, to) = (list().window.from(), list().window.to());
    for (at, counts) in [
        (from.minus_s(86_400), true),
        (to.minus_s(1), true),
        (to.plus_s(MAX_SKEW_S - 1), true),
        (to.plus_s(MAX_SKEW_S), false),
    ] {
        let claim = LogClaim::of_capacity(list(), capacity(&node, 1, at, 7, 1));
        assert_eq!(claim.is_ok(), counts, "{at:?}");
    }
}

#[test]
fn two_roots_of_one_size_are_evidence_whichever_comes_first() {
    let node = Node::new(1);
    for (first, second) in [(1, 2), (2, 1)] {
        let mut directory = directory(&[&node]);
        hear(&mut directory, NOW, &capacity(&node, 1, NOW, 7, first));
        let at = NOW.plus_s(PERIOD_S);
        hear(&mut directory, at, &capacity(&node, 1, at, 7, second));
        let evidence = directory.poll_contradiction().expect("found");
        assert!(directory.poll_contradiction().is_none(), "told once");
        assert_eq!(evidence.node(), node.node.public());
        let Contradicts::Fork {
            size,
            first,
            second,
        } = evidence.how()
        else {
            panic!("{:?} is no fork", evidence.how());
        };
        assert_eq!(size, 7);
        assert_ne!(first, second);
        let read = Contradiction::open(&evidence.to_bytes(), &network()).expect("proves itself");
        assert_eq!(read, *evidence);
    }
}

#[test]
fn a_smaller_log_signed_later_is_a_rollback_and_one_that_arrives_late_is_not() {
    let node = Node::new(1);
    let at = NOW.plus_s(PERIOD_S);
    let (small, large) = (claim(&node, 1, NOW, 3, 1), claim(&node, 1, at, 7, 2));
    assert_eq!(Contradiction::between(&small, &large), None);
    assert_eq!(Contradiction::between(&large, &small), None);
    let shrunk = claim(&node, 1, at.plus_s(1), 3, 1);
    let evidence = Contradiction::between(&large, &shrunk).expect("a rollback");
    assert_eq!(evidence.how(), Contradicts::Rollback { from: 7, to: 3 });
    let read = Contradiction::open(&evidence.to_bytes(), &network()).expect("proves itself");
    assert_eq!(read, evidence);
}

#[test]
fn an_honest_node_whose_clock_was_set_back_is_not_blamed() {
    // A clock that is set back makes a new card, whose sequence rises.
    let node = Node::new(1);
    let before = claim(&node, 1, NOW.plus_s(100), 3, 1);
    let after = claim(&node, 2, NOW, 7, 2);
    assert_eq!(Contradiction::between(&before, &after), None);
}

struct Leaves(Vec<Hash>);

impl NodeSource for Leaves {
    type Error = std::convert::Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Self::Error> {
        let start = (index << level) as usize;
        let mut tree = Frontier::new();
        for leaf in &self.0[start..start + (1 << level)] {
            tree.append(*leaf, |_, _, _| ());
        }
        Ok(tree.root())
    }
}

#[test]
fn logs_of_two_sizes_that_do_not_extend_one_another_are_evidence_with_a_proof() {
    let node = Node::new(1);
    let keys = || node.sub_keys.open(&network()).expect("a list");
    let name = origin(network(), node.node.public()).expect("a name");
    let checkpoint = |size: u64, root: Hash| {
        let note = Checkpoint::new(name.clone(), size, root).sign(&node.log);
        LogClaim::of_checkpoint(keys(), &network(), &note.to_string()).expect("a claim")
    };
    let leaves = Leaves((0..11).map(|n| leaf_hash(&[n])).collect());
    let other = Leaves((50..61).map(|n| leaf_hash(&[n])).collect());
    let root = |leaves: &Leaves, size| root_of(leaves, size).expect("in memory");
    let proof = |size| -> ConsistencyProof {
        prove_consistency(&leaves, size, 11)
            .expect("in memory")
            .expect("in range")
    };
    let large = checkpoint(11, root(&leaves, 11));
    for size in 1..11 {
        let shown = root(&leaves, size);
        let evidence = Contradiction::by_prefix(
            checkpoint(size, root(&other, size)),
            large.clone(),
            shown,
            proof(size),
        )
        .expect("a fork");
        assert!(
            matches!(evidence.how(), Contradicts::Fork { size: at, second, .. } if at == size && second == shown)
        );
        let bytes = evidence.to_bytes();
        let read = Contradiction::open(&bytes, &network()).expect("proves itself");
        assert_eq!(read, evidence);
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(
                Contradiction::open(&bytes, &network()).is_err(),
                "byte {at}"
            );
        }
        // A log that does extend the smaller one proves nothing, and no other root can be proven.
        let honest = || checkpoint(size, shown);
        assert!(matches!(
            Contradiction::by_prefix(honest(), large.clone(), shown, proof(size)),
            Err(ContradictionError::None)
        ));
        assert!(matches!(
            Contradiction::by_prefix(honest(), large.clone(), root(&other, size), proof(size)),
            Err(ContradictionError::Proof(_))
        ));
    }
}

#[test]
fn evidence_is_bounded_and_one_node_has_one_place() {
    let mut kept = Directory::new(network(), true);
    for seed in 0..MAX_CONTRADICTIONS as u64 + 3 {
        let node = Node::new(seed);
        let forks = [(1, 2), (1, 3)].map(|(first, second)| {
            let (one, other) = (
                claim(&node, 1, NOW, 7, first),
                claim(&node, 1, NOW, 7, second),
            );
            Contradiction::between(&one, &other).expect("a fork")
        });
        let news = forks.map(|fork| kept.handle_contradiction(SOURCE, fork));
        assert_eq!(news, [seed < MAX_CONTRADICTIONS as u64, false]);
    }
    assert_eq!(kept.contradictions().count(), MAX_CONTRADICTIONS);
    let told = std::iter::from_fn(|| kept.poll_contradiction()).count();
    assert_eq!(told, MAX_CONTRADICTIONS);
    assert!(!kept.has_new_contradiction());
}

/// A node whose card came from `source` says two things of its log.
fn lie(directory: &mut Directory, node: &Node, source: Source) -> bool {
    directory.handle_card(NOW, source, node.card(1).as_bytes());
    hear(directory, NOW, &capacity(node, 1, NOW, 7, 1));
    let at = NOW.plus_s(PERIOD_S);
    hear(directory, at, &capacity(node, 1, at, 7, 2));
    directory.contradiction(&node.node.public()).is_some()
}

#[test]
fn nodes_made_up_for_it_push_out_no_evidence_and_keep_none_from_coming() {
    let [liar, beside_them, late, relied, own] = std::array::from_fn(|seed| Node::new(seed as u64));
    let (stranger, honest) = (Source::Neighbour(9), Source::Neighbour(2));
    let mut directory = directory(&[])
        .of_node(own.node.public())
        .relying_on([relied.node.public()]);
    assert!(lie(&mut directory, &liar, honest));
    // Its card came by the way of the stranger.
    assert!(lie(&mut directory, &beside_them, stranger));
    let made_up = |seed| Node::new(1_000 + seed);
    for seed in 0..3 * MAX_CONTRADICTIONS as u64 {
        let is_kept = lie(&mut directory, &made_up(seed), stranger);
        assert_eq!(is_kept, seed + 2 < MAX_CONTRADICTIONS as u64);
    }
    let told = std::iter::from_fn(|| directory.poll_contradiction()).count();
    assert_eq!(
        told, MAX_CONTRADICTIONS,
        "the rest of the flood says nothing"
    );

    assert!(
        lie(&mut directory, &late, honest),
        "their last one made room"
    );
    assert!(lie(&mut directory, &relied, stranger));
    assert!(lie(&mut directory, &own, stranger));
    for kept in [&liar, &beside_them, &late, &relied, &own] {
        assert!(directory.contradiction(&kept.node.public()).is_some());
    }
    assert_eq!(directory.contradictions().count(), MAX_CONTRADICTIONS);
    let first = made_up(0).node.public();
    assert!(directory.contradiction(&first).is_some(), "the latest went");
}

#[test]
fn who_means_to_lie_cannot_fill_the_table_first() {
    let (stranger, liar) = (Source::Neighbour(9), Node::new(1));
    let mut directory = directory(&[]);
    directory.handle_card(NOW, stranger, liar.card(1).as_bytes());
    for seed in 0..2 * MAX_CONTRADICTIONS as u64 {
        lie(&mut directory, &Node::new(1_000 + seed), stranger);
    }
    assert!(lie(&mut directory, &liar, Source::Neighbour(2)));
    assert!(directory.contradiction(&liar.node.public()).is_some());
}

#[test]
fn evidence_against_nodes_without_a_card_makes_room_first() {
    let mut directory = directory(&[]);
    let gone = Node::new(500);
    for root in [1, 2] {
        let claim = claim(&gone, 1, NOW, 7, root);
        directory.handle_claim(NOW, SOURCE, claim.as_bytes());
    }
    assert!(directory.contradiction(&gone.node.public()).is_some());
    for seed in 0..MAX_CONTRADICTIONS as u64 {
        assert!(lie(&mut directory, &Node::new(seed), SOURCE));
    }
    assert!(directory.contradiction(&gone.node.public()).is_none());
    assert!(!lie(&mut directory, &Node::new(600), SOURCE));
}
