//! Gossip begins afresh with each connection of a peer.
//!
//! gossipsub greets a peer (says what it is subscribed to) on the first of its connections only, and has one queue for all of
//! them. A neighbour that was killed leaves a connection that still counts: when it comes back it is not greeted, so it
//! does not know of anybody to publish to, and what is meant for it may go into the dead connection. So the router in here
//! sees one connection of each peer, the newest; the one before has ended for it, whatever the transport says.
//!
//! ```text
//!  connection a ──► router: a established, greeted
//!  connection b ──► router: a closed; b established, greeted
//!  a ends       ──► (nothing)
//!  b ends       ──► router: b closed
//! ```
//!
//! Scores outlive it: gossipsub keeps a bad one for a peer that went away.

use std::{
    collections::HashMap,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{ConnectedPoint, Endpoint, transport::PortUse},
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
    },
};

/// A router that sees the newest connection of each peer and no other.
pub(super) struct Afresh<B> {
    router: B,
    /// Bounded by the connections.
    newest: HashMap<PeerId, Newest>,
}

struct Newest {
    id: ConnectionId,
    endpoint: ConnectedPoint,
}

impl<B: NetworkBehaviour> Afresh<B> {
    pub(super) fn new(router: B) -> Self {
        Self {
            router,
            newest: HashMap::new(),
        }
    }

    pub(super) fn router(&self) -> &B {
        &self.router
    }

    pub(super) fn router_mut(&mut self) -> &mut B {
        &mut self.router
    }

    /// Ends the connection that the router knows of, before it hears of another one.
    fn end(&mut self, peer: PeerId) {
        if let Some(Newest { id, endpoint }) = self.newest.remove(&peer) {
            self.router
                .on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
                    peer_id: peer,
                    connection_id: id,
                    endpoint: &endpoint,
                    cause: None,
                    remaining_established: 0,
                }));
        }
    }

    fn is_newest(&self, peer: &PeerId, id: ConnectionId) -> bool {
        self.newest.get(peer).is_some_and(|newest| newest.id == id)
    }
}

impl<B: NetworkBehaviour> NetworkBehaviour for Afresh<B> {
    type ConnectionHandler = B::ConnectionHandler;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.router
            .handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.end(peer);
        self.router
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.router
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.end(peer);
        self.router
            .handle_established_outbound_connection(id, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                let newest = Newest {
                    id: established.connection_id,
                    endpoint: established.endpoint.clone(),
                };
                self.newest.insert(established.peer_id, newest);
                self.router.on_swarm_event(FromSwarm::ConnectionEstablished(
                    ConnectionEstablished {
                        other_established: 0,
                        ..established
                    },
                ));
            }
            FromSwarm::ConnectionClosed(closed) => {
                if self.is_newest(&closed.peer_id, closed.connection_id) {
                    self.end(closed.peer_id);
                }
            }
            FromSwarm::AddressChange(change) => {
                if let Some(newest) = self.newest.get_mut(&change.peer_id)
                    && newest.id == change.connection_id
                {
                    newest.endpoint = change.new.clone();
                    self.router.on_swarm_event(event);
                }
            }
            event => self.router.on_swarm_event(event),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        if self.is_newest(&peer, id) {
            self.router.on_connection_handler_event(peer, id, event);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.router.poll(cx)
    }
}
