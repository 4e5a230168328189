//! Drawing the relays of a lease.
//!
//! A relay sees the address of the requester, so its provider must not be the one who picks it. The client draws a few,
//! names them inside the sealed envelope, and refuses a receipt that names another. They are drawn anew for each lease: a
//! set that was kept would tell one provider which of its leases belong together.
//!
//! Threats: relays that belong to the provider or to the entry under another id, so what looks alike by what the cards
//! claim is taken last; and a card that claims to be like the honest relays, to steer the draw away from them. So the
//! first relay is drawn among all with equal chance, and a card whose claims would put back more than a quarter of the
//! relays is not listened to. Neither is proof: a card says of itself what it likes.

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

/// The part of all relays that the claims of one card may put back.
const MAX_PUT_BACK: usize = 4;

/// Draws relays for a lease at `provider` by a client of `entry`, among the cards that a quorum showed; none where these
/// two are the only relays.
pub(super) fn draw(
    market: &Market,
    entries: &[NodeId],
    provider: &VerifiedCard,
    rng: &mut impl Rng,
) -> NamedRelays {
    let cards = market.cards.iter().map(|listed| &*listed.card);
    let mut left: Vec<&VerifiedCard> = cards
        .filter(|card| card.has_role(Role::Relay) && !card.addresses.is_empty())
        .filter(|card| entries.first() != Some(&card.node) && card.node != provider.node)
        .collect();
    let is_no_entry = |card: &&VerifiedCard| !entries.contains(&card.node);
    if left.iter().any(is_no_entry) {
        left.retain(is_no_entry);
    }
    left.shuffle(rng);
    let all = left.clone();
    let put_back = |by: &VerifiedCard| -> BTreeSet<NodeId> {
        let alike = all.iter().filter(|card| are_alike(by, card));
        let nodes: BTreeSet<_> = alike.map(|card| card.node).collect();
        if nodes.len() * MAX_PUT_BACK > all.len() {
            BTreeSet::new()
        } else {
            nodes
        }
    };
    let entry_card = entries.first().and_then(|entry| market.card(entry));
    let entry_card = entry_card.map(|listed| &*listed.card);
    let ends = entry_card.into_iter().chain([provider]);
    let near: BTreeSet<NodeId> = ends.flat_map(put_back).collect();

    let mut drawn: Vec<NodeId> = Vec::new();
    let mut like_another: BTreeSet<NodeId> = BTreeSet::new();
    while drawn.len() < MAX_NAMED_RELAYS && !left.is_empty() {
        // The order is that of the shuffle: the first of all, and then the first of the best.
        let best = (0..left.len()).min_by_key(|at| {
            let node = &left[*at].node;
            !drawn.is_empty() && (near.contains(node) || like_another.contains(node))
        });
        let card = left.remove(best.expect("it is not empty"));
        like_another.append(&mut put_back(card));
        drawn.push(card.node);
    }
    drawn.sort();
    List::new(drawn).expect("no more were drawn")
}

/// Whether two cards name one operator, or addresses in one part of the network.
fn are_alike(one: &VerifiedCard, other: &VerifiedCard) -> bool {
    let one_operator = one.operator.is_some() && one.operator == other.operator;
    one_operator || groups(one).any(|group| groups(other).any(|another| another == group))
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

    /// A card of node `n` with these roles, at these addresses, of this operator.
    fn card(n: u64, roles: &[Role], addresses: &[&str], operator: Option<u8>) -> VerifiedCard {
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
            addresses: List::new(
                addresses
                    .iter()
                    .map(|at| at.parse().expect("an address"))
                    .collect(),
            )
            .expect("few"),
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
        (0..400)
            .map(|seed| {
                draw(
                    &market,
                    &[entry.node],
                    provider,
                    &mut StdRng::seed_from_u64(seed),
                )
            })
            .collect()
    }

    /// Relays 10 and up, each in a network of its own.
    fn relays(count: u64) -> Vec<VerifiedCard> {
        (10..10 + count)
            .map(|n| {
                card(
                    n,
                    &[Role::Relay],
                    &[&format!("/ip4/198.{n}.100.4/tcp/1")],
                    Some(n as u8),
                )
            })
            .collect()
    }

    fn entry() -> VerifiedCard {
        card(
            1,
            &[Role::Relay, Role::Entry],
            &["/ip4/192.0.2.1/tcp/1"],
            None,
        )
    }

    fn provider(addresses: &[&str], operator: Option<u8>) -> VerifiedCard {
        card(2, &[Role::Provider, Role::Relay], addresses, operator)
    }

    /// How often a relay is among those drawn.
    fn count(draws: &[NamedRelays], card: &VerifiedCard) -> usize {
        draws.iter().filter(|set| set.contains(&card.node)).count()
    }

    #[test]
    fn entry_provider_and_who_is_no_relay_are_never_drawn() {
        let (entry, provider) = (entry(), provider(&["/ip4/192.0.2.2/tcp/1"], None));
        let mix = card(5, &[Role::Mix], &["/ip4/198.51.100.5/tcp/1"], None);
        let good = card(6, &[Role::Relay], &["/ip4/198.51.100.6/tcp/1"], None);
        let cards = [&entry, &provider, &mix, &good].map(Clone::clone);
        for drawn in draws(&cards, &entry, &provider) {
            assert_eq!(&*drawn, &[good.node]);
        }
        for drawn in draws(&cards[..3], &entry, &provider) {
            assert!(drawn.is_empty());
        }
    }

    #[test]
    fn what_looks_like_an_end_or_like_another_is_taken_last() {
        let mut cards = relays(10);
        let provider = provider(&["/ip4/203.0.113.2/tcp/1"], Some(200));
        let near = card(3, &[Role::Relay], &["/ip4/203.0.200.9/tcp/1"], None);
        let kin = card(4, &[Role::Relay], &["/ip4/198.99.1.1/tcp/1"], Some(200));
        let twin = card(5, &[Role::Relay], &["/ip4/198.10.7.7/tcp/1"], None);
        cards.extend([
            entry(),
            provider.clone(),
            near.clone(),
            kin.clone(),
            twin.clone(),
        ]);
        let drawn = draws(&cards, &entry(), &provider);
        let rising = |set: &NamedRelays| set.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(
            drawn
                .iter()
                .all(|set| set.len() == MAX_NAMED_RELAYS && rising(set))
        );
        let plain = count(&drawn, &cards[1]);
        assert!(plain > 0);
        // Each is the first of one draw in thirteen, and never among the others.
        for last in [&near, &kin] {
            assert!(
                count(&drawn, last) < drawn.len() / 6,
                "{}",
                count(&drawn, last)
            );
        }
        let both = |set: &&NamedRelays| set.contains(&twin.node) && set.contains(&cards[0].node);
        assert_eq!(drawn.iter().filter(both).count(), 0, "one network twice");
    }

    #[test]
    fn a_provider_does_not_steer_the_draw_by_what_its_card_claims() {
        // Three honest relays in each of four networks, and four of the provider's own elsewhere.
        let honest: Vec<_> = (10..22)
            .map(|n| {
                card(
                    n,
                    &[Role::Relay],
                    &[&format!("/ip4/198.{}.0.{n}/tcp/1", n / 3)],
                    Some(7),
                )
            })
            .collect();
        let own: Vec<_> = (30..34)
            .map(|n| {
                card(
                    n,
                    &[Role::Relay],
                    &[&format!("/ip4/203.{n}.0.1/tcp/1")],
                    None,
                )
            })
            .collect();
        let mut cards = honest.clone();
        cards.extend(own.iter().cloned());
        let plain = provider(&["/ip4/192.0.2.2/tcp/1"], None);
        let share = |provider: &VerifiedCard| -> usize {
            let drawn = draws(&cards, &entry(), provider);
            own.iter().map(|card| count(&drawn, card)).sum()
        };
        let claims = [
            "/ip4/198.3.1.1/tcp/1",
            "/ip4/198.4.1.1/tcp/1",
            "/ip4/198.5.1.1/tcp/1",
        ];
        for hostile in [
            provider(&claims, None),
            provider(&["/ip4/192.0.2.2/tcp/1"], Some(7)),
            provider(&claims, Some(7)),
        ] {
            assert_eq!(
                share(&hostile),
                share(&plain),
                "its own are drawn as often as ever"
            );
        }
        // Also a relay is never barred for good by a claim: each is the first in some draw.
        let copied = provider(&["/ip4/198.3.1.1/tcp/1"], None);
        let drawn = draws(&cards, &entry(), &copied);
        assert!(honest.iter().all(|card| count(&drawn, card) > 0));
    }
}
