//! `souk top`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use souk_tui::{Options, Source, Theme, TopError};

use super::{DONE, NodeHere, wait};
use crate::failure::Failure;

/// Watch the node on this machine, and act on it.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk top --config ~/node/souk.toml\n  souk top --socket /run/souk/monitor.sock\n  souk top --record evening.jsonl\n  souk top --replay evening.jsonl\n\nPress ? for the keys. What changes something asks first. Set NO_COLOR to do without colours."
)]
pub(crate) struct Top {
    #[command(flatten)]
    node: NodeHere,
    /// Write the session to a new file
    #[arg(long, value_name = "FILE", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Show a session that was written down, in place of a node
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    replay: Option<PathBuf>,
}

impl Top {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let source = match self.replay {
            Some(recording) => Source::Recording(recording),
            None => Source::Node(self.node.socket()?),
        };
        let options = Options {
            source,
            record: self.record,
            theme: Theme::of_environment(),
        };
        wait(async { souk_tui::run(options).await.map_err(|error| failed(&error)) })?;
        DONE
    }
}

fn failed(error: &TopError) -> Failure {
    let failure = Failure::of(error);
    match error {
        TopError::Terminal(_) => {
            failure.hint("it needs a terminal; `souk status` prints how the node stands once")
        }
        TopError::Record { .. } => failure.hint("name a file that does not exist yet"),
        TopError::Open { .. } | TopError::Replay { .. } => failure,
    }
}
