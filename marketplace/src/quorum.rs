//! Comparing the card sets of several entries: a card is used only when enough of them showed it.
//!
//! ```text
//!   set of entry 1 ─┐
//!   set of entry 2 ─┼─► Gathering ─► compare(quorum) ─► Market { cards, roots, left out }
//!   set of entry 3 ─┘
//! ```
//!
//! Threats: a card under a key that its node has replaced, shown by entries that are late or bribed (the latest list of keys that
//! anybody shows counts); an entry that hands out cards made for one requester only (marked: no other entry has them), or leaves out
//! all but its own (thinned: the others still show them), or that sends without end (sets are bounded, and one whose
//! root does not fit its cards is thrown away whole), or that drowns what a provider says of its room and its log in messages
//! of its own making (each set has one message for each node, by the key of the card that it shows), or that shows cards of another
//! time, so that we take our clock for wrong (only cards that a quorum shows speak of it).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use souk_crypto::{
    MAX_SKEW_S, NetworkId, NodeId, Signed, UnixTime, Verified,
    sign::{self, OpenError},
};

use crate::{
    capacity::{CAPACITY_LIFE_S, Capacity, Level},
    card::{Address, Age, Card, CardError, VerifiedCard},
    directory::MAX_CARDS,
    log::LogClaim,
    snapshot,
    units::{CardDigest, Digest, Sequence},
};

/// Most entries whose sets are compared at one time; each may cost 16 MiB at worst.
pub const MAX_ENTRIES: usize = 5;

/// A card is of another time than ours when it begins or ended by so much, in seconds, beyond the accepted skew: an entry
/// whose clock is right shows none, and a set takes a minute to come.
const OTHER_TIME_S: u64 = 1_800;

/// Sets of cards that are being collected.
#[derive(Debug)]
pub struct Gathering {
    network: NetworkId,
    now: UnixTime,
    private_addresses: bool,
    sets: BTreeMap<NodeId, Set>,
    /// Every card is opened once, however many entries show it.
    opened: HashMap<CardDigest, Arc<VerifiedCard>>,
}

#[derive(Debug)]
struct Set {
    epoch: u64,
    root: Digest,
    cards: Vec<(NodeId, CardDigest)>,
    /// The newest for each node, by the card key of its card in this set.
    capacities: BTreeMap<NodeId, Arc<Verified<Capacity>>>,
}

/// What is wrong with the set of an entry; the set is dropped.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// A card that does not open.
    #[error("a card of the set is not valid")]
    Card(#[source] CardError),
    /// A card with an address of a private range on a public network.
    #[error("a card of the set names a private address")]
    PrivateAddress,
    /// Cards are not in the order of their nodes, or one stands twice.
    #[error("the cards of the set are not in order")]
    CardOrder,
    /// More cards than a directory holds.
    #[error("more than {MAX_CARDS} cards")]
    TooManyCards,
    /// The root is not that of the cards.
    #[error("the root of the set is not that of its cards")]
    Root,
    /// More entries than are compared.
    #[error("more than {MAX_ENTRIES} entries")]
    TooManyEntries,
}

/// A card that enough entries showed.
#[derive(Clone, Debug)]
pub struct MarketCard {
    /// The card.
    pub card: Arc<VerifiedCard>,
    /// The newest capacity message of its node, where one speaks of this card.
    pub capacity: Option<Arc<Verified<Capacity>>>,
}

/// Why a card is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// Too few entries showed it.
    NoQuorum {
        /// How many did.
        seen: usize,
    },
    /// Its node signed two cards under one sequence.
    Equivocal,
}

/// What the cards that a quorum shows say of our clock, where most of them are of another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongClock {
    /// Most begin later than now. For the entries the newest has begun, so that we are behind them by at least as much.
    #[error(
        "this machine's clock seems {} or more behind the network: {untimely} of {cards} cards that the nodes agree on begin later than now",
        span(.by_s)
    )]
    Behind {
        /// By how much the newest card begins later than now, in seconds.
        by_s: u64,
        /// How many are of another time.
        untimely: usize,
        /// How many cards there are.
        cards: usize,
    },
    /// Most have ended. The newest may have begun a while ago, so that we are ahead by at most as much.
    #[error(
        "this machine's clock seems up to {} ahead of the network: {untimely} of {cards} cards that the nodes agree on have ended",
        span(.by_s)
    )]
    Ahead {
        /// How long ago the newest card began, in seconds.
        by_s: u64,
        /// How many are of another time.
        untimely: usize,
        /// How many cards there are.
        cards: usize,
    },
}

/// What several entries agree on.
#[derive(Clone, Debug)]
pub struct Market {
    /// Usable cards, by node.
    pub cards: Vec<MarketCard>,
    /// The entries whose sets were complete, with epoch and root.
    pub roots: Vec<(NodeId, u64, Digest)>,
    /// Nodes whose card is not used, and why.
    pub left_out: Vec<(NodeId, LeftOut)>,
    /// How many entries had to show a card.
    pub quorum: usize,
}

impl MarketCard {
    /// The level of a size class, where the node has told it.
    #[must_use]
    pub fn level(&self, offer: usize, class: usize) -> Option<Level> {
        self.capacity.as_ref()?.level(offer, class)
    }
}

impl Market {
    /// Whether all entries showed the same set.
    #[must_use]
    pub fn is_unanimous(&self) -> bool {
        self.roots
            .windows(2)
            .all(|pair| pair[0].1 == pair[1].1 && pair[0].2 == pair[1].2)
    }

    /// The card of a node.
    #[must_use]
    pub fn card(&self, node: &NodeId) -> Option<&MarketCard> {
        let at = self
            .cards
            .binary_search_by(|listed| listed.card.node.cmp(node))
            .ok()?;
        self.cards.get(at)
    }
}

impl Gathering {
    /// Begins to collect. `private_addresses` is for test networks.
    #[must_use]
    pub fn new(network: NetworkId, private_addresses: bool, now: UnixTime) -> Self {
        Self {
            network,
            now,
            private_addresses,
            sets: BTreeMap::new(),
            opened: HashMap::new(),
        }
    }

    /// Takes the set of an entry: its epoch and root, and its objects in the order of
    /// [`crate::snapshot::Snapshot::objects`]. A second set of the same entry replaces the first.
    ///
    /// # Errors
    /// [`SetError`]; nothing of the set is used then.
    pub fn handle_set<'o>(
        &mut self,
        entry: NodeId,
        epoch: u64,
        root: Digest,
        objects: impl IntoIterator<Item = &'o [u8]>,
    ) -> Result<(), SetError> {
        self.sets.remove(&entry);
        if self.sets.len() >= MAX_ENTRIES {
            return Err(SetError::TooManyEntries);
        }
        let mut cards: Vec<(NodeId, CardDigest)> = Vec::new();
        let mut capacities = BTreeMap::new();
        for object in objects {
            let card = match self.open(object) {
                Ok(card) => card,
                // Cards come first; what follows them is of another kind.
                Err(SetError::Card(CardError::Card(OpenError::Header { field: "kind" }))) => {
                    self.take_capacity(&mut capacities, &cards, object);
                    continue;
                }
                Err(SetError::Card(_)) if LogClaim::is_form_of(object) => continue,
                Err(error) => return Err(error),
            };
            if cards.last().is_some_and(|(last, _)| *last >= card.node) {
                return Err(SetError::CardOrder);
            }
            if cards.len() >= MAX_CARDS {
                return Err(SetError::TooManyCards);
            }
            cards.push((card.node, card.digest()));
        }
        let digests = cards.iter().map(|(_, digest)| digest.0);
        if snapshot::root(&self.network, epoch, digests) != root {
            return Err(SetError::Root);
        }
        let set = Set {
            epoch,
            root,
            cards,
            capacities,
        };
        self.sets.insert(entry, set);
        Ok(())
    }

    /// What the sets say of our clock, where it seems to be wrong: most cards that at least `quorum` of them hold are then of
    /// another time, and what [`Self::compare`] leaves of them is no market.
    #[must_use]
    pub fn wrong_clock(&self, quorum: usize) -> Option<WrongClock> {
        let shown = self.shown();
        let agreed = shown.values().map(|digests| self.choose(digests, quorum));
        let agreed: Vec<_> = agreed.filter_map(Result::ok).collect();
        let (cards, now) = (agreed.len(), self.now);
        let newest = agreed.iter().map(|card| card.from).max()?;
        let off_s = MAX_SKEW_S + OTHER_TIME_S;
        let future = agreed.iter().filter(|card| now.plus_s(off_s) < card.from);
        let past = agreed.iter().filter(|card| card.to.plus_s(off_s) <= now);
        match (future.count(), past.count()) {
            (untimely, _) if 2 * untimely > cards => Some(WrongClock::Behind {
                by_s: newest.since_s(now),
                untimely,
                cards,
            }),
            (_, untimely) if 2 * untimely > cards => Some(WrongClock::Ahead {
                by_s: now.since_s(newest),
                untimely,
                cards,
            }),
            _ => None,
        }
    }

    /// Compares the sets. A card is used when at least `quorum` of them hold it, byte for byte; where there
    /// are fewer sets than that, none is.
    #[must_use]
    pub fn compare(self, quorum: usize) -> Market {
        let mut cards = Vec::new();
        let mut left_out = Vec::new();
        for (node, digests) in self.shown() {
            match self.choose(&digests, quorum) {
                Ok(card) => {
                    // A set may hold a card that ended on its way; it is no news.
                    if card.age(self.now) == Age::Alive {
                        let capacity = self.capacity(&card);
                        cards.push(MarketCard { card, capacity });
                    }
                }
                Err(why) => left_out.push((node, why)),
            }
        }
        let roots = self
            .sets
            .iter()
            .map(|(entry, set)| (*entry, set.epoch, set.root))
            .collect();
        Market {
            cards,
            roots,
            left_out,
            quorum,
        }
    }

    /// The cards that are shown of each node, and how many sets hold each.
    fn shown(&self) -> BTreeMap<NodeId, BTreeMap<CardDigest, usize>> {
        let mut shown: BTreeMap<NodeId, BTreeMap<CardDigest, usize>> = BTreeMap::new();
        for (node, digest) in self.sets.values().flat_map(|set| &set.cards) {
            *shown.entry(*node).or_default().entry(*digest).or_default() += 1;
        }
        shown
    }

    fn open(&mut self, bytes: &[u8]) -> Result<Arc<VerifiedCard>, SetError> {
        let signed = Signed::<Card>::from_bytes(bytes)
            .map_err(|error| SetError::Card(CardError::Card(error)))?;
        let digest = signed.digest().into();
        if let Some(card) = self.opened.get(&digest) {
            return Ok(Arc::clone(card));
        }
        let card = VerifiedCard::open(bytes, &self.network, |_| None).map_err(SetError::Card)?;
        if !self.private_addresses && !card.addresses.iter().all(Address::is_public) {
            return Err(SetError::PrivateAddress);
        }
        let card = Arc::new(card);
        self.opened.insert(digest, Arc::clone(&card));
        Ok(card)
    }

    /// A capacity message that is not good is as good as none: it decides nothing but an order of preference, and what it says of
    /// the log proves itself.
    fn take_capacity(
        &self,
        taken: &mut BTreeMap<NodeId, Arc<Verified<Capacity>>>,
        cards: &[(NodeId, CardDigest)],
        bytes: &[u8],
    ) {
        let Ok(capacity) = sign::open::<Capacity>(bytes, &self.network) else {
            return;
        };
        let node = capacity.node;
        let Ok(at) = cards.binary_search_by(|(listed, _)| listed.cmp(&node)) else {
            return;
        };
        let is_its_own = *capacity.signer() == self.opened[&cards[at].1].sub_keys().card_key;
        let is_newest = taken.get(&node).is_none_or(|held| held.at < capacity.at);
        if is_its_own && is_newest {
            taken.insert(node, Arc::new(capacity));
        }
    }

    fn choose(
        &self,
        digests: &BTreeMap<CardDigest, usize>,
        quorum: usize,
    ) -> Result<Arc<VerifiedCard>, LeftOut> {
        // One entry is enough to know a later list: the node itself signed it. What it no longer names is not used any more,
        // however many still show it.
        let cards = || {
            digests
                .iter()
                .map(|(digest, seen)| (&self.opened[digest], *seen))
        };
        let Some(newest) = cards().map(|(card, _)| card).max_by_key(|card| card.rank()) else {
            return Err(LeftOut::NoQuorum { seen: 0 });
        };
        let is_named = |card: &VerifiedCard| {
            card.rank() == newest.rank() || card.sub_keys().card_key == newest.sub_keys().card_key
        };
        let mut by_rank: BTreeMap<(u64, Sequence), (&Arc<VerifiedCard>, usize)> = BTreeMap::new();
        for (card, seen) in cards().filter(|(card, _)| is_named(card)) {
            if by_rank.insert(card.rank(), (card, seen)).is_some() {
                return Err(LeftOut::Equivocal);
            }
        }
        // While a new card spreads, some entries still show the one before: the newest with a quorum counts.
        let chosen = by_rank
            .values()
            .rev()
            .find(|(_, seen)| *seen >= quorum.max(1));
        chosen
            .map(|(card, _)| Arc::clone(card))
            .ok_or_else(|| LeftOut::NoQuorum {
                seen: by_rank.values().map(|(_, seen)| *seen).max().unwrap_or(0),
            })
    }

    fn capacity(&self, card: &VerifiedCard) -> Option<Arc<Verified<Capacity>>> {
        let speaks_of_it = |capacity: &&Arc<Verified<Capacity>>| {
            *capacity.signer() == card.sub_keys().card_key
                && capacity.card == card.sequence
                && self.now < capacity.at.plus_s(CAPACITY_LIFE_S)
        };
        self.sets
            .values()
            .filter_map(|set| set.capacities.get(&card.node))
            .filter(speaks_of_it)
            .max_by_key(|capacity| capacity.at)
            .cloned()
    }
}

/// A time that is told to people: whole hours, or days where these are many.
fn span(seconds: &u64) -> String {
    let hours = (seconds + 1_800) / 3_600;
    match hours {
        0..72 => format!("{hours} h"),
        _ => format!("{} days", hours / 24),
    }
}
