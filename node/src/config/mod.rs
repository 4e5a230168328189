//! The configuration of a node: `souk.toml`.
//!
//! `default.toml` beside this file is the one source of key names, defaults and their explanation: it is read below the
//! user's file, it tells which keys exist, and it is what `souk config default` prints.
//!
//! A configuration that was read is valid: addresses parse, ranges hold, and keys that contradict each other were
//! found. What only the machine can tell (a port in use, a missing folder) is found when the node starts.

mod mistake;
mod reader;

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use libp2p::{Multiaddr, multiaddr::Protocol};

pub use mistake::{Mistake, Mistakes};
use reader::{Reader, Wrong, from_str};

/// The commented defaults.
pub const DEFAULT: &str = include_str!("default.toml");

/// A configuration file is no larger, in bytes.
pub const MAX_BYTES: u64 = 256 * 1024;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which network it is on.
    pub network: Network,
    /// What every node has.
    pub node: Node,
    /// What it sells, and to whom; without effect unless [`Role::Provider`] is among the roles.
    pub provider: Provider,
    /// Bounds of carrying SSH for others.
    pub relay: Relay,
    /// Bounds of mixing.
    pub mix: Mix,
    /// The Unix socket of the control API.
    pub control_socket: PathBuf,
    /// Where metrics are served over HTTP; always a loopback address.
    pub metrics_listen: Option<SocketAddr>,
    /// What is written on stderr.
    pub log: Log,
}

/// Parameters that all nodes of a network share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// 1 to 24 characters of `a-z`, `0-9` and `-`.
    pub name: String,
    /// Mean delay at each mix, at most 10,000.
    pub mean_delay_ms: u32,
    /// Lifetime of a mix key, 600 to 604,800.
    pub epoch_s: u32,
}

/// What a node does for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Forwards packets and is an entry with mailboxes.
    Mix,
    /// Carries SSH streams.
    Relay,
    /// Sells this machine.
    Provider,
}

/// What every node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Identity, journal, log and images.
    pub data_dir: PathBuf,
    /// Sorted, without repetition.
    pub roles: Vec<Role>,
    /// Addresses to listen on; never empty.
    pub listen: Vec<Multiaddr>,
    /// Addresses to announce.
    pub external: Vec<Multiaddr>,
    /// Nodes to meet first; each ends in `/p2p/…`.
    pub bootstrap: Vec<Multiaddr>,
    /// Look for nodes on the local network.
    pub mdns: bool,
    /// Take part with loopback and private addresses.
    pub allow_private_addresses: bool,
}

/// What a provider sells, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// The operator agrees that tenants share the kernel of this machine.
    pub allow_shared_kernel: bool,
    /// CPU of all leases together, in thousandths of a core; `None` takes all cores.
    pub cpu_millicores: Option<u32>,
    /// Memory of all leases together, in MiB; `None` takes half of the machine's.
    pub memory_mib: Option<u32>,
    /// Disk of all leases together, in MiB; `None` takes a tenth of the machine's memory.
    pub disk_mib: Option<u32>,
    /// Processes of all leases together.
    pub max_processes: u32,
    /// Name of the asset that prices are in.
    pub asset: String,
    /// Decimal places of the asset.
    pub exponent: u8,
    /// Price of one core for one hour, in the smallest unit.
    pub price_core_hour: u64,
    /// Price of one GiB of memory for one hour, in the smallest unit.
    pub price_gib_hour: u64,
    /// Limits for requesters without an identity; `None` serves none of them.
    pub anonymous: Option<Anonymous>,
    /// Raw Ed25519 keys of issuers whose grants are served.
    pub issuers: Vec<[u8; 32]>,
    /// Where direct leases are reachable; `None` refuses them.
    pub direct_listen: Option<SocketAddr>,
    /// Period of checkpoints, 10 to 86,400.
    pub checkpoint_s: u32,
}

/// Limits that need no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anonymous {
    /// Anonymous leases at once.
    pub max_leases: u32,
    /// Longest lease.
    pub max_duration_s: u32,
    /// Largest lease, in thousandths of a core.
    pub max_cpu_millicores: u32,
    /// Largest lease, in MiB.
    pub max_memory_mib: u32,
    /// Requests admitted in a minute.
    pub per_minute: u32,
    /// Bits of proof of work, at most 30.
    pub pow_bits: u8,
}

/// Bounds of carrying SSH for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Streams at once.
    pub max_streams: u32,
    /// The most one stream gets.
    pub max_bytes_per_s: u64,
}

/// Bounds of mixing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// Packets held while their delay runs.
    pub max_held: u32,
    /// Mailboxes for requesters.
    pub max_mailboxes: u32,
    /// Packets in one mailbox.
    pub max_mailbox_packets: u32,
}

/// What is written on stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A filter as of tracing's `EnvFilter`.
    pub filter: String,
    /// One JSON object a line instead of text.
    pub json: bool,
}

/// Why a configuration file was not read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no configuration at all.
    #[error("{path} is larger than {MAX_BYTES} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file has mistakes.
    #[error("{path} has mistakes")]
    Mistakes {
        /// The file.
        path: PathBuf,
        /// Its text.
        text: String,
        /// What is wrong.
        #[source]
        mistakes: Mistakes,
    },
}

impl Config {
    /// Reads a file; relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// Says why the file was not read, or all its mistakes.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if fs::metadata(path).map_err(unreadable)?.len() > MAX_BYTES {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
            });
        }
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let folder = std::path::absolute(path)
            .map_err(unreadable)?
            .parent()
            .map_or_else(PathBuf::new, Path::to_owned);
        Self::parse(&text, &folder).map_err(|mistakes| ConfigError::Mistakes {
            path: path.to_owned(),
            text,
            mistakes,
        })
    }

    /// Understands the text of a file that lies in `folder`.
    ///
    /// # Errors
    /// All mistakes of the text.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Mistakes> {
        let mut reader = Reader::new(text, DEFAULT);
        let node = node(&mut reader, folder);
        let provider = provider(&mut reader, &node);
        let config = Self {
            network: network(&mut reader),
            provider,
            relay: Relay {
                max_streams: reader.integer32("relay", "max_streams", 1..=65_536),
                max_bytes_per_s: reader.integer(
                    "relay",
                    "max_bytes_per_s",
                    10_000..=100_000_000_000,
                ),
            },
            mix: Mix {
                max_held: reader.integer32("mix", "max_held", 64..=1_048_576),
                max_mailboxes: reader.integer32("mix", "max_mailboxes", 1..=65_536),
                max_mailbox_packets: reader.integer32("mix", "max_mailbox_packets", 16..=4_096),
            },
            control_socket: match reader.string("control", "socket").as_str() {
                "" => node.data_dir.join("control.sock"),
                path => folder.join(path),
            },
            metrics_listen: reader.optional("metrics", "listen", loopback),
            log: Log {
                filter: reader.string("log", "filter"),
                json: reader
                    .parsed("log", "format", log_format)
                    .unwrap_or_default(),
            },
            node,
        };
        reader.finish()?;
        Ok(config)
    }

    /// Whether this node does `role`.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.node.roles.contains(&role)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("", Path::new("")).expect("the defaults are valid; a test reads them")
    }
}

fn network(reader: &mut Reader<'_>) -> Network {
    let name = reader.parsed("network", "name", |name| {
        let fits = (1..=24).contains(&name.len())
            && name
                .bytes()
                .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        match fits {
            true => Ok(name.to_owned()),
            false => Err(Wrong::new(
                "not a network name",
                "use 1 to 24 characters of a-z, 0-9 and -",
            )),
        }
    });
    Network {
        name: name.unwrap_or_default(),
        mean_delay_ms: reader.integer32("network", "mean_delay_ms", 0..=10_000),
        epoch_s: reader.integer32("network", "epoch_s", 600..=604_800),
    }
}

fn node(reader: &mut Reader<'_>, folder: &Path) -> Node {
    let mut roles = reader.list("node", "roles", |name| match name {
        "mix" => Ok(Role::Mix),
        "relay" => Ok(Role::Relay),
        "provider" => Ok(Role::Provider),
        _ => Err(Wrong::new(
            "no such role",
            "the roles are \"mix\", \"relay\" and \"provider\"",
        )),
    });
    roles.sort_unstable();
    roles.dedup();
    let address =
        from_str::<Multiaddr>("write a multiaddress such as \"/ip4/0.0.0.0/udp/4551/quic-v1\"");
    let listen = reader.list("node", "listen", |text| address(text).and_then(transport));
    if listen.is_empty() {
        reader.misfit(
            "node",
            "listen",
            "node.listen has no valid address",
            "give at least one multiaddress",
        );
    }
    Node {
        data_dir: folder.join(reader.string("node", "data_dir")),
        roles,
        listen,
        external: reader.list("node", "external", |text| address(text).and_then(transport)),
        bootstrap: reader.list("node", "bootstrap", |text| {
            let full = address(text)?;
            match full.iter().last() {
                Some(Protocol::P2p(_)) => Ok(full),
                _ => Err(Wrong::new(
                    "it does not say which node is there",
                    "end it with /p2p/ and the node id, as `souk status` on that node prints it",
                )),
            }
        }),
        mdns: reader.bool("node", "mdns"),
        allow_private_addresses: reader.bool("node", "allow_private_addresses"),
    }
}

fn provider(reader: &mut Reader<'_>, node: &Node) -> Provider {
    const SECTION: &str = "provider";
    let allow_shared_kernel = reader.bool(SECTION, "allow_shared_kernel");
    let issuers = reader.list(SECTION, "issuers", |text| {
        let mut key = [0; 32];
        hex::decode_to_slice(text, &mut key)
            .map(|()| key)
            .map_err(|why| {
                Wrong::new(
                    why,
                    "write the 64 hex digits that `souk issuer key new` prints",
                )
            })
    });
    let anonymous = reader.bool(SECTION, "anonymous").then(|| anonymous(reader));
    if node.roles.contains(&Role::Provider) {
        if !allow_shared_kernel {
            reader.misfit(
                SECTION,
                "allow_shared_kernel",
                "a provider with the sandbox driver shares the kernel of this machine with its tenants",
                "agree with `allow_shared_kernel = true` under [provider], or take \"provider\" out of node.roles",
            );
        }
        if anonymous.is_none() && issuers.is_empty() {
            reader.misfit(
                SECTION,
                "anonymous",
                "this provider serves nobody",
                "write `anonymous = true` or name issuers",
            );
        }
    }
    Provider {
        allow_shared_kernel,
        cpu_millicores: or_machine(reader.integer32(SECTION, "cpu_millicores", 0..=10_000_000)),
        memory_mib: or_machine(reader.integer32(SECTION, "memory_mib", 0..=1_000_000_000)),
        disk_mib: or_machine(reader.integer32(SECTION, "disk_mib", 0..=1_000_000_000)),
        max_processes: reader.integer32(SECTION, "max_processes", 16..=4_000_000),
        asset: reader.parsed(SECTION, "asset", asset).unwrap_or_default(),
        exponent: u8::try_from(reader.integer32(SECTION, "exponent", 0..=18)).unwrap_or(18),
        price_core_hour: reader.integer(SECTION, "price_core_hour", 0..=1_000_000_000_000),
        price_gib_hour: reader.integer(SECTION, "price_gib_hour", 0..=1_000_000_000_000),
        anonymous,
        issuers,
        direct_listen: reader.optional(
            SECTION,
            "direct_listen",
            from_str("write an address such as \"203.0.113.7:0\""),
        ),
        checkpoint_s: reader.integer32(SECTION, "checkpoint_s", 10..=86_400),
    }
}

fn anonymous(reader: &mut Reader<'_>) -> Anonymous {
    const SECTION: &str = "provider";
    Anonymous {
        max_leases: reader.integer32(SECTION, "anonymous_max_leases", 1..=10_000),
        max_duration_s: reader.integer32(SECTION, "anonymous_max_duration_s", 60..=2_592_000),
        max_cpu_millicores: reader.integer32(
            SECTION,
            "anonymous_max_cpu_millicores",
            1..=10_000_000,
        ),
        max_memory_mib: reader.integer32(SECTION, "anonymous_max_memory_mib", 1..=1_000_000_000),
        per_minute: reader.integer32(SECTION, "anonymous_per_minute", 1..=100_000),
        pow_bits: u8::try_from(reader.integer32(SECTION, "pow_bits", 0..=30)).unwrap_or(30),
    }
}

/// Zero stands for what the machine has.
fn or_machine(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn asset(name: &str) -> Result<String, Wrong> {
    let fits = (1..=16).contains(&name.len())
        && name
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-');
    match fits {
        true => Ok(name.to_owned()),
        false => Err(Wrong::new(
            "not the name of an asset",
            "use 1 to 16 characters of a-z, 0-9 and -",
        )),
    }
}

/// Takes the addresses that a node can listen on: IP with TCP, or IP with QUIC.
fn transport(address: Multiaddr) -> Result<Multiaddr, Wrong> {
    let parts: Vec<_> = address.iter().collect();
    match parts.as_slice() {
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)]
        | [
            Protocol::Ip4(_) | Protocol::Ip6(_),
            Protocol::Udp(_),
            Protocol::QuicV1,
        ] => Ok(address),
        _ => Err(Wrong::new(
            "neither TCP nor QUIC on an IP address",
            "write /ip4/…/tcp/… or /ip4/…/udp/…/quic-v1 (or ip6)",
        )),
    }
}

fn loopback(text: &str) -> Result<SocketAddr, Wrong> {
    let address: SocketAddr = from_str("write an address such as \"127.0.0.1:9551\"")(text)?;
    match address.ip().is_loopback() {
        true => Ok(address),
        false => Err(Wrong::new(
            "not a loopback address",
            "metrics are for this machine; use 127.0.0.1 or [::1] and a proxy with a login before it",
        )),
    }
}

fn log_format(text: &str) -> Result<bool, Wrong> {
    match text {
        "text" => Ok(false),
        "json" => Ok(true),
        _ => Err(Wrong::new(
            "no such format",
            "the formats are \"text\" and \"json\"",
        )),
    }
}

#[cfg(test)]
mod tests;
