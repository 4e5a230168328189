//! The behaviours of a swarm, for both personalities.
//!
//! | | node | client |
//! |---|---|---|
//! | identity | the node key | fresh for each client |
//! | identify | agent `souk`, listen addresses | agent `souk`, no addresses |
//! | gossipsub, Kademlia | yes, named after the network | no, and not announced |
//! | mDNS | where configured, on private networks | no |
//! | accepts streams | by role | none |

use std::{io, num::NonZeroUsize, time::Duration};

use libp2p::{
    PeerId,
    connection_limits::{self, ConnectionLimits},
    identify, identity, kad, mdns, memory_connection_limits, ping,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
};

use super::{
    afresh::Afresh,
    config::Limits,
    gate, gossip,
    names::Names,
    origin::Origins,
    single,
    streams::{self, Accepted, Acceptor, Opener},
};

/// How programs of this network present themselves: nodes and clients alike, without a version, so that it tells nothing.
const AGENT: &str = "souk";

/// Largest Kademlia message. Twenty peers with a few addresses each fit in it.
const KADEMLIA_PACKET: usize = 16 * 1024;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // The gatekeepers come first, so that what they refuse costs the others nothing.
    limits: connection_limits::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub(super) gate: gate::Behaviour,
    single: single::Behaviour,
    pub(super) streams: streams::Behaviour,
    pub(super) identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) gossip: Toggle<gossip::Behaviour>,
    pub(super) kademlia: Toggle<kad::Behaviour<kad::store::MemoryStore>>,
    pub(super) mdns: Toggle<mdns::tokio::Behaviour>,
}

impl Behaviour {
    pub(super) fn node(
        key: &identity::Keypair,
        names: &Names,
        limits: &Limits,
        accept: &[Accepted],
        mdns: bool,
        origins: Origins,
    ) -> io::Result<(Self, Opener, Vec<Acceptor>)> {
        let peer = key.public().to_peer_id();
        let (streams, opener, acceptors) = streams::Behaviour::new(accept);
        let mdns = if mdns {
            let behaviour = mdns::tokio::Behaviour::new(mdns::Config::default(), peer);
            Some(behaviour?)
        } else {
            None
        };
        let identify = identify::Config::new(names.family(), key.public())
            .with_agent_version(AGENT.to_owned())
            .with_push_listen_addr_updates(true)
            .with_cache_size(0);
        let behaviour = Self {
            limits: connection_limits(limits),
            memory: memory_limit(limits),
            gate: gate::Behaviour::new(limits.per_ip, origins),
            single: single::Behaviour::new(peer),
            streams,
            identify: identify::Behaviour::new(identify),
            ping: ping(),
            gossip: Some(gossip::behaviour(names)).into(),
            kademlia: Some(kademlia(peer, names)).into(),
            mdns: mdns.into(),
        };
        Ok((behaviour, opener, acceptors))
    }

    pub(super) fn client(
        key: &identity::Keypair,
        names: &Names,
        origins: Origins,
    ) -> (Self, Opener) {
        let (streams, opener, _) = streams::Behaviour::new(&[]);
        // Nobody has a reason to connect to a client.
        let limits = Limits {
            inbound: 0,
            outbound: 16,
            per_ip: 0,
            ..Limits::default()
        };
        let identify = identify::Config::new(names.family(), key.public())
            .with_agent_version(AGENT.to_owned())
            .with_push_listen_addr_updates(false)
            .with_hide_listen_addrs(true)
            .with_cache_size(0);
        let behaviour = Self {
            limits: connection_limits(&limits),
            memory: memory_limit(&limits),
            gate: gate::Behaviour::new(limits.per_ip, origins),
            single: single::Behaviour::new(key.public().to_peer_id()),
            streams,
            identify: identify::Behaviour::new(identify),
            ping: ping(),
            gossip: None.into(),
            kademlia: None.into(),
            mdns: None.into(),
        };
        (behaviour, opener)
    }

    /// The gossip router, which a client does not have.
    pub(super) fn router(&mut self) -> Option<&mut gossip::Router> {
        self.gossip.as_mut().map(Afresh::router_mut)
    }
}

fn connection_limits(limits: &Limits) -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(limits.pending))
            .with_max_pending_outgoing(Some(limits.pending))
            .with_max_established_incoming(Some(limits.inbound))
            .with_max_established_outgoing(Some(limits.outbound))
            .with_max_established_per_peer(Some(limits.per_peer)),
    )
}

fn memory_limit(limits: &Limits) -> memory_connection_limits::Behaviour {
    memory_connection_limits::Behaviour::with_max_bytes(limits.memory_mib.saturating_mul(1 << 20))
}

/// Pings find dead TCP connections, where the other machine vanished without a word: the second that gets no answer closes
/// them, after 40 s at most. QUIC notices by itself, and sooner.
fn ping() -> ping::Behaviour {
    ping::Behaviour::new(
        ping::Config::new()
            .with_interval(Duration::from_secs(10))
            .with_timeout(Duration::from_secs(10)),
    )
}

/// Kademlia as a way to find neighbours and nothing else: no record of a stranger is stored.
fn kademlia(peer: PeerId, names: &Names) -> kad::Behaviour<kad::store::MemoryStore> {
    let mut config = kad::Config::new(names.kademlia());
    config
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_max_packet_size(KADEMLIA_PACKET)
        .set_query_timeout(Duration::from_secs(20))
        .set_kbucket_size(NonZeroUsize::new(20).expect("20 is not zero"))
        // Addresses enter by hand, after the filter for private ranges.
        .set_kbucket_inserts(kad::BucketInserts::Manual)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_publication_interval(None);
    let store = kad::store::MemoryStore::with_config(
        peer,
        kad::store::MemoryStoreConfig {
            max_records: 0,
            max_value_bytes: 0,
            max_providers_per_key: 0,
            max_provided_keys: 0,
        },
    );
    let mut behaviour = kad::Behaviour::with_config(peer, store, config);
    behaviour.set_mode(Some(kad::Mode::Server));
    behaviour
}
