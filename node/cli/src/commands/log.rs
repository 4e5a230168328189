//! `souk log`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use souk_node::{
    client::{KeptEvidence, LogError},
    net::peer_id,
};

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
    /// None where it was not verified.
    pub(crate) size: Option<u64>,
    pub(crate) root: Option<String>,
    pub(crate) verified: bool,
    /// Why not.
    pub(crate) error: Option<String>,
    /// What the provider signed that cannot all be true, from now and from before.
    pub(crate) evidence: Vec<Evidence>,
    /// The network identity of this session, which nobody sees again; empty where there was none.
    pub(crate) client_peer_id: String,
}

/// A file that proves a contradiction.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Evidence {
    pub(crate) file: PathBuf,
    pub(crate) how: String,
}

impl Log {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Self::Verify(args) = self;
        let client = args.requester.open()?;
        let node = provider(&args.provider)?;
        let mut session = String::new();
        let outcome = wait(async {
            let progress = Progress::start("asking for cards");
            let visitor = client.visit(&progress).await?;
            progress.step("fetching the log");
            session = peer_id(&visitor.local()).to_string();
            let mut watch = |step| progress.step(&requester::step_text(&step));
            visitor
                .verify_log(node, &mut watch)
                .await
                .map_err(|error| unverified(&error))
        });
        let evidence = client.evidence(node);
        let evidence = evidence.map_err(|error| requester::state(&error))?;
        let log = outcome.as_ref().ok();
        let verified = Verified {
            provider: peer_id(&node).to_string(),
            size: log.map(|log| log.checkpoint.size()),
            root: log.map(|log| log.checkpoint.root().to_string()),
            verified: log.is_some(),
            error: outcome.as_ref().err().map(ToString::to_string),
            evidence: evidence.into_iter().map(evidence_row).collect(),
            client_peer_id: session,
        };
        if args.json {
            out::json(&verified);
        } else if let (Some(size), Some(root)) = (verified.size, &verified.root) {
            out::line(format_args!(
                "{} to the signed root {root}",
                match size {
                    1 => "1 entry leads".to_owned(),
                    size => format!("{size} entries lead"),
                }
            ));
        }
        for evidence in &verified.evidence {
            let file = evidence.file.display();
            out::note(format_args!(
                "evidence against it: {}; {file}",
                evidence.how
            ));
        }
        outcome.and(DONE)
    }
}

fn evidence_row(kept: KeptEvidence) -> Evidence {
    Evidence {
        file: kept.file,
        how: kept.how.to_string(),
    }
}

fn unverified(error: &LogError) -> Failure {
    let failure = Failure::of(error);
    match error {
        LogError::Connect(_) => failure
            .hint("again in a minute: it may be away, or have moved and its new card not be everywhere yet")
            .code(UNAVAILABLE),
        LogError::CutOff { .. } | LogError::Fetch(_) => failure
            .hint("again in a minute: nothing was found against the log, and what was known of it before is kept")
            .code(UNAVAILABLE),
        LogError::NoAddress => failure.hint(
            "`souk end` checks the proof of a lease of your own; whoever runs the provider can name an address for it (node.external)",
        ),
        _ => failure,
    }
}
