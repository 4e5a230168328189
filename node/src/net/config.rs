//! What the two personalities of the network are built from.

use std::time::Duration;

use libp2p::Multiaddr;
use souk_crypto::{NetworkId, NodeKey};

use super::address::NodeAddress;

/// Bounds on connections. Each open connection costs about 60 KiB, most of it in buffers that are allocated when used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections from others; strangers can take all of them. Default 512.
    pub inbound: u32,
    /// Connections to others, which strangers cannot use up. Default 256.
    pub outbound: u32,
    /// Connections with one peer. Default 4: one is held, and those that it replaced are still closing.
    pub per_peer: u32,
    /// Connections that are being set up, in each direction. Default 64.
    pub pending: u32,
    /// Inbound connections from one IPv4 address or IPv6 /64. Default 64: several nodes behind one address are normal.
    pub per_ip: usize,
    /// Resident memory of the process in MiB above which no new connection is made. Default 512.
    pub memory_mib: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbound: 512,
            outbound: 256,
            per_peer: 4,
            pending: 64,
            per_ip: 64,
            memory_mib: 512,
        }
    }
}

/// What a node is built from.
pub struct NodeConfig {
    /// The network; it stands in every protocol name.
    pub network: NetworkId,
    /// The node key, which is also the libp2p identity.
    pub key: NodeKey,
    /// Addresses to listen on: `/ip4/…/tcp/…` and `/ip4/…/udp/…/quic-v1`. Port 0 takes a free one.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach this node, if they are not those it listens on (port forwarding).
    pub external: Vec<Multiaddr>,
    /// Nodes to join the network through.
    pub bootstrap: Vec<NodeAddress>,
    /// Look for nodes on the local network. It takes effect only together with `allow_private_addresses`.
    pub mdns: bool,
    /// Dial and tell of private and loopback addresses. Only for test networks and LANs: on the Internet it would let strangers
    /// make this node knock at doors inside its own network.
    pub allow_private_addresses: bool,
    /// Splice requesters to providers that have registered here.
    pub relay: bool,
    /// Hold replies for requesters that chose this node as their entry.
    pub mailbox: bool,
    /// Bounds on connections.
    pub limits: Limits,
}

impl NodeConfig {
    /// A node that listens nowhere, knows nobody and has no role.
    pub fn new(network: NetworkId, key: NodeKey) -> Self {
        Self {
            network,
            key,
            listen: Vec::new(),
            external: Vec::new(),
            bootstrap: Vec::new(),
            mdns: false,
            allow_private_addresses: false,
            relay: false,
            mailbox: false,
            limits: Limits::default(),
        }
    }
}

/// What a requester's client is built from. There is no identity in it: each client draws a fresh one.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The network.
    pub network: NetworkId,
    /// Dial private and loopback addresses. Only for test networks and LANs.
    pub allow_private_addresses: bool,
}

/// A connection on which nothing happens is closed after this time. Links, relay registrations and gossip neighbours hold
/// theirs open; this is for those that were made to look something up.
pub(super) const IDLE_CONNECTION: Duration = Duration::from_secs(120);
