//! `souk leases`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use souk_crypto::UnixTime;
use souk_node::{
    client::{Lease, Stage},
    net::peer_id,
    unix_now,
};

use super::{
    DONE, orphans,
    requester::{self, Requester},
};
use crate::{failure::Failure, out};

/// Show the leases of this requester, without asking anybody.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk leases --json\n  souk leases --orphans   ask the provider on this machine for instances that no lease owns"
)]
pub(crate) struct Leases {
    #[command(flatten)]
    requester: Requester,
    /// Of the provider on this machine: show the instances that no lease owns
    #[arg(long)]
    orphans: bool,
    /// Print one JSON array; with --orphans one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    lease: Option<String>,
    stage: &'static str,
    refusal: Option<&'static str>,
    provider: String,
    image: String,
    valid_to_unix_s: Option<u64>,
    /// When it ended, by its final statement.
    ended_unix_s: Option<u64>,
    ssh_alias: Option<String>,
    /// `ssh` has all that it needs.
    ready: bool,
    /// What its provider said of leaving.
    notice: Option<Notice>,
}

#[derive(Serialize)]
struct Notice {
    /// The provider stops, drains or retires.
    kind: &'static str,
    /// It ends the lease then.
    ends_by_unix_s: Option<u64>,
}

impl Leases {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        if self.orphans {
            return orphans::run(self.requester.config(), self.json);
        }
        let client = self.requester.open()?;
        let mut rows = Vec::new();
        for lease in client.leases().map_err(|error| requester::state(&error))? {
            match lease {
                Ok(lease) => rows.push(row(&lease)),
                Err(error) => out::note(format_args!("warning: {error}")),
            }
        }
        if self.json {
            out::json(&rows);
            return DONE;
        }
        let now = unix_now();
        let unfinished: Vec<_> = rows
            .iter()
            .filter(|row| row.stage == "requested" || row.stage == "active" && !row.ready)
            .map(|row| row.name.clone())
            .collect();
        let leaving: Vec<_> = rows
            .iter()
            .filter(|row| row.stage == "active")
            .filter_map(|row| Some((row.name.clone(), row.notice.as_ref()?)))
            .map(|(name, notice)| {
                let ends = notice.ends_by_unix_s.map_or_else(String::new, |by| {
                    format!(" and ends it by {}", out::time(UnixTime(by), now))
                });
                format!("{name}: its provider {}{ends}", notice.kind)
            })
            .collect();
        if rows.is_empty() {
            out::note("there is no lease yet; `souk rent` makes one");
        } else {
            out::line(text(rows, now));
        }
        for line in leaving {
            out::note(line);
        }
        for name in unfinished {
            out::note(format_args!("not finished: souk rent --resume {name}"));
        }
        DONE
    }
}

fn text(rows: Vec<Row>, now: UnixTime) -> String {
    let body = rows.into_iter().map(|row| {
        let until = row.ended_unix_s.or(row.valid_to_unix_s);
        let cells = vec![
            row.name,
            row.ssh_alias.unwrap_or_default(),
            row.refusal.map_or_else(
                || row.stage.to_owned(),
                |reason| format!("refused: {reason}"),
            ),
            until.map_or_else(String::new, |until| out::time(UnixTime(until), now)),
        ];
        (cells, vec![format!("at {}", row.provider)])
    });
    out::records(&["NAME", "SSH", "STAGE", "UNTIL"], body)
}

fn row(lease: &Lease) -> Row {
    let stage = lease.stage(unix_now());
    Row {
        name: lease.name(),
        lease: lease.id().map(|id| id.to_string()),
        stage: stage.as_str(),
        refusal: match stage {
            Stage::Refused(reason) => Some(reason.as_str()),
            _ => None,
        },
        provider: peer_id(&lease.provider()).to_string(),
        image: lease.envelope().image.to_string(),
        valid_to_unix_s: lease.receipt().map(|receipt| receipt.valid_to.0),
        ended_unix_s: lease.statement().map(|proven| proven.statement.to.0),
        ssh_alias: lease.ssh_alias(),
        ready: stage == Stage::Active && lease.is_ready(),
        notice: lease.notice().map(|notice| Notice {
            kind: notice.kind.as_str(),
            ends_by_unix_s: notice.ends_by.map(|time| time.0),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(stage: &'static str, ended_unix_s: Option<u64>) -> Row {
        Row {
            name: "5f3c0a91".to_owned(),
            lease: Some("5f3c0a91".repeat(4)),
            stage,
            refusal: None,
            provider: "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA".to_owned(),
            image: "0".repeat(64),
            valid_to_unix_s: Some(1_795_200_240),
            ended_unix_s,
            ssh_alias: Some("souk-5f3c0a91".to_owned()),
            ready: true,
            notice: None,
        }
    }

    #[test]
    fn a_lease_fits_a_narrow_terminal_and_one_that_is_over_is_over() {
        let rows = vec![row("active", None), row("closed", Some(1_795_199_400))];
        let text = text(rows, UnixTime(1_795_200_000));
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        insta::assert_snapshot!(text, @r"
        NAME      SSH            STAGE   UNTIL
        5f3c0a91  souk-5f3c0a91  active  2026-11-20 18:44:00 UTC, in 4 min
          at 12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA
        5f3c0a91  souk-5f3c0a91  closed  2026-11-20 18:30:00 UTC, 10 min ago
          at 12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA
        ");
    }
}
