//! Benchmarks, held against the aims in `docs/benchmarks.md`: that table is the only place where an aim stands.
//!
//! A row whose first cell begins with a name in backticks is a figure; its aim and its command are read from the same row. The benchmark says
//! what it measured in lines `measured: NAME VALUE UNIT`.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{cargo, root};

/// Where the aims are.
const TABLE: &str = "docs/benchmarks.md";
/// Begins a line by which a benchmark says a figure.
const MEASURED: &str = "measured: ";

/// Runs the benchmarks of all figures, or of those whose names contain one of the words. With `--check` a figure that misses its aim, or that no
/// benchmark says, is a failure.
pub(crate) fn all(args: &[String]) -> Result<()> {
    let (flags, words): (Vec<_>, Vec<_>) = args.iter().partition(|arg| arg.starts_with('-'));
    if let Some(unknown) = flags.iter().find(|flag| **flag != "--check") {
        bail!("no option `{unknown}`");
    }
    let text = std::fs::read_to_string(root().join(TABLE))
        .with_context(|| format!("cannot read {TABLE}"))?;
    let mut figures = figures(&text)?;
    if !words.is_empty() {
        figures.retain(|figure| words.iter().any(|word| figure.name.contains(word.as_str())));
        ensure!(!figures.is_empty(), "no figure has such a name");
    }
    let mut benches: Vec<&Bench> = Vec::new();
    for figure in &figures {
        if !benches.contains(&&figure.bench) {
            benches.push(&figure.bench);
        }
    }
    let mut seen = BTreeMap::new();
    for bench in benches {
        let of_bench = |name: &String| {
            figures
                .iter()
                .any(|figure| figure.name == *name && figure.bench == *bench)
        };
        // One program may measure for several commands, each on a disk of its own.
        seen.extend(
            measure(bench)?
                .into_iter()
                .filter(|(name, _)| of_bench(name)),
        );
    }
    let missed = judge(&figures, &seen);
    if missed.is_empty() || flags.is_empty() {
        return Ok(());
    }
    bail!("below their aims in {TABLE}: {}", missed.join(", "));
}

/// Prints each figure beside its aim; returns the names of those that miss it.
fn judge<'f>(figures: &'f [Figure], seen: &BTreeMap<String, Value>) -> Vec<&'f str> {
    println!("\n{:<22} {:>14} {:>14}", "figure", "measured", "aim");
    let mut missed = Vec::new();
    for figure in figures {
        let value = seen.get(&figure.name);
        let holds = value.is_some_and(|value| figure.aim.holds(value));
        let shown = value.map_or("nothing".to_owned(), Value::to_string);
        let mark = if holds { "" } else { "  MISSED" };
        println!(
            "{:<22} {shown:>14} {:>14}{mark}",
            figure.name,
            figure.aim.to_string()
        );
        if !holds {
            missed.push(figure.name.as_str());
        }
    }
    missed
}

/// Runs one benchmark to its end, shows what it prints, and returns what it measured.
fn measure(bench: &Bench) -> Result<BTreeMap<String, Value>> {
    eprintln!("── {} --bench {}", bench.package, bench.name);
    let mut command = cargo(&["bench", "--locked", "-p", &bench.package]);
    command
        .args(["--bench", &bench.name])
        .envs(bench.environment.iter().cloned())
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo bench")?;
    let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let mut seen = BTreeMap::new();
    for line in lines {
        let line = line.context("cannot read what a benchmark prints")?;
        println!("{line}");
        seen.extend(said(&line)?);
    }
    let status = child.wait().context("cannot wait for cargo bench")?;
    ensure!(status.success(), "{} failed: {status}", bench.name);
    Ok(seen)
}

/// The figure that a line says, if it says one.
fn said(line: &str) -> Result<Option<(String, Value)>> {
    let Some(rest) = line.strip_prefix(MEASURED) else {
        return Ok(None);
    };
    let (name, value) = rest.split_once(' ').context("a figure without a value")?;
    Ok(Some((name.to_owned(), value.parse()?)))
}

/// A figure that has an aim.
#[derive(Debug, PartialEq)]
struct Figure {
    name: String,
    aim: Aim,
    bench: Bench,
}

/// Which program measures it.
#[derive(Clone, Debug, PartialEq)]
struct Bench {
    package: String,
    name: String,
    /// Variables that the command sets.
    environment: Vec<(String, String)>,
}

/// What a figure has to reach.
#[derive(Debug, PartialEq)]
struct Aim {
    is_floor: bool,
    bound: Value,
}

impl Aim {
    /// A figure in another unit misses it.
    fn holds(&self, seen: &Value) -> bool {
        let is_reached = if self.is_floor {
            seen.number >= self.bound.number
        } else {
            seen.number <= self.bound.number
        };
        is_reached && seen.unit == self.bound.unit
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_floor { '≥' } else { '≤' };
        write!(f, "{sign} {}", self.bound)
    }
}

/// A number and its unit.
#[derive(Clone, Debug, PartialEq)]
struct Value {
    number: f64,
    unit: String,
}

impl std::str::FromStr for Value {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = text
            .trim()
            .split_once(' ')
            .with_context(|| format!("`{text}` is no number and unit"))?;
        let number = number.parse();
        Ok(Self {
            number: number.with_context(|| format!("`{text}` begins with no number"))?,
            unit: unit.to_owned(),
        })
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} {}", self.number, self.unit)
    }
}

/// The figures of a table.
fn figures(text: &str) -> Result<Vec<Figure>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let figures: Vec<_> = rows
        .map(|row| figure(row).with_context(|| format!("in {TABLE}: {row}")))
        .collect::<Result<_>>()?;
    ensure!(!figures.is_empty(), "{TABLE} has no figures");
    Ok(figures)
}

/// The figure of one row, from its name on.
fn figure(row: &str) -> Result<Figure> {
    let (name, _) = row.split_once('`').context("the name has no end")?;
    let cells: Vec<_> = row.trim_end().trim_end_matches('|').split('|').collect();
    let (aim, command) = (cells.get(1), cells.last());
    let (aim, command) = aim.zip(command).context("too few cells")?;
    let (is_floor, bound) = match aim.trim().split_once(' ') {
        Some(("≥", bound)) => (true, bound),
        Some(("≤", bound)) => (false, bound),
        _ => bail!("the aim begins with neither ≥ nor ≤"),
    };
    let words: Vec<_> = command
        .split(|c: char| c.is_whitespace() || c == '`')
        .collect();
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).map(|word| (*word).to_owned())
    };
    Ok(Figure {
        name: name.to_owned(),
        aim: Aim {
            is_floor,
            bound: bound.parse()?,
        },
        bench: Bench {
            package: after("-p").context("the command names no package")?,
            name: after("--bench").context("the command names no benchmark")?,
            environment: words
                .iter()
                .take_while(|word| **word != "cargo")
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_sets_is_set() {
        let figures = figures(ROW).expect("a row");
        let set = ("A".to_owned(), "1".to_owned());
        assert_eq!(figures[0].bench.environment, [set]);
    }

    const ROW: &str = "| `peel` what it is | ≥ 80 % | 84.5 % | 3 | `A=1 cargo bench -p souk-sphinx --bench peel` |";

    fn judged(line: &str) -> Vec<String> {
        let figures = figures(ROW).expect("a row");
        let seen = said(line).expect("of the form").into_iter().collect();
        judge(&figures, &seen)
            .into_iter()
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_figure_holds_where_it_reaches_its_aim_in_its_unit() {
        assert!(judged("measured: peel 80.0 %").is_empty());
        assert_eq!(judged("measured: peel 79.9 %"), ["peel"]);
        assert_eq!(judged("measured: peel 99 µs"), ["peel"]);
        assert_eq!(judged("peel 99 %"), ["peel"], "nobody said it");
        assert!(said("measured: peel fast %").is_err());
    }

    #[test]
    fn a_ceiling_is_one() {
        let figures = figures(&ROW.replace('≥', "≤")).expect("a row");
        let seen = |text| BTreeMap::from([("peel".to_owned(), text)]);
        let value = |number| Value {
            number,
            unit: "%".to_owned(),
        };
        assert!(judge(&figures, &seen(value(80.0))).is_empty());
        assert_eq!(judge(&figures, &seen(value(80.1))), ["peel"]);
    }

    #[test]
    fn every_aim_of_the_table_names_a_benchmark_that_is_there_and_says_it() {
        let text = std::fs::read_to_string(root().join(TABLE)).expect("the table");
        let metadata = crate::run::output(cargo(&[
            "metadata",
            "--locked",
            "--no-deps",
            "--format-version",
            "1",
        ]));
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata.expect("cargo metadata")).expect("JSON");
        for figure in figures(&text).expect("readable") {
            let packages = metadata["packages"].as_array().expect("packages");
            let package = packages.iter().find(|p| p["name"] == *figure.bench.package);
            let targets = package.expect("a package")["targets"].as_array();
            let target = targets
                .expect("targets")
                .iter()
                .find(|t| t["name"] == *figure.bench.name && t["kind"][0] == "bench");
            let path = target.expect("a benchmark")["src_path"]
                .as_str()
                .expect("a path");
            let source = std::fs::read_to_string(path).expect("its source");
            // Of several sizes the name is put together.
            let stem = figure
                .name
                .trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
            assert!(source.contains(&format!("\"{stem}")), "{}", figure.name);
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_told() {
        for (good, bad) in [("≥ 80", "80"), ("80 %", "80"), ("-p ", ""), ("--bench", "")] {
            assert!(figures(&ROW.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
