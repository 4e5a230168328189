//! Why a provider has no work: whether there is room for any, what came of what was asked, and what others ask for theirs.
//!
//! Threat: strangers who send anything, as often as they like. What costs them nothing is told, and never outweighs leases.

use souk_crypto::UnixTime;
use souk_node::control::v1;

use super::{Finding, SMALLEST};
use crate::out;

/// The window that leases are looked at in where the node does not say, in seconds.
const DAY_S: u32 = 24 * 3_600;

pub(super) fn look(
    snapshot: &v1::Snapshot,
    status: &v1::StatusReply,
    now_unix_s: u64,
) -> Vec<Finding> {
    let mut findings = vec![room(snapshot), requests(snapshot, status, now_unix_s)];
    findings.extend(price(snapshot));
    findings
}

fn room(snapshot: &v1::Snapshot) -> Finding {
    const CHECK: &str = "room";
    const REFUSED: &str = "new requests are refused for want of room";
    let is_full = |open: usize, most: u32| u32::try_from(open).unwrap_or(u32::MAX) >= most;
    let (open, most) = (snapshot.leases.len(), snapshot.max_leases);
    if is_full(open, most) {
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
    let anonymous = snapshot.leases.iter().filter(|lease| lease.anonymous);
    let (anonymous, most_anonymous) = (anonymous.count(), snapshot.max_anonymous);
    // None at all is a matter of the offer.
    if most_anonymous > 0 && is_full(anonymous, most_anonymous) {
        return Finding::note(
            CHECK,
            format!("{anonymous} of {most_anonymous} anonymous leases are open"),
            "new requests without a grant are refused, and most requesters are anonymous",
            "raise provider.anonymous_max_leases, if the machine has room for more",
        );
    }
    Finding::fine(
        CHECK,
        format!(
            "{open} of {most} leases are open, and {anonymous} of {most_anonymous} anonymous ones"
        ),
    )
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

/// What came, and what became of it.
fn requests(snapshot: &v1::Snapshot, status: &v1::StatusReply, now_unix_s: u64) -> Finding {
    const CHECK: &str = "requests";
    let account = snapshot.account.as_ref();
    let window_s = account.map_or(DAY_S, |account| account.window_s);
    let closed = account.and_then(|account| account.window.as_ref());
    let closed = closed.map_or(0, |sum| sum.leases);
    let open = snapshot.leases.len();
    let leases = u128::from(closed) + open as u128;
    let refused: u64 = status.refusals.iter().map(|counter| counter.value).sum();
    let unread = unread(status);

    let work = format!(
        "{}, {}",
        out::count(open, "lease is open", "leases are open"),
        match account {
            Some(_) => format!("{closed} closed within the last {} h", window_s / 3_600),
            None => "the usage log was not read yet".to_owned(),
        }
    );
    let started = out::time(UnixTime(status.started_unix_s), UnixTime(now_unix_s));
    let came: Vec<_> = refusals(status).into_iter().chain(unread.clone()).collect();
    let what = format!(
        "{work}; since the start ({started}): {}",
        match came.is_empty() {
            true => "nothing was refused".to_owned(),
            false => came.join(", "),
        }
    );
    // They are counted since the start: where that is longer ago than the window, what falls to one on average.
    let up_s = now_unix_s.saturating_sub(status.started_unix_s);
    let span_s = up_s.max(window_s.into());
    if u128::from(refused) * u128::from(window_s) > leases * u128::from(span_s) {
        return Finding::note(
            CHECK,
            what,
            "requests come, and this node says no to most of them",
            "the reasons are explained in docs/lease-messages.md",
        );
    }
    match (leases, unread.is_empty()) {
        (0, true) => Finding::note(
            CHECK,
            format!("{work}; no request came since the start ({started})"),
            "nobody's wish matches this card, or nobody knows it yet",
            "compare it with `souk node market`: price, limits, image, anonymous; then `souk doctor --lease`",
        ),
        (0, false) => Finding::note(
            CHECK,
            what,
            "messages come and are dropped unread: without the work that the card asks for, past the rate, or no requests",
            "`souk doctor --lease` shows whether a request gets in; provider.work_bits says how much work is asked for",
        ),
        _ => Finding::fine(CHECK, what),
    }
}

/// How many requests were refused since the start, and why, the most frequent reason first.
fn refusals(status: &v1::StatusReply) -> Option<String> {
    let mut refused: Vec<_> = status.refusals.iter().filter(|c| c.value > 0).collect();
    refused.sort_by_key(|counter| std::cmp::Reverse(counter.value));
    let total: u64 = refused.iter().map(|counter| counter.value).sum();
    let reasons: Vec<_> = refused
        .iter()
        .map(|counter| format!("{} {}", counter.value, counter.name))
        .collect();
    (total > 0).then(|| format!("{total} refused ({})", reasons.join(", ")))
}

/// What was dropped since the start before anybody read a request in it.
fn unread(status: &v1::StatusReply) -> Vec<String> {
    let kinds = [
        (&status.mix, "not_admitted", "fragments not let in"),
        (
            &status.provider,
            "unreadable",
            "messages that are no requests",
        ),
        (
            &status.provider,
            "dropped",
            "dropped as too much was waiting",
        ),
    ];
    let counted = kinds.into_iter().filter_map(|(counters, name, what)| {
        let counter = counters.iter().find(|counter| counter.name == name)?;
        (counter.value > 0).then(|| format!("{} {what}", counter.value))
    });
    counted.collect()
}

/// What others ask, where that can be said.
fn price(snapshot: &v1::Snapshot) -> Option<Finding> {
    let own = snapshot.card.as_ref()?.offers.first()?;
    let asked = core_hour(own)?;
    let others = snapshot.market.as_ref()?.offers.iter();
    let others = others.filter(|offer| offer.node_id != own.node_id);
    // An amount of one asset says nothing of another; what is free can be held against any.
    let comparable = others.filter(|offer| offer.asset.is_empty() || offer.asset == own.asset);
    let prices: Vec<_> = comparable.filter_map(core_hour).collect();
    let less = prices.iter().filter(|price| **price < asked).count();
    let what = match prices.len() {
        0 => "nobody else offers anything that can be compared".to_owned(),
        all => format!("{less} of {all} other offers that can be compared ask less for a core"),
    };
    Some(Finding::fine("price", format!("{}; {what}", own.price)))
}

/// None where the node is of a version that does not say.
fn core_hour(offer: &v1::Offer) -> Option<u128> {
    offer.core_hour.parse().ok()
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

    fn find(snapshot: &v1::Snapshot, check: &str) -> Finding {
        let status = snapshot.status.clone().expect("there");
        let found = look(snapshot, &status, NOW);
        let found = found.into_iter().find(|finding| finding.check == check);
        found.expect("it is looked at")
    }

    fn status(snapshot: &mut v1::Snapshot) -> &mut v1::StatusReply {
        snapshot.status.as_mut().expect("there")
    }

    fn counter(name: &str, value: u64) -> v1::Counter {
        v1::Counter {
            name: name.to_owned(),
            value,
        }
    }

    /// A node at which no lease is open, and so many closed.
    fn idle(window: u64, lifetime: u64) -> v1::Snapshot {
        let sum = |leases| v1::Sum {
            leases,
            ..v1::Sum::default()
        };
        let account = v1::Account {
            lifetime: Some(sum(lifetime)),
            window: Some(sum(window)),
            window_s: 86_400,
            ..v1::Account::default()
        };
        v1::Snapshot {
            leases: Vec::new(),
            account: Some(account),
            ..healthy()
        }
    }

    #[test]
    fn leases_machine_and_anonymous_places_are_each_told_when_they_are_full() {
        assert_eq!(find(&healthy(), "room").state, State::Fine);
        let mut few = healthy();
        few.max_leases = 1;
        let mut used = healthy();
        used.backends[0].used = used.backends[0].total;
        let mut anonymous = healthy();
        let lease = v1::Lease {
            anonymous: true,
            ..v1::Lease::default()
        };
        anonymous.leases = vec![lease; 4];
        for (full, what) in [
            (&few, "1 of 1 leases"),
            (&used, "nothing is left"),
            (&anonymous, "4 of 4 anonymous leases"),
        ] {
            let room = find(full, "room");
            assert_eq!(room.state, State::Note, "{room:?}");
            assert!(room.what.contains(what), "{room:?}");
        }
        anonymous.leases[0].anonymous = false;
        assert_eq!(find(&anonymous, "room").state, State::Fine);
    }

    #[test]
    fn a_lease_that_closed_before_the_last_day_is_no_work() {
        assert_eq!(find(&idle(1, 40), "requests").state, State::Fine);
        let requests = find(&idle(0, 40), "requests");
        assert_eq!(requests.state, State::Note);
        assert!(requests.what.contains("no request came"), "{requests:?}");
        assert!(requests.what.contains("60 min ago"), "{requests:?}");
    }

    #[test]
    fn refusals_are_held_against_the_leases_of_as_long_a_time() {
        let mut refusing = healthy();
        status(&mut refusing).refusals = vec![counter("expired", 1), counter("too-large", 9_999)];
        let requests = find(&refusing, "requests");
        assert_eq!(requests.state, State::Note);
        let told = "10000 refused (9999 too-large, 1 expired)";
        assert!(requests.what.contains(told), "{requests:?}");
        // One in four days, beside a lease.
        status(&mut refusing).refusals = vec![counter("expired", 10)];
        status(&mut refusing).started_unix_s = NOW - 40 * 86_400;
        assert_eq!(find(&refusing, "requests").state, State::Fine);
        // However long ago they were, beside nothing.
        let mut idle = idle(0, 40);
        idle.status = refusing.status;
        let requests = find(&idle, "requests");
        assert_eq!(requests.state, State::Note);
        assert!(requests.what.contains("10 refused"), "{requests:?}");
    }

    #[test]
    fn what_was_dropped_unread_is_no_silence_and_does_not_outweigh_a_lease() {
        for (of_mix, of_provider) in [(3_000, [0, 0]), (0, [3_000, 0]), (0, [0, 3_000])] {
            let mut idle = idle(0, 0);
            let [unreadable, dropped] = of_provider;
            status(&mut idle).mix = vec![counter("not_admitted", of_mix)];
            status(&mut idle).provider = vec![
                counter("unreadable", unreadable),
                counter("dropped", dropped),
            ];
            let requests = find(&idle, "requests");
            assert_eq!(requests.state, State::Note);
            assert!(requests.what.contains("3000 "), "{requests:?}");
            assert!(!requests.what.contains("no request came"), "{requests:?}");
            idle.leases = healthy().leases;
            assert_eq!(find(&idle, "requests").state, State::Fine);
        }
    }

    #[test]
    fn prices_of_another_asset_are_not_counted() {
        let mut snapshot = healthy();
        let market = snapshot.market.as_mut().expect("there");
        for (asset, core_hour) in [
            ("SAT", "1000000000000000"),
            ("EUR", "999999999999999999"),
            ("EUR", "1000000000000000001"),
            ("", "0"),
        ] {
            market.offers.push(v1::Offer {
                node_id: "other".to_owned(),
                asset: asset.to_owned(),
                core_hour: core_hour.to_owned(),
                ..v1::Offer::default()
            });
        }
        let price = find(&snapshot, "price");
        assert!(price.what.contains("2 of 3 other offers"), "{price:?}");
    }
}
