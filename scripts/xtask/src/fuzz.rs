//! Every fuzz target for a short while.
//!
//! The targets lie in `fuzz/` folders with a workspace of their own, as cargo-fuzz makes them. They are built without a
//! sanitizer, which is what a stable compiler can do: what they look for is panics and broken round trips, and almost
//! nothing here is `unsafe`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::run::{Parts, cargo, output, root, run};

/// How long one target runs when nothing else is said, in seconds.
const DEFAULT_SECONDS: u32 = 10;

/// Runs all targets.
pub(crate) fn all(args: &[String]) -> Result<()> {
    let seconds = seconds(args)?;
    let mut parts = Parts::new("fuzz");
    let mut count = 0;
    for folder in folders()? {
        let folder = folder.to_string_lossy().into_owned();
        let targets = output(cargo(&["fuzz", "list", "--fuzz-dir", &folder]))
            .context("install it with `cargo install --locked cargo-fuzz`")?;
        for target in targets.lines() {
            count += 1;
            // Judged by `finish`.
            let _ = parts.time(target, || one(&folder, target, seconds));
        }
    }
    if count == 0 {
        bail!("there is no fuzz target");
    }
    parts.finish()
}

fn one(folder: &str, target: &str, seconds: u32) -> Result<()> {
    let limit = format!("-max_total_time={seconds}");
    // What is found goes into the first folder, which git ignores; the second one is read only.
    let corpus = root().join(folder).join("corpus").join(target);
    std::fs::create_dir_all(&corpus)?;
    let mut command = cargo(&["fuzz", "run", "--fuzz-dir", folder, "--sanitizer", "none"]);
    command.arg(target).arg(corpus);
    let seeds = root().join("fixtures/fuzz").join(target);
    if seeds.is_dir() {
        command.arg(seeds);
    }
    command.args([
        "--",
        &limit,
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
        "-verbosity=0",
    ]);
    run(command)
}

fn seconds(args: &[String]) -> Result<u32> {
    match args {
        [] => Ok(DEFAULT_SECONDS),
        [flag, number] if flag == "--seconds" => number
            .parse()
            .with_context(|| format!("`{number}` is no number of seconds")),
        _ => bail!("usage: cargo xtask fuzz [--seconds N]"),
    }
}

/// The folders that cargo-fuzz knows, in the order of their names.
fn folders() -> Result<Vec<PathBuf>> {
    let mut git = std::process::Command::new("git");
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "fuzz/Cargo.toml",
        "*/fuzz/Cargo.toml",
    ])
    .current_dir(root());
    let list = output(git)?;
    let mut folders: Vec<_> = list
        .lines()
        .filter_map(|name| {
            PathBuf::from(name)
                .parent()
                .map(|folder| root().join(folder))
        })
        .collect();
    folders.sort();
    folders.dedup();
    Ok(folders)
}
