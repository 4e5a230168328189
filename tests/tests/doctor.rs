//! `souk doctor` at real nodes, each broken in one way: the broken thing is found by its name, and nothing else is.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use souk_tests::{
    Network, NodeUnderTest, Plan, eventually, eventually_or_why, needs, skipped, souk, succeed,
};

/// Names of checks that found something, with how grave it is: `bad` or `note`.
type Found = BTreeSet<(String, String)>;

fn found(report: &Value) -> Found {
    let findings = report["findings"].as_array().expect("findings");
    let told = findings.iter().filter(|finding| finding["state"] != "fine");
    told.map(|finding| {
        let text = |field: &str| finding[field].as_str().expect("text").to_owned();
        assert!(
            !text("why").is_empty() && !text("fix").is_empty(),
            "{finding}"
        );
        (text("check"), text("state"))
    })
    .collect()
}

fn one(check: &str, state: &str) -> Found {
    BTreeSet::from([(check.to_owned(), state.to_owned())])
}

/// What the doctor says under a configuration, inside of another command where there is one.
fn examined(within: &[&str], config: &Path) -> Value {
    let mut words = within.iter().map(OsString::from).chain([souk().into()]);
    let mut command = Command::new(words.next().expect("at least souk"));
    command.args(words);
    command.args(["doctor", "--json", "--config"]).arg(config);
    reported(&mut command)
}

/// What a doctor says who judges the node by a policy, of that alone.
fn judged(config: &Path, policy: &Path) -> Value {
    let mut command = Command::new(souk());
    command.args(["doctor", "--json", "--config"]).arg(config);
    let report = reported(command.arg("--policy").arg(policy));
    let mut findings = report["findings"].as_array().into_iter().flatten();
    let finding = findings.find(|finding| finding["check"] == "evidence");
    finding.unwrap_or_else(|| panic!("{report}")).clone()
}

fn reported(command: &mut Command) -> Value {
    let output = command.output().expect("it runs");
    let report = serde_json::from_slice(&output.stdout);
    let report: Value = report.unwrap_or_else(|error| panic!("{command:?}: {error}: {output:?}"));
    let is_bad = report["bad"].as_u64().expect("a number") > 0;
    assert_eq!(output.status.success(), !is_bad, "{report}");
    report
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("ours");
}

/// Replaces a line of a configuration, whole.
fn with_line(config: &str, key: &str, line: &str) -> String {
    let is_it = |old: &&str| old.starts_with(&format!("{key} = "));
    let old = config.lines().find(is_it).expect("the key is there");
    config.replacen(old, line, 1)
}

/// A node that has ended, and its configuration.
struct Ended {
    folder: PathBuf,
    config: String,
    healthy: Found,
}

impl Ended {
    /// The provider of a network without mixes, and what the doctor finds of it inside of another command.
    fn within(command: &[&str]) -> (Network, Self) {
        let mut network = Network::start(&Plan {
            mixes: 0,
            ..Plan::default()
        });
        network.provider_mut().process().stop();
        let folder = network.provider().folder().to_owned();
        let file = folder.join("souk.toml");
        let node = Self {
            config: fs::read_to_string(&file).expect("it has one"),
            healthy: found(&examined(command, &file)),
            folder,
        };
        (network, node)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// What the doctor finds beyond what it finds of every node that does not run.
    fn finds(&self, within: &[&str], config: &str) -> Found {
        let file = self.folder.join("broken.toml");
        fs::write(&file, config).expect("written");
        let report = examined(within, &file);
        &found(&report) - &self.healthy
    }
}

#[test]
fn what_is_broken_on_the_machine_of_a_node_that_does_not_start_is_found_by_its_name() {
    needs!(Leases);
    let (_network, node) = Ended::within(&[]);
    let is_down = ("node".to_owned(), "bad".to_owned());
    assert!(node.healthy.contains(&is_down), "{:?}", node.healthy);

    let broken = with_line(&node.config, "roles", "roles = [\"provder\"]");
    assert_eq!(node.finds(&[], &broken), one("configuration", "bad"));

    chmod(&node.data(), 0o777);
    assert_eq!(node.finds(&[], &node.config), one("data folder", "bad"));
    chmod(&node.data(), 0o700);

    let key = node.data().join("keys/node.key");
    chmod(&key, 0o644);
    assert_eq!(node.finds(&[], &node.config), one("keys", "bad"));
    chmod(&key, 0o600);

    let tsm = node.folder.join("no-tsm");
    let evidence = format!("[evidence]\nsource = \"configfs-tsm\"\ntsm_folder = {tsm:?}\n");
    let broken = format!("{}\n{evidence}", node.config);
    assert_eq!(node.finds(&[], &broken), one("TEE", "bad"));

    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let listen = format!("listen = [\"/ip4/127.0.0.1/tcp/{port}\"]");
    let broken = with_line(&node.config, "listen", &listen);
    assert_eq!(node.finds(&[], &broken), one("port", "bad"));
    drop(taken);

    let few = ["sh", "-c", "ulimit -n 256; exec \"$0\" \"$@\""];
    assert_eq!(node.finds(&few, &node.config), one("open files", "bad"));
}

#[test]
fn a_machine_without_room_or_namespaces_is_found_needs_userns() {
    needs!(Leases);
    let as_root = ["unshare", "--map-root-user", "--mount", "sh", "-c"];
    let after = |script: &str| format!("{script} && exec \"$0\" \"$@\"");
    let healthy = after("true");
    let mut within = as_root.to_vec();
    within.push(&healthy);
    let (_network, node) = Ended::within(&within);
    let small = node.folder.join("small");
    fs::create_dir(&small).expect("a new folder");

    let finds = |script: &str, config: &str| {
        let script = after(script);
        let mut within = as_root.to_vec();
        within.push(&script);
        node.finds(&within, config)
    };
    let mount = format!("mount -t tmpfs -o size=16m,mode=0700 small {small:?}");
    let broken = with_line(&node.config, "data_dir", &format!("data_dir = {small:?}"));
    assert_eq!(finds(&mount, &broken), one("disk", "bad"));

    let none = "echo 0 > /proc/sys/user/max_user_namespaces";
    assert_eq!(finds(none, &node.config), one("sandbox", "bad"));
}

/// A provider that is told of the others when it starts, so that it can ask them.
struct Running {
    network: Network,
    healthy: Found,
}

impl Running {
    fn start(plan: &Plan) -> Self {
        let mut network = Network::start(plan);
        let config = network.provider().folder().join("souk.toml");
        eventually("the mixes, which were told of it, have dialled it", || {
            let has = found(&examined(&[], &config));
            (!has.contains(&("reachable".to_owned(), "note".to_owned()))).then_some(())
        });
        network.provider_mut().process().stop();
        network.start_provider_again("healthy");
        let healthy = eventually("nothing bad is found at a healthy provider", || {
            let report = examined(&[], &config);
            (report["bad"] == 0).then(|| found(&report))
        });
        Self { network, healthy }
    }

    fn provider(&self) -> &NodeUnderTest {
        self.network.provider()
    }

    /// Looks until the doctor finds just this beyond what it finds of the healthy node.
    fn comes_to(&self, wanted: &Found) {
        let config = self.provider().folder().join("souk.toml");
        eventually_or_why(&format!("{wanted:?} and nothing else is found"), || {
            let report = examined(&[], &config);
            let finds = &found(&report) - &self.healthy;
            (finds == *wanted).then_some(()).ok_or(report)
        });
    }

    fn does(&self, args: &[&str]) {
        succeed(&mut self.provider().souk(args));
    }

    /// Starts the provider again with a configuration that was changed.
    fn starts_with(&mut self, name: &str, edit: impl FnOnce(&str) -> String) {
        self.network.provider_mut().process().stop();
        self.network.start_provider_again_with(name, edit);
    }
}

#[test]
fn what_is_broken_at_a_running_provider_is_found_by_its_name_and_gone_when_it_is_mended() {
    needs!(Leases);
    let node = Running::start(&Plan {
        mixes: 3,
        ..Plan::default()
    });
    let healthy = Found::new();

    node.does(&["node", "pause", "sandbox"]);
    node.comes_to(&one("backends", "note"));
    node.does(&["node", "unpause", "sandbox"]);
    node.comes_to(&healthy);

    node.does(&["node", "drain", "--no-wait"]);
    // What takes no leases offers nothing.
    node.comes_to(&(&one("warning", "bad") | &one("offer", "bad")));
    node.does(&["node", "resume"]);
    node.comes_to(&healthy);

    let requester = node.network.requester("requester", None);
    let rent = ["rent", "--json", "--duration-s", "600"];
    let whole = ["--cpu-millicores", "2000", "--memory-mib", "1024"];
    let rented = requester.json(&[&rent[..], &whole].concat());
    let lease = rented["lease"].as_str().expect("a lease");
    let full = &node.healthy - &one("requests", "note");
    let config = node.provider().folder().join("souk.toml");
    let report = examined(&[], &config);
    assert_eq!(found(&report), &full | &one("room", "note"), "{report}");
    let _ = requester.json(&["end", "--json", lease]);
    node.comes_to(&healthy);

    // Nobody can be asked, and those that can do not answer.
    let config = fs::read_to_string(&config).expect("it has one");
    let looking = node.provider().folder().join("looking.toml");
    let dead = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = dead.local_addr().expect("bound").port();
    drop(dead);
    let id = node.network.mixes()[0].id();
    let nowhere = format!("bootstrap = [\"/ip4/127.0.0.1/tcp/{port}/p2p/{id}\"]");
    for (line, state) in [("bootstrap = []", "note"), (&nowhere, "bad")] {
        fs::write(&looking, with_line(&config, "bootstrap", line)).expect("written");
        let report = examined(&[], &looking);
        let finds = &found(&report) - &node.healthy;
        assert_eq!(finds, one("seen by others", state), "{report}");
    }
}

#[test]
fn a_provider_that_says_no_more_often_than_yes_is_told_so_and_why() {
    needs!(Leases);
    let node = Running::start(&Plan {
        mixes: 3,
        policy: "anonymous_max_leases = 1".to_owned(),
        ..Plan::default()
    });
    let requester = node.network.requester("requester", None);
    let _ = requester.rent(&[]);
    let another = "rent --json --duration-s 600 --cpu-millicores 500 --memory-mib 320";
    let another: Vec<_> = another.split(' ').collect();
    for _ in 0..2 {
        let output = requester.souk(&another).output().expect("it runs");
        assert!(!output.status.success(), "there is one place: {output:?}");
    }
    let config = node.provider().folder().join("souk.toml");
    let wanted = &one("room", "note") | &one("requests", "note");
    eventually_or_why("it is full, and says no for that reason", || {
        let report = examined(&[], &config);
        let mut findings = report["findings"].as_array().expect("findings").iter();
        let requests = findings.find(|finding| finding["check"] == "requests");
        let what = requests.and_then(|finding| finding["what"].as_str());
        let is_why = what.is_some_and(|what| what.contains("anonymous-concurrent"));
        let is_it = is_why && wanted.is_subset(&found(&report));
        is_it.then_some(()).ok_or(report)
    });
}

#[test]
fn what_is_wrong_in_how_a_provider_is_configured_is_found_once_it_runs() {
    needs!(Leases);
    let folder = tempfile::TempDir::new().expect("a folder");
    let mut node = Running::start(&Plan {
        mixes: 2,
        ..Plan::default()
    });

    let key = folder.path().join("issuer.key");
    let issuer = succeed(
        Command::new(souk())
            .args(["issuer", "key", "new"])
            .arg(&key),
    );
    let issuer = String::from_utf8(issuer.stdout).expect("text");
    let issuer = issuer.trim().to_owned();
    node.starts_with("for few", |config| {
        let policy = format!("checkpoint_s = 10\nanonymous = false\nissuers = [{issuer:?}]");
        with_line(config, "checkpoint_s", &policy)
    });
    node.comes_to(&one("offer", "note"));

    let (own, foreign) = (folder.path().join("own"), folder.path().join("foreign"));
    for minted in [&own, &foreign] {
        succeed(Command::new(souk()).args(["attest", "mint"]).arg(minted));
    }
    let attested = |config: &str, minted: &Path| {
        let (root, policy) = (own.join("root.key"), minted.join("policy.toml"));
        let evidence = format!("source = \"test\"\ntest_root = {root:?}\npolicy = {policy:?}");
        format!("{config}\n[evidence]\n{evidence}\n")
    };
    node.starts_with("attested", |config| attested(config, &own));
    node.comes_to(&Found::new());
    let config = node.provider().folder().join("souk.toml");
    eventually_or_why("its own policy accepts it", || {
        let finding = judged(&config, &own.join("policy.toml"));
        (finding["state"] == "fine").then_some(()).ok_or(finding)
    });
    let finding = judged(&config, &foreign.join("policy.toml"));
    let what = finding["what"].as_str().unwrap_or_default();
    assert!(
        finding["state"] == "bad" && what.contains("refuses this node: "),
        "{finding}"
    );

    node.starts_with("refused", |config| attested(config, &foreign));
    node.comes_to(&one("warning", "bad"));

    let images = node.provider().folder().join("data/images");
    let away = node.provider().folder().join("away");
    fs::create_dir(&away).expect("a new folder");
    let image = fs::read_dir(&images).expect("images").flatten();
    let image = image.map(|entry| entry.file_name());
    let image: Vec<_> = image.filter(|name| name.len() == 64).collect();
    let [image] = &image[..] else {
        panic!("one image was made: {image:?}");
    };
    fs::rename(images.join(image), away.join(image)).expect("moved");
    node.starts_with("without image", str::to_owned);
    node.comes_to(&one("offer", "bad"));
    fs::rename(away.join(image), images.join(image)).expect("moved back");
    node.starts_with("with image", str::to_owned);
    node.comes_to(&Found::new());

    let other = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = other.local_addr().expect("bound").port();
    drop(other);
    node.starts_with("elsewhere", |config| {
        let external = format!("external = [\"/ip4/127.0.0.1/tcp/{port}\"]");
        let listen = config.lines().find(|line| line.starts_with("listen = "));
        let listen = listen.expect("it listens");
        with_line(config, "listen", &format!("{listen}\n{external}"))
    });
    // That nobody dialled it is so after each start at which it dials the others.
    node.comes_to(&one("addresses", "bad"));

    let mut rest = Vec::new();
    for (name, by_s) in [("late", -900), ("early", 900)] {
        let Some(mix) = node.network.node_with_clock(name, by_s) else {
            return skipped("needs a C compiler");
        };
        let config = mix.folder().join("souk.toml");
        eventually("the wrong clock is found", || {
            let report = examined(&[], &config);
            let findings = report["findings"].as_array()?;
            let is_it = |finding: &&Value| {
                let what = finding["what"].as_str().unwrap_or_default();
                finding["check"] == "warning" && what.contains("the clock of this machine")
            };
            findings.iter().find(is_it).map(drop)
        });
        rest.push(mix);
    }
}

#[test]
fn a_provider_whose_network_is_gone_is_told_so() {
    needs!(Leases);
    let mut node = Running::start(&Plan {
        mixes: 2,
        ..Plan::default()
    });
    node.network.stop_mixes();
    let config = node.provider().folder().join("souk.toml");
    eventually("it is alone", || {
        let finds = found(&examined(&[], &config));
        let wanted = [
            ("peers", "bad"),
            ("warning", "bad"),
            ("seen by others", "bad"),
        ];
        wanted
            .iter()
            .all(|(check, state)| one(check, state).is_subset(&finds))
            .then_some(())
    });
}
