//! `souk demo`: one whole lease on this machine, over a real network of processes.
//!
//! ```text
//!  this process ── starts ──► mix 1, mix 2, mix 3, provider      (`souk node run`)
//!       │
//!       ├── starts one after the other: `souk rent`, `ssh`, `souk end`, `souk log verify`
//!       └── and beside them a rent and an end by a neighbour, so that the log holds what is to be told apart
//! ```
//!
//! Everything happens in a temporary folder and on loopback, without root, and nothing is installed. Nodes end when this
//! process ends, however it ends: each of them watches a pipe that only this process holds.

mod network;
mod report;
mod search;
mod visit;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;
use souk_backend::BackendError;
use souk_image::{BuildOptions, Store};
use souk_sandbox::KeeperProgram;
use tokio::signal::unix::{SignalKind, signal};

pub(super) use self::network::{Network, REQUESTER};
use self::{
    network::NEIGHBOUR,
    report::{Report, Step},
};
use super::wait;
use crate::failure::{Failure, UNAVAILABLE};

/// Mean mixing delay of the demo's network, in milliseconds, as on a real one.
const MEAN_DELAY_MS: u32 = 50;

/// Hops at which a message waits, there or back: the entry and two mixes.
const DELAYING_HOPS: u32 = 3;

/// Of the demo's one core, what the requester rents, in thousandths; the neighbour rents the rest.
const OF_ONE_CORE: u32 = 900;

/// Watch a machine being rented, used and accounted for, on this machine.
///
/// Five processes on loopback: three mixes, a provider, and a requester whom the provider cannot identify. Needs no root
/// and installs nothing.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk demo\n  souk demo --keep      leave the network running, and print what to try\n  souk demo --json      one JSON object; the exit status is 0 only if everything held"
)]
pub(crate) struct Demo {
    /// Leave the network running, and print what to try next
    #[arg(long)]
    keep: bool,
    /// Print one JSON object instead of a story
    #[arg(long)]
    json: bool,
}

impl Demo {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut report = Report::new(self.json);
        let outcome = wait(self.show(&mut report));
        if let Err(failure) = &outcome
            && self.json
        {
            report.failed(failure);
            failure.show();
            return Ok(failure.exit_code());
        }
        outcome
    }

    async fn show(&self, report: &mut Report) -> Result<ExitCode, Failure> {
        let unheard = |error| Failure::because("cannot listen for signals", &error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unheard)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(unheard)?;
        let folder = tempfile::Builder::new()
            .prefix("souk-demo-")
            .tempdir()
            .map_err(|error| Failure::because("cannot make a temporary folder", &error))?;
        let mut network = Network::new(MEAN_DELAY_MS);
        let outcome = tokio::select! {
            outcome = play(folder.path(), &mut network, report) => outcome,
            _ = interrupt.recv() => Err(Failure::new("interrupted")),
            _ = terminate.recv() => Err(Failure::new("terminated")),
        };
        match outcome {
            Ok(()) if self.keep => {
                report.keep(&folder.keep(), &network);
                report.finish();
                network.hold(&mut interrupt, &mut terminate).await;
            }
            Ok(()) => report.finish(),
            Err(failure) => {
                network.show_logs();
                network.stop().await;
                return Err(failure);
            }
        }
        network.stop().await;
        Ok(report.exit_code())
    }
}

async fn play(folder: &Path, network: &mut Network, report: &mut Report) -> Result<(), Failure> {
    let (home, beside) = (folder.join(REQUESTER), folder.join(NEIGHBOUR));
    let start = Instant::now();
    report.begin(folder);

    report.step(Step::Machine);
    check_machine(folder)?;
    let image = {
        let data = folder.join("provider/data");
        let mixes = network.start_mixes(folder);
        let image = tokio::task::spawn_blocking(move || build_image(&data));
        let (mixes, image) = tokio::join!(mixes, image);
        mixes?;
        image.map_err(|panic| Failure::because("the image was not built", &panic))??
    };
    report.image(&image, start.elapsed());

    report.step(Step::Network);
    let since = Instant::now();
    network.start_provider(folder).await?;
    network.agree().await?;
    report.network(network, since.elapsed());

    report.step(Step::Rent);
    let since = Instant::now();
    let (rented, neighbour) = tokio::try_join!(
        visit::rent(&home, OF_ONE_CORE),
        visit::rent(&beside, 1000 - OF_ONE_CORE)
    )?;
    report.rented(&rented, since.elapsed());

    report.step(Step::Ssh);
    let since = Instant::now();
    let (session, _) = tokio::try_join!(
        visit::ssh(&home, &rented),
        visit::end_only(&beside, &neighbour)
    )?;
    report.session(&session, since.elapsed());

    report.step(Step::End);
    let since = Instant::now();
    network.has_entry().await?;
    let account = visit::end(&home, &rented).await?;
    report.account(&account, since.elapsed());

    report.step(Step::Verify);
    let since = Instant::now();
    let log = visit::verify_log(&home, &rented).await?;
    report.verified(&log, since.elapsed());

    report.step(Step::Search);
    let since = Instant::now();
    let ended = account.client_peer_id.iter();
    let sessions = ended.chain([&rented.client_peer_id, &log.client_peer_id]);
    let sessions: Vec<_> = sessions.map(String::as_str).collect();
    let provider = folder.join("provider");
    let findings = search::search(&provider, &rented.provider, &sessions, &home)?;
    report.searched(findings, since.elapsed());
    report.seen(network.statuses().await?);

    let mixing = Duration::from_millis(u64::from(4 * DELAYING_HOPS * MEAN_DELAY_MS));
    report.took(start.elapsed(), mixing);
    Ok(())
}

/// Says at once what is missing here and what this machine refuses, and the command that makes or allows it.
pub(super) fn check_machine(folder: &Path) -> Result<(), Failure> {
    let agent = match std::env::var_os("SOUK_AGENT_BIN") {
        Some(path) => PathBuf::from(path),
        None => souk_node::node::agent_beside(),
    };
    if !agent.is_file() {
        let what = format_args!(
            "the agent, which runs in instances, is not at {}",
            agent.display()
        );
        return Err(Failure::new(what)
            .hint("cargo xtask build")
            .code(UNAVAILABLE));
    }
    souk_sandbox::check(&KeeperProgram::this_program(), folder).map_err(|error| match &error {
        BackendError::Host { what, hint, source } => match source {
            Some(source) => Failure::because(what, source),
            None => Failure::new(what),
        }
        .hint(hint)
        .code(UNAVAILABLE),
        error => Failure::of(error),
    })
}

/// An image of this machine's own programs, in the store of the provider.
pub(super) fn build_image(data: &Path) -> Result<BTreeMap<&'static str, String>, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(|error| Failure::because("cannot make the folder of the provider", &error))?;
    let store = Store::open(data).map_err(|error| Failure::of(&error))?;
    let hash = store
        .build(&BuildOptions::default())
        .map_err(|error| Failure::of(&error))?;
    let manifest = store.manifest(hash).map_err(|error| Failure::of(&error))?;
    Ok(BTreeMap::from([
        ("hash", hash.to_string()),
        ("files", manifest.entries().len().to_string()),
        (
            "mib",
            manifest.content_bytes().div_ceil(1 << 20).to_string(),
        ),
    ]))
}
