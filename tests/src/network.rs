//! A network of real nodes: a provider and mixes, each a process with a folder of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    clock::Clock,
    hosts::{Host, Lan},
    instances::Instances,
    process::{Process, succeed},
    programs,
    requester::Requester,
};

/// What a network is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Nodes that forward, let requesters in and relay; the provider comes on top.
    pub mixes: usize,
    /// Mean delay at each mix, in milliseconds.
    pub mean_delay_ms: u32,
    /// The provider has an image and sells leases.
    pub sells: bool,
    /// The provider may be reached directly, for requesters who choose so.
    pub direct: bool,
    /// More lines of the provider's section: whom it serves.
    pub policy: String,
    /// More of every node's configuration, behind everything else.
    pub more: String,
    /// Nodes listen for QUIC, where nobody is told that a process was killed; else for TCP.
    pub quic: bool,
    /// Whom a node knows when it starts.
    pub discovery: Discovery,
    /// The network is a real one, whose cards name public addresses only, and the provider has none: it listens on its loopback.
    pub shut_in: bool,
    /// What every node and requester takes for the time, where that is not the machine's.
    pub clock: Option<Clock>,
}

/// How the nodes of a network find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// A node knows all that were started before it.
    Bootstrap,
    /// A node knows the one that was started before it: they stand in a line.
    Line,
    /// A node knows nobody, and looks on its local network.
    Mdns,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            mixes: 4,
            mean_delay_ms: 5,
            sells: true,
            direct: false,
            policy: String::new(),
            more: String::new(),
            quic: false,
            discovery: Discovery::Bootstrap,
            shut_in: false,
            clock: None,
        }
    }
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Forwards, lets requesters in, relays.
    Mix,
    /// Sells leases, and nothing else.
    Provider,
}

/// Nodes that know each other. They end before their folder goes.
///
/// One network runs at a time in a test program: several would only wait for each other's turns on a small machine.
pub struct Network {
    nodes: Vec<NodeUnderTest>,
    plan: Plan,
    folder: TempDir,
    _turn: MutexGuard<'static, ()>,
}

static TURN: Mutex<()> = Mutex::new(());

/// One node, running.
pub struct NodeUnderTest {
    process: Process,
    /// After the process, so that nothing starts another instance while these are ended.
    instances: Instances,
    role: Role,
    folder: PathBuf,
    ready: Value,
    host: Option<Host>,
}

impl Network {
    /// Starts a network on loopback and waits until every node knows all others.
    ///
    /// # Panics
    /// If a node does not start or the nodes do not find each other.
    #[must_use]
    pub fn start(plan: &Plan) -> Self {
        Self::start_on(plan, None)
    }

    /// The same with one host for each node: the provider on the first, then the mixes.
    ///
    /// # Panics
    /// As [`Network::start`], and where there are too few hosts.
    #[must_use]
    pub fn start_on(plan: &Plan, lan: Option<&Lan>) -> Self {
        let mut network = Self {
            nodes: Vec::new(),
            plan: plan.clone(),
            folder: TempDir::new().expect("a temporary folder"),
            // A test that failed has ended its network all the same.
            _turn: TURN.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Nobody can be told of a provider that has no address, so it is told of the others.
        let numbers = (0..=plan.mixes).cycle().skip(usize::from(plan.shut_in));
        for number in numbers.take(plan.mixes + 1) {
            let role = if number == 0 {
                Role::Provider
            } else {
                Role::Mix
            };
            let host = lan.map(|lan| lan.hosts()[number].clone());
            let node = network.start_node(role, number, host);
            network.nodes.push(node);
        }
        network.nodes.rotate_right(usize::from(plan.shut_in));
        let all = network.nodes.len();
        for node in &mut network.nodes {
            node.knows_cards(all);
        }
        network
    }

    /// The provider.
    #[must_use]
    pub fn provider(&self) -> &NodeUnderTest {
        &self.nodes[0]
    }

    /// The provider, to be stopped or looked into.
    pub fn provider_mut(&mut self) -> &mut NodeUnderTest {
        &mut self.nodes[0]
    }

    /// The mixes.
    #[must_use]
    pub fn mixes(&self) -> &[NodeUnderTest] {
        &self.nodes[1..]
    }

    /// Starts the provider again after it has ended: on the same data, on other ports, and with the mixes as bootstrap nodes. It had
    /// none when it was the first of them all, and nobody would know where it is now.
    ///
    /// # Panics
    /// If it still runs, or does not start.
    pub fn start_provider_again(&mut self, name: &str) {
        self.start_provider_again_as(name, &programs::souk());
    }

    /// As [`Self::start_provider_again`], with another program.
    ///
    /// # Panics
    /// If it still runs, or does not start.
    pub fn start_provider_again_as(&mut self, name: &str, program: &Path) {
        self.start_provider_again_by(name, program, str::to_owned);
    }

    /// As [`Self::start_provider_again`], with a configuration that was changed.
    ///
    /// # Panics
    /// If it still runs, or does not start.
    pub fn start_provider_again_with(&mut self, name: &str, edit: impl FnOnce(&str) -> String) {
        self.start_provider_again_by(name, &programs::souk(), edit);
    }

    fn start_provider_again_by(
        &mut self,
        name: &str,
        program: &Path,
        edit: impl FnOnce(&str) -> String,
    ) {
        let bootstrap = self.mixes_addresses();
        let folder = self.provider().folder.clone();
        let config = self.config(Some(Role::Provider), &folder, bootstrap, None);
        fs::write(folder.join("souk.toml"), edit(&config)).expect("written");
        self.nodes[0].start_again(name, program);
    }

    /// Stops all mixes.
    pub fn stop_mixes(&mut self) {
        for mix in &mut self.nodes[1..] {
            mix.process.stop();
        }
    }

    fn mixes_addresses(&self) -> Vec<String> {
        self.mixes()
            .iter()
            .flat_map(NodeUnderTest::addresses)
            .collect()
    }

    /// A requester with a folder of its own, on the host if one is given.
    #[must_use]
    pub fn requester(&self, name: &str, host: Option<&Host>) -> Requester {
        self.requester_knowing(name, self.mixes_addresses(), host)
    }

    /// A requester that was told of these nodes only.
    #[must_use]
    pub fn requester_at(&self, name: &str, nodes: &[NodeUnderTest]) -> Requester {
        let bootstrap = nodes.iter().flat_map(NodeUnderTest::addresses).collect();
        self.requester_knowing(name, bootstrap, None)
    }

    fn requester_knowing(
        &self,
        name: &str,
        bootstrap: Vec<String>,
        host: Option<&Host>,
    ) -> Requester {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).expect("a new folder");
        let config = folder.join("souk.toml");
        fs::write(&config, self.config(None, &folder, bootstrap, host)).expect("written");
        Requester::new(folder, config, host.cloned(), self.plan.clock.clone())
    }

    /// One more mix, on a machine whose clock is off by so many seconds; `None` without a C compiler.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn node_with_clock(&self, name: &str, offset_s: i64) -> Option<NodeUnderTest> {
        let clock = Clock::ahead_by(offset_s, self.folder.path())?;
        let folder = self.folder.path().join(name);
        let config = self.write_config(Role::Mix, &folder, None);
        let mut command = node_command(&config, &folder.join("ready.json"));
        clock.set(&mut command);
        Some(NodeUnderTest::start(name, Role::Mix, folder, command, None))
    }

    /// One more node with the keys of another, which goes on running.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn twin(&self, name: &str, of: &NodeUnderTest) -> NodeUnderTest {
        let folder = self.folder.path().join(name);
        let data = folder.join("data");
        fs::create_dir_all(&data).expect("a new folder");
        succeed(
            Command::new("cp")
                .arg("-a")
                .arg(of.folder.join("data/keys"))
                .arg(&data),
        );
        let others = self.nodes.iter().filter(|node| node.id() != of.id());
        let bootstrap = others.flat_map(NodeUnderTest::addresses).collect();
        let config = folder.join("souk.toml");
        let text = self.config(Some(of.role), &folder, bootstrap, None);
        fs::write(&config, text).expect("written");
        let command = node_command(&config, &folder.join("ready.json"));
        NodeUnderTest::start(name, of.role, folder, command, None)
    }

    /// The folder of everything.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn start_node(&self, role: Role, number: usize, host: Option<Host>) -> NodeUnderTest {
        let name = match role {
            Role::Provider => "provider".to_owned(),
            Role::Mix => format!("mix{number}"),
        };
        let folder = self.folder.path().join(&name);
        let config = self.write_config(role, &folder, host.as_ref());
        if role == Role::Provider && self.plan.sells {
            succeed(
                Command::new(programs::souk())
                    .args(["image", "build", "--config"])
                    .arg(&config),
            );
        }
        let mut command = node_command(&config, &folder.join("ready.json"));
        if let Some(host) = &host {
            host.enter(&mut command);
        }
        if let Some(clock) = &self.plan.clock {
            clock.set(&mut command);
        }
        NodeUnderTest::start(&name, role, folder, command, host)
    }

    /// What a node of this network is configured with, for a fixture that runs it by itself.
    #[cfg(feature = "proof")]
    pub(crate) fn provider_config(&self, folder: &Path) -> String {
        let bootstrap = self
            .mixes()
            .iter()
            .flat_map(NodeUnderTest::addresses)
            .collect();
        self.config(Some(Role::Provider), folder, bootstrap, None)
    }

    fn write_config(&self, role: Role, folder: &Path, host: Option<&Host>) -> PathBuf {
        fs::create_dir(folder).expect("a new folder");
        let known = match self.plan.discovery {
            Discovery::Bootstrap => &self.nodes[..],
            Discovery::Line => &self.nodes[self.nodes.len().saturating_sub(1)..],
            Discovery::Mdns => &[],
        };
        let bootstrap = known.iter().flat_map(NodeUnderTest::addresses).collect();
        let config = folder.join("souk.toml");
        let text = self.config(Some(role), folder, bootstrap, host);
        fs::write(&config, text).expect("written");
        config
    }

    fn config(
        &self,
        role: Option<Role>,
        folder: &Path,
        bootstrap: Vec<String>,
        host: Option<&Host>,
    ) -> String {
        let is_shut_in = self.plan.shut_in && role == Some(Role::Provider);
        let host = host.filter(|_| !is_shut_in);
        let ip = host.map_or_else(|| "127.0.0.1".to_owned(), |host| host.address().to_string());
        let roles = match role {
            Some(Role::Provider) if self.plan.sells => r#""provider""#,
            Some(_) => r#""mix", "entry", "relay""#,
            None => "",
        };
        let sells = role == Some(Role::Provider) && self.plan.sells;
        let direct = if self.plan.direct {
            ip.clone()
        } else {
            String::new()
        };
        format!(
            r#"[network]
name = "e2e"
mean_delay_ms = {delay}
test = {test}

[node]
data_dir = {data:?}
roles = [{roles}]
listen = ["/ip4/{ip}/{port}"]
bootstrap = {bootstrap:?}
mdns = {mdns}

[provider]
allow_shared_kernel = {sells}
cpu_millicores = 2000
memory_mib = 1024
disk_mib = 512
checkpoint_s = 10
direct_address = {direct:?}
{policy}

[log]
filter = "debug"

{more}
"#,
            port = if self.plan.quic {
                "udp/0/quic-v1"
            } else {
                "tcp/0"
            },
            mdns = role.is_some() && self.plan.discovery == Discovery::Mdns,
            delay = self.plan.mean_delay_ms,
            test = !self.plan.shut_in,
            policy = self.plan.policy,
            more = role.map_or("", |_| &self.plan.more),
            data = folder.join("data"),
        )
    }
}

impl NodeUnderTest {
    fn start(
        name: &str,
        role: Role,
        folder: PathBuf,
        command: Command,
        host: Option<Host>,
    ) -> Self {
        let instances = Instances::below(&folder);
        let (process, ready) = start_process(name, command, &folder);
        Self {
            process,
            instances,
            role,
            folder,
            ready,
            host,
        }
    }

    /// Its node id in base58.
    ///
    /// # Panics
    /// If the node did not say.
    #[must_use]
    pub fn id(&self) -> &str {
        self.ready["node_id"].as_str().expect("a node id")
    }

    /// What it does.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// Where it is reached, as multiaddresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let list = self.ready["addresses"].as_array().into_iter().flatten();
        list.filter_map(|a| a.as_str().map(str::to_owned)).collect()
    }

    /// The socket of its control API.
    ///
    /// # Panics
    /// If the node did not say.
    #[must_use]
    pub fn control_socket(&self) -> &Path {
        Path::new(self.ready["control_socket"].as_str().expect("a socket"))
    }

    /// Where its metrics are served, as address and port.
    ///
    /// # Panics
    /// If it serves none.
    #[must_use]
    pub fn metrics_address(&self) -> String {
        let url = self.ready["metrics"].as_str().expect("it serves metrics");
        let address = url
            .strip_prefix("http://")
            .and_then(|url| url.split('/').next());
        address.expect("an address").to_owned()
    }

    /// The id of its network.
    ///
    /// # Panics
    /// If the node did not say.
    #[must_use]
    pub fn network_id(&self) -> &str {
        self.ready["network_id"].as_str().expect("a network id")
    }

    /// Its folder: configuration, data, and what it printed.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The host it runs on, where it has one of its own.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn start_again(&mut self, name: &str, program: &Path) {
        assert!(self.process.ended().is_some(), "{name} still runs");
        assert!(self.host.is_none(), "{name} was on a host of its own");
        let ready_file = self.folder.join("ready.json");
        // A node that stopped in order has removed it; one that was killed has not.
        if ready_file.exists() {
            fs::remove_file(&ready_file).expect("it is ours");
        }
        let command = node_command_of(program, &self.folder.join("souk.toml"), &ready_file);
        (self.process, self.ready) = start_process(name, command, &self.folder);
    }

    /// Process ids of the keepers of its instances, whether the node runs or not.
    #[must_use]
    pub fn keepers(&self) -> Vec<u32> {
        self.instances.keepers()
    }

    /// Its process id.
    #[cfg(feature = "proof")]
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Memory that it has in use, in KiB.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        self.process.resident_kib()
    }

    /// Runs a command of the command line against this node, one that prints one JSON value.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let output = succeed(&mut self.souk(args));
        serde_json::from_slice(&output.stdout).expect("one JSON value")
    }

    /// A command of the command line against this node.
    #[must_use]
    pub fn souk(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs::souk());
        command
            .args(args)
            .arg("--config")
            .arg(self.folder.join("souk.toml"));
        command
    }

    /// What `souk status` says; `None` while the node does not answer.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let output = Command::new(programs::souk())
            .args(["status", "--json", "--config"])
            .arg(self.folder.join("souk.toml"))
            .output()
            .ok()?;
        serde_json::from_slice(&output.stdout).ok()
    }

    /// One of the counters of its mix.
    #[must_use]
    pub fn mix_counter(&self, name: &str) -> u64 {
        self.status()
            .and_then(|status| status["mix"][name].as_u64())
            .unwrap_or(0)
    }

    fn knows_cards(&mut self, wanted: usize) {
        let folder = self.folder.clone();
        self.process.until("it knows every card", || {
            let output = Command::new(programs::souk())
                .args(["status", "--json", "--config"])
                .arg(folder.join("souk.toml"))
                .output()
                .ok()?;
            let status: Value = serde_json::from_slice(&output.stdout).ok()?;
            (status["cards"].as_u64()? >= wanted as u64).then_some(())
        });
    }
}

/// Starts a node and waits for what it says when it is ready.
fn start_process(name: &str, command: Command, folder: &Path) -> (Process, Value) {
    let ready_file = folder.join("ready.json");
    let mut process = Process::start(name, command, folder);
    let ready = process.until("it is ready", || {
        serde_json::from_slice(&fs::read(&ready_file).ok()?).ok()
    });
    (process, ready)
}

/// `souk node run` with a configuration.
#[must_use]
pub fn node_command(config: &Path, ready_file: &Path) -> Command {
    node_command_of(&programs::souk(), config, ready_file)
}

/// The same of another build of the program.
pub(crate) fn node_command_of(program: &Path, config: &Path, ready_file: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["node", "run", "--config"])
        .arg(config)
        .arg("--ready-file")
        .arg(ready_file)
        .env("SOUK_AGENT_BIN", programs::agent())
        .env_remove("SOUK_LOG");
    command
}
