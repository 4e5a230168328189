//! What the commands of a requester share: the folder, the network, and how errors are told.

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use clap::Args;
use souk_crypto::NodeId;
use souk_node::{
    client::{
        self, Client, ClientConfig, Connected, EvidencePolicy, JudgeError, Lease, StateError,
        Visitor,
    },
    config::{self, Config},
};

use super::{ConfigFile, home};
use crate::{
    failure::{CONFIG, Failure, UNAVAILABLE, USAGE},
    out,
    progress::Progress,
};

/// What may be wrong where nobody answers.
const CHECK: &str = "check the network connection, the clock and node.bootstrap";

/// Whose leases, and on which network.
#[derive(Args, Clone, Debug)]
pub(crate) struct Requester {
    #[command(flatten)]
    config: ConfigFile,
    /// The requester's folder: leases, keys, the chosen entry [default: $SOUK_HOME, $XDG_DATA_HOME/souk or
    /// ~/.local/share/souk, the first that is set]
    #[arg(long, value_name = "FOLDER")]
    home: Option<PathBuf>,
    /// Which evidence is accepted: only providers that this policy accepts fit [default: evidence.policy of souk.toml]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Send over mixes only that the policy accepts
    #[arg(long)]
    attested_mixes: bool,
}

impl Requester {
    /// The configuration that was named, for what asks the node on this machine.
    pub(crate) fn config(&self) -> &ConfigFile {
        &self.config
    }

    /// Opens the folder. The network is that of the folder's own `souk.toml`; where it has none yet, the network of
    /// the given configuration is written there as soon as it was reached, so that `ssh` needs nothing but the folder.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        let folder = self.home.clone().unwrap_or_else(home);
        let own = folder.join("souk.toml");
        let config = if own.exists() {
            let config = Config::load(&own).map_err(|error| super::config::explain(&error))?;
            if let Some(other) = self.config.given()?
                && other.network.id != config.network.id
            {
                return Err(Failure::new(format_args!(
                    "the folder {} is on network {}, and the configuration on {}",
                    folder.display(),
                    config.network.id,
                    other.network.id
                ))
                .hint("use another folder for another network: --home or SOUK_HOME")
                .code(CONFIG));
            }
            config
        } else {
            self.config.load()?
        };
        // The flags are of this command only; the folder remembers what the configuration says.
        let of_folder = config.clone();
        let mut config = config;
        if let Some(policy) = &self.policy {
            let absolute = std::path::absolute(policy).map_err(|error| {
                Failure::because(format_args!("cannot find {}", policy.display()), &error)
            })?;
            config.evidence.policy = Some(absolute);
        }
        config.evidence.attested_mixes |= self.attested_mixes;
        let client = client(&folder, &config)?;
        let unwritten = (!own.exists()).then_some((own, of_folder));
        Ok(Opened { client, unwritten })
    }
}

/// A requester's folder that is open.
pub(crate) struct Opened {
    client: Client,
    /// The folder's own configuration where it has none yet. One that leads nowhere is not kept: other commands would
    /// take it for what the user wants.
    unwritten: Option<(PathBuf, Config)>,
}

impl Deref for Opened {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Opened {
    /// Takes the market, and remembers of which network it is.
    pub(crate) async fn visit(&self, progress: &Progress) -> Result<Visitor, Failure> {
        let visitor = visit(&self.client, progress).await?;
        if let Some((path, config)) = &self.unwritten {
            remember(path, config).map_err(|error| {
                Failure::because(format_args!("cannot write {}", path.display()), &error)
            })?;
        }
        Ok(visitor)
    }
}

/// The client of that folder, on the network of that configuration.
pub(crate) fn client(folder: &Path, config: &Config) -> Result<Client, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::because("cannot find this program for ssh's ProxyCommand", &error)
    })?;
    let network = &config.network;
    let entries = config.node.bootstrap.clone();
    let mut settings =
        ClientConfig::new(network.id.clone(), network.params.clone(), entries, program);
    settings.evidence = evidence_policy(&config.evidence)?;
    Client::open(folder, settings).map_err(|error| state(&error))
}

/// What is asked of providers and mixes.
fn evidence_policy(config: &config::Evidence) -> Result<Option<EvidencePolicy>, Failure> {
    let Some(policy) = &config.policy else {
        return match config.attested_mixes {
            false => Ok(None),
            true => Err(Failure::new("which mixes are believed, a policy says")
                .hint("name one with --policy, or as evidence.policy in souk.toml")
                .code(USAGE)),
        };
    };
    Ok(Some(EvidencePolicy {
        policy: policy.clone(),
        attested_mixes: config.attested_mixes,
    }))
}

/// Writes the network and the nodes to ask first.
fn remember(path: &Path, config: &Config) -> std::io::Result<()> {
    let params = &config.network.params;
    let name = config
        .network
        .id
        .as_str()
        .rsplit_once('.')
        .map_or("", |(name, _)| name);
    let list: Vec<_> = config
        .node
        .bootstrap
        .iter()
        .map(|address| format!("{:?}", address.to_string()))
        .collect();
    let policy = config.evidence.policy.as_deref().unwrap_or(Path::new(""));
    let text = config::template(&[
        ("network", "name", &format!("{name:?}")),
        (
            "network",
            "mean_delay_ms",
            &params.mean_delay_ms().to_string(),
        ),
        (
            "network",
            "max_delay_ms",
            &params.max_delay_ms().to_string(),
        ),
        ("network", "epoch_s", &params.epoch_s().to_string()),
        ("network", "test", &params.is_test().to_string()),
        ("node", "bootstrap", &format!("[{}]", list.join(", "))),
        ("evidence", "policy", &format!("{policy:?}")),
        (
            "evidence",
            "attested_mixes",
            &config.evidence.attested_mixes.to_string(),
        ),
    ]);
    std::fs::write(path, text)
}

/// Takes the market.
pub(crate) async fn visit(client: &Client, progress: &Progress) -> Result<Visitor, Failure> {
    client
        .visit(&mut |step| progress.step(&step_text(&step)))
        .await
        .map_err(|error| no_market(&error))
}

/// Works over a session of its own, which gives its mailbox back also where the work fails.
pub(crate) async fn session<T>(
    visitor: Visitor,
    progress: &Progress,
    work: impl AsyncFnOnce(&Connected) -> Result<T, Failure>,
) -> Result<T, Failure> {
    session_avoiding(visitor, &[], progress, work).await
}

/// As [`session`], over an entry that is none of `providers` where there is another.
pub(crate) async fn session_avoiding<T>(
    visitor: Visitor,
    providers: &[NodeId],
    progress: &Progress,
    work: impl AsyncFnOnce(&Connected) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let connected = visitor
        .connect(providers, &mut |step| progress.step(&step_text(&step)))
        .await
        .map_err(|error| unconnected(&error))?;
    let outcome = work(&connected).await;
    let changed = connected.tampered();
    connected.close().await;
    if changed > 0 {
        out::note(format_args!(
            "warning: {} changed on the way here: the entry, a mix or the provider may mark them to recognise them; where it happens again, another entry is chosen",
            out::count(changed, "packet was", "packets were")
        ));
    }
    outcome
}

/// The lease of that name.
pub(crate) fn find(client: &Client, name: &str) -> Result<Lease, Failure> {
    client.find(name).map_err(|error| state(&error))
}

/// What a step is, for who watches.
pub(crate) fn step_text(step: &client::Progress) -> String {
    use client::Progress as P;
    match step {
        P::AskingEntries { entries } => {
            let nodes = out::count(*entries, "node", "nodes");
            format!("asking {nodes} for cards")
        }
        P::Market {
            cards,
            entries,
            unanimous,
        } => {
            let agree = if *unanimous {
                "all agree"
            } else {
                "a quorum agrees"
            };
            let (cards, nodes) = (
                out::count(*cards, "card", "cards"),
                out::count(*entries, "node", "nodes"),
            );
            format!("{cards} from {nodes}, {agree}")
        }
        P::Entry { .. } => "the entry keeps a mailbox for the replies".to_owned(),
        P::Provider { others, .. } => {
            let others = out::count(*others, "other", "others");
            format!("a provider was chosen, {others} would have done")
        }
        P::Working { bits } => format!("proof of work, {bits} bits"),
        P::Stored { name } => format!("keys and request are on the disk as {name}"),
        P::Sending { bytes } => format!("the sealed request leaves, {bytes} bytes"),
        P::Delivered => "the provider has the request".to_owned(),
        P::Polling { attempt } => format!("asking the provider again ({attempt})"),
        P::Refused { reason } => format!("refused ({reason}), trying another provider"),
        P::ReadingLog { bundle, of } => format!("fetching the log, {bundle} of {of} bundles"),
        P::ResumingLog {
            bundle,
            of,
            attempt,
        } => format!(
            "the log broke off after {bundle} of {of} bundles, asking for the rest ({attempt})"
        ),
        P::Evidence { part } => format!("the evidence of the instance comes (part {})", part + 1),
        P::Answered { bytes } => format!("an answer came, {bytes} bytes sealed"),
    }
}

/// What is wrong with the requester's folder.
pub(crate) fn state(error: &StateError) -> Failure {
    let failure = Failure::of(error);
    match error {
        StateError::Name { .. } => failure.hint("`souk leases` shows them").code(USAGE),
        StateError::Busy { .. } => failure.hint("wait for it to finish").code(UNAVAILABLE),
        _ => failure,
    }
}

/// Why nobody could be judged.
pub(crate) fn unjudged(failure: Failure, error: &JudgeError) -> Failure {
    match error {
        JudgeError::State(source) => state(source),
        JudgeError::Policy(_) => failure.code(CONFIG),
        JudgeError::NoPolicy => failure
            .hint("name one with --policy, or as evidence.policy in souk.toml")
            .code(USAGE),
    }
}

/// Fails where the policy that says what is accepted cannot be used, before anybody is asked anything.
pub(crate) fn check_policy(client: &Client) -> Result<(), Failure> {
    let policy = client.evidence_policy();
    let read = policy.map(|policy| policy.read(client.home()));
    let read = read.transpose().map(|_| ());
    read.map_err(|error| Failure::of(&error).code(CONFIG))
}

fn unconnected(error: &client::ConnectError) -> Failure {
    let failure = Failure::of(error);
    match error {
        client::ConnectError::State(source) => state(source),
        client::ConnectError::Judge(source) => unjudged(failure, source),
        _ => failure.hint(CHECK).code(UNAVAILABLE),
    }
}

fn no_market(error: &client::MarketError) -> Failure {
    let failure = Failure::because("the market could not be taken", error);
    match error {
        client::MarketError::NobodyToAsk => failure
            .hint("name a few nodes under node.bootstrap in souk.toml; their operators know the addresses")
            .code(CONFIG),
        client::MarketError::TooFewConfigured { .. } => failure
            .hint("name more nodes, of different operators, under node.bootstrap in souk.toml")
            .code(CONFIG),
        client::MarketError::Clock(_) => failure
            .hint("set the clock, by NTP for example")
            .code(UNAVAILABLE),
        _ => failure.hint(CHECK).code(UNAVAILABLE),
    }
}
