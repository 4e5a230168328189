//! The file of a policy.

use std::path::{Path, PathBuf};

use souk_attest::{
    MAX_POLICY_BYTES, Policy, ReferenceError,
    files::{self, FileError},
    with_references,
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
    /// The signed reference values that it names cannot be used.
    #[error("{} names reference values that are not used", path.display())]
    References {
        /// The file of the policy.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReferenceError,
    },
}

/// Where a data folder, or the folder of a client, remembers the serials of reference values.
const SEEN: &str = "reference-serials";

/// Reads a policy, and the signed reference values that it names. The folder `home` remembers their serials: none goes back.
///
/// # Errors
/// [`PolicyError`].
pub fn read_policy(path: &Path, home: &Path) -> Result<Policy, PolicyError> {
    let mistaken = |source| PolicyError::Mistakes {
        path: path.to_owned(),
        source,
    };
    let bytes = files::read(path, MAX_POLICY_BYTES)?;
    let text = souk_toml::text(bytes).map_err(|(_, found)| mistaken(found))?;
    let policy = Policy::parse(&text).map_err(mistaken)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    with_references(policy, folder, Some(&home.join(SEEN))).map_err(|source| {
        PolicyError::References {
            path: path.to_owned(),
            source,
        }
    })
}
