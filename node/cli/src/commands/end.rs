//! `souk end`.

use std::{process::ExitCode, time::Duration};

use clap::Args;
use serde::{Deserialize, Serialize};
use souk_market::units::Meter;
use souk_node::{
    client::{Ended, Lease, ProvenStatement, TalkError},
    net::peer_id,
};

use super::{
    DONE,
    requester::{self, Opened, Requester},
    wait,
};
use crate::{
    failure::{Failure, UNAVAILABLE},
    out,
    progress::Progress,
};

/// End a lease, and verify its entry in the provider's usage log.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  souk end souk-5f3c0a91")]
pub(crate) struct End {
    #[command(flatten)]
    requester: Requester,
    /// The lease: its name, its id, or how `ssh` calls it
    lease: String,
    /// How long to wait for the final statement, in seconds; it comes with the provider's next checkpoint
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait_s: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a lease ended, as scripts read it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Account {
    pub(crate) lease: String,
    pub(crate) state: String,
    pub(crate) usage: Option<Usage>,
    pub(crate) proof_verified: bool,
    pub(crate) log_index: Option<u64>,
    pub(crate) log_size: Option<u64>,
    pub(crate) proof_hashes: Option<usize>,
    pub(crate) root: Option<String>,
    pub(crate) checkpoint: Option<String>,
    /// The network identity of this session, which nobody sees again; none where nobody was asked.
    pub(crate) client_peer_id: Option<String>,
}

/// What was used; a meter that failed is `null`, which is not zero.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Usage {
    pub(crate) from_unix_s: u64,
    pub(crate) to_unix_s: u64,
    pub(crate) cpu_core_ms: Option<u64>,
    pub(crate) memory_mib_s: Option<u64>,
    pub(crate) net_rx_bytes: Option<u64>,
    pub(crate) net_tx_bytes: Option<u64>,
    pub(crate) outcome: String,
    pub(crate) charge: String,
    /// Digest of the evidence of the instance, where there was any.
    #[serde(default)]
    pub(crate) evidence: Option<String>,
}

impl End {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = self.requester.open()?;
        let mut lease = requester::find(&client, &self.lease)?;
        let account = match lease.statement() {
            Some(proven) => Account {
                client_peer_id: acknowledge_again(&client, &lease)?,
                ..account(&lease, proven)
            },
            None => wait(async {
                let progress = Progress::start("asking for cards");
                let patience = Duration::from_secs(self.wait_s);
                let mut watch = |step| progress.step(&requester::step_text(&step));
                let visitor = client.visit(&progress).await?;
                let ended = requester::session(visitor, &progress, async |connected| {
                    let ended = connected.end(&mut lease, patience, &mut watch).await;
                    Ok((ended, connected.local()))
                });
                let (ended, local) = ended.await?;
                let account = match ended.map_err(|error| unended(&error))? {
                    Ended::Proven(proven) => account(&lease, &proven),
                    Ended::Pending(state) => pending(&lease, state.as_str()),
                };
                Ok(Account {
                    client_peer_id: Some(peer_id(&local).to_string()),
                    ..account
                })
            })?,
        };
        if self.json {
            out::json(&account);
        } else {
            out::line(text(&account));
        }
        DONE
    }
}

/// Sends the agreement to an account that came before, where it is not known to have arrived; the account stands whatever comes of
/// it. Gives the network identity of the session, where there was one.
fn acknowledge_again(client: &Opened, lease: &Lease) -> Result<Option<String>, Failure> {
    let owed = lease.unacknowledged();
    if owed.map_err(|error| requester::state(&error))?.is_none() {
        return Ok(None);
    }
    let outcome = wait(async {
        let progress = Progress::start("asking for cards");
        let visitor = client.visit(&progress).await?;
        // An entry cannot be the end of a route, and leases that are closed keep none away.
        let provider = [lease.provider()];
        let told = requester::session_avoiding(visitor, &provider, &progress, async |connected| {
            let told = connected.acknowledge(lease).await;
            Ok((told.map_err(|error| unended(&error)), connected.local()))
        });
        told.await
    });
    let (told, local) = match outcome {
        Ok((told, local)) => (told, Some(peer_id(&local).to_string())),
        Err(failure) => (Err(failure), None),
    };
    if let Err(failure) = told {
        out::note(format_args!(
            "warning: the provider was not told that its account has come: {}",
            failure.in_one_line()
        ));
    }
    Ok(local)
}

fn account(lease: &Lease, proven: &ProvenStatement) -> Account {
    let statement = &proven.statement;
    let charge = lease.card().prices.as_ref().map_or_else(
        || "nothing".to_owned(),
        |prices| prices.display(statement.charge),
    );
    Account {
        lease: statement.lease.to_string(),
        state: "closed".to_owned(),
        usage: Some(Usage {
            from_unix_s: statement.from.0,
            to_unix_s: statement.to.0,
            cpu_core_ms: known(statement.cpu_core_ms),
            memory_mib_s: known(statement.memory_mib_s),
            net_rx_bytes: known(statement.net_rx_bytes),
            net_tx_bytes: known(statement.net_tx_bytes),
            outcome: statement.outcome.as_str().to_owned(),
            charge,
            evidence: statement.evidence.map(|digest| digest.to_string()),
        }),
        proof_verified: true,
        log_index: Some(proven.index),
        log_size: Some(proven.log_size),
        proof_hashes: Some(proven.path_len),
        root: Some(proven.root.to_string()),
        checkpoint: Some(proven.checkpoint.clone()),
        client_peer_id: None,
    }
}

fn pending(lease: &Lease, state: &str) -> Account {
    // Where the receipt was lost, the status names it.
    let id = lease.id().or(lease.status().map(|status| status.lease));
    Account {
        lease: id.map(|id| id.to_string()).unwrap_or_default(),
        state: state.to_owned(),
        usage: None,
        proof_verified: false,
        log_index: None,
        log_size: None,
        proof_hashes: None,
        root: None,
        checkpoint: None,
        client_peer_id: None,
    }
}

fn known(meter: Meter) -> Option<u64> {
    match meter {
        Meter::Known(reading) => Some(reading),
        Meter::AtLeast(_) | Meter::Unknown => None,
    }
}

fn text(account: &Account) -> String {
    let Some(usage) = &account.usage else {
        return format!(
            "lease {} is {}; its statement comes with the provider's next checkpoint: run this command again",
            account.lease, account.state
        );
    };
    let reading = |reading: Option<u64>, unit: &str| {
        reading.map_or_else(|| "unknown".to_owned(), |number| format!("{number} {unit}"))
    };
    let rows = [
        ("lease", account.lease.clone()),
        ("outcome", usage.outcome.clone()),
        (
            "time",
            format!("{} s", usage.to_unix_s.saturating_sub(usage.from_unix_s)),
        ),
        ("cpu", reading(usage.cpu_core_ms, "core-ms")),
        ("memory", reading(usage.memory_mib_s, "MiB-s")),
        ("received", reading(usage.net_rx_bytes, "bytes")),
        ("sent", reading(usage.net_tx_bytes, "bytes")),
        ("charge", usage.charge.clone()),
        (
            "usage log",
            format!(
                "entry {} of {}, inclusion proven by {} under root {}",
                account.log_index.unwrap_or_default() + 1,
                account.log_size.unwrap_or_default(),
                out::count(account.proof_hashes.unwrap_or_default(), "hash", "hashes"),
                account.root.as_deref().unwrap_or_default(),
            ),
        ),
    ];
    out::table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
}

pub(super) fn unended(error: &TalkError) -> Failure {
    let failure = Failure::of(error);
    match error {
        TalkError::Record(_) => {
            failure.hint("keep the folder of the lease: it holds what the provider signed")
        }
        TalkError::Log(_) => failure
            .hint("the lease is over; `souk log verify` shows what speaks against its provider"),
        _ => failure
            .hint("try again; a lease ends by itself when its time is over")
            .code(UNAVAILABLE),
    }
}
