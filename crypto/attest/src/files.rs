//! Evidence and collateral as people have them in files.
//!
//! Evidence is raw or hex. Collateral is one file or a folder: the canonical form, the JSON of `dcap-qvl`, certificates and lists
//! in PEM or DER. Of all that fits, the one that fits best is taken, so that a refusal speaks of the right thing.
//!
//! Threat: a folder or file that is larger than memory, and one that lies about what it holds: everything is bounded, and what
//! is taken is verified afterwards like any other.

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use souk_crypto::UnixTime;

use crate::{
    refusal::{Part, Refusal},
    snp::{SnpCollateral, SnpPieces, SnpReport},
    tdx::{MAX_COLLATERAL_BYTES, MAX_QUOTE_BYTES, TdxCollateral, TdxQuote},
    verified::{Collateral, Evidence},
};

/// A folder with collateral has no more files; more are an error, not a surprise.
pub const MAX_FILES: usize = 256;

/// Why a file gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It is larger than anything of its kind.
    #[error("{path} is larger than {max} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound.
        max: usize,
    },
    /// A folder has too many files.
    #[error("{path} has more than {MAX_FILES} files")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// There is no collateral of any form in it.
    #[error("{path} holds no collateral that is known here")]
    NoCollateral {
        /// The file or folder.
        path: PathBuf,
    },
}

/// Reads the bytes of evidence; hex becomes what it stands for.
///
/// # Errors
/// [`FileError`]; the bytes may still be no evidence.
pub fn evidence_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    // Hex has two digits a byte, and lines.
    let bytes = read(path, MAX_QUOTE_BYTES * 3)?;
    Ok(from_hex(&bytes).into_owned())
}

/// Reads the collateral of `evidence` from a file or a folder; of several, the one for this machine that holds at `now`.
///
/// # Errors
/// [`FileError`], where there is nothing to verify with at all.
pub fn collateral(
    path: &Path,
    evidence: &Evidence,
    now: UnixTime,
) -> Result<Result<Collateral, Refusal>, FileError> {
    let mut files = Vec::new();
    for path in files_of(path)? {
        files.push(read(&path, MAX_COLLATERAL_BYTES)?);
    }
    let found = match evidence {
        Evidence::Tdx(quote) => tdx(&files, quote, now),
        Evidence::Snp(report) => snp(&files, report, now),
    };
    found.ok_or_else(|| FileError::NoCollateral {
        path: path.to_owned(),
    })
}

/// What to say where no collateral was given.
#[must_use]
pub const fn no_collateral() -> Refusal {
    Refusal::Missing {
        part: Part::Collateral,
    }
}

fn tdx(files: &[Vec<u8>], quote: &TdxQuote, now: UnixTime) -> Option<Result<Collateral, Refusal>> {
    let fmspc = quote.claimed_fmspc().ok();
    let mut refusal = None;
    let mut best: Option<((bool, bool, UnixTime), TdxCollateral)> = None;
    for file in files {
        let json = file.trim_ascii_start().starts_with(b"{");
        let read = if json {
            TdxCollateral::from_json(file)
        } else {
            TdxCollateral::from_bytes(file)
        };
        match read {
            Ok(found) => {
                let fits = Some(found.fmspc()) == fmspc;
                let holds = found.issued() <= now && now < found.expires();
                let rank = (fits, holds, found.issued());
                if best.as_ref().is_none_or(|(known, _)| *known < rank) {
                    best = Some((rank, found));
                }
            }
            Err(why) if json => refusal = Some(why),
            Err(_) => {}
        }
    }
    match (best, refusal) {
        (Some((_, best)), _) => Some(Ok(Collateral::Tdx(Box::new(best)))),
        (None, refusal) => refusal.map(Err),
    }
}

/// Whole collateral in its canonical form is taken as it stands; loose pieces of all other files together are one more choice.
fn snp(
    files: &[Vec<u8>],
    report: &SnpReport,
    now: UnixTime,
) -> Option<Result<Collateral, Refusal>> {
    let mut choices = Vec::new();
    let mut pieces = SnpPieces::default();
    let mut any = false;
    for file in files {
        if let Ok(whole) = SnpCollateral::from_bytes(file) {
            choices.push(whole);
            continue;
        }
        match pieces.add(file) {
            Ok(held) => any |= held,
            Err(refusal) => return Some(Err(refusal)),
        }
    }
    let mut refusal = None;
    if any {
        match pieces.for_report(report, now) {
            Ok(found) => choices.push(found),
            Err(why) => refusal = Some(why),
        }
    }
    match choices
        .into_iter()
        .max_by_key(|choice| choice.rank(report, now))
    {
        Some(best) => Some(Ok(Collateral::Snp(Box::new(best)))),
        None => refusal.map(Err),
    }
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, FileError> {
    let unreadable = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        if file.is_file() {
            files.push(file);
        }
        if files.len() > MAX_FILES {
            return Err(FileError::TooMany {
                path: path.to_owned(),
            });
        }
    }
    files.sort();
    Ok(files)
}

/// Reads a file of at most `max` bytes.
///
/// # Errors
/// [`FileError::Read`], [`FileError::TooLarge`].
pub fn read(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let unreadable = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(unreadable)?
        .take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > max {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

fn from_hex(bytes: &[u8]) -> Cow<'_, [u8]> {
    let digits: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let digits = digits.strip_prefix(b"0x").unwrap_or(&digits);
    match hex::decode(digits) {
        Ok(decoded) if !decoded.is_empty() => Cow::Owned(decoded),
        _ => Cow::Borrowed(bytes),
    }
}
