//! Catches up with the cards of the network: gossip brings only what is published while a node listens.
//!
//! Shortly after the start, and then ever more rarely, one other node, a neighbour perhaps, is asked for the root of its
//! card set, and for the set where the root is another. Who is asked is drawn at random, so that one node cannot keep
//! cards from us.
//!
//! The first sets also say what the network remembers of our own usage log. A few nodes are asked for that, so that one of
//! them cannot keep it to itself, and the node does not wait for them for ever.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rand::seq::IndexedRandom as _;
use souk_crypto::NodeId;
use souk_market::{card::Role, shares::Source};
use tokio_util::sync::CancellationToken;

use super::directory::Cards;
use crate::net::{Multiaddr, NodeAddress, Peers, SnapshotSource as _};

/// The pause after the first round; it doubles from round to round.
const FIRST_PAUSE: Duration = Duration::from_millis(300);

/// The longest pause. A node that missed a card has it after a few of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// So many nodes are asked what they remember of our usage log, where there are so many.
const WITNESSES: usize = 3;

/// Longest wait for them: a node without a network works, and signs, alone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Compares card sets until `stop` is cancelled.
pub(super) async fn run(
    peers: Peers,
    cards: Arc<Cards>,
    bootstrap: Vec<NodeAddress>,
    stop: CancellationToken,
) {
    let work = async {
        // What was not answered by then may come later, and counts then.
        let _ = tokio::time::timeout(PATIENCE, ask(&peers, &cards, &bootstrap)).await;
        cards.network_was_asked();
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
            cards.tick();
            round(&peers, &cards, &bootstrap).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = stop.cancelled() => {}
    }
}

/// Takes the sets of a few nodes, whether they are new or not.
async fn ask(peers: &Peers, cards: &Cards, bootstrap: &[NodeAddress]) {
    let mut asked = BTreeSet::new();
    while asked.len() < WITNESSES {
        let mut left = candidates(peers, cards, bootstrap).await;
        left.retain(|(node, _)| !asked.contains(node));
        if left.is_empty() && !asked.is_empty() {
            return;
        }
        let next = left.choose(&mut rand::rng()).cloned();
        if let Some((node, addresses)) = next
            && peers.connect(node, &addresses).await.is_ok()
            && fetch(peers, cards, node).await
        {
            asked.insert(node);
        } else {
            tokio::time::sleep(FIRST_PAUSE).await;
        }
    }
}

async fn round(peers: &Peers, cards: &Cards, bootstrap: &[NodeAddress]) {
    let known = candidates(peers, cards, bootstrap).await;
    let Some((node, addresses)) = known.choose(&mut rand::rng()) else {
        return;
    };
    let node = *node;
    // A node that is away or busy is no matter: another one is drawn the next time.
    if peers.connect(node, addresses).await.is_err() {
        return;
    }
    let Ok(head) = peers.snapshot_head(node).await else {
        return;
    };
    let own = cards.snapshot();
    if (head.epoch, head.root) == (own.epoch, own.root) {
        return;
    }
    fetch(peers, cards, node).await;
}

/// Takes the whole set of a connected node; says whether it came.
async fn fetch(peers: &Peers, cards: &Cards, node: NodeId) -> bool {
    let Ok(theirs) = peers.snapshot(node).await else {
        return false;
    };
    let source = Source::Neighbour(peers.origin(node).number());
    for object in theirs.objects.iter() {
        cards.take(object, source);
        // Signatures take time; other tasks of this thread have a turn in between.
        tokio::task::yield_now().await;
    }
    true
}

/// Mixes whose cards are known, bootstrap nodes, and neighbours: on a LAN they may be all that a new node knows.
pub(super) async fn candidates(
    peers: &Peers,
    cards: &Cards,
    bootstrap: &[NodeAddress],
) -> Vec<(NodeId, Vec<Multiaddr>)> {
    let mut known = cards.dialable(&[Role::Mix]);
    known.extend(
        bootstrap
            .iter()
            .map(|address| (address.node(), vec![address.address().clone()])),
    );
    // They are connected already, so no address is needed.
    let neighbours = peers.neighbours().await;
    known.extend(neighbours.into_iter().map(|node| (node, Vec::new())));
    known.retain(|(node, _)| *node != peers.local());
    known
}
