//! Requesters, and the mixes between them and the provider: messages get lost, late and doubled.
//!
//! A requester does what the client does: it stores its keys and counter before anything leaves, asks again with the same
//! envelope, polls with fresh SURBs, and believes nothing but a reply that is signed and bound to its request.

use std::{collections::BTreeSet, time::Duration};

use rand::{RngExt as _, rngs::StdRng};
use souk_crypto::{NetworkParams, UnixTime};
use souk_market::{
    envelope::{self, VerifiedEnvelope, accept_by},
    lifecycle::Phase,
    log::{
        Checkpoint, Entry, Hash, InclusionProof, NoteVerifier, Opening, OutcomeClass, leaf_hash,
        origin, verify_inclusion,
    },
    refusal::Reason,
    reply::{Body, FinalStatement},
    request::{Action, HolderRequest},
    sealed::{open_reply, seal_envelope, seal_holder_request},
    statement::Statement,
    units::{Counter, Digest, DurationS, LeaseId},
    wire::{Blob, List},
};
use souk_node::provider::ReplySink;
use souk_sphinx::{EpochClock, Hop, HopAddress, MixSecret, Route, Surb, message};

use super::{
    invariants::Invariant,
    support,
    world::{Effect, Shared, World},
};

/// SURBs in a request.
const SURBS: usize = 3;
/// Pause between two attempts of a requester, in milliseconds.
const PAUSE_MS: u32 = 15_000;

/// The keys of the provider, and what everybody knows of it.
pub(super) struct Keys {
    pub(super) node: support::Node,
    pub(super) offer: souk_market::units::CardDigest,
    pub(super) epochs: EpochClock,
    /// A SURB over a route that leads nowhere; all others are made from it.
    template: Vec<u8>,
}

impl Keys {
    pub(super) fn new(rng: &mut StdRng) -> Self {
        let node = support::Node::new(rng.random());
        let offer = node.card(1).digest();
        // Epochs are longer than a run, so that a SURB dies of nothing but its use.
        let params = NetworkParams::new(50, 10_000, 86_400, true).expect("in bounds");
        let epochs = EpochClock::of(&params);
        let hops = (0..4).map(|_| Hop {
            address: HopAddress(rng.random()),
            key: MixSecret::generate(rng).public(),
        });
        let route = Route::new(hops.collect()).expect("four hops");
        let epoch = epochs.at(support::NOW);
        let (surb, _) = Surb::make(&route, &[Duration::ZERO; 4], epoch, rng).expect("four delays");
        Self {
            node,
            offer,
            epochs,
            template: surb.to_bytes().to_vec(),
        }
    }

    /// A SURB of its own: another payload key in the same header, which nobody opens here.
    fn surb(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut bytes = self.template.clone();
        let key = bytes.len() - 20..bytes.len() - 4;
        rng.fill(&mut bytes[key]);
        bytes
    }
}

/// Where a requester stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It has no answer that counts.
    Asking,
    /// It has a receipt.
    Holding,
    /// It wants to end its lease.
    Ending,
    /// It was refused.
    Refused(Reason),
    /// It has its statement.
    Done(Box<FinalStatement>),
}

/// Somebody who wants one lease.
pub(super) struct Requester {
    keys: support::Requester,
    envelope: VerifiedEnvelope,
    state: State,
    /// Stored before a request leaves.
    counter: u64,
    /// SURBs whose replies it can still read: lost when its client is killed.
    surbs: BTreeSet<[u8; 32]>,
    lease: Option<LeaseId>,
    /// It ends the lease so long after the receipt; otherwise the lease expires.
    ends_after_ms: Option<u64>,
    acknowledges: bool,
    attempts: u32,
}

impl Requester {
    pub(super) fn draw(world: &mut World) -> Self {
        let keys = support::Requester::new(world.crypto.random());
        let mut envelope = keys.plain_envelope(&world.keys.node, world.keys.offer);
        let duration = 60 + world.steps.choose("a lease lasts", 240);
        envelope.grant.duration = DurationS(duration);
        envelope.grant.accept_by = accept_by(world.wall(), 1_800);
        let (bytes, surbs) = fresh_surbs(world);
        envelope.surbs = bytes;
        let ends = world.steps.happens("a lease is ended", 60);
        Self {
            envelope: keys.sign(envelope),
            keys,
            state: State::Asking,
            counter: 0,
            surbs,
            lease: None,
            ends_after_ms: ends.then(|| world.steps.delay_ms("a lease is ended after", 1, 120_000)),
            acknowledges: world.steps.happens("a statement is acknowledged", 60),
            attempts: 0,
        }
    }

    /// Whether it has been told how its lease ended.
    pub(super) fn is_told(&self) -> bool {
        matches!(self.state, State::Refused(_) | State::Done(_))
    }

    pub(super) fn request(&self) -> souk_market::units::RequestId {
        self.envelope.grant.request
    }
}

/// What the requester does when it wakes: asks, polls, ends.
pub(super) fn wake(world: &mut World, who: usize) {
    let requester = &mut world.requesters[who];
    let is_settling = world.is_settling;
    requester.attempts += 1;
    match requester.state.clone() {
        // Whoever was refused has nothing to wait for; in the end it asks once more whether that is all.
        State::Refused(_) | State::Done(_) => return,
        // The envelope once more, or, if it may have arrived, a poll.
        State::Asking if requester.attempts % 2 == 1 => {
            let sealed = seal_envelope(
                &requester.envelope,
                &world.keys.node.seal.public(),
                &support::network(),
                &mut world.crypto,
            );
            world
                .steps
                .saw(|| format!("requester {who}: sends its envelope"));
            carry_to_provider(world, sealed.expect("a good key"));
        }
        State::Asking | State::Holding => tell(world, who, Action::Poll),
        State::Ending => tell(world, who, Action::End),
    }
    let pause = if is_settling { PAUSE_MS } else { 4 * PAUSE_MS };
    let pause = world
        .steps
        .delay_ms("a requester waits", PAUSE_MS / 3, pause);
    world.later(pause, Effect::Wake { who });
}

/// The client was killed: what was not stored is gone.
pub(super) fn forget(world: &mut World, who: usize) {
    world.fault("requester-killed");
    let requester = &mut world.requesters[who];
    requester.surbs.clear();
    requester.attempts = 0;
}

fn tell(world: &mut World, who: usize, action: Action) {
    let (surbs, fingerprints) = fresh_surbs(world);
    let requester = &mut world.requesters[who];
    requester.counter += 1;
    requester.surbs.extend(fingerprints);
    let request = HolderRequest {
        holder: requester.keys.holder.public(),
        provider: world.keys.node.node.public(),
        request: requester.envelope.grant.request,
        counter: Counter(requester.counter),
        action,
        surbs,
    };
    let sealed = seal_holder_request(
        request,
        &requester.keys.holder,
        &world.keys.node.seal.public(),
        &support::network(),
        &mut world.crypto,
    );
    world.steps.saw(|| format!("requester {who}: {action:?}"));
    carry_to_provider(world, sealed.expect("a good key"));
}

fn fresh_surbs<const MAX: usize>(
    world: &mut World,
) -> (List<envelope::Surb, MAX>, BTreeSet<[u8; 32]>) {
    let made: Vec<_> = (0..SURBS)
        .map(|_| world.keys.surb(&mut world.crypto))
        .collect();
    let fingerprints = made
        .iter()
        .map(|bytes| {
            Surb::from_bytes(bytes)
                .expect("made from one")
                .fingerprint()
        })
        .collect();
    let blobs = made
        .into_iter()
        .map(|bytes| Blob::new(bytes).expect("the size of a SURB"));
    (List::new(blobs.collect()).expect("few"), fingerprints)
}

/// The mixes: how often a message arrives, and when.
fn carried(world: &mut World) -> Vec<u64> {
    let delay = |world: &mut World| world.steps.delay_ms("a message takes", 20, 3_000);
    if world.is_settling {
        return vec![delay(world)];
    }
    match world.steps.choose("a message", 100) {
        0..75 => vec![delay(world)],
        75..87 => {
            world.fault("message-lost");
            Vec::new()
        }
        87..94 => {
            world.fault("message-doubled");
            vec![delay(world), delay(world)]
        }
        _ => {
            world.fault("message-late");
            vec![world.steps.delay_ms("a late message takes", 3_000, 90_000)]
        }
    }
}

fn carry_to_provider(world: &mut World, sealed: Vec<u8>) {
    for after in carried(world) {
        world.later(after, Effect::ToProvider(sealed.clone()));
    }
}

/// Where the provider hands its replies to the mix.
pub(super) struct SimulatedMix(pub(super) Shared);

impl ReplySink for SimulatedMix {
    fn can_use(&self, _: &Surb) -> bool {
        true
    }

    fn reply(&self, surb: Surb, reply: &message::Reply) -> Result<(), String> {
        let mut world = self.0.lock();
        if world.is_dead() {
            return Err("the provider is dead".to_owned());
        }
        let surb = surb.fingerprint();
        let is_fresh = world.used_surbs.insert(surb);
        world.require(Invariant::NoSurbTwice, is_fresh, || {
            "a SURB was used twice".to_owned()
        });
        let sealed = reply.clone().into_bytes();
        let Some((who, body)) = opened(&world, &sealed) else {
            world.require(Invariant::RequesterIsTold, false, || {
                "a reply left that nobody can read".to_owned()
            });
            return Ok(());
        };
        look_at_reply(&mut world, &body);
        world.saw(|| format!("provider: replies {} to requester {who}", kind(&body)));
        for after in carried(&mut world) {
            let sealed = sealed.clone();
            world.later(after, Effect::ToRequester { who, surb, sealed });
        }
        drop(world);
        self.0.changed();
        Ok(())
    }
}

/// Whose reply it is, and what it says.
fn opened(world: &World, sealed: &[u8]) -> Option<(usize, Body)> {
    let signer = world.keys.node.card.public();
    world
        .requesters
        .iter()
        .enumerate()
        .find_map(|(who, requester)| {
            let expected = requester.envelope.expected_reply();
            let key = &requester.keys.reply;
            let reply = open_reply(sealed, key, &signer, &expected, &support::network()).ok()?;
            Some((who, reply.body.clone()))
        })
}

fn kind(body: &Body) -> String {
    match body {
        Body::Receipt(_) => "a receipt".to_owned(),
        Body::Refusal(refusal) => format!("a refusal ({:?})", refusal.reason),
        Body::Status(status) => format!("a status ({:?})", status.state),
        Body::Statement(_) => "a statement".to_owned(),
        Body::Evidence(part) => format!("part {} of evidence", part.part),
    }
}

/// What has left must be in the journal.
fn look_at_reply(world: &mut World, body: &Body) {
    let lease = match body {
        Body::Receipt(receipt) => receipt.lease,
        Body::Statement(last) => last.lease,
        Body::Status(_) | Body::Refusal(_) | Body::Evidence(_) => return,
    };
    let lease = souk_backend::LeaseId(lease.0);
    let name = world.name(lease);
    let record = world.row_on_disk(lease);
    let phase = record.as_ref().map(|record| record.row.phase());
    match body {
        Body::Receipt(_) => {
            let has_instance = record.is_some_and(|record| record.instance.is_some());
            let is_written = has_instance
                && matches!(
                    phase,
                    Some(Phase::Active | Phase::Draining { .. } | Phase::Closed { .. })
                );
            world.require(Invariant::JournalBeforeReceipt, is_written, || {
                format!("the receipt of {name} leaves with {phase:?} on disk")
            });
        }
        _ => world.require(
            Invariant::ExactlyOneEntry,
            matches!(phase, Some(Phase::Closed { .. })),
            || format!("the statement of {name} leaves with {phase:?} on disk"),
        ),
    }
}

/// A reply arrives.
pub(super) fn receive(world: &mut World, who: usize, surb: [u8; 32], sealed: &[u8]) {
    // A reply that comes twice, or to a client that was killed since, cannot be read.
    if !world.requesters[who].surbs.remove(&surb) {
        return;
    }
    let Some((_, body)) = opened(world, sealed) else {
        return;
    };
    world
        .steps
        .saw(|| format!("requester {who}: gets {}", kind(&body)));
    match body {
        Body::Receipt(receipt) => {
            is_same_lease(world, who, receipt.lease);
            let requester = &mut world.requesters[who];
            if requester.state != State::Asking {
                return;
            }
            requester.state = State::Holding;
            if let Some(after) = requester.ends_after_ms {
                requester.ends_after_ms = None;
                requester.state = State::Ending;
                world.later(after, Effect::Wake { who });
            }
        }
        Body::Status(status) => is_same_lease(world, who, status.lease),
        Body::Evidence(part) => is_same_lease(world, who, part.lease),
        Body::Refusal(refusal) => {
            let requester = &mut world.requesters[who];
            // It says something of one message only.
            let is_of_message = matches!(
                refusal.reason,
                Reason::StaleCounter | Reason::WrongStatement
            );
            if requester.state == State::Asking && !is_of_message {
                requester.state = State::Refused(refusal.reason);
            }
        }
        Body::Statement(last) => {
            is_same_lease(world, who, last.lease);
            let is_proven = verified(world, &last);
            world.require(Invariant::StatementIsProven, is_proven.is_ok(), || {
                format!("requester {who}: {is_proven:?}")
            });
            let requester = &mut world.requesters[who];
            if let State::Done(before) = &requester.state {
                let is_same = (before.index, &before.statement) == (last.index, &last.statement);
                world.require(Invariant::StatementIsProven, is_same, || {
                    format!("requester {who} gets another statement")
                });
                return;
            }
            let digest = Digest(*blake3::hash(&last.statement).as_bytes());
            requester.state = State::Done(Box::new(last));
            if requester.acknowledges {
                tell(world, who, Action::Acknowledge { statement: digest });
            }
        }
    }
}

fn is_same_lease(world: &mut World, who: usize, lease: LeaseId) {
    let known = *world.requesters[who].lease.get_or_insert(lease);
    world.require(Invariant::OneLeasePerRequest, known == lease, || {
        format!("requester {who} is told of a second lease")
    });
}

/// Checks a final statement as its holder does.
fn verified(world: &World, last: &FinalStatement) -> Result<(), String> {
    let node = &world.keys.node;
    let origin = origin(support::network(), node.node.public()).map_err(|e| e.to_string())?;
    let verifier = NoteVerifier::new(origin.clone(), node.log.public());
    let checkpoint =
        Checkpoint::open(&last.checkpoint, &origin, &verifier).map_err(|e| e.to_string())?;
    let statement = Statement::from_bytes(&last.statement).map_err(|e| e.to_string())?;
    let Ok(Entry::Lease(entry)) = Entry::decode(&last.entry) else {
        return Err("not the entry of a lease".to_owned());
    };
    let opening = Opening {
        salt: last.salt.clone(),
        statement: last.statement.to_vec(),
    };
    if entry.commitment != opening.commitment(&support::network()) {
        return Err("the commitment is of another statement".to_owned());
    }
    if entry.outcome != OutcomeClass::of(statement.outcome) || statement.lease != last.lease {
        return Err("the entry is of another lease".to_owned());
    }
    let (path, _) = last.path.as_chunks::<32>();
    let proof = InclusionProof {
        index: last.index,
        size: checkpoint.size(),
        path: path.iter().map(|hash| Hash(*hash)).collect(),
    };
    verify_inclusion(&proof, &leaf_hash(&last.entry), checkpoint.root()).map_err(|e| e.to_string())
}

/// Whether a requester that was told nothing can do nothing about it: its envelope is no more accepted, and no lease came of
/// it.
pub(super) fn is_out_of_time(requester: &Requester, now: UnixTime) -> bool {
    requester.envelope.grant.accept_by <= now
}
