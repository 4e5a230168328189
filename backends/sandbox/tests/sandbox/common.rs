//! A driver with an image made of this machine's own programs, for root and for an ordinary user.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use souk_backend::{
    Backend, BackendError, ImageHash, Instance, LeaseId, LeaseSpec, Resources, SshPublicKey,
};
use souk_image::{BuildOptions, Store};
use souk_sandbox::{KeeperProgram, Sandbox, SandboxConfig};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The ordinary user, where tests run as root: `nobody`.
const NOBODY: u32 = 65_534;

/// Runs a test as root.
pub(crate) fn as_root(test: fn(&Fixture)) {
    if rustix::process::geteuid().is_root() {
        as_this_user(test);
    } else {
        eprintln!("skipped: needs root");
    }
}

/// Runs a test where the machine lets this user make namespaces. Another program is asked: a driver that refuses wrongly
/// must fail its tests.
fn as_this_user(test: fn(&Fixture)) {
    let mut trial = Command::new("unshare");
    trial.args(["--user", "--map-root-user", "--mount-proc", "--pid"]);
    let tried = trial.args(["--fork", "--net", "true"]).output();
    if tried.is_ok_and(|output| output.status.success()) {
        test(&Fixture::new());
    } else {
        eprintln!(
            "skipped: needs user namespaces, which this machine refuses; `souk doctor` says what allows them"
        );
    }
}

/// Runs a test as an ordinary user. Root starts itself again as `nobody`, for the one test of this name.
pub(crate) fn as_ordinary_user(name: &str, test: fn(&Fixture)) {
    if !rustix::process::geteuid().is_root() {
        return as_this_user(test);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    let own = folder.path().join("own");
    fs::create_dir(&own).expect("a folder");
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).expect("its owner");
    // The build folder may be closed to others.
    let program = folder.path().join("test");
    fs::copy(std::env::current_exe().expect("a path"), &program).expect("a copy");
    let keeper = folder.path().join("keeper");
    fs::copy(env!("CARGO_BIN_EXE_souk-sandbox-keeper"), &keeper).expect("a copy");
    let agent = std::env::var_os("SOUK_AGENT_BIN").map(|agent| {
        let copy = folder.path().join("agent");
        fs::copy(agent, &copy).expect("a copy");
        copy
    });
    let run = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env("TMPDIR", &own)
        .env("HOME", &own)
        .env("SOUK_TEST_KEEPER", &keeper)
        .env("SOUK_TEST_PROGRAMS", programs())
        .envs(agent.map(|agent| ("SOUK_AGENT_BIN", agent)))
        .current_dir("/")
        .output()
        .expect("setpriv of util-linux");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    assert!(run.status.success(), "as an ordinary user:\n{text}");
    assert!(text.contains("1 passed"), "the test did not run:\n{text}");
    for line in text
        .lines()
        .filter(|line| line.starts_with("note:") || line.starts_with("skipped:"))
    {
        eprintln!("{line}");
    }
}

/// Without `unshare`, which is asked, any machine is one.
#[test]
fn a_machine_that_refuses_namespaces_skips_what_needs_them_and_says_so() {
    let user = if rustix::process::geteuid().is_root() {
        "as_root"
    } else {
        "as_ordinary_user"
    };
    let test = format!("lease::{user}::provision_is_idempotent_until_terminated");
    let run = Command::new(std::env::current_exe().expect("a path"))
        .args([test.as_str(), "--exact", "--nocapture"])
        .env("PATH", "/nonexistent")
        .output()
        .expect("the tests run again");
    let said = String::from_utf8_lossy(&run.stderr);
    let is_told = said.contains("skipped: needs user namespaces");
    assert!(run.status.success() && is_told, "{said}");
}

pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    pub(crate) runtime: Runtime,
    config: SandboxConfig,
    image: ImageHash,
    pub(crate) sandbox: Sandbox,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(programs().join("line_agent"), true)
    }

    pub(crate) fn without_overlay() -> Self {
        Self::with(programs().join("line_agent"), false)
    }

    pub(crate) fn with(agent: PathBuf, overlay: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let programs = programs();
        let (images, image) = image(&programs);
        let keeper = std::env::var_os("SOUK_TEST_KEEPER")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_souk-sandbox-keeper").into());
        let config = SandboxConfig {
            state: folder.path().join("sandbox"),
            images,
            agent,
            keeper: KeeperProgram {
                program: keeper.into(),
                arguments: vec![],
            },
            total: Resources {
                cpu_millicores: 64_000,
                memory_mib: 8_192,
                disk_mib: 8_192,
                max_processes: 4_096,
            },
            overlay,
        };
        let sandbox = Sandbox::open(config.clone())
            .unwrap_or_else(|error| panic!("this machine carries no leases: {error}"));
        Self {
            runtime: Runtime::new().expect("a runtime"),
            folder,
            config,
            image,
            sandbox,
        }
    }

    /// A driver as a node has it that was started after the last one was killed.
    pub(crate) fn reopened(&self) -> Sandbox {
        Sandbox::open(self.config.clone()).expect("opened before")
    }

    pub(crate) fn spec(&self) -> LeaseSpec {
        static DRAWN: AtomicU64 = AtomicU64::new(1);
        let mut lease = [0; 16];
        lease[..4].copy_from_slice(&std::process::id().to_be_bytes());
        lease[8..].copy_from_slice(&DRAWN.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        LeaseSpec {
            lease: LeaseId(lease),
            image: self.image,
            resources: Resources {
                cpu_millicores: 500,
                memory_mib: 64,
                disk_mib: 16,
                max_processes: 32,
            },
            required_limits: vec![],
            authorized_key: SshPublicKey([5; 32]),
            valid_to_unix_s: unix_s() + 120,
            evidence: None,
        }
    }

    pub(crate) fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        self.runtime.block_on(self.sandbox.provision(spec))
    }

    /// An instance with the usual resources.
    pub(crate) fn instance(&self) -> Guest<'_> {
        let spec = self.spec();
        self.guest(&spec)
    }

    pub(crate) fn guest(&self, spec: &LeaseSpec) -> Guest<'_> {
        let instance = self.provision(spec).expect("provisioned");
        Guest {
            fixture: self,
            instance,
        }
    }
}

/// An instance that is terminated when dropped.
pub(crate) struct Guest<'a> {
    fixture: &'a Fixture,
    pub(crate) instance: Instance,
}

impl Guest<'_> {
    /// Runs a script as the tenant; returns what it printed and its exit status.
    pub(crate) fn run(&self, script: &str) -> (String, i32) {
        run(&self.instance, script).expect("the agent answers")
    }

    /// Runs a script that must succeed.
    pub(crate) fn output(&self, script: &str) -> String {
        let (output, status) = self.run(script);
        assert_eq!(status, 0, "{script}: {output}");
        output
    }

    /// The agent answers, and its tenant can start programs.
    pub(crate) fn assert_well(&self) {
        assert_eq!(self.output("echo well"), "well");
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        let end = self.fixture.sandbox.terminate(self.instance.lease);
        let ended = self.fixture.runtime.block_on(end);
        if !std::thread::panicking() {
            ended.expect("terminated");
        }
    }
}

/// Runs a script over one connection to the tests' agent.
pub(crate) fn run(instance: &Instance, script: &str) -> std::io::Result<(String, i32)> {
    let mut stream = TcpStream::connect(instance.ssh)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(script.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = vec![];
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (output, status) = answer
        .rsplit_once("\nexit ")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = status
        .parse()
        .map_err(|_| std::io::ErrorKind::InvalidData)?;
    Ok((output.trim_end().to_owned(), status))
}

pub(crate) fn unix_s() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// The folder with the programs that instances run, built static by rustc; once for all tests of a build folder.
fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("SOUK_TEST_PROGRAMS") {
        return folder.into();
    }
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    let folder = BUILT.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        for name in ["line_agent", "attack"] {
            let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
            let status = Command::new(rustc)
                .args([
                    "--edition=2024",
                    "-O",
                    "-Ctarget-feature=+crt-static",
                    "-Cpanic=abort",
                ])
                .arg("-o")
                .arg(folder.path().join(name))
                .arg(sources.join(format!("{name}.rs")))
                .status()
                .expect("rustc");
            assert!(status.success(), "{name} does not compile");
        }
        folder
    });
    folder.path().to_owned()
}

/// An image of this machine's programs and the attack program; one for all tests of a process.
fn image(programs: &Path) -> (Store, ImageHash) {
    static MADE: OnceLock<(TempDir, Store, ImageHash)> = OnceLock::new();
    let (_, store, image) = MADE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        let store = Store::open(folder.path()).expect("an image store");
        let image = make_image(&store, programs);
        (folder, store, image)
    });
    (store.clone(), *image)
}

fn make_image(store: &Store, programs: &Path) -> ImageHash {
    let plain = store
        .build(&BuildOptions::default())
        .expect("this machine has programs");
    let archive = tempfile::NamedTempFile::new().expect("a temporary file");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(archive.path())
        .args(["--transform", "s,^attack$,usr/bin/attack,"])
        .arg("-C")
        .arg(store.path(plain).expect("built"))
        .arg(".")
        .arg("-C")
        .arg(programs)
        .arg("attack")
        .status()
        .expect("tar");
    assert!(status.success());
    store.import_tar(archive.path()).expect("an archive")
}

/// Makes a module of tests for each kind of user out of functions over a [`Fixture`].
macro_rules! for_both_users {
    ($($name:ident),* $(,)?) => {
        mod as_root {
            $(#[test]
            fn $name() {
                crate::common::as_root(super::$name);
            })*
        }
        mod as_ordinary_user {
            $(#[test]
            fn $name() {
                let path = concat!(module_path!(), "::", stringify!($name));
                let (_, name) = path.split_once("::").expect("a crate");
                crate::common::as_ordinary_user(name, super::$name);
            })*
        }
    };
}
pub(crate) use for_both_users;
