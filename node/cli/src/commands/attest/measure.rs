//! `souk attest measure`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use souk_attest::measure::{MeasureError, SNP_ACTIVE, SnpLaunch};

use super::DONE;
use crate::{
    failure::{Failure, USAGE},
    out,
};

#[derive(Args, Debug)]
pub(crate) struct Measure {
    /// The firmware, with tables for SEV-SNP
    #[arg(long, value_name = "FILE")]
    ovmf: PathBuf,
    /// The kernel, where the loader gets one
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initial file system
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The command line of the kernel
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    append: Option<String>,
    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    vcpus: u32,
    /// Their model, as QEMU names it
    #[arg(long, value_name = "MODEL", default_value = "EPYC-v4")]
    vcpu_type: String,
    /// Guest features of the virtual CPUs, such as 0x1
    #[arg(long, value_name = "HEX", default_value_t = SNP_ACTIVE, value_parser = features)]
    guest_features: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Measure {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let json = self.json;
        let launch = SnpLaunch {
            firmware: self.ovmf,
            kernel: self.kernel,
            initrd: self.initrd,
            command_line: self.append,
            vcpus: self.vcpus,
            vcpu_model: self.vcpu_type,
            guest_features: self.guest_features,
        };
        let digest = launch.digest().map_err(|error| {
            let failure = Failure::of(&error);
            match error {
                MeasureError::Argument { .. } => failure.code(USAGE),
                MeasureError::Firmware { .. } => failure
                    .hint("take an OVMF built for SEV-SNP, such as that of Debian's package ovmf"),
                MeasureError::Read { .. } | MeasureError::Library { .. } => failure,
            }
        })?;
        if json {
            out::json(&serde_json::json!({ "tee": "sev-snp", "measurement": digest.to_string() }));
        } else {
            out::line(digest);
        }
        DONE
    }
}

fn features(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| "write hex digits, such as 0x1".to_owned())
}
