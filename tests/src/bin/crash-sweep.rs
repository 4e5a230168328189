//! `cargo xtask crash-sweep`: kills a real provider at every step of a lease, and looks at what is left.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

use std::{process::ExitCode, time::Instant};

use serde_json::{Value, json};
use souk_node::failpoint::{Failpoint, PlantedBug};
use souk_tests::sweep::{Sweep, Swept, sweep};

const USAGE: &str = "\
usage: cargo xtask crash-sweep [--runs N] [--seed S] [--workers N] [--bug NAME] [--at FAILPOINT]… [--json]

  --runs N        leases (default: each failpoint once)
  --seed S        what instants of death are drawn from (default 0)
  --workers N     providers side by side (default 6)
  --bug NAME      plant a bug
  --at FAILPOINT  these failpoints only
  --json          print one JSON object";

fn arguments() -> Result<(Sweep, bool), String> {
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
    };
    let mut is_json = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("`{text}` is no number"));
        match word.as_str() {
            "--runs" => plan.runs = number(value()?)?,
            "--seed" => plan.seed = number(value()?)?,
            "--workers" => plan.workers = number(value()?)?.max(1),
            "--bug" => {
                let name = value()?;
                plan.bug = Some(PlantedBug::named(&name).ok_or(format!("no bug `{name}`"))?);
            }
            "--at" => {
                let name = value()?;
                let point = Failpoint::named(&name).ok_or(format!("no failpoint `{name}`"))?;
                plan.points.push(point);
            }
            "--json" => is_json = true,
            other => return Err(format!("no option `{other}`")),
        }
    }
    Ok((plan, is_json))
}

fn main() -> ExitCode {
    let (plan, is_json) = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let start = Instant::now();
    let swept = sweep(&plan);
    let unreached = if plan.points.is_empty() {
        swept.unreached()
    } else {
        Vec::new()
    };
    let report = report(&swept, &unreached, start.elapsed().as_secs_f64());
    if is_json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    if swept.failures.is_empty() && unreached.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report(swept: &Swept, unreached: &[&str], seconds: f64) -> Value {
    let by_name = |counts: &std::collections::BTreeMap<Failpoint, u64>| -> Value {
        let named = counts
            .iter()
            .map(|(point, n)| (point.name().to_owned(), json!(n)));
        named.collect::<serde_json::Map<_, _>>().into()
    };
    let failures: Vec<_> = swept
        .failures
        .iter()
        .map(|(run, v)| json!({"run": run, "invariant": v.invariant.name(), "seen": v.seen}))
        .collect();
    json!({
        "runs": swept.runs,
        "seconds": seconds,
        "deaths": swept.deaths,
        "died_at": by_name(&swept.died_at),
        "hits": by_name(&swept.hits),
        "closed": swept.closed,
        "refused": swept.refused,
        "unreached": unreached,
        "failures": failures,
    })
}
