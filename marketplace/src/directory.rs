//! The cards that a node believes: what comes in is checked, what contradicts is kept as evidence, and all is bounded.
//!
//! ```text
//!              valid, newer                    same list and sequence, other bytes
//!   (nothing) ─────────────► card ────────────────────────────────────────► equivocal ── higher sequence ──► card
//!                              │ expired: forgotten                                │
//!                              └───────────── retirement ──────────────────────────┴──► tombstone (30 days)
//! ```
//!
//! The core is asked before anything is passed on: [`Verdict::Accept`] is passed on, [`Verdict::Ignore`] is dropped
//! without blame, and only [`Verdict::Reject`] counts against the neighbour, because only bad form or a bad signature
//! is something that every honest neighbour would have noticed.
//!
//! The last thing that each provider said of its usage log outlives its card: it is handed out with the cards, so that a
//! provider that was restored from an old backup learns what it has signed, and so that one that contradicts itself is
//! found out by whoever saw both ([`Contradiction`]).
//!
//! Newer is a card with a later list of keys, whatever its sequence, and under one list the higher sequence: who stole a card key
//! that its node has replaced cannot say anything more where the new list is known.
//!
//! Threats: a stranger that fills the memory (bounds below), that fills every place with nodes it made up
//! ([`crate::shares`]), that floods with its own valid cards
//! ([`UPDATE_BURST`]), that shows different cards to different readers (equivocation, and [`crate::quorum`]).

mod accused;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map},
    sync::Arc,
};

use souk_crypto::{
    MAX_SKEW_S, NetworkId, NodeId, Signed, UnixTime, Verified,
    sign::{self, OpenError},
};

use self::accused::{Accused, Known};
use crate::{
    capacity::{CAPACITY_JITTER_S, CAPACITY_LIFE_S, CAPACITY_PERIOD_S, Capacity},
    card::{Address, Age, Card, CardError, VerifiedCard},
    log::{Contradiction, LogClaim, MAX_CLAIM_BYTES},
    retirement::{RetirementError, VerifiedRetirement},
    shares::{self, Arrivals, Brought, Source},
    snapshot::Snapshot,
};

/// Most nodes with a card. At 4 KiB a card this is 16 MiB at worst and about 6 MiB in practice; when full, fair shares of
/// those who brought them decide ([`crate::shares`]).
pub const MAX_CARDS: usize = 4096;
/// Most tombstones, about 400 bytes each; when full, the same shares decide: retirements of nodes that somebody made up do
/// not push others out.
pub const MAX_TOMBSTONES: usize = 4096;
/// Most proofs of equivocation; when full, the oldest goes.
pub const MAX_EQUIVOCATIONS: usize = 64;
/// Most nodes of whose log the last claim is kept, about 900 bytes each; when full, those of nodes without a card here make
/// room for those of nodes with one, and among themselves by the same shares.
pub const MAX_CLAIMS: usize = 2 * MAX_CARDS;
/// A claim is kept for so long, in seconds (30 days): whoever restores a backup later than this is not reminded any more.
pub const CLAIM_LIFE_S: u64 = 30 * 86_400;
/// Most evidence against logs, of one node each, about 2 KiB; when full, the same shares decide, and what speaks against the own node
/// or one that it relies on stays.
pub const MAX_CONTRADICTIONS: usize = 64;
/// A node may replace its card so many times at once, and once a minute from then on.
pub const UPDATE_BURST: u8 = 10;

const UPDATE_REFILL_S: u64 = 60;
const CAPACITY_MIN_GAP_S: u64 = CAPACITY_PERIOD_S - CAPACITY_JITTER_S;

/// What to do with a message.
#[derive(Debug)]
pub enum Verdict {
    /// It is new and good: pass it on.
    Accept,
    /// It is of no use, for no fault of the neighbour.
    Ignore(Ignored),
    /// No honest neighbour would have passed it on.
    Reject(Rejected),
}

/// Why a message is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It was seen before.
    Known,
    /// There is a newer one.
    Older,
    /// Its node has a later list of keys.
    Withdrawn,
    /// It has ended.
    Expired,
    /// It begins later than now.
    Future,
    /// Its node has retired.
    Retired,
    /// Its node sends too many.
    TooMany,
    /// There is no room.
    Full,
    /// It speaks of a card that is not known here.
    NoCard,
    /// Its node contradicts itself, and proof of that is kept.
    Equivocal,
    /// A later version of souk may have made it: who passes it on may know that version.
    LaterVersion,
}

/// What is wrong with a message.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// A card.
    #[error("not a card")]
    Card(#[source] CardError),
    /// A card that names an address of a private range on a public network.
    #[error("the card names a private address")]
    PrivateAddress,
    /// A capacity message.
    #[error("not a capacity message")]
    Capacity(#[source] OpenError),
    /// A retirement.
    #[error("not a retirement")]
    Retirement(#[source] RetirementError),
}

/// Two different cards that one node signed under one sequence.
#[derive(Clone, Debug)]
pub struct Equivocation {
    /// The one that came first.
    pub first: Arc<VerifiedCard>,
    /// The one that contradicts it.
    pub second: Arc<VerifiedCard>,
}

/// The newest card of a node that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// The serial of its list of sub-keys, which the node key signed. A sequence is the card key's word alone.
    pub serial: u64,
    /// Another card under the same sequence contradicts it.
    pub is_equivocal: bool,
}

/// The cards of a network.
#[derive(Debug)]
pub struct Directory {
    network: NetworkId,
    private_addresses: bool,
    entries: BTreeMap<NodeId, Entry>,
    tombstones: BTreeMap<NodeId, Tombstone>,
    arrivals: Arrivals,
    equivocations: VecDeque<Equivocation>,
    claims: BTreeMap<NodeId, Claimed>,
    max_claims: usize,
    /// Whose claims are kept also where there is no room.
    own: Option<NodeId>,
    /// Nodes that this one was told to rely on.
    relied: BTreeSet<NodeId>,
    accused: Accused,
}

#[derive(Debug)]
struct Entry {
    card: Arc<VerifiedCard>,
    equivocal: bool,
    capacity: Option<Arc<Verified<Capacity>>>,
    updates_left: u8,
    refilled_at: UnixTime,
    brought: Brought,
}

#[derive(Debug)]
struct Claimed {
    claim: Arc<LogClaim>,
    brought: Brought,
}

#[derive(Debug)]
struct Tombstone {
    retirement: VerifiedRetirement,
    brought: Brought,
}

impl Directory {
    /// An empty directory. `private_addresses` is for test networks: cards may name loopback and private ranges.
    #[must_use]
    pub fn new(network: NetworkId, private_addresses: bool) -> Self {
        Self {
            network,
            private_addresses,
            entries: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            arrivals: Arrivals::default(),
            equivocations: VecDeque::new(),
            claims: BTreeMap::new(),
            max_claims: MAX_CLAIMS,
            own: None,
            relied: BTreeSet::new(),
            accused: Accused::default(),
        }
    }

    /// Takes a signed card that came from `source`.
    pub fn handle_card(&mut self, now: UnixTime, source: Source, bytes: &[u8]) -> Verdict {
        if self.holds(bytes) {
            return Verdict::Ignore(Ignored::Known);
        }
        let card = match self.open(bytes) {
            Ok(card) => card,
            Err(error) if error.may_be_of_later_version() => {
                return Verdict::Ignore(Ignored::LaterVersion);
            }
            Err(error) => return Verdict::Reject(Rejected::Card(error)),
        };
        if !self.private_addresses && !card.addresses.iter().all(Address::is_public) {
            return Verdict::Reject(Rejected::PrivateAddress);
        }
        match card.age(now) {
            Age::Future => return Verdict::Ignore(Ignored::Future),
            Age::Expired => return Verdict::Ignore(Ignored::Expired),
            Age::Alive => {}
        }
        if self.tombstones.contains_key(&card.node) {
            return Verdict::Ignore(Ignored::Retired);
        }
        self.insert(now, source, Arc::new(card))
    }

    /// Takes a signed capacity message.
    pub fn handle_capacity(&mut self, now: UnixTime, bytes: &[u8]) -> Verdict {
        let capacity: Verified<Capacity> = match sign::open(bytes, &self.network) {
            Ok(capacity) => capacity,
            Err(error) if error.may_be_of_later_version() => {
                return Verdict::Ignore(Ignored::LaterVersion);
            }
            Err(error) => return Verdict::Reject(Rejected::Capacity(error)),
        };
        if now.plus_s(MAX_SKEW_S) < capacity.at {
            return Verdict::Ignore(Ignored::Future);
        }
        self.remember(now, &capacity);
        if now >= capacity.at.plus_s(CAPACITY_LIFE_S + MAX_SKEW_S) {
            return Verdict::Ignore(Ignored::Expired);
        }
        let Some(entry) = self.entries.get_mut(&capacity.node) else {
            return Verdict::Ignore(Ignored::NoCard);
        };
        if entry.card.sequence != capacity.card {
            return Verdict::Ignore(Ignored::NoCard);
        }
        if entry.equivocal {
            return Verdict::Ignore(Ignored::Equivocal);
        }
        if entry.card.sub_keys().card_key != *capacity.signer() {
            // It does not name the list of keys that it was signed under: whoever passes it on may know another card of that sequence.
            return Verdict::Ignore(Ignored::NoCard);
        }
        if let Some(last) = &entry.capacity {
            if last.at == capacity.at {
                return Verdict::Ignore(Ignored::Known);
            }
            if capacity.at < last.at {
                return Verdict::Ignore(Ignored::Older);
            }
            if capacity.at.since_s(last.at) < CAPACITY_MIN_GAP_S {
                return Verdict::Ignore(Ignored::TooMany);
            }
        }
        entry.capacity = Some(Arc::new(capacity));
        Verdict::Accept
    }

    /// Names the node that this directory belongs to: what it said of its log is kept, however many others there are.
    #[must_use]
    pub fn of_node(mut self, own: NodeId) -> Self {
        self.own = Some(own);
        self
    }

    /// Names nodes that this one relies on: evidence against them is kept, however much there is against others.
    #[must_use]
    pub fn relying_on(mut self, nodes: impl IntoIterator<Item = NodeId>) -> Self {
        self.relied.extend(nodes);
        self
    }

    /// Keeps the claims of fewer nodes than [`MAX_CLAIMS`]; they have to be more than the cards that are held, which keep theirs.
    #[must_use]
    pub fn with_places_for_claims(mut self, places: usize) -> Self {
        self.max_claims = places;
        self
    }

    /// Takes what a provider said of its log, from a snapshot of `source`; says whether it was news.
    pub fn handle_claim(&mut self, now: UnixTime, source: Source, bytes: &[u8]) -> bool {
        let is_held = |held: &Claimed| held.claim.as_bytes() == bytes;
        if bytes.len() > MAX_CLAIM_BYTES || self.claims.values().any(is_held) {
            return false;
        }
        LogClaim::open(bytes, &self.network).is_ok_and(|claim| self.claim(now, source, claim))
    }

    /// Takes evidence against a log, from `source`; says whether it was news and is kept.
    pub fn handle_contradiction(&mut self, source: Source, evidence: Contradiction) -> bool {
        let (entries, relied, own) = (&self.entries, &self.relied, self.own);
        self.accused.add(evidence, source, |node| {
            if own == Some(*node) || relied.contains(node) {
                return Known::Relied;
            }
            let entry = entries.get(node);
            entry.map_or(Known::Unknown, |entry| Known::Card(entry.brought))
        })
    }

    /// Takes a signed retirement that came from `source`.
    pub fn handle_retirement(&mut self, now: UnixTime, source: Source, bytes: &[u8]) -> Verdict {
        let retirement = match VerifiedRetirement::open(bytes, &self.network) {
            Ok(retirement) => retirement,
            Err(error) if error.may_be_of_later_version() => {
                return Verdict::Ignore(Ignored::LaterVersion);
            }
            Err(error) => return Verdict::Reject(Rejected::Retirement(error)),
        };
        if retirement.is_future(now) {
            return Verdict::Ignore(Ignored::Future);
        }
        if retirement.is_over(now) {
            return Verdict::Ignore(Ignored::Expired);
        }
        let node = retirement.node();
        if self.tombstones.contains_key(&node) {
            return Verdict::Ignore(Ignored::Known);
        }
        // Whoever brought its card answers for the tombstone too: the last word of a node that is known is not crowded out.
        let known = self.entries.get(&node);
        let source = known.map_or(source, |entry| entry.brought.source());
        if self.tombstones.len() >= MAX_TOMBSTONES {
            let held = self.tombstones.iter().map(|(node, t)| (*node, t.brought));
            let Some(gone) = shares::makes_room(source, held) else {
                return Verdict::Ignore(Ignored::Full);
            };
            self.tombstones.remove(&gone);
        }
        let brought = self.arrivals.next(source);
        let tombstone = Tombstone {
            retirement,
            brought,
        };
        self.tombstones.insert(node, tombstone);
        self.entries.remove(&node);
        Verdict::Accept
    }

    /// Forgets what has ended by `now`; how many cards that were.
    pub fn handle_time(&mut self, now: UnixTime) -> usize {
        let before = self.entries.len();
        self.entries
            .retain(|_, entry| entry.card.age(now) != Age::Expired);
        for entry in self.entries.values_mut() {
            let over =
                |c: &Arc<Verified<Capacity>>| now >= c.at.plus_s(CAPACITY_LIFE_S + MAX_SKEW_S);
            entry.capacity.take_if(|capacity| over(capacity));
        }
        self.tombstones
            .retain(|_, tombstone| !tombstone.retirement.is_over(now));
        self.claims.retain(|_, held| is_claimed(now, &held.claim));
        before - self.entries.len()
    }

    /// The card of a node that may be used at `now`.
    #[must_use]
    pub fn card(&self, now: UnixTime, node: &NodeId) -> Option<&Arc<VerifiedCard>> {
        self.entries
            .get(node)
            .filter(|entry| entry.is_usable(now))
            .map(|entry| &entry.card)
    }

    /// The newest card of a node that is known here, usable or not.
    #[must_use]
    pub fn newest(&self, node: &NodeId) -> Option<Newest> {
        self.entries.get(node).map(|entry| Newest {
            serial: entry.card.sub_keys().serial,
            is_equivocal: entry.equivocal,
        })
    }

    /// Where the card of a node came from, if it is known here.
    #[must_use]
    pub fn source_of(&self, node: &NodeId) -> Option<Source> {
        self.entries.get(node).map(|entry| entry.brought.source())
    }

    /// All cards that may be used at `now`, by node, each with its last capacity message.
    pub fn cards(
        &self,
        now: UnixTime,
    ) -> impl Iterator<Item = (&Arc<VerifiedCard>, Option<&Arc<Verified<Capacity>>>)> {
        self.entries
            .values()
            .filter(move |entry| entry.is_usable(now))
            .map(|entry| (&entry.card, entry.capacity.as_ref()))
    }

    /// The set of cards that may be used at `now`, ready to be handed out.
    #[must_use]
    pub fn snapshot(&self, now: UnixTime, epoch: u64) -> Snapshot {
        let cards = self
            .cards(now)
            .map(|(card, capacity)| (Arc::clone(card), capacity.cloned()));
        // Most claims travel in the capacity messages anyway.
        let rides = |claim: &LogClaim| {
            let entry = self.entries.get(&claim.node());
            let entry = entry.filter(|entry| entry.is_usable(now));
            entry
                .and_then(|entry| entry.capacity.as_ref())
                .is_some_and(|capacity| claim.is_of(capacity))
        };
        let claims = self.claims.values().map(|held| &held.claim);
        let claims = claims.filter(|claim| !rides(claim));
        let retirements = self.retirements().map(VerifiedRetirement::shared_bytes);
        Snapshot::new(
            &self.network,
            epoch,
            cards.collect(),
            claims.cloned().collect(),
            retirements.cloned().collect(),
        )
    }

    /// Who took over from a node that retired, where both said so.
    #[must_use]
    pub fn successor(&self, node: &NodeId) -> Option<NodeId> {
        self.tombstones
            .get(node)
            .and_then(|tombstone| tombstone.retirement.successor())
    }

    /// Whether a node has retired.
    #[must_use]
    pub fn is_retired(&self, node: &NodeId) -> bool {
        self.tombstones.contains_key(node)
    }

    /// Retirements that are remembered, to be shown to those who join.
    pub fn retirements(&self) -> impl Iterator<Item = &VerifiedRetirement> {
        self.tombstones
            .values()
            .map(|tombstone| &tombstone.retirement)
    }

    /// Proofs that nodes contradicted themselves, oldest first.
    pub fn equivocations(&self) -> impl Iterator<Item = &Equivocation> {
        self.equivocations.iter()
    }

    /// The last that a node said of its log: of the largest size, and then the latest.
    #[must_use]
    pub fn log_claim(&self, node: &NodeId) -> Option<&Arc<LogClaim>> {
        self.claims.get(node).map(|held| &held.claim)
    }

    /// Evidence against the log of a node.
    #[must_use]
    pub fn contradiction(&self, node: &NodeId) -> Option<&Arc<Contradiction>> {
        self.accused.of(node)
    }

    /// All evidence against logs, oldest first.
    pub fn contradictions(&self) -> impl Iterator<Item = &Arc<Contradiction>> {
        self.accused.all()
    }

    /// Evidence that came since this was last asked, oldest first.
    pub fn poll_contradiction(&mut self) -> Option<Arc<Contradiction>> {
        self.accused.poll()
    }

    /// Whether [`Self::poll_contradiction`] has something to tell.
    #[must_use]
    pub fn has_new_contradiction(&self) -> bool {
        self.accused.has_news()
    }

    /// Whether a card of a node is held, usable or not.
    #[must_use]
    pub fn holds_card_of(&self, node: &NodeId) -> bool {
        self.entries.contains_key(node)
    }

    /// How many nodes have a card here, usable or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no node has a card here.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether exactly these bytes are held already, found without checking a signature: a message that comes from
    /// many neighbours costs one check.
    fn holds(&self, bytes: &[u8]) -> bool {
        let Ok(signed) = Signed::<Card>::from_bytes(bytes) else {
            return false;
        };
        let digest = signed.digest().into();
        self.entries
            .values()
            .any(|entry| entry.card.digest() == digest)
    }

    /// Keeps what a capacity message says of a log, where the card that is held names its signer: also that of an earlier
    /// card, or one that says nothing else any more.
    fn remember(&mut self, now: UnixTime, capacity: &Verified<Capacity>) {
        let Some(entry) = self.entries.get(&capacity.node) else {
            return;
        };
        let (list, source) = (entry.card.key_list().clone(), entry.brought.source());
        if let Ok(claim) = LogClaim::of_capacity(list, capacity.clone()) {
            self.claim(now, source, claim);
        }
    }

    fn claim(&mut self, now: UnixTime, source: Source, claim: LogClaim) -> bool {
        // A checkpoint alone does not say when it was signed, and would be kept for ever.
        if !is_claimed(now, &claim) {
            return false;
        }
        let node = claim.node();
        let held = self.claims.get(&node);
        let (held, before) = (held.map(|h| Arc::clone(&h.claim)), held.map(|h| h.brought));
        if let Some(held) = &held
            && let Some(evidence) = Contradiction::between(held, &claim)
        {
            self.handle_contradiction(source, evidence);
        }
        let news = held.as_ref().map_or_else(
            || self.make_room_for_claim(source, node),
            |held| (held.size(), held.signed_at()) < (claim.size(), claim.signed_at()),
        );
        if news {
            let brought = before.unwrap_or_else(|| self.arrivals.next(source));
            let claim = Arc::new(claim);
            self.claims.insert(node, Claimed { claim, brought });
        }
        news
    }

    /// Whether there is room for the claim of one more node, perhaps because that of a node without a card here went.
    fn make_room_for_claim(&mut self, source: Source, node: NodeId) -> bool {
        if self.claims.len() < self.max_claims || self.own == Some(node) {
            return true;
        }
        let unknown = self.claims.iter().filter(|(held, _)| {
            !self.entries.contains_key(*held) && self.own.as_ref() != Some(*held)
        });
        let unknown = unknown.map(|(held, claimed)| (*held, claimed.brought));
        let gone = match self.entries.contains_key(&node) {
            // There are more places than cards, so that one of the others is there to go.
            true => shares::latest_of_most(unknown),
            false => shares::makes_room(source, unknown),
        };
        gone.is_some_and(|node| self.claims.remove(&node).is_some())
    }

    fn open(&self, bytes: &[u8]) -> Result<VerifiedCard, CardError> {
        VerifiedCard::open(bytes, &self.network, |node| {
            self.entries.get(node).map(|entry| &*entry.card)
        })
    }

    fn insert(&mut self, now: UnixTime, source: Source, card: Arc<VerifiedCard>) -> Verdict {
        if !self.entries.contains_key(&card.node) && !self.make_room(source) {
            return Verdict::Ignore(Ignored::Full);
        }
        let mut occupied = match self.entries.entry(card.node) {
            btree_map::Entry::Vacant(vacant) => {
                vacant.insert(Entry {
                    card,
                    equivocal: false,
                    capacity: None,
                    updates_left: UPDATE_BURST,
                    refilled_at: now,
                    brought: self.arrivals.next(source),
                });
                return Verdict::Accept;
            }
            btree_map::Entry::Occupied(occupied) => occupied,
        };
        let entry = occupied.get_mut();
        let order = card.rank().cmp(&entry.card.rank());
        if card.sub_keys().serial < entry.card.sub_keys().serial {
            return Verdict::Ignore(Ignored::Withdrawn);
        }
        if order.is_lt() {
            return Verdict::Ignore(Ignored::Older);
        }
        if order.is_eq() {
            if entry.equivocal {
                return Verdict::Ignore(Ignored::Equivocal);
            }
            // Passed on once, so that those who hold only the other one learn of it.
            entry.equivocal = true;
            entry.capacity = None;
            if self.equivocations.len() >= MAX_EQUIVOCATIONS {
                self.equivocations.pop_front();
            }
            let first = Arc::clone(&entry.card);
            self.equivocations.push_back(Equivocation {
                first,
                second: card,
            });
            return Verdict::Accept;
        }
        if !entry.take_update(now) {
            return Verdict::Ignore(Ignored::TooMany);
        }
        entry.card = card;
        entry.equivocal = false;
        entry.capacity = None;
        Verdict::Accept
    }

    /// Whether there is room for the card of a new node from `source`, perhaps because another one went.
    fn make_room(&mut self, source: Source) -> bool {
        if self.entries.len() < MAX_CARDS {
            return true;
        }
        let held = self
            .entries
            .iter()
            .map(|(node, entry)| (*node, entry.brought));
        let gone = shares::makes_room(source, held);
        gone.is_some_and(|node| self.entries.remove(&node).is_some())
    }
}

/// Whether a claim says when it was made, and that was not long ago nor in the future.
fn is_claimed(now: UnixTime, claim: &LogClaim) -> bool {
    claim
        .signed_at()
        .is_some_and(|(_, at)| at <= now.plus_s(MAX_SKEW_S) && now < at.plus_s(CLAIM_LIFE_S))
}

impl Entry {
    fn is_usable(&self, now: UnixTime) -> bool {
        !self.equivocal && self.card.age(now) == Age::Alive
    }

    fn take_update(&mut self, now: UnixTime) -> bool {
        let refills = now.since_s(self.refilled_at) / UPDATE_REFILL_S;
        if refills > 0 {
            let refills = u8::try_from(refills).unwrap_or(UPDATE_BURST);
            self.updates_left = self.updates_left.saturating_add(refills).min(UPDATE_BURST);
            self.refilled_at = now;
        }
        let left = self.updates_left > 0;
        self.updates_left = self.updates_left.saturating_sub(1);
        left
    }
}
