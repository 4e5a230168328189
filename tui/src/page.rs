//! The pages, and what can be done on them.

/// A page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Page {
    /// Who the node is, what it earns, and why not.
    #[default]
    Overview,
    /// What carries leases, and what is stuck there.
    Backends,
    /// Leases that are not closed.
    Leases,
    /// Packets.
    Mix,
    /// What others offer beside this node.
    Market,
    /// Peers.
    Network,
    /// The usage log.
    Log,
    /// What happened last.
    Events,
}

impl Page {
    /// In the order of their keys.
    pub const ALL: [Self; 8] = [
        Self::Overview,
        Self::Backends,
        Self::Leases,
        Self::Mix,
        Self::Market,
        Self::Network,
        Self::Log,
        Self::Events,
    ];

    /// Its title.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Backends => "Backends",
            Self::Leases => "Leases",
            Self::Mix => "Mix",
            Self::Market => "Market",
            Self::Network => "Network",
            Self::Log => "Log",
            Self::Events => "Events",
        }
    }

    /// The page `by` places to the right, round the end.
    #[must_use]
    pub fn step(self, by: isize) -> Self {
        let count = Self::ALL.len();
        let at = self.number().wrapping_add_signed(by.rem_euclid(8)) % count;
        Self::ALL[at]
    }

    /// Its place, from zero.
    #[must_use]
    pub const fn number(self) -> usize {
        self as usize
    }

    /// The keys that do something on this page, beside those that work on all of them.
    #[must_use]
    pub const fn keys(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Overview => &[("d", "drain"), ("u", "resume"), ("c", "new card")],
            Self::Backends => &[("p", "pause or go on"), ("x", "remove orphan")],
            Self::Leases => &[("e", "end lease")],
            Self::Market => &[("c", "new card")],
            Self::Mix | Self::Network | Self::Log | Self::Events => &[],
        }
    }

    /// Whether it has a table that can be filtered.
    #[must_use]
    pub const fn has_table(self) -> bool {
        !matches!(self, Self::Overview | Self::Mix)
    }
}
