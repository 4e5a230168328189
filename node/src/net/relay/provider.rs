//! The provider's side: registrations with relays, and the streams that they splice.
//!
//! ```text
//!  set_relays ──► connecting ──► registering tokens ──► registered ◄──► Add / Remove as leases come and go
//!                    ▲   │ failed       │                  │ the stream ends
//!                    │   ▼              ▼                  │
//!                    waiting (doubling, with jitter) ◄─────┘
//! ```

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use libp2p::Multiaddr;
use souk_crypto::NodeId;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::net::{
    address,
    backoff::Backoff,
    conduct::Offence,
    frame,
    names::What,
    peers::Peers,
    streams::{Acceptor, PeerStream},
};

use super::{
    ANSWER_CAP, Answer, REQUEST_CAP, Registration, RelayStream, RelayToken, RelayedStream, STEP,
    Splice, Status, TokenHash,
};

/// Relays that one provider registers with.
pub const MAX_RELAYS: usize = 8;

const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The registrations of one provider.
#[derive(Clone, Debug)]
pub struct RelayRegistrations {
    peers: Peers,
    relays: Arc<Mutex<HashMap<NodeId, Relay>>>,
    tokens: Arc<watch::Sender<Tokens>>,
    relayed: mpsc::Sender<RelayedStream>,
}

/// The tokens of all leases, and until when each is to be known.
type Tokens = HashMap<TokenHash, (RelayToken, Instant)>;

#[derive(Debug)]
struct Relay {
    addresses: Vec<Multiaddr>,
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
            relays: Arc::default(),
            tokens: Arc::new(watch::Sender::new(Tokens::new())),
            relayed,
        }
    }

    /// Keeps registrations with exactly these relays, at most [`MAX_RELAYS`]; this node itself is left out.
    pub fn set_relays(&self, wanted: Vec<(NodeId, Vec<Multiaddr>)>) {
        let local = self.peers.local();
        let wanted: HashMap<_, _> = wanted
            .into_iter()
            .filter(|(node, _)| *node != local)
            .take(MAX_RELAYS)
            .collect();
        let mut relays = self.relays();
        relays.retain(|node, relay| wanted.get(node) == Some(&relay.addresses));
        for (node, addresses) in wanted {
            relays
                .entry(node)
                .or_insert_with(|| self.keep(node, addresses));
        }
    }

    /// Lets the holder of `token` in for `lifetime`, through every relay.
    pub fn add_token(&self, token: RelayToken, lifetime: Duration) {
        let (hash, expires) = (token.hash(), Instant::now() + lifetime);
        self.tokens.send_modify(|tokens| {
            tokens.insert(hash, (token, expires));
        });
    }

    /// Lets nobody in with `token` any more; sessions that run go on.
    pub fn remove_token(&self, token: &RelayToken) {
        self.tokens.send_modify(|tokens| {
            tokens.remove(&token.hash());
        });
    }

    /// The relays that have confirmed `token`, after waiting up to `patience` for the first of them.
    pub async fn relays_with(&self, token: &RelayToken, patience: Duration) -> Vec<NodeId> {
        let hash = token.hash();
        let waits: Vec<_> = self
            .relays()
            .values()
            .map(|relay| {
                let mut confirmed = relay.confirmed.clone();
                Box::pin(async move {
                    confirmed
                        .wait_for(|tokens| tokens.contains(&hash))
                        .await
                        .is_ok()
                })
            })
            .collect();
        if !waits.is_empty() {
            // Whoever comes first ends the waiting; nobody at all leaves the list empty.
            let _ = timeout(patience, futures::future::select_all(waits)).await;
        }
        self.relays()
            .iter()
            .filter(|(_, relay)| relay.confirmed.borrow().contains(&hash))
            .map(|(node, _)| *node)
            .collect()
    }

    fn relays(&self) -> MutexGuard<'_, HashMap<NodeId, Relay>> {
        self.relays.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn keep(&self, node: NodeId, addresses: Vec<Multiaddr>) -> Relay {
        let (confirm, confirmed) = watch::channel(HashSet::new());
        let task = tokio::spawn(keep_registration(
            self.peers.clone(),
            node,
            addresses.clone(),
            self.tokens.subscribe(),
            confirm,
        ));
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
            address::node_id(&stream.peer()).filter(|node| self.relays().contains_key(node));
        let splice: Splice = match frame::read_message(&mut stream, REQUEST_CAP, STEP).await {
            Ok(splice) => splice,
            Err(error) => return error.offence(),
        };
        let token = RelayToken::from_bytes(*splice.token);
        let alive = self
            .tokens
            .borrow()
            .get(&token.hash())
            .is_some_and(|(_, expires)| Instant::now() < *expires);
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
            place.send(RelayedStream {
                token,
                relay,
                stream: RelayStream {
                    stream,
                    _swarm: None,
                },
            });
        }
        None
    }
}

async fn keep_registration(
    peers: Peers,
    relay: NodeId,
    addresses: Vec<Multiaddr>,
    mut tokens: watch::Receiver<Tokens>,
    confirm: watch::Sender<HashSet<TokenHash>>,
) {
    let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
    loop {
        let opened = match peers.connect(relay, &addresses).await {
            Ok(()) => peers.open(relay, What::RelayRegister).await.ok(),
            Err(_) => None,
        };
        if let Some(stream) = opened {
            let since = Instant::now();
            // Whatever ended it, the answer is the same: try again.
            let _ = register(stream, &mut tokens, &confirm).await;
            confirm.send_replace(HashSet::new());
            backoff.handle_success(since.elapsed());
        }
        if tokens.has_changed().is_err() {
            return;
        }
        let pause = backoff.pause(&mut rand::rng());
        sleep(pause).await;
    }
}

/// Keeps the relay's list equal to ours until the stream ends or the provider does.
async fn register(
    stream: PeerStream,
    tokens: &mut watch::Receiver<Tokens>,
    confirm: &watch::Sender<HashSet<TokenHash>>,
) -> Result<(), frame::FrameError> {
    use tokio::io::AsyncReadExt as _;

    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut told: HashSet<TokenHash> = HashSet::new();
    loop {
        let (changes, known) = changes(&tokens.borrow_and_update(), &told, Instant::now());
        for (hash, change) in changes {
            frame::write_message(&mut writer, &change).await?;
            let answer: Answer = frame::read_message(&mut reader, ANSWER_CAP, STEP).await?;
            confirm.send_modify(|confirmed| {
                if matches!(change, Registration::Add { .. }) && answer.status == Status::Ok {
                    confirmed.insert(hash);
                } else {
                    confirmed.remove(&hash);
                }
            });
        }
        told = known;
        tokio::select! {
            changed = tokens.changed() => if changed.is_err() { return Ok(()) },
            // The relay only answers; anything else that comes, an end among it, is a reason to start anew.
            _ = reader.read_u8() => return Err(frame::FrameError::Ended),
        }
    }
}

/// What the relay must still be told, and what it knows then.
fn changes(
    tokens: &Tokens,
    told: &HashSet<TokenHash>,
    now: Instant,
) -> (Vec<(TokenHash, Registration)>, HashSet<TokenHash>) {
    let known: HashSet<TokenHash> = tokens
        .iter()
        .filter(|(_, (_, expires))| now < *expires)
        .map(|(hash, _)| *hash)
        .collect();
    let added = known.difference(told).map(|hash| {
        let left = tokens[hash].1.saturating_duration_since(now).as_secs() + 1;
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
    use super::*;

    #[test]
    fn the_relay_is_told_what_changed_and_no_more() {
        let (now, hour) = (Instant::now(), Duration::from_secs(3600));
        let token = |n| RelayToken::from_bytes([n; 32]);
        let mut tokens = Tokens::new();
        for n in 0..3 {
            tokens.insert(token(n).hash(), (token(n), now + hour * u32::from(n)));
        }
        // The first has expired at once.
        let (first, told) = changes(&tokens, &HashSet::new(), now);
        assert_eq!((first.len(), told.len()), (2, 2));
        assert!(changes(&tokens, &told, now).0.is_empty());
        let (second, told) = changes(&tokens, &told, now + hour);
        assert!(matches!(second[..], [(_, Registration::Remove { .. })]));
        assert_eq!(told, HashSet::from([token(2).hash()]));
    }
}
