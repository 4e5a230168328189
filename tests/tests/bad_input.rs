//! What goes wrong on an operator's machine: each has an error that says what, why, and what to do.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use souk_tests::{Network, Plan, Process, node_command};
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
        let ready = self.folder.path().join("ready.json");
        let mut process = Process::start("node", self.command(), self.folder.path());
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
    fs::remove_file(ready).expect("left behind");
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
    let made = Made::new(LOOPBACK, PROVIDER);
    let mut command = made.command();
    forbid_namespaces(&mut command);
    let said = made.refuses(command);
    says(&said, &["namespace", "sysctl"]);
}

/// The kernel's answer on a machine that allows no user namespaces, by a limit of none.
fn forbid_namespaces(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    // clone and unshare with any CLONE_NEW* flag fail with EPERM; all else works. Classic BPF (seccomp(2)).
    const FLAGS: u32 = 0x7e02_0000;
    let statement = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: u16::try_from(code).expect("16 bits"),
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let any = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let number = |call: libc::c_long| u32::try_from(call).expect("a system call");
    let errno = |e: i32| libc::SECCOMP_RET_ERRNO | u32::try_from(e).expect("positive");
    let filter = [
        statement(load, 0, 0, 0),
        statement(equal, number(libc::SYS_clone3), 0, 1),
        statement(answer, errno(libc::ENOSYS), 0, 0),
        statement(equal, number(libc::SYS_clone), 1, 0),
        statement(equal, number(libc::SYS_unshare), 0, 3),
        statement(load, 16, 0, 0),
        statement(any, FLAGS, 0, 1),
        statement(answer, errno(libc::EPERM), 0, 0),
        statement(answer, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    // SAFETY: the program points into the closure, which lives until exec; prctl copies it.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: 9,
                filter: filter.as_ptr().cast_mut(),
            };
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == -1
                || libc::prctl(
                    libc::PR_SET_SECCOMP,
                    libc::SECCOMP_MODE_FILTER,
                    &raw const program,
                ) == -1
            {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

#[test]
fn a_clock_that_is_wrong_by_hours_is_told() {
    let network = Network::start(&Plan {
        mixes: 3,
        sells: false,
        ..Plan::default()
    });
    let Some(late) = network.node_with_clock("late", -6 * 3600) else {
        return souk_tests::skipped("needs a C compiler");
    };
    souk_tests::eventually("the wrong clock is told", || {
        let status = late.status()?;
        let warnings = status["warnings"].as_array()?;
        warnings
            .iter()
            .any(|w| {
                w.as_str()
                    .is_some_and(|w| w.contains("the clock of this machine seems to be behind"))
            })
            .then_some(())
    });
}
