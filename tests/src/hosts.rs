//! Hosts with addresses of their own: network namespaces on one switch.
//!
//! ```text
//!  host 1 ─ veth ┐
//!  host 2 ─ veth ┼─ bridge, in a namespace of its own
//!  host n ─ veth ┘
//! ```
//!
//! Nothing of the machine's own network is touched or reachable.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::Path,
    process::Command,
    sync::{
        Arc, Once,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::process::succeed;

/// A local network of hosts. Needs root and iproute2.
pub struct Lan {
    switch: Arc<Namespace>,
    hosts: Vec<Host>,
}

/// One host of a [`Lan`].
#[derive(Clone)]
pub struct Host {
    namespace: Arc<Namespace>,
    switch: Arc<Namespace>,
    port: String,
    address: Ipv4Addr,
}

struct Namespace {
    name: String,
}

static MADE: AtomicU32 = AtomicU32::new(0);

static SWEPT: Once = Once::new();

/// Where iproute2 keeps named namespaces.
const NAMED: &str = "/run/netns";

/// Removes what runs that were killed left behind; their processes died with them.
fn sweep() {
    let Ok(names) = fs::read_dir(NAMED) else {
        return;
    };
    for name in names.flatten().map(|entry| entry.file_name()) {
        let maker = name.to_str().and_then(|name| {
            let (maker, _) = name.strip_prefix("souk-")?.split_once('-')?;
            maker.parse::<u32>().ok()
        });
        let is_gone = |pid: &u32| {
            *pid == std::process::id() || !Path::new("/proc").join(pid.to_string()).exists()
        };
        if maker.as_ref().is_some_and(is_gone) {
            // Another run may be sweeping as well.
            let _ = Command::new("ip")
                .args(["netns", "delete"])
                .arg(&name)
                .output();
        }
    }
}

impl Lan {
    /// Makes hosts 10.77.0.1, 10.77.0.2, …
    ///
    /// # Panics
    /// Without root or iproute2.
    #[must_use]
    pub fn new(hosts: u8) -> Self {
        Self::numbered(hosts, [10, 77, 0])
    }

    /// Makes hosts 5.77.0.1, 5.77.0.2, …, which take themselves for a part of the internet.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn public(hosts: u8) -> Self {
        Self::numbered(hosts, [5, 77, 0])
    }

    fn numbered(hosts: u8, [a, b, c]: [u8; 3]) -> Self {
        SWEPT.call_once(sweep);
        let switch = Arc::new(Namespace::make("switch"));
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        let hosts = (1..=hosts)
            .map(|n| {
                let namespace = Arc::new(Namespace::make(&format!("host{n}")));
                let port = format!("port{n}");
                let address = Ipv4Addr::new(a, b, c, n);
                succeed(Command::new("ip").args([
                    "link",
                    "add",
                    "eth0",
                    "netns",
                    &namespace.name,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    &port,
                    "netns",
                    &switch.name,
                ]));
                switch.ip(&format!("link set {port} master br0 up"));
                namespace.ip(&format!("addr add {address}/24 dev eth0"));
                namespace.ip("link set eth0 up");
                namespace.ip("link set lo up");
                Host {
                    namespace,
                    switch: switch.clone(),
                    port,
                    address,
                }
            })
            .collect();
        Self { switch, hosts }
    }

    /// The hosts, in the order of their addresses.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// How many ports the switch has; for the fixture's own test.
    #[must_use]
    pub fn ports(&self) -> usize {
        let listed = succeed(Command::new("ip").args([
            "-n",
            &self.switch.name,
            "-o",
            "link",
            "show",
            "master",
            "br0",
        ]));
        listed
            .stdout
            .split(|b| *b == b'\n')
            .filter(|l| !l.is_empty())
            .count()
    }
}

impl Host {
    /// Its address.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A program that will run on this host.
    ///
    /// # Panics
    /// If the host is gone.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        self.enter(&mut command);
        command
    }

    /// Moves a command to this host.
    ///
    /// # Panics
    /// If the host is gone.
    pub fn enter(&self, command: &mut Command) {
        let namespace = self.open();
        // SAFETY: setns is one system call on a descriptor that the closure owns.
        unsafe {
            command.pre_exec(move || {
                match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    }

    /// Runs a function in a thread on this host.
    ///
    /// # Panics
    /// If the host is gone, or the function panics.
    pub fn run<T: Send>(&self, function: impl FnOnce() -> T + Send) -> T {
        let namespace = self.open();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    // SAFETY: setns is one system call on an open descriptor; it moves this thread only.
                    let moved = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                    assert_eq!(moved, 0, "{}", std::io::Error::last_os_error());
                    function()
                })
                .join()
                .expect("the function does not panic")
        })
    }

    /// Puts a firewall in front of it that lets no new connection in.
    ///
    /// # Panics
    /// Without nftables.
    pub fn let_nobody_in(&self) {
        let rules = "table inet wall { chain in { type filter hook input priority 0; iif != lo ct state new drop; }; };";
        let mut nft = Command::new("nft");
        nft.arg(rules);
        self.enter(&mut nft);
        succeed(&mut nft);
    }

    /// Pulls its cable.
    pub fn cut_off(&self) {
        self.switch.ip(&format!("link set {} down", self.port));
    }

    /// Plugs it in again.
    pub fn reconnect(&self) {
        self.switch.ip(&format!("link set {} up", self.port));
    }

    fn open(&self) -> File {
        File::open(Path::new(NAMED).join(&self.namespace.name)).expect("the host exists")
    }
}

impl Namespace {
    fn make(role: &str) -> Self {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("souk-{}-{number}-{role}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        Self { name }
    }

    fn ip(&self, line: &str) {
        succeed(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(line.split(' ')),
        );
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // While panicking there may be nothing to delete, and a second panic would hide the first.
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.name])
            .output();
    }
}
