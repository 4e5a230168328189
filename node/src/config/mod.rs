//! The configuration of a node: `souk.toml`.
//!
//! `default.toml` beside this file is the one source of key names, defaults and their explanation: it is read below the
//! user's file, it tells which keys exist, and it is what `souk config default` prints.
//!
//! A configuration that was read is valid: addresses parse, ranges hold, and keys that contradict each other were
//! found. What only the machine can tell (a port in use, a missing folder) is found when the node starts.

mod reader;
mod warnings;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use souk_crypto::{IssuerPublicKey, NetworkId, NetworkParams};
use souk_market::{
    account::Costs,
    card::{AnonymousLimits, MAX_ISSUERS, MAX_WORK_BITS, Policy, Role},
    price::{MAX_EXPONENT, Prices, Rounding},
    units::{Asset, DurationS, Money, OperatorId, Resources},
    wire::List,
};
use souk_toml::Mistakes;

use crate::net::NodeAddress;

use reader::{Reader, Wrong, from_str};

/// The commented defaults.
pub const DEFAULT: &str = include_str!("default.toml");

/// The commented defaults as a file to edit: the keys of `set` (section, key, TOML value) are set, all others commented out.
#[must_use]
pub fn template(set: &[(&str, &str, &str)]) -> String {
    let mut section = "";
    let lines = DEFAULT.lines().map(|line| {
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            section = name;
            return line.to_owned();
        }
        match line.split_once(" = ") {
            Some((key, _)) if !key.starts_with('#') => {
                match set
                    .iter()
                    .find(|(in_section, name, _)| *in_section == section && *name == key)
                {
                    Some((_, _, value)) => format!("{key} = {value}"),
                    None => format!("#{line}"),
                }
            }
            _ => line.to_owned(),
        }
    });
    lines.map(|line| line + "\n").collect()
}

/// The largest price: that of ten thousand cores for a year still fits in 64 bits.
const MAX_PRICE: u64 = 100_000_000_000;

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
    /// What proves what this node runs on, and by which policy that of the others is judged.
    pub evidence: Evidence,
    /// Bounds on connections.
    pub limits: Limits,
    /// The Unix socket of the control API.
    pub control_socket: PathBuf,
    /// The Unix socket of a monitoring user, if there is one.
    pub monitor_socket: Option<MonitorSocket>,
    /// Where metrics are served over HTTP; always a loopback address.
    pub metrics_listen: Option<SocketAddr>,
    /// What is written on stderr.
    pub log: Log,
}

/// What all nodes of a network share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The name and the binding to the parameters.
    pub id: NetworkId,
    /// The parameters.
    pub params: NetworkParams,
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
    pub bootstrap: Vec<NodeAddress>,
    /// Look for nodes on the local network.
    pub mdns: bool,
    /// Who runs it; nodes of one operator name the same.
    pub operator: Option<OperatorId>,
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
    /// What it asks.
    pub prices: Prices,
    /// What it costs, in the same asset; nobody is told.
    pub costs: Costs,
    /// Whom it serves.
    pub policy: Policy,
    /// Where direct leases are reached; `None` refuses them.
    pub direct_address: Option<IpAddr>,
    /// The static agent; `None` where it lies beside this program.
    pub agent: Option<PathBuf>,
    /// Period of checkpoints, 1 to 3,600.
    pub checkpoint_s: u32,
}

/// Evidence of TEEs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Where this node's own comes from.
    pub source: EvidenceSource,
    /// A service with Intel's interface.
    pub pccs: Option<String>,
    /// A service with AMD's interface.
    pub kds: Option<String>,
    /// What this node stands against, and judges others by.
    pub policy: Option<PathBuf>,
    /// As a requester: only mixes that the policy accepts.
    pub attested_mixes: bool,
}

/// Where a node's evidence comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EvidenceSource {
    /// Nowhere: the card names none.
    #[default]
    None,
    /// The kernel's configfs-tsm.
    Tsm {
        /// Its folder of entries.
        folder: PathBuf,
    },
    /// The software TEE, which proves nothing: kind `none+test`.
    Test {
        /// The file of the test root.
        root: PathBuf,
    },
}

/// Bounds on connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that others open.
    pub inbound: u32,
    /// Connections that the node opens.
    pub outbound: u32,
    /// Connections from one IPv4 address or IPv6 /64.
    pub per_address: u32,
    /// Resident memory above which no connection is made, in MiB.
    pub memory_mib: u32,
}

/// A socket on which the control API answers what changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorSocket {
    /// Its path.
    pub path: PathBuf,
    /// Its mode: 0600, 0660 or 0666.
    pub mode: u32,
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
        let bytes = fs::read(path).map_err(unreadable)?;
        let text = souk_toml::text(bytes).map_err(|(text, mistakes)| ConfigError::Mistakes {
            path: path.to_owned(),
            text,
            mistakes,
        })?;
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
        let provider = provider(&mut reader, &node, folder);
        let config = Self {
            network: network(&mut reader),
            evidence: evidence(&mut reader, folder),
            provider,
            limits: Limits {
                inbound: reader.integer32("limits", "inbound", 8..=65_536),
                outbound: reader.integer32("limits", "outbound", 8..=65_536),
                per_address: reader.integer32("limits", "per_address", 1..=65_536),
                memory_mib: reader.integer32("limits", "memory_mib", 64..=1_048_576),
            },
            control_socket: match reader.string("control", "socket").as_str() {
                "" => node.data_dir.join("control.sock"),
                path => folder.join(path),
            },
            monitor_socket: monitor_socket(&mut reader, folder),
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
    const SECTION: &str = "network";
    let test = reader.bool(SECTION, "test");
    let mean_delay_ms = reader.integer32(SECTION, "mean_delay_ms", u32::from(!test)..=10_000);
    let max_delay_ms = reader.integer32(SECTION, "max_delay_ms", mean_delay_ms..=600_000);
    let epoch_s = reader.integer32(SECTION, "epoch_s", 10..=604_800);
    let params = NetworkParams::new(mean_delay_ms, max_delay_ms, epoch_s, test)
        .expect("the ranges above are those of the parameters");
    let id = reader.parsed(SECTION, "name", |name| {
        NetworkId::new(name, &params)
            .map_err(|why| Wrong::new(why, "use 1 to 32 characters of a-z, 0-9 and inner hyphens"))
    });
    let id = id.unwrap_or_else(|| NetworkId::new("invalid", &params).expect("a valid name"));
    Network { id, params }
}

fn node(reader: &mut Reader<'_>, folder: &Path) -> Node {
    let mut roles = reader.list("node", "roles", |name| {
        let role = Role::ALL.iter().copied().find(|role| role.as_str() == name);
        let hint = r#"the roles are "mix", "entry", "relay" and "provider""#;
        role.ok_or_else(|| Wrong::new("no such role", hint))
    });
    roles.sort_unstable();
    roles.dedup();
    let address =
        from_str::<Multiaddr>("write a multiaddress such as \"/ip4/0.0.0.0/udp/4551/quic-v1\"");
    let before = reader.mistakes();
    let listen = reader.list("node", "listen", |text| address(text).and_then(transport));
    if listen.is_empty() && reader.mistakes() == before {
        reader.misfit(
            "node",
            "listen",
            "node.listen is empty",
            "give at least one multiaddress",
        );
    }
    Node {
        data_dir: folder.join(reader.string("node", "data_dir")),
        roles,
        listen,
        external: reader.list("node", "external", |text| address(text).and_then(transport)),
        bootstrap: reader.list(
            "node",
            "bootstrap",
            from_str("write a multiaddress that ends in /p2p/ and the node id, as `souk status` on that node prints it"),
        ),
        mdns: reader.bool("node", "mdns"),
        operator: reader.optional("node", "operator", |name| match name.len() {
            1..=32 => Ok(OperatorId(blake3::derive_key(
                "souk operator v1",
                name.as_bytes(),
            ))),
            _ => Err(Wrong::new("too long", "use 1 to 32 characters")),
        }),
    }
}

fn provider(reader: &mut Reader<'_>, node: &Node, folder: &Path) -> Provider {
    const SECTION: &str = "provider";
    let before = reader.mistakes();
    let allow_shared_kernel = reader.bool(SECTION, "allow_shared_kernel");
    let is_agreement_told = reader.mistakes() > before;
    let before = reader.mistakes();
    let issuers = issuers(reader);
    let serves_anybody = reader.bool(SECTION, "anonymous");
    let is_told = reader.mistakes() > before;
    // They are read in any case: a mistake in them is one also while nobody is served.
    let limits = anonymous(reader);
    let anonymous = serves_anybody.then_some(limits);
    if node.roles.contains(&Role::Provider) {
        if !allow_shared_kernel && !is_agreement_told {
            reader.misfit(
                "node",
                "roles",
                "a provider with the sandbox driver shares the kernel of this machine with its tenants",
                "agree with `allow_shared_kernel = true` under [provider], or take \"provider\" out of node.roles",
            );
        }
        // Whom it means to serve is not known where that was written wrong.
        if anonymous.is_none() && issuers.is_empty() && !is_told {
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
        prices: prices(reader),
        costs: costs(reader),
        policy: Policy { anonymous, issuers },
        direct_address: reader.optional(
            SECTION,
            "direct_address",
            from_str("write an IP address such as \"203.0.113.7\""),
        ),
        agent: reader.optional(SECTION, "agent", |path| Ok(folder.join(path))),
        checkpoint_s: reader.integer32(SECTION, "checkpoint_s", 1..=3_600),
    }
}

fn evidence(reader: &mut Reader<'_>, folder: &Path) -> Evidence {
    const SECTION: &str = "evidence";
    let in_folder = |path: String| (!path.is_empty()).then(|| folder.join(path));
    let tsm = reader.string(SECTION, "tsm_folder");
    let root = in_folder(reader.string(SECTION, "test_root"));
    let source = match reader.string(SECTION, "source").as_str() {
        "" => EvidenceSource::None,
        "configfs-tsm" => EvidenceSource::Tsm {
            folder: folder.join(tsm),
        },
        "test" => match root {
            Some(root) => EvidenceSource::Test { root },
            None => {
                reader.misfit(
                    SECTION,
                    "test_root",
                    "the software TEE has no test root",
                    "name the root.key that `souk attest mint` made",
                );
                EvidenceSource::None
            }
        },
        _ => {
            let hint = r#"the sources are "configfs-tsm" and "test", and "" for none"#;
            reader.misfit(SECTION, "source", "no such source of evidence", hint);
            EvidenceSource::None
        }
    };
    let policy = in_folder(reader.string(SECTION, "policy"));
    let attested_mixes = reader.bool(SECTION, "attested_mixes");
    if attested_mixes && policy.is_none() {
        let hint = "name the policy that says which mixes are believed";
        reader.misfit(SECTION, "policy", "attested_mixes without a policy", hint);
    }
    Evidence {
        source,
        pccs: reader.optional(SECTION, "pccs", service),
        kds: reader.optional(SECTION, "kds", service),
        policy,
        attested_mixes,
    }
}

fn service(text: &str) -> Result<String, Wrong> {
    match text.starts_with("http://") {
        true => Ok(text.to_owned()),
        false => Err(Wrong::new(
            "not an http:// address",
            "name a caching service, such as \"http://pccs.example:8081\"; collateral proves itself",
        )),
    }
}

fn issuers(reader: &mut Reader<'_>) -> List<IssuerPublicKey, MAX_ISSUERS> {
    let keys = reader.list("provider", "issuers", |text| {
        let hint = "write the 64 hex digits that `souk issuer key new` prints";
        let bytes = hex::decode(text).map_err(|why| Wrong::new(why, hint))?;
        IssuerPublicKey::from_bytes(&bytes).map_err(|why| Wrong::new(why, hint))
    });
    List::new(keys).unwrap_or_else(|| {
        let hint = format!("name at most {MAX_ISSUERS}; a card has no room for more");
        reader.misfit("provider", "issuers", "too many issuers", &hint);
        List::empty()
    })
}

fn prices(reader: &mut Reader<'_>) -> Prices {
    const SECTION: &str = "provider";
    let mut price = |key| Money(reader.integer(SECTION, key, 0..=MAX_PRICE));
    Prices {
        core_hour: price("price_core_hour"),
        memory_gib_hour: price("price_memory_gib_hour"),
        disk_gib_hour: price("price_disk_gib_hour"),
        asset: reader
            .parsed(
                SECTION,
                "asset",
                from_str("name the asset, for example \"TEST\""),
            )
            .unwrap_or_else(|| "INVALID".parse::<Asset>().expect("a valid name")),
        exponent: u8::try_from(reader.integer32(SECTION, "exponent", 0..=u32::from(MAX_EXPONENT)))
            .unwrap_or(MAX_EXPONENT),
        increment: DurationS(reader.integer32(SECTION, "price_increment_s", 1..=86_400)),
        minimum: DurationS(reader.integer32(SECTION, "price_minimum_s", 0..=86_400)),
        rounding: Rounding::Up,
    }
}

fn costs(reader: &mut Reader<'_>) -> Costs {
    let mut cost = |key| Money(reader.integer("provider", key, 0..=MAX_PRICE));
    Costs {
        core_hour: cost("cost_core_hour"),
        memory_gib_hour: cost("cost_memory_gib_hour"),
        disk_gib_hour: cost("cost_disk_gib_hour"),
        gib_out: cost("cost_gib_out"),
    }
}

fn anonymous(reader: &mut Reader<'_>) -> AnonymousLimits {
    const SECTION: &str = "provider";
    let mut limit = |key, range| reader.integer32(SECTION, key, range);
    AnonymousLimits {
        max_concurrent: limit("anonymous_max_leases", 1..=10_000),
        max_duration: DurationS(limit("anonymous_max_duration_s", 60..=2_592_000)),
        max_resources: Resources {
            cpu_millicores: limit("anonymous_max_cpu_millicores", 1..=10_000_000),
            memory_mib: limit("anonymous_max_memory_mib", 1..=1_000_000_000),
            disk_mib: limit("anonymous_max_disk_mib", 0..=1_000_000_000),
            gpus: 0,
            max_processes: limit("anonymous_max_processes", 8..=4_000_000),
        },
        max_per_hour: limit("anonymous_per_hour", 1..=1_000_000),
        work_bits: u8::try_from(limit("work_bits", 0..=u32::from(MAX_WORK_BITS)))
            .unwrap_or(MAX_WORK_BITS),
    }
}

/// Zero stands for what the machine has.
fn or_machine(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
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

fn monitor_socket(reader: &mut Reader<'_>, folder: &Path) -> Option<MonitorSocket> {
    let mode = reader.parsed("control", "monitor_mode", |text| match text {
        "0600" => Ok(0o600),
        "0660" => Ok(0o660),
        "0666" => Ok(0o666),
        _ => Err(Wrong::new(
            "no such mode",
            "the modes are \"0600\", \"0660\" (the group of its folder) and \"0666\" (every user of this machine)",
        )),
    });
    let path = reader.optional("control", "monitor_socket", |path| Ok(folder.join(path)))?;
    mode.map(|mode| MonitorSocket { path, mode })
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
