//! Where a peer connects from, as something that can be counted and not read.
//!
//! Peer ids cost nothing, addresses cost something: what strangers may take is shared out by the address they come from. What is
//! kept is a hash under a key of this process, so a mailbox that outlives its connection tells no address of a requester.
//!
//! Threat: a stranger with very many addresses. An IPv4 address counts as one, and so does an IPv6 /64, which a single host
//! can number itself in; who has a /48 has 65,536 of them.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol, swarm::ConnectionId};
use tokio::sync::watch;

use super::address;

/// The address that a peer connects from, hashed; one number for all peers behind it. It means nothing in another process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(u64);

impl Origin {
    /// That of all peers without a connection.
    pub const AWAY: Self = Self(0);

    /// One of a test's own.
    #[cfg(test)]
    pub(super) fn numbered(number: u64) -> Self {
        Self(number)
    }

    /// The number, to be told apart from others by.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin(..)")
    }
}

/// The origins of the peers that are connected; bounded by the connections. Clones share one record.
#[derive(Clone)]
pub(super) struct Origins {
    key: [u8; 32],
    peers: Arc<RwLock<HashMap<PeerId, Connected>>>,
    /// Changes with every connection that is made.
    made: watch::Sender<()>,
}

/// The connection of a peer that was made last.
#[derive(Clone, Copy)]
struct Connected {
    id: ConnectionId,
    origin: Origin,
    is_quic: bool,
    /// The peer dialled, and from an address of the Internet or another.
    dialled: Option<Dialler>,
}

/// Where a peer that dialled this node stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialler {
    Internet,
    Nearby,
}

impl Origins {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            peers: Arc::default(),
            made: watch::Sender::new(()),
        }
    }

    /// The origin of a peer; [`Origin::AWAY`] where it is not connected.
    pub(super) fn of(&self, peer: &PeerId) -> Origin {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers
            .get(peer)
            .map_or(Origin::AWAY, |connected| connected.origin)
    }

    /// Whether a peer is connected over QUIC; none where it is not connected.
    pub(super) fn is_quic(&self, peer: &PeerId) -> Option<bool> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).map(|connected| connected.is_quic)
    }

    /// Whether a peer dialled this node, and from where; none where this node dialled it.
    pub(super) fn dialled(&self, peer: &PeerId) -> Option<Dialler> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).and_then(|connected| connected.dialled)
    }

    /// The connection of a peer; none where it is not connected.
    pub(super) fn connection(&self, peer: &PeerId) -> Option<ConnectionId> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(peer).map(|connected| connected.id)
    }

    /// Waits until a peer has another connection than `tried`.
    pub(super) async fn another(&self, peer: &PeerId, tried: Option<ConnectionId>) {
        let mut made = self.made.subscribe();
        while self.connection(peer).is_none_or(|id| Some(id) == tried) {
            // The sender is our own.
            let _ = made.changed().await;
        }
    }

    pub(super) fn handle_established(
        &self,
        peer: PeerId,
        id: ConnectionId,
        remote: &Multiaddr,
        it_dialled: bool,
    ) {
        let origin = address::ip(remote).map_or(Origin::AWAY, |ip| self.hash(ip));
        let is_quic = remote.iter().any(|part| part == Protocol::QuicV1);
        let connected = Connected {
            id,
            origin,
            is_quic,
            dialled: it_dialled.then(|| match address::is_public(remote) {
                true => Dialler::Internet,
                false => Dialler::Nearby,
            }),
        };
        self.write().insert(peer, connected);
        self.made.send_replace(());
    }

    pub(super) fn handle_closed(&self, peer: &PeerId, id: ConnectionId) {
        let mut peers = self.write();
        if peers.get(peer).is_some_and(|held| held.id == id) {
            peers.remove(peer);
        }
    }

    fn hash(&self, ip: IpAddr) -> Origin {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        match network_of(ip) {
            IpAddr::V4(ip) => hasher.update(&ip.octets()),
            IpAddr::V6(ip) => hasher.update(&ip.octets()),
        };
        let hash = hasher.finalize();
        let (number, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
        Origin(u64::from_le_bytes(*number))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<PeerId, Connected>> {
        self.peers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origins(..)")
    }
}

/// What counts as one address: an IPv4 address, or the /64 that a single IPv6 host can number itself in.
pub(super) fn network_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[test]
    fn peers_behind_one_address_have_one_origin_for_as_long_as_they_are_connected() {
        let origins = Origins::new([1; 32]);
        let addresses = [
            "/ip4/203.0.113.1/tcp/1",
            "/ip4/203.0.113.1/udp/2/quic-v1",
            "/ip4/203.0.113.2/tcp/1",
            "/ip6/2001:db8:0:1::1/tcp/1",
            "/ip6/2001:db8:0:1::2/tcp/1",
        ];
        let peers = addresses.map(|address| (PeerId::random(), address.parse().unwrap()));
        for (id, (peer, address)) in peers.iter().enumerate() {
            origins.handle_established(*peer, ConnectionId::new_unchecked(id), address, id == 0);
        }
        let of = |n: usize| origins.of(&peers[n].0);
        assert_eq!(of(0), of(1));
        assert_eq!(origins.is_quic(&peers[0].0), Some(false));
        assert_eq!(origins.is_quic(&peers[1].0), Some(true));
        assert!(origins.dialled(&peers[0].0) == Some(Dialler::Nearby));
        assert!(origins.dialled(&peers[1].0).is_none());
        assert_ne!(of(0), of(2));
        assert_eq!(of(3), of(4));
        // An older connection that ends late takes nothing away.
        origins.handle_closed(&peers[0].0, ConnectionId::new_unchecked(99));
        assert_eq!(of(0), of(1));
        origins.handle_closed(&peers[0].0, ConnectionId::new_unchecked(0));
        assert_eq!(of(0), Origin::AWAY);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_for_a_peer_hears_of_another_connection_and_not_of_the_one_it_tried() {
        let origins = Origins::new([1; 32]);
        let (peer, other) = (PeerId::random(), PeerId::random());
        let from: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().expect("an address");
        let connect = |peer, id| {
            let id = ConnectionId::new_unchecked(id);
            origins.handle_established(peer, id, &from, false);
        };
        let hears = async |tried| {
            let another = origins.another(&peer, tried);
            timeout(Duration::from_secs(60), another).await.is_ok()
        };
        assert!(!hears(None).await);
        connect(peer, 1);
        let first = origins.connection(&peer);
        assert!(hears(None).await);
        assert!(!hears(first).await);

        let waiting = origins.clone();
        let waits = tokio::spawn(async move { waiting.another(&peer, first).await });
        tokio::task::yield_now().await;
        connect(other, 2);
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        connect(peer, 3);
        assert!(timeout(Duration::from_secs(60), waits).await.is_ok());
    }
}
