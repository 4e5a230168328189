//! What a lease asks of a backend, and what a backend has: ids, keys, sizes and limits.
//!
//! Threat: text of a stranger that is put into a path or an argument. Ids and keys are fixed numbers of bytes, with one text each.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Serialize, de::Error as _};

/// Implements text forms of a newtype over bytes as lowercase hex.
macro_rules! hex_newtype {
    ($name:ident, $len:literal) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                let wrong = || format!("expected {} lowercase hex digits", 2 * $len);
                if s.len() != 2 * $len || !s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(wrong());
                }
                let mut out = [0u8; $len];
                for (i, byte) in out.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
                }
                Ok(Self(out))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

/// A lease, drawn by the provider; 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub [u8; 16]);
hex_newtype!(LeaseId, 16);

/// BLAKE3 hash of an image's manifest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageHash(pub [u8; 32]);
hex_newtype!(ImageHash, 32);

/// A raw Ed25519 SSH public key, without comment or options.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SshPublicKey(pub [u8; 32]);
hex_newtype!(SshPublicKey, 32);

/// The raw Ed25519 host key of an instance, made inside of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HostKey(pub [u8; 32]);
hex_newtype!(HostKey, 32);

/// What a lease gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Resources {
    /// CPU, in thousandths of a core.
    pub cpu_millicores: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Writable disk, in MiB. Where a driver has no quotas this is a sized tmpfs and counts as memory.
    pub disk_mib: u32,
    /// Processes and threads.
    pub max_processes: u32,
}

/// Everything a backend needs to know of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseSpec {
    /// The lease.
    pub lease: LeaseId,
    /// The root file system.
    pub image: ImageHash,
    /// What it gets.
    pub resources: Resources,
    /// Limits that must be enforced; a backend that cannot must refuse.
    pub required_limits: Vec<Limit>,
    /// Who may log in.
    pub authorized_key: SshPublicKey,
    /// When the lease ends, in Unix seconds. The instance ends itself then, even when the node is gone.
    pub valid_to_unix_s: u64,
    /// What proves what it runs on; a backend that cannot bring it must refuse.
    pub evidence: Option<EvidenceOrder>,
}

/// What protects an instance from whoever runs its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Tee {
    /// Intel TDX.
    #[serde(rename = "tdx")]
    Tdx,
    /// AMD SEV-SNP.
    #[serde(rename = "sev-snp")]
    SevSnp,
    /// None: software that looks like one, and proves nothing.
    #[serde(rename = "none+test")]
    NoneTest,
}

impl Tee {
    /// The word that people see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tdx => "tdx",
            Self::SevSnp => "sev-snp",
            Self::NoneTest => "none+test",
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A quote that an instance has to bring: of which TEE, and what it binds beside the host key that the instance makes and the
/// image that it measures. Whoever takes the quote binds all of it, so that none of another lease or node will do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceOrder {
    /// Of this TEE, and no other.
    pub tee: Tee,
    /// The id of the network.
    pub network: String,
    /// The provider, by its public key.
    pub provider: [u8; 32],
    /// The key that signs the provider's cards and receipts.
    pub attested_key: [u8; 32],
    /// Digest of the policy that the provider stands against; zero where it names none.
    pub policy: [u8; 32],
    /// The key epoch of the network.
    pub epoch: u32,
    /// Digest of the envelope of the lease, which its requester drew: no quote is older than it.
    pub envelope: [u8; 32],
}

/// A limit that a driver may or may not be able to enforce on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// CPU time of the whole lease.
    Cpu,
    /// Memory of the whole lease.
    Memory,
    /// Number of processes of the whole lease.
    Processes,
    /// Writable disk of the whole lease.
    Disk,
}

/// What a backend can carry, as found on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Architecture, as in Rust's `std::env::consts::ARCH`.
    pub arch: String,
    /// All it may hand out.
    pub total: Resources,
    /// Limits it enforces for the whole lease.
    pub enforced: Vec<Limit>,
    /// Leases share the kernel of the host.
    pub shared_kernel: bool,
    /// Instances can open connections to the outside by themselves.
    pub egress: bool,
    /// What protects its instances from this host, and can prove it; nothing where absent.
    pub tee: Option<Tee>,
    /// Images that are in the store.
    pub images: Vec<ImageHash>,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InstanceState {
    /// It accepts SSH.
    Running,
    /// Its entry process is gone; what it left has not been removed yet.
    Exited,
    /// There is no such instance.
    Gone,
}

/// A running instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Whose it is.
    pub lease: LeaseId,
    /// Where it stands.
    pub state: InstanceState,
    /// Where its SSH server answers, on this host.
    pub ssh: SocketAddr,
    /// The user to log in as.
    pub user: String,
    /// Its host key.
    pub host_key: HostKey,
    /// When it ends by itself, in Unix seconds.
    pub valid_to_unix_s: u64,
    /// The quote that its lease ordered: from [`crate::Backend::provision`] only, and taken anew at each call.
    pub quote: Option<Vec<u8>>,
}
