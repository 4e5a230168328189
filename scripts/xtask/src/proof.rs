//! The proof that nothing is lost: programs with failpoints, and what runs them.
//!
//! The provider under test has failpoints, and a release build with them does not compile. The long forms are of the profile `proof`, which
//! is a release build with debug assertions where the promises are kept; the short ones among the tests are debug builds, as those are.
//! Everything around the provider is what is shipped.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{
    build,
    run::{cargo, run, target_dir},
};

/// Turns on failpoints and planted bugs.
const FAILPOINTS: &str = "souk-tests/proof,souk/planted-bugs";

/// As the tests are built. With the whole workspace, so that everything below is built as for its tests.
pub(crate) const FEATURES: &[&str] = &["--workspace", "--locked", "--features", FAILPOINTS];

/// The profile of the long forms, and its folder.
const LONG: &str = "proof";

/// Builds the `souk` that has failpoints as the tests have it, and gives it.
pub(crate) fn build() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet"]);
    command.args(FEATURES).args(["--bin", "souk"]);
    run(command)?;
    with_failpoints(&target_dir().join("debug"))
}

/// Builds the programs of the long forms, and gives the folder that they are in.
fn build_long() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--quiet", "--locked", "--profile", LONG]);
    command
        .args(["-p", "souk", "-p", "souk-tests", "--bins"])
        .args(["--features", FAILPOINTS]);
    run(command)?;
    Ok(target_dir().join(LONG))
}

/// Gives the `souk` of a folder a name of its own, so that nobody takes it for what it is not.
fn with_failpoints(folder: &Path) -> Result<PathBuf> {
    let proof = folder.join("souk-with-failpoints");
    std::fs::copy(folder.join("souk"), &proof)
        .with_context(|| format!("cannot write {}", proof.display()))?;
    Ok(proof)
}

/// Runs seeds of the simulation.
pub(crate) fn simulate(args: &[String]) -> Result<ExitCode> {
    let folder = build_long()?;
    start(Command::new(folder.join("simulate")).args(args))
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
    let folder = build_long()?;
    start(
        Command::new(folder.join(program))
            .args(args)
            .env("SOUK_BIN", programs.souk)
            .env("SOUK_AGENT_BIN", programs.agent)
            .env("SOUK_PROOF_BIN", with_failpoints(&folder)?),
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
