//! Who the node is, what it carries and earns, and why there is no work where there is none.

use ratatui::layout::Rect;
use souk_control::v1;

use super::pen::{Pen, row, wrapped};
use crate::{
    layout,
    state::State,
    text::{amount, bar, bytes, cores, count, duration, many, mib, spark},
};

/// From this width on there are two columns.
const WIDE: u16 = 120;
/// Cells of a name before its value.
const NAME: u16 = 12;

/// A name, its value, and whether it needs a look.
type Line = (&'static str, String, bool);

pub(super) fn draw(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let body = layout::body(state);
    let bars = if body.width >= WIDE { 24 } else { 16 };
    let who = who(state, snapshot);
    let work = work(snapshot, bars);
    let money = money(snapshot, bars);
    let history = history(state, if body.width >= WIDE { 44 } else { 60 });
    let why = why(snapshot);
    if body.width < WIDE {
        let y = section(pen, body, 0, "", &who);
        let y = reasons(pen, body, y, &why);
        let y = section(pen, body, y, "Work", &work);
        let y = section(pen, body, y, "Money", &money);
        section(pen, body, y, "History", &history);
        return;
    }
    let half = body.width / 2;
    let left = Rect::new(body.x, body.y, half - 2, body.height);
    let right = Rect::new(body.x + half, body.y, body.width - half, body.height);
    let y = section(pen, left, 0, "Node", &who);
    section(pen, left, y + 1, "History", &history);
    let y = section(pen, right, 0, "Work", &work);
    let y = section(pen, right, y + 1, "Money", &money);
    reasons(pen, right, y + 1, &why);
}

/// Draws lines under a title; says which row comes next.
fn section(pen: &mut Pen<'_>, area: Rect, mut y: u16, title: &str, lines: &[Line]) -> u16 {
    let theme = pen.theme;
    if !title.is_empty() {
        pen.line(row(area, y), &[(title, theme.title())]);
        y += 1;
    }
    for (name, value, is_bad) in lines {
        let line = row(area, y);
        let style = if *is_bad { theme.bad() } else { theme.text() };
        pen.write(line.x, line.y, NAME.min(line.width), name, theme.faint());
        let sign = if *is_bad { "! " } else { "" };
        let value_area = Rect::new(
            line.x + NAME,
            line.y,
            line.width.saturating_sub(NAME),
            line.height,
        );
        pen.line(value_area, &[(sign, style), (value, style)]);
        y += 1;
    }
    y
}

/// Why there is no work, or what stands in its way; says which row comes next.
fn reasons(pen: &mut Pen<'_>, area: Rect, mut y: u16, why: &[(String, bool)]) -> u16 {
    let theme = pen.theme;
    pen.line(
        row(area, y),
        &[("What stands in the way of work", theme.title())],
    );
    y += 1;
    for (text, is_bad) in why {
        let (mut sign, style) = match is_bad {
            true => ("! ", theme.bad()),
            false => ("  ", theme.text()),
        };
        for line in wrapped(text, usize::from(area.width.saturating_sub(2))) {
            pen.line(row(area, y), &[(sign, style), (&line, style)]);
            y += 1;
            sign = "  ";
        }
    }
    y
}

fn who(state: &State, snapshot: &v1::Snapshot) -> Vec<Line> {
    let Some(status) = &snapshot.status else {
        return Vec::new();
    };
    let up = state.now_s().saturating_sub(status.started_unix_s);
    let standing = match &snapshot.standing {
        Some(v1::StandingReply {
            standing,
            deadline_unix_s: Some(at),
            ..
        }) => format!(
            "{standing}, open leases end in {}",
            duration(at.saturating_sub(state.now_s()))
        ),
        Some(reply) => reply.standing.clone(),
        None => status.standing.clone(),
    };
    let card = match &snapshot.card {
        Some(card) => {
            let left = card.expires_unix_s.saturating_sub(state.now_s());
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
                "{} peers, {} subscribers, {} cards",
                status.peers, network.subscribers, status.cards
            ),
            status.peers == 0,
        ),
    ]
}

fn work(snapshot: &v1::Snapshot, bars: usize) -> Vec<Line> {
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

fn money(snapshot: &v1::Snapshot, bars: usize) -> Vec<Line> {
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

fn history(state: &State, width: usize) -> Vec<Line> {
    let samples = &state.samples;
    let line = |series: &crate::state::Series| {
        format!(
            "{} {}",
            spark(&series.last(width), width),
            count(series.newest())
        )
    };
    vec![
        ("leases", line(&samples.leases), false),
        ("packets/s", line(&samples.received), false),
    ]
}

fn why(snapshot: &v1::Snapshot) -> Vec<(String, bool)> {
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
