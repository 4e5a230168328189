//! `souk status`.

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use serde::Serialize;
use souk_node::{
    control::{
        Client,
        v1::{self, watch_reply::What},
    },
    unix_now,
};

use super::{DONE, NodeHere, unreached, wait};
use crate::{failure::Failure, out};

/// Between two snapshots; only the first is read.
const PERIOD_MS: u32 = 60_000;

/// Show how the node on this machine stands, once: what `souk top` shows at a glance.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk status --config ~/node/souk.toml --json\n  souk status --socket /run/souk/monitor.sock"
)]
pub(crate) struct Status {
    #[command(flatten)]
    node: NodeHere,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let snapshot = wait(async {
            let mut node = self.node.connect().await?;
            let status = node.status().await.map_err(|error| unreached(&error))?;
            // Where too many watch already, what every client is told has to do.
            let watched = first(&mut node).await.unwrap_or_default();
            Ok::<_, Failure>(v1::Snapshot {
                status: Some(status),
                ..watched
            })
        })?;
        if self.json {
            out::json(&Json::from(snapshot));
        } else {
            out::line(text(&snapshot, unix_now().0));
        }
        DONE
    }
}

/// The first snapshot of the node.
pub(super) async fn first(node: &mut Client) -> Option<v1::Snapshot> {
    let mut updates = node.watch(PERIOD_MS).await.ok()?;
    loop {
        if let What::Snapshot(snapshot) = updates.next().await.ok()?? {
            return Some(*snapshot);
        }
    }
}

/// The status as scripts read it.
#[derive(Serialize)]
pub(crate) struct Json {
    node_id: String,
    network_id: String,
    started_unix_s: u64,
    roles: Vec<String>,
    addresses: Vec<String>,
    peers: u32,
    cards: u32,
    mix: BTreeMap<String, u64>,
    leases: u32,
    refusals: BTreeMap<String, u64>,
    log: Option<LogJson>,
    warnings: Vec<String>,
    standing: String,
    /// What is known against other nodes.
    others: Vec<String>,
    /// What the provider counted since the start; empty where the node is none.
    provider: BTreeMap<String, u64>,
    /// All that the dashboard shows, as the control API names it; without what stands above.
    overview: v1::Snapshot,
}

#[derive(Serialize)]
struct LogJson {
    size: u64,
    root: String,
}

impl From<v1::Snapshot> for Json {
    fn from(mut snapshot: v1::Snapshot) -> Self {
        let status = snapshot.status.take().unwrap_or_default();
        let counters = |list: Vec<v1::Counter>| {
            list.into_iter()
                .map(|counter| (counter.name, counter.value))
                .collect()
        };
        Self {
            node_id: status.node_id,
            network_id: status.network_id,
            started_unix_s: status.started_unix_s,
            roles: status.roles,
            addresses: status.addresses,
            peers: status.peers,
            cards: status.cards,
            mix: counters(status.mix),
            leases: status.leases,
            refusals: counters(status.refusals),
            log: status.log.map(|log| LogJson {
                size: log.size,
                root: log.root,
            }),
            warnings: status.warnings,
            standing: status.standing,
            others: status.others,
            provider: counters(status.provider),
            overview: snapshot,
        }
    }
}

fn text(snapshot: &v1::Snapshot, now_unix_s: u64) -> String {
    let status = snapshot.status.clone().unwrap_or_default();
    let counters = |list: &[v1::Counter]| {
        let shown: Vec<_> = list
            .iter()
            .filter(|counter| counter.value > 0)
            .map(|counter| format!("{} {}", counter.name, counter.value))
            .collect();
        if shown.is_empty() {
            "none".to_owned()
        } else {
            shown.join(", ")
        }
    };
    let mut rows = vec![
        ("node id", status.node_id),
        ("network id", status.network_id),
    ];
    let addresses = status.addresses.into_iter();
    rows.extend(addresses.map(|address| ("address", address)));
    let facts = souk_tui::facts(snapshot, now_unix_s).into_iter();
    rows.extend(facts.map(|(name, value, is_bad)| {
        let sign = if is_bad { "! " } else { "" };
        (name, format!("{sign}{value}"))
    }));
    rows.push(("mix", counters(&status.mix)));
    if let Some(log) = &status.log {
        rows.push(("refusals", counters(&status.refusals)));
        rows.push((
            "usage log",
            format!(
                "{} under the checkpoint {}",
                out::count(log.size, "entry", "entries"),
                log.root
            ),
        ));
    }
    let warnings = status.warnings.into_iter();
    rows.extend(warnings.map(|warning| ("warning", warning)));
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    let own = out::table(&rows);
    if status.others.is_empty() {
        return own;
    }
    let others: Vec<_> = status.others.into_iter().map(|word| vec![word]).collect();
    format!("{own}\n\nOther nodes\n{}", out::table(&others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> v1::Snapshot {
        let counter = |name: &str, value| v1::Counter {
            name: name.to_owned(),
            value,
        };
        let status = v1::StatusReply {
            node_id: "12D3KooWExample".to_owned(),
            network_id: "souk.00000000".to_owned(),
            started_unix_s: 1_800_000_000,
            roles: vec!["mix".to_owned(), "provider".to_owned()],
            addresses: vec!["/ip4/192.0.2.1/tcp/4551/p2p/12D3KooWExample".to_owned()],
            peers: 4,
            cards: 5,
            mix: vec![counter("forwarded", 12), counter("replayed", 0)],
            leases: 1,
            refusals: vec![counter("expired", 2)],
            log: Some(v1::LogStatus {
                size: 3,
                root: "ab".repeat(4),
            }),
            warnings: vec!["the clock is behind".to_owned()],
            standing: "open".to_owned(),
            others: Vec::new(),
            provider: vec![counter("unreadable", 1)],
        };
        let amount = |leases, revenue: &str, cost: &str| v1::Sum {
            leases,
            revenue: revenue.to_owned(),
            cost: cost.to_owned(),
            with_unknown: 0,
        };
        v1::Snapshot {
            program: "0.1.0".to_owned(),
            max_leases: 8,
            max_anonymous: 4,
            leases: vec![v1::Lease::default()],
            log: Some(v1::Log::default()),
            account: Some(v1::Account {
                asset: "EUR".to_owned(),
                exponent: 2,
                lifetime: Some(amount(3, "1250", "400")),
                window: Some(amount(1, "100", "250")),
                ..v1::Account::default()
            }),
            status: Some(status),
            ..v1::Snapshot::default()
        }
    }

    #[test]
    fn a_status_is_shown_for_people() {
        insta::assert_snapshot!(text(&provider(), 1_800_003_600));
    }

    #[test]
    fn what_is_known_against_other_nodes_stands_below_a_heading_of_its_own() {
        let alone = provider();
        let mut accused = alone.clone();
        let word = "do not rely on provider 12D3KooWOther".to_owned();
        accused.status.as_mut().expect("there").others = vec![word.clone()];
        let own = text(&alone, 1_800_003_600);
        let all = text(&accused, 1_800_003_600);
        assert_eq!(all, format!("{own}\n\nOther nodes\n{word}"));
    }

    #[test]
    fn a_status_is_shown_for_scripts() {
        insta::assert_snapshot!(serde_json::to_string(&Json::from(provider())).expect("JSON"));
    }
}
