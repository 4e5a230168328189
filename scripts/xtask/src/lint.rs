//! What a reviewer should not have to look for.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{
    deps, proof,
    run::{Parts, cargo, output, root, run},
};

/// No source file is longer, in lines: past this it is two rooms.
const MAX_LINES: usize = 800;

/// Runs every check, also after one failed, and says which failed.
pub(crate) fn all() -> Result<()> {
    let mut parts = Parts::new("lint");
    // Each result is in the table that `finish` judges.
    let _ = parts.time("deps", deps::check);
    let _ = parts.time("file lengths", file_lengths);
    let _ = parts.time("fmt", || run(cargo(&["fmt", "--all", "--check"])));
    let _ = parts.time("clippy", || {
        run(cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]))
    });
    let _ = parts.time("clippy of the proof", || {
        let mut clippy = cargo(&["clippy", "--all-targets", "--quiet"]);
        clippy.args(proof::FEATURES).args(["--", "-D", "warnings"]);
        run(clippy)
    });
    let _ = parts.time("releases without failpoints", no_failpoints_by_default);
    let _ = parts.time("doc", || {
        let mut doc = cargo(&[
            "doc",
            "--workspace",
            "--no-deps",
            "--document-private-items",
            "--locked",
            "--quiet",
        ]);
        doc.env("RUSTDOCFLAGS", "-D warnings");
        run(doc)
    });
    let _ = parts.time("deny", || {
        run(cargo(&[
            "deny",
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]))
        .context("install it with `cargo install --locked cargo-deny`")
    });
    let _ = parts.time("advisories", advisories);
    parts.finish()
}

/// Nothing turns on failpoints or planted bugs unless it is asked to.
fn no_failpoints_by_default() -> Result<()> {
    let tree = output(cargo(&[
        "tree",
        "--locked",
        "--package",
        "souk",
        "--edges",
        "normal,build",
        "--format",
        "{p} {f}",
    ]))?;
    let with: Vec<_> = tree
        .lines()
        .filter(|line| line.contains("failpoints") || line.contains("planted-bugs"))
        .collect();
    if !with.is_empty() {
        bail!("in a release by default:\n  {}", with.join("\n  "));
    }
    Ok(())
}

/// Known vulnerabilities, where the RustSec database can be reached; where it cannot, that is said.
fn advisories() -> Result<()> {
    const UNREACHED: &str = "failed to fetch advisory database";
    let output = cargo(&["deny", "--log-level", "error", "check", "advisories"])
        .output()
        .context("cannot start cargo deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains(UNREACHED) {
        eprintln!(
            "not checked: known vulnerabilities, because the RustSec database cannot be reached"
        );
        return Ok(());
    }
    eprint!("{said}");
    if !output.status.success() {
        bail!("there are known vulnerabilities ({})", output.status);
    }
    Ok(())
}

fn file_lengths() -> Result<()> {
    let mut git = std::process::Command::new("git");
    git.args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.rs",
    ])
    .current_dir(root());
    let mut long = Vec::new();
    for name in output(git)?.lines() {
        let path = root().join(name);
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        let lines = text.lines().count();
        if lines > MAX_LINES {
            long.push(format!("{name}: {lines} lines"));
        }
    }
    if !long.is_empty() {
        bail!("longer than {MAX_LINES} lines:\n  {}", long.join("\n  "));
    }
    Ok(())
}
