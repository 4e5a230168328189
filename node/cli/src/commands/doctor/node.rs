//! What a running node shows of itself.

use souk_node::control::v1;

use super::{Finding, SMALLEST};

/// A card that expires sooner was not made again in time, in seconds.
const SOON_S: u64 = 15 * 60;

/// Limits that a careful requester asks for.
const LIMITS: [&str; 4] = ["cpu", "memory", "processes", "disk"];

pub(super) fn look(snapshot: &v1::Snapshot, now_unix_s: u64) -> Vec<Finding> {
    let status = snapshot.status.clone().unwrap_or_default();
    let sells = status.roles.iter().any(|role| role == "provider");
    let mut findings = vec![version(&snapshot.program)];
    findings.extend(status.warnings.iter().map(|warning| {
        Finding::bad(
            "warning",
            warning.clone(),
            "the node itself says so",
            "as it says; `souk status` shows whether it is gone",
        )
    }));
    findings.push(peers(snapshot, &status));
    findings.push(reachable(snapshot, &status));
    findings.push(card(snapshot, now_unix_s));
    if sells {
        findings.extend(offers(snapshot));
        findings.extend(backends(snapshot));
        findings.push(room(snapshot));
        findings.push(refusals(&status, snapshot));
        findings.extend(prices(snapshot));
    }
    findings
}

fn version(program: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    if program == ours {
        return Finding::fine("version", format!("the node runs souk {program}"));
    }
    Finding::note(
        "version",
        format!("the node runs souk {program}, and this is {ours}"),
        "the program was replaced and the node not started since, or there are two",
        "restart the node; leases go on",
    )
}

fn peers(snapshot: &v1::Snapshot, status: &v1::StatusReply) -> Finding {
    let subscribers = snapshot.network.as_ref().map_or(0, |n| n.subscribers);
    match (status.peers, subscribers) {
        (0, _) => Finding::bad(
            "peers",
            "no other node is connected",
            "nobody hears of this node, and it hears of nobody",
            "check node.bootstrap, the firewall and the network",
        ),
        (peers, 0) => Finding::bad(
            "peers",
            format!("of {peers} connected nodes none takes part in gossip with this one"),
            "cards travel by gossip",
            "wait a minute; if it stays so, is node.bootstrap on the same network?",
        ),
        (peers, n) => Finding::fine("peers", format!("{peers} connected, {n} in gossip")),
    }
}

fn reachable(snapshot: &v1::Snapshot, status: &v1::StatusReply) -> Finding {
    const CHECK: &str = "reachable";
    let network = snapshot.network.clone().unwrap_or_default();
    if network.reachable {
        return match network.dialled_in {
            0 => Finding::note(
                CHECK,
                "the card names addresses, and no node that is connected has dialled this one",
                "a firewall that lets nobody in looks like this, and so does a node that has just started",
                "if it stays so for an hour, forward the ports of node.listen, and name under node.external what others see",
            ),
            dialled => Finding::fine(
                CHECK,
                format!("of the connected nodes {dialled} have dialled this one"),
            ),
        };
    }
    let what = "nobody can dial this node";
    let fix =
        "forward a port and name it under node.external, or run it where there is a public address";
    let must_be = status.roles.iter().any(|role| role != "provider");
    let is_linked = snapshot.mix.as_ref().is_some_and(|mix| mix.links_up > 0);
    match (must_be, is_linked) {
        (true, _) => Finding::bad(CHECK, what, "a mix, entry or relay must be dialled", fix),
        (false, true) => Finding::note(
            CHECK,
            what,
            "it sells over the links that it dials itself, and nobody can read its usage log as a whole",
            fix,
        ),
        (false, false) => Finding::bad(
            CHECK,
            what,
            "it has no link of its own to any mix either, so no request reaches it",
            fix,
        ),
    }
}

fn card(snapshot: &v1::Snapshot, now_unix_s: u64) -> Finding {
    const CHECK: &str = "card";
    match &snapshot.card {
        None => Finding::bad(
            CHECK,
            "the node has no card",
            "nobody can find it",
            "see the node's log; `souk node refresh-card` makes one and says why not",
        ),
        Some(card) if card.expires_unix_s < now_unix_s + SOON_S => Finding::bad(
            CHECK,
            format!("card {} is over or nearly so", card.sequence),
            "the node did not make a new one in time",
            "souk node refresh-card; see the node's log, and the clock",
        ),
        Some(card) if card.keys_elsewhere => Finding::bad(
            CHECK,
            "another node makes cards with the keys of this one",
            "each replaces the card of the other, and requesters reach now one, now the other",
            "stop one of them; a second node needs a data folder of its own, not a copy of this one",
        ),
        Some(card) => Finding::fine(CHECK, format!("card {} is published", card.sequence)),
    }
}

fn offers(snapshot: &v1::Snapshot) -> Vec<Finding> {
    const CHECK: &str = "offer";
    let Some(card) = &snapshot.card else {
        return Vec::new();
    };
    let Some(offer) = card.offers.first() else {
        return vec![Finding::bad(
            CHECK,
            "the card offers nothing",
            "no request can match it",
            "set provider.allow_shared_kernel, and see the node's log for the backend",
        )];
    };
    let mut findings = Vec::new();
    if offer.images.is_empty() {
        findings.push(Finding::bad(
            CHECK,
            "the card names no image",
            "a requester rents an image, so nothing can be rented",
            "souk image build, or souk image import FILE; then restart the node, which leases outlive",
        ));
    }
    let missing: Vec<_> = LIMITS
        .into_iter()
        .filter(|limit| !offer.enforced.iter().any(|enforced| enforced == limit))
        .collect();
    if !missing.is_empty() {
        findings.push(Finding::note(
            CHECK,
            format!("not enforced: {}", missing.join(", ")),
            "requesters who ask for these limits do not match, and one tenant can take what is another's",
            "run the node as root, or give its user a cgroup of its own (Delegate=yes in the unit)",
        ));
    }
    if !offer.anonymous {
        findings.push(Finding::note(
            CHECK,
            "only requesters with a grant are served",
            "most requesters are anonymous",
            "set provider.anonymous to serve them too",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::fine(
            CHECK,
            "all limits are enforced, and there is an image",
        ));
    }
    findings
}

fn backends(snapshot: &v1::Snapshot) -> Vec<Finding> {
    const CHECK: &str = "backends";
    let mut findings = Vec::new();
    for backend in &snapshot.backends {
        let state = backend.state.clone().unwrap_or_default();
        if state.failures > 0 {
            findings.push(Finding::bad(
                CHECK,
                format!("{} cannot be listed: {}", state.backend, state.error),
                "what runs there cannot be held against the journal, and it is not trusted with more",
                "mend the backend; it is asked again by itself",
            ));
        }
        if backend.paused {
            findings.push(Finding::note(
                CHECK,
                format!("{} is paused", state.backend),
                "no new leases are placed there",
                format!("souk node unpause {}", state.backend),
            ));
        }
    }
    if !snapshot.orphans.is_empty() {
        findings.push(Finding::bad(
            CHECK,
            format!(
                "{} instances run that no lease owns",
                snapshot.orphans.len()
            ),
            "they take room and earn nothing",
            "souk leases --orphans says why; souk node reap removes one",
        ));
    }
    if findings.is_empty() {
        let backends = snapshot.backends.len();
        findings.push(match backends {
            0 => Finding::bad(
                CHECK,
                "there is none",
                "nothing can be provisioned",
                "see the node's log for why it did not open",
            ),
            _ => Finding::fine(CHECK, format!("{backends} of {backends} can be listed")),
        });
    }
    findings
}

fn room(snapshot: &v1::Snapshot) -> Finding {
    const CHECK: &str = "room";
    const REFUSED: &str = "new requests are refused for want of room";
    let (open, most) = (snapshot.leases.len(), snapshot.max_leases);
    if u32::try_from(open).unwrap_or(u32::MAX) >= most {
        return Finding::note(
            CHECK,
            format!("{open} of {most} leases are open"),
            REFUSED,
            "no node holds more; start another one on another machine",
        );
    }
    let placing = snapshot.backends.iter().filter(|backend| !backend.paused);
    let mut placing = placing.peekable();
    if placing.peek().is_some() && !placing.any(has_room) {
        return Finding::note(
            CHECK,
            format!("{open} leases are open, and nothing is left of the machine for another"),
            REFUSED,
            "raise what provider sells, if the machine has more; else it earns what it can",
        );
    }
    Finding::fine(CHECK, format!("{open} of {most} leases are open"))
}

/// Whether the smallest machine that is worth renting still fits.
fn has_room(backend: &v1::Backend) -> bool {
    let (Some(total), Some(used)) = (&backend.total, &backend.used) else {
        return false;
    };
    let fits = |total: u32, used: u32, wanted| total.saturating_sub(used) >= wanted;
    fits(
        total.cpu_millicores,
        used.cpu_millicores,
        SMALLEST.cpu_millicores,
    ) && fits(total.memory_mib, used.memory_mib, SMALLEST.memory_mib)
        && fits(total.disk_mib, used.disk_mib, SMALLEST.disk_mib)
        && fits(
            total.max_processes,
            used.max_processes,
            SMALLEST.max_processes,
        )
}

/// Why no work: what came, and what became of it.
fn refusals(status: &v1::StatusReply, snapshot: &v1::Snapshot) -> Finding {
    const CHECK: &str = "requests";
    let mut refused: Vec<_> = status.refusals.iter().filter(|c| c.value > 0).collect();
    refused.sort_by_key(|counter| std::cmp::Reverse(counter.value));
    let total: u64 = refused.iter().map(|counter| counter.value).sum();
    let closed = snapshot
        .account
        .as_ref()
        .and_then(|account| account.lifetime.as_ref())
        .map_or(0, |sum| sum.leases);
    let open = snapshot.leases.len();
    let what = format!(
        "{open} leases are open, {closed} have closed, {total} requests were refused since the start"
    );
    let reasons: Vec<_> = refused
        .iter()
        .map(|counter| format!("{} {}", counter.value, counter.name))
        .collect();
    match (total, open) {
        (0, 0) if closed == 0 => Finding::note(
            CHECK,
            "no request ever came",
            "nobody's wish matches this card, or nobody knows it yet",
            "compare it with `souk node market`: price, limits, image, anonymous; then `souk doctor --lease`",
        ),
        (0, _) => Finding::fine(CHECK, what),
        (_, 0) => Finding::note(
            CHECK,
            format!("{what}: {}", reasons.join(", ")),
            "requests come, and this node says no",
            "the reasons are explained in docs/lease-messages.md",
        ),
        _ => Finding::fine(CHECK, format!("{what}: {}", reasons.join(", "))),
    }
}

/// What others ask, where that can be said.
fn prices(snapshot: &v1::Snapshot) -> Option<Finding> {
    let own = snapshot.card.as_ref()?.offers.first()?;
    let market = snapshot.market.as_ref()?;
    let others: Vec<_> = market
        .offers
        .iter()
        .filter(|offer| offer.node_id != own.node_id)
        .collect();
    // They come with the lowest price of a core first, ours among them.
    let before = market
        .offers
        .iter()
        .take_while(|offer| offer.node_id != own.node_id)
        .count();
    Some(match (others.len(), before) {
        (0, _) => Finding::fine(
            "price",
            format!("{}; nobody else offers anything", own.price),
        ),
        (all, before) => Finding::fine(
            "price",
            format!(
                "{}; {before} of {all} other offers ask less for a core",
                own.price
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::{super::State, *};

    const NOW: u64 = 1_800_000_000;

    /// A provider with nothing to mend.
    fn healthy() -> v1::Snapshot {
        let offer = v1::Offer {
            node_id: "us".to_owned(),
            price: "1.00 EUR a core-hour".to_owned(),
            anonymous: true,
            enforced: LIMITS.map(str::to_owned).to_vec(),
            images: vec!["image".to_owned()],
            ..v1::Offer::default()
        };
        let backend = v1::Backend {
            state: Some(v1::BackendState {
                backend: "sandbox".to_owned(),
                ..v1::BackendState::default()
            }),
            total: Some(v1::Resources {
                cpu_millicores: 4_000,
                memory_mib: 4_096,
                disk_mib: 8_192,
                max_processes: 4_096,
            }),
            used: Some(v1::Resources::default()),
            ..v1::Backend::default()
        };
        v1::Snapshot {
            program: env!("CARGO_PKG_VERSION").to_owned(),
            status: Some(v1::StatusReply {
                roles: vec!["provider".to_owned()],
                peers: 3,
                cards: 4,
                standing: "open".to_owned(),
                ..v1::StatusReply::default()
            }),
            card: Some(v1::OwnCard {
                expires_unix_s: NOW + 3_600,
                offers: vec![offer.clone()],
                ..v1::OwnCard::default()
            }),
            max_leases: 8,
            backends: vec![backend],
            leases: vec![v1::Lease::default()],
            market: Some(v1::Market {
                offers: vec![offer],
                ..v1::Market::default()
            }),
            network: Some(v1::Network {
                subscribers: 3,
                reachable: true,
                dialled_in: 3,
                ..v1::Network::default()
            }),
            ..v1::Snapshot::default()
        }
    }

    #[test]
    fn nothing_is_invented_on_a_healthy_node() {
        let found = look(&healthy(), NOW);
        assert!(found.iter().all(|f| f.state == State::Fine), "{found:#?}");
        assert!(found.len() >= 9, "all of it was looked at: {found:#?}");
    }

    /// Breaks one thing of a snapshot.
    type Break = fn(&mut v1::Snapshot);

    #[test]
    fn each_broken_thing_is_found_and_nothing_else() {
        fn status(snapshot: &mut v1::Snapshot) -> &mut v1::StatusReply {
            snapshot.status.as_mut().expect("there")
        }
        fn offer(snapshot: &mut v1::Snapshot) -> &mut v1::Offer {
            &mut snapshot.card.as_mut().expect("there").offers[0]
        }
        let broken: [(&str, State, Break); 18] = [
            ("version", State::Note, |s| s.program = "0.0.1".to_owned()),
            ("warning", State::Bad, |s| {
                status(s).warnings = vec!["the clock is behind".to_owned()];
            }),
            ("peers", State::Bad, |s| status(s).peers = 0),
            ("peers", State::Bad, |s| {
                s.network.as_mut().expect("there").subscribers = 0;
            }),
            ("reachable", State::Bad, |s| {
                s.network.as_mut().expect("there").reachable = false;
            }),
            ("reachable", State::Note, |s| {
                s.network.as_mut().expect("there").dialled_in = 0;
            }),
            ("card", State::Bad, |s| {
                s.card.as_mut().expect("there").expires_unix_s = NOW + 5;
            }),
            ("card", State::Bad, |s| {
                s.card.as_mut().expect("there").keys_elsewhere = true;
            }),
            ("offer", State::Bad, |s| {
                s.card.as_mut().expect("there").offers.clear();
            }),
            ("offer", State::Bad, |s| offer(s).images.clear()),
            ("offer", State::Note, |s| {
                offer(s).enforced.retain(|limit| limit != "memory");
            }),
            ("offer", State::Note, |s| offer(s).anonymous = false),
            ("backends", State::Bad, |s| {
                let state = s.backends[0].state.as_mut().expect("there");
                (state.failures, state.error) = (3, "permission denied".to_owned());
            }),
            ("backends", State::Note, |s| s.backends[0].paused = true),
            ("backends", State::Bad, |s| {
                s.orphans = vec![v1::Orphan::default()];
            }),
            ("room", State::Note, |s| s.max_leases = 1),
            ("room", State::Note, |s| {
                s.backends[0].used = s.backends[0].total;
            }),
            ("requests", State::Note, |s| {
                s.leases.clear();
                status(s).refusals = vec![v1::Counter {
                    name: "no-room".to_owned(),
                    value: 4,
                }];
            }),
        ];
        for (at, (check, state, break_it)) in broken.into_iter().enumerate() {
            let mut snapshot = healthy();
            break_it(&mut snapshot);
            let found = look(&snapshot, NOW);
            let told: Vec<_> = found.iter().filter(|f| f.state != State::Fine).collect();
            assert_eq!(told.len(), 1, "{at}: {told:#?}");
            assert_eq!((told[0].check, told[0].state), (check, state), "{at}");
            assert!(!told[0].why.is_empty() && !told[0].fix.is_empty(), "{at}");
        }
    }

    #[test]
    fn who_was_never_asked_is_told_so_apart_from_who_says_no() {
        let mut quiet = healthy();
        quiet.leases.clear();
        let found = look(&quiet, NOW);
        let requests = found.iter().find(|f| f.check == "requests").expect("there");
        assert_eq!(requests.what, "no request ever came");
    }
}
