//! Taking the market: card sets of several entries, compared.
//!
//! Threats: an entry that shows this client cards of its own, or leaves some out, to recognise it later by what it does; an entry
//! that answers slowly, or sends what does not hold together; one that shows cards of another time, so that the clock here seems
//! wrong. Sets are taken whole, and a quorum of the *configured* entries decides. Nobody else is asked, whoever shows its card: an
//! honest entry shows the card of a liar's friend as well as any other, and with it one liar would be a quorum.

use std::time::Duration;

use rand::seq::SliceRandom as _;
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    card::VerifiedCard,
    quorum::{Gathering, MAX_ENTRIES, Market, SetError, WrongClock},
    units::Digest,
};
use tokio::{task::JoinSet, time::timeout};

use super::{ClientConfig, Progress, Watch};
use crate::net::{Client as NetClient, ConnectError, Multiaddr, Snapshot, SnapshotError};

/// An entry that has not sent its set within this time is done without; a set of 4,096 cards takes a few seconds.
const SET_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no market.
#[derive(Debug, thiserror::Error)]
pub enum MarketError {
    /// Too few entries showed a set that holds together.
    #[error("{got} of {asked} nodes showed their cards, {needed} must agree")]
    TooFewEntries {
        /// How many were asked.
        asked: usize,
        /// How many showed one.
        got: usize,
        /// How many must.
        needed: usize,
        /// What the others said.
        #[source]
        last: Option<EntryFailure>,
    },
    /// The configuration names fewer nodes than must agree.
    #[error(
        "{configured} nodes to ask for cards are configured, and {needed} must agree: one that is alone could show you whatever it likes"
    )]
    TooFewConfigured {
        /// How many are configured.
        configured: usize,
        /// How many must agree.
        needed: usize,
    },
    /// The configuration names nobody to ask.
    #[error("no node to ask for cards is configured")]
    NobodyToAsk,
    /// The clock of this machine does not fit the cards on which the nodes agree.
    #[error(transparent)]
    Clock(#[from] WrongClock),
}

/// Why an entry was of no use.
#[derive(Debug, thiserror::Error)]
pub enum EntryFailure {
    /// It was not reached.
    #[error("node {node} was not reached")]
    Connect {
        /// The node.
        node: NodeId,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// It did not send its set.
    #[error("node {node} did not send its cards")]
    Snapshot {
        /// The node.
        node: NodeId,
        /// Why.
        #[source]
        source: SnapshotError,
    },
    /// It took too long.
    #[error("node {0} did not send its cards in time")]
    TimedOut(NodeId),
    /// Its set does not hold together.
    #[error("the cards of node {node} do not hold together")]
    Set {
        /// The node.
        node: NodeId,
        /// Why.
        #[source]
        source: SetError,
    },
}

/// Takes the sets of as many configured entries as are compared; where some of these are away, of other configured ones.
pub(super) async fn gather(
    net: &NetClient,
    config: &ClientConfig,
    now: UnixTime,
    watch: Watch<'_>,
) -> Result<Market, MarketError> {
    let wanted = config.entries_asked.clamp(1, MAX_ENTRIES);
    let mut first: Vec<_> = config
        .entries
        .iter()
        .map(|a| (a.node(), vec![a.address().clone()]))
        .collect();
    first.sort_by_key(|(node, _)| *node);
    first.dedup_by_key(|(node, _)| *node);
    if first.is_empty() {
        return Err(MarketError::NobodyToAsk);
    }
    if first.len() < config.quorum {
        return Err(MarketError::TooFewConfigured {
            configured: first.len(),
            needed: config.quorum,
        });
    }
    first.shuffle(&mut rand::rng());
    let mut spare = first.split_off(first.len().min(wanted));
    let mut asked = first.len();
    watch(Progress::AskingEntries { entries: asked });

    let mut gathering = Gathering::new(config.network.clone(), config.params.is_test(), now);
    let (mut got, mut last) = ask(net, first, &mut gathering).await;
    if got < wanted {
        spare.truncate(wanted - got);
        if !spare.is_empty() {
            asked += spare.len();
            watch(Progress::AskingEntries { entries: asked });
            let (answered, failure) = ask(net, spare, &mut gathering).await;
            got += answered;
            last = failure.or(last);
        }
    }
    if got < config.quorum {
        let needed = config.quorum;
        return Err(MarketError::TooFewEntries {
            asked,
            got,
            needed,
            last,
        });
    }
    // By a clock that is wrong by hours nearly all cards are over or not begun, and nobody would seem to sell.
    if let Some(wrong) = gathering.wrong_clock(config.quorum) {
        return Err(wrong.into());
    }
    let market = gathering.compare(config.quorum);
    let (cards, unanimous) = (market.cards.len(), market.is_unanimous());
    watch(Progress::Market {
        cards,
        unanimous,
        entries: market.roots.len(),
    });
    Ok(market)
}

/// Where the node of a card listens, for the network.
pub(super) fn addresses(card: &VerifiedCard) -> Vec<Multiaddr> {
    let parse = |address: &souk_market::card::Address| {
        address
            .to_string()
            .parse()
            .expect("an address of a card is a multiaddress")
    };
    card.addresses.iter().map(parse).collect()
}

async fn ask(
    net: &NetClient,
    nodes: Vec<(NodeId, Vec<Multiaddr>)>,
    gathering: &mut Gathering,
) -> (usize, Option<EntryFailure>) {
    let mut asking = JoinSet::new();
    for (node, addresses) in nodes {
        let net = net.clone();
        asking.spawn(async move {
            let taken = timeout(SET_DEADLINE, take(&net, node, &addresses)).await;
            (node, taken.unwrap_or(Err(EntryFailure::TimedOut(node))))
        });
    }
    let (mut got, mut last) = (0, None);
    while let Some(finished) = asking.join_next().await {
        let (node, taken) = finished.expect("a task that only asks does not panic");
        let checked = taken.and_then(|set| {
            let objects = set.objects.iter().map(|object| &object[..]);
            gathering
                .handle_set(node, set.epoch, Digest(set.root), objects)
                .map_err(|source| EntryFailure::Set { node, source })
        });
        match checked {
            Ok(()) => got += 1,
            Err(failure) => {
                tracing::debug!(%failure, "a card set is done without");
                last = Some(failure);
            }
        }
    }
    (got, last)
}

async fn take(
    net: &NetClient,
    node: NodeId,
    addresses: &[Multiaddr],
) -> Result<Snapshot, EntryFailure> {
    let peers = net.peers();
    peers
        .connect(node, addresses)
        .await
        .map_err(|source| EntryFailure::Connect { node, source })?;
    peers
        .snapshot(node)
        .await
        .map_err(|source| EntryFailure::Snapshot { node, source })
}

#[cfg(test)]
mod tests;
