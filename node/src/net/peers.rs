//! The handle by which everything else uses the swarm.

use std::{error::Error, io, time::Duration};

use bytes::Bytes;
use libp2p::{
    Multiaddr, PeerId, TransportError,
    gossipsub::MessageId,
    swarm::{ConnectionDenied, ConnectionId, DialError},
};
use souk_crypto::{NodeId, causes};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{
    address::{self, NodeAddress},
    conduct::Offence,
    gossip::{Topic, Verdict},
    names::{Names, What},
    origin::{Origin, Origins},
    streams::{OpenError, Opener, PeerStream},
};

/// Commands that wait for the swarm.
pub(super) const COMMAND_QUEUE: usize = 256;

/// A connection must be up within this time, over the slowest of its addresses.
const CONNECT_DEADLINE: Duration = Duration::from_secs(20);

/// Connections to other nodes, by node id. Clones share one swarm, which stops when the last of them is gone.
#[derive(Clone, Debug)]
pub struct Peers {
    pub(super) local: NodeId,
    pub(super) names: Names,
    pub(super) origins: Origins,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) opener: Opener,
}

/// Why there is no connection to a peer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// None of the addresses may be dialed, or none is known.
    #[error("no address of the node can be dialed")]
    NoAddress,
    /// Another node answered at the address.
    #[error("another node answers at the address")]
    WrongNode,
    /// A bound on connections of this node was reached.
    #[error("the local node refuses more connections")]
    Refused,
    /// Nobody answered at any address, or the handshake failed.
    #[error("the node did not answer at {}: {reason}", count(*addresses))]
    Unreachable {
        /// Addresses that were tried.
        addresses: usize,
        /// What the transports said, without addresses.
        reason: String,
    },
    /// The attempt was given up before it had an end.
    #[error("the attempt to reach the node was given up")]
    GivenUp,
    /// It took too long.
    #[error("the node did not answer within {} s", CONNECT_DEADLINE.as_secs())]
    TimedOut,
    /// Too many callers wait for this node.
    #[error("too many callers wait for a connection to this node")]
    Busy,
    /// The local node is shutting down.
    #[error("the local node is stopping")]
    Stopped,
}

impl ConnectError {
    pub(super) fn of(error: &DialError) -> Self {
        match error {
            DialError::NoAddresses => Self::NoAddress,
            DialError::WrongPeerId { .. } | DialError::LocalPeerId { .. } => Self::WrongNode,
            DialError::Denied { cause } => Self::denied(cause),
            DialError::Transport(attempts) => Self::Unreachable {
                addresses: attempts.len(),
                reason: reason(attempts.iter().map(|(_, error)| error)),
            },
            DialError::Aborted | DialError::DialPeerConditionFalse(_) => Self::GivenUp,
        }
    }

    fn denied(_: &ConnectionDenied) -> Self {
        Self::Refused
    }
}

fn count(addresses: usize) -> String {
    match addresses {
        1 => "its one address".to_owned(),
        _ => format!("any of its {addresses} addresses"),
    }
}

/// What the attempts failed from, each cause once. libp2p's own wrappers say nothing themselves; what they wrap does.
fn reason<'a>(attempts: impl Iterator<Item = &'a TransportError<io::Error>>) -> String {
    let mut causes: Vec<String> = Vec::new();
    for error in attempts {
        let cause = match error {
            TransportError::MultiaddrNotSupported(_) => "an address that is not dialed".to_owned(),
            TransportError::Other(error) => innermost(error),
        };
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    causes.join("; ")
}

/// The last cause of an error that says anything.
fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error)
        .map(ToString::to_string)
        .filter(|text| !text.is_empty())
        .last()
        .unwrap_or_else(|| "no cause was given".to_owned())
}

/// Why a message was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Nobody listens yet; try again when there are neighbours.
    #[error("there are no neighbours to publish to")]
    NoNeighbours,
    /// The message is larger than its topic allows.
    #[error("the message is too large for its topic")]
    TooLarge,
    /// The queues to all neighbours are full.
    #[error("the queues to all neighbours are full")]
    QueuesFull,
    /// Clients do not publish.
    #[error("only nodes publish")]
    NotANode,
    /// The local node is shutting down.
    #[error("the local node is stopping")]
    Stopped,
}

/// What the swarm looks like at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetInfo {
    /// Peers with a connection.
    pub peers: usize,
    /// Peers in a gossip mesh of ours.
    pub mesh: usize,
    /// Nodes in the routing table.
    pub routable: usize,
    /// Connections.
    pub connections: u32,
    /// Addresses listened on, with the ports that were taken.
    pub listening: Vec<Multiaddr>,
    /// Addresses that others are told.
    pub external: Vec<Multiaddr>,
}

/// A node that takes part in gossip with this one.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    /// Who it is.
    pub node: NodeId,
    /// It is connected over QUIC, and over TCP otherwise.
    pub is_quic: bool,
    /// Its score in the gossip.
    pub score: f64,
    /// Topics that it takes part in.
    pub topics: usize,
    /// It dialled this node, from an address that a card may name.
    pub dialled_us: bool,
    /// Messages are passed on to it.
    pub in_mesh: bool,
}

impl Peers {
    /// The identity of this swarm: the node, or the client's passing one.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Connects to `node` at one of `addresses`, if there is no connection yet.
    ///
    /// Private addresses are left out unless the configuration allows them.
    ///
    /// # Errors
    /// [`ConnectError`] says what was in the way.
    pub async fn connect(&self, node: NodeId, addresses: &[Multiaddr]) -> Result<(), ConnectError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Connect {
            peer: address::peer_id(&node),
            addresses: addresses.to_vec(),
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| ConnectError::Stopped)?;
        match timeout(CONNECT_DEADLINE, answer).await {
            Err(_) => Err(ConnectError::TimedOut),
            Ok(Err(_)) => Err(ConnectError::Stopped),
            Ok(Ok(result)) => result,
        }
    }

    /// Connects to the node at `address`.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn connect_to(&self, address: &NodeAddress) -> Result<(), ConnectError> {
        self.connect(address.node(), std::slice::from_ref(address.address()))
            .await
    }

    /// Closes all connections to `node`.
    pub async fn disconnect(&self, node: NodeId) {
        let peer = address::peer_id(&node);
        // Fails only where the swarm, and with it every connection, is gone already.
        let _ = self.commands.send(Command::Disconnect { peer }).await;
    }

    /// What the swarm looks like now; empty when it has stopped.
    pub async fn info(&self) -> NetInfo {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Info { reply }).await.is_err() {
            return NetInfo::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Nodes with a connection: peers that gossip, which no client does. Empty when the swarm has stopped.
    pub async fn neighbours(&self) -> Vec<NodeId> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Neighbours { reply };
        if self.commands.send(command).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// The same with what is known of them.
    pub async fn known_neighbours(&self) -> Vec<Neighbour> {
        let (reply, answer) = oneshot::channel();
        let command = Command::KnownNeighbours { reply };
        if self.commands.send(command).await.is_err() {
            return Vec::new();
        }
        answer.await.unwrap_or_default()
    }

    /// Publishes a message of a topic to the gossip mesh.
    ///
    /// # Errors
    /// [`PublishError`]; [`PublishError::NoNeighbours`] is normal shortly after the start.
    pub async fn publish(&self, topic: Topic, message: Bytes) -> Result<(), PublishError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Publish {
            topic,
            message,
            reply,
        };
        self.commands
            .send(command)
            .await
            .map_err(|_| PublishError::Stopped)?;
        answer.await.map_err(|_| PublishError::Stopped)?
    }

    /// By which connection `node` is reached now.
    pub(super) fn connection(&self, node: NodeId) -> Option<ConnectionId> {
        self.origins.connection(&address::peer_id(&node))
    }

    /// Waits for `pause`, but no longer than until `node` has another connection than the one that was `tried`: a node that
    /// was away for long, or died often, is not left waiting once it is back.
    pub(super) async fn pause(&self, node: NodeId, tried: Option<ConnectionId>, pause: Duration) {
        // An error says that the pause is over.
        let _ = timeout(pause, self.origins.another(&address::peer_id(&node), tried)).await;
    }

    /// Where `node` is connected from; [`Origin::AWAY`] where it is not.
    pub fn origin(&self, node: NodeId) -> Origin {
        self.origins.of(&address::peer_id(&node))
    }

    /// The same for a peer that may be no node.
    pub(super) fn origin_of(&self, peer: &PeerId) -> Origin {
        self.origins.of(peer)
    }

    /// Opens a stream of `what` to a connected node.
    pub(super) async fn open(&self, node: NodeId, what: What) -> Result<PeerStream, OpenError> {
        self.opener
            .open(address::peer_id(&node), self.names.stream(what))
            .await
    }

    /// Tells the swarm what a peer did wrong.
    pub(super) async fn report(&self, peer: PeerId, offence: Offence) {
        // Fails only where the swarm, and with it the peer's connection, is gone already.
        let _ = self
            .commands
            .send(Command::Offended { peer, offence })
            .await;
    }

    /// Stops the swarm, whoever else holds a handle.
    pub async fn stop(&self) {
        // Fails only where it has stopped already.
        let _ = self.commands.send(Command::Stop).await;
    }
}

/// What the swarm's task is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Connect {
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<(), ConnectError>>,
    },
    Disconnect {
        peer: PeerId,
    },
    Offended {
        peer: PeerId,
        offence: Offence,
    },
    Publish {
        topic: Topic,
        message: Bytes,
        reply: oneshot::Sender<Result<(), PublishError>>,
    },
    Validated {
        id: MessageId,
        from: PeerId,
        verdict: Verdict,
    },
    Info {
        reply: oneshot::Sender<NetInfo>,
    },
    Neighbours {
        reply: oneshot::Sender<Vec<NodeId>>,
    },
    KnownNeighbours {
        reply: oneshot::Sender<Vec<Neighbour>>,
    },
    Stop,
}
