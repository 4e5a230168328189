//! Where a node's own evidence comes from.
//!
//! What a source gives has verified under its own trust, so that nothing is published that nobody can believe; and what kind it
//! is, verification says, never the configuration: a software TEE cannot be published as anything but `none+test`.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

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
    Test(Arc<SoftTee>),
}

/// A root, and a machine of no kind at all under it.
#[derive(Debug)]
pub(crate) struct SoftTee {
    root: TestRoot,
    /// Since when, and the machine.
    machine: Mutex<Option<(UnixTime, Arc<TestTdx>)>>,
}

/// The software TEE draws its machine anew after this long, in seconds (a day), as the collateral of a real one is fetched again.
const MACHINE_LIFE_S: u64 = 86_400;

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
            config::EvidenceSource::Test { root } => Some(Self::soft(test_root(root)?)),
        })
    }

    /// The software TEE under this root.
    pub(crate) fn soft(root: TestRoot) -> Self {
        let machine = Mutex::default();
        Self::Test(Arc::new(SoftTee { root, machine }))
    }

    /// What has to be trusted for evidence from here.
    pub(crate) fn trust(&self) -> Trust {
        match self {
            Self::Tsm { trust, .. } => trust.clone(),
            Self::Test(soft) => Trust::with_test_roots([soft.root.id()]),
        }
    }

    /// Evidence over `report_data` alone.
    pub(crate) async fn evidence(
        &self,
        report_data: ReportData,
        now: UnixTime,
    ) -> Result<Evidence, SourceError> {
        match self {
            Self::Tsm { root, .. } => {
                let root = root.clone();
                let collected =
                    tokio::task::spawn_blocking(move || collect(&root, report_data)).await;
                Ok(collected.expect("collecting does not panic")?.evidence)
            }
            Self::Test(soft) => {
                let soft = Arc::clone(soft);
                let minted = tokio::task::spawn_blocking(move || {
                    let quote = soft
                        .machine(now)?
                        .quote(report_data, &SystemRandom::new())?;
                    Evidence::parse(&quote).map_err(SoftError::Minted)
                });
                Ok(minted.await.expect("minting does not panic")?)
            }
        }
    }

    /// Evidence over `report_data`, with its collateral and what it verified as.
    pub(crate) async fn make(
        &self,
        report_data: ReportData,
        now: UnixTime,
    ) -> Result<(Bundle, Verified), SourceError> {
        if let Self::Test(soft) = self {
            soft.renew(now)?;
        }
        let evidence = self.evidence(report_data, now).await?;
        let collateral = match self {
            Self::Tsm {
                services, trust, ..
            } => {
                let fetched = fetch::collateral(services, &evidence, trust, now).await?;
                if let Some(why) = fetched.unkept {
                    tracing::warn!(%why, "collateral is fetched each time");
                }
                fetched.collateral
            }
            Self::Test(soft) => Collateral::Tdx(Box::new(soft.machine(now)?.collateral().clone())),
        };
        let verified =
            verify(&evidence, &collateral, &self.trust(), now).map_err(SourceError::Unverified)?;
        let bundle = Bundle {
            evidence,
            collateral,
        };
        Ok((bundle, verified))
    }
}

impl SoftTee {
    fn machine(&self, now: UnixTime) -> Result<Arc<TestTdx>, SoftError> {
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, machine)) = &*machine {
            return Ok(Arc::clone(machine));
        }
        let recipe = TdxRecipe::up_to_date(now);
        let drawn = Arc::new(TestTdx::under(&self.root, recipe, &SystemRandom::new())?);
        *machine = Some((now, Arc::clone(&drawn)));
        Ok(drawn)
    }

    /// Draws another machine where this one is old: only together with the evidence that a card names, so that what instances
    /// bring is of the same machine.
    fn renew(&self, now: UnixTime) -> Result<(), SoftError> {
        let is_old =
            |(made, _): &mut (UnixTime, _)| now < *made || now.since_s(*made) >= MACHINE_LIFE_S;
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.take_if(is_old);
        drop(machine);
        self.machine(now).map(|_| ())
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
