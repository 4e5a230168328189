//! The provider's side: registrations with the relays that its requesters name, and the streams that they splice.
//!
//! ```text
//!  a lease names it ─┐
//!  one of the warm ──┴► connecting ──► registering tokens ──► registered ◄──► Add / Remove as leases come and go
//!                          ▲   │ failed       │                  │ the stream ends
//!                          │   ▼              ▼                  │
//!                          waiting (doubling, with jitter) ◄─────┘
//! ```
//!
//! Threat: a stranger whose requests make this node dial. Only relays of verified cards are dialed, at the addresses of
//! those cards, and at most [`MAX_REGISTRATIONS`] are held at one time; a relay is told the tokens of the leases that
//! name it and of no others.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use libp2p::Multiaddr;
use souk_crypto::NodeId;
use souk_market::units::RelayToken;
use souk_wire::relay::{
    ANSWER_CAP, Answer, REQUEST_CAP, Registration, SPLICED_BYTES, Splice, Status,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout_at,
};
use tokio_util::{either::Either, sync::CancellationToken};

use crate::net::{
    address,
    backoff::Backoff,
    conduct::Offence,
    frame,
    names::What,
    peers::Peers,
    streams::{Acceptor, PeerStream},
};

use super::{RelayStream, RelayedStream, STEP, TokenHash, paced};

/// Registrations of one provider at one time: a connection and a task each. Leases share them. When all are taken, a
/// lease goes over those of its relays that are among them, and is refused where none is.
pub const MAX_REGISTRATIONS: usize = 64;

/// Registrations that are kept when no lease needs them, which saves some leases the time of a dial. Nobody but the
/// requester chooses among them.
pub const WARM_RELAYS: usize = 8;

const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The registrations of one provider.
#[derive(Clone, Debug)]
pub struct RelayRegistrations {
    peers: Peers,
    book: Arc<Mutex<Book>>,
    tokens: Arc<watch::Sender<Tokens>>,
    /// Told whenever a relay has confirmed a token.
    confirmations: Arc<watch::Sender<()>>,
    relayed: mpsc::Sender<RelayedStream>,
}

/// The tokens of all leases; as many as there are leases.
type Tokens = HashMap<TokenHash, Admitted>;

/// Who comes over which relays, and until when.
#[derive(Debug)]
struct Admitted {
    expires: Instant,
    relays: Box<[NodeId]>,
}

/// Where relays listen.
type Addresses = Vec<Multiaddr>;

#[derive(Debug, Default)]
struct Book {
    /// Relays of verified cards; bounded by the card directory.
    known: HashMap<NodeId, Addresses>,
    /// The first of them.
    warm: Vec<NodeId>,
    /// At most [`MAX_REGISTRATIONS`].
    held: HashMap<NodeId, Relay>,
}

#[derive(Debug)]
struct Relay {
    addresses: Addresses,
    confirmed: watch::Receiver<HashSet<TokenHash>>,
    task: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RelayRegistrations {
    pub(in crate::net) fn new(peers: Peers, relayed: mpsc::Sender<RelayedStream>) -> Self {
        Self {
            peers,
            book: Arc::default(),
            tokens: Arc::new(watch::Sender::new(Tokens::new())),
            confirmations: Arc::default(),
            relayed,
        }
    }

    /// Takes the relays of all verified cards, those first that are to be kept warm; this node itself is left out.
    pub fn set_known(&self, relays: Vec<(NodeId, Vec<Multiaddr>)>) {
        let local = self.peers.local();
        let relays: Vec<_> = relays.into_iter().filter(|r| r.0 != local).collect();
        let mut book = self.book();
        book.warm = relays.iter().take(WARM_RELAYS).map(|r| r.0).collect();
        book.known = relays.into_iter().collect();
        self.settle(&mut book);
    }

    /// Whether a verified card says where this relay is.
    #[must_use]
    pub fn knows(&self, relay: &NodeId) -> bool {
        self.book().known.contains_key(relay)
    }

    /// Lets the holder of `token` in for `lifetime` through these relays, and registers with those that are not held yet.
    pub fn add_token(&self, token: &RelayToken, lifetime: Duration, relays: &[NodeId]) {
        let hash = super::hash(token);
        let admitted = Admitted {
            expires: Instant::now() + lifetime,
            relays: relays.into(),
        };
        self.tokens.send_modify(|tokens| {
            tokens.retain(|_, other| Instant::now() < other.expires);
            tokens.insert(hash, admitted);
        });
        self.settle(&mut self.book());
    }

    /// Lets nobody in with `token` any more; sessions that run go on.
    pub fn remove_token(&self, token: &RelayToken) {
        self.tokens.send_modify(|tokens| {
            tokens.remove(&super::hash(token));
        });
        self.settle(&mut self.book());
    }

    /// The relays of `token` that have confirmed it. The first is waited for up to `patience`, and the others then up to
    /// `grace`.
    pub async fn relays_with(
        &self,
        token: &RelayToken,
        patience: Duration,
        grace: Duration,
    ) -> Vec<NodeId> {
        let hash = super::hash(token);
        let named = self
            .tokens
            .borrow()
            .get(&hash)
            .map_or(0, |t| t.relays.len());
        let mut confirmations = self.confirmations.subscribe();
        let mut until = tokio::time::Instant::now() + patience;
        let mut is_first = true;
        loop {
            let relays = self.confirmed(&hash);
            if relays.len() >= named {
                return relays;
            }
            if is_first && !relays.is_empty() {
                is_first = false;
                until = until.min(tokio::time::Instant::now() + grace);
            }
            if !matches!(timeout_at(until, confirmations.changed()).await, Ok(Ok(()))) {
                return relays;
            }
        }
    }

    fn confirmed(&self, hash: &TokenHash) -> Vec<NodeId> {
        let book = self.book();
        let confirmed = book
            .held
            .iter()
            .filter(|(_, relay)| relay.confirmed.borrow().contains(hash));
        confirmed.map(|(node, _)| *node).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Holds the registrations that are wanted, and no others.
    fn settle(&self, book: &mut Book) {
        let needed = needed(&self.tokens.borrow(), Instant::now());
        let wanted = wanted(book, &needed);
        book.held.retain(|node, relay| {
            // A relay that moved is registered with anew; one whose card has ended serves its leases to their end.
            let stays = |at: &Addresses| *at == relay.addresses;
            wanted.contains(node) && book.known.get(node).is_none_or(stays)
        });
        for node in wanted {
            if !book.held.contains_key(&node)
                && let Some(addresses) = book.known.get(&node).cloned()
            {
                book.held.insert(node, self.keep(node, addresses));
            }
        }
    }

    fn keep(&self, node: NodeId, addresses: Addresses) -> Relay {
        let (confirm, confirmed) = watch::channel(HashSet::new());
        let registration = Registrar {
            peers: self.peers.clone(),
            relay: node,
            addresses: addresses.clone(),
            tokens: self.tokens.subscribe(),
            confirm,
            confirmations: Arc::clone(&self.confirmations),
        };
        let task = tokio::spawn(registration.run());
        Relay {
            addresses,
            confirmed,
            task,
        }
    }

    /// Takes the streams that relays splice to this node.
    pub(in crate::net) async fn serve(self, mut streams: Acceptor) {
        while let Some(stream) = streams.recv().await {
            let registrations = self.clone();
            // Bounded by the connections and by the streams of each.
            tokio::spawn(async move {
                let peer = stream.peer();
                if let Some(offence) = registrations.take(stream).await {
                    registrations.peers.report(peer, offence).await;
                }
            });
        }
    }

    async fn take(&self, mut stream: PeerStream) -> Option<Offence> {
        let relay =
            address::node_id(&stream.peer()).filter(|node| self.book().held.contains_key(node));
        let splice: Splice = match frame::read_message(&mut stream, REQUEST_CAP, STEP).await {
            Ok(splice) => splice,
            Err(error) => return error.offence(),
        };
        let token = RelayToken(*splice.token);
        let alive = self
            .tokens
            .borrow()
            .get(&super::hash(&token))
            .is_some_and(|admitted| {
                let named = relay.is_some_and(|relay| admitted.relays.contains(&relay));
                named && Instant::now() < admitted.expires
            });
        // A relay that this provider has left a moment ago is no offender; it is only refused.
        let place = match (relay, alive) {
            (Some(relay), true) => match self.relayed.try_reserve() {
                Ok(place) => Ok((relay, place)),
                Err(_) => Err(Status::Busy),
            },
            _ => Err(Status::Unknown),
        };
        let status = place.as_ref().err().copied().unwrap_or(Status::Ok);
        let written = frame::write_message(&mut stream, &Answer { status }).await;
        if let (Ok((relay, place)), Ok(())) = (place, written) {
            let (near, instance) = tokio::io::duplex(SPLICED_BYTES);
            let dropped = CancellationToken::new();
            place.send(RelayedStream {
                token,
                relay,
                stream: RelayStream {
                    stream: Either::Right(instance),
                    _held: Either::Right(dropped.clone().drop_guard()),
                },
            });
            return paced::carry(near, stream, &dropped).await.err().flatten();
        }
        None
    }
}

/// Relays that leases name now, each once.
fn needed(tokens: &Tokens, now: Instant) -> Vec<NodeId> {
    let alive = tokens.values().filter(|admitted| now < admitted.expires);
    let named: HashSet<_> = alive.flat_map(|a| a.relays.iter().copied()).collect();
    named.into_iter().collect()
}

/// The relays to be registered with: first those that leases use already, so that no new lease takes a running one its
/// way, then those that leases name and that can be dialed, then the warm ones.
fn wanted(book: &Book, needed: &[NodeId]) -> HashSet<NodeId> {
    let in_use = needed.iter().filter(|node| book.held.contains_key(node));
    let known = needed.iter().filter(|node| book.known.contains_key(node));
    let mut wanted = HashSet::new();
    for node in in_use.chain(known).chain(&book.warm) {
        if wanted.len() >= MAX_REGISTRATIONS {
            break;
        }
        wanted.insert(*node);
    }
    wanted
}

/// Keeps one registration.
struct Registrar {
    peers: Peers,
    relay: NodeId,
    addresses: Addresses,
    tokens: watch::Receiver<Tokens>,
    confirm: watch::Sender<HashSet<TokenHash>>,
    confirmations: Arc<watch::Sender<()>>,
}

impl Registrar {
    async fn run(mut self) {
        let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
        loop {
            let (mut tried, mut opened) = (None, None);
            if self
                .peers
                .connect(self.relay, &self.addresses)
                .await
                .is_ok()
            {
                tried = self.peers.connection(self.relay);
                opened = self.peers.open(self.relay, What::RelayRegister).await.ok();
            }
            if let Some(stream) = opened {
                let since = Instant::now();
                // Whatever ended it, the answer is the same: try again.
                let _ = self.register(stream).await;
                self.confirm.send_replace(HashSet::new());
                backoff.handle_success(since.elapsed());
            }
            if self.tokens.has_changed().is_err() {
                return;
            }
            let pause = backoff.pause(&mut rand::rng());
            self.peers.pause(self.relay, tried, pause).await;
        }
    }

    /// Keeps the relay's list equal to ours until the stream ends or the provider does.
    async fn register(&mut self, stream: PeerStream) -> Result<(), frame::FrameError> {
        use tokio::io::AsyncReadExt as _;

        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut told: HashSet<TokenHash> = HashSet::new();
        loop {
            let now = Instant::now();
            let (changes, known) =
                changes(&self.tokens.borrow_and_update(), self.relay, &told, now);
            for (hash, change) in changes {
                frame::write_message(&mut writer, &change).await?;
                let answer: Answer = frame::read_message(&mut reader, ANSWER_CAP, STEP).await?;
                self.confirm.send_modify(|confirmed| {
                    if matches!(change, Registration::Add { .. }) && answer.status == Status::Ok {
                        confirmed.insert(hash);
                    } else {
                        confirmed.remove(&hash);
                    }
                });
                self.confirmations.send_replace(());
                // The relay does not know this provider any more: it has to register anew.
                if answer.status == Status::Unknown {
                    return Err(frame::FrameError::Ended);
                }
            }
            told = known;
            tokio::select! {
                changed = self.tokens.changed() => if changed.is_err() { return Ok(()) },
                // The relay only answers; anything else that comes, an end among it, is a reason to start anew.
                _ = reader.read_u8() => return Err(frame::FrameError::Ended),
            }
        }
    }
}

/// What `relay` must still be told, and what it knows then.
fn changes(
    tokens: &Tokens,
    relay: NodeId,
    told: &HashSet<TokenHash>,
    now: Instant,
) -> (Vec<(TokenHash, Registration)>, HashSet<TokenHash>) {
    let known: HashSet<TokenHash> = tokens
        .iter()
        .filter(|(_, admitted)| now < admitted.expires && admitted.relays.contains(&relay))
        .map(|(hash, _)| *hash)
        .collect();
    let added = known.difference(told).map(|hash| {
        let left = tokens[hash]
            .expires
            .saturating_duration_since(now)
            .as_secs()
            + 1;
        let add = Registration::Add {
            hash: hash.0.into(),
            lifetime_s: u32::try_from(left).unwrap_or(u32::MAX),
        };
        (*hash, add)
    });
    let removed = told.difference(&known).map(|hash| {
        let remove = Registration::Remove {
            hash: hash.0.into(),
        };
        (*hash, remove)
    });
    let changes = added.chain(removed).collect();
    (changes, known)
}

#[cfg(test)]
mod tests {
    use souk_crypto::NodeKey;

    use super::*;

    fn node() -> NodeId {
        NodeKey::generate(&mut rand::rng()).public()
    }

    fn admitted(n: u8, expires: Instant, relays: &[NodeId]) -> (TokenHash, Admitted) {
        let admitted = Admitted {
            expires,
            relays: relays.into(),
        };
        (super::super::hash(&RelayToken([n; 32])), admitted)
    }

    #[tokio::test]
    async fn a_relay_is_told_what_changed_for_those_who_name_it_and_no_more() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        let (relay, other) = (node(), node());
        let mut tokens: Tokens = (0..3)
            .map(|n| admitted(n, now + hour * u32::from(n), &[relay, other]))
            .collect();
        tokens.extend([admitted(9, now + hour, &[other])]);
        // The first has expired at once, the last is another relay's.
        let (first, told) = changes(&tokens, relay, &HashSet::new(), now);
        assert_eq!((first.len(), told.len()), (2, 2));
        assert!(changes(&tokens, relay, &told, now).0.is_empty());
        let (second, told) = changes(&tokens, relay, &told, now + hour);
        assert!(matches!(second[..], [(_, Registration::Remove { .. })]));
        assert_eq!(told, HashSet::from([admitted(2, now, &[]).0]));
    }

    #[tokio::test]
    async fn registrations_are_bounded_and_no_new_lease_takes_a_running_one_its_relay() {
        let idle = || Relay {
            addresses: Vec::new(),
            confirmed: watch::channel(HashSet::new()).1,
            task: tokio::spawn(async {}),
        };
        let (in_use, warm, nonsense) = (node(), node(), node());
        let crowd: Vec<_> = (0..2 * MAX_REGISTRATIONS).map(|_| node()).collect();
        let known = crowd.iter().chain([&warm]);
        let book = Book {
            known: known.map(|node| (*node, Vec::new())).collect(),
            warm: vec![warm],
            // Its card has ended, the lease over it has not.
            held: HashMap::from([(in_use, idle())]),
        };
        let few = wanted(&book, &[in_use, nonsense]);
        assert_eq!(few, HashSet::from([in_use, warm]));
        let mut needed = crowd.clone();
        needed.push(in_use);
        let most = wanted(&book, &needed);
        assert_eq!(most.len(), MAX_REGISTRATIONS);
        assert!(most.contains(&in_use));
        assert!(
            !most.contains(&warm),
            "leases come before what is only warm"
        );
    }

    #[test]
    fn only_living_leases_need_relays() {
        let now = Instant::now();
        let (dead, alive) = (node(), node());
        let tokens = Tokens::from([
            admitted(1, now, &[dead]),
            admitted(2, now + Duration::from_secs(1), &[alive]),
            admitted(3, now + Duration::from_secs(1), &[alive]),
        ]);
        assert_eq!(needed(&tokens, now), [alive]);
    }
}
