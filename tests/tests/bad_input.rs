//! What goes wrong on an operator's machine: each has an error that says what, why, and what to do.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use souk_tests::{
    Clock, Network, Plan, Process, eventually, needs, node_command, skipped, succeed,
};
use tempfile::TempDir;

/// A node that is made but does not run.
struct Made {
    folder: TempDir,
}

impl Made {
    fn new(listen: &str, roles: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        fs::write(
            folder.path().join("souk.toml"),
            format!(
                "[network]\nname = \"e2e\"\nmean_delay_ms = 5\ntest = true\n\n[node]\ndata_dir = \"data\"\nroles = [{roles}]\nlisten = [\"{listen}\"]\n\n[provider]\nallow_shared_kernel = true\ncpu_millicores = 1000\nmemory_mib = 256\ndisk_mib = 64\n"
            ),
        )
        .expect("written");
        Self { folder }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self) -> Command {
        node_command(
            &self.folder.path().join("souk.toml"),
            &self.folder.path().join("ready.json"),
        )
    }

    /// Runs until the node is ready, then stops it.
    fn runs(&self) {
        self.starts_and_stops(self.command());
    }

    /// The same with a command that was changed.
    fn starts_and_stops(&self, command: Command) {
        let ready = self.folder.path().join("ready.json");
        // Left by an earlier run, perhaps.
        let _ = fs::remove_file(&ready);
        let mut process = Process::start("node", command, self.folder.path());
        process.until("it is ready", || ready.exists().then_some(()));
        assert!(process.stop().success(), "{}", process.said());
    }

    /// What it says when it does not start.
    fn refuses(&self, command: Command) -> String {
        let mut process = Process::start("refused", command, self.folder.path());
        let status = process.wait();
        assert!(!status.success(), "it started:\n{}", process.said());
        process
            .said()
            .replace(&*self.folder.path().to_string_lossy(), "DIR")
    }
}

/// A node that waits for something that will not happen by itself says so.
#[test]
fn a_node_that_nobody_can_reach_says_so() {
    let made = Made::new(LOOPBACK, MIX);
    let path = made.folder.path().join("souk.toml");
    let real = fs::read_to_string(&path).expect("there");
    fs::write(&path, real.replace("test = true", "test = false")).expect("written");
    let mut process = Process::start("node", made.command(), made.folder.path());
    let log = process.output().to_owned();
    for told in ["reached from the Internet", "it is not ready"] {
        process.until(told, || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            said.contains(told).then_some(())
        });
    }
    assert!(process.stop().success(), "{}", process.said());
}

const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/0";
const MIX: &str = r#""mix", "entry", "relay""#;
const PROVIDER: &str = r#""provider""#;

fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_port_in_use_is_named_with_what_to_do() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let port = taken.local_addr().expect("bound").port();
    let made = Made::new(&format!("/ip4/127.0.0.1/tcp/{port}"), MIX);
    let said = made.refuses(made.command());
    says(
        &said,
        &[
            &format!("/tcp/{port}"),
            "another program uses this port",
            "souk.toml",
        ],
    );
}

#[test]
fn a_folder_in_use_is_named_with_what_to_do() {
    let made = Made::new(LOOPBACK, MIX);
    let ready = made.folder.path().join("ready.json");
    let mut first = Process::start("first", made.command(), made.folder.path());
    first.until("it is ready", || ready.exists().then_some(()));
    let said = made.refuses(made.command());
    says(
        &said,
        &["another node runs in DIR/data", "data_dir of its own"],
    );
    assert!(first.stop().success());
}

#[test]
fn a_node_starts_again_after_a_power_failure() {
    let made = Made::new(LOOPBACK, MIX);
    let ready = made.folder.path().join("ready.json");
    let mut process = Process::start("node", made.command(), made.folder.path());
    process.until("it is ready", || ready.exists().then_some(()));
    process.kill();
    made.runs();
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let made = Made::new(LOOPBACK, MIX);
    made.runs();
    let key = made.data().join("keys/node.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("opened");
    let said = made.refuses(made.command());
    says(&said, &["DIR/data/keys/node.key", "600"]);
}

#[test]
fn a_damaged_key_is_refused_and_kept() {
    let made = Made::new(LOOPBACK, MIX);
    made.runs();
    let key = made.data().join("keys/node.key");
    fs::write(&key, b"damaged").expect("written");
    let said = made.refuses(made.command());
    says(&said, &["DIR/data/keys/node.key"]);
    assert_eq!(fs::read(&key).expect("kept"), b"damaged");
}

#[test]
fn a_corrupt_store_is_refused_and_kept() {
    needs!(Leases);
    let made = Made::new(LOOPBACK, PROVIDER);
    made.runs();
    let store = find_store(&made.data());
    let mut bytes = fs::read(&store).expect("a store");
    for byte in &mut bytes[..4096] {
        *byte ^= 0x5a;
    }
    fs::write(&store, &bytes).expect("written");
    let said = made.refuses(made.command());
    let name = store
        .file_name()
        .expect("a name")
        .to_string_lossy()
        .into_owned();
    says(&said, &[&name]);
    assert!(
        fs::read(&store).expect("kept") == bytes,
        "the store was overwritten"
    );
}

/// The provider's database.
fn find_store(data: &Path) -> PathBuf {
    let mut open = vec![data.to_owned()];
    while let Some(path) = open.pop() {
        if path.ends_with("images") {
            continue;
        }
        if path.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .expect("readable")
                    .map(|e| e.expect("readable").path()),
            );
        } else if path.extension().is_some_and(|e| e == "redb") {
            return path;
        }
    }
    panic!("no store in {}", data.display());
}

#[test]
fn a_full_disk_is_told_and_nothing_recorded_is_lost_needs_root() {
    needs!(Root, Leases);
    let made = Made::new(LOOPBACK, PROVIDER);
    fs::create_dir(made.data()).expect("made");
    // A disk of its own, which is gone with the process whose mount namespace it is in.
    let mut disk = Command::new("unshare");
    disk.args(["--mount", "sh", "-c"])
        .arg("mount -t tmpfs -o size=16m,mode=700 disk \"$1\" && echo mounted && exec sleep infinity")
        .arg("sh")
        .arg(made.data());
    let mut disk = Process::start("disk", disk, made.folder.path());
    let said = disk.output().to_owned();
    disk.until("the disk is there", || {
        (fs::read(&said).ok()? == b"mounted\n").then_some(())
    });
    let on_disk = PathBuf::from(format!("/proc/{}/root", disk.id()))
        .join(made.data().strip_prefix("/").expect("absolute"));
    let command = || entering(&disk, &made.command());

    let filler = on_disk.join("filler");
    fill(&filler);
    let said = made.refuses(command());
    says(&said, &["No space left on device", "free some space"]);

    fs::remove_file(&filler).expect("removed");
    made.starts_and_stops(command());
    let key = on_disk.join("keys/node.key");
    let before = fs::read(&key).expect("recorded");
    fill(&filler);
    // What it needs for running is there already.
    made.starts_and_stops(command());
    fs::remove_file(filler).expect("removed");
    made.starts_and_stops(command());
    assert!(fs::read(&key).expect("still there") == before);
}

/// The same command in the mount namespace of a process.
fn entering(process: &Process, command: &Command) -> Command {
    let mut entering = Command::new("nsenter");
    entering
        .arg(format!("--mount=/proc/{}/ns/mnt", process.id()))
        .arg(command.get_program())
        .args(command.get_args());
    like(&mut entering, command);
    entering
}

/// Writes until there is no room left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).expect("room for a name");
    for block in [vec![0; 64 * 1024], vec![0; 512], vec![0; 1]] {
        while file.write_all(&block).is_ok() {}
    }
}

#[test]
fn a_configuration_is_explained_by_line() {
    let made = Made::new(LOOPBACK, MIX);
    let path = made.folder.path().join("souk.toml");
    let text = fs::read_to_string(&path).expect("readable");
    fs::write(&path, text.replace("mean_delay_ms", "mean_delay")).expect("written");
    let said = made.refuses(made.command());
    says(&said, &["mean_delay", "mean_delay_ms", "souk.toml"]);
}

#[test]
fn a_missing_user_namespace_is_told_with_the_command_that_allows_it() {
    needs!(Leases);
    let made = Made::new(LOOPBACK, PROVIDER);
    let souk = made.command();
    // A user namespace with a limit of none below it is a machine that allows none.
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"")
        .arg("sh")
        .arg(souk.get_program())
        .args(souk.get_args());
    like(&mut command, &souk);
    let said = made.refuses(command);
    says(
        &said,
        &[
            "refuses the namespaces",
            "sysctl -w user.max_user_namespaces=",
        ],
    );
}

/// Gives a command the environment of another.
fn like(command: &mut Command, other: &Command) {
    for (name, value) in other.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
}

#[test]
fn a_clock_that_is_wrong_by_hours_is_told() {
    let network = Network::start(&Plan {
        mixes: 3,
        sells: false,
        ..Plan::default()
    });
    // Behind, every card is from the future; ahead by more than a card lives, every one is over.
    for (name, by_s, side) in [
        ("late", -6 * 3600, "behind"),
        ("early", 13 * 3600, "ahead of"),
    ] {
        let Some(node) = network.node_with_clock(name, by_s) else {
            return skipped("needs a C compiler");
        };
        let told = format!("the clock of this machine seems to be {side}");
        eventually("the wrong clock is told", || {
            let status = node.status()?;
            let warnings = status["warnings"].as_array()?;
            warnings
                .iter()
                .any(|warning| warning.as_str().is_some_and(|said| said.contains(&told)))
                .then_some(())
        });
        // A requester is told at once, and not that nobody sells.
        let requester = network.requester(&format!("requester-{name}"), None);
        let clock = Clock::ahead_by(by_s, requester.folder()).expect("as for the node");
        let mut market = requester.souk(&["market", "--json"]);
        clock.set(&mut market);
        let output = market.output().expect("souk starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "EX_UNAVAILABLE: {said}");
        let told = format!("{side} the network");
        says(&said, &["this machine's clock seems", &told, "NTP"]);
    }
}

#[test]
fn two_nodes_with_the_same_keys_are_told_by_both() {
    let network = Network::start(&Plan {
        mixes: 3,
        sells: false,
        ..Plan::default()
    });
    let first = network.mixes().last().expect("a mix");
    let second = network.twin("twin", first);
    assert_eq!(first.id(), second.id());
    for node in [first, &second] {
        eventually("the other node is told", || {
            let warnings = node.status()?["warnings"].to_string();
            warnings
                .contains("another node runs with the keys of this one")
                .then_some(())
        });
        let metrics = succeed(&mut node.souk(&["node", "metrics"]));
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        assert!(metrics.contains("souk_keys_elsewhere 1"), "{metrics}");
        // A snapshot may be one that was made a moment ago.
        eventually("the doctor finds it", || {
            let found = node.souk(&["doctor", "--json"]).output().expect("it runs");
            let report: Value = serde_json::from_slice(&found.stdout).expect("a report");
            let mut findings = report["findings"].as_array()?.iter();
            let card = findings.find(|finding| finding["check"] == "card")?;
            (card["state"] == "bad" && found.status.code() == Some(1)).then_some(())
        });
    }
    let metrics = succeed(&mut network.mixes()[0].souk(&["node", "metrics"]));
    let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
    assert!(metrics.contains("souk_keys_elsewhere 0"), "{metrics}");
}
