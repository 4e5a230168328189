//! All that a dashboard shows of a running node, at one instant. Nothing of a requester is in it: leases are rows as
//! [`super::operations`] shows them, and of the peers only nodes are shown, never clients of the mix.

use std::{collections::BTreeMap, sync::Arc};

use souk_market::{
    account::Sum,
    card::{Role, VerifiedCard},
    log::{Entry, HourBucket, OutcomeClass},
    price::Prices,
    units::{Asset, BackendName, Resources, Tee},
};
use souk_sphinx::{delay::POOL_CAPACITY, packet::PACKET_LEN};

use super::{
    directory::Listed,
    operations::{self, Running},
};
use crate::{
    clock::unix_ms,
    control::{Operations as _, program, v1},
    net::{NetInfo, peer_id},
    provider::{LeaseView, Provider},
    unix_now,
};

/// Rows of a table that nobody reads whole: a screen holds fewer, and `Market` and `Orphans` give all.
const MAX_ROWS: usize = 256;
/// Hours that revenue and cost are shown for.
const WINDOW_HOURS: u32 = 24;
/// Entries of the usage log that are shown.
const MAX_ENTRIES: u64 = 20;

pub(super) async fn snapshot(node: &Running) -> v1::Snapshot {
    let (status, info) = (node.status().await, node.peers.info().await);
    let neighbours = node.peers.known_neighbours().await;
    let provider = node.provider.borrow().clone();
    let own = node.own.borrow().clone();
    let cards = node.cards.all();
    let leases = node.open_leases();
    let totals = node.net.totals();
    let dialled_in = to_u32(neighbours.iter().filter(|n| n.dialled_us).count());
    let anonymous = own.as_ref().and_then(|card| card.policy.anonymous.as_ref());
    v1::Snapshot {
        at_unix_ms: unix_ms(),
        program: program(),
        standing: Some(node.standing()),
        evidence: Some(evidence(own.as_deref(), node.cards.contradictions().len())),
        max_leases: provider
            .as_ref()
            .map_or(0, |provider| to_u32(provider.max_leases())),
        max_anonymous: anonymous.map_or(0, |limits| limits.max_concurrent),
        backends: provider
            .as_ref()
            .map(|provider| backends(provider, &leases))
            .unwrap_or_default(),
        orphans: orphans(node.orphans().await),
        mix: Some(v1::Mix {
            mean_delay_ms: u32::try_from(node.mean_delay.as_millis()).unwrap_or(u32::MAX),
            queue: to_u32(node.mix.waiting()),
            queue_max: to_u32(POOL_CAPACITY),
            packets_sent: totals.frames_sent,
            packets_received: totals.frames_received,
            packets_dropped: totals.frames_dropped,
            links_up: u32::try_from(totals.links_up).unwrap_or(u32::MAX),
            packet_bytes: to_u32(PACKET_LEN),
        }),
        market: Some(market(node, &cards)),
        network: Some(v1::Network {
            connections: info.connections,
            routable: to_u32(info.routable),
            subscribers: to_u32(neighbours.len()),
            mesh: to_u32(info.mesh),
            reachable: own.as_ref().is_some_and(|card| !card.addresses.is_empty()),
            listening: listening(&info),
            peers: neighbours.into_iter().take(MAX_ROWS).map(peer).collect(),
            offences: totals.offences,
            mailbox_packets: totals.mailbox_packets,
            relay_sessions: totals.relay_sessions,
            relayed_bytes: totals.relayed_bytes,
            dialled_in,
        }),
        log: provider.as_ref().map(log),
        account: account(node),
        card: own.map(|card| v1::OwnCard {
            keys_elsewhere: node.rivals.borrow().are_suspected(unix_now()),
            ..own_card(&card, &cards)
        }),
        leases: leases.into_iter().map(operations::lease).collect(),
        status: Some(status),
    }
}

fn own_card(card: &Arc<VerifiedCard>, cards: &[Listed]) -> v1::OwnCard {
    let capacity = cards
        .iter()
        .find(|(other, _)| other.node == card.node)
        .and_then(|(_, capacity)| capacity.as_deref());
    v1::OwnCard {
        sequence: card.sequence.0,
        expires_unix_s: card.to.0,
        digest: card.digest().to_string(),
        bytes: to_u32(card.as_bytes().len()),
        offers: operations::offers(card, capacity.map(|verified| &**verified), None)
            .take(MAX_ROWS)
            .collect(),
        keys_elsewhere: false,
    }
}

fn evidence(own: Option<&VerifiedCard>, contradictions: usize) -> v1::Evidence {
    let offers = own.iter().flat_map(|card| card.offers.iter());
    let tee = offers.map(|offer| offer.tee).max();
    v1::Evidence {
        tee: tee.unwrap_or(Tee::None).as_str().to_owned(),
        digests: own
            .iter()
            .flat_map(|card| card.evidence.iter())
            .map(|evidence| evidence.digest.to_string())
            .collect(),
        contradictions: to_u32(contradictions),
    }
}

fn backends(provider: &Provider, leases: &[LeaseView]) -> Vec<v1::Backend> {
    let findings = provider.findings();
    let mut counts = BTreeMap::<&BackendName, u32>::new();
    for lease in leases {
        *counts.entry(&lease.backend).or_default() += 1;
    }
    let totals = provider.backends();
    totals
        .iter()
        .map(|(name, total)| v1::Backend {
            state: Some(operations::backend_state(
                name,
                &findings.get(name).cloned().unwrap_or_default(),
            )),
            paused: provider.is_paused(name),
            total: Some(resources(total)),
            used: Some(resources(&total.saturating_sub(&provider.free(name)))),
            leases: counts.get(name).copied().unwrap_or_default(),
        })
        .collect()
}

fn resources(resources: &Resources) -> v1::Resources {
    v1::Resources {
        cpu_millicores: resources.cpu_millicores,
        memory_mib: resources.memory_mib,
        disk_mib: resources.disk_mib,
        max_processes: resources.max_processes,
    }
}

fn orphans(reply: Option<v1::OrphansReply>) -> Vec<v1::Orphan> {
    let mut orphans = reply.map(|reply| reply.orphans).unwrap_or_default();
    orphans.truncate(MAX_ROWS);
    orphans
}

fn market(node: &Running, cards: &[Listed]) -> v1::Market {
    let with = |role| to_u32(cards.iter().filter(|(card, _)| card.has_role(role)).count());
    let mut selling: Vec<_> = cards
        .iter()
        .filter(|(card, _)| !card.offers.is_empty())
        .collect();
    let own = &node.prices.asset;
    selling.sort_by(|(one, _), (other, _)| {
        rank(one.prices.as_ref(), own).cmp(&rank(other.prices.as_ref(), own))
    });
    selling.truncate(MAX_ROWS);
    let mut offers = node.offers_of(selling.into_iter());
    offers.truncate(MAX_ROWS);
    v1::Market {
        cards: to_u32(cards.len()),
        providers: with(Role::Provider),
        mixes: with(Role::Mix),
        relays: with(Role::Relay),
        entries: with(Role::Entry),
        offers,
    }
}

/// What offers are sorted by: those that can be held against ours come before those in other assets, and the cheapest first.
fn rank<'a>(prices: Option<&'a Prices>, own: &Asset) -> (Option<&'a Asset>, u128) {
    let asset = prices.map(|prices| &prices.asset);
    let foreign = asset.filter(|asset| *asset != own);
    (foreign, operations::core_hour(prices))
}

fn account(node: &Running) -> Option<v1::Account> {
    let ledger = node.account.borrow().clone()?;
    let last = HourBucket::of(unix_now());
    let sum = |sum: Sum| v1::Sum {
        leases: sum.leases,
        revenue: sum.revenue.to_string(),
        cost: sum.cost.to_string(),
        with_unknown: sum.with_unknown,
    };
    let by_hour = ledger.hours(last, WINDOW_HOURS);
    Some(v1::Account {
        asset: node.prices.asset.to_string(),
        exponent: node.prices.exponent.into(),
        lifetime: Some(sum(*ledger.lifetime())),
        window: Some(sum(ledger.window(last, WINDOW_HOURS))),
        window_s: WINDOW_HOURS * 3_600,
        revenue_by_hour: by_hour
            .map(|hour| u64::try_from(hour.revenue).unwrap_or(u64::MAX))
            .collect(),
    })
}

fn listening(info: &NetInfo) -> Vec<String> {
    info.listening.iter().map(ToString::to_string).collect()
}

fn peer(neighbour: crate::net::Neighbour) -> v1::Peer {
    v1::Peer {
        node_id: peer_id(&neighbour.node).to_string(),
        transport: if neighbour.is_quic { "quic" } else { "tcp" }.to_owned(),
        // Scores lie within some hundreds; what does not fit stands at the end of the range.
        #[expect(clippy::cast_possible_truncation, reason = "a float cast saturates")]
        score_milli: (neighbour.score * 1000.0) as i64,
        topics: to_u32(neighbour.topics),
        in_mesh: neighbour.in_mesh,
        dialled_us: neighbour.dialled_us,
    }
}

fn log(provider: &Provider) -> v1::Log {
    let size = provider.head().borrow().size;
    let start = size.saturating_sub(MAX_ENTRIES);
    let records = provider.log_records(start, size).unwrap_or_else(|error| {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the last entries of the usage log cannot be shown"
        );
        Vec::new()
    });
    let mut entries: Vec<_> = (start..)
        .zip(&records)
        .filter_map(|(index, record)| Some(entry(index, &Entry::decode(&record.entry).ok()?)))
        .collect();
    entries.reverse();
    v1::Log {
        checkpoint_unix_s: provider.checkpointed_at().map(|at| at.0),
        entries,
    }
}

fn entry(index: u64, entry: &Entry) -> v1::LogEntry {
    let (kind, hour, refused) = match entry {
        Entry::Lease(lease) => (OutcomeClass::as_str(lease.outcome), lease.hour, 0),
        Entry::Refusals(totals) => {
            let refused = totals.by_reason().values().copied().map(u64::from).sum();
            ("refusals", totals.hour, refused)
        }
    };
    v1::LogEntry {
        index,
        kind: kind.to_owned(),
        hour_unix_s: u64::from(hour.0) * 3600,
        refused,
    }
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use souk_market::{
        price::Rounding,
        units::{DurationS, Money},
    };

    use super::*;

    #[test]
    fn offers_in_other_assets_come_behind_those_that_can_be_compared_however_few_units_they_ask() {
        let prices = |asset: &str, exponent, amount| Prices {
            asset: asset.parse().expect("an asset"),
            exponent,
            core_hour: Money(amount),
            memory_gib_hour: Money(0),
            disk_gib_hour: Money(0),
            increment: DurationS(1),
            minimum: DurationS(1),
            rounding: Rounding::Up,
        };
        let cheapest_first = [
            None,
            Some(prices("EUR", 6, 9_000)),
            Some(prices("EUR", 2, 1)),
            Some(prices("EUR", 4, 200)),
            Some(prices("SAT", 0, 1)),
            Some(prices("USD", 6, 1)),
        ];
        let own: Asset = "EUR".parse().expect("an asset");
        let mut offers: Vec<_> = cheapest_first.iter().map(Option::as_ref).collect();
        offers.reverse();
        offers.sort_by_key(|prices| rank(*prices, &own));
        let sorted: Vec<_> = cheapest_first.iter().map(Option::as_ref).collect();
        assert_eq!(offers, sorted);
    }
}
