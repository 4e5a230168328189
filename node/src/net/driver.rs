//! The task that owns the swarm. Everything else talks to it through [`Peers`](super::Peers).
//!
//! ```text
//!  Peers ──Command──► ┌────────┐ ◄── swarm events
//!                     │ Driver │ ──► validator task ──Validated──┐
//!                     └────────┘ ◄───────────────────────────────┘
//! ```
//!
//! The task never waits for anything but its inputs: validation, streams and requests run elsewhere.

use std::{
    collections::{HashMap, HashSet},
    error::Error as _,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    gossipsub::{self, MessageAcceptance, MessageId},
    identify, kad, mdns,
    metrics::{Metrics, Recorder as _},
    ping,
    swarm::{
        DialError, StreamUpgradeError, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use souk_crypto::NodeId;
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::{
    address,
    behaviour::{Behaviour, BehaviourEvent},
    conduct::{Conduct, Offence},
    counters::Counters,
    gossip::{Admission, CardValidator, Floodgate, Pending, Topic, VALIDATION_QUEUE, Verdict},
    origin::{Dialler, Origins},
    peers::{Command, ConnectError, Neighbour, NetInfo, PublishError},
};

/// Neighbours below which the node looks for more.
const ENOUGH_NEIGHBOURS: usize = 8;

/// How often the node looks for neighbours, redials its bootstrap nodes if it is alone, and lets peers in again.
const TEND_EVERY: Duration = Duration::from_secs(15);

/// Callers that wait for one and the same peer to be connected.
const MAX_WAITERS: usize = 64;

/// Addresses taken from one peer's own words.
const MAX_ADDRESSES_OF_PEER: usize = 8;

/// The node's part of the driver; a client has none of it.
pub(super) struct NodePart {
    pub(super) bootstrap: Vec<(PeerId, Multiaddr)>,
    pub(super) floodgate: Floodgate,
    pub(super) validate: mpsc::Sender<Pending>,
}

/// The owner of the swarm.
pub(super) struct Driver {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) family: String,
    pub(super) allow_private_addresses: bool,
    pub(super) conduct: Conduct,
    pub(super) waiting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), ConnectError>>>>,
    pub(super) node: Option<NodePart>,
    pub(super) metrics: Option<Metrics>,
    pub(super) origins: Origins,
    pub(super) counters: Counters,
}

impl Driver {
    /// Runs until the last [`Peers`](super::Peers) is gone or asks to stop.
    pub(super) async fn run(mut self) {
        let mut tend = tokio::time::interval(TEND_EVERY);
        tend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None | Some(Command::Stop) => break,
                    Some(command) => self.handle_command(command),
                },
                event = self.swarm.select_next_some() => self.handle_event(event),
                _ = tend.tick() => self.tend(Instant::now()),
            }
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Connect {
                peer,
                addresses,
                reply,
            } => self.connect(peer, addresses, reply),
            Command::Disconnect { peer } => {
                // An error says that there was no connection, which is what was asked for.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
            Command::Offended { peer, offence } => self.punish(peer, offence),
            Command::Publish {
                topic,
                message,
                reply,
            } => {
                // Whoever asked may have gone; the message is out anyway.
                let _ = reply.send(self.publish(topic, message));
            }
            Command::Validated { id, from, verdict } => self.report(&id, &from, verdict.into()),
            Command::Info { reply } => {
                let _ = reply.send(self.info());
            }
            Command::Neighbours { reply } => {
                let _ = reply.send(self.neighbours());
            }
            Command::KnownNeighbours { reply } => {
                let _ = reply.send(self.known_neighbours());
            }
            Command::Stop => {}
        }
    }

    fn neighbours(&mut self) -> Vec<NodeId> {
        let Some(gossip) = self.swarm.behaviour_mut().router() else {
            return Vec::new();
        };
        gossip
            .all_peers()
            .filter(|(_, topics)| !topics.is_empty())
            .filter_map(|(peer, _)| address::node_id(peer))
            .collect()
    }

    fn known_neighbours(&mut self) -> Vec<Neighbour> {
        let Some(gossip) = self.swarm.behaviour_mut().router() else {
            return Vec::new();
        };
        let mesh: HashSet<_> = gossip.all_mesh_peers().collect();
        gossip
            .all_peers()
            .filter(|(_, topics)| !topics.is_empty())
            .filter_map(|(peer, topics)| {
                Some(Neighbour {
                    node: address::node_id(peer)?,
                    is_quic: self.origins.is_quic(peer)?,
                    dialled_us: match self.origins.dialled(peer) {
                        Some(Dialler::Internet) => true,
                        Some(Dialler::Nearby) => self.allow_private_addresses,
                        None => false,
                    },
                    score: gossip.peer_score(peer).unwrap_or_default(),
                    topics: topics.len(),
                    in_mesh: mesh.contains(peer),
                })
            })
            .collect()
    }

    fn connect(
        &mut self,
        peer: PeerId,
        addresses: Vec<Multiaddr>,
        reply: oneshot::Sender<Result<(), ConnectError>>,
    ) {
        if self.swarm.is_connected(&peer) {
            let _ = reply.send(Ok(()));
            return;
        }
        let addresses = self.acceptable(addresses);
        let known = self.waiting.entry(peer).or_default();
        if known.len() >= MAX_WAITERS {
            let _ = reply.send(Err(ConnectError::Busy));
            return;
        }
        known.push(reply);
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(dial) {
            // Somebody is dialing this peer already: wait with them.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.answer_waiting(&peer, &Err(ConnectError::of(&error))),
        }
    }

    fn answer_waiting(&mut self, peer: &PeerId, result: &Result<(), ConnectError>) {
        for reply in self.waiting.remove(peer).unwrap_or_default() {
            let _ = reply.send(result.clone());
        }
    }

    fn publish(&mut self, topic: Topic, message: Bytes) -> Result<(), PublishError> {
        let (Some(gossip), Some(node)) = (self.swarm.behaviour_mut().router(), &self.node) else {
            return Err(PublishError::NotANode);
        };
        match gossip.publish(node.floodgate.hash(topic), message) {
            // The neighbours have it already, which is what was wanted.
            Ok(_) | Err(gossipsub::PublishError::Duplicate) => Ok(()),
            Err(gossipsub::PublishError::NoPeersSubscribedToTopic) => {
                Err(PublishError::NoNeighbours)
            }
            Err(gossipsub::PublishError::MessageTooLarge) => Err(PublishError::TooLarge),
            Err(_) => Err(PublishError::QueuesFull),
        }
    }

    fn report(&mut self, id: &MessageId, from: &PeerId, acceptance: MessageAcceptance) {
        if let Some(gossip) = self.swarm.behaviour_mut().router() {
            // False where the message has left the cache meanwhile; then there is nothing to forward.
            gossip.report_message_validation_result(id, from, acceptance);
        }
    }

    fn punish(&mut self, peer: PeerId, offence: Offence) {
        let now = Instant::now();
        self.counters.count_offence(offence);
        let sentence = self.conduct.handle_offence(peer, offence, now);
        let behaviour = self.swarm.behaviour_mut();
        if self.conduct.is_banned(&peer, now) {
            behaviour.gate.ban(peer);
        }
        if let Some(gossip) = behaviour.router() {
            gossip.set_application_score(&peer, sentence.score);
        }
        if sentence.disconnect {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    fn tend(&mut self, now: Instant) {
        let conduct = &self.conduct;
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        let behaviour = self.swarm.behaviour_mut();
        behaviour.gate.pardon(|peer| !conduct.is_banned(peer, now));
        if let Some(gossip) = behaviour.router() {
            for peer in &peers {
                gossip.set_application_score(peer, conduct.score(peer, now));
            }
        }
        let Some(node) = &self.node else { return };
        if peers.len() >= ENOUGH_NEIGHBOURS {
            return;
        }
        if let Some(kademlia) = behaviour.kademlia.as_mut() {
            for (peer, address) in &node.bootstrap {
                kademlia.add_address(peer, address.clone());
            }
            // Fails only where the table is empty: then there is nobody to ask.
            let _ = kademlia.bootstrap();
        }
        if peers.is_empty() {
            for (peer, address) in node.bootstrap.clone() {
                let dial = DialOpts::peer_id(peer)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(vec![address])
                    .build();
                // A node that is being dialed already needs no second dial; others are tried at the next turn.
                let _ = self.swarm.dial(dial);
            }
        }
    }

    fn info(&mut self) -> NetInfo {
        let kademlia = self.swarm.behaviour_mut().kademlia.as_mut();
        let routable = kademlia.map_or(0, |kademlia| {
            kademlia.kbuckets().map(|bucket| bucket.num_entries()).sum()
        });
        let behaviour = self.swarm.behaviour();
        NetInfo {
            peers: self.swarm.connected_peers().count(),
            mesh: behaviour
                .gossip
                .as_ref()
                .map_or(0, |gossip| gossip.router().all_mesh_peers().count()),
            routable,
            connections: self
                .swarm
                .network_info()
                .connection_counters()
                .num_established(),
            listening: self.swarm.listeners().cloned().collect(),
            external: self.swarm.external_addresses().cloned().collect(),
        }
    }

    fn acceptable(&self, addresses: impl IntoIterator<Item = Multiaddr>) -> Vec<Multiaddr> {
        addresses
            .into_iter()
            .filter(|address| {
                address::is_dialable(address)
                    && (self.allow_private_addresses || address::is_public(address))
            })
            .take(MAX_ADDRESSES_OF_PEER)
            .collect()
    }

    fn handle_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        // An address at which a stranger says it sees us is labelled with its protocols, of which it can make up as many as
        // it likes; such a series would never go.
        if let Some(metrics) = &self.metrics
            && !matches!(event, SwarmEvent::NewExternalAddrCandidate { .. })
        {
            metrics.record(&event);
        }
        match event {
            SwarmEvent::Behaviour(event) => self.handle_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                self.answer_waiting(&peer_id, &Ok(()));
            }
            SwarmEvent::OutgoingConnectionError {
                peer_id: Some(peer),
                error,
                ..
            } if !self.swarm.is_connected(&peer) => {
                self.answer_waiting(&peer, &Err(ConnectError::of(&error)));
            }
            SwarmEvent::ConnectionClosed {
                peer_id,
                num_established: 0,
                ..
            } => {
                if let Some(node) = &mut self.node {
                    node.floodgate.handle_disconnected(&peer_id);
                }
            }
            SwarmEvent::ListenerClosed {
                reason: Err(error),
                addresses,
                ..
            } => {
                tracing::error!(?addresses, %error, "no longer listening");
            }
            _ => {}
        }
    }

    fn handle_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Streams(refused) => self.punish(refused.peer, Offence::Rate),
            BehaviourEvent::Gossip(event) => {
                if let Some(metrics) = &self.metrics {
                    metrics.record(&event);
                }
                if let gossipsub::Event::Message {
                    propagation_source,
                    message_id,
                    message,
                } = event
                {
                    self.judge(propagation_source, message_id, message);
                }
            }
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.learn(peer_id, info);
            }
            BehaviourEvent::Identify(identify::Event::Error { peer_id, error, .. })
                if is_malformed(&error) =>
            {
                self.punish(peer_id, Offence::Framing);
            }
            BehaviourEvent::Kademlia(event) => {
                if let Some(metrics) = &self.metrics {
                    metrics.record(&event);
                }
                self.route(event);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                for (peer, address) in found {
                    self.add_route(peer, [address.clone()]);
                    self.greet(peer, address);
                }
            }
            BehaviourEvent::Ping(event) => {
                if let Some(metrics) = &self.metrics {
                    metrics.record(&event);
                }
                self.pinged(event);
            }
            _ => {}
        }
    }

    /// Closes a connection over which nothing comes back. That is nobody's fault: a cable may be cut.
    fn pinged(&mut self, event: ping::Event) {
        match event.result {
            Ok(_) | Err(ping::Failure::Unsupported) => {}
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => {
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn judge(&mut self, from: PeerId, id: MessageId, message: gossipsub::Message) {
        let Some(node) = &mut self.node else { return };
        let origin = self.origins.of(&from);
        let (topic, len) = (&message.topic, message.data.len());
        let admission = node
            .floodgate
            .handle_message(from, origin, topic, len, Instant::now());
        match admission {
            Admission::Ask(topic) => {
                let pending = Pending {
                    id: id.clone(),
                    from,
                    origin,
                    topic,
                    message: message.data.into(),
                };
                if node.validate.try_send(pending).is_err() {
                    self.report(&id, &from, MessageAcceptance::Ignore);
                }
            }
            Admission::Oversized => {
                self.report(&id, &from, MessageAcceptance::Reject);
                self.punish(from, Offence::Oversized);
            }
            Admission::TooFast => {
                self.report(&id, &from, MessageAcceptance::Ignore);
                self.punish(from, Offence::Rate);
            }
            Admission::Crowded => self.report(&id, &from, MessageAcceptance::Ignore),
        }
    }

    fn learn(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocol_version != self.family {
            // Another network, or another program: not its fault, but there is nothing to talk about.
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        // Only who serves Kademlia is a node to be found by others; clients do not.
        let is_node = self
            .swarm
            .behaviour()
            .kademlia
            .as_ref()
            .is_some_and(|kademlia| {
                kademlia
                    .protocol_names()
                    .iter()
                    .any(|name| info.protocols.contains(name))
            });
        if is_node {
            self.add_route(peer, info.listen_addrs);
        }
    }

    fn add_route(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let addresses = self.acceptable(addresses);
        if let Some(kademlia) = self.swarm.behaviour_mut().kademlia.as_mut() {
            for address in addresses {
                kademlia.add_address(&peer, address);
            }
        }
    }

    /// Connects to a node that was seen on the local network, while there are few neighbours: it may be the only one.
    fn greet(&mut self, peer: PeerId, address: Multiaddr) {
        if self.swarm.connected_peers().count() >= ENOUGH_NEIGHBOURS {
            return;
        }
        let dial = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(self.acceptable([address]))
            .build();
        // A node that is connected already needs no dial; where it fails, the routing table has it.
        let _ = self.swarm.dial(dial);
    }

    fn route(&mut self, event: kad::Event) {
        if let kad::Event::RoutablePeer { peer, address }
        | kad::Event::PendingRoutablePeer { peer, address } = event
        {
            self.add_route(peer, [address]);
        }
    }
}

/// Whether a neighbour sent what is no message of identify. That a stream broke, took too long or was never agreed on is nobody's
/// fault. Gossipsub, Kademlia and ping do not tell such bytes from a stream that failed, so there they are held against nobody.
fn is_malformed(error: &StreamUpgradeError<identify::UpgradeError>) -> bool {
    let StreamUpgradeError::Apply(error) = error else {
        return false;
    };
    match error {
        // The codec tells bytes that it refuses from a stream that failed it by the kind of what is below.
        identify::UpgradeError::Codec(error) => error
            .source()
            .and_then(|below| below.downcast_ref::<io::Error>())
            .is_some_and(|below| below.kind() == io::ErrorKind::InvalidData),
        identify::UpgradeError::Multiaddr(_) | identify::UpgradeError::PublicKey(_) => true,
        identify::UpgradeError::Io(_) | identify::UpgradeError::StreamClosed => false,
    }
}

/// Asks the validator about one message after the other, away from the swarm.
pub(super) fn spawn_validator(
    validator: Arc<dyn CardValidator>,
    commands: mpsc::WeakSender<Command>,
) -> mpsc::Sender<Pending> {
    let (sender, mut pending) = mpsc::channel::<Pending>(VALIDATION_QUEUE);
    tokio::spawn(async move {
        while let Some(Pending {
            id,
            from,
            origin,
            topic,
            message,
        }) = pending.recv().await
        {
            let verdict: Verdict = validator.validate(topic, &message, origin);
            let Some(commands) = commands.upgrade() else {
                break;
            };
            let validated = Command::Validated { id, from, verdict };
            if commands.send(validated).await.is_err() {
                break;
            }
        }
    });
    sender
}
