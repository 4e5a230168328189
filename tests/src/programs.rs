//! Where the programs under test are.

use std::{env, path::PathBuf};

/// The command line.
#[must_use]
pub fn souk() -> PathBuf {
    program("SOUK_BIN", "souk")
}

/// The static agent.
#[must_use]
pub fn agent() -> PathBuf {
    program("SOUK_AGENT_BIN", "souk-agent")
}

/// The command line with failpoints, for a provider that is to be killed.
#[cfg(feature = "proof")]
#[must_use]
pub(crate) fn souk_with_failpoints() -> PathBuf {
    program("SOUK_PROOF_BIN", "souk-with-failpoints")
}

fn program(variable: &str, name: &str) -> PathBuf {
    let path = env::var_os(variable).map_or_else(
        || {
            let workspace = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
            env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| workspace.join("target"), PathBuf::from)
                .join("release")
                .join(name)
        },
        PathBuf::from,
    );
    assert!(
        path.exists(),
        "{} is not built: run `cargo xtask test`, or set {variable}",
        path.display()
    );
    path
}
