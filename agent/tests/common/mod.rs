//! The real agent on a loopback listener, outside of any sandbox, and the real OpenSSH client.

#![allow(dead_code, reason = "each test file uses its own part of this fixture")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{PermissionsExt as _, chown},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use souk_backend::{
    HostKey, LeaseId, SshPublicKey,
    agent::{AGENT_ARG, AgentConfig, AgentMessage, CONFIG_FD, TenantIds},
};
use tempfile::TempDir;

/// How long anything may take before a test gives up; nothing passes by waiting.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const LISTENER_FD: i32 = 4;
const CONTROL_FD: i32 = 5;

/// A running agent with a home of its own and a key that may log in.
pub(crate) struct Agent {
    process: Child,
    control: BufReader<UnixStream>,
    address: SocketAddr,
    host_key: HostKey,
    dir: TempDir,
}

/// Details of a start that most tests leave alone.
pub(crate) struct Start {
    pub(crate) lease_s: u64,
    pub(crate) standard_streams: bool,
    pub(crate) switch_to: Option<TenantIds>,
}

impl Default for Start {
    fn default() -> Self {
        Self {
            lease_s: 3600,
            standard_streams: true,
            switch_to: None,
        }
    }
}

impl Agent {
    /// `None`, and a word of it, on a machine without OpenSSH: the key of the lease is made with it.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&Start::default())
    }

    pub(crate) fn start_with(start: &Start) -> Option<Self> {
        if Command::new("ssh").arg("-V").output().is_err() {
            skipped("needs OpenSSH");
            return None;
        }
        let dir = TempDir::new().expect("a temporary directory");
        let home = dir.path().join("home");
        fs::create_dir(&home).expect("a home");
        if let Some(ids) = start.switch_to {
            chown(&home, Some(ids.uid), Some(ids.gid)).expect("given away");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("passable");
        }
        let authorized_key = make_key(&dir.path().join("id"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
        let address = listener.local_addr().expect("bound");
        let (control, theirs) = UnixStream::pair().expect("a control stream");
        control.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let config = AgentConfig {
            lease: LeaseId([7; 16]),
            authorized_key,
            user: "souk".to_owned(),
            home: home.to_str().expect("UTF-8").to_owned(),
            switch_to: start.switch_to,
            valid_to_unix_s: now_s() + start.lease_s,
            listener_fd: LISTENER_FD,
            control_fd: CONTROL_FD,
        };
        let process = spawn(&config, &listener, &theirs.into(), start.standard_streams);
        let mut agent = Self {
            process,
            control: BufReader::new(control),
            address,
            host_key: HostKey([0; 32]),
            dir,
        };
        match agent.message() {
            Some(AgentMessage::Ready { host_key }) => agent.host_key = host_key,
            other => panic!("expected readiness, got {other:?}"),
        }
        agent.write_known_hosts();
        Some(agent)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn host_key(&self) -> HostKey {
        self.host_key
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    pub(crate) fn identity(&self) -> PathBuf {
        self.dir.path().join("id")
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).expect("a pid")
    }

    /// The next message on the control descriptor; `None` when the agent is gone.
    pub(crate) fn message(&mut self) -> Option<AgentMessage> {
        let mut line = String::new();
        match self.control.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("a message")),
            Err(error) => panic!("no message: {error}"),
        }
    }

    /// Drops the driver's side of the control descriptor, as a node that died would.
    pub(crate) fn forget_control(&mut self) {
        let (gone, _) = UnixStream::pair().expect("a pair");
        self.control = BufReader::new(gone);
    }

    /// Waits for the agent to end by itself.
    pub(crate) fn wait(&mut self) -> std::process::ExitStatus {
        self.process.wait().expect("the agent ends")
    }

    /// An OpenSSH program with the options that a requester's written configuration has.
    pub(crate) fn openssh(&self, program: &str) -> Command {
        self.openssh_at(program, self.address.port())
    }

    /// The same where something that leads to the agent listens on `port`.
    pub(crate) fn openssh_at(&self, program: &str, port: u16) -> Command {
        let mut command = Command::new(program);
        for option in [
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "StrictHostKeyChecking=yes".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            "ConnectTimeout=30".to_owned(),
            format!(
                "UserKnownHostsFile={}",
                self.dir.path().join("known_hosts").display()
            ),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            format!("HostKeyAlias=[127.0.0.1]:{}", self.address.port()),
        ] {
            command.args(["-o", &option]);
        }
        command.args(["-F", "/dev/null"]);
        command.arg(if program == "ssh" { "-p" } else { "-P" });
        command.arg(port.to_string());
        command.arg("-i").arg(self.identity());
        command
    }

    /// `ssh` up to and with the destination; the command to run is still missing.
    pub(crate) fn ssh(&self) -> Command {
        let mut command = self.openssh("ssh");
        command.arg("souk@127.0.0.1");
        command
    }

    /// Runs a command line in the instance.
    pub(crate) fn exec(&self, line: &str) -> Output {
        let output = self.ssh().arg(line).output().expect("ssh runs");
        assert_ne!(output.status.code(), Some(255), "{}", text(&output.stderr));
        output
    }

    fn write_known_hosts(&self) {
        let line = format!(
            "[127.0.0.1]:{} {}\n",
            self.address.port(),
            openssh_public(&self.host_key.0)
        );
        fs::write(self.dir.path().join("known_hosts"), line).expect("written");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // What the agent has started is told by the pty or pipe; the agent itself by this.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The agent as a driver starts it: three descriptors and one argument.
pub(crate) fn spawn(
    config: &AgentConfig,
    listener: &TcpListener,
    control: &OwnedFd,
    standard_streams: bool,
) -> Child {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&serde_json::to_vec(config).expect("plain data"))
        .expect("written");
    std::io::Seek::rewind(&mut file).expect("rewound");
    // Above the numbers that they become, so that none overwrites another.
    let high = |fd: i32| {
        // SAFETY: fcntl takes no pointers here; the result is checked.
        let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 20) };
        assert!(fd >= 20, "no descriptor");
        fd
    };
    let moves = [
        (high(file.as_raw_fd()), CONFIG_FD),
        (high(listener.as_raw_fd()), LISTENER_FD),
        (high(control.as_raw_fd()), CONTROL_FD),
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_souk-agent"));
    command.arg(AGENT_ARG).stdin(Stdio::null());
    // SAFETY: only dup2 and close are called between fork and exec, on descriptors that are open.
    unsafe {
        command.pre_exec(move || {
            for (from, to) in moves {
                if libc::dup2(from, to) == -1 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            if !standard_streams {
                for fd in 0..3 {
                    libc::close(fd);
                }
            }
            Ok(())
        });
    }
    let child = command.spawn().expect("the agent starts");
    for (fd, _) in moves {
        // SAFETY: these are the duplicates made above, and nobody else knows them.
        unsafe { libc::close(fd) };
    }
    child
}

/// Makes an Ed25519 key with OpenSSH's own tool and returns its public half.
pub(crate) fn make_key(path: &Path) -> SshPublicKey {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"])
        .arg(path)
        .status()
        .expect("ssh-keygen runs");
    assert!(made.success());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("private");
    let line = fs::read_to_string(path.with_extension("pub")).expect("a public key");
    let encoded = line.split(' ').nth(1).expect("a key in the line");
    let blob = unbase64(encoded.trim());
    SshPublicKey(blob[blob.len() - 32..].try_into().expect("32 bytes"))
}

/// The form of a public key in OpenSSH's files (RFC 8709, section 4).
pub(crate) fn openssh_public(key: &[u8; 32]) -> String {
    let mut blob = Vec::new();
    for part in [&b"ssh-ed25519"[..], key] {
        blob.extend(u32::try_from(part.len()).expect("short").to_be_bytes());
        blob.extend(part);
    }
    format!("ssh-ed25519 {}", base64(&blob))
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    bytes
        .chunks(3)
        .flat_map(|chunk| {
            let bits = chunk
                .iter()
                .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            (0..4).map(move |i| {
                if i <= chunk.len() {
                    char::from(ALPHABET[(bits >> (18 - 6 * i) & 63) as usize])
                } else {
                    '='
                }
            })
        })
        .collect()
}

fn unbase64(text: &str) -> Vec<u8> {
    let mut bits = 0u32;
    let mut have = 0;
    let mut out = Vec::new();
    for byte in text.bytes().filter(|b| *b != b'=') {
        let value = ALPHABET.iter().position(|a| *a == byte).expect("base64");
        bits = bits << 6 | u32::try_from(value).expect("six bits");
        have += 6;
        if have >= 8 {
            have -= 8;
            out.push((bits >> have & 255) as u8);
        }
    }
    out
}

pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after the epoch")
        .as_secs()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes without a pattern that a transfer could hide a mistake behind, the same for the same seed.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        // xorshift64 (Marsaglia, 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Looks until a condition holds.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('Z'))
    })
}

/// Memory that the agent has in use.
pub(crate) fn resident_kib(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("running");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a size");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

/// Says that a test did not run, in the form that CI looks for.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
