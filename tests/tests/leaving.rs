//! How a provider stops: for an update, for a while, and for ever.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use serde_json::Value;
use souk_tests::{Network, NodeUnderTest, Plan, Rented, Requester, eventually, needs, succeed};

/// Whether this node sees an offer of the provider.
fn offers(node: &NodeUnderTest, provider: &str) -> bool {
    let shown = node.json(&["node", "market", "--json"]);
    let mut all = shown.as_array().into_iter().flatten();
    all.any(|offer| offer["provider"] == provider)
}

/// A shell in a lease that stays open.
struct Shell {
    ssh: Child,
    said: BufReader<ChildStdout>,
}

impl Shell {
    /// Logs in as the configuration says that `souk rent` has written: over a relay, or at the provider's port.
    fn as_rented(requester: &Requester, lease: &Rented) -> Self {
        let mut ssh = requester.openssh("ssh", &lease.ssh_config());
        ssh.args([lease.alias(), "cat"]);
        Self::start(ssh)
    }

    /// Logs in straight at the instance's own listener, without the node in between: as whoever has a way to it that does not
    /// lead through the node.
    fn at_the_instance(requester: &Requester, lease: &Rented, port: u64) -> Self {
        let mut ssh = requester.openssh("ssh", &lease.ssh_config());
        ssh.args(["-o", "ProxyCommand=none", "-o", "HostName=127.0.0.1"])
            .args(["-p", &port.to_string(), lease.alias(), "cat"]);
        Self::start(ssh)
    }

    fn start(mut ssh: Command) -> Self {
        let mut ssh = ssh
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh runs");
        let said = BufReader::new(ssh.stdout.take().expect("piped"));
        Self { ssh, said }
    }

    /// Says something, and hears it back.
    fn echoes(&mut self, line: &str) {
        let input = self.ssh.stdin.as_mut().expect("piped");
        writeln!(input, "{line}").expect("the session stands");
        let mut heard = String::new();
        self.said.read_line(&mut heard).expect("the session stands");
        assert_eq!(heard.trim_end(), line);
    }
}

impl Shell {
    /// Is told that its instance is gone.
    fn ends(mut self) {
        eventually("the session ends with the lease", || {
            self.ssh.try_wait().expect("ssh ran")
        });
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

/// The port of a lease's instance on the loopback, as the driver wrote it down.
fn port_of(provider: &NodeUnderTest, lease: &Rented) -> u64 {
    let intent = provider
        .folder()
        .join("data/leases")
        .join(lease.lease())
        .join("intent");
    let launch: Value = serde_json::from_slice(&fs::read(intent).expect("there")).expect("JSON");
    launch["port"].as_u64().expect("a port")
}

#[test]
fn a_newer_program_adopts_what_runs_and_sessions_never_notice() {
    needs!(Leases, OpenSsh);
    let mut network = Network::start(&Plan {
        direct: true,
        ..Plan::default()
    });
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    let direct = requester.rent(&["--direct"]);
    let keepers = network.provider().keepers();
    assert_eq!(keepers.len(), 2);
    let port = port_of(network.provider(), &lease);
    let mut shell = Shell::at_the_instance(&requester, &lease, port);
    shell.echoes("before");
    let mut relayed = Shell::as_rented(&requester, &lease);
    relayed.echoes("before, over a relay");
    let mut at_port = Shell::as_rented(&requester, &direct);
    at_port.echoes("before, at the provider's port");

    let stopped = network.provider_mut().process().stop();
    assert!(stopped.success(), "{stopped}");
    shell.echoes("without a node");
    let newer = network.folder().join("souk-newer");
    fs::copy(souk_tests::souk(), &newer).expect("copied");
    network.start_provider_again_as("newer", &newer);
    shell.echoes("after");
    relayed.echoes("after, over a relay");
    at_port.echoes("after, at the provider's port");
    network.provider_mut().process().kill();
    network.start_provider_again_as("killed", &newer);
    relayed.echoes("after it was killed as well");
    at_port.echoes("after it was killed as well");
    assert_eq!(network.provider().keepers(), keepers);

    let said = requester.exec(&lease, "echo over the relay again");
    assert_eq!(said.stdout, b"over the relay again\n");
    let said = requester.exec(&direct, "echo at the port again");
    assert_eq!(said.stdout, b"at the port again\n");
    let orphans = network.provider().json(&["leases", "--orphans", "--json"]);
    assert_eq!(
        orphans["orphans"].as_array().map(Vec::len),
        Some(0),
        "{orphans}"
    );
    for (lease, shell) in [(lease.lease(), relayed), (direct.lease(), at_port)] {
        let ended = requester.json(&["end", "--json", lease]);
        assert_eq!(ended["proof_verified"], true, "{ended}");
        shell.ends();
    }
    let verified = requester.json(&["log", "verify", "--json", lease.text("provider")]);
    assert_eq!(verified["size"], 2, "one entry each: {verified}");
}

#[test]
fn a_drain_survives_a_restart_ends_what_is_left_and_can_be_taken_back() {
    needs!(Leases, OpenSsh);
    let mut network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    let id = network.provider().id().to_owned();
    assert!(offers(&network.mixes()[0], &id));

    let draining = network
        .provider()
        .json(&["node", "drain", "--no-wait", "--json"]);
    assert_eq!(draining["standing"], "draining", "{draining}");
    assert_eq!(draining["open_leases"], 1, "{draining}");
    eventually("nothing is on offer", || {
        (!offers(&network.mixes()[0], &id)).then_some(())
    });

    network.provider_mut().process().stop();
    network.start_provider_again("again");
    let status = network.provider().status().expect("it answers");
    assert_eq!(status["standing"], "draining", "{status}");
    let said = requester.exec(&lease, "echo here");
    assert_eq!(said.stdout, b"here\n", "an open lease goes on");

    let drained = network
        .provider()
        .json(&["node", "drain", "--deadline", "1s", "--json"]);
    assert_eq!(drained["open_leases"], 0, "{drained}");
    assert_eq!(network.provider().keepers(), [] as [u32; 0]);
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["usage"]["outcome"], "ended-by-provider", "{ended}");
    assert_eq!(ended["proof_verified"], true, "{ended}");

    let open = network.provider().json(&["node", "resume", "--json"]);
    assert_eq!(open["standing"], "open", "{open}");
    let again = network
        .provider()
        .souk(&["node", "resume"])
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("nothing to resume"), "{said}");
    eventually("it is on offer again", || {
        offers(&network.mixes()[0], &id).then_some(())
    });
}

#[test]
fn a_node_that_retires_names_its_heir_and_is_gone_for_everybody() {
    needs!(Leases);
    let mut network = Network::start(&Plan::default());
    let id = network.provider().id().to_owned();
    let heir = &network.mixes()[0];
    let agreement = network.folder().join("agreement.bin");
    let file = agreement.to_str().expect("UTF-8").to_owned();
    succeed(&mut heir.souk(&["node", "succeed", &id, "--out", &file]));

    let unasked = network
        .provider()
        .souk(&["node", "retire"])
        .stdin(Stdio::null())
        .output();
    let said = String::from_utf8_lossy(&unasked.expect("runs").stderr).into_owned();
    assert!(
        said.contains("cannot be taken back") && said.contains("--yes"),
        "{said}"
    );
    let retire = |successor: &str| {
        let args = [
            "node",
            "retire",
            "--yes",
            "--json",
            "--agreement",
            &file,
            "--successor",
        ];
        network
            .provider()
            .souk(&[&args[..], &[successor]].concat())
            .output()
            .expect("runs")
    };
    let other = retire(network.mixes()[1].id());
    assert!(
        !other.status.success(),
        "another heir than the one that signed"
    );
    assert_eq!(
        network.provider().status().expect("answers")["standing"],
        "open"
    );
    let retired = retire(heir.id());
    let said: Value = serde_json::from_slice(&retired.stdout).expect("one JSON object");
    assert_eq!(said["standing"], "retired", "{said}");

    for mix in network.mixes() {
        eventually("its card is gone", || (!offers(mix, &id)).then_some(()));
    }
    network.provider_mut().process().stop();
    network.start_provider_again("again");
    let status = network.provider().status().expect("it answers");
    assert_eq!(status["standing"], "retired", "{status}");
    let resumed = network
        .provider()
        .souk(&["node", "resume"])
        .output()
        .expect("runs");
    assert!(!resumed.status.success(), "retirement is for ever");
    assert!(Path::new(&agreement).exists());
}
