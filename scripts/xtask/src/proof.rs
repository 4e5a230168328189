//! The proof that nothing is lost: programs with failpoints, and what runs them.
//!
//! The provider under test is a debug build with failpoints; a release build with them does not compile. Everything around
//! it is what is shipped.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    build,
    run::{cargo, run, target_dir},
};

/// Turns on failpoints and planted bugs. With the whole workspace, so that everything below is built as for its tests.
pub(crate) const FEATURES: &[&str] = &[
    "--workspace",
    "--locked",
    "--features",
    "souk-tests/proof,souk/planted-bugs",
];

/// Builds the programs of the proof, and gives the `souk` that has failpoints.
pub(crate) fn build() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet"]);
    command.args(FEATURES);
    for program in ["souk", "simulate", "crash-sweep", "soak"] {
        command.args(["--bin", program]);
    }
    run(command)?;
    let souk = target_dir().join("debug/souk");
    // Under a name of its own, so that nobody takes it for what it is not.
    let proof = target_dir().join("debug/souk-with-failpoints");
    std::fs::copy(&souk, &proof).with_context(|| format!("cannot write {}", proof.display()))?;
    Ok(proof)
}

/// Runs seeds of the simulation.
pub(crate) fn simulate(args: &[String]) -> Result<ExitCode> {
    build()?;
    start(Command::new(target_dir().join("debug/simulate")).args(args))
}

/// Kills a provider at every step of a lease.
pub(crate) fn crash_sweep(args: &[String]) -> Result<ExitCode> {
    over_processes("crash-sweep", args)
}

/// Many leases over a long time.
pub(crate) fn soak(args: &[String]) -> Result<ExitCode> {
    over_processes("soak", args)
}

fn over_processes(program: &str, args: &[String]) -> Result<ExitCode> {
    let programs = build::all()?;
    let proof = build()?;
    start(
        Command::new(target_dir().join("debug").join(program))
            .args(args)
            .env("SOUK_BIN", programs.souk)
            .env("SOUK_AGENT_BIN", programs.agent)
            .env("SOUK_PROOF_BIN", proof),
    )
}

fn start(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
