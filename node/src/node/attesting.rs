//! The evidence of this node and of the others, while the node runs.
//!
//! ```text
//!  key, policy, epoch ─► Source ─► own pieces, references ─► Publisher (card)
//!  cards ─► wanted ─► missing? ─► a node drawn at random ─► Pieces ─► Verifier (its own thread)
//! ```
//!
//! Threats: a node that answers with something else (only what has the digest is kept), or that never answers (another one is drawn
//! the next time); evidence of our own that ends (it is made anew long before, and a card names none that is over).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::seq::IndexedRandom as _;
use souk_attest::{
    Policy,
    binding::{Freshness, NodeBinding},
};
use souk_crypto::{NetworkId, UnixTime};
use souk_market::{
    card::{EvidenceRef, MAX_EVIDENCE},
    shares::Source as Origin,
    units::Digest,
    wire::List,
};
use souk_sphinx::EpochClock;
use souk_wire::evidence::MAX_ASKED;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{directory::Cards, keys::Keys, sync};
use crate::{
    attest::{
        Claim, LIFE_AFTER_EPOCH_S, Pieces, Source, SourceError, Verifier, Wanted, fetch, market_tee,
    },
    net::{NodeAddress, Peers},
};

/// What a card says of evidence.
pub(super) type References = List<EvidenceRef, MAX_EVIDENCE>;

/// Evidence is made anew when it is this old, in seconds: half of what it counts for at least.
const RENEW_AFTER_S: u64 = LIFE_AFTER_EPOCH_S / 2;

/// The first card waits for evidence for so long: making it takes seconds, fetching its collateral some more.
const FIRST_CARD_WAITS: Duration = Duration::from_secs(30);

/// How often it is looked whether it is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A source that fails is asked again after this, doubling up to [`LOOK_EVERY`].
const RETRY: Duration = Duration::from_secs(2);

/// The pause after a look at the cards, while something is missing and while nothing is; no node is asked more often than it
/// lets others ask.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(5);

/// Where more pieces are missing, everything that another node has is asked for: a node that is new asks once, not for hours.
const FEW: usize = 4 * MAX_ASKED;

/// Makes evidence of this node.
pub(super) struct Attester {
    pub(super) network: NetworkId,
    pub(super) keys: Arc<Keys>,
    pub(super) clock: EpochClock,
    pub(super) source: Source,
    /// What this node stands against.
    pub(super) policy: Option<Arc<Policy>>,
    pub(super) pieces: Arc<Pieces>,
    /// What its card names; nothing yet, until the source has answered for the first time.
    pub(super) references: watch::Sender<Option<References>>,
    pub(super) now: fn() -> UnixTime,
}

impl Attester {
    /// Makes it, and makes it anew, until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut made_at: Option<UnixTime> = None;
        let mut retry = RETRY;
        loop {
            let now = (self.now)();
            let ends = first(&self.references.borrow()).map(|made| made.not_after);
            let due = made_at.is_none_or(|made| now < made || now.since_s(made) >= RENEW_AFTER_S)
                || ends.is_some_and(|ends| ends.minus_s(RENEW_AFTER_S / 2) <= now);
            let mut pause = LOOK_EVERY;
            if due {
                match self.make_in_time(now).await {
                    Ok(reference) => {
                        made_at = Some(now);
                        retry = RETRY;
                        let references = List::new(vec![reference]).expect("one fits");
                        self.references.send_replace(Some(references));
                    }
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "this node has no new evidence");
                        pause = retry;
                        retry = (2 * retry).min(LOOK_EVERY);
                        if ends.is_none_or(|ends| ends <= now) {
                            self.go_without();
                        }
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Makes it. A node that has no card yet waits for its evidence, and not for ever.
    async fn make_in_time(&self, now: UnixTime) -> Result<EvidenceRef, SourceError> {
        let making = self.make(now);
        tokio::pin!(making);
        tokio::select! {
            made = &mut making => return made,
            () = tokio::time::sleep(FIRST_CARD_WAITS) => {}
        }
        if self.references.borrow().is_none() {
            tracing::warn!("the source of evidence is slow; the first card goes out without any");
            self.go_without();
        }
        making.await
    }

    fn go_without(&self) {
        self.references.send_if_modified(|references| {
            let none = Some(List::empty());
            let modified = *references != none;
            *references = none;
            modified
        });
    }

    async fn make(&self, now: UnixTime) -> Result<EvidenceRef, SourceError> {
        let node = self.keys.node.public();
        let epoch = self.clock.at(now);
        let policy = self
            .policy
            .as_ref()
            .map_or([0; 32], |policy| policy.digest());
        let binding = NodeBinding {
            network: &self.network,
            node: &node,
            attested_key: *self.keys.card.public().as_bytes(),
            policy,
            freshness: Freshness::Epoch(epoch.0.into()),
        };
        let (bundle, verified) = self.source.make(binding.report_data(), now).await?;
        let (evidence, collateral) = (
            Digest(bundle.evidence.digest().0),
            Digest(bundle.collateral.digest().0),
        );
        let end = self.clock.start(epoch.next()).plus_s(LIFE_AFTER_EPOCH_S);
        let reference = EvidenceRef {
            kind: u16::try_from(market_tee(verified.kind()).code()).expect("a small number"),
            scope: EvidenceRef::NODE,
            algorithm: EvidenceRef::BLAKE3,
            digest: evidence,
            collateral: Some(collateral),
            not_after: end.min(verified.expires()),
            policy: Digest(policy),
            epoch: epoch.0,
        };
        let wanted = Wanted::from([(evidence, Origin::Own), (collateral, Origin::Own)]);
        let pieces = Arc::clone(&self.pieces);
        let put = tokio::task::spawn_blocking(move || {
            pieces.put(bundle.evidence.as_bytes(), &wanted);
            pieces.put(&bundle.collateral.to_bytes(), &wanted);
        });
        put.await.expect("writing does not panic");
        Ok(reference)
    }
}

/// The evidence of this node, of which there is one at most.
fn first(references: &Option<References>) -> Option<&EvidenceRef> {
    references
        .iter()
        .flat_map(|references| references.iter())
        .next()
}

/// Gets what the cards name and has it verified.
pub(super) struct Gatherer {
    pub(super) network: NetworkId,
    pub(super) clock: EpochClock,
    pub(super) peers: Peers,
    pub(super) cards: Arc<Cards>,
    pub(super) bootstrap: Vec<NodeAddress>,
    pub(super) pieces: Arc<Pieces>,
    pub(super) verifier: Verifier,
    /// What our own card names, or will.
    pub(super) own: watch::Receiver<Option<References>>,
    pub(super) now: fn() -> UnixTime,
}

impl Gatherer {
    /// Looks at the cards until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut changed = self.cards.changed();
        // What had no room does not get it by being asked for again, until the cards are others.
        let mut no_room = BTreeSet::new();
        loop {
            changed.borrow_and_update();
            let missing = tokio::select! {
                missing = self.round(&mut no_room) => missing,
                () = stop.cancelled() => return,
            };
            let pause = if missing { SOON } else { LATER };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
            if changed.has_changed().unwrap_or(false) {
                no_room.clear();
            }
        }
    }

    /// One look; says whether something is still missing.
    async fn round(&self, no_room: &mut BTreeSet<Digest>) -> bool {
        let now = (self.now)();
        let cards = self.cards.all();
        let known = cards.iter().map(|(card, _)| card.node).collect();
        self.verifier.keep(&known);
        let of_card = |card| Claim::of_card(card, &self.network, self.clock);
        let claims: Vec<_> = cards.iter().flat_map(|(card, _)| of_card(card)).collect();
        let mut wanted = Wanted::new();
        for claim in &claims {
            let source = self.cards.source(&claim.node);
            for name in claim.names().into_iter().flat_map(|(e, c)| [e, c]) {
                let first = wanted.entry(name).or_insert(source);
                *first = (*first).min(source);
            }
        }
        if let Some(reference) = first(&self.own.borrow()) {
            let names = [Some(reference.digest), reference.collateral];
            wanted.extend(names.into_iter().flatten().map(|name| (name, Origin::Own)));
        }
        self.pieces.keep(&wanted);
        // What a node that was caught too often names is not even asked for.
        let mut sought = wanted.clone();
        for claim in claims
            .iter()
            .filter(|claim| self.verifier.is_barred(&claim.node, now))
        {
            sought.remove(&claim.reference.digest);
        }
        sought.retain(|name, _| !no_room.contains(name));
        let missing = self.pieces.missing(&sought, FEW + 1);
        if !missing.is_empty() {
            self.ask(&missing, wanted, no_room).await;
        }
        for claim in claims {
            let here = claim
                .names()
                .is_none_or(|(e, c)| self.pieces.has(&e) && self.pieces.has(&c));
            if here && self.verifier.is_open(&claim, now) && !self.verifier.offer(claim) {
                return true;
            }
        }
        !self.pieces.missing(&sought, 1).is_empty()
    }

    async fn ask(&self, missing: &[Digest], wanted: Wanted, no_room: &mut BTreeSet<Digest>) {
        let known = sync::candidates(&self.peers, &self.cards, &self.bootstrap).await;
        let Some((node, addresses)) = known.choose(&mut rand::rng()) else {
            return;
        };
        // Whoever is away is no matter: another one is drawn the next time.
        if self.peers.connect(*node, addresses).await.is_err() {
            return;
        }
        let names = (missing.len() <= FEW).then(|| &missing[..missing.len().min(MAX_ASKED)]);
        let to = (&self.pieces, &Arc::new(wanted));
        // Whoever is busy or wrong is no matter either.
        if let Ok(full) = fetch(&self.peers, *node, names, to).await {
            no_room.extend(full);
        }
    }
}
