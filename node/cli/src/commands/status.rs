//! `souk status`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use souk_node::control::v1;

use super::{ConfigFile, DONE, unreached, wait};
use crate::{failure::Failure, out};

/// Show how the node on this machine stands.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  souk status --config ~/node/souk.toml --json")]
pub(crate) struct Status {
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let status = wait(async {
            let mut node = self.config.connect().await?;
            node.status().await.map_err(|error| unreached(&error))
        })?;
        if self.json {
            out::json(&Json::from(status));
        } else {
            out::line(text(&status));
        }
        DONE
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
    mix: std::collections::BTreeMap<String, u64>,
    leases: u32,
    refusals: std::collections::BTreeMap<String, u64>,
    log: Option<LogJson>,
    warnings: Vec<String>,
    standing: String,
}

#[derive(Serialize)]
struct LogJson {
    size: u64,
    root: String,
}

impl From<v1::StatusReply> for Json {
    fn from(status: v1::StatusReply) -> Self {
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
        }
    }
}

fn text(status: &v1::StatusReply) -> String {
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
        ("node", status.node_id.clone()),
        ("network", status.network_id.clone()),
        ("roles", status.roles.join(", ")),
    ];
    rows.extend(
        status
            .addresses
            .iter()
            .map(|address| ("address", address.clone())),
    );
    rows.push(("peers", status.peers.to_string()));
    rows.push(("cards", status.cards.to_string()));
    rows.push(("mix", counters(&status.mix)));
    if let Some(log) = &status.log {
        rows.push(("standing", status.standing.clone()));
        rows.push(("leases", status.leases.to_string()));
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
    rows.extend(
        status
            .warnings
            .iter()
            .map(|warning| ("warning", warning.clone())),
    );
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    out::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provider() -> v1::StatusReply {
        let counter = |name: &str, value| v1::Counter {
            name: name.to_owned(),
            value,
        };
        v1::StatusReply {
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
        }
    }

    #[test]
    fn a_status_is_shown_for_people() {
        insta::assert_snapshot!(text(&provider()));
    }

    #[test]
    fn a_status_is_shown_for_scripts() {
        insta::assert_snapshot!(serde_json::to_string(&Json::from(provider())).expect("JSON"));
    }
}
