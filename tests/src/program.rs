//! What the programs of the proof have in common: how they read their arguments, and what they print at the end.

use std::{env, fs, path::Path, process::ExitCode, time::Instant};

use serde_json::{Map, Value, json};
use souk_node::failpoint::{Failpoint, PlantedBug};

use crate::simulation::Violation;

/// The exit status of a program that was called in a way that it does not know.
const USAGE: u8 = 64;

/// The words that a program was called with.
pub struct Words(Box<dyn Iterator<Item = String>>);

impl Words {
    /// The next option.
    pub fn next_option(&mut self) -> Option<String> {
        self.0.next()
    }

    /// The value of an option.
    ///
    /// # Errors
    /// If there is none.
    pub fn value(&mut self, option: &str) -> Result<String, String> {
        self.0.next().ok_or(format!("{option} needs a value"))
    }

    /// The value of an option that takes a number.
    ///
    /// # Errors
    /// If it is none.
    pub fn number(&mut self, option: &str) -> Result<u64, String> {
        let text = self.value(option)?;
        text.parse().map_err(|_| format!("`{text}` is no number"))
    }

    /// The value of an option that takes a planted bug.
    ///
    /// # Errors
    /// If there is no such bug.
    pub fn bug(&mut self, option: &str) -> Result<PlantedBug, String> {
        let name = self.value(option)?;
        PlantedBug::named(&name).ok_or(format!("no bug `{name}`"))
    }

    /// The value of an option that takes a failpoint.
    ///
    /// # Errors
    /// If there is no such point.
    pub fn failpoint(&mut self, option: &str) -> Result<Failpoint, String> {
        let name = self.value(option)?;
        Failpoint::named(&name).ok_or(format!("no failpoint `{name}`"))
    }
}

/// What came of the work of a program.
pub struct Report {
    said: Map<String, Value>,
    is_good: bool,
}

impl Report {
    /// What was counted and what was broken, and whether every promise was kept and everything reached that is to be
    /// reached. Seconds and load are added.
    #[must_use]
    pub fn new<const N: usize>(is_good: bool, said: [(&str, Value); N]) -> Self {
        let said = said.map(|(name, value)| (name.to_owned(), value));
        Self {
            said: said.into_iter().collect(),
            is_good,
        }
    }
}

/// Reads the arguments, does the work, and prints one JSON object: on one line with `--json`, which every program takes.
pub fn run<A>(
    usage: &str,
    arguments: impl FnOnce(&mut Words) -> Result<A, String>,
    work: impl FnOnce(A) -> Report,
) -> ExitCode {
    let (json, words): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|word| word == "--json");
    let arguments = match arguments(&mut Words(Box::new(words.into_iter()))) {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error, usage),
    };
    let start = Instant::now();
    let mut report = work(arguments);
    let seconds = start.elapsed().as_secs_f64();
    report.said.insert("seconds".to_owned(), json!(seconds));
    report.said.insert("load".to_owned(), json!(load()));
    print(&report.said.into(), !json.is_empty());
    if report.is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Broken promises, each with the run or seed in which it was broken.
pub fn failures<'v>(broken: impl IntoIterator<Item = (Value, &'v Violation)>) -> Value {
    let shown = |(run, violation): (Value, &Violation)| json!({"run": run, "invariant": violation.invariant.name(), "seen": violation.seen});
    broken.into_iter().map(shown).collect()
}

/// Counts by failpoint.
pub fn by_name<'c>(counts: impl IntoIterator<Item = (&'c Failpoint, &'c u64)>) -> Value {
    let named = counts
        .into_iter()
        .map(|(point, count)| (point.name().to_owned(), json!(count)));
    named.collect::<Map<_, _>>().into()
}

/// How many processes wanted to run, on average over the last 15 minutes (proc(5)): what a figure was taken under.
fn load() -> Option<f64> {
    let text = fs::read_to_string(Path::new("/proc/loadavg")).ok()?;
    text.split(' ').nth(2)?.parse().ok()
}

#[expect(clippy::print_stdout, reason = "what a program of the proof found")]
fn print(report: &Value, on_one_line: bool) {
    if on_one_line {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
}

#[expect(clippy::print_stderr, reason = "a program that was called wrongly")]
fn refuse(error: &str, usage: &str) -> ExitCode {
    eprintln!("{error}\n\n{usage}");
    ExitCode::from(USAGE)
}
