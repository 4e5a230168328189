//! One connection with each peer: of two, one goes at once, and both sides know which.
//!
//! A node that was killed leaves connections behind that its neighbours still take for alive. When it comes back, what
//! they send to it must not go into the dead one; and a healthy peer never needs a second one.
//!
//! ```text
//!            new connection of the same peer (its identity is proven by the handshake)
//!  held ──┬─ it dialed both, or we dialed both ─────────────► the new one is held, the old one is closed
//!         ├─ the old one is older than CROSSING ────────────► the same: who dials has lost the old one
//!         └─ younger, and dialed from the other side ───────► both dialed at once: the dial of the smaller peer id stays
//! ```
//!
//! Threat: a stranger who takes over the connection of another. It would have to prove that peer's identity; with its own
//! it replaces its own connection and nothing else.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, DialFailure, FromSwarm,
        ListenFailure, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        dummy,
    },
};

/// Two dials that cross are both up within this time; whoever dials later has lost the first connection.
const CROSSING: Duration = Duration::from_secs(3);

/// The peer has another connection, which stays.
#[derive(Debug, thiserror::Error)]
#[error("both sides dialed at once, and the other connection stays")]
pub(super) struct Crossed;

/// The behaviour. It has no protocol of its own.
#[derive(Debug)]
pub(super) struct Behaviour {
    local: PeerId,
    /// Bounded by the connections.
    held: HashMap<PeerId, Held>,
    /// At most one for each connection that was let in.
    closing: VecDeque<(PeerId, ConnectionId)>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    id: ConnectionId,
    dialed: bool,
    since: Instant,
}

impl Behaviour {
    /// The behaviour of the node or client with this peer id.
    pub(super) fn new(local: PeerId) -> Self {
        Self {
            local,
            held: HashMap::new(),
            closing: VecDeque::new(),
        }
    }

    fn handle_established(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        dialed: bool,
        now: Instant,
    ) -> Result<(), Crossed> {
        if let Some(held) = self.held.get(&peer) {
            let crossing =
                held.dialed != dialed && now.saturating_duration_since(held.since) < CROSSING;
            let ours_stays = self.local < peer;
            if crossing && dialed != ours_stays {
                return Err(Crossed);
            }
            self.closing.push_back((peer, held.id));
        }
        let since = now;
        self.held.insert(peer, Held { id, dialed, since });
        Ok(())
    }

    fn handle_gone(&mut self, peer: &PeerId, id: ConnectionId) {
        if self.held.get(peer).is_some_and(|held| held.id == id) {
            self.held.remove(peer);
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handle_established(id, peer, false, Instant::now())
            .map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handle_established(id, peer, true, Instant::now())
            .map_err(ConnectionDenied::new)?;
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            })
            // Another behaviour refused what this one had let in.
            | FromSwarm::DialFailure(DialFailure {
                peer_id: Some(peer_id),
                connection_id,
                ..
            })
            | FromSwarm::ListenFailure(ListenFailure {
                peer_id: Some(peer_id),
                connection_id,
                ..
            }) => self.handle_gone(&peer_id, connection_id),
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
        match self.closing.pop_front() {
            Some((peer_id, id)) => Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(id),
            }),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: usize = 1;
    const NEW: usize = 2;

    /// Peer ids in rising order.
    fn two() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        (a.min(b), a.max(b))
    }

    /// What is left at one side after two connections to one peer, and what is to be closed.
    struct Side(Behaviour, PeerId);

    impl Side {
        fn of(local: PeerId, peer: PeerId) -> Self {
            Self(Behaviour::new(local), peer)
        }

        fn arrive(&mut self, id: usize, dialed: bool, now: Instant) -> bool {
            let id = ConnectionId::new_unchecked(id);
            self.0.handle_established(id, self.1, dialed, now).is_ok()
        }

        fn held(&self) -> ConnectionId {
            self.0.held[&self.1].id
        }

        fn closing(&self) -> Vec<ConnectionId> {
            self.0.closing.iter().map(|(_, id)| *id).collect()
        }
    }

    #[test]
    fn of_two_dials_that_cross_both_sides_keep_the_same_whatever_comes_first() {
        let (small, large) = two();
        let now = Instant::now();
        // Connection 1 is dialed by the smaller peer id, 2 by the larger.
        let (first, second) = (
            ConnectionId::new_unchecked(1),
            ConnectionId::new_unchecked(2),
        );
        for (local, peer) in [(small, large), (large, small)] {
            let dialed = |id| (id == 1) == (local == small);
            let mut side = Side::of(local, peer);
            assert!(side.arrive(1, dialed(1), now));
            assert!(!side.arrive(2, dialed(2), now));
            assert_eq!((side.held(), side.closing()), (first, vec![]));

            let mut side = Side::of(local, peer);
            assert!(side.arrive(2, dialed(2), now));
            assert!(side.arrive(1, dialed(1), now));
            assert_eq!((side.held(), side.closing()), (first, vec![second]));
        }
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_what_it_had() {
        let (small, large) = two();
        let now = Instant::now();
        for (local, peer) in [(small, large), (large, small)] {
            for (dialed_before, later) in
                [(false, Duration::ZERO), (false, CROSSING), (true, CROSSING)]
            {
                let mut side = Side::of(local, peer);
                assert!(side.arrive(OLD, dialed_before, now));
                assert!(side.arrive(NEW, false, now + later));
                assert_eq!(side.held(), ConnectionId::new_unchecked(NEW));
                assert_eq!(side.closing(), [ConnectionId::new_unchecked(OLD)]);
            }
        }
    }

    #[test]
    fn connections_that_end_leave_nothing_behind() {
        let (local, peer) = two();
        let mut side = Side::of(local, peer);
        let now = Instant::now();
        assert!(side.arrive(OLD, false, now));
        assert!(side.arrive(NEW, false, now));
        side.0.handle_gone(&peer, ConnectionId::new_unchecked(OLD));
        assert_eq!(side.held(), ConnectionId::new_unchecked(NEW));
        side.0.handle_gone(&peer, ConnectionId::new_unchecked(NEW));
        assert!(side.0.held.is_empty());
    }
}
