//! Collateral from Intel's and AMD's services, or from caches of them, kept on disk until it has to be fresh.
//!
//! ```text
//! evidence ─► on disk, verifies, and is not due? ─ yes ──────────► use it
//!                 │ no                                              ▲
//!                 ▼                                                 │ still verifies
//!             requests ─► answers ─► verifies? ─ yes ─► disk        │
//!                            └─ failed ─┴─ no ──────────────────────┘
//! ```
//!
//! What to ask for and what to make of answers is plain ([`plan`]); the connection is a thin shell over hyper, whose HTTP/1.1 the
//! node has anyway. Addresses are `http://`: collateral proves itself, and who asks for which machine is best kept on the own
//! network, by a caching service (PCCS) there or a proxy that speaks TLS to the vendor.
//!
//! Threats: a service, or somebody on the way to it, that answers without end, with something else, or not at all, or that plants
//! something that is used for years. Answers are bounded in bytes and time, nothing is kept that does not verify with the evidence,
//! and what is kept is asked for again after [`FETCH_AGAIN_S`], whatever its dates say.

mod http;
pub mod plan;
mod store;

use std::{path::PathBuf, time::Duration};

use souk_crypto::UnixTime;

pub use http::HttpError;
pub use plan::{PlanError, Request, Response};
use store::Store;
pub use store::StoreError;

use crate::{
    refusal::Refusal,
    verified::{Collateral, Evidence, Trust, verify},
};

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What is kept is asked for again after this many seconds, a day: revocation lists are issued that often when it matters.
pub const FETCH_AGAIN_S: u64 = 24 * 60 * 60;

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
    /// A request to a service brought nothing.
    #[error("GET {path} failed")]
    Http {
        /// What was asked for.
        path: String,
        /// The cause.
        #[source]
        source: HttpError,
    },
    /// What was to be asked for, or what was answered, makes no sense.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// What was answered does not verify with the evidence.
    #[error("what the service gave does not verify with the evidence")]
    Unverified(#[source] Refusal),
}

/// Collateral that verified with the evidence.
#[derive(Debug)]
pub struct Fetched {
    /// The collateral.
    pub collateral: Collateral,
    /// Why the folder does not keep it, where it was fetched and cannot be kept: worth a warning, for it is fetched each time.
    pub unkept: Option<StoreError>,
}

/// The collateral of `evidence` that verifies under `trust` at `now`, from the folder or from the service.
///
/// # Errors
/// [`FetchError`], where the folder holds none that verifies at `now` either.
pub async fn collateral(
    sources: &Sources,
    evidence: &Evidence,
    trust: &Trust,
    now: UnixTime,
) -> Result<Fetched, FetchError> {
    let store = Store::new(&sources.folder);
    let kept = store
        .read(evidence)
        .filter(|kept| verify(evidence, &kept.collateral, trust, now).is_ok());
    if let Some(kept) = kept.as_ref().filter(|kept| !kept.is_due(now)) {
        return Ok(Fetched {
            collateral: kept.collateral.clone(),
            unkept: None,
        });
    }
    match fetch(sources, evidence, trust, now).await {
        Ok(collateral) => Ok(Fetched {
            unkept: store.write(evidence, &collateral, now).err(),
            collateral,
        }),
        Err(error) => kept.ok_or(error).map(|kept| Fetched {
            collateral: kept.collateral,
            unkept: None,
        }),
    }
}

async fn fetch(
    sources: &Sources,
    evidence: &Evidence,
    trust: &Trust,
    now: UnixTime,
) -> Result<Collateral, FetchError> {
    let base = match evidence {
        Evidence::Tdx(_) => &sources.pccs,
        Evidence::Snp(_) => &sources.kds,
    };
    let base = base.as_deref().ok_or_else(|| FetchError::NoService {
        tee: evidence.tee().to_string(),
    })?;
    let mut responses = ask(base, plan::requests(evidence)?).await;
    let is_unknown = matches!(
        &responses,
        Err(FetchError::Http {
            source: HttpError::Status { status: 404 },
            ..
        })
    );
    if is_unknown && let Some(others) = plan::other_requests(evidence) {
        responses = ask(base, others).await;
    }
    let collateral = plan::collateral(evidence, &responses?, now)?;
    verify(evidence, &collateral, trust, now).map_err(FetchError::Unverified)?;
    Ok(collateral)
}

/// Asks for one after the other, until one brings nothing.
async fn ask(base: &str, requests: Vec<Request>) -> Result<Vec<Response>, FetchError> {
    let mut responses = Vec::new();
    for request in requests {
        match http::get(base, &request, ANSWER_WITHIN).await {
            Ok(response) => responses.push(response),
            Err(source) => {
                let path = request.path;
                return Err(FetchError::Http { path, source });
            }
        }
    }
    Ok(responses)
}
