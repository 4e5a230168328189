//! All tests, against programs that were just built.
//!
//! A test that lacks something prints `skipped: …` and passes; the test harness would swallow that line. It is asked
//! to show the output of passing tests, everything else of which is dropped here, and the skips are listed at the end.
//! With `CI=true` a skip is a failure, because CI installs everything that a test can need.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use anyhow::{Context, Result, bail};

use crate::{
    build, proof,
    run::{Parts, cargo, run},
};

/// What a test prints, at the start of a line, when it did not run.
const SKIP: &str = "skipped:";

/// Builds everything, then runs the tests whose names contain `filter`.
pub(crate) fn all(filter: &[String]) -> Result<()> {
    let mut parts = Parts::new("test");
    let programs = parts.time("build", build::all);
    let Ok(programs) = programs else {
        return parts.finish();
    };
    let built = parts.time("build of the tests", || {
        let mut build = cargo(&["test", "--no-run", "--quiet"]);
        build.args(proof::FEATURES);
        run(build)?;
        proof::build()
    });
    if let Ok(proof) = built {
        // Judged by `finish`.
        let _ = parts.time("tests", || tests(&programs, &proof, filter));
    }
    parts.finish()
}

fn tests(programs: &build::Programs, proof: &Path, filter: &[String]) -> Result<()> {
    let mut command = cargo(&["test", "--no-fail-fast"]);
    command
        .args(proof::FEATURES)
        .args(["--", "--show-output"])
        .args(filter)
        .env("SOUK_PROOF_BIN", proof)
        .env("SOUK_BIN", &programs.souk)
        .env("SOUK_AGENT_BIN", &programs.agent)
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo test")?;
    let lines = BufReader::new(child.stdout.take().context("stdout is piped")?).lines();
    let mut report = Report::default();
    for line in lines {
        let line = line.context("cannot read what cargo test prints")?;
        if report.shows(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    eprintln!(
        "\n{} passed, {} failed, {} skipped",
        report.passed,
        report.failed,
        report.skipped.len()
    );
    for skip in &report.skipped {
        eprintln!("  {skip}");
    }
    if !status.success() {
        bail!("{} tests failed ({status})", report.failed);
    }
    if filter.is_empty() && report.passed == 0 {
        bail!("no test ran");
    }
    let strict = env::var_os("CI").is_some_and(|value| value == "true");
    if strict && !report.skipped.is_empty() {
        bail!(
            "{} tests were skipped, and CI=true allows none",
            report.skipped.len()
        );
    }
    Ok(())
}

/// Counts results and finds skips in what the test harness prints.
#[derive(Default)]
struct Report {
    in_successes: bool,
    passed: usize,
    failed: usize,
    skipped: Vec<String>,
}

impl Report {
    /// Takes one line; says whether it is worth showing.
    fn shows(&mut self, line: &str) -> bool {
        if line == "successes:" {
            self.in_successes = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            self.in_successes = false;
        }
        if line.starts_with("test ") {
            self.passed += usize::from(line.ends_with("... ok"));
            self.failed += usize::from(line.ends_with("... FAILED"));
        }
        if line.starts_with(SKIP) {
            self.skipped.push(line.to_owned());
            return true;
        }
        !self.in_successes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> (Report, String) {
        let mut report = Report::default();
        let shown: Vec<_> = text.lines().filter(|line| report.shows(line)).collect();
        let shown = shown.join("\n");
        (report, shown)
    }

    const OUTPUT: &str = "\
running 3 tests
test a ... ok
test b ... ok
test c ... FAILED

successes:

---- a stdout ----
noise
---- b stderr ----
skipped: needs root

successes:
    a
    b

failures:

---- c stdout ----
why

test result: FAILED. 2 passed; 1 failed";

    #[test]
    fn skips_are_found_in_the_output_of_passing_tests() {
        let (report, _) = report(OUTPUT);
        assert_eq!(report.skipped, ["skipped: needs root"]);
        assert_eq!((report.passed, report.failed), (2, 1));
    }

    #[test]
    fn noise_of_passing_tests_is_dropped_and_failures_are_shown() {
        let (_, shown) = report(OUTPUT);
        assert!(!shown.contains("noise"));
        assert!(shown.contains("why"));
    }
}
