//! The two personalities: [`Node`] and [`Client`].

use std::{
    collections::HashMap,
    io,
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId, Swarm, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport, TransportError, global_only},
        upgrade,
    },
    futures::future::Either,
    identity::Keypair,
    metrics::Metrics,
    multiaddr::Protocol,
    noise, quic, tcp, yamux,
};
use prometheus_client::registry::Registry;
use souk_crypto::keys::Secret as _;
use tokio::sync::mpsc;

use crate::mix::Arrival;

use super::{
    address::{self, NodeAddress},
    behaviour::Behaviour,
    conduct::Conduct,
    config::{ClientConfig, IDLE_CONNECTION, NodeConfig},
    counters::{Counters, Totals},
    driver::{self, Driver, NodePart},
    evidence::{self, PieceSource},
    gossip::{CardValidator, Floodgate},
    links::MixLinks,
    log::{self, LogSource},
    mailbox::{self, MailboxService},
    names::{Names, What},
    origin::Origins,
    peers::{COMMAND_QUEUE, Peers},
    relay::{self, RelayRegistrations, RelayedStream},
    snapshot::{self, SnapshotSource},
    streams::{Accepted, Acceptor, MAX_INBOUND_STREAMS, MAX_STREAMS, Places},
};

/// What the network asks of the rest of a node, and where it puts what arrives.
pub struct Services {
    /// Judges cards and capacity before they are forwarded.
    pub validator: Arc<dyn CardValidator>,
    /// The card set, in bulk.
    pub snapshot: Arc<dyn SnapshotSource>,
    /// Evidence and collateral that the cards name, in bulk; `None` where the node serves none.
    pub pieces: Option<Arc<dyn PieceSource>>,
    /// The node's usage log; `None` where it is no provider.
    pub log: Option<Arc<dyn LogSource>>,
    /// Where mix frames of all links go. While it is full the links are not read.
    pub frames: mpsc::Sender<Arrival>,
    /// Where streams go that a relay has spliced to this node.
    pub relayed: mpsc::Sender<RelayedStream>,
}

/// Why the network of a node could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot listen on one of its addresses.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address of the configuration.
        address: Multiaddr,
        /// What the system said; a port that is taken, most often.
        #[source]
        source: io::Error,
    },
    /// The address is not of a kind that nodes listen on.
    #[error(
        "cannot listen on {address}: nodes listen on /ip4|ip6/…/tcp/… and /ip4|ip6/…/udp/…/quic-v1"
    )]
    ListenAddress {
        /// The address of the configuration.
        address: Multiaddr,
    },
    /// The local network could not be searched.
    #[error("cannot start mDNS")]
    Mdns(#[source] io::Error),
}

/// What the streams of others are answered from.
struct Served {
    cards: Arc<dyn SnapshotSource>,
    pieces: Option<Arc<dyn PieceSource>>,
    log: Option<Arc<dyn LogSource>>,
    frames: mpsc::Sender<Arrival>,
}

/// A node on the network. It runs until the last clone of its [`Peers`] is gone or [`Peers::stop`] is called.
#[derive(Clone, Debug)]
pub struct Node {
    peers: Peers,
    links: MixLinks,
    mailboxes: MailboxService,
    registrations: RelayRegistrations,
    counters: Counters,
}

impl Node {
    /// Starts listening, joins the network and serves its protocols. Metrics go to `registry`.
    ///
    /// # Errors
    /// [`StartError`]: no task is left behind then.
    pub fn start(
        config: NodeConfig,
        services: Services,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let names = Names::new(&config.network);
        let mut secret = config.key.secret_bytes();
        let key = Keypair::ed25519_from_bytes(secret.as_mut_slice())
            .expect("32 bytes are an Ed25519 secret");
        let roles = accepted(&config, &services);
        let protocols: Vec<_> = roles.iter().map(|what| accept(&names, *what)).collect();
        let mdns = config.mdns && config.allow_private_addresses;
        let origins = Origins::new(rand::random());
        let limits = &config.limits;
        let (behaviour, opener, acceptors) =
            Behaviour::node(&key, &names, limits, &protocols, mdns, origins.clone())
                .map_err(StartError::Mdns)?;
        let mut swarm = swarm(&key, behaviour, config.allow_private_addresses);
        for address in &config.listen {
            listen(&mut swarm, address)?;
        }
        for address in config.external {
            swarm.add_external_address(address);
        }

        let counters = Counters::default();
        counters.register(registry);
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let validate = driver::spawn_validator(services.validator, commands.downgrade());
        let driver = Driver {
            swarm,
            commands: receiver,
            family: names.family(),
            allow_private_addresses: config.allow_private_addresses,
            conduct: Conduct::default(),
            waiting: HashMap::new(),
            node: Some(NodePart {
                bootstrap: config.bootstrap.iter().map(of_bootstrap).collect(),
                floodgate: Floodgate::new(&names, Instant::now()),
                validate,
            }),
            metrics: Some(Metrics::new(registry)),
            origins: origins.clone(),
            counters: counters.clone(),
        };
        tokio::spawn(driver.run());

        let peers = Peers {
            local: config.key.public(),
            names,
            origins,
            commands,
            opener,
        };
        let node = Self {
            links: MixLinks::new(peers.clone(), counters.clone()),
            mailboxes: MailboxService::new(counters.clone()),
            registrations: RelayRegistrations::new(peers.clone(), services.relayed),
            peers,
            counters: counters.clone(),
        };
        node.serve(
            roles.into_iter().zip(acceptors),
            Served {
                cards: services.snapshot,
                pieces: services.pieces,
                log: services.log,
                frames: services.frames,
            },
            &counters,
        );
        Ok(node)
    }

    /// Connections, publishing, and what the swarm looks like.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Links to other mixes.
    pub fn links(&self) -> &MixLinks {
        &self.links
    }

    /// The mailboxes that this node holds for clients; empty unless it has that role.
    pub fn mailboxes(&self) -> &MailboxService {
        &self.mailboxes
    }

    /// What was counted so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// This node's registrations with relays, for a provider.
    pub fn registrations(&self) -> &RelayRegistrations {
        &self.registrations
    }

    fn serve(
        &self,
        acceptors: impl Iterator<Item = (What, Acceptor)>,
        services: Served,
        counters: &Counters,
    ) {
        let Served {
            cards,
            mut pieces,
            mut log,
            frames,
        } = services;
        let relay = relay::Server::new(self.peers.clone(), counters.clone());
        for (what, streams) in acceptors {
            let peers = self.peers.clone();
            match what {
                What::Mix => {
                    tokio::spawn(self.links.clone().serve(streams, frames.clone()));
                }
                What::Cards => {
                    tokio::spawn(snapshot::serve(peers, streams, cards.clone()));
                }
                What::Evidence => {
                    if let Some(source) = pieces.take() {
                        tokio::spawn(evidence::serve(peers, streams, source));
                    }
                }
                What::Mailbox => {
                    tokio::spawn(mailbox::serve(peers, streams, self.mailboxes.clone()));
                }
                What::RelayRegister => {
                    tokio::spawn(relay.clone().serve_registrations(streams));
                }
                What::RelayConnect => {
                    tokio::spawn(relay.clone().serve_connections(streams));
                }
                What::RelaySplice => {
                    tokio::spawn(self.registrations.clone().serve(streams));
                }
                What::Log => {
                    if let Some(source) = log.take() {
                        tokio::spawn(log::serve(peers, streams, source));
                    }
                }
            }
        }
    }
}

/// A requester's way into the network: a fresh identity, no listener, no gossip, no Kademlia, nothing that it would accept.
///
/// Links of a client are write-only: its entry answers through the mailbox.
#[derive(Clone, Debug)]
pub struct Client {
    peers: Peers,
    links: MixLinks,
}

impl Client {
    /// A client with an identity that nobody has seen before. It connects to nobody by itself.
    pub fn start(config: &ClientConfig) -> Self {
        let key = Keypair::generate_ed25519();
        let names = Names::new(&config.network);
        let origins = Origins::new(rand::random());
        let (behaviour, opener) = Behaviour::client(&key, &names, origins.clone());
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let counters = Counters::default();
        let local =
            address::node_id(&key.public().to_peer_id()).expect("a fresh Ed25519 key is a node id");
        let driver = Driver {
            swarm: swarm(&key, behaviour, config.allow_private_addresses),
            commands: receiver,
            family: names.family(),
            allow_private_addresses: config.allow_private_addresses,
            conduct: Conduct::default(),
            waiting: HashMap::new(),
            node: None,
            metrics: None,
            origins: origins.clone(),
            counters: counters.clone(),
        };
        tokio::spawn(driver.run());
        let peers = Peers {
            local,
            names,
            origins,
            commands,
            opener,
        };
        Self {
            links: MixLinks::new(peers.clone(), counters),
            peers,
        }
    }

    /// Connections to entries, relays and providers.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The link to the entry.
    pub fn links(&self) -> &MixLinks {
        &self.links
    }
}

/// The protocols that a node of these roles accepts.
fn accepted(config: &NodeConfig, services: &Services) -> Vec<What> {
    let mut accepted = vec![What::Mix, What::Cards, What::RelaySplice];
    if config.mailbox {
        accepted.push(What::Mailbox);
    }
    if config.relay {
        accepted.extend([What::RelayRegister, What::RelayConnect]);
    }
    if services.pieces.is_some() {
        accepted.push(What::Evidence);
    }
    if services.log.is_some() {
        accepted.push(What::Log);
    }
    accepted
}

/// How the streams of a protocol are taken in.
fn accept(names: &Names, what: What) -> Accepted {
    Accepted {
        protocol: names.stream(what),
        places: match what {
            // A relay opens them for its clients.
            What::RelaySplice => Places::Splices,
            _ => Places::Own,
        },
    }
}

fn of_bootstrap(address: &NodeAddress) -> (PeerId, Multiaddr) {
    (address::peer_id(&address.node()), address.address().clone())
}

fn listen(swarm: &mut Swarm<Behaviour>, address: &Multiaddr) -> Result<(), StartError> {
    check_free(address)?;
    match swarm.listen_on(address.clone()) {
        Ok(_) => Ok(()),
        Err(TransportError::MultiaddrNotSupported(address)) => {
            Err(StartError::ListenAddress { address })
        }
        Err(TransportError::Other(source)) => Err(StartError::Listen {
            address: address.clone(),
            source,
        }),
    }
}

/// Finds out whether somebody else listens on a TCP port: libp2p would share it with them without a word (SO_REUSEPORT).
fn check_free(address: &Multiaddr) -> Result<(), StartError> {
    if let (Some(ip), Some(Protocol::Tcp(port))) = (address::ip(address), address.iter().nth(1)) {
        TcpListener::bind((ip, port)).map_err(|source| StartError::Listen {
            address: address.clone(),
            source,
        })?;
    }
    Ok(())
}

fn swarm(key: &Keypair, behaviour: Behaviour, private: bool) -> Swarm<Behaviour> {
    let config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_CONNECTION)
        .with_max_negotiating_inbound_streams(MAX_INBOUND_STREAMS)
        .with_notify_handler_buffer_size(8.try_into().expect("8 is not zero"))
        .with_per_connection_event_buffer_size(4);
    let transport = transport(key);
    let transport = if private {
        transport
    } else {
        // Addresses also come from strangers, through Kademlia: a node must not knock at doors inside its own network.
        global_only::Transport::new(transport).boxed()
    };
    Swarm::new(transport, behaviour, key.public().to_peer_id(), config)
}

/// Bytes that one QUIC stream may send ahead; a relayed session of 100 ms round trip gets 5 MB/s through it.
const QUIC_STREAM_WINDOW: u32 = 512 * 1024;

/// Bytes that one QUIC connection may send ahead, over all of its streams.
const QUIC_CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;

/// A silent QUIC connection is given up after this time, in milliseconds: a neighbour that was killed is gone in seconds, and
/// three of four [`QUIC_KEEP_ALIVE`] may be lost on a bad line.
const QUIC_IDLE_MS: u32 = 16_000;

/// How often a QUIC connection shows that it is alive.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(4);

fn transport(key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    let mut config = quic::Config::new(key);
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    config.max_idle_timeout = QUIC_IDLE_MS;
    config.keep_alive_interval = QUIC_KEEP_ALIVE;
    config.max_concurrent_stream_limit = u32::try_from(MAX_STREAMS).expect("a small constant");
    let quic = quic::tokio::Transport::new(config);

    let mut muxer = yamux::Config::default();
    // Also bounds memory: a stream that is not read holds at most 256 KiB.
    muxer.set_max_num_streams(MAX_STREAMS);
    let noise = noise::Config::new(key).expect("signing with a key in memory cannot fail");
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise)
        .multiplex(muxer)
        .timeout(Duration::from_secs(15));

    OrTransport::new(quic, tcp)
        .map(|either, _| match either {
            Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
            Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        })
        .boxed()
}
