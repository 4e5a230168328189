//! The file of a policy.

use std::path::{Path, PathBuf};

use souk_attest::{
    MAX_POLICY_BYTES, Policy,
    files::{self, FileError},
};
use souk_toml::Mistakes;

/// Why the policy of a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The policy has mistakes.
    #[error("{} has mistakes; `souk attest policy check` explains them", path.display())]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: Mistakes,
    },
}

/// Reads a policy.
///
/// # Errors
/// [`PolicyError`].
pub fn read_policy(path: &Path) -> Result<Policy, PolicyError> {
    let mistaken = |source| PolicyError::Mistakes {
        path: path.to_owned(),
        source,
    };
    let bytes = files::read(path, MAX_POLICY_BYTES)?;
    let text = souk_toml::text(bytes).map_err(|(_, found)| mistaken(found))?;
    Policy::parse(&text).map_err(mistaken)
}
