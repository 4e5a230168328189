//! Messages: cut into fragments of one size, acknowledged, sent again where packets were lost.
//!
//! ```text
//!  sender                                             receiver
//!  submit ─► fragments, each with an ack SURB ──────► admission ─► reassembly ─┬─ complete ─► deliver, ack
//!    ▲          │ not acked in time                                            ├─ aged ─► ack what is here
//!    │          └─► again over a fresh route, at most four times               └─ repeat of a done one ─► ack
//!    └───────── ack: all fragments that are here ◄─────────────────────────────┘
//! ```
//!
//! [`Outbox`] is the sender's half, [`Inbox`] the receiver's; [`crate::session::Session`] puts the first together with
//! routes and SURBs. A message has 1, 8 or 24 fragments and is always filled, so that its length shows three values.
//! Replies fit one packet and need no acknowledgement: one that was lost is fetched by a poll.
//!
//! The threats: memory taken by strangers (admission comes first, every table has a bound), a message lost with one
//! packet, and a message delivered twice.

mod fragment;
mod receive;
mod send;

use std::fmt;

use rand_core::CryptoRng;

pub use fragment::{Ack, Fragment, FragmentError, PART_LEN, Reply, ReplyBody};
pub use receive::{
    AckOut, Gate, Handled, Inbox, MAX_PARTIAL_BYTES, MAX_PARTIALS, Message, PARTIAL_AGE, Refused,
};
pub use send::{Done, MAX_OUTGOING, Outbox, Outgoing, SubmitError, Transmit, Tried};
pub(crate) use send::{SUSPICION, time_in_flight};

/// Longest admission in bytes.
pub const MAX_ADMISSION_LEN: usize = 128;

/// How often a fragment is sent again.
pub const MAX_RESENDS: u32 = 4;

/// What names a message to its two ends: random, and new for each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId([u8; 16]);

impl MessageId {
    /// Draws an id.
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; 16];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Takes an id from a fragment.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        self.0
    }
}

/// How many fragments a message has. There are three sizes, so that a size says little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// 1 fragment, up to 1,478 bytes: a poll, an end.
    Small,
    /// 8 fragments, up to 11,852 bytes: an envelope with its SURBs.
    Medium,
    /// 24 fragments, up to 35,564 bytes.
    Large,
}

impl Class {
    /// All classes, from the smallest.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The smallest class that holds `len` bytes.
    #[must_use]
    pub fn fitting(len: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|class| len <= class.capacity())
    }

    /// Fragments of a message of this class.
    #[must_use]
    pub const fn fragments(self) -> usize {
        match self {
            Self::Small => 1,
            Self::Medium => 8,
            Self::Large => 24,
        }
    }

    /// Bytes that a message of this class holds: its fragments, less the length in front.
    #[must_use]
    pub const fn capacity(self) -> usize {
        self.fragments() * PART_LEN - LENGTH_PREFIX
    }

    /// One bit for each fragment.
    const fn full(self) -> Received {
        Received((1 << self.fragments()) - 1)
    }

    fn from_fragments(count: u8) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|class| class.fragments() == usize::from(count))
    }
}

/// The message's length, `u32` big endian, in front of its bytes; zeros follow them.
const LENGTH_PREFIX: usize = 4;

/// Which fragments of a message are here: one bit each, the first fragment lowest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received(u32);

impl Received {
    /// The bits, at most 24.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    fn has(self, index: u8) -> bool {
        self.0 & (1 << index) != 0
    }

    fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn one(index: u8) -> Self {
        Self(1 << index)
    }
}

/// What a message shows before memory is given to it: a type and at most [`MAX_ADMISSION_LEN`] bytes.
///
/// Each fragment carries the same. What types there are, and which of them a receiver wants, the layer above decides.
#[derive(Clone, PartialEq, Eq)]
pub struct Admission {
    kind: u8,
    bytes: Vec<u8>,
}

impl Admission {
    /// Nothing to show.
    pub const NONE: Self = Self {
        kind: 0,
        bytes: Vec::new(),
    };

    /// An admission of type `kind`; `None` if it is longer than [`MAX_ADMISSION_LEN`].
    #[must_use]
    pub fn new(kind: u8, bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() <= MAX_ADMISSION_LEN).then_some(Self { kind, bytes })
    }

    /// Its type; 0 is none.
    #[must_use]
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Admission(type {}, {} B)", self.kind, self.bytes.len())
    }
}
