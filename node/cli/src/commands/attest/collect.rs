//! `souk attest collect`: evidence of the guest that this runs in.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use souk_attest::{
    ReportData,
    collect::{self, CONFIGFS_TSM, CollectError, Configfs},
};

use super::{DONE, write_new};
use crate::{
    failure::{Failure, UNAVAILABLE},
    out,
};

#[derive(Args, Debug)]
pub(crate) struct Collect {
    /// The file to write the quote or report into
    file: PathBuf,
    /// What it binds, as 128 hex digits [default: zeros]
    #[arg(long, value_name = "HEX")]
    report_data: Option<ReportData>,
    /// Where the kernel has its entries
    #[arg(long, value_name = "FOLDER", default_value = CONFIGFS_TSM)]
    tsm: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Collect {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let data = self.report_data.unwrap_or(ReportData([0; 64]));
        let collected = collect::collect(&Configfs::at(self.tsm), data);
        let collected = collected.map_err(|error| uncollected(&error))?;
        let evidence = &collected.evidence;
        write_new(&self.file, evidence.as_bytes(), 0o644)?;
        if self.json {
            out::json(&serde_json::json!({
                "file": self.file,
                "tee": evidence.tee().to_string(),
                "provider": collected.provider,
                "evidence": evidence.digest().to_string(),
                "report_data": data.to_string(),
                "verified": false,
            }));
            return DONE;
        }
        out::line(format_args!(
            "{} of {} from {}, digest {}; nothing of it is verified yet",
            self.file.display(),
            evidence.tee(),
            collected.provider,
            evidence.digest()
        ));
        DONE
    }
}

fn uncollected(error: &CollectError) -> Failure {
    let failure = Failure::of(error);
    match error {
        CollectError::NoTee { .. } => failure
            .hint("run it inside of a TDX or SEV-SNP guest with Linux 6.7 or later")
            .code(UNAVAILABLE),
        CollectError::Kernel { .. } | CollectError::Interfered | CollectError::Malformed(_) => {
            failure
        }
    }
}
