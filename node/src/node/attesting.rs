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
use souk_crypto::{CardPublicKey, NetworkId, UnixTime, with_causes};
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

/// Evidence of this node by the card key that it binds: under any other it counts against the node. There are two while a key turns: for
/// the one that the card announces, and for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Proven(Vec<(CardPublicKey, EvidenceRef)>);

impl Proven {
    /// What a card under `key` may name: nothing that is over.
    pub(super) fn of(&self, key: CardPublicKey, now: UnixTime) -> References {
        let holds = |(bound, made): &&(_, EvidenceRef)| *bound == key && now < made.not_after;
        let names = self.0.iter().filter(holds);
        let names = names.map(|(_, reference)| reference.clone()).collect();
        List::new(names).expect("there is one for each key")
    }

    /// Whether a card may go from the key in use to the one that is due: no evidence is lost by it.
    pub(super) fn allows_turn(
        &self,
        used: CardPublicKey,
        due: CardPublicKey,
        now: UnixTime,
    ) -> bool {
        used == due || !self.of(due, now).is_empty() || self.of(used, now).is_empty()
    }

    /// Takes up evidence for `key`; what else there was stays for the key in use only.
    fn add(&mut self, key: CardPublicKey, reference: EvidenceRef, used: CardPublicKey) {
        self.0.retain(|(bound, _)| *bound != key && *bound == used);
        self.0.push((key, reference));
    }

    /// Drops what is over.
    fn end(&mut self, now: UnixTime) {
        self.0.retain(|(_, reference)| now < reference.not_after);
    }

    /// All that is named, or may be.
    fn references(&self) -> impl Iterator<Item = &EvidenceRef> {
        self.0.iter().map(|(_, reference)| reference)
    }
}

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
    pub(super) proven: watch::Sender<Option<Proven>>,
    /// Why there is no new evidence, while that is so.
    pub(super) failed: watch::Sender<Option<String>>,
    pub(super) now: fn() -> UnixTime,
}

impl Attester {
    /// Makes it, and makes it anew, until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut made_at: Option<UnixTime> = None;
        let mut retry = RETRY;
        loop {
            let now = (self.now)();
            // For the key that comes next as soon as there is one: it is announced only with its evidence.
            let key = self.keys.due(now).keys.card.public();
            let ends = self.ends(key, now);
            let due = ends.is_none_or(|ends| ends.minus_s(RENEW_AFTER_S / 2) <= now)
                || made_at.is_none_or(|made| now < made || now.since_s(made) >= RENEW_AFTER_S);
            let mut pause = LOOK_EVERY;
            if due {
                match self.make_in_time(key, now).await {
                    Ok(reference) => {
                        made_at = Some(now);
                        retry = RETRY;
                        self.failed.send_replace(None);
                        let used = self.keys.dated().keys.card.public();
                        self.proven.send_modify(|proven| {
                            let proven = proven.get_or_insert_default();
                            proven.add(key, reference, used);
                        });
                    }
                    Err(error) => {
                        self.failed.send_replace(Some(with_causes(&error)));
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "this node has no new evidence");
                        pause = retry;
                        retry = (2 * retry).min(LOOK_EVERY);
                        self.go_on_with_what_holds(now);
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// When the evidence for `key` ends, if there is any.
    fn ends(&self, key: CardPublicKey, now: UnixTime) -> Option<UnixTime> {
        let proven = self.proven.borrow();
        let named = proven.as_ref()?.of(key, now);
        named.first().map(|reference| reference.not_after)
    }

    /// Makes it. A node that has no card yet waits for its evidence, and not for ever.
    async fn make_in_time(
        &self,
        key: CardPublicKey,
        now: UnixTime,
    ) -> Result<EvidenceRef, SourceError> {
        let making = self.make(key, now);
        tokio::pin!(making);
        tokio::select! {
            made = &mut making => return made,
            () = tokio::time::sleep(FIRST_CARD_WAITS) => {}
        }
        if self.proven.borrow().is_none() {
            tracing::warn!("the source of evidence is slow; the first card goes out without any");
            self.go_on_with_what_holds(now);
        }
        making.await
    }

    /// Cards wait no longer for what is being made; they name what was made before until that is over.
    fn go_on_with_what_holds(&self, now: UnixTime) {
        self.proven.send_if_modified(|proven| {
            let mut holds = proven.clone().unwrap_or_default();
            holds.end(now);
            let holds = Some(holds);
            let modified = *proven != holds;
            *proven = holds;
            modified
        });
    }

    async fn make(&self, key: CardPublicKey, now: UnixTime) -> Result<EvidenceRef, SourceError> {
        let node = self.keys.node.public();
        let epoch = self.clock.at(now);
        let policy = self
            .policy
            .as_ref()
            .map_or([0; 32], |policy| policy.digest());
        let binding = NodeBinding {
            network: &self.network,
            node: &node,
            attested_key: *key.as_bytes(),
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
    pub(super) own: watch::Receiver<Option<Proven>>,
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
        for reference in self.own.borrow().iter().flat_map(Proven::references) {
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

#[cfg(test)]
mod forwarded;

#[cfg(test)]
mod tests {
    use souk_crypto::CardKey;
    use souk_market::units::Tee;

    use super::*;

    #[test]
    fn a_key_turns_with_its_evidence_or_when_that_of_the_key_before_is_over() {
        let at = |hours: u64| UnixTime(1_800_000_000 + hours * 3600);
        let [used, due, later] =
            std::array::from_fn(|_| CardKey::generate(&mut rand::rng()).public());
        let evidence = |digest, until| EvidenceRef {
            kind: u16::try_from(Tee::NoneTest.code()).expect("a small number"),
            scope: EvidenceRef::NODE,
            algorithm: EvidenceRef::BLAKE3,
            digest: Digest([digest; 32]),
            collateral: None,
            not_after: until,
            policy: Digest([0; 32]),
            epoch: 1,
        };
        let mut proven = Proven::default();
        assert!(
            proven.allows_turn(used, due, at(0)),
            "a node without a source"
        );
        proven.add(used, evidence(1, at(24)), used);
        assert!(proven.allows_turn(used, used, at(0)));

        // The period ends, and the source fails hour by hour.
        for hour in 1..24 {
            proven.end(at(hour));
            assert!(!proven.allows_turn(used, due, at(hour)));
            assert_eq!(proven.of(used, at(hour)).len(), 1);
        }
        assert!(
            proven.allows_turn(used, due, at(24)),
            "nothing is left to lose"
        );
        assert!(proven.of(used, at(24)).is_empty());

        // It answers: both keys can be shown until the card has turned, and then the next needs evidence of its own.
        let now = at(23);
        proven.add(due, evidence(2, at(48)), used);
        assert!(proven.allows_turn(used, due, now));
        assert_eq!(proven.references().count(), 2);
        assert_eq!(proven.of(used, now)[0].digest, Digest([1; 32]));
        assert_eq!(proven.of(due, now)[0].digest, Digest([2; 32]));
        assert!(!proven.allows_turn(due, later, now));
        proven.add(due, evidence(3, at(72)), due);
        assert_eq!(proven.references().count(), 1);
        assert_eq!(proven.of(due, now)[0].digest, Digest([3; 32]));
        proven.end(at(72));
        assert_eq!(proven.references().count(), 0);
    }
}
