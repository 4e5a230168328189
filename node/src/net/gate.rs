//! Who may connect at all: bounds for each address, and peers that are kept out for a while.
//!
//! Several nodes behind one address are normal (a household, a lab, a test on loopback), so the bound is generous; it
//! only keeps a single address from taking every place. Peers must have Ed25519 identities, because a node id is one.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ListenFailure, dummy,
    },
};

use super::{
    address,
    conduct::MAX_REMEMBERED,
    origin::{Origins, network_of},
};

/// Why the gate refused a connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("too many connections from one address")]
    AddressFull,
    #[error("the peer is kept out after breaking the protocol")]
    Banned,
    #[error("the peer's identity is not an Ed25519 key")]
    ForeignKey,
}

/// The behaviour. It has no protocol of its own.
#[derive(Debug)]
pub(super) struct Behaviour {
    max_per_ip: usize,
    inbound: HashMap<ConnectionId, IpAddr>,
    by_ip: HashMap<IpAddr, usize>,
    origins: Origins,
    banned: HashSet<PeerId>,
}

impl Behaviour {
    /// A gate that lets at most `max_per_ip` connections in from one address (one /64 of IPv6), and tells `origins` who came
    /// from where.
    pub(super) fn new(max_per_ip: usize, origins: Origins) -> Self {
        Self {
            max_per_ip,
            inbound: HashMap::new(),
            by_ip: HashMap::new(),
            origins,
            banned: HashSet::new(),
        }
    }

    /// Keeps `peer` out until [`Self::pardon`].
    pub(super) fn ban(&mut self, peer: PeerId) {
        if self.banned.len() < MAX_REMEMBERED {
            self.banned.insert(peer);
        }
    }

    /// Lets every peer in again for which `over` holds.
    pub(super) fn pardon(&mut self, over: impl Fn(&PeerId) -> bool) {
        self.banned.retain(|peer| !over(peer));
    }

    fn check(&self, peer: &PeerId) -> Result<(), ConnectionDenied> {
        if address::public_key(peer).is_none() {
            return Err(ConnectionDenied::new(Refusal::ForeignKey));
        }
        if self.banned.contains(peer) {
            return Err(ConnectionDenied::new(Refusal::Banned));
        }
        Ok(())
    }

    fn forget(&mut self, id: ConnectionId) {
        if let Some(ip) = self.inbound.remove(&id)
            && let Some(count) = self.by_ip.get_mut(&ip)
        {
            *count -= 1;
            if *count == 0 {
                self.by_ip.remove(&ip);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(ip) = address::ip(remote).map(network_of) else {
            return Ok(());
        };
        let count = self.by_ip.entry(ip).or_default();
        if *count >= self.max_per_ip {
            return Err(ConnectionDenied::new(Refusal::AddressFull));
        }
        *count += 1;
        self.inbound.insert(id, ip);
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(&peer)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(&peer)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => self.origins.handle_established(
                established.peer_id,
                established.connection_id,
                established.endpoint.get_remote_address(),
                established.endpoint.is_listener(),
            ),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                self.origins.handle_closed(&peer_id, connection_id);
                self.forget(connection_id);
            }
            FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.forget(connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrive(gate: &mut Behaviour, id: usize, from: &str) -> bool {
        let (local, remote) = ("/ip4/127.0.0.1/tcp/1".parse(), from.parse());
        gate.handle_pending_inbound_connection(
            ConnectionId::new_unchecked(id),
            &local.unwrap(),
            &remote.unwrap(),
        )
        .is_ok()
    }

    #[test]
    fn one_address_cannot_take_every_place_and_gets_its_places_back() {
        let mut gate = Behaviour::new(2, Origins::new([0; 32]));
        assert!(arrive(&mut gate, 1, "/ip4/203.0.113.1/tcp/1"));
        assert!(arrive(&mut gate, 2, "/ip4/203.0.113.1/udp/2/quic-v1"));
        assert!(!arrive(&mut gate, 3, "/ip4/203.0.113.1/tcp/3"));
        assert!(arrive(&mut gate, 4, "/ip4/203.0.113.2/tcp/1"));
        gate.forget(ConnectionId::new_unchecked(1));
        assert!(arrive(&mut gate, 5, "/ip4/203.0.113.1/tcp/4"));
    }

    #[test]
    fn one_ipv6_host_is_one_address() {
        let mut gate = Behaviour::new(1, Origins::new([0; 32]));
        assert!(arrive(&mut gate, 1, "/ip6/2001:db8:0:1::1/tcp/1"));
        assert!(!arrive(&mut gate, 2, "/ip6/2001:db8:0:1::2/tcp/1"));
        assert!(arrive(&mut gate, 3, "/ip6/2001:db8:0:2::1/tcp/1"));
    }

    #[test]
    fn closed_connections_leave_nothing_behind() {
        let mut gate = Behaviour::new(2, Origins::new([0; 32]));
        for id in 0..100 {
            assert!(arrive(&mut gate, id, "/ip4/203.0.113.1/tcp/1"));
            gate.forget(ConnectionId::new_unchecked(id));
        }
        assert!(gate.inbound.is_empty() && gate.by_ip.is_empty());
    }
}
