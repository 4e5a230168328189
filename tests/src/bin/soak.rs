//! `cargo xtask soak`: many leases over a long time, with deaths now and then.

use std::{process::ExitCode, time::Duration};

use serde_json::json;
use souk_tests::{
    program::{self, Report, Words, failures},
    sweep::{Footprint, Growth, Soak, Soaked, soak},
};

const USAGE: &str = "\
usage: cargo xtask soak [--leases N] [--minutes N] [--seed S] [--workers N] [--json]

  --leases N    at least so many leases (default 40)
  --minutes N   for at least so long (default 0)
  --seed S      what deaths are drawn from (default 0)
  --workers N   providers side by side (default 4)
  --json        print the report on one line";

fn arguments(words: &mut Words) -> Result<Soak, String> {
    let mut plan = Soak {
        leases: 40,
        lasts: Duration::ZERO,
        workers: 4,
        seed: 0,
    };
    while let Some(option) = words.next_option() {
        match option.as_str() {
            "--leases" => plan.leases = words.number(&option)?,
            "--minutes" => plan.lasts = Duration::from_secs(60 * words.number(&option)?),
            "--seed" => plan.seed = words.number(&option)?,
            "--workers" => plan.workers = words.number(&option)?.max(1),
            other => return Err(format!("no option `{other}`")),
        }
    }
    Ok(plan)
}

fn main() -> ExitCode {
    program::run(USAGE, arguments, |plan| report(&soak(&plan)))
}

fn report(soaked: &Soaked) -> Report {
    let footprint = |seen: Footprint| json!({"resident_kib": seen.resident_kib, "descriptors": seen.descriptors});
    let growth = |growth: &Growth| {
        json!({
            "process": growth.process,
            "before": footprint(growth.before),
            "after": footprint(growth.after),
            "flat": growth.is_flat(),
        })
    };
    let broken = soaked.failures.iter();
    Report::new(
        soaked.is_good(),
        [
            ("runs", json!(soaked.runs)),
            ("closed", json!(soaked.closed)),
            ("deaths", json!(soaked.deaths)),
            ("growth", soaked.growth.iter().map(growth).collect()),
            ("failures", failures(broken.map(|(run, v)| (json!(run), v)))),
        ],
    )
}
