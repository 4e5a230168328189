//! The whole set of cards, as an entry hands it to requesters.
//!
//! Everybody takes all of it: who asks for one provider's card tells whom they are going to rent from.
//!
//! Threat: an entry that hands a marked or thinned set to one requester. The root is over the whole set, so two entries
//! can be compared by 32 bytes, and [`crate::quorum`] compares the cards themselves where the roots differ.

use std::sync::Arc;

use souk_crypto::{NetworkId, Verified, domain};

use crate::{capacity::Capacity, card::VerifiedCard, log::LogClaim, units::Digest};

/// A set of cards as it was at one instant; cheap to clone and to keep while it is being sent.
#[derive(Clone, Debug)]
pub struct Snapshot {
    epoch: u64,
    root: Digest,
    cards: Arc<[Listed]>,
    /// What providers said of their logs, where no capacity message above says it.
    claims: Arc<[Arc<LogClaim>]>,
    /// The signed bytes of retirements, for whoever missed them.
    retirements: Arc<[Arc<[u8]>]>,
}

type Listed = (Arc<VerifiedCard>, Option<Arc<Verified<Capacity>>>);

impl Snapshot {
    pub(crate) fn new(
        network: &NetworkId,
        epoch: u64,
        cards: Vec<Listed>,
        claims: Vec<Arc<LogClaim>>,
        retirements: Vec<Arc<[u8]>>,
    ) -> Self {
        let digests = cards.iter().map(|(card, _)| card.digest().0);
        let root = root(network, epoch, digests);
        Self {
            epoch,
            root,
            cards: cards.into(),
            claims: claims.into(),
            retirements: retirements.into(),
        }
    }

    /// Root over the cards and the epoch.
    #[must_use]
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The epoch in which it was taken.
    #[must_use]
    pub fn epoch(&self) -> u64 {
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

    /// The objects in the order in which they travel: all cards by node, then the capacity messages, then what providers
    /// said of their logs ([`LogClaim`]), then retirements.
    pub fn objects(&self) -> impl Iterator<Item = &[u8]> {
        self.shared_objects().map(|object| &**object)
    }

    /// The same, as the directory holds them: however many sets are being sent, each object is in memory once.
    pub fn shared_objects(&self) -> impl Iterator<Item = &Arc<[u8]>> {
        let cards = self.cards.iter().map(|(card, _)| card.shared_bytes());
        let capacities = self
            .cards
            .iter()
            .filter_map(|(_, capacity)| capacity.as_ref());
        cards
            .chain(capacities.map(|capacity| capacity.signed().shared_bytes()))
            .chain(self.claims.iter().map(|claim| claim.shared_bytes()))
            .chain(&*self.retirements)
    }
}

/// Root over the digests of a set of cards, in the order of their nodes.
pub(crate) fn root(
    network: &NetworkId,
    epoch: u64,
    digests: impl Iterator<Item = [u8; 32]>,
) -> Digest {
    let all: Vec<u8> = digests.flatten().collect();
    Digest(domain::CARD_SET.hash(network, &[&epoch.to_be_bytes(), &all]))
}
