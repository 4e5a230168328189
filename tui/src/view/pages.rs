//! The pages with a table, and the mix.

use ratatui::{layout::Rect, style::Style};
use souk_control::v1;

use super::{
    pen::{Pen, row},
    table::{self, Column},
};
use crate::{
    happening, layout,
    state::{Row, State},
    text::{amount, bytes, cores, count, duration, many, meter, mib, spark},
};

pub(super) fn backends(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let text = format!(
        "{}; below it {} that no lease owns",
        many(snapshot.backends.len() as u64, "backend"),
        many(snapshot.orphans.len() as u64, "stuck machine")
    );
    pen.line(row(head, 0), &[(&text, theme.faint())]);
    let columns = [
        Column::text("BACKEND", 14),
        Column::text("STATE", 41).growing(60),
        Column::number("LEASES", 6),
        Column::number("CORES", 11),
        Column::number("MEMORY", 19),
        Column::number("DISK", 19),
        Column::number("LISTED", 8),
    ];
    table::draw(
        pen,
        area,
        state,
        &columns,
        "this node is no provider",
        |which| match which {
            Row::Backend(at) => Some(backend(
                snapshot.backends.get(at)?,
                theme.text(),
                theme.bad(),
            )),
            Row::Orphan(at) => {
                let orphan = snapshot.orphans.get(at)?;
                let failed = match orphan.failed {
                    0 => String::new(),
                    n => format!(", {n} failed"),
                };
                let state = format!(
                    "! {}, {}{failed} for {}",
                    orphan.reason,
                    orphan.state,
                    duration(orphan.age_s)
                );
                // Its id goes under the name, so that it can be told from the others.
                Some((vec![orphan.lease.clone(), state], theme.bad()))
            }
            _ => None,
        },
    );
}

fn backend(backend: &v1::Backend, well: Style, bad: Style) -> table::Cells {
    let state = backend.state.clone().unwrap_or_default();
    let (used, total) = (
        backend.used.unwrap_or_default(),
        backend.total.unwrap_or_default(),
    );
    let (word, style) = if state.failures > 0 {
        (
            format!("✖ {} lists failed: {}", state.failures, state.error),
            bad,
        )
    } else if backend.paused {
        ("! paused".to_owned(), bad)
    } else if state.listed_ago_s.is_none() {
        ("○ not listed yet".to_owned(), well)
    } else {
        ("● works".to_owned(), well)
    };
    let pair = |used: u32, total: u32, show: fn(u64) -> String| {
        format!("{}/{}", show(used.into()), show(total.into()))
    };
    let texts = vec![
        state.backend,
        word,
        backend.leases.to_string(),
        pair(used.cpu_millicores, total.cpu_millicores, cores),
        pair(used.memory_mib, total.memory_mib, mib),
        pair(used.disk_mib, total.disk_mib, mib),
        state
            .listed_ago_s
            .map_or_else(|| "never".to_owned(), duration),
    ];
    (texts, style)
}

pub(super) fn leases(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let text = format!(
        "{} open of {}; nobody here knows who rents",
        count(snapshot.leases.len() as u64),
        count(snapshot.max_leases.into())
    );
    pen.line(row(head, 0), &[(&text, theme.faint())]);
    let columns = [
        Column::text("LEASE", 12).growing(20),
        Column::text("STATE", 14),
        Column::text("BACKEND", 10).growing(8),
        Column::number("AGE", 7),
        Column::number("ENDS IN", 7),
        Column::number("CORES", 6),
        Column::number("MEMORY", 9),
        Column::number("CPU USED", 9),
        Column::number("NET IN", 10),
        Column::number("NET OUT", 10),
        Column::text("HOLDER", 10),
    ];
    let now = state.now_s();
    table::draw(pen, area, state, &columns, "no lease is open", |which| {
        let Row::Lease(at) = which else { return None };
        let lease = snapshot.leases.get(at)?;
        let usage = lease.usage.unwrap_or_default();
        let (sign, style) = match lease.state.as_str() {
            "active" => ("●", theme.text()),
            "provisioning" => ("○", theme.text()),
            _ => ("!", theme.bad()),
        };
        let holder = if lease.anonymous {
            "anonymous"
        } else {
            "vouched"
        };
        let texts = vec![
            lease.lease.clone(),
            format!("{sign} {}", lease.state),
            lease.backend.clone(),
            duration(now.saturating_sub(lease.accepted_unix_s)),
            duration(lease.valid_to_unix_s.saturating_sub(now)),
            cores(lease.cpu_millicores.into()),
            mib(lease.memory_mib.into()),
            meter(usage.cpu_core_ms, |ms| duration(ms / 1000)),
            meter(usage.net_rx_bytes, bytes),
            meter(usage.net_tx_bytes, bytes),
            holder.to_owned(),
        ];
        Some((texts, style))
    });
}

pub(super) fn mix(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let body = layout::body(state);
    let theme = pen.theme;
    let mix = snapshot.mix.unwrap_or_default();
    let width = usize::from(body.width).saturating_sub(34).min(120);
    let rate = |series: &crate::state::Series| {
        let per_s = series.newest();
        let bandwidth = bytes(per_s.saturating_mul(mix.packet_bytes.into()));
        format!(
            "{:>8}/s {bandwidth:>9}/s  {}",
            count(per_s),
            spark(&series.last(width), width)
        )
    };
    let lines = [
        ("packets in", rate(&state.samples.received)),
        ("packets out", rate(&state.samples.sent)),
        (
            "delay",
            format!("{} ms a hop on average", mix.mean_delay_ms),
        ),
        (
            "queue",
            format!(
                "{} of {}  {}",
                count(mix.queue.into()),
                count(mix.queue_max.into()),
                spark(&state.samples.queue.last(width), width)
            ),
        ),
        (
            "links",
            format!(
                "{} open, {} frames found none",
                mix.links_up,
                count(mix.packets_dropped)
            ),
        ),
    ];
    for (y, (name, value)) in (0..).zip(&lines) {
        let line = row(body, y);
        pen.write(line.x, line.y, 12.min(line.width), name, theme.faint());
        let value_area = Rect::new(
            line.x + 12,
            line.y,
            line.width.saturating_sub(12),
            line.height,
        );
        pen.line(value_area, &[(value, theme.text())]);
    }
    let first = u16::try_from(lines.len()).unwrap_or_default() + 1;
    pen.line(row(body, first), &[("Since the start", theme.title())]);
    let counters = snapshot.status.iter().flat_map(|status| &status.mix);
    // In columns, as many as fit.
    let width = 38.min(body.width.max(1));
    let columns = (body.width / width).max(1);
    let rows = body.height.saturating_sub(first + 1).max(1);
    for (at, counter) in (0u16..).zip(counters) {
        let (column, y) = match columns {
            1 => (0, at),
            _ => (at % columns, at / columns),
        };
        if y >= rows {
            break;
        }
        let line = row(body, first + 1 + y);
        let x = line.x + column * width;
        let name = counter.name.replace('_', " ");
        let is_loss = counter.value > 0 && is_loss(&counter.name);
        let (sign, style) = match is_loss {
            true => ("! ", theme.bad()),
            false => ("  ", theme.text()),
        };
        if line.width > 0 {
            pen.write(x, line.y, 2, sign, style);
            pen.write(x + 2, line.y, 20, &name, style);
            pen.write_right(
                x + 22,
                line.y,
                width.saturating_sub(26),
                &count(counter.value),
                style,
            );
        }
    }
}

/// Packets that went nowhere: what an operator should ask about when it grows.
fn is_loss(counter: &str) -> bool {
    matches!(
        counter,
        "tags_full"
            | "tags_unwritten"
            | "pool_full"
            | "link_refused"
            | "mailbox_full"
            | "unread"
            | "replies_dropped"
    )
}

pub(super) fn market(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let market = snapshot.market.clone().unwrap_or_default();
    let seen = format!(
        "{} cards: {} providers, {} mixes, {} entries, {} relays",
        count(market.cards.into()),
        market.providers,
        market.mixes,
        market.entries,
        market.relays
    );
    pen.line(row(head, 0), &[(&seen, theme.text())]);
    let own = match &snapshot.card {
        Some(card) => format!(
            "this node's card: {} {}, {}, {} offers",
            card.sequence,
            card.digest,
            bytes(card.bytes.into()),
            card.offers.len()
        ),
        None => "this node has no card".to_owned(),
    };
    pen.line(row(head, 1), &[(&own, theme.text())]);
    let offers = snapshot.card.iter().flat_map(|card| &card.offers);
    for (y, offer) in (2..3).zip(offers) {
        let text = format!(
            "others see: {} {} cores {}, {}, room: {}",
            offer.arch,
            cores(offer.cpu_millicores.into()),
            mib(offer.memory_mib.into()),
            offer.price,
            room(&offer.capacity)
        );
        pen.line(row(head, y), &[(&text, theme.accent())]);
    }
    let others = snapshot.status.iter().flat_map(|status| &status.others);
    let others = others.count();
    if others > 0 {
        let text = format!(
            "! against other nodes: {}; `souk status` says what",
            many(others as u64, "warning")
        );
        pen.line(row(head, 3), &[(&text, theme.text())]);
    }
    let columns = [
        Column::text("", 2),
        Column::text("PROVIDER", 16).growing(36),
        Column::number("PRICE OF A CORE", 30),
        Column::number("CORES", 7),
        Column::number("MEMORY", 9),
        Column::text("ROOM", 7),
        Column::text("ARCH", 8),
        Column::text("KERNEL", 8),
        Column::text("ANONYMOUS", 9),
        Column::number("GOOD FOR", 8),
    ];
    let own = snapshot
        .status
        .as_ref()
        .map_or("", |status| status.node_id.as_str());
    table::draw(
        pen,
        area,
        state,
        &columns,
        "no provider is known",
        |which| {
            let Row::Offer(at) = which else { return None };
            let offer = market.offers.get(at)?;
            let (sign, style) = match (&offer.warning, offer.node_id == own) {
                (Some(_), _) => ("!", theme.bad()),
                (None, true) => ("▶", theme.accent()),
                (None, false) => ("", theme.text()),
            };
            let texts = vec![
                sign.to_owned(),
                offer.node_id.clone(),
                offer.price.clone(),
                cores(offer.cpu_millicores.into()),
                mib(offer.memory_mib.into()),
                room(&offer.capacity).to_owned(),
                offer.arch.clone(),
                if offer.shared_kernel { "shared" } else { "own" }.to_owned(),
                if offer.anonymous { "yes" } else { "no" }.to_owned(),
                duration(offer.expires_unix_s.saturating_sub(state.now_s())),
            ];
            Some((texts, style))
        },
    );
}

fn room(capacity: &str) -> &str {
    if capacity.is_empty() {
        "unheard"
    } else {
        capacity
    }
}

pub(super) fn network(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let network = snapshot.network.clone().unwrap_or_default();
    let addresses = snapshot
        .status
        .as_ref()
        .map_or_else(String::new, |s| s.addresses.join("  "));
    let reach = match network.reachable {
        true => (format!("● others can dial {addresses}"), theme.text()),
        false => (
            "✖ nobody can dial this node; set node.listen or node.external".to_owned(),
            theme.bad(),
        ),
    };
    let mix = snapshot.mix.unwrap_or_default();
    let rate = |series: &crate::state::Series| {
        bytes(series.newest().saturating_mul(mix.packet_bytes.into()))
    };
    let lines = [
        reach,
        (
            format!("listens on {}", network.listening.join("  ")),
            theme.text(),
        ),
        (
            format!(
                "{} connections, {} subscribers ({} in the mesh), {} nodes in the routing table, {} offences",
                network.connections,
                network.subscribers,
                network.mesh,
                network.routable,
                count(network.offences)
            ),
            theme.text(),
        ),
        (
            format!(
                "mix {}/s in, {}/s out; relay {} sessions, {} carried; {} packets in mailboxes",
                rate(&state.samples.received),
                rate(&state.samples.sent),
                count(network.relay_sessions),
                bytes(network.relayed_bytes),
                count(network.mailbox_packets)
            ),
            theme.text(),
        ),
    ];
    for (y, (text, style)) in (0..).zip(&lines) {
        pen.line(row(head, y), &[(text, *style)]);
    }
    let columns = [
        Column::text("NODE", 40).growing(14),
        Column::text("TRANSPORT", 9),
        Column::number("SCORE", 9),
        Column::number("TOPICS", 6),
        Column::text("MESH", 4),
    ];
    table::draw(
        pen,
        area,
        state,
        &columns,
        "no node takes part in gossip with this one",
        |which| {
            let Row::Peer(at) = which else { return None };
            let peer = network.peers.get(at)?;
            let score = peer.score_milli;
            let sign = if score < 0 { "-" } else { "" };
            let texts = vec![
                peer.node_id.clone(),
                peer.transport.clone(),
                format!("{sign}{}", amount(&score.unsigned_abs().to_string(), 3)),
                peer.topics.to_string(),
                if peer.in_mesh { "yes" } else { "no" }.to_owned(),
            ];
            Some((texts, if score < 0 { theme.bad() } else { theme.text() }))
        },
    );
}

pub(super) fn log(pen: &mut Pen<'_>, state: &State, snapshot: &v1::Snapshot) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let status = snapshot.status.clone().unwrap_or_default();
    let log = snapshot.log.clone().unwrap_or_default();
    let now = state.now_s();
    if let Some(of) = &status.log {
        let size = format!(
            "{} entries under the checkpoint {}",
            count(of.size),
            of.root
        );
        pen.line(row(head, 0), &[(&size, theme.text())]);
        let at = log.checkpoint_unix_s;
        let age = at.map_or_else(
            || "no checkpoint was made since the start".to_owned(),
            |at| {
                format!(
                    "the last checkpoint is {} old",
                    duration(now.saturating_sub(at))
                )
            },
        );
        pen.line(row(head, 1), &[(&age, theme.text())]);
        let refusals: Vec<_> = status
            .refusals
            .iter()
            .map(|refusal| format!("{} {}", count(refusal.value), refusal.name))
            .collect();
        let refused = match refusals.is_empty() {
            true => "nothing was refused since the start".to_owned(),
            false => format!("refused since the start: {}", refusals.join(", ")),
        };
        pen.line(row(head, 2), &[(&refused, theme.text())]);
    }
    let columns = [
        Column::number("ENTRY", 10),
        Column::text("KIND", 12),
        Column::number("HOUR BEGAN", 12),
        Column::number("REFUSED", 9),
    ];
    let nothing = match status.log {
        Some(_) => "the log has no entry yet",
        None => "this node is no provider and has no usage log",
    };
    table::draw(pen, area, state, &columns, nothing, |which| {
        let Row::Entry(at) = which else { return None };
        let entry = log.entries.get(at)?;
        let refused = match entry.refused {
            0 => String::new(),
            n => count(n),
        };
        let ago = format!("{} ago", duration(now.saturating_sub(entry.hour_unix_s)));
        let style = match entry.kind.as_str() {
            "failed" | "lost" => theme.bad(),
            _ => theme.text(),
        };
        Some((
            vec![count(entry.index), entry.kind.clone(), ago, refused],
            style,
        ))
    });
}

pub(super) fn events(pen: &mut Pen<'_>, state: &State) {
    let (head, area) = layout::parts(state);
    let theme = pen.theme;
    let missed = match state.missed {
        0 => String::new(),
        n => format!("; {} more were missed", count(n)),
    };
    let text = format!(
        "the last {}, the newest first{missed}",
        state.happenings.len()
    );
    pen.line(row(head, 0), &[(&text, theme.faint())]);
    let columns = [
        Column::number("AGO", 7),
        Column::text("KIND", 8),
        Column::text("WHAT", 40).growing(140),
    ];
    table::draw(
        pen,
        area,
        state,
        &columns,
        "nothing has happened yet",
        |which| {
            let Row::Happening(at) = which else {
                return None;
            };
            let happening = state.happenings.get(at)?;
            let ago = state.now_ms.saturating_sub(happening.at_unix_ms) / 1000;
            let (kind, what) = happening::text(happening);
            Some((vec![duration(ago), kind.to_owned(), what], theme.text()))
        },
    );
}
