//! Verification beside the network: one thread, a queue that is bounded, and what was found.
//!
//! Threats: a flood of evidence that does not hold, which costs half a millisecond each (the queue is short, and what does not fit
//! comes again with the next look at the cards); one node that publishes bad evidence again and again (after [`MAX_BAD`] it is not
//! looked at for [`FORGIVE_S`]); a peer that forwards it (nothing here knows who brought a piece).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use souk_attest::{Blame, REFUSAL_LIFE_S, Refusal, Trust, VerifiedCache};
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    card::MAX_EVIDENCE,
    directory::MAX_CARDS,
    units::{Digest, Tee},
};

use super::{
    examine::{Claim, Flaw, Outcome, examine},
    pieces::Pieces,
};

/// Claims that wait; a look at the cards offers the rest again.
pub(crate) const QUEUE: usize = 256;

/// So many bad pieces of evidence of one node are looked at, and then none for a while.
pub(crate) const MAX_BAD: u32 = 3;

/// How long that is, in seconds.
pub(crate) const FORGIVE_S: u64 = 3_600;

/// Findings that are kept of one node: about what its card names, and what the card before that named.
const MAX_FINDINGS: usize = 2 * MAX_EVIDENCE;

/// What is to be said about one node, by what was looked at last.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// The evidence and collateral that were looked at.
    pub(crate) names: Option<(Digest, Digest)>,
    /// Why they do not hold; `None` where they do.
    pub(crate) flaw: Option<Flaw>,
    /// Different evidence and collateral of this node that did not hold by its own fault, until then.
    pub(crate) bad: u32,
    /// When.
    pub(crate) at: UnixTime,
}

/// Hands claims to the thread. The thread ends with the last of these.
#[derive(Clone, Debug)]
pub struct Verifier {
    queue: SyncSender<Claim>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Of no more nodes than a directory has cards; of each at least one and at most [`MAX_FINDINGS`], the latest at the end.
    found: BTreeMap<NodeId, Vec<Finding>>,
    waiting: BTreeSet<(NodeId, Digest)>,
    verified: u64,
    refused: BTreeMap<&'static str, u64>,
}

impl Verifier {
    /// Starts the thread. It trusts what `trust` names, and reads from `pieces`.
    ///
    /// # Errors
    /// What the system says where there is no thread for it.
    pub fn start(
        trust: Trust,
        pieces: Arc<Pieces>,
        now: fn() -> UnixTime,
    ) -> std::io::Result<Self> {
        let (queue, claims) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("souk-verifier".to_owned())
            .spawn(move || work(&claims, &thread, &pieces, VerifiedCache::new(trust), now))?;
        Ok(Self { queue, shared })
    }

    /// Whether a claim should be looked at now: its node was not caught too often, and it is another one than those that were looked
    /// at, or a clock may be right by now.
    pub(crate) fn is_open(&self, claim: &Claim, now: UnixTime) -> bool {
        if self.is_barred(&claim.node, now) {
            return false;
        }
        let state = self.shared.state();
        if state
            .waiting
            .contains(&(claim.node, claim.reference.digest))
        {
            return false;
        }
        let mut of_node = state.found.get(&claim.node).into_iter().flatten();
        let found = of_node.find(|found| found.names == claim.names());
        found.is_none_or(|found| {
            let by_clock = found
                .flaw
                .as_ref()
                .is_some_and(|flaw| flaw.blame() == Blame::Clock);
            by_clock && now.since_s(found.at) >= REFUSAL_LIFE_S
        })
    }

    /// Whether a node published so much bad evidence that no more of it is looked at for a while.
    pub(crate) fn is_barred(&self, node: &NodeId, now: UnixTime) -> bool {
        let state = self.shared.state();
        state
            .found
            .get(node)
            .and_then(|found| found.last())
            .is_some_and(|found| found.bad >= MAX_BAD && now.since_s(found.at) < FORGIVE_S)
    }

    /// Offers a claim; says whether there was room for it.
    pub fn offer(&self, claim: Claim) -> bool {
        let key = (claim.node, claim.reference.digest);
        self.shared.state().waiting.insert(key);
        let taken = self.queue.try_send(claim).is_ok();
        if !taken {
            self.shared.state().waiting.remove(&key);
        }
        taken
    }

    /// Forgets nodes without a card.
    pub(crate) fn keep(&self, known: &BTreeSet<NodeId>) {
        self.shared
            .state()
            .found
            .retain(|node, _| known.contains(node));
    }

    /// What was found about each node the last time.
    pub(crate) fn found(&self) -> Vec<(NodeId, Finding)> {
        let state = self.shared.state();
        state
            .found
            .iter()
            .filter_map(|(node, found)| Some((*node, found.last()?.clone())))
            .collect()
    }

    /// Evidence that verified, and that did not by reason, since the start.
    #[must_use]
    pub fn totals(&self) -> (u64, BTreeMap<&'static str, u64>) {
        let state = self.shared.state();
        (state.verified, state.refused.clone())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(
    claims: &Receiver<Claim>,
    shared: &Shared,
    pieces: &Pieces,
    mut cache: VerifiedCache,
    now: fn() -> UnixTime,
) {
    while let Ok(claim) = claims.recv() {
        let at = now();
        let outcome = examine(&claim, |name| pieces.get(name), &mut cache, at);
        shared.state().conclude(&claim, outcome, at);
    }
}

impl State {
    fn conclude(&mut self, claim: &Claim, outcome: Outcome, at: UnixTime) {
        self.waiting.remove(&(claim.node, claim.reference.digest));
        let flaw = match outcome {
            // It comes again when the pieces are here.
            Outcome::Absent => return,
            Outcome::Sound(_) => None,
            Outcome::Flawed(flaw) => Some(flaw),
        };
        match &flaw {
            None => self.verified += 1,
            Some(flaw) => *self.refused.entry(flaw.reason()).or_default() += 1,
        }
        if self.found.len() >= MAX_CARDS && !self.found.contains_key(&claim.node) {
            return;
        }
        let of_node = self.found.entry(claim.node).or_default();
        let before = of_node.last();
        let before = before.filter(|found| at.since_s(found.at) < FORGIVE_S);
        let bad = before.map_or(0, |found| found.bad);
        let bad = bad + u32::from(flaw.as_ref().is_some_and(|flaw| is_bad(claim, flaw)));
        let names = claim.names();
        of_node.retain(|found| found.names != names);
        if of_node.len() >= MAX_FINDINGS {
            of_node.remove(0);
        }
        of_node.push(Finding {
            names,
            flaw,
            bad,
            at,
        });
    }
}

/// Whether it counts against the node that published it. Its card signs the digests of evidence and collateral, and a node verifies
/// both before it names them: one that does not fit the other is no accident, and one that has ended by now is. A test root that is
/// not named here may be named elsewhere.
fn is_bad(claim: &Claim, flaw: &Flaw) -> bool {
    let by_its_fault = match flaw {
        Flaw::Over | Flaw::Refused(Refusal::Expired { .. }) => false,
        _ => matches!(flaw.blame(), Blame::Publisher | Blame::Collateral),
    };
    let of_other_test = claim.reference.claimed() == Some(Tee::NoneTest)
        && matches!(flaw, Flaw::Refused(Refusal::UnknownRoot { .. }));
    by_its_fault && !of_other_test
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{
        attest::{
            minted::{Minted, card, clock, minted, minted_under, recipe},
            pieces::Wanted,
        },
        market_support::{NOW, Node, list},
    };
    use souk_market::shares::Source;

    const NODE: u64 = 1;

    fn pieces() -> (tempfile::TempDir, Arc<Pieces>) {
        let folder = tempfile::tempdir().expect("a folder");
        let pieces = Pieces::open(folder.path()).expect("opens");
        (folder, Arc::new(pieces))
    }

    /// Puts everything that it names at hand.
    fn put(made: &Minted, pieces: &Pieces) {
        let wanted: Wanted = made.bytes.keys().map(|name| (*name, Source::Own)).collect();
        for bytes in made.bytes.values() {
            pieces.put(bytes, &wanted);
        }
    }

    /// The claim of a card that names this, with everything at hand.
    fn claim(node: &Node, sequence: u64, made: &Minted, pieces: &Pieces) -> Claim {
        put(made, pieces);
        let card = card(node, sequence, &made.reference);
        let claim = Claim::of_card(&card, &node.network, clock()).next();
        claim.expect("the card names evidence")
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn hundreds_of_bad_quotes_of_one_node_are_looked_at_three_times_and_count_against_it_alone() {
        let (_folder, pieces) = pieces();
        let rng = ring::rand::SystemRandom::new();
        let root = souk_attest::soft::TestRoot::new(NOW, &rng).expect("drawn");
        let trust = Trust::with_test_roots([root.id()]);
        let verifier = Verifier::start(trust, pieces.clone(), || NOW).expect("starts");
        let (bad, honest) = (Node::new(NODE), Node::new(2));
        for sequence in 0..300 {
            let made = minted_under(&root, &bad, recipe(), |b| b.attested_key = [7; 32]);
            let claim = claim(&bad, sequence, &made, &pieces);
            if verifier.is_open(&claim, NOW) && verifier.offer(claim) {
                let seen = u64::from(MAX_BAD).min(sequence + 1);
                until("it is looked at", || {
                    verifier.totals().1.get("report-data") == Some(&seen)
                });
            }
        }
        let made = minted_under(&root, &honest, recipe(), |_| ());
        let good = claim(&honest, 1, &made, &pieces);
        assert!(verifier.is_open(&good, NOW) && verifier.offer(good.clone()));
        until("the honest one is looked at", || verifier.totals().0 == 1);
        assert!(!verifier.is_open(&good, NOW), "it is looked at once");

        let (_, refused) = verifier.totals();
        assert_eq!(
            refused,
            BTreeMap::from([("report-data", u64::from(MAX_BAD))])
        );
        let found: BTreeMap<_, _> = verifier.found().into_iter().collect();
        assert_eq!(found[&bad.node.public()].bad, MAX_BAD);
        assert_eq!(found[&honest.node.public()].bad, 0);
        let later = NOW.plus_s(FORGIVE_S);
        assert!(verifier.is_barred(&bad.node.public(), later.minus_s(1)));
        assert!(!verifier.is_barred(&bad.node.public(), later));
        verifier.keep(&BTreeSet::new());
        assert!(
            verifier.found().is_empty(),
            "without a card nobody is remembered"
        );
    }

    #[test]
    fn one_bad_piece_beside_a_good_one_counts_once_however_often_the_card_is_looked_at() {
        let (_folder, pieces) = pieces();
        let rng = ring::rand::SystemRandom::new();
        let root = souk_attest::soft::TestRoot::new(NOW, &rng).expect("drawn");
        let trust = Trust::with_test_roots([root.id()]);
        let verifier = Verifier::start(trust, pieces.clone(), || NOW).expect("starts");
        let node = Node::new(NODE);
        let good = minted_under(&root, &node, recipe(), |_| ());
        let bad = minted_under(&root, &node, recipe(), |b| b.attested_key = [7; 32]);
        put(&good, &pieces);
        put(&bad, &pieces);
        let mut card = node.plain_card(1);
        card.evidence = list(vec![good.reference, bad.reference]);
        let card = node.sign(card);
        for _look in 0..2 * MAX_BAD {
            for claim in Claim::of_card(&card, &node.network, clock()) {
                if verifier.is_open(&claim, NOW) && verifier.offer(claim) {
                    until("it is looked at", || {
                        verifier.shared.state().waiting.is_empty()
                    });
                }
            }
        }
        let once = BTreeMap::from([("report-data", 1)]);
        assert_eq!(verifier.totals(), (1, once));
        assert_eq!(verifier.found()[0].1.bad, 1);
        assert!(!verifier.is_barred(&node.node.public(), NOW));
    }

    #[test]
    fn collateral_that_never_fitted_counts_against_who_names_it_and_none_that_has_ended_does() {
        let (_folder, pieces) = pieces();
        let rng = ring::rand::SystemRandom::new();
        let root = souk_attest::soft::TestRoot::new(NOW, &rng).expect("drawn");
        let trust = Trust::with_test_roots([root.id()]);
        let verifier = Verifier::start(trust, pieces.clone(), || NOW).expect("starts");
        let (forger, late) = (Node::new(NODE), Node::new(2));
        let mut elsewhere = recipe();
        elsewhere.collateral_fmspc[5] ^= 1;
        let mut ended = recipe();
        ended.issued = NOW.minus_s(100);
        ended.next_update = NOW.minus_s(1);
        for sequence in 0..u64::from(MAX_BAD) {
            for (node, recipe) in [(&forger, &elsewhere), (&late, &ended)] {
                let made = minted_under(&root, node, recipe.clone(), |_| ());
                let claim = claim(node, sequence, &made, &pieces);
                assert!(verifier.is_open(&claim, NOW) && verifier.offer(claim));
            }
        }
        until("all are looked at", || {
            verifier.shared.state().waiting.is_empty()
        });
        let count = u64::from(MAX_BAD);
        let refused = BTreeMap::from([("other-platform", count), ("expired", count)]);
        assert_eq!(verifier.totals(), (0, refused));
        assert!(verifier.is_barred(&forger.node.public(), NOW));
        let found: BTreeMap<_, _> = verifier.found().into_iter().collect();
        assert_eq!(found[&late.node.public()].bad, 0);

        // A report that was signed with a key of one's own, under a certificate of one's own.
        let made = minted_under(&root, &forger, recipe(), |_| ());
        let claim = claim(&forger, 9, &made, &pieces);
        let part = souk_attest::Part::Vcek;
        assert!(is_bad(&claim, &Flaw::Refused(Refusal::Signature { part })));
        assert!(!is_bad(&claim, &Flaw::Refused(Refusal::TcbRevoked)));
        assert!(!is_bad(&claim, &Flaw::Over));
    }

    #[test]
    fn test_evidence_under_a_root_that_is_not_named_here_is_not_held_against_a_node() {
        let (_folder, pieces) = pieces();
        let verifier = Verifier::start(Trust::vendors(), pieces.clone(), || NOW).expect("starts");
        let node = Node::new(NODE);
        let made = minted(&node, recipe(), |_| ());
        assert!(verifier.offer(claim(&node, 1, &made, &pieces)));
        until("it is looked at", || !verifier.found().is_empty());
        let (_, found) = verifier.found().remove(0);
        assert_eq!(found.flaw.map(|flaw| flaw.reason()), Some("unknown-root"));
        assert_eq!(found.bad, 0);
    }

    #[test]
    fn no_more_claims_wait_than_the_queue_holds() {
        let (_folder, pieces) = pieces();
        let (queue, _nobody_takes_them) = sync_channel(QUEUE);
        let verifier = Verifier {
            queue,
            shared: Arc::default(),
        };
        let node = Node::new(NODE);
        let made = minted(&node, recipe(), |_| ());
        let mut claim = claim(&node, 1, &made, &pieces);
        let taken = (0..2 * QUEUE).filter(|n| {
            claim.reference.digest.0[..8].copy_from_slice(&n.to_be_bytes());
            verifier.offer(claim.clone())
        });
        assert_eq!(taken.count(), QUEUE);
        assert_eq!(verifier.shared.state().waiting.len(), QUEUE);
        assert!(verifier.is_open(&claim, NOW), "it comes again");
    }
}
