//! The file of a policy.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use souk_attest::{MAX_POLICY_BYTES, Policy};
use souk_toml::Mistakes;

/// Why the policy of a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
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
    let unreadable = |source| PolicyError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(unreadable)?.len() > MAX_POLICY_BYTES as u64 {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    let mistaken = |source| PolicyError::Mistakes {
        path: path.to_owned(),
        source,
    };
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = souk_toml::text(bytes).map_err(|(_, found)| mistaken(found))?;
    Policy::parse(&text).map_err(mistaken)
}
