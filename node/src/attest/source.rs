//! Where a node's own evidence comes from.
//!
//! What a source gives has verified under its own trust, so that nothing is published that nobody can believe; and what kind it
//! is, verification says, never the configuration: a software TEE cannot be published as anything but `none+test`.

use std::{io, path::PathBuf, sync::Arc};

use ring::rand::SystemRandom;
use souk_attest::{
    Bundle, Collateral, Evidence, Policy, Refusal, ReportData, Trust, Verified,
    collect::{CollectError, Configfs, collect},
    fetch::{self, FetchError, Sources},
    soft::{MAX_ROOT_BYTES, SoftError, TdxRecipe, TestRoot, TestTdx},
    verify,
};
use souk_crypto::UnixTime;

use crate::config;

/// A TEE that this node can ask.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// That of the kernel, with collateral from a service.
    Tsm {
        root: Configfs,
        services: Box<Sources>,
        trust: Trust,
    },
    /// The software TEE, which proves nothing.
    Test(Arc<TestRoot>),
}

/// Why there is no evidence of this node.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file of a test root.
    #[error("cannot read the test root {}", path.display())]
    RootFile {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} holds no test root; `souk attest mint` makes one", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: SoftError,
    },
    /// The kernel.
    #[error(transparent)]
    Collect(#[from] CollectError),
    /// The collateral.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The software TEE.
    #[error(transparent)]
    Soft(#[from] SoftError),
    /// What it gave does not verify here either.
    #[error("the evidence of this node does not verify")]
    Unverified(#[source] Refusal),
}

impl Source {
    /// The source that a configuration names.
    pub(crate) fn open(
        config: &config::Evidence,
        policy: Option<&Policy>,
        kept: PathBuf,
    ) -> Result<Option<Self>, SourceError> {
        Ok(match &config.source {
            config::EvidenceSource::None => None,
            config::EvidenceSource::Tsm { folder } => Some(Self::Tsm {
                root: Configfs::at(folder),
                services: Box::new(Sources {
                    pccs: config.pccs.clone(),
                    kds: config.kds.clone(),
                    folder: kept,
                }),
                trust: policy.map_or_else(Trust::vendors, Policy::trust),
            }),
            config::EvidenceSource::Test { root } => Some(Self::Test(Arc::new(test_root(root)?))),
        })
    }

    /// Evidence over `report_data`, with its collateral and what it verified as.
    pub(crate) async fn make(
        &self,
        report_data: ReportData,
        now: UnixTime,
    ) -> Result<(Bundle, Verified), SourceError> {
        let (bundle, trust) = match self {
            Self::Tsm {
                root,
                services,
                trust,
            } => {
                let root = root.clone();
                let collected =
                    tokio::task::spawn_blocking(move || collect(&root, report_data)).await;
                let evidence = collected.expect("collecting does not panic")?.evidence;
                let fetched = fetch::collateral(services, &evidence, trust, now).await?;
                if let Some(why) = fetched.unkept {
                    tracing::warn!(%why, "collateral is fetched each time");
                }
                let collateral = fetched.collateral;
                (
                    Bundle {
                        evidence,
                        collateral,
                    },
                    trust.clone(),
                )
            }
            Self::Test(root) => {
                let trust = Trust::with_test_roots([root.id()]);
                let root = Arc::clone(root);
                let minted = tokio::task::spawn_blocking(move || mint(&root, report_data, now));
                (minted.await.expect("minting does not panic")?, trust)
            }
        };
        let verified = verify(&bundle.evidence, &bundle.collateral, &trust, now)
            .map_err(SourceError::Unverified)?;
        Ok((bundle, verified))
    }
}

fn test_root(path: &std::path::Path) -> Result<TestRoot, SourceError> {
    let unreadable = |source| SourceError::RootFile {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_ROOT_BYTES as u64 {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    let bytes = zeroize::Zeroizing::new(std::fs::read(path).map_err(unreadable)?);
    TestRoot::from_bytes(&bytes, &SystemRandom::new()).map_err(|source| SourceError::Root {
        path: path.to_owned(),
        source,
    })
}

/// A machine of no kind at all, drawn anew each time.
fn mint(root: &TestRoot, report_data: ReportData, now: UnixTime) -> Result<Bundle, SourceError> {
    let rng = SystemRandom::new();
    let machine = TestTdx::under(root, TdxRecipe::up_to_date(now), &rng)?;
    let quote = machine.quote(report_data, &rng)?;
    let malformed = |refusal| SourceError::Soft(SoftError::Minted(refusal));
    Ok(Bundle {
        evidence: Evidence::parse(&quote).map_err(malformed)?,
        collateral: Collateral::Tdx(Box::new(machine.collateral().clone())),
    })
}
