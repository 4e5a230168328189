//! `cargo xtask simulate`: runs seeds of the simulation, or one of them step by step.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test program")]

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write as _},
    process::ExitCode,
    time::Instant,
};

use serde_json::{Value, json};
use souk_node::failpoint::PlantedBug;
use souk_tests::simulation::{self, Batch, Script};

const USAGE: &str = "\
usage: cargo xtask simulate [--seeds N] [--seed S] [--bug NAME] [--json]
       cargo xtask simulate --seed S --trace FILE [--bug NAME]
       cargo xtask simulate --replay FILE

  --seeds N      run N seeds (default 200, or 1 with --seed)
  --seed S       begin with seed S (default 0)
  --bug NAME     plant a bug
  --trace FILE   write every step of the seed to a file
  --replay FILE  run the steps of a file again and compare each of them
  --json         print one JSON object";

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    seed: Option<u64>,
    bug: Option<PlantedBug>,
    trace: Option<String>,
    replay: Option<String>,
    json: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut found = Arguments::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("`{text}` is no number"));
        match word.as_str() {
            "--seeds" => found.seeds = Some(number(value()?)?),
            "--seed" => found.seed = Some(number(value()?)?),
            "--bug" => {
                let name = value()?;
                found.bug = Some(PlantedBug::named(&name).ok_or(format!("no bug `{name}`"))?);
            }
            "--trace" => found.trace = Some(value()?),
            "--replay" => found.replay = Some(value()?),
            "--json" => found.json = true,
            other => return Err(format!("no option `{other}`")),
        }
    }
    Ok(found)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    let done = match (&arguments.replay, &arguments.trace) {
        (Some(file), _) => replay(file),
        (None, Some(file)) => trace(&arguments, file),
        (None, None) => Ok(batch(&arguments)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs seeds; says whether every promise was kept and everything was reached.
fn batch(arguments: &Arguments) -> bool {
    let count = arguments
        .seeds
        .unwrap_or(if arguments.seed.is_some() { 1 } else { 200 });
    let start = Instant::now();
    let batch = Batch::run(arguments.seed.unwrap_or(0), count, arguments.bug, false);
    // A single seed is run to look at it.
    let unreached = if count > 1 {
        batch.unreached()
    } else {
        Vec::new()
    };
    if arguments.json {
        println!(
            "{}",
            report(&batch, &unreached, start.elapsed().as_secs_f64())
        );
    } else {
        println!(
            "{} seeds, {} leases, {} deaths, {} hours of virtual time in {:.1} s",
            batch.seeds,
            batch.leases,
            batch.deaths,
            batch.virtual_s / 3_600,
            start.elapsed().as_secs_f64()
        );
        for (seed, violations) in &batch.failures {
            for violation in violations {
                println!("seed {seed}: {violation}");
            }
        }
        for name in &unreached {
            println!("never reached: {name}");
        }
    }
    batch.failures.is_empty() && unreached.is_empty()
}

fn report(batch: &Batch, unreached: &[&str], seconds: f64) -> Value {
    let hits: serde_json::Map<_, _> = batch
        .hits
        .iter()
        .map(|(point, count)| (point.name().to_owned(), json!(count)))
        .collect();
    let failures: Vec<_> = batch
        .failures
        .iter()
        .flat_map(|(seed, violations)| violations.iter().map(move |v| (seed, v)))
        .map(|(seed, v)| json!({"seed": seed, "invariant": v.invariant.name(), "seen": v.seen}))
        .collect();
    json!({
        "seeds": batch.seeds,
        "leases": batch.leases,
        "deaths": batch.deaths,
        "virtual_s": batch.virtual_s,
        "seconds": seconds,
        "failpoints": hits,
        "faults": batch.faults,
        "unreached": unreached,
        "failures": failures,
    })
}

fn trace(arguments: &Arguments, file: &str) -> Result<bool, String> {
    let run = simulation::run(arguments.seed.unwrap_or(0), arguments.bug, true);
    let create = || {
        let mut out = BufWriter::new(File::create(file)?);
        run.script.write(&mut out)?;
        out.flush()
    };
    create().map_err(|error| format!("{file}: {error}"))?;
    for violation in &run.violations {
        println!("seed {}: {violation}", run.seed);
    }
    println!("{} steps in {file}", run.script.steps.len());
    Ok(run.violations.is_empty())
}

fn replay(file: &str) -> Result<bool, String> {
    let open = File::open(file).map_err(|error| format!("{file}: {error}"))?;
    let script = Script::read(BufReader::new(open)).map_err(|error| format!("{file}: {error}"))?;
    let run = simulation::replay(&script);
    for (number, timed) in run.script.steps.iter().enumerate() {
        println!(
            "{:>6} {:>9.3} s  {}",
            number + 1,
            timed.at_ms as f64 / 1e3,
            timed.step
        );
        if let Some(divergence) = &run.divergence
            && divergence.step == number + 1
        {
            let expected = divergence.expected.as_ref();
            let expected = expected.map_or("its end".to_owned(), |timed| timed.step.to_string());
            println!("step {} differs; the file has: {expected}", number + 1);
            return Ok(false);
        }
    }
    for violation in &run.violations {
        println!("{violation}");
    }
    Ok(run.violations.is_empty())
}
