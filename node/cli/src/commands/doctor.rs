//! `souk doctor`: what stands in the way of work, looked at from inside and from outside.
//!
//! ```text
//!  configuration, machine ──► Finding …      what can be seen without a node
//!  control socket ── one snapshot ──► Finding …
//!  other nodes ── their market ──► Finding …  as any requester, under an identity made for this
//!  --lease ── a lease of one's own, through the mix and ended ──► Finding …
//! ```
//!
//! Threat: what a neighbour or a file says is shown; it goes through the same cleaning as all output.

#[cfg(test)]
mod fixture;
mod machine;
mod node;
mod outside;
mod work;

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use serde::Serialize;
use souk_market::units::Resources;
use souk_node::control;

use super::{NodeHere, unreached, wait};
use crate::{
    failure::{FAILED, Failure},
    out,
    progress::Progress,
};

/// Find out why a node does not do what it should, or gets no work.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk doctor --config ~/node/souk.toml\n  souk doctor --lease        rents from this very node through the mix, and ends it\n  souk doctor --policy their-policy.toml        would requesters with this policy believe it?\n  souk doctor --json | jq '.findings[] | select(.state == \"bad\")'\n\nThe exit status is 0 unless something is bad."
)]
pub(crate) struct Doctor {
    #[command(flatten)]
    node: NodeHere,
    /// Rent a small machine from this node, as anybody would, and end it; the usage log gets an entry for it
    #[arg(long)]
    lease: bool,
    /// Judge the evidence of this node as a requester with this policy does; may be repeated
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The smallest machine that anybody would rent: a shell and a few programs.
const SMALLEST: Resources = Resources {
    cpu_millicores: 250,
    memory_mib: 320,
    disk_mib: 64,
    gpus: 0,
    max_processes: 64,
};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Fine,
    /// Worth knowing; work comes all the same.
    Note,
    /// Something does not work.
    Bad,
}

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at; stable, for scripts.
    check: &'static str,
    state: State,
    /// What was found.
    what: String,
    /// Why it matters; empty where it is as it should be.
    why: String,
    /// How to mend it; empty where there is nothing to mend.
    fix: String,
}

#[derive(Serialize)]
struct Report {
    bad: usize,
    notes: usize,
    findings: Vec<Finding>,
}

impl Finding {
    fn fine(check: &'static str, what: impl Into<String>) -> Self {
        Self {
            check,
            state: State::Fine,
            what: what.into(),
            why: String::new(),
            fix: String::new(),
        }
    }

    fn bad(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Bad,
            why: why.into(),
            fix: fix.into(),
            ..Self::fine(check, what)
        }
    }

    fn note(
        check: &'static str,
        what: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            state: State::Note,
            ..Self::bad(check, what, why, fix)
        }
    }

    /// What failed, and what the error advises.
    fn failed(check: &'static str, failure: &Failure, why: &str) -> Self {
        let fix = failure.advice().unwrap_or("see the message");
        Self::bad(check, failure.in_one_line(), why, fix)
    }

    fn text(&self) -> String {
        let sign = match self.state {
            State::Fine => "ok  ",
            State::Note => "note",
            State::Bad => "BAD ",
        };
        let mut text = format!("{sign}  {:<14} {}", self.check, self.what);
        for (name, line) in [("why", &self.why), ("fix", &self.fix)] {
            if !line.is_empty() {
                text.push_str(&format!("\n                      {name}: {line}"));
            }
        }
        text
    }
}

impl Doctor {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let findings = wait(async { Ok(self.look().await) })?;
        let count = |state| findings.iter().filter(|f| f.state == state).count();
        let report = Report {
            bad: count(State::Bad),
            notes: count(State::Note),
            findings,
        };
        if self.json {
            out::json(&report);
        } else {
            for finding in &report.findings {
                out::line(finding.text());
            }
            out::line(match (report.bad, report.notes) {
                (0, 0) => "\nnothing stands in the way".to_owned(),
                (0, notes) => format!("\nnothing is bad; to know: {notes}"),
                (bad, _) => format!("\nbad: {bad}"),
            });
        }
        Ok(match report.bad {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::from(FAILED),
        })
    }

    async fn look(&self) -> Vec<Finding> {
        let progress = Progress::start("looking at this machine");
        let config = match self.node.config.load() {
            Ok(config) => config,
            Err(failure) => {
                let why = "the node does not start with it, and nothing else can be looked at";
                return vec![Finding::failed("configuration", &failure, why)];
            }
        };
        let mut findings = machine::look(&config);
        progress.step("asking the node");
        let socket = self.node.socket.as_ref().unwrap_or(&config.control_socket);
        let snapshot = match control::Client::connect(socket).await {
            Ok(mut node) => super::status::first(&mut node).await,
            Err(error) => {
                let why = "nothing is sold and nothing forwarded while it does not run";
                findings.push(Finding::failed("node", &unreached(&error), why));
                findings.extend(machine::ports(&config));
                return findings;
            }
        };
        let Some(snapshot) = snapshot else {
            findings.push(Finding::bad(
                "node",
                "the node answers, and shows nothing of itself",
                "it may be of another version, or too many watch it",
                "use the souk that belongs to the node; end a few `souk top`",
            ));
            return findings;
        };
        findings.extend(node::look(&snapshot, souk_node::unix_now().0));
        progress.step("asking other nodes");
        findings.extend(outside::look(&config, &snapshot, self.lease, &progress).await);
        for policy in &self.policy {
            progress.step("asking for evidence");
            findings.push(outside::judged(&config, &snapshot, policy, &progress).await);
        }
        findings
    }
}
