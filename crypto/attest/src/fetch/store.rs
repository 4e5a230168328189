//! Collateral on disk, in its canonical form, one file for each machine.
//!
//! A file that does not parse is as good as none: it is fetched again and replaced whole. When it was fetched is its date of
//! modification.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use souk_crypto::UnixTime;

use super::FETCH_AGAIN_S;
use crate::{
    tdx::MAX_COLLATERAL_BYTES,
    verified::{Collateral, Evidence},
};

/// Collateral is fetched again in the last part of its life, so that a service that is away for days does no harm.
const LAST_FIFTH: u64 = 5;

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub struct StoreError {
    /// The file or folder.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Collateral from the folder.
pub(super) struct Kept {
    pub(super) collateral: Collateral,
    fetched: UnixTime,
}

impl Kept {
    /// Whether it should be fetched again: it is a day old, from the future, or in the last fifth of its life.
    pub(super) fn is_due(&self, now: UnixTime) -> bool {
        let (from, to) = (self.collateral.issued(), self.collateral.expires());
        let life_s = to.since_s(from);
        now < self.fetched
            || now >= self.fetched.plus_s(FETCH_AGAIN_S)
            || now >= to.minus_s(life_s / LAST_FIFTH)
    }
}

pub(super) struct Store<'a> {
    folder: &'a Path,
}

impl<'a> Store<'a> {
    pub(super) const fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    pub(super) fn read(&self, evidence: &Evidence) -> Option<Kept> {
        let path = self.path(evidence)?;
        let about = fs::metadata(&path).ok()?;
        if about.len() > MAX_COLLATERAL_BYTES as u64 {
            return None;
        }
        let fetched = about.modified().ok()?;
        let fetched = fetched.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(Kept {
            collateral: Collateral::from_bytes(evidence.tee(), &fs::read(path).ok()?).ok()?,
            fetched: UnixTime(fetched.as_secs()),
        })
    }

    pub(super) fn write(
        &self,
        evidence: &Evidence,
        collateral: &Collateral,
        now: UnixTime,
    ) -> Result<(), StoreError> {
        let Some(path) = self.path(evidence) else {
            return Ok(());
        };
        let put = || {
            fs::create_dir_all(self.folder)?;
            let mut file = tempfile::NamedTempFile::new_in(self.folder)?;
            file.write_all(&collateral.to_bytes())?;
            let fetched = SystemTime::UNIX_EPOCH + Duration::from_secs(now.0);
            file.as_file().set_modified(fetched)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            Ok(())
        };
        put().map_err(|source| StoreError {
            path: path.clone(),
            source,
        })
    }

    /// By what the collateral depends on: the FMSPC and authority of a machine, or chip and TCB.
    fn path(&self, evidence: &Evidence) -> Option<PathBuf> {
        let name = match evidence {
            Evidence::Tdx(quote) => {
                let fmspc = hex::encode(quote.claimed_fmspc().ok()?);
                format!(
                    "tdx-{}-{fmspc}-{}.cbor",
                    quote.claimed_root(),
                    quote.claimed_ca()
                )
            }
            Evidence::Snp(report) => {
                // The layout of the TCB does not matter here, only that all of it counts.
                let tcb = hex::encode(report.reported_tcb_bytes());
                format!("sev-snp-{}-{tcb}.cbor", hex::encode(report.chip_id()))
            }
        };
        Some(self.folder.join(name))
    }
}
