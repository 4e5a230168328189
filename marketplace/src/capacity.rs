//! How much room a provider has now, told coarsely and on a fixed period.
//!
//! Threat: whoever could watch exact figures, or see a message whenever one changes, would read every lease of the
//! provider as it begins and ends. So there are three levels, and the clock decides when a message goes out.
//!
//! The size and root of the usage log ride along: a provider that shows different logs to different readers shows it
//! here, to everybody.

use souk_crypto::{
    NodeId, UnixTime,
    domain::{self, SignDomain},
    keys,
    sign::Object,
};

use crate::{
    card::{MAX_CLASSES, MAX_OFFERS},
    units::{Digest, Sequence},
    wire::{List, wire_enum, wire_map},
};

/// Mean seconds between two capacity messages of a provider.
pub const CAPACITY_PERIOD_S: u64 = 60;
/// The period is longer or shorter by up to so many seconds, drawn anew each time.
pub const CAPACITY_JITTER_S: u64 = 15;
/// A capacity message says nothing any more after so many seconds: three messages were lost.
pub const CAPACITY_LIFE_S: u64 = 3 * (CAPACITY_PERIOD_S + CAPACITY_JITTER_S);

wire_enum! {
    /// How many leases of one size class fit now.
    pub enum Level {
        /// None.
        None = 0 => "none",
        /// At least one.
        Some = 1 => "some",
        /// At least four.
        Plenty = 2 => "plenty",
    }
}

impl Level {
    /// The level at which so many more leases fit.
    #[must_use]
    pub const fn of(leases: u32) -> Self {
        match leases {
            0 => Self::None,
            1..=3 => Self::Some,
            _ => Self::Plenty,
        }
    }
}

wire_map! {
    /// Where the usage log of a provider stood at its last checkpoint.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LogHead {
        /// Leaves.
        0 => pub size: u64,
        /// Root of the tree.
        1 => pub root: Digest,
    }
}

wire_map! {
    /// The room of a provider, for each offer of its card and each size class of the offer.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Capacity {
        /// The provider.
        0 => pub node: NodeId,
        /// The card that it speaks about.
        1 => pub card: Sequence,
        /// When it was made; a later one replaces it.
        2 => pub at: UnixTime,
        /// Levels, in the order of the card.
        3 => pub levels: List<List<Level, MAX_CLASSES>, MAX_OFFERS>,
        /// The usage log; absent before its first checkpoint.
        4 => pub log: Option<LogHead>,
    }
}

impl Capacity {
    /// The level of a size class; `None` where the message does not speak of it.
    #[must_use]
    pub fn level(&self, offer: usize, class: usize) -> Option<Level> {
        self.levels.get(offer)?.get(class).copied()
    }
}

impl Object for Capacity {
    type Signer = keys::Card;
    const DOMAIN: SignDomain<keys::Card> = domain::CAPACITY;
}
