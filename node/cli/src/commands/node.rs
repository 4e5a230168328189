//! `souk node`.

mod act;
mod leave;
mod questions;
mod run;

pub(crate) use run::Ready;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_backend::LeaseId;
use souk_node::control::v1;

use super::{DONE, NodeHere, unreached, wait};
use crate::{failure::Failure, out};

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Make a configuration and an identity; on a terminal it asks what is not said.
    #[command(
        after_help = "Examples:\n  souk node init ~/node\n  souk node init --provider --bootstrap /ip4/192.0.2.1/udp/4551/quic-v1/p2p/12D3KooW… ~/node"
    )]
    Init(run::Init),
    /// Run a node until SIGTERM, Ctrl-C or `souk node stop`.
    #[command(
        after_help = "Example:\n  souk node run --config ~/node/souk.toml\n\nWhen the node is ready it prints one line, and writes --ready-file."
    )]
    Run(run::Run),
    /// Show the offers that the node on this machine knows.
    #[command(
        after_help = "Example:\n  souk node market --json\n\nFor renting use `souk market`: it compares what several nodes show."
    )]
    Market(Leases),
    /// Show the leases of the provider on this machine.
    #[command(
        after_help = "Example:\n  souk node leases --json\n\nNo row tells who rents: the node does not know."
    )]
    Leases(Leases),
    /// End a lease on this machine before its time, as the operator.
    #[command(after_help = "Example:\n  souk node end 000102030405060708090a0b0c0d0e0f")]
    End(End),
    /// Take no new leases, and wait until the open ones have ended.
    #[command(
        after_help = "Examples:\n  souk node drain\n  souk node drain --deadline 2h --json\n\nIt outlives a restart of the node. `souk node resume` takes leases again."
    )]
    Drain(leave::Drain),
    /// Take leases again after a drain, or instead of retiring.
    #[command(after_help = "Example:\n  souk node resume")]
    Resume(leave::Resume),
    /// End this node for ever, once its leases have ended, and name a successor if there is one.
    #[command(
        after_help = "Examples:\n  souk node retire --deadline 7d\n  souk node retire --yes --successor 12D3KooW… --agreement agreement.bin\n\nIt says what it will do, and asks. All nodes are told and keep that for 30 days; this identity never sells again."
    )]
    Retire(leave::Retire),
    /// Agree that this node takes over from one that retires.
    #[command(
        after_help = "Example:\n  souk node succeed 12D3KooW… --out agreement.bin\n\nThe file goes to the other node, for its `souk node retire`."
    )]
    Succeed(leave::Succeed),
    /// Make a new card now, and publish it.
    #[command(
        after_help = "Example:\n  souk node refresh-card\n\nThe node does so by itself when something on the card changes, and in good time before it expires."
    )]
    RefreshCard(Bare),
    /// Place no new leases at a backend; those that it has go on.
    #[command(
        after_help = "Example:\n  souk node pause sandbox\n\nIt outlives a restart of the node."
    )]
    Pause(act::Backend),
    /// Place new leases at a backend again.
    #[command(after_help = "Example:\n  souk node unpause sandbox")]
    Unpause(act::Backend),
    /// Remove an instance that no lease owns, without waiting for the end of its grace.
    #[command(
        after_help = "Example:\n  souk node reap sandbox 000102030405060708090a0b0c0d0e0f\n\n`souk leases --orphans` shows them."
    )]
    Reap(act::Reap),
    /// Print the metrics of the node in OpenMetrics text.
    #[command(
        after_help = "Examples:\n  souk node metrics | grep souk_mix\n  souk node metrics --socket /run/souk/monitor.sock"
    )]
    Metrics(Bare),
    /// Stop the node on this machine, as SIGTERM does.
    #[command(after_help = "Example:\n  souk node stop")]
    Stop(Bare),
}

#[derive(Args, Debug)]
pub(crate) struct Bare {
    #[command(flatten)]
    node: NodeHere,
}

#[derive(Args, Debug)]
pub(crate) struct Leases {
    #[command(flatten)]
    node: NodeHere,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct End {
    #[command(flatten)]
    node: NodeHere,
    /// The lease, as `souk node leases` shows it
    lease: String,
}

impl Node {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Init(init) => return init.run(),
            Self::Run(run) => return run.run(),
            Self::Drain(drain) => return drain.run(),
            Self::Resume(resume) => return resume.run(),
            Self::Retire(retire) => return retire.run(),
            Self::Succeed(succeed) => return succeed.run(),
            Self::Market(Leases { node, json }) => {
                let offers = wait(async {
                    node.connect()
                        .await?
                        .offers()
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                show_offers(offers, json);
            }
            Self::Leases(Leases { node, json }) => {
                let leases = wait(async {
                    node.connect()
                        .await?
                        .leases()
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                show(leases, json);
            }
            Self::End(End { node, lease }) => {
                let lease = lease_id(&lease)?;
                wait(async {
                    node.connect()
                        .await?
                        .end(lease.to_string())
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                out::line(format_args!("lease {lease} is ending"));
            }
            Self::RefreshCard(Bare { node }) => {
                wait(async {
                    node.connect()
                        .await?
                        .refresh_card()
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                out::line("a new card is published");
            }
            Self::Pause(backend) => return backend.pause(true),
            Self::Unpause(backend) => return backend.pause(false),
            Self::Reap(reap) => return reap.run(),
            Self::Metrics(Bare { node }) => {
                let text = wait(async {
                    node.connect()
                        .await?
                        .metrics()
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                out::line(text.trim_end());
            }
            Self::Stop(Bare { node }) => {
                wait(async {
                    node.connect()
                        .await?
                        .shutdown()
                        .await
                        .map_err(|error| unreached(&error))
                })?;
                out::line("the node is stopping");
            }
        }
        DONE
    }
}

fn lease_id(text: &str) -> Result<LeaseId, Failure> {
    text.parse().map_err(|why| {
        Failure::new(format_args!("{text:?} is no lease id: {why}")).code(crate::failure::USAGE)
    })
}

#[derive(Serialize)]
struct Row {
    lease: String,
    state: String,
    anonymous: bool,
    cpu_millicores: u32,
    memory_mib: u32,
    valid_to_unix_s: u64,
}

fn show(leases: Vec<v1::Lease>, json: bool) {
    let rows = leases.into_iter().map(|lease| Row {
        lease: lease.lease,
        state: lease.state,
        anonymous: lease.anonymous,
        cpu_millicores: lease.cpu_millicores,
        memory_mib: lease.memory_mib,
        valid_to_unix_s: lease.valid_to_unix_s,
    });
    if json {
        out::json(&rows.collect::<Vec<_>>());
        return;
    }
    let head = ["LEASE", "STATE", "CORES", "MIB", "VALID TO"]
        .map(str::to_owned)
        .to_vec();
    let body = rows.map(|row| {
        vec![
            row.lease,
            row.state,
            format!("{:.2}", f64::from(row.cpu_millicores) / 1000.0),
            row.memory_mib.to_string(),
            row.valid_to_unix_s.to_string(),
        ]
    });
    out::line(out::table(
        &std::iter::once(head).chain(body).collect::<Vec<_>>(),
    ));
}

#[derive(Serialize)]
struct OfferRow {
    provider: String,
    arch: String,
    cpu_millicores: u32,
    memory_mib: u32,
    price: String,
    capacity: String,
    shared_kernel: bool,
    anonymous: bool,
    enforced: Vec<String>,
    images: Vec<String>,
    expires_unix_s: u64,
}

fn show_offers(offers: Vec<v1::Offer>, json: bool) {
    let rows = offers.into_iter().map(|offer| OfferRow {
        provider: offer.node_id,
        arch: offer.arch,
        cpu_millicores: offer.cpu_millicores,
        memory_mib: offer.memory_mib,
        price: offer.price,
        capacity: offer.capacity,
        shared_kernel: offer.shared_kernel,
        anonymous: offer.anonymous,
        enforced: offer.enforced,
        images: offer.images,
        expires_unix_s: offer.expires_unix_s,
    });
    if json {
        out::json(&rows.collect::<Vec<_>>());
        return;
    }
    let head = ["PROVIDER", "CORES", "MIB", "PRICE", "ROOM"]
        .map(str::to_owned)
        .to_vec();
    let body = rows.map(|row| {
        vec![
            row.provider,
            format!("{:.1}", f64::from(row.cpu_millicores) / 1000.0),
            row.memory_mib.to_string(),
            row.price,
            row.capacity,
        ]
    });
    out::line(out::table(
        &std::iter::once(head).chain(body).collect::<Vec<_>>(),
    ));
}
