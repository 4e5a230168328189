//! The same with the real agent and the system's OpenSSH client. `cargo xtask test` builds the agent and sets
//! `SOUK_AGENT_BIN`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use souk_backend::{Backend, Instance, SshPublicKey};

use crate::common::{Fixture, for_both_users};

for_both_users!(
    openssh_logs_in_and_only_with_the_key_of_the_lease,
    the_real_agent_survives_its_tenant,
    what_the_real_agent_sends_is_measured,
);

/// An instance with the real agent, and an OpenSSH client for it.
struct Login {
    fixture: Fixture,
    instance: Instance,
}

impl Login {
    fn new() -> Option<Self> {
        let Some(agent) = std::env::var_os("SOUK_AGENT_BIN") else {
            eprintln!("skipped: SOUK_AGENT_BIN is not set");
            return None;
        };
        if Command::new("ssh").arg("-V").output().is_err() {
            eprintln!("skipped: needs OpenSSH");
            return None;
        }
        let fixture = Fixture::with(PathBuf::from(agent), true);
        let key = keygen(&fixture.folder.path().join("key"));
        let mut spec = fixture.spec();
        spec.authorized_key = key;
        let instance = fixture.provision(&spec).expect("provisioned");
        let known = format!(
            "[127.0.0.1]:{} ssh-ed25519 {}\n",
            instance.ssh.port(),
            STANDARD.encode(blob(&instance.host_key.0))
        );
        fs::write(fixture.folder.path().join("known"), known).expect("a file");
        Some(Self { fixture, instance })
    }

    fn ssh(&self, key: &str, options: &[&str], command: &str) -> Output {
        let file = |name| self.fixture.folder.path().join(name).display().to_string();
        Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
            ])
            .args(["-o", &format!("UserKnownHostsFile={}", file("known"))])
            .args([
                "-o",
                "GlobalKnownHostsFile=none",
                "-o",
                "IdentityAgent=none",
            ])
            .args([
                "-i",
                &file(key),
                "-p",
                &self.instance.ssh.port().to_string(),
            ])
            .args(options)
            .arg(format!("{}@127.0.0.1", self.instance.user))
            .arg(command)
            .stdin(Stdio::null())
            .output()
            .expect("the system's ssh")
    }

    fn run(&self, command: &str) -> String {
        let output = self.ssh("key", &[], command);
        let text = String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {text} {errors}");
        text
    }
}

impl Drop for Login {
    fn drop(&mut self) {
        let end = self.fixture.sandbox.terminate(self.instance.lease);
        let ended = self.fixture.runtime.block_on(end);
        if !std::thread::panicking() {
            ended.expect("terminated");
        }
    }
}

/// Makes a key pair and returns its public half.
fn keygen(path: &Path) -> SshPublicKey {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(path)
        .status();
    assert!(made.expect("ssh-keygen").success());
    let line = fs::read_to_string(path.with_extension("pub")).expect("the public half");
    let encoded = line.split(' ').nth(1).expect("kind and key").trim();
    let blob = STANDARD.decode(encoded).expect("base64");
    SshPublicKey(blob[blob.len() - 32..].try_into().expect("32 bytes"))
}

/// A public key on the wire (RFC 8709, section 4).
fn blob(key: &[u8; 32]) -> Vec<u8> {
    let field = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
        [&length, bytes].concat()
    };
    [field(b"ssh-ed25519"), field(key)].concat()
}

fn openssh_logs_in_and_only_with_the_key_of_the_lease(_: &Fixture) {
    let Some(login) = Login::new() else { return };
    assert_eq!(
        login.run("id -u; uname -n; echo $HOME"),
        "1000\nsouk\n/home/souk"
    );
    assert_eq!(login.ssh("key", &[], "exit 7").status.code(), Some(7));
    let terminal = login.ssh("key", &["-tt"], "test -t 0 && tty");
    assert!(
        String::from_utf8_lossy(&terminal.stdout).contains("/dev/pts/"),
        "{terminal:?}"
    );
    keygen(&login.fixture.folder.path().join("other"));
    assert_eq!(login.ssh("other", &[], "true").status.code(), Some(255));
}

fn the_real_agent_survives_its_tenant(_: &Fixture) {
    let Some(login) = Login::new() else { return };
    login.run("attack signals 10000 & for i in 1 2 3 4 5 6 7 8; do echo; done; wait");
    login.run("kill -KILL 1; kill -STOP 1; true");
    login.ssh("key", &[], "kill -KILL -1");
    assert_eq!(login.run("echo well"), "well");
    let files = login.run("attack agent-files");
    assert!(
        files.lines().all(|line| line.ends_with(" closed")),
        "{files}"
    );
    let status = login.run("cat /proc/self/status");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        let empty = format!("{set}\t{}", "0".repeat(16));
        assert!(status.contains(&empty), "{set}: {status}");
    }
    assert_eq!(login.run("exec ls /proc/self/fd"), "0\n1\n2\n3");
    login.run("attack forks 300; attack files 20000; rm -rf /tmp/file-*");
    login.ssh("key", &[], "attack memory 200");
    assert_eq!(login.run("echo well"), "well");
}

fn what_the_real_agent_sends_is_measured(_: &Fixture) {
    let Some(login) = Login::new() else { return };
    login.run("head -c 1000000 /dev/zero");
    let last = login.fixture.sandbox.terminate(login.instance.lease);
    let usage = login
        .fixture
        .runtime
        .block_on(last)
        .expect("terminated")
        .usage;
    let sent = usage.net_tx_bytes.known().expect("known");
    assert!((1_000_000..1_200_000).contains(&sent), "{usage:?}");
    assert!(
        usage.net_rx_bytes.known().expect("known") > 500,
        "{usage:?}"
    );
    assert!(usage.cpu_core_ms.known().expect("known") > 0, "{usage:?}");
}
