//! Comparing the card sets of several entries: a card is used only when enough of them showed it.
//!
//! ```text
//!   pages of entry 1 ─┐
//!   pages of entry 2 ─┼─► Gathering ─► compare(quorum) ─► Market { cards, roots, left out }
//!   pages of entry 3 ─┘
//! ```
//!
//! Threats: an entry that hands out cards made for one requester only (marked: no other entry has them), or leaves out
//! all but its own (thinned: the others still show them), or that sends without end (pages are bounded, and a set
//! whose root does not fit its cards is thrown away whole).

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use souk_crypto::{NetworkId, NodeId, Signed, UnixTime, Verified, cbor::DecodeError};

use crate::{
    capacity::{CAPACITY_LIFE_S, Capacity, Level},
    card::{Address, Age, Card, CardError, VerifiedCard},
    snapshot::{self, MAX_PAGES, Page},
    units::{CardDigest, Digest, Sequence},
};

/// Most entries whose sets are compared at one time; each may cost 16 MiB at worst.
pub const MAX_ENTRIES: usize = 5;

/// Sets of cards that are being collected.
#[derive(Debug)]
pub struct Gathering {
    network: NetworkId,
    now: UnixTime,
    private_addresses: bool,
    sets: BTreeMap<NodeId, Set>,
    /// Every card is opened once, however many entries show it.
    opened: HashMap<CardDigest, Arc<VerifiedCard>>,
    capacities: BTreeMap<NodeId, Arc<Verified<Capacity>>>,
}

#[derive(Debug)]
struct Set {
    epoch: u32,
    root: Digest,
    pages: u16,
    next: u16,
    cards: Vec<(NodeId, CardDigest)>,
}

/// Whether more pages are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// This many are missing.
    More(u16),
    /// The set is complete and fits its root.
    Complete,
}

/// What is wrong with the set of an entry; the set is dropped.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// Not a page.
    #[error("not a page of cards")]
    Page(#[source] DecodeError),
    /// The page belongs to another set, or does not come next.
    #[error("page {index} of {pages} does not continue the set")]
    Order {
        /// Its number.
        index: u16,
        /// How many it says there are.
        pages: u16,
    },
    /// A card that does not open.
    #[error("a card of the set is not valid")]
    Card(#[source] CardError),
    /// A card with an address of a private range on a public network.
    #[error("a card of the set names a private address")]
    PrivateAddress,
    /// Cards are not in the order of their nodes, or one stands twice.
    #[error("the cards of the set are not in order")]
    CardOrder,
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

/// What several entries agree on.
#[derive(Clone, Debug)]
pub struct Market {
    /// Usable cards, by node.
    pub cards: Vec<MarketCard>,
    /// The entries whose sets were complete, with epoch and root.
    pub roots: Vec<(NodeId, u32, Digest)>,
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
            capacities: BTreeMap::new(),
        }
    }

    /// Takes the next page of an entry.
    ///
    /// # Errors
    /// [`SetError`]; what this entry sent so far is dropped.
    pub fn handle_page(&mut self, entry: NodeId, bytes: &[u8]) -> Result<Progress, SetError> {
        let outcome = self.take_page(entry, bytes);
        if outcome.is_err() {
            self.sets.remove(&entry);
        }
        outcome
    }

    /// Drops what an entry sent, because it went away before its set was complete.
    pub fn drop_entry(&mut self, entry: &NodeId) {
        self.sets.remove(entry);
    }

    /// Compares the complete sets. A card is used when at least `quorum` of them hold it, byte for byte; where there
    /// are fewer sets than that, none is.
    #[must_use]
    pub fn compare(mut self, quorum: usize) -> Market {
        self.sets.retain(|_, set| set.is_complete());
        let mut shown: BTreeMap<NodeId, BTreeMap<CardDigest, usize>> = BTreeMap::new();
        for (node, digest) in self.sets.values().flat_map(|set| &set.cards) {
            *shown.entry(*node).or_default().entry(*digest).or_default() += 1;
        }
        let mut cards = Vec::new();
        let mut left_out = Vec::new();
        for (node, digests) in shown {
            match self.choose(&digests, quorum) {
                Ok(card) => {
                    // A set may hold a card that ended on its way; it is no news.
                    if card.age(self.now) == Age::Alive {
                        let capacity = self.capacities.get(&node).cloned();
                        let capacity = capacity.filter(|c| self.speaks_of(c, &card));
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

    fn take_page(&mut self, entry: NodeId, bytes: &[u8]) -> Result<Progress, SetError> {
        let page = Page::from_bytes(bytes).map_err(SetError::Page)?;
        if !self.sets.contains_key(&entry) && self.sets.len() >= MAX_ENTRIES {
            return Err(SetError::TooManyEntries);
        }
        let mut set = self
            .sets
            .remove(&entry)
            .unwrap_or_else(|| Set::begin(&page));
        if !set.continues_with(&page) {
            return Err(SetError::Order {
                index: page.index,
                pages: page.pages,
            });
        }
        for listing in page.cards.iter() {
            let card = self.open(&listing.card)?;
            if set.cards.last().is_some_and(|(last, _)| *last >= card.node) {
                return Err(SetError::CardOrder);
            }
            set.cards.push((card.node, card.digest()));
            if let Some(capacity) = &listing.capacity {
                self.take_capacity(&card, capacity);
            }
        }
        set.next += 1;
        let progress = if set.is_complete() {
            let digests = set.cards.iter().map(|(_, digest)| digest.0);
            if snapshot::root(&self.network, set.epoch, digests) != set.root {
                return Err(SetError::Root);
            }
            Progress::Complete
        } else {
            Progress::More(set.pages - set.next)
        };
        self.sets.insert(entry, set);
        Ok(progress)
    }

    fn open(&mut self, signed: &Signed<Card>) -> Result<Arc<VerifiedCard>, SetError> {
        let digest = signed.digest().into();
        if let Some(card) = self.opened.get(&digest) {
            return Ok(Arc::clone(card));
        }
        let card = VerifiedCard::open(signed.as_bytes(), &self.network, |_| None)
            .map_err(SetError::Card)?;
        if !self.private_addresses && !card.addresses.iter().all(Address::is_public) {
            return Err(SetError::PrivateAddress);
        }
        let card = Arc::new(card);
        self.opened.insert(digest, Arc::clone(&card));
        Ok(card)
    }

    /// A capacity message that is not good is as good as none: it decides nothing but an order of preference.
    fn take_capacity(&mut self, card: &VerifiedCard, signed: &Signed<Capacity>) {
        let Ok(capacity) = signed.open(&self.network) else {
            return;
        };
        if capacity.node != card.node || *capacity.signer() != card.sub_keys().card_key {
            return;
        }
        let newer = self
            .capacities
            .get(&card.node)
            .is_none_or(|held| held.at < capacity.at);
        if newer {
            self.capacities.insert(card.node, Arc::new(capacity));
        }
    }

    fn choose(
        &self,
        digests: &BTreeMap<CardDigest, usize>,
        quorum: usize,
    ) -> Result<Arc<VerifiedCard>, LeftOut> {
        let mut by_sequence: BTreeMap<Sequence, (&Arc<VerifiedCard>, usize)> = BTreeMap::new();
        for (digest, seen) in digests {
            let card = &self.opened[digest];
            if by_sequence.insert(card.sequence, (card, *seen)).is_some() {
                return Err(LeftOut::Equivocal);
            }
        }
        // While a new card spreads, some entries still show the one before: the newest with a quorum counts.
        let chosen = by_sequence
            .values()
            .rev()
            .find(|(_, seen)| *seen >= quorum.max(1));
        chosen
            .map(|(card, _)| Arc::clone(card))
            .ok_or_else(|| LeftOut::NoQuorum {
                seen: by_sequence
                    .values()
                    .map(|(_, seen)| *seen)
                    .max()
                    .unwrap_or(0),
            })
    }

    fn speaks_of(&self, capacity: &Capacity, card: &VerifiedCard) -> bool {
        capacity.card == card.sequence && self.now < capacity.at.plus_s(CAPACITY_LIFE_S)
    }
}

impl Set {
    fn begin(page: &Page) -> Self {
        Self {
            epoch: page.epoch,
            root: page.root,
            pages: page.pages,
            next: 0,
            cards: Vec::new(),
        }
    }

    fn continues_with(&self, page: &Page) -> bool {
        page.index == self.next
            && page.pages == self.pages
            && page.root == self.root
            && page.epoch == self.epoch
            && usize::from(page.pages) <= MAX_PAGES
    }

    fn is_complete(&self) -> bool {
        self.next == self.pages
    }
}
