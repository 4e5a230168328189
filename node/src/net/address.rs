//! Node ids as libp2p peer ids, and addresses with the peer that is expected there.
//!
//! Threat: an address that a stranger made up and that leads into a private network, or asks a name server about it: only the two
//! forms that nodes listen on are dialed, without names, and private ranges are known.

use std::{fmt, net::IpAddr, str::FromStr};

use libp2p::{
    Multiaddr, PeerId,
    core::multihash::Multihash,
    identity::{self, PublicKey},
    multiaddr::Protocol,
};
use souk_crypto::NodeId;

/// An address at which a certain node is expected: a multiaddress that ends in `/p2p/<node id>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    node: NodeId,
    address: Multiaddr,
}

/// Why a text is not the address of a node.
#[derive(Debug, thiserror::Error)]
pub enum NodeAddressError {
    /// It is not a multiaddress.
    #[error("not a multiaddress")]
    Multiaddr(#[source] libp2p::multiaddr::Error),
    /// It does not say which node is expected.
    #[error("the address does not end in /p2p/<node id>")]
    NoNode,
    /// The peer id is not that of a node.
    #[error("the peer id in the address is not an Ed25519 node id")]
    ForeignId,
    /// The address is not one that this network dials.
    #[error("the address is neither /ip4|ip6/…/tcp/… nor /ip4|ip6/…/udp/…/quic-v1")]
    Transport,
}

impl NodeAddress {
    /// Takes the address of `node`, with or without a trailing `/p2p/<node id>`.
    ///
    /// # Errors
    /// Where the address names another node or a transport that this network does not dial (a DNS name among them).
    pub fn new(node: NodeId, mut address: Multiaddr) -> Result<Self, NodeAddressError> {
        if let Some(Protocol::P2p(named)) = address.iter().last() {
            if named != peer_id(&node) {
                return Err(NodeAddressError::ForeignId);
            }
            address.pop();
        }
        if !is_dialable(&address) {
            return Err(NodeAddressError::Transport);
        }
        Ok(Self { node, address })
    }

    /// The node expected there.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The address without the node id.
    pub fn address(&self) -> &Multiaddr {
        &self.address
    }
}

impl FromStr for NodeAddress {
    type Err = NodeAddressError;

    fn from_str(text: &str) -> Result<Self, NodeAddressError> {
        let address: Multiaddr = text.parse().map_err(NodeAddressError::Multiaddr)?;
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            return Err(NodeAddressError::NoNode);
        };
        let node = node_id(&peer).ok_or(NodeAddressError::ForeignId)?;
        Self::new(node, address)
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/p2p/{}", self.address, peer_id(&self.node))
    }
}

/// The libp2p peer id of a node.
pub fn peer_id(node: &NodeId) -> PeerId {
    let key = identity::ed25519::PublicKey::try_from_bytes(node.as_bytes())
        .expect("a node id is a valid Ed25519 key");
    PublicKey::from(key).to_peer_id()
}

/// The node id in a peer id; `None` where it is not an Ed25519 identity.
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    NodeId::from_bytes(&public_key(peer)?).ok()
}

/// The Ed25519 key that a peer id carries.
pub(super) fn public_key(peer: &PeerId) -> Option<[u8; 32]> {
    const IDENTITY: u64 = 0;
    let hash: &Multihash<64> = peer.as_ref();
    if hash.code() != IDENTITY {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(key.try_into_ed25519().ok()?.to_bytes())
}

/// The IP address that a multiaddress begins with.
pub(super) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

/// Whether an address has one of the two forms that nodes listen on.
pub(super) fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let ip = matches!(parts.next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)));
    let transport = match parts.next() {
        Some(Protocol::Tcp(_)) => true,
        Some(Protocol::Udp(_)) => matches!(parts.next(), Some(Protocol::QuicV1)),
        _ => false,
    };
    ip && transport && matches!(parts.next(), None | Some(Protocol::P2p(_)))
}

/// Whether strangers may be told of an address: it can be reached from the whole Internet.
///
/// Unspecified, loopback, private, link-local, shared (100.64/10), documentation and multicast ranges are not.
pub fn is_public(address: &Multiaddr) -> bool {
    match ip(address) {
        Some(IpAddr::V4(ip)) => {
            let [a, b, ..] = ip.octets();
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_broadcast()
                || ip.is_documentation()
                || ip.is_multicast()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 198 && (b & 0xfe) == 18))
        }
        Some(IpAddr::V6(ip)) => {
            let first = ip.segments()[0];
            // Only 2000::/3 is given out for unicast; documentation (2001:db8::/32, 3fff::/20) lies inside it.
            (first & 0xe000) == 0x2000
                && !(first == 0x2001 && ip.segments()[1] == 0x0db8)
                && !(first == 0x3fff && ip.segments()[1] < 0x1000)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for text in [
            "/ip4/127.0.0.1/tcp/1",
            "/ip4/10.1.2.3/tcp/1",
            "/ip4/192.168.0.1/udp/1/quic-v1",
            "/ip4/172.16.0.1/tcp/1",
            "/ip4/100.64.0.1/tcp/1",
            "/ip4/169.254.0.1/tcp/1",
            "/ip4/0.0.0.0/tcp/1",
            "/ip6/::1/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/::ffff:10.0.0.1/tcp/1",
            "/dns4/example.org/tcp/1",
        ] {
            assert!(!is_public(&text.parse().unwrap()), "{text}");
        }
        for text in ["/ip4/9.9.9.9/tcp/1", "/ip6/2620:fe::fe/udp/1/quic-v1"] {
            assert!(is_public(&text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn names_and_odd_transports_are_not_dialed() {
        for text in [
            "/dns4/example.org/tcp/1",
            "/ip4/9.9.9.9/udp/1",
            "/ip4/9.9.9.9/tcp/1/ws",
            "/ip4/9.9.9.9",
        ] {
            assert!(!is_dialable(&text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_node_address_reads_what_it_writes() {
        let peer = identity::Keypair::generate_ed25519().public().to_peer_id();
        let text = format!("/ip4/9.9.9.9/udp/4001/quic-v1/p2p/{peer}");
        let address: NodeAddress = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(peer_id(&address.node()), peer);
        assert!("/ip4/9.9.9.9/tcp/1".parse::<NodeAddress>().is_err());
    }

    #[test]
    fn a_peer_id_that_is_no_ed25519_key_is_no_node() {
        assert!(public_key(&PeerId::random()).is_none());
    }
}
