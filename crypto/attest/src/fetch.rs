//! Collateral from Intel's and AMD's services, or from caches of them, kept on disk until it has to be fresh.
//!
//! ```text
//! evidence ─► on disk, and not in its last fifth? ─ yes ─► use it
//!                 │ no                                       ▲
//!                 ▼                                          │ still holds
//!             requests ─► answers ─► collateral ─► disk      │
//!                            └─ failed ──────────────────────┘
//! ```
//!
//! What to ask for and what to make of answers is plain ([`plan`]); the connection is a thin shell over hyper, whose HTTP/1.1 the
//! node has anyway. Addresses are `http://`: collateral proves itself, and who asks for which machine is best kept on the own
//! network, by a caching service (PCCS) there or a proxy that speaks TLS to the vendor.
//!
//! Threats: a service that answers without end, with something else, or not at all. Answers are bounded in bytes and time, and
//! nothing that was fetched is believed: it is verified with the evidence like any other.

mod http;
pub mod plan;
mod store;

use std::{path::PathBuf, time::Duration};

use souk_crypto::UnixTime;

pub use http::HttpError;
pub use plan::{Answer, PlanError, Request};
use store::Store;
pub use store::StoreError;

use crate::verified::{Collateral, Evidence};

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Where collateral comes from, and where it is kept.
#[derive(Clone, Debug)]
pub struct Sources {
    /// A service with Intel's interface (PCCS), such as `http://pccs.example:8081`.
    pub pccs: Option<String>,
    /// A service with AMD's interface (KDS), such as `http://kds.example:8080`.
    pub kds: Option<String>,
    /// The folder that keeps it; made when it is not there.
    pub folder: PathBuf,
}

/// Why there is no collateral.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No service is configured for this evidence.
    #[error("no service is configured for collateral of {tee}")]
    NoService {
        /// `tdx` or `sev-snp`.
        tee: String,
    },
    /// A service did not answer.
    #[error("no answer to {path}")]
    Http {
        /// What was asked for.
        path: String,
        /// The cause.
        #[source]
        source: HttpError,
    },
    /// What was to be asked for, or what was answered, makes no sense.
    #[error("the service and the evidence do not fit")]
    Plan(#[from] PlanError),
    /// The folder cannot be used.
    #[error("cannot keep collateral")]
    Store(#[from] StoreError),
}

/// The collateral of `evidence`, from the folder or from the service.
///
/// # Errors
/// [`FetchError`], where the folder holds none that is valid at `now` either.
pub async fn collateral(
    sources: &Sources,
    evidence: &Evidence,
    now: UnixTime,
) -> Result<Collateral, FetchError> {
    let store = Store::new(&sources.folder);
    let kept = store.read(evidence);
    if let Some(kept) = &kept
        && !store::is_due(kept, now)
    {
        return Ok(kept.clone());
    }
    match fetch(sources, evidence).await {
        Ok(fresh) => {
            store.write(evidence, &fresh)?;
            Ok(fresh)
        }
        Err(error) => kept.filter(|kept| now < kept.expires()).ok_or(error),
    }
}

async fn fetch(sources: &Sources, evidence: &Evidence) -> Result<Collateral, FetchError> {
    let base = match evidence {
        Evidence::Tdx(_) => &sources.pccs,
        Evidence::Snp(_) => &sources.kds,
    };
    let base = base.as_deref().ok_or_else(|| FetchError::NoService {
        tee: evidence.tee().to_string(),
    })?;
    let mut answers = Vec::new();
    for request in plan::requests(evidence)? {
        let answer = http::get(base, &request, ANSWER_WITHIN)
            .await
            .map_err(|source| FetchError::Http {
                path: request.path.clone(),
                source,
            })?;
        answers.push(answer);
    }
    Ok(plan::collateral(evidence, &answers)?)
}
