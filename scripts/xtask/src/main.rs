//! Builds, tests and measures souk with nothing but cargo.
//!
//! ```text
//! cargo xtask build              souk and its static agent, into target/release/
//! cargo xtask demo [args…]       build, then `souk demo args…`
//! cargo xtask ship               both programs as they are packaged: they tell their commit, and not where they were built
//! cargo xtask package             ship, then a Debian package (needs cargo-deb)
//! cargo xtask reproduce           ship twice from different folders, and compare byte by byte
//! cargo xtask test [filter…]     build, then all tests against those binaries
//! cargo xtask lint               fmt, clippy, doc, deny, deps, file lengths
//! cargo xtask deps               crate dependencies point down only
//! cargo xtask fuzz [--seconds N] every fuzz target for N seconds
//! cargo xtask bench [--check] […] benchmarks, held against the aims in docs/benchmarks.md
//! cargo xtask simulate [args…]   seeds of the simulation, or one of them step by step
//! cargo xtask crash-sweep […]    a real provider, killed at every step of a lease
//! cargo xtask soak [args…]       many leases, with deaths, after which memory and descriptors are flat
//! ```
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a build tool")]

mod bench;
mod build;
mod deps;
mod fuzz;
mod lint;
mod package;
mod proof;
mod run;
mod test;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask <command>

  build              build souk and its static agent into target/release/
  demo [args…]       build, then run `souk demo args…`
  ship               build both programs as they are packaged: they tell their commit, and not where they were built
  package            ship, then pack a Debian package (needs cargo-deb)
  reproduce          ship from two checkouts, and compare the programs byte by byte
  test [filter…]     build, then run all tests (CI=true: a skipped test is a failure)
  lint               fmt, clippy, doc, deny, deps, file lengths
  deps               check that crate dependencies point down only
  fuzz [--seconds N] run every fuzz target for N seconds (default 10)
  bench [--check] [name…] run the benchmarks of all figures in docs/benchmarks.md (--check: one that misses its aim is a failure)
  simulate [args…]   run seeds of the simulation (--seeds N, --trace FILE, --replay FILE, --json)
  crash-sweep [args…] kill a real provider at every step of a lease (--runs N, --json)
  soak [args…]       many leases over a long time (--leases N, --minutes N, --json)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match command(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(args: &[String]) -> Result<ExitCode> {
    let Some((name, rest)) = args.split_first() else {
        eprintln!("{USAGE}");
        return Ok(ExitCode::from(64));
    };
    match name.as_str() {
        "build" => build::all().map(|_| ExitCode::SUCCESS),
        "demo" => build::demo(rest),
        "ship" => build::shipped().map(|_| ExitCode::SUCCESS),
        "package" => package::deb().map(|()| ExitCode::SUCCESS),
        "reproduce" => package::reproduce().map(|()| ExitCode::SUCCESS),
        "test" => test::all(rest).map(|()| ExitCode::SUCCESS),
        "lint" => lint::all().map(|()| ExitCode::SUCCESS),
        "deps" => deps::check().map(|()| ExitCode::SUCCESS),
        "fuzz" => fuzz::all(rest).map(|()| ExitCode::SUCCESS),
        "bench" => bench::all(rest).map(|()| ExitCode::SUCCESS),
        "simulate" => proof::simulate(rest),
        "crash-sweep" => proof::crash_sweep(rest),
        "soak" => proof::soak(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("no command `{other}`\n\n{USAGE}"),
    }
}
