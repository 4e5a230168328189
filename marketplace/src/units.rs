//! Ids, quantities and words of the market as types, so that one cannot be taken for another.
//!
//! Threat: every text here ends on a screen, in a log or in an `ssh_config`, and comes from a stranger. Each therefore
//! has a strict character set and a bound, checked when it is made and when it is decoded. What opens something for whoever
//! knows it prints as `..`.

use std::{fmt, str::FromStr};

use minicbor::{
    Decode, Decoder, Encode, Encoder,
    decode::Error as CborError,
    encode::{Error as EncodeError, Write},
};

use souk_crypto::{HolderPublicKey, NetworkId, NodeId, ReplyPublicKey, domain, sign::ObjectDigest};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::wire::{wire_enum, wire_map};

/// Why a text is not the value it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub(crate) String);

/// Defines a newtype over a fixed number of bytes; its text form is lowercase hex.
macro_rules! bytes_newtype {
    ($(#[$meta:meta])* $name:ident, $len:literal) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

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
            type Err = ParseError;
            fn from_str(s: &str) -> Result<Self, ParseError> {
                parse_hex(s).map(Self)
            }
        }
        bytes_codec!($name, $len);
    };
}

/// Defines a newtype over a fixed number of bytes that open something for whoever knows them: it is compared in constant
/// time, has no text form, is copied only by name and leaves nothing behind in memory.
macro_rules! secret_newtype {
    ($(#[$meta:meta])* $name:ident, $len:literal) => {
        $(#[$meta])*
        #[derive(Clone, Zeroize, ZeroizeOnDrop)]
        pub struct $name(pub [u8; $len]);

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.0.ct_eq(&other.0).into()
            }
        }
        impl Eq for $name {}
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
        bytes_codec!($name, $len);
    };
}

/// Implements the CBOR form of a newtype over a fixed number of bytes.
macro_rules! bytes_codec {
    ($name:ident, $len:literal) => {
        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }
        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
                let bytes = d.bytes()?;
                bytes.try_into().map(Self).map_err(|_| {
                    CborError::message(format!(
                        "{} of {} bytes, not {}",
                        stringify!($name),
                        bytes.len(),
                        $len
                    ))
                })
            }
        }
    };
}

/// Defines a newtype over a text that `$valid` accepts.
macro_rules! text_newtype {
    ($(#[$meta:meta])* $name:ident, $max:literal, $valid:expr, $rule:literal) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Its longest form in bytes.
            pub const MAX_LEN: usize = $max;

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl FromStr for $name {
            type Err = ParseError;
            fn from_str(s: &str) -> Result<Self, ParseError> {
                let valid: fn(&str) -> bool = $valid;
                if !s.is_empty() && s.len() <= $max && valid(s) {
                    Ok(Self(s.to_owned()))
                } else {
                    Err(ParseError(format!("expected {}, at most {} of them", $rule, $max)))
                }
            }
        }
        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }
        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
                d.str()?.parse().map_err(|e| CborError::message(format!("{}: {e}", stringify!($name))))
            }
        }
    };
}

/// Defines a newtype over an unsigned integer.
macro_rules! integer_newtype {
    ($(#[$meta:meta])* $name:ident, $int:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl<C> Encode<C> for $name {
            fn encode<W: Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), EncodeError<W::Error>> {
                e.$int(self.0)?.ok()
            }
        }
        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
                d.$int().map(Self)
            }
        }
    };
}

bytes_newtype!(
    /// A lease, drawn by the provider: 16 random bytes.
    LeaseId, 16
);
bytes_newtype!(
    /// A request: the hash of its one-time holder key, its provider and the network, so that it names exactly one
    /// holder at one provider and links to nothing else.
    RequestId, 32
);
bytes_newtype!(
    /// BLAKE3 hash of an image's manifest.
    ImageHash, 32
);
bytes_newtype!(
    /// Digest of a signed card; in a grant it is the offer that was accepted.
    CardDigest, 32
);
bytes_newtype!(
    /// Digest of a signed envelope.
    EnvelopeDigest, 32
);
bytes_newtype!(
    /// Digest of a reply key, which binds a reply to the one who asked.
    ReplyKeyHash, 32
);
bytes_newtype!(
    /// Digest of evidence, its collateral or anything else that travels apart.
    Digest, 32
);
secret_newtype!(
    /// The salt of a log leaf; only the holder of the lease and the provider know it.
    Salt, 32
);
bytes_newtype!(
    /// A raw Ed25519 SSH public key, without comment or options.
    SshPublicKey, 32
);
bytes_newtype!(
    /// The raw Ed25519 host key of an instance, made inside of it.
    HostKey, 32
);
secret_newtype!(
    /// What a relay asks for before it joins a stream to the provider.
    RelayToken, 32
);
bytes_newtype!(
    /// An operator, who may run many nodes; a name chosen by the operator, proven by nothing.
    OperatorId, 32
);

impl RequestId {
    /// The id of the one request that `holder` makes to `provider`.
    #[must_use]
    pub fn of(network: &NetworkId, provider: &NodeId, holder: &HolderPublicKey) -> Self {
        Self(domain::REQUEST_ID.hash(network, &[provider.as_bytes(), holder.as_bytes()]))
    }
}

impl ReplyKeyHash {
    /// The digest of `key`.
    #[must_use]
    pub fn of(network: &NetworkId, key: &ReplyPublicKey) -> Self {
        Self(domain::REPLY_KEY.hash(network, &[&[key.suite().id()], key.as_bytes()]))
    }
}

impl From<ObjectDigest> for CardDigest {
    fn from(digest: ObjectDigest) -> Self {
        Self(*digest.as_bytes())
    }
}

impl From<ObjectDigest> for EnvelopeDigest {
    fn from(digest: ObjectDigest) -> Self {
        Self(*digest.as_bytes())
    }
}

integer_newtype!(
    /// Rises with every card of a node.
    Sequence, u64
);
integer_newtype!(
    /// Rises with every request of a holder about one lease; the envelope itself counts as 0.
    Counter, u64
);
integer_newtype!(
    /// A length of time in seconds.
    DurationS, u32
);
integer_newtype!(
    /// An amount in the smallest unit of an asset.
    Money, u64
);

text_newtype!(
    /// An asset in which prices are told, such as `EUR` or `SAT`; `TEST` has no value.
    Asset, 16,
    |s| s.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()),
    "capital letters and digits"
);
text_newtype!(
    /// The name of a driver, such as `sandbox`.
    BackendName, 24,
    is_label,
    "lowercase letters, digits and inner hyphens"
);
text_newtype!(
    /// The name that a provider gives to an image, for people; what counts is its hash.
    ImageName, 32,
    |s| s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_')),
    "lowercase letters, digits, dots, hyphens and underscores"
);
text_newtype!(
    /// An architecture, as in Rust's `std::env::consts::ARCH`.
    Arch, 16,
    |s| s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_')),
    "lowercase letters, digits and underscores"
);
text_newtype!(
    /// The user to log in as. It ends in an `ssh_config`, so nothing but a plain name passes.
    UserName, 32,
    |s| is_label(s) && s.as_bytes()[0].is_ascii_lowercase(),
    "lowercase letters, digits and inner hyphens, a letter first"
);

wire_enum! {
    /// A limit that a backend may or may not be able to enforce for a whole lease.
    pub enum Limit {
        /// CPU time.
        Cpu = 0 => "cpu",
        /// Memory.
        Memory = 1 => "memory",
        /// Number of processes.
        Processes = 2 => "processes",
        /// Writable disk.
        Disk = 3 => "disk",
    }
}

wire_enum! {
    /// A trusted execution environment, by the number that evidence of it has on a card.
    pub enum Tee {
        /// None: whoever runs the host can look into the instance.
        None = 0 => "none",
        /// Intel TDX.
        Tdx = 1 => "tdx",
        /// AMD SEV-SNP.
        SevSnp = 2 => "sev-snp",
        /// None: a test made what looks like evidence, and it proves nothing.
        NoneTest = 3 => "none+test",
    }
}

impl FromStr for Limit {
    type Err = ParseError;
    fn from_str(s: &str) -> Result<Self, ParseError> {
        Self::ALL
            .iter()
            .copied()
            .find(|limit| limit.as_str() == s)
            .ok_or_else(|| ParseError("expected cpu, memory, processes or disk".to_owned()))
    }
}

/// A set of limits, written as a rising list.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Limits(u8);

impl Limits {
    /// The set of these limits.
    #[must_use]
    pub fn of(limits: &[Limit]) -> Self {
        Self(limits.iter().fold(0, |set, limit| set | 1 << limit.code()))
    }

    /// Whether it is in the set.
    #[must_use]
    pub const fn contains(self, limit: Limit) -> bool {
        self.0 & (1 << limit.code()) != 0
    }

    /// The limits of this set that `other` lacks.
    #[must_use]
    pub const fn missing_from(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The limits, rising.
    pub fn iter(self) -> impl Iterator<Item = Limit> {
        Limit::ALL
            .iter()
            .copied()
            .filter(move |limit| self.contains(*limit))
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Words separated by commas; `none` for the empty set.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.iter().map(Limit::as_str).collect();
        f.pad(&if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        })
    }
}

impl<C> Encode<C> for Limits {
    fn encode<W: Write>(
        &self,
        e: &mut Encoder<W>,
        ctx: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.array(u64::from(self.0.count_ones()))?;
        self.iter().try_for_each(|limit| limit.encode(e, ctx))
    }
}

impl<'b, C> Decode<'b, C> for Limits {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, CborError> {
        let mut set = Self::default();
        for _ in 0..crate::wire::definite(d.array()?)? {
            let limit = Limit::decode(d, ctx)?;
            if set.0 >> limit.code() != 0 {
                return Err(CborError::message("limits are not rising"));
            }
            set.0 |= 1 << limit.code();
        }
        Ok(set)
    }
}

wire_map! {
    /// What a lease gets, or the largest that fits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Resources {
        /// CPU, in thousandths of a core.
        0 => pub cpu_millicores: u32,
        /// Memory, in MiB.
        1 => pub memory_mib: u32,
        /// Writable disk, in MiB.
        2 => pub disk_mib: u32,
        /// GPUs.
        3 => pub gpus: u8,
        /// Processes and threads.
        4 => pub max_processes: u32,
    }
}

impl Resources {
    /// Nothing at all.
    pub const ZERO: Self = Self {
        cpu_millicores: 0,
        memory_mib: 0,
        disk_mib: 0,
        gpus: 0,
        max_processes: 0,
    };

    /// Whether a lease of this size fits into `room`, in every dimension.
    #[must_use]
    pub fn fits_in(&self, room: &Self) -> bool {
        self.cpu_millicores <= room.cpu_millicores
            && self.memory_mib <= room.memory_mib
            && self.disk_mib <= room.disk_mib
            && self.gpus <= room.gpus
            && self.max_processes <= room.max_processes
    }

    /// What is left of `self` once `other` was taken, at least zero in every dimension.
    #[must_use]
    pub fn saturating_sub(&self, other: &Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_sub(other.cpu_millicores),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_mib: self.disk_mib.saturating_sub(other.disk_mib),
            gpus: self.gpus.saturating_sub(other.gpus),
            max_processes: self.max_processes.saturating_sub(other.max_processes),
        }
    }
}

/// A meter reading. A meter that failed is unknown, which is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Meter {
    /// Measured to the end.
    Known(u64),
    /// The last reading before the meter was lost.
    AtLeast(u64),
    /// Nothing is known.
    Unknown,
}

impl<C> Encode<C> for Meter {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), EncodeError<W::Error>> {
        match self {
            Self::Known(n) => e.array(2)?.u8(0)?.u64(*n)?.ok(),
            Self::AtLeast(n) => e.array(2)?.u8(1)?.u64(*n)?.ok(),
            Self::Unknown => e.array(1)?.u8(2)?.ok(),
        }
    }
}

impl<'b, C> Decode<'b, C> for Meter {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, CborError> {
        match (crate::wire::definite(d.array()?)?, d.u8()?) {
            (2, 0) => Ok(Self::Known(d.u64()?)),
            (2, 1) => Ok(Self::AtLeast(d.u64()?)),
            (1, 2) => Ok(Self::Unknown),
            _ => Err(CborError::message("not a meter reading")),
        }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(n) => write!(f, "{n}"),
            Self::AtLeast(n) => write!(f, "at least {n}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

fn is_label(s: &str) -> bool {
    s.bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !s.starts_with('-')
        && !s.ends_with('-')
}

fn parse_hex<const N: usize>(s: &str) -> Result<[u8; N], ParseError> {
    let wrong = || ParseError(format!("expected {} lowercase hex digits", 2 * N));
    if s.len() != 2 * N || !s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(wrong());
    }
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&s[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
    }
    Ok(out)
}
