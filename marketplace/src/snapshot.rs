//! The whole set of cards in bounded pages, as an entry hands it to requesters.
//!
//! Everybody takes all of it: who asks for one provider's card tells whom they are going to rent from.
//!
//! Threat: an entry that hands a marked or thinned set to one requester. The root is over the whole set, so two entries
//! can be compared by 32 bytes, and [`crate::quorum`] compares the cards themselves where the roots differ.

use std::sync::Arc;

use souk_crypto::{NetworkId, Signed, Verified, cbor, cbor::DecodeError, domain};

use crate::{
    capacity::Capacity,
    card::{Card, VerifiedCard},
    directory::MAX_CARDS,
    units::Digest,
    wire::{List, wire_map},
};

/// Most cards in one page.
pub const CARDS_PER_PAGE: usize = 32;
/// Most pages of a snapshot.
pub const MAX_PAGES: usize = MAX_CARDS / CARDS_PER_PAGE;
/// Largest page in bytes: its cards and capacity messages at their largest.
pub const MAX_PAGE_LEN: usize = CARDS_PER_PAGE * (4096 + 1024 + 16) + 64;

wire_map! {
    /// A card with the last capacity message of its node, both as signed.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Listing {
        /// The card.
        0 => pub card: Signed<Card>,
        /// How much room it has.
        1 => pub capacity: Option<Signed<Capacity>>,
    }
}

wire_map! {
    /// A part of a snapshot.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Page {
        /// The epoch in which the set was taken.
        0 => pub epoch: u32,
        /// Root over all cards of the set.
        1 => pub root: Digest,
        /// Number of this page, from 0.
        2 => pub index: u16,
        /// How many pages there are, at least one.
        3 => pub pages: u16,
        /// The cards, by node.
        4 => pub cards: List<Listing, CARDS_PER_PAGE>,
    }
    check = Page::check;
}

/// A set of cards as it was at one instant; cheap to clone and to keep while it is being sent.
#[derive(Clone, Debug)]
pub struct Snapshot {
    epoch: u32,
    root: Digest,
    cards: Arc<[Listed]>,
}

type Listed = (Arc<VerifiedCard>, Option<Arc<Verified<Capacity>>>);

impl Snapshot {
    pub(crate) fn new(network: &NetworkId, epoch: u32, cards: Vec<Listed>) -> Self {
        let digests = cards.iter().map(|(card, _)| card.digest().0);
        let root = root(network, epoch, digests);
        Self {
            epoch,
            root,
            cards: cards.into(),
        }
    }

    /// Root over the cards and the epoch.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The epoch in which it was taken.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// How many cards it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cards.len()
    }

    /// Whether it holds no card.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cards.is_empty()
    }

    /// Its pages as bytes, made one at a time; at least one, at most [`MAX_PAGES`].
    pub fn pages(&self) -> impl Iterator<Item = Vec<u8>> + '_ {
        let pages = self.cards.len().div_ceil(CARDS_PER_PAGE).max(1);
        let count = u16::try_from(pages).expect("a directory is bounded");
        (0..count).map(move |index| {
            let from = usize::from(index) * CARDS_PER_PAGE;
            let cards = self
                .cards
                .iter()
                .skip(from)
                .take(CARDS_PER_PAGE)
                .map(listing)
                .collect();
            let cards = List::new(cards).expect("no more than a page was taken");
            cbor::encode(&Page {
                epoch: self.epoch,
                root: self.root,
                index,
                pages: count,
                cards,
            })
        })
    }
}

impl Page {
    /// Reads a page. The cards in it are not opened.
    ///
    /// # Errors
    /// [`DecodeError`]; all of them are the fault of the entry.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        cbor::decode(bytes, MAX_PAGE_LEN)
    }

    fn check(&self) -> Result<(), &'static str> {
        if usize::from(self.pages) > MAX_PAGES {
            Err("too many pages")
        } else if self.index >= self.pages {
            Err("a page beyond the last")
        } else {
            Ok(())
        }
    }
}

/// Root over the digests of a set of cards, in the order of their nodes.
pub(crate) fn root(
    network: &NetworkId,
    epoch: u32,
    digests: impl Iterator<Item = [u8; 32]>,
) -> Digest {
    let all: Vec<u8> = digests.flatten().collect();
    Digest(domain::CARD_SET.hash(network, &[&epoch.to_be_bytes(), &all]))
}

fn listing((card, capacity): &Listed) -> Listing {
    Listing {
        card: card.signed().clone(),
        capacity: capacity.as_ref().map(|capacity| capacity.signed().clone()),
    }
}
