//! Crate dependencies point down only.
//!
//! Every crate of the workspace has the crates that it may use listed here, as drawn in docs/architecture.md. A crate
//! that is not listed fails the check, so that a new one gets its place on purpose.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output};

/// What each crate may depend on, of the workspace and outside of tests, from the bottom up.
const ALLOWED: &[(&str, &[&str])] = &[
    ("souk-crypto", &[]),
    ("souk-toml", &[]),
    ("souk-backend", &[]),
    ("souk-control", &[]),
    ("souk-session", &[]),
    ("souk-tui", &["souk-control"]),
    ("souk-image", &["souk-backend"]),
    ("souk-sphinx", &["souk-crypto"]),
    ("souk-attest", &["souk-crypto", "souk-toml"]),
    ("souk-market", &["souk-crypto"]),
    ("souk-wire", &["souk-sphinx"]),
    ("souk-sandbox", &["souk-backend", "souk-image"]),
    ("souk-agent", &["souk-backend", "souk-session"]),
    (
        "souk-node",
        &[
            "souk-attest",
            "souk-backend",
            "souk-control",
            "souk-crypto",
            "souk-image",
            "souk-market",
            "souk-sandbox",
            "souk-session",
            "souk-sphinx",
            "souk-toml",
            "souk-wire",
        ],
    ),
    (
        "souk",
        &[
            "souk-attest",
            "souk-backend",
            "souk-crypto",
            "souk-image",
            "souk-market",
            "souk-node",
            "souk-sandbox",
            "souk-toml",
            "souk-tui",
        ],
    ),
    (
        "souk-tests",
        &[
            "souk-agent",
            "souk-backend",
            "souk-crypto",
            "souk-image",
            "souk-market",
            "souk-node",
            "souk-sandbox",
            "souk-sphinx",
        ],
    ),
    ("xtask", &[]),
];

/// Crates that must not know sockets, clocks or files, and what would give that away.
const PURE: &[(&str, &[&str])] = &[
    (
        "souk-market",
        &["tokio", "libp2p", "redb", "rustix", "libc"],
    ),
    ("souk-wire", &["tokio", "libp2p", "redb", "rustix", "libc"]),
    (
        "souk-sphinx",
        &["tokio", "libp2p", "redb", "rustix", "libc"],
    ),
    ("souk-crypto", &["tokio", "libp2p", "redb"]),
    ("souk-attest", &["libp2p", "redb"]),
    ("souk-control", &["libp2p", "redb"]),
    ("souk-session", &["libp2p", "redb"]),
    ("souk-tui", &["libp2p", "redb"]),
];

/// Checks every arrow.
///
/// # Errors
/// Names every arrow that points up or is not drawn.
pub(crate) fn check() -> Result<()> {
    let text = output(cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
        "--locked",
    ]))?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata is no JSON")?;
    let found = arrows(&metadata)?;
    let wrong = wrong_arrows(&found);
    if !wrong.is_empty() {
        bail!("crate dependencies:\n  {}", wrong.join("\n  "));
    }
    eprintln!("{} crates, every arrow points down", found.len());
    Ok(())
}

/// Of every crate of the workspace, the names that it depends on outside of tests.
fn arrows(metadata: &Value) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let packages = metadata["packages"].as_array().context("no packages")?;
    packages
        .iter()
        .map(|package| {
            let name = package["name"].as_str().context("package without a name")?;
            let dependencies = package["dependencies"]
                .as_array()
                .context("no dependencies")?;
            let names = dependencies
                .iter()
                .filter(|dependency| dependency["kind"].as_str() != Some("dev"))
                .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
                .collect();
            Ok((name.to_owned(), names))
        })
        .collect()
}

fn wrong_arrows(found: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, dependencies) in found {
        let Some((_, allowed)) = ALLOWED.iter().find(|row| row.0 == name) else {
            wrong.push(format!("{name} has no place in scripts/xtask/src/deps.rs"));
            continue;
        };
        for dependency in dependencies
            .iter()
            .filter(|dependency| found.contains_key(*dependency))
        {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} → {dependency}"));
            }
        }
        let impure = PURE
            .iter()
            .filter(|row| row.0 == name)
            .flat_map(|row| row.1);
        for dependency in impure.filter(|dependency| dependencies.contains(**dependency)) {
            wrong.push(format!(
                "{name} → {dependency}: this crate is a core without I/O"
            ));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(rows: &[(&str, &[&str])]) -> BTreeMap<String, BTreeSet<String>> {
        rows.iter()
            .map(|(name, dependencies)| {
                let names = dependencies.iter().map(|name| (*name).to_owned()).collect();
                ((*name).to_owned(), names)
            })
            .collect()
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let found = workspace(&[
            ("souk-crypto", &["souk-market"]),
            ("souk-market", &["souk-crypto"]),
        ]);
        assert_eq!(wrong_arrows(&found), ["souk-crypto → souk-market"]);
    }

    #[test]
    fn a_core_with_io_is_found() {
        let found = workspace(&[("souk-market", &["tokio"])]);
        assert_eq!(wrong_arrows(&found).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_found() {
        let found = workspace(&[("souk-new", &[])]);
        assert_eq!(wrong_arrows(&found).len(), 1);
    }

    #[test]
    fn the_table_is_listed_from_the_bottom_up() {
        for (at, (name, allowed)) in ALLOWED.iter().enumerate() {
            for dependency in *allowed {
                let below = ALLOWED[..at].iter().any(|row| row.0 == *dependency);
                assert!(below, "{name} → {dependency} does not point down");
            }
        }
    }
}
