//! The directory and the comparison of card sets, seen from outside.

mod support;

use std::error::Error;

use proptest::prelude::*;
use souk_crypto::{UnixTime, domain};
use souk_market::{
    capacity::{CAPACITY_PERIOD_S, Level},
    card::{MAX_CARD_LIFE_S, Transport, VerifiedCard},
    directory::{Directory, Ignored, MAX_CARDS, MAX_TOMBSTONES, Rejected, UPDATE_BURST, Verdict},
    quorum::{Gathering, LeftOut, SetError, WrongClock},
    retirement::{VerifiedRetirement, agree_to_succeed},
    shares::Source,
    units::Sequence,
};
use support::{NOW, Node, SOURCE, address, list, network};

fn directory() -> Directory {
    Directory::new(network(), true)
}

fn assert_ignored(verdict: Verdict, why: Ignored) {
    assert!(
        matches!(verdict, Verdict::Ignore(w) if w == why),
        "{verdict:?} is not {why:?}"
    );
}

#[test]
fn a_good_card_is_passed_on_once() {
    let (node, mut directory) = (Node::new(1), directory());
    let card = node.card(1);
    assert!(matches!(
        directory.handle_card(NOW, SOURCE, card.as_bytes()),
        Verdict::Accept
    ));
    assert_ignored(
        directory.handle_card(NOW, SOURCE, card.as_bytes()),
        Ignored::Known,
    );
    assert_eq!(
        directory.card(NOW, &card.node).expect("held").digest(),
        card.digest()
    );
}

#[test]
fn a_higher_sequence_wins_and_a_lower_one_is_no_news() {
    let (node, mut directory) = (Node::new(1), directory());
    let (old, new) = (node.card(1), node.card(2));
    assert!(matches!(
        directory.handle_card(NOW, SOURCE, new.as_bytes()),
        Verdict::Accept
    ));
    assert_ignored(
        directory.handle_card(NOW, SOURCE, old.as_bytes()),
        Ignored::Older,
    );
    assert_eq!(
        directory.card(NOW, &new.node).expect("held").sequence,
        Sequence(2)
    );
}

#[test]
fn two_cards_under_one_sequence_are_both_unused_and_kept_as_proof() {
    let (node, mut directory) = (Node::new(1), directory());
    let first = node.card(1);
    let second = node.sign({
        let mut card = node.plain_card(1);
        card.addresses = list(vec![address("/ip4/127.0.0.1/tcp/9")]);
        card
    });
    directory.handle_card(NOW, SOURCE, first.as_bytes());
    assert!(matches!(
        directory.handle_card(NOW, SOURCE, second.as_bytes()),
        Verdict::Accept
    ));
    assert!(directory.card(NOW, &first.node).is_none());
    assert_eq!(directory.cards(NOW).count(), 0);
    let proof = directory.equivocations().next().expect("a proof");
    assert_eq!(
        (proof.first.digest(), proof.second.digest()),
        (first.digest(), second.digest())
    );
    // A card with a higher sequence is the way back.
    assert!(matches!(
        directory.handle_card(NOW, SOURCE, node.card(2).as_bytes()),
        Verdict::Accept
    ));
    assert!(directory.card(NOW, &first.node).is_some());
}

#[test]
fn a_card_key_that_its_node_has_replaced_says_nothing_any_more() {
    let (stolen, node) = (Node::new(1), Node::new(1).rotated(7));
    let mut directory = directory();
    let take = |directory: &mut Directory, card: &VerifiedCard| {
        directory.handle_card(NOW, SOURCE, card.as_bytes())
    };
    assert!(matches!(
        take(&mut directory, &stolen.card(u64::MAX)),
        Verdict::Accept
    ));
    // The later list wins under whatever sequence.
    let honest = node.card(5);
    assert!(matches!(take(&mut directory, &honest), Verdict::Accept));
    for sequence in [1, 5, 6, u64::MAX - 1] {
        let card = stolen.card(sequence);
        assert_ignored(take(&mut directory, &card), Ignored::Withdrawn);
    }
    let held = directory.card(NOW, &honest.node).expect("usable");
    assert_eq!(held.digest(), honest.digest());
    assert_eq!(directory.equivocations().count(), 0);
    assert!(matches!(
        take(&mut directory, &node.card(6)),
        Verdict::Accept
    ));
}

#[test]
fn one_entry_that_knows_a_later_list_is_enough_to_leave_out_what_it_withdrew() {
    let (stolen, node) = (Node::new(1), Node::new(1).rotated(7));
    let mut sets = [directory(), directory(), directory()];
    for set in &mut sets {
        set.handle_card(NOW, SOURCE, stolen.card(u64::MAX).as_bytes());
    }
    let id = stolen.node.public();
    let all: Vec<_> = sets.iter().collect();
    assert!(gather(&all, 2).card(&id).is_some());
    sets[0].handle_card(NOW, SOURCE, node.card(5).as_bytes());
    let all: Vec<_> = sets.iter().collect();
    let market = gather(&all, 2);
    assert!(market.card(&id).is_none());
    assert_eq!(market.left_out, [(id, LeftOut::NoQuorum { seen: 1 })]);
    sets[1].handle_card(NOW, SOURCE, node.card(5).as_bytes());
    let all: Vec<_> = sets.iter().collect();
    let market = gather(&all, 2);
    assert_eq!(market.card(&id).expect("used").card.sequence, Sequence(5));
    // The same key under a new list is not withdrawn while its new card spreads.
    sets[2] = directory();
    for set in &mut sets {
        set.handle_card(NOW, SOURCE, node.card(5).as_bytes());
    }
    sets[0].handle_card(NOW, SOURCE, node.card(6).as_bytes());
    let all: Vec<_> = sets.iter().collect();
    let market = gather(&all, 2);
    assert_eq!(market.card(&id).expect("used").card.sequence, Sequence(5));
}

#[test]
fn what_is_not_of_this_time_is_ignored_and_blames_nobody() {
    let (node, mut directory) = (Node::new(1), directory());
    let card = node.card(1);
    let early = UnixTime(card.from.0 - 121);
    let late = UnixTime(card.to.0 + 120);
    assert_ignored(
        directory.handle_card(early, SOURCE, card.as_bytes()),
        Ignored::Future,
    );
    assert_ignored(
        directory.handle_card(late, SOURCE, card.as_bytes()),
        Ignored::Expired,
    );
    assert!(matches!(
        directory.handle_card(UnixTime(late.0 - 1), SOURCE, card.as_bytes()),
        Verdict::Accept
    ));
    assert_eq!(directory.handle_time(late), 1);
    assert!(directory.is_empty());
}

#[test]
fn a_card_that_lives_too_long_or_breaks_a_rule_cannot_be_made() {
    let node = Node::new(1);
    let made = |change: fn(&mut souk_market::card::Card)| {
        let mut card = node.plain_card(1);
        change(&mut card);
        VerifiedCard::sign(card, &node.card, &node.network).is_ok()
    };
    assert!(made(|_| ()));
    assert!(!made(|card| card.to = card.from.plus_s(MAX_CARD_LIFE_S + 1)));
    assert!(!made(|card| card.to = card.from));
    assert!(!made(|card| card.roles = list(vec![])));
    assert!(!made(|card| card.succeeds = Some(card.node)));
}

#[test]
fn a_card_of_another_network_or_with_a_flipped_bit_is_rejected() {
    let node = Node::new(1);
    let card = node.card(1);
    let other = "other.00000000".parse().expect("an id");
    let mut elsewhere = Directory::new(other, true);
    let verdict = elsewhere.handle_card(NOW, SOURCE, card.as_bytes());
    assert!(matches!(verdict, Verdict::Reject(Rejected::Card(_))));
    for at in (0..card.as_bytes().len()).step_by(7) {
        let mut bytes = card.as_bytes().to_vec();
        bytes[at] ^= 1;
        let verdict = directory().handle_card(NOW, SOURCE, &bytes);
        assert!(
            matches!(verdict, Verdict::Reject(_)),
            "byte {at}: {verdict:?}"
        );
    }
}

#[test]
fn a_card_of_a_future_version_is_named_as_such_and_nobodys_fault() {
    let card = Node::new(1).card(1);
    let name = domain::CARD.name().as_bytes();
    let mut bytes = card.as_bytes().to_vec();
    let at = bytes.windows(name.len()).position(|part| part == name);
    bytes[at.expect("the domain is in the header") + "souk/".len()] = b'2';
    let error = VerifiedCard::open(&bytes, &network(), |_| None).expect_err("another version");
    let texts = std::iter::successors(Some(&error as &dyn Error), |&error| error.source());
    assert!(
        texts
            .map(ToString::to_string)
            .any(|text| text == "signed as version 2 of its kind, which this program does not know"),
        "{error:?}"
    );
    // Neither passed on nor held against whoever passed it on: they may know that version.
    assert!(matches!(
        directory().handle_card(NOW, SOURCE, &bytes),
        Verdict::Ignore(Ignored::LaterVersion)
    ));
}

#[test]
fn private_addresses_pass_on_test_networks_only() {
    let card = Node::new(1).card(1);
    let mut public = Directory::new(network(), false);
    let verdict = public.handle_card(NOW, SOURCE, card.as_bytes());
    assert!(matches!(verdict, Verdict::Reject(Rejected::PrivateAddress)));
    for inner in [
        "/ip4/10.1.2.3/tcp/1",
        "/ip4/100.64.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/fd00::1/tcp/1",
    ] {
        assert!(!address(inner).is_public(), "{inner}");
    }
    for outer in ["/ip4/192.0.3.1/tcp/1", "/ip6/2001:db9::1/udp/1/quic-v1"] {
        assert!(address(outer).is_public(), "{outer}");
    }
}

#[test]
fn an_address_has_one_spelling_and_is_literal() {
    assert_eq!(
        address("/ip4/192.0.2.1/udp/4001/quic-v1").transport,
        Transport::Quic
    );
    for wrong in [
        "/dns4/example.org/tcp/4001",
        "/ip4/192.0.2.1/tcp/04001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/tcp/4001/",
        "/ip4/192.0.2.1/udp/4001",
        "/ip4/::1/tcp/4001",
        "/ip6/0:0:0:0:0:0:0:1/tcp/4001",
        "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWxyz",
        "ip4/192.0.2.1/tcp/4001",
    ] {
        assert!(
            wrong.parse::<souk_market::card::Address>().is_err(),
            "{wrong}"
        );
    }
}

#[test]
fn a_node_that_floods_its_own_cards_is_slowed_to_one_a_minute() {
    let (node, mut directory) = (Node::new(1), directory());
    let burst = u64::from(UPDATE_BURST);
    for sequence in 0..=burst {
        let verdict = directory.handle_card(NOW, SOURCE, node.card(sequence).as_bytes());
        assert!(
            matches!(verdict, Verdict::Accept),
            "{sequence}: {verdict:?}"
        );
    }
    let next = node.card(burst + 1);
    assert_ignored(
        directory.handle_card(NOW, SOURCE, next.as_bytes()),
        Ignored::TooMany,
    );
    assert!(matches!(
        directory.handle_card(NOW.plus_s(60), SOURCE, next.as_bytes()),
        Verdict::Accept
    ));
}

#[test]
fn capacity_counts_for_the_card_it_speaks_of_and_not_more_often_than_its_period() {
    let (node, mut directory) = (Node::new(1), directory());
    let message = node.capacity(1, NOW, Level::Some);
    assert_ignored(directory.handle_capacity(NOW, &message), Ignored::NoCard);
    directory.handle_card(NOW, SOURCE, node.card(1).as_bytes());
    assert!(matches!(
        directory.handle_capacity(NOW, &message),
        Verdict::Accept
    ));
    assert_ignored(directory.handle_capacity(NOW, &message), Ignored::Known);
    let soon = node.capacity(1, NOW.plus_s(5), Level::None);
    assert_ignored(directory.handle_capacity(NOW, &soon), Ignored::TooMany);
    let later = NOW.plus_s(CAPACITY_PERIOD_S);
    let next = node.capacity(1, later, Level::None);
    assert!(matches!(
        directory.handle_capacity(later, &next),
        Verdict::Accept
    ));
    assert_ignored(directory.handle_capacity(later, &message), Ignored::Older);
    let other_card = node.capacity(2, later.plus_s(60), Level::Some);
    assert_ignored(
        directory.handle_capacity(later, &other_card),
        Ignored::NoCard,
    );
    let level = directory
        .cards(later)
        .next()
        .and_then(|(_, c)| c.expect("held").level(0, 1));
    assert_eq!(level, Some(Level::None));
}

#[test]
fn capacity_signed_by_another_key_is_not_taken_and_nobody_is_blamed_for_passing_it_on() {
    let (node, thief, mut directory) = (Node::new(1), Node::new(2), directory());
    directory.handle_card(NOW, SOURCE, node.card(1).as_bytes());
    let forged = Node {
        node: node.node.clone(),
        ..thief
    }
    .capacity(1, NOW, Level::Plenty);
    let verdict = directory.handle_capacity(NOW, &forged);
    assert!(
        matches!(verdict, Verdict::Ignore(Ignored::NoCard)),
        "{verdict:?}"
    );
}

#[test]
fn a_tombstone_outlives_the_card_and_names_the_heir_that_agreed() {
    let (old, heir, mut directory) = (Node::new(1), Node::new(2), directory());
    directory.handle_card(NOW, SOURCE, old.card(1).as_bytes());
    let succession = agree_to_succeed(old.node.public(), &heir.node, NOW, &old.network);
    let retirement = VerifiedRetirement::sign(
        &old.node,
        NOW,
        Some(succession.expect("signed")),
        &old.network,
    )
    .expect("valid");
    assert!(matches!(
        directory.handle_retirement(NOW, SOURCE, retirement.as_bytes()),
        Verdict::Accept
    ));
    assert!(directory.is_empty());
    let day = NOW.plus_s(86_400);
    directory.handle_time(day);
    assert_ignored(
        directory.handle_card(NOW, SOURCE, old.card(2).as_bytes()),
        Ignored::Retired,
    );
    assert_eq!(
        directory.successor(&old.node.public()),
        Some(heir.node.public())
    );
    directory.handle_time(NOW.plus_s(31 * 86_400));
    assert!(!directory.is_retired(&old.node.public()));
}

#[test]
fn a_set_tells_of_retirements_to_whoever_missed_them_and_requesters_read_past_them() {
    let (gone, stays) = (Node::new(1), Node::new(2));
    let knows = [&gone, &stays];
    let (mut one, mut other) = (with_cards(&knows), with_cards(&knows));
    let retirement = VerifiedRetirement::sign(&gone.node, NOW, None, &gone.network);
    let retirement = retirement.expect("valid");
    one.handle_retirement(NOW, SOURCE, retirement.as_bytes());
    let set = one.snapshot(NOW, 0);
    assert_eq!(set.objects().last(), Some(retirement.as_bytes()));
    for object in set.objects() {
        other.handle_card(NOW, SOURCE, object);
        other.handle_retirement(NOW, SOURCE, object);
    }
    assert!(other.is_retired(&gone.node.public()));
    let market = gather(&[&one, &other], 2);
    assert!(market.is_unanimous());
    assert_eq!(market.cards.len(), 1);
}

#[test]
fn nobody_can_be_retired_or_made_an_heir_by_somebody_else() {
    let (old, heir, thief) = (Node::new(1), Node::new(2), Node::new(3));
    // The heir agreed to follow somebody else.
    let succession = agree_to_succeed(thief.node.public(), &heir.node, NOW, &old.network);
    let wrong = VerifiedRetirement::sign(
        &old.node,
        NOW,
        Some(succession.expect("signed")),
        &old.network,
    );
    assert!(wrong.is_err());
    let retirement = souk_market::retirement::Retirement {
        node: old.node.public(),
        at: NOW,
        succession: None,
    };
    let forged = souk_crypto::sign::sign(retirement, &thief.node, &old.network).expect("signed");
    let verdict = directory().handle_retirement(NOW, SOURCE, forged.signed().as_bytes());
    assert!(
        matches!(verdict, Verdict::Reject(Rejected::Retirement(_))),
        "{verdict:?}"
    );
}

fn gather(sets: &[&Directory], quorum: usize) -> souk_market::quorum::Market {
    let sets: Vec<_> = sets.iter().map(|directory| (NOW, *directory)).collect();
    gathering(NOW, &sets).compare(quorum)
}

/// The sets of these directories, each at the time of its entry, as they are taken at `now`.
fn gathering(now: UnixTime, sets: &[(UnixTime, &Directory)]) -> Gathering {
    let mut gathering = Gathering::new(network(), true, now);
    for (i, (at, directory)) in sets.iter().enumerate() {
        let entry = Node::new(1000 + i as u64).node.public();
        let set = directory.snapshot(*at, 5);
        gathering
            .handle_set(entry, set.epoch(), set.root(), set.objects())
            .expect("an honest set");
    }
    gathering
}

fn with_cards(cards: &[&Node]) -> Directory {
    let mut directory = directory();
    for node in cards {
        assert!(matches!(
            directory.handle_card(NOW, SOURCE, node.card(1).as_bytes()),
            Verdict::Accept
        ));
    }
    directory
}

#[test]
fn equal_sets_have_equal_roots_in_whatever_order_the_cards_came() {
    let nodes: Vec<_> = (0..70).map(Node::new).collect();
    let forward = with_cards(&nodes.iter().collect::<Vec<_>>());
    let backward = with_cards(&nodes.iter().rev().collect::<Vec<_>>());
    assert_eq!(
        forward.snapshot(NOW, 5).root(),
        backward.snapshot(NOW, 5).root()
    );
    assert_ne!(
        forward.snapshot(NOW, 5).root(),
        forward.snapshot(NOW, 6).root()
    );
    let market = gather(&[&forward, &backward], 2);
    assert!(market.is_unanimous());
    assert_eq!((market.cards.len(), market.left_out.len()), (70, 0));
}

#[test]
fn a_card_that_one_entry_alone_shows_is_not_used() {
    let (a, b, marked) = (Node::new(1), Node::new(2), Node::new(3));
    let (honest, other) = (with_cards(&[&a, &b]), with_cards(&[&a, &b]));
    let dishonest = with_cards(&[&a, &b, &marked]);
    let market = gather(&[&honest, &other, &dishonest], 2);
    assert!(!market.is_unanimous());
    assert!(market.card(&a.node.public()).is_some());
    assert!(market.card(&marked.node.public()).is_none());
    assert_eq!(
        market.left_out,
        [(marked.node.public(), LeftOut::NoQuorum { seen: 1 })]
    );
}

#[test]
fn two_entries_that_show_contradicting_cards_reveal_the_node() {
    let node = Node::new(1);
    let (mut one, mut two) = (directory(), directory());
    one.handle_card(NOW, SOURCE, node.card(1).as_bytes());
    let mut other = node.plain_card(1);
    other.images = list(vec![]);
    two.handle_card(NOW, SOURCE, node.sign(other).as_bytes());
    let market = gather(&[&one, &two], 1);
    assert_eq!(market.left_out, [(node.node.public(), LeftOut::Equivocal)]);
}

#[test]
fn while_a_new_card_spreads_the_newest_with_a_quorum_counts() {
    let node = Node::new(1);
    let (mut fresh, stale, stale_too) = (directory(), with_cards(&[&node]), with_cards(&[&node]));
    fresh.handle_card(NOW, SOURCE, node.card(2).as_bytes());
    let market = gather(&[&fresh, &stale, &stale_too], 2);
    assert_eq!(market.cards[0].card.sequence, Sequence(1));
}

#[test]
fn a_clock_that_is_wrong_by_hours_is_told_by_what_a_quorum_shows() {
    const HOUR_S: u64 = 3_600;
    let nodes = [Node::new(1), Node::new(2), Node::new(3)];
    let all = with_cards(&nodes.iter().collect::<Vec<_>>());
    let told = |now| gathering(now, &[(NOW, &all), (NOW, &all)]).wrong_clock(2);
    // The cards begin a minute before now and live for twelve hours. One that only just ended says nothing.
    let steps = [0, 900, 12 * HOUR_S, 12 * HOUR_S + 900];
    for now in steps.map(|by_s| NOW.plus_s(by_s)) {
        assert_eq!(told(now), None, "{now}");
    }
    assert_eq!(told(NOW.minus_s(900)), None);
    let (untimely, cards) = (3, 3);
    let behind = WrongClock::Behind {
        by_s: 6 * HOUR_S - 60,
        untimely,
        cards,
    };
    assert_eq!(told(NOW.minus_s(6 * HOUR_S)), Some(behind));
    assert!(behind.to_string().contains("6 h or more behind"));
    let ahead = WrongClock::Ahead {
        by_s: 13 * HOUR_S + 60,
        untimely,
        cards,
    };
    assert_eq!(told(NOW.plus_s(13 * HOUR_S)), Some(ahead));
    assert!(ahead.to_string().contains("up to 13 h ahead"));
}

#[test]
fn no_clock_seems_wrong_by_the_cards_of_one_liar() {
    let honest = with_cards(&[&Node::new(1), &Node::new(2)]);
    // Of nodes that the liar made up: cards that have ended for everybody else, and cards that have not begun.
    for (at, is_behind) in [(NOW.minus_s(3_500), false), (NOW.plus_s(7_200), true)] {
        let mut lie = directory();
        for seed in 10..20 {
            let node = Node::new(seed);
            let mut card = node.plain_card(1);
            (card.from, card.to) = (at, at.plus_s(60));
            let verdict = lie.handle_card(at, SOURCE, node.sign(card).as_bytes());
            assert!(matches!(verdict, Verdict::Accept), "{verdict:?}");
        }
        let sets = [(NOW, &honest), (NOW, &honest), (at, &lie)];
        for agreeing in [&sets[1..], &sets] {
            assert_eq!(gathering(NOW, agreeing).wrong_clock(2), None);
        }
        assert_eq!(gathering(NOW, &sets).compare(2).cards.len(), 2);
        // Who asks for no quorum believes it.
        let believed = gathering(NOW, &sets).wrong_clock(1);
        let seems_behind = matches!(believed, Some(WrongClock::Behind { .. }));
        assert!(
            believed.is_some() && seems_behind == is_behind,
            "{believed:?}"
        );
    }
}

#[test]
fn a_set_that_does_not_fit_its_root_is_not_used() {
    let nodes: Vec<_> = (0..5).map(Node::new).collect();
    let directory = with_cards(&nodes.iter().collect::<Vec<_>>());
    let set = directory.snapshot(NOW, 5);
    let objects: Vec<&[u8]> = set.objects().collect();
    let entry = Node::new(1000).node.public();
    let mut gathering = Gathering::new(network(), true, NOW);
    let mut take = |epoch, objects: &[&[u8]]| {
        gathering.handle_set(entry, epoch, set.root(), objects.iter().copied())
    };
    assert!(take(5, &objects).is_ok());
    assert!(matches!(take(6, &objects), Err(SetError::Root)));
    assert!(matches!(take(5, &objects[1..]), Err(SetError::Root)));
    let mut swapped = objects.clone();
    swapped.swap(0, 1);
    assert!(matches!(take(5, &swapped), Err(SetError::CardOrder)));
    let doubled = [&objects[..1], &objects].concat();
    assert!(matches!(take(5, &doubled), Err(SetError::CardOrder)));
    let noise: &[u8] = b"noise";
    assert!(matches!(take(5, &[noise]), Err(SetError::Card(_))));
    assert!(gathering.compare(1).cards.is_empty());
}

#[test]
fn capacity_in_a_set_counts_only_from_the_card_key_of_its_node() {
    let (node, thief) = (Node::new(1), Node::new(2));
    let directory = with_cards(&[&node]);
    let set = directory.snapshot(NOW, 5);
    let honest = node.capacity(1, NOW.minus_s(60), Level::Some);
    let forged = Node {
        node: node.node.clone(),
        ..thief
    }
    .capacity(1, NOW, Level::None);
    let mut gathering = Gathering::new(network(), true, NOW);
    let objects = set.objects().chain([&forged[..], &honest[..]]);
    gathering
        .handle_set(Node::new(1000).node.public(), 5, set.root(), objects)
        .expect("fits its root");
    let market = gathering.compare(1);
    assert_eq!(market.cards[0].level(0, 0), Some(Level::Some));
}

#[test]
fn no_entry_drowns_what_a_provider_says_of_its_room() {
    let node = Node::new(1);
    let directory = with_cards(&[&node]);
    let set = directory.snapshot(NOW, 5);
    let entry = |n: u64| Node::new(1_000 + n).node.public();
    let honest = node.capacity(1, NOW.minus_s(60), Level::Some);
    let forged: Vec<_> = (0..9)
        .map(|seed| {
            let by_another_key = Node {
                node: node.node.clone(),
                ..Node::new(50 + seed)
            };
            by_another_key.capacity(1, NOW.minus_s(seed), Level::None)
        })
        .collect();
    let forged = || forged.iter().map(Vec::as_slice);
    let mut gathering = Gathering::new(network(), true, NOW);
    let refused = gathering.handle_set(entry(0), 6, set.root(), set.objects().chain(forged()));
    assert!(matches!(refused, Err(SetError::Root)));
    for (n, told) in [(1, forged().collect()), (2, vec![&honest[..]])] {
        gathering
            .handle_set(entry(n), 5, set.root(), set.objects().chain(told))
            .expect("fits its root");
    }
    let market = gathering.compare(2);
    assert_eq!(market.cards[0].level(0, 0), Some(Level::Some));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the order of arrival, every directory ends up with the same usable cards.
    #[test]
    fn directories_converge_in_whatever_order_cards_arrive(
        order in Just((0usize..9).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let nodes: Vec<_> = (0..3).map(Node::new).collect();
        let cards: Vec<_> =
            (0..9).map(|i| nodes[i % 3].card(i as u64 / 3)).collect();
        let (mut one, mut two) = (directory(), directory());
        for (i, card) in cards.iter().enumerate() {
            one.handle_card(NOW, SOURCE, card.as_bytes());
            two.handle_card(NOW, SOURCE, cards[order[i]].as_bytes());
        }
        prop_assert_eq!(one.snapshot(NOW, 1).root(), two.snapshot(NOW, 1).root());
    }
}

/// A directory that one stranger has filled with the cards of nodes it made up.
fn full_of(source: Source) -> Directory {
    let mut directory = directory();
    for seed in 0..MAX_CARDS {
        let card = Node::new(1_000 + seed as u64).card(1);
        let verdict = directory.handle_card(NOW, source, card.as_bytes());
        assert!(matches!(verdict, Verdict::Accept), "{seed}: {verdict:?}");
    }
    directory
}

#[test]
fn who_fills_a_directory_keeps_others_neither_out_nor_pushes_them_out() {
    let (stranger, neighbour) = (Source::Neighbour(66), Source::Neighbour(7));
    let mut directory = full_of(stranger);
    let more = Node::new(1).card(1);
    assert_ignored(
        directory.handle_card(NOW, stranger, more.as_bytes()),
        Ignored::Full,
    );
    let honest = Node::new(2).card(1);
    let verdict = directory.handle_card(NOW, neighbour, honest.as_bytes());
    assert!(matches!(verdict, Verdict::Accept), "{verdict:?}");
    assert_eq!(directory.len(), MAX_CARDS);
    // However much the stranger sends, it stays.
    for seed in 3..20 {
        let more = Node::new(seed).card(1);
        assert_ignored(
            directory.handle_card(NOW, stranger, more.as_bytes()),
            Ignored::Full,
        );
    }
    assert!(directory.card(NOW, &honest.node).is_some());
}

#[test]
fn who_retires_nodes_it_made_up_pushes_no_tombstone_out_and_keeps_none_out() {
    let (stranger, neighbour) = (Source::Neighbour(66), Source::Neighbour(7));
    let mut directory = directory();
    let retirement = |seed| {
        let node = Node::new(seed);
        let retirement = VerifiedRetirement::sign(&node.node, NOW, None, &node.network);
        (node, retirement.expect("valid"))
    };
    let (first, of_first) = retirement(1);
    directory.handle_retirement(NOW, neighbour, of_first.as_bytes());
    for seed in 0..MAX_TOMBSTONES as u64 - 1 {
        let (_, made_up) = retirement(1_000 + seed);
        let verdict = directory.handle_retirement(NOW, stranger, made_up.as_bytes());
        assert!(matches!(verdict, Verdict::Accept), "{seed}: {verdict:?}");
    }
    let (_, more) = retirement(2);
    assert_ignored(
        directory.handle_retirement(NOW, stranger, more.as_bytes()),
        Ignored::Full,
    );
    let (second, of_second) = retirement(3);
    directory.handle_retirement(NOW, neighbour, of_second.as_bytes());
    // A node whose card came from elsewhere retires even where the stranger is the one to say it.
    let known = Node::new(4);
    directory.handle_card(NOW, neighbour, known.card(1).as_bytes());
    let (_, of_known) = retirement(4);
    directory.handle_retirement(NOW, stranger, of_known.as_bytes());
    for node in [first, second, known] {
        assert!(directory.is_retired(&node.node.public()));
    }
    assert_eq!(directory.retirements().count(), MAX_TOMBSTONES);
}
