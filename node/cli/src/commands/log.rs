//! `souk log`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use souk_node::{client::LogError, net::peer_id};

use super::{
    DONE,
    rent::provider,
    requester::{self, Requester},
    wait,
};
use crate::{
    failure::{Failure, UNAVAILABLE},
    out,
    progress::Progress,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Fetch the whole usage log of a provider and verify it.
    #[command(
        after_help = "Example:\n  souk log verify 12D3KooW…\n\nThe last checkpoint that was verified is kept: a log that does not extend it is told."
    )]
    Verify(Verify),
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    #[command(flatten)]
    requester: Requester,
    /// The provider, as `souk market` shows it
    provider: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was verified, as scripts read it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Verified {
    pub(crate) provider: String,
    pub(crate) size: u64,
    pub(crate) root: String,
    pub(crate) verified: bool,
}

impl Log {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Self::Verify(args) = self;
        let client = args.requester.open()?;
        let node = provider(&args.provider)?;
        let log = wait(async {
            let progress = Progress::start("asking for cards");
            let connected = requester::connect(&client, &progress).await?;
            progress.step("fetching the log");
            connected
                .verify_log(node)
                .await
                .map_err(|error| unverified(&error))
        })?;
        let verified = Verified {
            provider: peer_id(&node).to_string(),
            size: log.checkpoint.size(),
            root: log.checkpoint.root().to_string(),
            verified: true,
        };
        if args.json {
            out::json(&verified);
        } else {
            out::line(format_args!(
                "{} entries lead to the signed root {}",
                verified.size, verified.root
            ));
        }
        DONE
    }
}

fn unverified(error: &LogError) -> Failure {
    let failure = Failure::of(error);
    match error {
        LogError::Connect(_) => failure
            .hint("again in a minute: it may be away, or have moved and its new card not be everywhere yet")
            .code(UNAVAILABLE),
        _ => failure,
    }
}
