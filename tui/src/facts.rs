//! What a snapshot says of the node at a glance, in words: for the overview and for whoever prints it once.

use souk_control::v1;

use crate::text::{amount, bar, bytes, cores, count, duration, many, mib, spark};

/// A name, its value, and whether it needs a look.
pub type Fact = (&'static str, String, bool);

/// Who the node is; on a provider also what it carries and what it earns. Without bars.
#[must_use]
pub fn facts(snapshot: &v1::Snapshot, now_unix_s: u64) -> Vec<Fact> {
    let mut facts = who(snapshot, now_unix_s);
    if snapshot.log.is_some() {
        facts.extend(work(snapshot, 0));
        let money = money(snapshot, 0);
        facts.extend(money.into_iter().filter(|(_, value, _)| !value.is_empty()));
    }
    for (_, value, _) in &mut facts {
        *value = value.trim_start().to_owned();
    }
    facts
}

pub(crate) fn who(snapshot: &v1::Snapshot, now_unix_s: u64) -> Vec<Fact> {
    let Some(status) = &snapshot.status else {
        return Vec::new();
    };
    let up = now_unix_s.saturating_sub(status.started_unix_s);
    let standing = match &snapshot.standing {
        Some(v1::StandingReply {
            standing,
            deadline_unix_s: Some(at),
            ..
        }) => format!(
            "{standing}, open leases end in {}",
            duration(at.saturating_sub(now_unix_s))
        ),
        Some(reply) => reply.standing.clone(),
        None => status.standing.clone(),
    };
    let card = match &snapshot.card {
        Some(card) => {
            let left = card.expires_unix_s.saturating_sub(now_unix_s);
            (
                format!(
                    "{}, good for {}, {}",
                    card.sequence,
                    duration(left),
                    bytes(card.bytes.into())
                ),
                left == 0,
            )
        }
        None => ("none: nobody can find this node".to_owned(), true),
    };
    let evidence = snapshot.evidence.clone().unwrap_or_default();
    let tee = match (evidence.tee.as_str(), evidence.digests.len()) {
        ("" | "none", _) => "none: no TEE is offered".to_owned(),
        (tee, 0) => format!("{tee}, without evidence on the card"),
        (tee, n) => format!("{tee}, {n} on the card"),
    };
    let network = snapshot.network.clone().unwrap_or_default();
    vec![
        (
            "version",
            format!("souk {}, up {}", snapshot.program, duration(up)),
            false,
        ),
        ("roles", status.roles.join(", "), false),
        ("stands", standing.clone(), standing != "open"),
        ("card", card.0, card.1),
        ("evidence", tee, false),
        (
            "network",
            format!(
                "{}, {}, {}",
                many(status.peers.into(), "peer"),
                many(network.subscribers.into(), "subscriber"),
                many(status.cards.into(), "card")
            ),
            status.peers == 0,
        ),
    ]
}

pub(crate) fn work(snapshot: &v1::Snapshot, bars: usize) -> Vec<Fact> {
    let leases = snapshot.leases.len() as u64;
    let anonymous = snapshot
        .leases
        .iter()
        .filter(|lease| lease.anonymous)
        .count() as u64;
    let sum = |of: fn(&v1::Backend) -> Option<&v1::Resources>, what: fn(&v1::Resources) -> u32| {
        let backends = snapshot.backends.iter().filter_map(of);
        backends
            .map(|resources| u64::from(what(resources)))
            .sum::<u64>()
    };
    let both = |what: fn(&v1::Resources) -> u32| {
        (
            sum(|b| b.used.as_ref(), what),
            sum(|b| b.total.as_ref(), what),
        )
    };
    let share = |(used, total): (u64, u64), show: fn(u64) -> String| {
        format!(
            "{} {} of {}",
            bar(used, total, bars),
            show(used),
            show(total)
        )
    };
    let stuck = snapshot.orphans.len();
    let paused = snapshot
        .backends
        .iter()
        .filter(|backend| backend.paused)
        .count();
    let failing = snapshot
        .backends
        .iter()
        .filter(|b| b.state.as_ref().is_some_and(|state| state.failures > 0))
        .count();
    vec![
        (
            "leases",
            share((leases, snapshot.max_leases.into()), count),
            false,
        ),
        (
            "anonymous",
            share((anonymous, snapshot.max_anonymous.into()), count),
            false,
        ),
        ("cores", share(both(|r| r.cpu_millicores), cores), false),
        ("memory", share(both(|r| r.memory_mib), mib), false),
        ("disk", share(both(|r| r.disk_mib), mib), false),
        (
            "backends",
            format!(
                "{}, {paused} paused, {failing} failing, {}",
                snapshot.backends.len(),
                many(stuck as u64, "stuck machine")
            ),
            paused + failing + stuck > 0,
        ),
    ]
}

pub(crate) fn money(snapshot: &v1::Snapshot, bars: usize) -> Vec<Fact> {
    let Some(account) = &snapshot.account else {
        return vec![("account", "nothing is known yet".to_owned(), false)];
    };
    let show = |sum: Option<&v1::Sum>| {
        let sum = sum.cloned().unwrap_or_default();
        let at_least = if sum.with_unknown > 0 { "≥" } else { "" };
        format!(
            "earned {} {asset}, cost {at_least}{} {asset}, {}",
            amount(&sum.revenue, account.exponent),
            amount(&sum.cost, account.exponent),
            many(sum.leases, "lease"),
            asset = account.asset,
        )
    };
    let number = |digits: &str| digits.parse::<u128>().unwrap_or_default();
    let loses = account
        .window
        .as_ref()
        .is_some_and(|sum| number(&sum.cost) > number(&sum.revenue));
    vec![
        ("last day", show(account.window.as_ref()), loses),
        ("ever", show(account.lifetime.as_ref()), false),
        ("by hour", spark(&account.revenue_by_hour, bars), false),
    ]
}

pub(crate) fn why(snapshot: &v1::Snapshot) -> Vec<(String, bool)> {
    let Some(status) = &snapshot.status else {
        return Vec::new();
    };
    let mut lines: Vec<_> = status
        .warnings
        .iter()
        .map(|text| (text.clone(), true))
        .collect();
    let mut refusals = status.refusals.clone();
    refusals.sort_by_key(|refusal| std::cmp::Reverse(refusal.value));
    if !refusals.is_empty() {
        let shown: Vec<_> = refusals
            .iter()
            .take(6)
            .map(|refusal| format!("{} {}", count(refusal.value), refusal.name))
            .collect();
        lines.push((
            format!("refused since the start: {}", shown.join(", ")),
            false,
        ));
    }
    if lines.is_empty() {
        lines.push(("nothing that this node can see".to_owned(), false));
    }
    lines
}
