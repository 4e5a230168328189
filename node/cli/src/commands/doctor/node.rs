//! What a running node shows of itself and of what it offers.

use souk_node::control::{self, v1};

use super::{Finding, work};
use crate::out;

/// A card that expires sooner was not made again in time, in seconds.
const SOON_S: u64 = 15 * 60;

/// Limits that a careful requester asks for.
pub(super) const LIMITS: [&str; 4] = ["cpu", "memory", "processes", "disk"];

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
        findings.extend(work::look(snapshot, &status, now_unix_s));
    }
    findings.extend(others(&status));
    findings
}

/// What the node says of others. It can come from any stranger, so it is no fault of this one, however much it is.
fn others(status: &v1::StatusReply) -> Option<Finding> {
    let told = status.others.len();
    (told > 0).then(|| {
        Finding::note(
            "others",
            format!(
                "{} about other nodes",
                out::count(told, "warning", "warnings")
            ),
            "who rents should not rely on those; nothing of it stands in the way of this node",
            "nothing is to be mended here; `souk status` says what is known",
        )
    })
}

fn version(program: &str) -> Finding {
    let ours = control::program();
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

#[cfg(test)]
mod tests {
    use super::{
        super::{
            State,
            fixture::{NOW, healthy},
        },
        *,
    };

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
        let broken: [(&str, State, Break); 17] = [
            ("version", State::Note, |s| s.program = "0.0.1".to_owned()),
            ("version", State::Note, |s| s.program.push_str("+other")),
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
            ("others", State::Note, |s| {
                let word = |n| format!("do not rely on provider {n}");
                status(s).others = (0..72).map(word).collect();
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
}
