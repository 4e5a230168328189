//! Benchmarks, held against the aims in `docs/benchmarks.md`: that table is the only place where an aim stands.
//!
//! A row whose first cell begins with a name in backticks is a figure; its aim and its command are read from the same row. A benchmark of cargo says
//! what it measured in lines `measured: NAME VALUE UNIT`; a command of souk says it in its JSON, where [`TOLD`] finds it.

use std::{
    collections::BTreeMap,
    fmt,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    build,
    run::{cargo, output, root},
};

/// Where the aims are.
const TABLE: &str = "docs/benchmarks.md";
/// Begins a line by which a benchmark says a figure.
const MEASURED: &str = "measured: ";

/// The figures that commands of souk tell: their names, where in the JSON they stand in milliseconds, and in which unit they are judged.
const TOLD: &[(&str, &str, Unit)] = &[
    ("rent-to-banner-p50", "/parts/total/p50_ms", ("ms", 1.0)),
    ("rent-to-banner-p95", "/parts/total/p95_ms", ("ms", 1.0)),
    ("demo", "/timings_ms/total", ("s", 1_000.0)),
];

/// The name of a unit, and its milliseconds.
type Unit = (&'static str, f64);

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
    match bench {
        Bench::Cargo {
            package,
            name,
            environment,
        } => {
            eprintln!("── {package} --bench {name}");
            let mut command = cargo(&["bench", "--locked", "-p", package]);
            command
                .args(["--bench", name])
                .envs(environment.iter().cloned());
            lines_of(command).with_context(|| format!("{name} failed"))
        }
        Bench::Souk { args } => {
            let programs = build::all()?;
            eprintln!("── souk {}", args.join(" "));
            let mut command = Command::new(programs.souk);
            command
                .args(args)
                .arg("--json")
                .env("SOUK_AGENT_BIN", programs.agent);
            let said = output(command)?;
            println!("{}", said.trim_end());
            told(&said)
        }
    }
}

/// The figures that a benchmark of cargo says, line by line.
fn lines_of(mut command: Command) -> Result<BTreeMap<String, Value>> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo bench")?;
    let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let mut seen = BTreeMap::new();
    for line in lines {
        let line = line.context("cannot read what a benchmark prints")?;
        println!("{line}");
        seen.extend(said(&line)?);
    }
    let status = child.wait().context("cannot wait for cargo bench")?;
    ensure!(status.success(), "{status}");
    Ok(seen)
}

/// The figures that stand in the JSON of a command of souk.
fn told(said: &str) -> Result<BTreeMap<String, Value>> {
    let said: serde_json::Value = serde_json::from_str(said).context("souk printed no JSON")?;
    let figure = |(name, at, (unit, in_ms)): &(&str, &str, Unit)| {
        let value = Value {
            number: said.pointer(at)?.as_f64()? / in_ms,
            unit: (*unit).to_owned(),
        };
        Some(((*name).to_owned(), value))
    };
    Ok(TOLD.iter().filter_map(figure).collect())
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

/// What measures it.
#[derive(Clone, Debug, PartialEq)]
enum Bench {
    /// A benchmark of a package.
    Cargo {
        package: String,
        name: String,
        /// Variables that the command sets.
        environment: Vec<(String, String)>,
    },
    /// A command of souk itself.
    Souk { args: Vec<String> },
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
    Ok(Figure {
        name: name.to_owned(),
        aim: Aim {
            is_floor,
            bound: bound.parse()?,
        },
        bench: command.parse()?,
    })
}

impl std::str::FromStr for Bench {
    type Err = anyhow::Error;

    fn from_str(command: &str) -> Result<Self> {
        let words: Vec<_> = command
            .split(|c: char| c.is_whitespace() || c == '`')
            .filter(|word| !word.is_empty())
            .collect();
        if let ["souk", args @ ..] = words.as_slice() {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            return Ok(Self::Souk { args });
        }
        let after = |option: &str| {
            let at = words.iter().position(|word| *word == option)?;
            words.get(at + 1).map(|word| (*word).to_owned())
        };
        Ok(Self::Cargo {
            package: after("-p").context("the command names no package")?,
            name: after("--bench").context("the command names no benchmark")?,
            environment: words
                .iter()
                .take_while(|word| **word != "cargo")
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_command_sets_is_set() {
        let figures = figures(ROW).expect("a row");
        let bench = Bench::Cargo {
            package: "souk-sphinx".to_owned(),
            name: "peel".to_owned(),
            environment: vec![("A".to_owned(), "1".to_owned())],
        };
        assert_eq!(figures[0].bench, bench);
    }

    #[test]
    fn a_command_of_souk_is_judged_by_its_json() {
        let row = "| `demo` the demo, whole | ≤ 5 s | 4.1 s | 1 | `souk demo` |";
        let figures = figures(row).expect("a row");
        let args = vec!["demo".to_owned()];
        assert_eq!(figures[0].bench, Bench::Souk { args });
        let missed = |said| judge(&figures, &told(said).expect("JSON")).len();
        assert_eq!(missed(r#"{"timings_ms": {"total": 4100}}"#), 0);
        assert_eq!(missed(r#"{"timings_ms": {"total": 5001}}"#), 1);
        assert_eq!(missed(r#"{"timings_ms": {}}"#), 1, "nobody said it");
        let lease = r#"{"parts": {"total": {"p50_ms": 201.5, "p95_ms": 310.0}}}"#;
        let told = told(lease).expect("JSON");
        assert_eq!(told["rent-to-banner-p50"].to_string(), "201.5 ms");
        assert_eq!(told["rent-to-banner-p95"].to_string(), "310.0 ms");
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
        let metadata = output(cargo(&[
            "metadata",
            "--locked",
            "--no-deps",
            "--format-version",
            "1",
        ]));
        let metadata: serde_json::Value =
            serde_json::from_str(&metadata.expect("cargo metadata")).expect("JSON");
        for figure in figures(&text).expect("readable") {
            let Bench::Cargo {
                package: of, name, ..
            } = &figure.bench
            else {
                let is_told = TOLD.iter().any(|(name, ..)| *name == figure.name);
                assert!(is_told, "{}", figure.name);
                continue;
            };
            let packages = metadata["packages"].as_array().expect("packages");
            let package = packages.iter().find(|package| package["name"] == **of);
            let targets = package.expect("a package")["targets"].as_array();
            let target = targets
                .expect("targets")
                .iter()
                .find(|target| target["name"] == **name && target["kind"][0] == "bench");
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
    fn what_a_requester_waits_for_has_an_aim_that_is_checked() {
        let text = std::fs::read_to_string(root().join(TABLE)).expect("the table");
        let figures = figures(&text).expect("readable");
        let told = TOLD.iter().map(|(name, ..)| *name);
        for name in told.chain(["control-socket"]) {
            assert!(figures.iter().any(|figure| figure.name == name), "{name}");
        }
    }

    #[test]
    fn a_row_that_cannot_be_read_is_told() {
        for (good, bad) in [("≥ 80", "80"), ("80 %", "80"), ("-p ", ""), ("--bench", "")] {
            assert!(figures(&ROW.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
