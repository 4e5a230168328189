//! `cargo xtask crash-sweep`: kills a real provider at every step of a lease, and looks at what is left.

use std::process::ExitCode;

use serde_json::json;
use souk_node::failpoint::Failpoint;
use souk_tests::{
    program::{self, Report, Words, by_name, failures},
    sweep::{Sweep, Swept, sweep},
};

const USAGE: &str = "\
usage: cargo xtask crash-sweep [--runs N] [--seed S] [--workers N] [--bug NAME] [--at FAILPOINT]… [--logs FOLDER] [--json]

  --runs N        leases (default: each failpoint once)
  --seed S        what instants of death are drawn from (default 0)
  --workers N     providers side by side (default 6)
  --bug NAME      plant a bug
  --at FAILPOINT  these failpoints only
  --logs FOLDER   keep there what all processes said of a run that breaks a promise
  --json          print the report on one line";

fn arguments(words: &mut Words) -> Result<Sweep, String> {
    let reachable = Failpoint::ALL
        .iter()
        .filter(|point| point.is_reached_by_processes());
    let mut plan = Sweep {
        runs: reachable.count() as u64,
        seed: 0,
        workers: 6,
        bug: None,
        points: Vec::new(),
        stops: false,
        logs: None,
    };
    while let Some(option) = words.next_option() {
        match option.as_str() {
            "--runs" => plan.runs = words.number(&option)?,
            "--seed" => plan.seed = words.number(&option)?,
            "--workers" => plan.workers = words.number(&option)?.max(1),
            "--bug" => plan.bug = Some(words.bug(&option)?),
            "--at" => plan.points.push(words.failpoint(&option)?),
            "--logs" => plan.logs = Some(words.value(&option)?.into()),
            other => return Err(format!("no option `{other}`")),
        }
    }
    Ok(plan)
}

fn main() -> ExitCode {
    program::run(USAGE, arguments, |plan| {
        let swept = sweep(&plan);
        let unreached = if plan.points.is_empty() {
            swept.unreached()
        } else {
            Vec::new()
        };
        report(&swept, &unreached)
    })
}

fn report(swept: &Swept, unreached: &[&str]) -> Report {
    let broken = swept.failures.iter();
    Report::new(
        unreached.is_empty() && swept.is_good(),
        [
            ("runs", json!(swept.runs)),
            ("deaths", json!(swept.deaths)),
            ("died_at", by_name(&swept.died_at)),
            ("hits", by_name(&swept.hits)),
            ("closed", json!(swept.closed)),
            ("expired", json!(swept.expired)),
            ("refused", json!(swept.refused)),
            ("unreached", json!(unreached)),
            ("failures", failures(broken.map(|(run, v)| (json!(run), v)))),
        ],
    )
}
