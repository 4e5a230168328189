//! `souk node init` and `souk node run`.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use souk_backend::BackendError;
use souk_crypto::causes;
use souk_node::{
    config,
    net::{self, NodeAddress, peer_id},
    node::{self, Node, ShopError, StartError},
    store::StoreError,
};
use tokio::signal::unix::{SignalKind, signal};

use super::questions::Questions;
use crate::{
    commands::{ConfigFile, DONE, wait},
    failure::{CONFIG, FAILED, Failure, UNAVAILABLE, USAGE},
    logging, out, stdio,
};

/// A node that listens knows its addresses within milliseconds; one that does not by then is told about.
const ADDRESSES_WITHIN: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// The folder of the node; it must not have a souk.toml yet
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Sell this machine: tenants share its kernel, and the card says so
    #[arg(long)]
    provider: bool,
    /// A node to meet first, as a multiaddress that ends in /p2p/ and its id; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    bootstrap: Vec<NodeAddress>,
    /// Ask nothing, as without a terminal: what is not said here stays as it is by default
    #[arg(long)]
    yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    config: ConfigFile,
    /// Write a JSON object here once the node is ready, and remove it when the node stops
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// The static agent for instances [default: as configured, or souk-agent beside this program]
    #[arg(long, value_name = "FILE", env = "SOUK_AGENT_BIN")]
    agent: Option<PathBuf>,
    /// Stop when stdin ends: for a program that starts nodes and must not leave any behind
    #[arg(long, hide = true)]
    while_stdin: bool,
}

/// What a node says of itself when it is ready.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Ready {
    pub(crate) node_id: String,
    pub(crate) network_id: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) control_socket: PathBuf,
    pub(crate) metrics: Option<String>,
    pub(crate) pid: u32,
}

impl Init {
    pub(crate) fn run(mut self) -> Result<ExitCode, Failure> {
        let path = self.folder.join("souk.toml");
        let is_watched = io::stdin().is_terminal() && io::stderr().is_terminal();
        // Who has a node here already is told so, and not asked first.
        if is_watched && !self.yes && !path.exists() {
            let (input, output) = (io::stdin().lock(), io::stderr().lock());
            Questions { input, output }
                .ask(&mut self.provider, &mut self.bootstrap)
                .map_err(|error| {
                    Failure::because("there is no answer", &error)
                        .hint("--yes asks nothing")
                        .code(USAGE)
                })?;
        }
        let list: Vec<_> = self
            .bootstrap
            .iter()
            .map(|address| format!("{:?}", address.to_string()))
            .collect();
        let bootstrap = format!("[{}]", list.join(", "));
        let mut set = Vec::new();
        if !list.is_empty() {
            set.push(("node", "bootstrap", bootstrap.as_str()));
        }
        if self.provider {
            set.push(("node", "roles", r#"["mix", "entry", "relay", "provider"]"#));
            set.push(("provider", "allow_shared_kernel", "true"));
        }
        let failed = |error: io::Error| {
            let exists = error.kind() == io::ErrorKind::AlreadyExists;
            let failure = Failure::because(format_args!("cannot write {}", path.display()), &error);
            if exists {
                failure.hint("a node has been made here; edit its souk.toml")
            } else {
                failure
            }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .map_err(failed)?;
        let mut file = fs::File::create_new(&path).map_err(failed)?;
        file.write_all(config::template(&set).as_bytes())
            .map_err(failed)?;
        let config =
            config::Config::load(&path).map_err(|error| super::super::config::explain(&error))?;
        let id = node::init(&config).map_err(|error| explain(&error))?;
        out::line(format_args!("node {}", peer_id(&id)));
        if self.provider {
            out::note(format_args!(
                "warning: this provider has no image yet, so nobody can rent; make one: souk image build --config {}",
                path.display()
            ));
        }
        out::note(format_args!(
            "edit {}, then: souk node run --config {}",
            path.display(),
            path.display()
        ));
        DONE
    }
}

impl Run {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let mut config = self.config.load()?;
        if self.agent.is_some() {
            config.provider.agent.clone_from(&self.agent);
        }
        logging::start(&config.log.filter, config.log.json)?;
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        // Each neighbour takes one; soft limits are low for the sake of programs that use `select`.
        if let Err(error) = souk_sandbox::raise_descriptor_limit() {
            tracing::warn!(%error, "cannot have more files open");
        }
        wait(self.until_stopped(config))?;
        DONE
    }

    async fn until_stopped(self, config: config::Config) -> Result<(), Failure> {
        let unheard = |error: io::Error| Failure::because("cannot listen for signals", &error);
        let mut terminate = signal(SignalKind::terminate()).map_err(unheard)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(unheard)?;
        let network = config.network.id.clone();
        let node = Node::start(config).await.map_err(|error| explain(&error))?;
        let ready = async {
            let addresses = announced(&node).await;
            let ready = Ready {
                node_id: peer_id(&node.id()).to_string(),
                network_id: network.to_string(),
                addresses: addresses.iter().map(ToString::to_string).collect(),
                control_socket: node.control_socket().to_owned(),
                metrics: node
                    .metrics_address()
                    .map(|address| format!("http://{address}/metrics")),
                pid: std::process::id(),
            };
            let told = self.tell(&ready);
            node.stopping().await;
            told
        };
        let outcome = tokio::select! {
            outcome = ready => outcome,
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            () = stdin_ended(), if self.while_stdin => Ok(()),
        };
        tracing::info!("stopping");
        tokio::select! {
            () = node.stop() => {}
            // Who asks twice is in a hurry; leases and the log are safe at any point.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if let Some(path) = &self.ready_file {
            // It may never have been written.
            let _ = fs::remove_file(path);
        }
        outcome
    }

    fn tell(&self, ready: &Ready) -> Result<(), Failure> {
        out::line(format_args!(
            "ready: node {} on {}",
            ready.node_id, ready.network_id
        ));
        match &self.ready_file {
            Some(path) => write_whole(path, ready).map_err(|error| {
                Failure::because(format_args!("cannot write {}", path.display()), &error)
            }),
            None => Ok(()),
        }
    }
}

/// Waits for addresses that others can dial, and says so where there are none.
async fn announced(node: &Node) -> Vec<NodeAddress> {
    let addresses = node.announced();
    tokio::pin!(addresses);
    if let Ok(found) = tokio::time::timeout(ADDRESSES_WITHIN, &mut addresses).await {
        return found;
    }
    tracing::warn!(
        "this node has no address that others can dial, so it is not ready and nobody hears of it; set node.listen or node.external"
    );
    addresses.await
}

/// Reads stdin until it ends or breaks.
async fn stdin_ended() {
    if let Ok(mut input) = stdio::input() {
        let _ = tokio::io::copy(&mut input, &mut tokio::io::sink()).await;
    }
}

/// Whoever waits for the file never sees half of it.
fn write_whole(path: &Path, ready: &Ready) -> io::Result<()> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(ready)?)?;
    fs::rename(&fresh, path)
}

/// Why a node did not start, and what its operator can do.
fn explain(error: &StartError) -> Failure {
    let failure = Failure::of(error);
    match error {
        StartError::Net(net::StartError::Listen { source, .. }) | StartError::Metrics { source, .. }
            if source.kind() == io::ErrorKind::AddrInUse =>
        {
            failure
                .hint("another program uses this port: stop it, or choose another port in souk.toml (0 takes a free one)")
                .code(UNAVAILABLE)
        }
        StartError::InUse { .. } => failure
            .hint("stop that node with `souk node stop`, or give this one a data_dir of its own")
            .code(UNAVAILABLE),
        _ if met_a_full_disk(error) => failure.hint("free some space; nothing that was recorded is lost"),
        StartError::Net(net::StartError::ListenAddress { .. }) => failure.code(CONFIG),
        StartError::Shop(ShopError::Backend(BackendError::Host { what, hint, source })) => {
            let failure = match source {
                Some(source) => Failure::because(what, source),
                None => Failure::new(what),
            };
            failure.hint(hint).code(UNAVAILABLE)
        }
        StartError::Shop(ShopError::Store(StoreError::Full { .. })) => failure.hint("free some space, then start again"),
        _ => failure.code(FAILED),
    }
}

/// Whether this began with a write for which there was no room, to whichever file.
fn met_a_full_disk(error: &StartError) -> bool {
    causes(error)
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::StorageFull)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_says_what_to_do() {
        let error = StartError::Net(net::StartError::Listen {
            address: "/ip4/127.0.0.1/tcp/4551".parse().expect("valid"),
            source: io::ErrorKind::AddrInUse.into(),
        });
        insta::assert_snapshot!(explain(&error));
    }

    #[test]
    fn a_folder_in_use_says_what_to_do() {
        let error = StartError::InUse {
            path: "/srv/node".into(),
        };
        insta::assert_snapshot!(explain(&error));
    }

    #[test]
    fn a_node_can_be_made_once_in_a_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let init = || Init {
            folder: folder.path().join("node"),
            provider: true,
            bootstrap: Vec::new(),
            yes: true,
        };
        init().run().expect("makes a node");
        let config = config::Config::load(&folder.path().join("node/souk.toml")).expect("valid");
        assert!(config.provider.allow_shared_kernel);
        let again = init().run().expect_err("is there already").to_string();
        assert!(again.contains("edit its souk.toml"), "{again}");
    }
}
