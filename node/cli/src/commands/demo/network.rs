//! The processes of the demo.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use souk_node::{config, control};
use tokio::{
    process::{Child, Command},
    signal::unix::Signal,
};

use crate::{
    commands::node::Ready,
    failure::{Failure, UNAVAILABLE},
    out,
};

/// A node of the demo that is not ready by then is stuck.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Between two looks at a file or a status.
const LOOK: Duration = Duration::from_millis(10);

/// A node that has not stopped so long after it was asked to is killed.
const STOP_WITHIN: Duration = Duration::from_secs(7);

/// Leases that have not ended so long after they were asked to are left to their keepers, which end them in time.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// Lines of a node's log that are shown when the demo fails.
const LOG_LINES: usize = 12;

/// The folder of the requester.
pub(crate) const REQUESTER: &str = "requester";

/// The folder of one more requester, of whom the log has an entry too.
pub(super) const NEIGHBOUR: &str = "neighbour";

/// Nodes that run, all on one configuration.
pub(crate) struct Network {
    /// Mean mixing delay.
    mean_delay_ms: u32,
    nodes: Vec<Running>,
}

struct Running {
    name: &'static str,
    child: Child,
    folder: PathBuf,
    ready: Ready,
}

impl Network {
    /// A network without nodes yet.
    pub(crate) fn new(mean_delay_ms: u32) -> Self {
        Self {
            mean_delay_ms,
            nodes: Vec::new(),
        }
    }

    /// Starts three nodes that are mix, entry and relay, the first of which is where the others begin, and makes the
    /// folders of the requesters.
    pub(crate) async fn start_mixes(&mut self, folder: &Path) -> Result<(), Failure> {
        let first = Running::start(folder, "mix-1", &[], self.mean_delay_ms).await?;
        let bootstrap = first.ready.addresses.clone();
        self.nodes.push(first);
        let (second, third) = tokio::join!(
            Running::start(folder, "mix-2", &bootstrap, self.mean_delay_ms),
            Running::start(folder, "mix-3", &bootstrap, self.mean_delay_ms)
        );
        self.nodes.extend([second?, third?]);
        let addresses: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| node.ready.addresses.first())
            .cloned()
            .collect();
        for name in [REQUESTER, NEIGHBOUR] {
            write_config(&folder.join(name), &addresses, self.mean_delay_ms, false)?;
        }
        Ok(())
    }

    /// Starts the provider.
    pub(crate) async fn start_provider(&mut self, folder: &Path) -> Result<(), Failure> {
        let bootstrap: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|node| node.ready.addresses.first())
            .cloned()
            .collect();
        let provider = Running::start(folder, "provider", &bootstrap, self.mean_delay_ms).await?;
        self.nodes.push(provider);
        Ok(())
    }

    /// Waits until every node has the cards of all.
    pub(crate) async fn agree(&self) -> Result<(), Failure> {
        let deadline = Instant::now() + READY_WITHIN;
        for node in &self.nodes {
            let mut control = node.control().await?;
            loop {
                let status = control
                    .status()
                    .await
                    .map_err(|error| crate::commands::unreached(&error))?;
                if usize::try_from(status.cards).is_ok_and(|cards| cards >= self.nodes.len()) {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(Failure::new(format_args!(
                        "{} has not heard of all the others",
                        node.name
                    ))
                    .code(UNAVAILABLE));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// How each node stands.
    pub(crate) async fn statuses(
        &self,
    ) -> Result<Vec<(&'static str, control::v1::StatusReply)>, Failure> {
        let mut all = Vec::new();
        for node in &self.nodes {
            let mut control = node.control().await?;
            let status = control
                .status()
                .await
                .map_err(|error| crate::commands::unreached(&error))?;
            all.push((node.name, status));
        }
        Ok(all)
    }

    /// Waits until the log of the provider has an entry.
    pub(super) async fn has_entry(&self) -> Result<(), Failure> {
        let mut control = self.provider().await?;
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let status = control.status().await;
            let status = status.map_err(|error| crate::commands::unreached(&error))?;
            if status.log.is_some_and(|log| log.size > 0) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(
                    Failure::new("the lease of the neighbour is not in the log").code(UNAVAILABLE)
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The control socket of the provider.
    pub(crate) async fn provider(&self) -> Result<control::Client, Failure> {
        match self.nodes.iter().find(|node| node.name == "provider") {
            Some(node) => node.control().await,
            None => Err(Failure::new("the provider was not started")),
        }
    }

    /// The network id.
    pub(crate) fn id(&self) -> &str {
        self.nodes.first().map_or("", |node| &node.ready.network_id)
    }

    /// Names, ids and control sockets.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&'static str, &Ready)> {
        self.nodes.iter().map(|node| (node.name, &node.ready))
    }

    /// Waits for Ctrl-C or SIGTERM.
    pub(crate) async fn hold(&self, interrupt: &mut Signal, terminate: &mut Signal) {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    }

    /// The last lines of every node's log, for who wants to know why.
    pub(crate) fn show_logs(&self) {
        for node in &self.nodes {
            let log = fs::read_to_string(node.folder.join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let from = lines.len().saturating_sub(LOG_LINES);
            for line in &lines[from..] {
                out::note(format_args!("{}: {line}", node.name));
            }
        }
    }

    /// Ends every lease and every node.
    pub(crate) async fn stop(&mut self) {
        for node in &self.nodes {
            // What cannot be reached is stopped all the same.
            if let Ok(mut control) = node.control().await {
                for lease in control.leases().await.unwrap_or_default() {
                    let _ = control.end(lease.lease).await;
                }
                // An instance outlives a node that stops before it has ended it.
                let deadline = Instant::now() + ENDED_WITHIN;
                while Instant::now() < deadline
                    && control.leases().await.is_ok_and(|left| !left.is_empty())
                {
                    tokio::time::sleep(LOOK).await;
                }
            }
        }
        for node in &mut self.nodes {
            drop(node.child.stdin.take());
        }
        for node in &mut self.nodes {
            if tokio::time::timeout(STOP_WITHIN, node.child.wait())
                .await
                .is_err()
            {
                // It may be gone by now.
                let _ = node.child.start_kill();
                let _ = node.child.wait().await;
            }
        }
        self.nodes.clear();
    }
}

impl Running {
    async fn start(
        folder: &Path,
        name: &'static str,
        bootstrap: &[String],
        mean_delay_ms: u32,
    ) -> Result<Self, Failure> {
        let folder = folder.join(name);
        write_config(&folder, bootstrap, mean_delay_ms, name == "provider")?;
        let failed =
            |error: std::io::Error| Failure::because(format_args!("cannot start {name}"), &error);
        let program = std::env::current_exe().map_err(failed)?;
        let log = fs::File::create(folder.join("log")).map_err(failed)?;
        let ready_file = folder.join("ready");
        let mut child = Command::new(program)
            .args(["node", "run", "--while-stdin", "--config"])
            .arg(folder.join("souk.toml"))
            .arg("--ready-file")
            .arg(&ready_file)
            .env_remove("SOUK_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for this process, which then stops the nodes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let deadline = Instant::now() + READY_WITHIN;
        let ready = loop {
            if let Ok(text) = fs::read(&ready_file) {
                break serde_json::from_slice(&text).map_err(|error| {
                    Failure::because(format_args!("{name} wrote a strange ready file"), &error)
                })?;
            }
            let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
            if let Some(status) = child.try_wait().map_err(failed)? {
                let what = format_args!("{name} stopped at its start ({status})");
                return Err(Failure::new(what).detail(log().trim_end()));
            }
            if Instant::now() > deadline {
                let what = format_args!("{name} is not ready");
                return Err(Failure::new(what).detail(log().trim_end()));
            }
            tokio::time::sleep(LOOK).await;
        };
        Ok(Self {
            name,
            child,
            folder,
            ready,
        })
    }

    async fn control(&self) -> Result<control::Client, Failure> {
        control::Client::connect(&self.ready.control_socket)
            .await
            .map_err(|error| crate::commands::unreached(&error))
    }
}

fn write_config(
    folder: &Path,
    bootstrap: &[String],
    mean_delay_ms: u32,
    provider: bool,
) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    let list: Vec<_> = bootstrap
        .iter()
        .map(|address| format!("{address:?}"))
        .collect();
    let list = format!("[{}]", list.join(", "));
    let delay = mean_delay_ms.to_string();
    let mut set = vec![
        ("network", "name", "\"demo\""),
        ("network", "test", "true"),
        ("network", "mean_delay_ms", &delay),
        ("node", "listen", r#"["/ip4/127.0.0.1/udp/0/quic-v1"]"#),
        ("node", "bootstrap", &list),
        ("provider", "checkpoint_s", "1"),
    ];
    if provider {
        set.push(("node", "roles", r#"["provider"]"#));
        set.push(("provider", "allow_shared_kernel", "true"));
        // A benchmark rents more often than strangers may by default.
        set.push(("provider", "anonymous_per_hour", "10000"));
    }
    let failed =
        |error| Failure::because(format_args!("cannot write in {}", folder.display()), &error);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(failed)?;
    fs::write(folder.join("souk.toml"), config::template(&set)).map_err(failed)
}
