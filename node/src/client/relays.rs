//! Drawing the relays of a lease.
//!
//! A relay sees the address of the requester, so its provider must not be the one who picks it. The client draws a few,
//! names them inside the sealed envelope, and refuses a receipt that names another. They are drawn anew for each lease: a
//! set that was kept would tell one provider which of its leases belong together.
//!
//! Threat: relays that belong to the provider or to the entry under another id. Those of the same operator are left out
//! where cards name one, and those in the same part of the network are taken last; neither is proof, because a card says
//! of itself what it likes.

use std::{collections::BTreeSet, net::IpAddr};

use rand::{Rng, seq::SliceRandom as _};
use souk_crypto::NodeId;
use souk_market::{
    card::{Role, VerifiedCard},
    envelope::{MAX_NAMED_RELAYS, NamedRelays},
    quorum::Market,
    wire::List,
};

/// A part of the address space that one network operator usually holds: /16 of IPv4, /32 of IPv6.
type Group = (bool, [u16; 2]);

/// Draws relays for a lease at `provider` by a client of `entry`, among the cards that a quorum showed; none where every
/// one is barred.
pub(super) fn draw(
    market: &Market,
    entry: NodeId,
    provider: &VerifiedCard,
    rng: &mut impl Rng,
) -> NamedRelays {
    let entry_card = market.card(&entry).map(|listed| &*listed.card);
    let ends: Vec<&VerifiedCard> = entry_card.into_iter().chain([provider]).collect();
    let is_barred = |card: &VerifiedCard| {
        card.node == entry
            || ends
                .iter()
                .any(|end| end.node == card.node || one_operator(end, card))
    };
    let cards = market.cards.iter().map(|listed| &*listed.card);
    let mut candidates: Vec<&VerifiedCard> = cards
        .filter(|card| card.has_role(Role::Relay) && !card.addresses.is_empty())
        .filter(|card| !is_barred(card))
        .collect();
    candidates.shuffle(rng);

    let near_the_ends: BTreeSet<Group> = ends.iter().flat_map(|card| groups(card)).collect();
    let mut drawn: Vec<&VerifiedCard> = Vec::new();
    while drawn.len() < MAX_NAMED_RELAYS {
        let is_like_another = |card: &VerifiedCard| {
            let alike = |other: &&VerifiedCard| {
                one_operator(other, card) || groups(other).any(|g| groups(card).any(|h| g == h))
            };
            drawn.iter().any(alike)
        };
        // The first of the best: the order is that of the shuffle.
        let best = (0..candidates.len()).min_by_key(|at| {
            let card = candidates[*at];
            let is_near = groups(card).any(|group| near_the_ends.contains(&group));
            (is_near, is_like_another(card))
        });
        let Some(best) = best else { break };
        drawn.push(candidates.remove(best));
    }
    let mut nodes: Vec<NodeId> = drawn.into_iter().map(|card| card.node).collect();
    nodes.sort();
    List::new(nodes).expect("no more were drawn")
}

fn one_operator(one: &VerifiedCard, other: &VerifiedCard) -> bool {
    one.operator.is_some() && one.operator == other.operator
}

fn groups(card: &VerifiedCard) -> impl Iterator<Item = Group> {
    card.addresses.iter().map(|address| match address.ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            (false, [a.into(), b.into()])
        }
        IpAddr::V6(ip) => {
            let [a, b, ..] = ip.segments();
            (true, [a, b])
        }
    })
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use souk_crypto::{
        CardKey, LogKey, MixKey, MixPublicKey, NetworkId, NetworkParams, NodeKey, SealKey, SubKeys,
        UnixTime, Window, sign,
    };
    use souk_market::{
        card::{Card, Policy},
        quorum::MarketCard,
        units::{OperatorId, Sequence},
    };

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    /// A card of node `n` with these roles, at this address, of this operator.
    fn card(n: u64, roles: &[Role], address: &str, operator: Option<u8>) -> VerifiedCard {
        let rng = &mut StdRng::seed_from_u64(n);
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        let network = NetworkId::new("test", &params).expect("a name");
        let (node, key) = (NodeKey::generate(rng), CardKey::generate(rng));
        let window = Window::new(NOW, NOW.plus_s(86_400)).expect("not empty");
        let mix_key = MixKey {
            epoch: 0,
            suite: 1,
            key: MixPublicKey::from_bytes(&[1; 32]).expect("32 bytes"),
            window,
        };
        let keys = SubKeys {
            serial: 1,
            window,
            card_key: key.public(),
            log_key: Some(LogKey::generate(rng).public()),
            seal_key: Some(SealKey::generate(rng).public()),
            mix_keys: vec![mix_key],
        };
        let card = Card {
            node: node.public(),
            sequence: Sequence(1),
            from: NOW,
            to: NOW.plus_s(3_600),
            roles: List::new(roles.to_vec()).expect("few"),
            addresses: List::new(vec![address.parse().expect("an address")]).expect("one"),
            sub_keys: sign::sign(keys, &node, &network)
                .expect("valid")
                .signed()
                .clone(),
            operator: operator.map(|n| OperatorId([n; 32])),
            offers: List::empty(),
            images: List::empty(),
            prices: None,
            policy: Policy::default(),
            evidence: List::empty(),
            succeeds: None,
        };
        VerifiedCard::sign(card, &key, &network).expect("valid")
    }

    fn market(cards: &[VerifiedCard]) -> Market {
        let mut cards: Vec<_> = cards
            .iter()
            .map(|card| MarketCard {
                card: card.clone().into(),
                capacity: None,
            })
            .collect();
        cards.sort_by_key(|listed| listed.card.node);
        Market {
            cards,
            roots: Vec::new(),
            left_out: Vec::new(),
            quorum: 2,
        }
    }

    /// Relays that are drawn out of `cards` with many seeds.
    fn draws(
        cards: &[VerifiedCard],
        entry: &VerifiedCard,
        provider: &VerifiedCard,
    ) -> Vec<NamedRelays> {
        let market = market(cards);
        (0..64)
            .map(|seed| {
                draw(
                    &market,
                    entry.node,
                    provider,
                    &mut StdRng::seed_from_u64(seed),
                )
            })
            .collect()
    }

    #[test]
    fn entry_provider_their_operators_and_who_is_no_relay_are_never_drawn() {
        let all = &[Role::Mix, Role::Relay, Role::Entry];
        let entry = card(1, all, "/ip4/192.0.2.1/tcp/1", Some(1));
        let provider = card(
            2,
            &[Role::Provider, Role::Relay],
            "/ip4/192.0.2.2/tcp/1",
            Some(2),
        );
        let of_entry = card(3, all, "/ip4/198.51.100.3/tcp/1", Some(1));
        let of_provider = card(4, all, "/ip4/198.51.100.4/tcp/1", Some(2));
        let mix = card(5, &[Role::Mix], "/ip4/198.51.100.5/tcp/1", None);
        let good = card(6, all, "/ip4/198.51.100.6/tcp/1", None);
        let cards = [&entry, &provider, &of_entry, &of_provider, &mix, &good].map(Clone::clone);
        for drawn in draws(&cards, &entry, &provider) {
            assert_eq!(&*drawn, &[good.node]);
        }
        for drawn in draws(&cards[..5], &entry, &provider) {
            assert!(drawn.is_empty());
        }
    }

    #[test]
    fn all_are_drawn_in_time_and_those_near_an_end_or_one_another_come_last() {
        let relay = &[Role::Relay];
        let entry = card(1, &[Role::Entry], "/ip4/192.0.2.1/tcp/1", None);
        let provider = card(2, &[Role::Provider], "/ip4/203.0.113.2/tcp/1", None);
        let near = card(3, relay, "/ip4/203.0.200.9/tcp/1", None);
        let far: Vec<_> = (4..9)
            .map(|n| card(n, relay, &format!("/ip4/198.{n}.100.4/tcp/1"), None))
            .collect();
        let twin = card(9, relay, "/ip4/198.4.7.7/tcp/1", None);
        let mut cards = far.clone();
        cards.extend([entry.clone(), provider.clone(), near.clone(), twin.clone()]);
        let drawn = draws(&cards, &entry, &provider);
        assert!(drawn.iter().all(|set| set.len() == MAX_NAMED_RELAYS));
        assert!(
            drawn
                .iter()
                .all(|set| set.windows(2).all(|pair| pair[0] < pair[1]))
        );
        let ever = |card: &VerifiedCard| drawn.iter().any(|set| set.contains(&card.node));
        assert!(far.iter().all(ever) && ever(&twin));
        assert!(!ever(&near), "there are enough others");
        let together = |set: &NamedRelays| set.contains(&twin.node) && set.contains(&far[0].node);
        assert!(!drawn.iter().any(together), "one network twice");
        // Where there is nothing else, what is near is better than nothing.
        let few = [entry.clone(), provider.clone(), near.clone()];
        assert_eq!(&*draws(&few, &entry, &provider)[0], &[near.node]);
    }
}
