//! The launch digest of an SEV-SNP guest, computed from the files that it starts from.
//!
//! QEMU's loader measures the firmware page by page, the pages that its metadata names, hashes of kernel, initrd and command
//! line in a page of the firmware's, and the state of each virtual CPU. `sev` computes the digest; the firmware is checked
//! before, because `sev` trusts the sizes in it.
//!
//! Source: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), section 8.17.2.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sev::{
    measurement::{
        snp::{SnpMeasurementArgs, snp_calc_launch_digest},
        vcpu_types::CpuType,
        vmsa::{GuestFeatures, VMMType},
    },
    parser::ByteParser as _,
};

use crate::digest::Measurement;

/// A firmware is no larger, in bytes; those of QEMU have up to 4 MiB.
pub const MAX_FIRMWARE_BYTES: u64 = 64 * 1024 * 1024;
/// Virtual CPUs that a guest can have.
pub const MAX_VCPUS: u32 = 4_096;

/// `SNP_ACTIVE`: what the kernel sets where nothing else is asked for.
pub const SNP_ACTIVE: u64 = 1;

const PAGE: usize = 4_096;
/// The table of a firmware ends this far before its end, and an entry has length and GUID at its end.
const TABLE_END: usize = 32;
const ENTRY: usize = 18;
const METADATA_GUID: [u8; 16] = guid(
    0xdc88_6566,
    0x984a,
    0x4798,
    [0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc],
);
const METADATA_HEADER: usize = 16;
const SECTION: usize = 12;
const KERNEL_HASHES: u32 = 0x10;

/// What a guest starts from.
#[derive(Clone, Debug)]
pub struct SnpLaunch {
    /// OVMF, with the tables for SEV-SNP.
    pub firmware: PathBuf,
    /// The kernel, where the loader gets one.
    pub kernel: Option<PathBuf>,
    /// The initial file system.
    pub initrd: Option<PathBuf>,
    /// The command line of the kernel.
    pub command_line: Option<String>,
    /// Virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Their model, as QEMU names it, such as `EPYC-v4`.
    pub vcpu_model: String,
    /// Guest features of the virtual CPUs; [`SNP_ACTIVE`] unless asked otherwise.
    pub guest_features: u64,
}

/// Why there is no digest.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The firmware cannot start an SNP guest.
    #[error("{path} is no firmware for SEV-SNP: {why}")]
    Firmware {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        why: &'static str,
    },
    /// A number or name that no guest can have.
    #[error("{what} is {value}; {hint}")]
    Argument {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: String,
        /// What it can be.
        hint: &'static str,
    },
    /// The library gave no digest.
    #[error("no launch digest: {why}")]
    Library {
        /// In its words.
        why: String,
    },
}

impl SnpLaunch {
    /// The launch digest, as a report has it in `measurement`.
    ///
    /// # Errors
    /// [`MeasureError`]; files are read whole.
    pub fn digest(&self) -> Result<Measurement, MeasureError> {
        let argument = |what, value: &dyn std::fmt::Display, hint| MeasureError::Argument {
            what,
            value: value.to_string(),
            hint,
        };
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(argument(
                "the number of CPUs",
                &self.vcpus,
                "it goes from 1 to 4096",
            ));
        }
        let model = CpuType::try_from(self.vcpu_model.as_str()).map_err(|_| {
            let hint =
                "name a model of QEMU's, such as EPYC-v4, EPYC-Milan, EPYC-Genoa or EPYC-Turin";
            argument("the CPU model", &self.vcpu_model, hint)
        })?;
        if self.kernel.is_none() && (self.initrd.is_some() || self.command_line.is_some()) {
            return Err(argument(
                "the kernel",
                &"missing",
                "initrd and command line belong to one",
            ));
        }
        if let Some(line) = &self.command_line
            && line.trim() != line
        {
            // The library strips it, the loader does not.
            let hint = "take the spaces from its ends";
            return Err(argument("the command line", &format!("{line:?}"), hint));
        }
        self.check_firmware()?;
        for path in self.kernel.iter().chain(&self.initrd) {
            open(path)?;
        }
        let features = GuestFeatures::from_bytes(&self.guest_features.to_le_bytes())
            .map_err(|error| library(&error))?;
        let digest = snp_calc_launch_digest(SnpMeasurementArgs {
            vcpus: self.vcpus,
            vcpu_type: model,
            ovmf_file: self.firmware.clone(),
            guest_features: features,
            kernel_file: self.kernel.clone(),
            initrd_file: self.initrd.clone(),
            append: self.command_line.as_deref(),
            ovmf_hash_str: None,
            vmm_type: Some(VMMType::QEMU),
        })
        .map_err(|error| library(&error))?;
        let bytes = digest.to_bytes().map_err(|error| library(&error))?;
        Ok(Measurement(bytes))
    }

    fn check_firmware(&self) -> Result<(), MeasureError> {
        let path = self.firmware.clone();
        let mut bytes = Vec::new();
        open(&path)?
            .take(MAX_FIRMWARE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| MeasureError::Read {
                path: path.clone(),
                source,
            })?;
        check_firmware(&bytes).map_err(|why| MeasureError::Firmware { path, why })
    }
}

/// Checks every size and offset of the tables in a firmware that will be followed.
///
/// # Errors
/// What is missing or wrong.
pub fn check_firmware(bytes: &[u8]) -> Result<(), &'static str> {
    if bytes.len() as u64 > MAX_FIRMWARE_BYTES {
        return Err("it is larger than 64 MiB");
    }
    if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE) {
        return Err("it is not made of whole pages");
    }
    let footer_at = bytes.len() - TABLE_END - ENTRY;
    let total = usize::from(u16_at(bytes, footer_at).ok_or("it has no table")?);
    let table_len = total.checked_sub(ENTRY).ok_or("it has no table")?;
    let table_at = footer_at
        .checked_sub(table_len)
        .ok_or("its table begins before it")?;
    let mut table = &bytes[table_at..footer_at];
    while let Some(header_at) = table.len().checked_sub(ENTRY) {
        let len = usize::from(u16_at(table, header_at).ok_or("its table is cut short")?);
        let entry_at = table.len().checked_sub(len).filter(|_| len >= ENTRY);
        let entry_at = entry_at.ok_or("an entry of its table has a wrong length")?;
        if table[header_at + 2..] == METADATA_GUID {
            let from_end = u32_at(table, entry_at).filter(|_| len >= ENTRY + 4);
            return check_metadata(bytes, from_end.ok_or("its metadata has no place")?);
        }
        table = &table[..entry_at];
    }
    Err("its table has no metadata for SEV")
}

fn check_metadata(bytes: &[u8], from_end: u32) -> Result<(), &'static str> {
    const OUTSIDE: &str = "its metadata lies outside";
    let at = usize::try_from(from_end)
        .ok()
        .and_then(|from_end| bytes.len().checked_sub(from_end))
        .ok_or(OUTSIDE)?;
    let size = u32_at(bytes, at + 4).ok_or(OUTSIDE)? as usize;
    let sections = u32_at(bytes, at + 12).ok_or(OUTSIDE)? as usize;
    let needed = sections
        .checked_mul(SECTION)
        .and_then(|len| len.checked_add(METADATA_HEADER))
        .ok_or(OUTSIDE)?;
    if size < needed || at.checked_add(size).is_none_or(|end| end > bytes.len()) {
        return Err(OUTSIDE);
    }
    let mut memory = 0;
    for section in bytes[at + METADATA_HEADER..at + needed].chunks_exact(SECTION) {
        let [size, kind] = [4, 8].map(|at| u32_at(section, at).unwrap_or(0));
        memory += u64::from(size);
        if !(size as usize).is_multiple_of(PAGE) {
            return Err("a section of its metadata is not made of whole pages");
        }
        if kind == KERNEL_HASHES && size as usize != PAGE {
            return Err("its place for the hashes of the kernel is not one page");
        }
    }
    if memory > MAX_FIRMWARE_BYTES {
        return Err("its metadata names more memory than 64 MiB");
    }
    Ok(())
}

fn open(path: &Path) -> Result<File, MeasureError> {
    File::open(path).map_err(|source| MeasureError::Read {
        path: path.to_owned(),
        source,
    })
}

fn library(error: &dyn std::fmt::Display) -> MeasureError {
    MeasureError::Library {
        why: error.to_string(),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// A GUID as it lies in memory.
const fn guid(a: u32, b: u16, c: u16, rest: [u8; 8]) -> [u8; 16] {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let r = rest;
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], r[0], r[1], r[2], r[3], r[4], r[5], r[6],
        r[7],
    ]
}
