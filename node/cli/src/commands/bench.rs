//! `souk bench`: what this machine and this build do, measured over the real parts.

use std::{
    collections::BTreeMap,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_backend::LeaseId;
use souk_market::{
    matching::Wanted,
    units::{DurationS, Limits, Resources},
};
use souk_node::{
    client::{self, Client, Connected, RentRequest},
    config::Config,
};
use tokio::io::AsyncReadExt as _;

use super::{
    DONE,
    demo::{Network, REQUESTER, build_image, check_machine},
    requester, wait,
};
use crate::{
    failure::{Failure, UNAVAILABLE},
    out,
    progress::Progress,
};

/// What every SSH server says first (RFC 4253 §4.2).
const BANNER: &[u8; 4] = b"SSH-";

/// A lease without a banner by then counts as failed.
const BANNER_WITHIN: Duration = Duration::from_secs(30);

/// Measure this machine.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// From `rent` to the banner of the instance's SSH server, without mixing delay.
    Leases(Leases),
}

impl Bench {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Leases(leases) => leases.run(),
        }
    }
}

/// Rents one machine after the other on a network of four processes on loopback, and waits for the banner of each one's
/// SSH server over a relay. The mean mixing delay is zero, so that the machine is measured and not the delay.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  souk bench leases\n  souk bench leases --count 20 --json")]
pub(crate) struct Leases {
    /// How many
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    count: u32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Median and 95th percentile of one part, in milliseconds.
#[derive(Debug, PartialEq, Serialize)]
struct Part {
    p50_ms: f64,
    p95_ms: f64,
}

#[derive(Debug, Serialize)]
struct Figures {
    leases: u32,
    /// By part, in the order in which they happen; `total` is from the call to the banner.
    parts: BTreeMap<&'static str, Part>,
}

/// The parts in their order, as they are told.
const PARTS: [&str; 5] = ["1-request", "2-delivered", "3-receipt", "4-banner", "total"];

impl Leases {
    fn run(self) -> Result<ExitCode, Failure> {
        let figures = wait(async {
            let folder = tempfile::Builder::new()
                .prefix("souk-bench-")
                .tempdir()
                .map_err(|error| Failure::because("cannot make a temporary folder", &error))?;
            let mut network = Network::new(0);
            let figures = self.measure(folder.path(), &mut network).await;
            if figures.is_err() {
                network.show_logs();
            }
            network.stop().await;
            figures
        })?;
        if self.json {
            out::json(&figures);
        } else {
            let heading = ["PART", "P50 MS", "P95 MS"].map(str::to_owned).to_vec();
            let rows = figures.parts.iter().map(|(name, part)| {
                let ms = |ms: f64| format!("{ms:.1}");
                vec![(*name).to_owned(), ms(part.p50_ms), ms(part.p95_ms)]
            });
            let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
            out::line(out::table(&rows));
        }
        DONE
    }

    async fn measure(&self, folder: &Path, network: &mut Network) -> Result<Figures, Failure> {
        let progress = Progress::start("starting a network");
        check_machine(folder)?;
        let data = folder.join("provider/data");
        let image = tokio::task::spawn_blocking(move || build_image(&data));
        network.start_mixes(folder).await?;
        image
            .await
            .map_err(|panic| Failure::because("the image was not built", &panic))??;
        network.start_provider(folder).await?;
        network.agree().await?;

        let client = open(&folder.join(REQUESTER))?;
        let mut control = network.provider().await?;
        let mut samples: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
        let visitor = requester::visit(&client, &progress).await?;
        requester::session(visitor, &progress, async |connected| {
            let wanted = smallest(connected)?;
            for number in 1..=self.count {
                progress.step(&format!("lease {number} of {}", self.count));
                let (lease, marks) = one(&client, connected, &wanted).await?;
                for (name, took) in PARTS.into_iter().zip(marks) {
                    samples.entry(name).or_default().push(took);
                }
                control
                    .end(lease.to_string())
                    .await
                    .map_err(|error| super::unreached(&error))?;
            }
            Ok(())
        })
        .await?;
        Ok(Figures {
            leases: self.count,
            parts: samples
                .into_iter()
                .map(|(name, samples)| (name, Part::of(samples)))
                .collect(),
        })
    }
}

impl Part {
    fn of(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        let at = |percent: usize| {
            let last = samples.len().saturating_sub(1);
            let index = (samples.len() * percent).div_ceil(100).saturating_sub(1);
            samples
                .get(index.min(last))
                .map_or(0.0, |took| took.as_secs_f64() * 1e3)
        };
        Self {
            p50_ms: at(50),
            p95_ms: at(95),
        }
    }
}

fn open(folder: &Path) -> Result<Client, Failure> {
    let config =
        Config::load(&folder.join("souk.toml")).map_err(|error| super::config::explain(&error))?;
    requester::client(folder, &config)
}

/// A small machine with the one image that there is.
fn smallest(connected: &Connected) -> Result<Wanted, Failure> {
    let image = connected
        .market()
        .cards
        .iter()
        .find_map(|listed| listed.card.images.first())
        .ok_or_else(|| Failure::new("no provider offers an image").code(UNAVAILABLE))?;
    Ok(Wanted {
        image: image.hash,
        resources: Resources {
            cpu_millicores: 100,
            memory_mib: 64,
            disk_mib: 16,
            gpus: 0,
            max_processes: 64,
        },
        duration: DurationS(300),
        required: Limits::of(&[]),
        arch: None,
        shared_kernel: true,
        max_total: None,
        issuer: None,
        attested: None,
        tees: None,
        provider: None,
    })
}

/// Rents once and waits for the banner; how long each of [`PARTS`] took.
async fn one(
    client: &Client,
    connected: &Connected,
    wanted: &Wanted,
) -> Result<(LeaseId, [Duration; 5]), Failure> {
    let start = Instant::now();
    let (mut sent, mut delivered) = (None, None);
    let mut watch = |step: client::Progress| match step {
        client::Progress::Sending { .. } => sent = Some(start.elapsed()),
        client::Progress::Delivered => delivered = Some(start.elapsed()),
        _ => {}
    };
    let request = RentRequest {
        wanted: wanted.clone(),
        voucher: None,
        direct: false,
        require_evidence: false,
    };
    let lease = connected
        .rent(&request, &mut watch)
        .await
        .map_err(|error| Failure::of(&error))?;
    let receipt = start.elapsed();
    let greeting = async {
        let mut stream = client
            .session(&lease, |_| ())
            .await
            .map_err(|error| Failure::of(&error))?;
        let mut banner = [0; BANNER.len()];
        stream
            .read_exact(&mut banner)
            .await
            .map_err(|error| Failure::because("the instance said nothing", &error))?;
        if banner == *BANNER {
            Ok(())
        } else {
            Err(Failure::new("what answered is no SSH server"))
        }
    };
    tokio::time::timeout(BANNER_WITHIN, greeting)
        .await
        .map_err(|late| Failure::because("no banner", &late))??;
    let total = start.elapsed();
    let id = lease
        .id()
        .ok_or_else(|| Failure::new("the receipt names no lease"))?;
    // A receipt may overtake the acknowledgement of the request.
    let sent = sent.unwrap_or_default();
    let delivered = delivered.unwrap_or(receipt).min(receipt);
    let marks = [
        sent,
        delivered.saturating_sub(sent),
        receipt - delivered,
        total - receipt,
        total,
    ];
    Ok((LeaseId(id.0), marks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_told_where_cargo_xtask_bench_reads_it() {
        let samples = vec![Duration::from_millis(200)];
        let figures = Figures {
            leases: 1,
            parts: PARTS.map(|name| (name, Part::of(samples.clone()))).into(),
        };
        let told = serde_json::to_value(&figures).expect("JSON");
        for at in ["/parts/total/p50_ms", "/parts/total/p95_ms"] {
            let ms = told.pointer(at).and_then(serde_json::Value::as_f64);
            assert_eq!(ms, Some(200.0), "{at}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let samples = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(
            Part::of(samples),
            Part {
                p50_ms: 100.0,
                p95_ms: 190.0
            }
        );
    }
}
