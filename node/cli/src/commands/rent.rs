//! `souk rent`.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use souk_crypto::{HolderKey, NodeId, UnixTime, keyfile};
use souk_market::{
    matching::{Mismatch, Wanted, candidates},
    quorum::Market,
    units::{Asset, DurationS, ImageHash, Limit, Limits, Money, Resources},
};
use souk_node::{
    client::{
        self, Client, Connected, Lease, RentError, RentRequest, TalkError, Visitor, VoucherFile,
    },
    net::peer_id,
    unix_now,
};

use super::{
    DONE,
    requester::{self, Requester},
    wait,
};
use crate::{
    failure::{Failure, UNAVAILABLE, USAGE},
    out,
    progress::Progress,
};

/// Rent a machine, without telling anybody who you are.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk rent --cpu-millicores 2000 --memory-mib 1024 --duration-s 1800\n  souk rent --grant lease.grant --holder-key lease.key\n  souk rent --require-evidence --policy policy.toml\n  souk rent --resume 5f3c\n\nAn instance has no network of its own, unless the market says that its provider gives egress: bring yours with `ssh -R`."
)]
pub(crate) struct Rent {
    #[command(flatten)]
    requester: Requester,
    /// The image, by hash; the one that most providers have if none is named
    #[arg(long, value_name = "HASH")]
    image: Option<ImageHash>,
    /// Only this provider
    #[arg(long, value_name = "NODE")]
    provider: Option<String>,
    /// CPU, in thousandths of a core
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    cpu_millicores: u32,
    /// Memory, in MiB
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    memory_mib: u32,
    /// Writable disk, in MiB
    #[arg(long, default_value_t = 256)]
    disk_mib: u32,
    /// Processes and threads
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    max_processes: u32,
    /// How long, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    duration_s: u32,
    /// A limit that must be enforced: cpu, memory, processes or disk; may be repeated
    #[arg(long, value_name = "LIMIT")]
    require: Vec<Limit>,
    /// Refuse kernels that are shared with others
    #[arg(long)]
    own_kernel: bool,
    /// The most it may cost, in the smallest unit of --asset
    #[arg(long, value_name = "AMOUNT", requires = "asset")]
    max_total: Option<u64>,
    /// The asset of --max-total
    #[arg(long)]
    asset: Option<Asset>,
    /// A grant that an issuer signed for --holder-key; the issuer and the provider together can identify you
    #[arg(long, value_name = "FILE", requires = "holder_key")]
    grant: Option<PathBuf>,
    /// The key the grant was signed for, from `souk grant holder`
    #[arg(long, value_name = "FILE", requires = "grant")]
    holder_key: Option<PathBuf>,
    /// The instance must prove what it runs on, as the policy wants it: else the lease is ended, and `souk ssh` does not connect
    #[arg(long)]
    require_evidence: bool,
    /// Reach the instance straight at the provider, who then sees your address
    #[arg(long)]
    direct: bool,
    /// Go on with a request whose receipt has not come
    #[arg(long, value_name = "LEASE", conflicts_with_all = ["grant", "direct", "provider", "image"])]
    resume: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A lease that was rented, as scripts read it.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Rented {
    pub(crate) lease: String,
    pub(crate) name: String,
    pub(crate) provider: String,
    pub(crate) entry: String,
    pub(crate) valid_to_unix_s: u64,
    pub(crate) price: String,
    pub(crate) receipt_bytes: usize,
    pub(crate) request_bytes: usize,
    pub(crate) ssh_alias: String,
    pub(crate) ssh_config: PathBuf,
    /// The provider sees where the requester connects from.
    pub(crate) direct: bool,
    /// The network identity of this session, which nobody sees again.
    pub(crate) client_peer_id: String,
    pub(crate) egress: bool,
    pub(crate) enforced: Vec<String>,
    /// What the instance proved, where that was required.
    #[serde(default)]
    pub(crate) evidence: Option<String>,
    /// Milliseconds by part.
    pub(crate) timings_ms: BTreeMap<String, u64>,
}

/// What was seen while it was rented.
#[derive(Default)]
struct Seen {
    request_bytes: usize,
    receipt_bytes: usize,
    timings_ms: BTreeMap<String, u64>,
}

impl Rent {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = self.requester.open()?;
        requester::check_policy(&client)?;
        if self.require_evidence && client.evidence_policy().is_none() {
            return Err(Failure::new("no policy says which evidence is accepted")
                .hint("name one with --policy, or as evidence.policy in souk.toml")
                .code(USAGE));
        }
        let voucher = self.voucher(&client)?;
        // What cannot work is told before anybody is asked.
        let provider = self.provider.as_deref().map(provider).transpose()?;
        let resumed = self.resume.as_deref();
        let resumed = resumed
            .map(|name| requester::find(&client, name))
            .transpose()?;
        if self.require_evidence
            && resumed
                .as_ref()
                .is_some_and(|lease| lease.required_tee().is_none())
        {
            return Err(
                Failure::new("this lease was rented without --require-evidence")
                    .hint("its grant cannot be changed: end it and rent another")
                    .code(USAGE),
            );
        }
        if self.direct {
            out::note("--direct: the provider sees the address that you connect from");
        }
        let rented = wait(async {
            let progress = Progress::start("asking for cards");
            let mut seen = Seen::default();
            let start = Instant::now();
            let visitor = client.visit(&progress).await?;
            let only = match &resumed {
                Some(lease) => Some(lease.provider()),
                None => {
                    self.only_provider(&visitor, provider, voucher.as_ref())
                        .await?
                }
            };
            let only = only.as_slice();
            requester::session_avoiding(visitor, only, &progress, async |connected| {
                seen.part("market", start);
                let lease = self
                    .rent(connected, resumed, provider, voucher, &progress, &mut seen)
                    .await?;
                Ok(rented(&lease, connected, seen))
            })
            .await
        })?;
        if self.json {
            out::json(&rented);
        } else {
            out::line(text(&rented));
        }
        DONE
    }

    async fn rent(
        &self,
        connected: &Connected,
        resumed: Option<Lease>,
        provider: Option<NodeId>,
        voucher: Option<VoucherFile>,
        progress: &Progress,
        seen: &mut Seen,
    ) -> Result<Lease, Failure> {
        let start = Instant::now();
        let mut watch = |step: client::Progress| {
            progress.step(&requester::step_text(&step));
            match step {
                client::Progress::Sending { bytes } => {
                    seen.request_bytes = bytes;
                    seen.part("request", start);
                }
                client::Progress::Delivered => seen.part("delivered", start),
                client::Progress::Answered { bytes } => {
                    seen.receipt_bytes = bytes;
                    seen.part("answered", start);
                }
                _ => {}
            }
        };
        let outcome = match resumed {
            Some(lease) => connected.resume(lease, &mut watch).await,
            None => {
                let request = RentRequest {
                    wanted: self.wanted(connected.market(), provider)?,
                    voucher,
                    direct: self.direct,
                    require_evidence: self.require_evidence,
                };
                connected.rent(&request, &mut watch).await
            }
        };
        outcome.map_err(|error| unrented(&error))
    }

    /// The provider that will be asked, where no other can be: it must not be the entry as well.
    async fn only_provider(
        &self,
        visitor: &Visitor,
        provider: Option<NodeId>,
        voucher: Option<&VoucherFile>,
    ) -> Result<Option<NodeId>, Failure> {
        let mut wanted = self.wanted(visitor.market(), provider)?;
        wanted.issuer = voucher.map(VoucherFile::issuer);
        wanted.provider = wanted.provider.or(voucher.and_then(VoucherFile::provider));
        // Where nobody can be judged, renting tells why.
        if let Ok(Some(judged)) = visitor.judgements().await {
            wanted.attested = Some(judged.accepted().collect());
        }
        let (found, _) = candidates(visitor.market(), &wanted);
        Ok(match &found[..] {
            [only] => Some(only.card.node),
            _ => None,
        })
    }

    fn wanted(&self, market: &Market, provider: Option<NodeId>) -> Result<Wanted, Failure> {
        let image = match self.image {
            Some(image) => image,
            None => common_image(market, provider).ok_or_else(|| {
                Failure::new("no provider offers an image")
                    .hint("`souk market` shows who is there")
                    .code(UNAVAILABLE)
            })?,
        };
        Ok(Wanted {
            image,
            resources: Resources {
                cpu_millicores: self.cpu_millicores,
                memory_mib: self.memory_mib,
                disk_mib: self.disk_mib,
                gpus: 0,
                max_processes: self.max_processes,
            },
            duration: DurationS(self.duration_s),
            required: Limits::of(&self.require),
            arch: None,
            shared_kernel: !self.own_kernel,
            max_total: self.asset.clone().zip(self.max_total.map(Money)),
            issuer: None,
            attested: None,
            tees: None,
            provider,
        })
    }

    fn voucher(&self, client: &Client) -> Result<Option<VoucherFile>, Failure> {
        let (Some(grant), Some(key)) = (&self.grant, &self.holder_key) else {
            return Ok(None);
        };
        let text = fs::read_to_string(grant).map_err(|error| {
            Failure::because(format_args!("cannot read {}", grant.display()), &error)
        })?;
        let signed = hex::decode(text.trim()).map_err(|error| {
            Failure::because(format_args!("{} holds no grant", grant.display()), &error)
                .hint("it is what `souk grant issue` printed")
        })?;
        let holder: HolderKey = keyfile::load(key).map_err(|error| Failure::of(&error))?;
        VoucherFile::new(holder, &signed, client.network())
            .map(Some)
            .map_err(|error| unrented(&error))
    }
}

impl Seen {
    fn part(&mut self, name: &str, since: Instant) {
        let ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.timings_ms.insert(name.to_owned(), ms);
    }
}

/// The node of this peer id.
pub(crate) fn provider(text: &str) -> Result<NodeId, Failure> {
    text.parse().map_err(|why| {
        Failure::because(format_args!("{text:?} is no node id"), &why)
            .hint("`souk market` shows them")
            .code(USAGE)
    })
}

/// The image that most providers have, of equals the first by hash.
pub(super) fn common_image(market: &Market, provider: Option<NodeId>) -> Option<ImageHash> {
    let mut counts = BTreeMap::<_, usize>::new();
    let cards = market
        .cards
        .iter()
        .filter(|listed| provider.is_none_or(|node| node == listed.card.node));
    for image in cards.flat_map(|listed| listed.card.images.iter()) {
        *counts.entry(std::cmp::Reverse(image.hash)).or_default() += 1;
    }
    counts
        .into_iter()
        .max_by_key(|(hash, count)| (*count, *hash))
        .map(|(hash, _)| hash.0)
}

fn rented(lease: &Lease, connected: &Connected, seen: Seen) -> Rented {
    let receipt = lease.receipt();
    let card = lease.card();
    let offer = card.offers.first();
    Rented {
        lease: lease.id().map(|id| id.to_string()).unwrap_or_default(),
        name: lease.name(),
        provider: peer_id(&lease.provider()).to_string(),
        entry: peer_id(&connected.entry()).to_string(),
        valid_to_unix_s: receipt.map_or(0, |receipt| receipt.valid_to.0),
        price: receipt.zip(card.prices.as_ref()).map_or_else(
            || "nothing".to_owned(),
            |(receipt, prices)| prices.display(receipt.price),
        ),
        receipt_bytes: seen.receipt_bytes,
        request_bytes: seen.request_bytes,
        ssh_alias: lease.ssh_alias().unwrap_or_default(),
        ssh_config: lease.ssh_config(),
        direct: lease.is_direct(),
        client_peer_id: peer_id(&connected.local()).to_string(),
        egress: offer.is_some_and(|offer| offer.egress),
        enforced: offer.map_or_else(Vec::new, |offer| {
            offer
                .enforced
                .iter()
                .map(|limit| limit.as_str().to_owned())
                .collect()
        }),
        evidence: lease.required_tee().map(|tee| tee.to_string()),
        timings_ms: seen.timings_ms,
    }
}

fn text(rented: &Rented) -> String {
    let limits = if rented.enforced.is_empty() {
        "none".to_owned()
    } else {
        rented.enforced.join(", ")
    };
    let egress = if rented.egress {
        "open"
    } else {
        "none; `ssh -R` lets you bring a network"
    };
    let rows = [
        ("lease", rented.lease.clone()),
        ("provider", rented.provider.clone()),
        ("price", rented.price.clone()),
        (
            "valid until",
            out::time(UnixTime(rented.valid_to_unix_s), unix_now()),
        ),
        (
            "evidence",
            rented.evidence.as_ref().map_or_else(
                || "not required".to_owned(),
                |tee| format!("{tee}, accepted"),
            ),
        ),
        ("egress", egress.to_owned()),
        ("limits enforced", limits),
        ("log in", format!("souk ssh {}", rented.ssh_alias)),
        (
            "or",
            format!(
                "ssh -F {} {}",
                rented.ssh_config.display(),
                rented.ssh_alias
            ),
        ),
        ("end", format!("souk end {}", rented.ssh_alias)),
    ];
    out::table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
}

/// What to ask for instead where no provider fits: what would have made the nearest one fit.
fn instead(others: &[(NodeId, Mismatch)]) -> &'static str {
    let Some(nearest) = others.iter().map(|(_, why)| why).max() else {
        return "`souk market` shows who is there";
    };
    match nearest {
        Mismatch::Evidence => {
            "`souk market` shows what speaks against the evidence of each; see --policy"
        }
        Mismatch::Image => {
            "name an --image that a provider has, or none; `souk market --json` shows them"
        }
        Mismatch::Arch => "name an --image for an architecture that `souk market` shows",
        Mismatch::Size => "ask for a smaller machine; `souk market` shows the sizes",
        Mismatch::Limits => "leave out --require; `souk market` shows which limits each enforces",
        Mismatch::Tee => {
            "leave out --require-evidence, or accept another kind in the policy; `souk market` shows what each proves"
        }
        Mismatch::SharedKernel => {
            "leave out --own-kernel if a kernel that is shared with others will do, or wait for a provider with its own"
        }
        Mismatch::Full => "again later; `souk market` shows who has room",
        Mismatch::Price => {
            "a higher --max-total, or the --asset of the provider, a smaller machine or a shorter --duration-s; `souk market` shows the prices"
        }
        Mismatch::Policy => "ask an issuer whom the provider lists for a grant: --grant",
        Mismatch::Anonymous => {
            "a shorter --duration-s or a smaller machine; `souk market --json` shows the longest as max_duration_s; holders of a grant get more"
        }
    }
}

/// Why nothing was rented, and what to do.
pub(super) fn unrented(error: &RentError) -> Failure {
    let failure = Failure::of(error);
    match error {
        RentError::NoMatch { others } => failure.hint(instead(others)).code(UNAVAILABLE),
        RentError::Refused { .. } => failure.code(UNAVAILABLE),
        RentError::NoRelay { .. } => failure
            .hint("wait until there are more relays, or rent from another provider")
            .code(UNAVAILABLE),
        RentError::Lapsed { .. } => failure.code(UNAVAILABLE),
        RentError::Unproven { name, ended, .. } => match ended {
            true => failure.hint("rent elsewhere"),
            false => failure.hint(format_args!("souk end {name}")),
        }
        .code(UNAVAILABLE),
        RentError::Silent { name, .. } => failure
            .hint(format_args!(
                "souk rent again takes another provider that costs the same, where there is one; souk rent --resume {name} asks this one again"
            ))
            .code(UNAVAILABLE),
        RentError::Over { name } => failure
            .hint(format_args!("souk end {name}"))
            .code(UNAVAILABLE),
        RentError::NoReceipt { name } => failure
            .hint(format_args!("souk rent --resume {name}"))
            .code(UNAVAILABLE),
        RentError::State(source) => requester::state(source),
        RentError::Judge(source) => requester::unjudged(failure, source),
        RentError::Talk(TalkError::Record(_)) => {
            failure.hint("keep the folder of the lease: it holds what the provider signed")
        }
        RentError::Talk(_) => failure
            .hint("`souk leases` shows what was stored; `souk rent --resume` goes on with it")
            .code(UNAVAILABLE),
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_resumes_a_lease_that_is_over_is_told_to_end_it() {
        let name = "5f3c0a91".to_owned();
        let failure = unrented(&RentError::Over { name });
        assert_eq!(failure.advice(), Some("souk end 5f3c0a91"));
    }
}
