//! `souk version`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use souk_node::control;

use super::DONE;
use crate::{failure::Failure, out};

/// Print the version of this program and of what it speaks.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  souk version --json")]
pub(crate) struct Version {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Versions {
    souk: &'static str,
    /// The commit that it was built from, where the build was told.
    revision: Option<&'static str>,
    control: u32,
}

impl Version {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let versions = Versions {
            souk: env!("CARGO_PKG_VERSION"),
            revision: control::REVISION,
            control: control::VERSION,
        };
        if self.json {
            out::json(&versions);
        } else {
            out::line(format_args!(
                "souk {}, control API {}",
                control::program(),
                versions.control
            ));
        }
        DONE
    }
}
