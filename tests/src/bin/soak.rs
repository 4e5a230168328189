//! `cargo xtask soak`: many leases over a long time, with deaths now and then.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use souk_tests::sweep::{Footprint, Soak, Soaked, soak};

const USAGE: &str = "\
usage: cargo xtask soak [--leases N] [--minutes N] [--seed S] [--workers N] [--json]

  --leases N    at least so many leases (default 40)
  --minutes N   for at least so long (default 0)
  --seed S      what deaths are drawn from (default 0)
  --workers N   providers side by side (default 4)
  --json        print one JSON object";

fn arguments() -> Result<(Soak, bool), String> {
    let mut plan = Soak {
        leases: 40,
        lasts: Duration::ZERO,
        workers: 4,
        seed: 0,
    };
    let mut is_json = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().ok_or(format!("{word} needs a number"))?;
            text.parse::<u64>()
                .map_err(|_| format!("`{text}` is no number"))
        };
        match word.as_str() {
            "--leases" => plan.leases = number()?,
            "--minutes" => plan.lasts = Duration::from_secs(60 * number()?),
            "--seed" => plan.seed = number()?,
            "--workers" => plan.workers = number()?.max(1),
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
    let soaked = soak(&plan);
    let report = report(&soaked, start.elapsed().as_secs_f64());
    if is_json {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    if soaked.failures.is_empty() && soaked.growth.iter().all(|growth| growth.is_flat()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn report(soaked: &Soaked, seconds: f64) -> Value {
    let footprint = |seen: Footprint| json!({"resident_kib": seen.resident_kib, "descriptors": seen.descriptors});
    let growth: Vec<_> = soaked
        .growth
        .iter()
        .map(|growth| {
            json!({
                "process": growth.process,
                "before": footprint(growth.before),
                "after": footprint(growth.after),
                "flat": growth.is_flat(),
            })
        })
        .collect();
    let failures: Vec<_> = soaked
        .failures
        .iter()
        .map(|(run, v)| json!({"run": run, "invariant": v.invariant.name(), "seen": v.seen}))
        .collect();
    json!({
        "runs": soaked.runs,
        "closed": soaked.closed,
        "deaths": soaked.deaths,
        "seconds": seconds,
        "growth": growth,
        "failures": failures,
    })
}
