//! `souk leases`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;
use souk_crypto::UnixTime;
use souk_node::{
    client::{Lease, Stage},
    net::peer_id,
    unix_now,
};

use super::{
    DONE, NodeHere, orphans,
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
    /// With --orphans: the control socket of the node, in place of the configuration's; the one for monitoring too
    #[arg(long, value_name = "PATH", requires = "orphans")]
    socket: Option<PathBuf>,
    /// Print one JSON array; with --orphans one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    name: String,
    lease: Option<String>,
    /// As [`Stage`] describes them.
    stage: &'static str,
    refusal: Option<&'static str>,
    provider: String,
    image: String,
    valid_to_unix_s: Option<u64>,
    /// Where there is no receipt: what may run of it, without a word of it here, ends then at the latest.
    may_run_until_unix_s: Option<u64>,
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
            let node = NodeHere {
                config: self.requester.config().clone(),
                socket: self.socket,
            };
            return orphans::run(&node, self.json);
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
        let hints: Vec<_> = rows.iter().filter_map(|row| hint(row, now)).collect();
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
        for hint in hints {
            out::note(hint);
        }
        DONE
    }
}

/// What is left to do about a lease, and what may be true of it meanwhile.
fn hint(row: &Row, now: UnixTime) -> Option<String> {
    let name = &row.name;
    match row.stage {
        "requested" | "active" if !row.ready => {
            Some(format!("not finished: souk rent --resume {name}"))
        }
        "unanswered" => {
            let until = row.may_run_until_unix_s.map_or_else(String::new, |until| {
                format!(" until {}", out::time(UnixTime(until), now))
            });
            Some(format!(
                "{name}: no answer came; it may run all the same{until}: souk rent --resume {name}, or souk end {name}"
            ))
        }
        "draining" => Some(format!(
            "{name}: its provider is ending it: souk end {name} brings its account"
        )),
        "ended" => Some(format!(
            "{name}: it is over, and its account has not come: souk end {name}"
        )),
        _ => None,
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
    let may_run = matches!(stage, Stage::Requested | Stage::Unanswered | Stage::Lapsed);
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
        may_run_until_unix_s: may_run.then(|| lease.may_run_until().0),
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
            may_run_until_unix_s: None,
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

    #[test]
    fn a_lease_that_may_run_or_owes_an_account_says_what_is_left_to_do() {
        let told = |stage: Stage, ready: bool| {
            let row = Row {
                ready,
                may_run_until_unix_s: Some(1_795_200_240),
                ..row(stage.as_str(), None)
            };
            hint(&row, UnixTime(1_795_200_000)).unwrap_or_default()
        };
        let resume = "not finished: souk rent --resume 5f3c0a91";
        assert_eq!(told(Stage::Requested, false), resume);
        assert_eq!(told(Stage::Active, false), resume);
        insta::assert_snapshot!(told(Stage::Unanswered, false), @"5f3c0a91: no answer came; it may run all the same until 2026-11-20 18:44:00 UTC, in 4 min: souk rent --resume 5f3c0a91, or souk end 5f3c0a91");
        insta::assert_snapshot!(told(Stage::Draining, false), @"5f3c0a91: its provider is ending it: souk end 5f3c0a91 brings its account");
        insta::assert_snapshot!(told(Stage::Ended, false), @"5f3c0a91: it is over, and its account has not come: souk end 5f3c0a91");
        for (stage, ready) in [
            (Stage::Active, true),
            (Stage::Lapsed, false),
            (Stage::Closed, false),
        ] {
            assert_eq!(told(stage, ready), "");
        }
    }
}
