//! A running node: everything it is made of, put together from one configuration.
//!
//! ```text
//!              ┌──────────────── Publisher: own card, capacity ────────────────┐
//!  Keys ───────┤                                                              ▼
//!  KeyRing ─► Mixer ◄── frames ── net::Node ── gossip, snapshots ──► Cards (directory)
//!              │                    ▲    ▲                              │
//!              └── Links, mailboxes ┘    └──────── who to link with ────┘
//!  control socket, metrics ◄── Running
//! ```
//!
//! Starting is ordered so that what can go wrong is found before anybody sees the node: the folder is locked, keys
//! and stores are opened, the control socket is bound, and only then the network starts. Stopping goes the other way.
//!
//! Threats are those of the parts; this one has its own: two processes over one data folder would sign two histories,
//! so the folder is locked for as long as the node runs.

mod accounts;
mod attesting;
mod directory;
mod evidence;
mod keys;
mod observer;
mod operations;
mod publisher;
mod readings;
mod replaced;
mod rivals;
mod selling;
mod snapshot;
mod standing;
mod sync;
mod words;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;
use souk_attest::{Policy, Trust};
use souk_crypto::{NodeId, UnixTime};
use souk_market::{card::Role, standing::Standing};
use souk_sphinx::{EpochClock, HopAddress, delay::MixDelay};
use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    accounts::Accounts,
    attesting::{Attester, Gatherer, Proven},
    directory::Cards,
    evidence::EvidenceFolder,
    keys::Keys,
    observer::Observer,
    operations::Running,
    publisher::{Profile, Publisher},
    readings::{Readiness, Readings},
    replaced::Replaced,
    rivals::Rivals,
    selling::{Selling, Shop},
    standing::Desk,
};
pub use self::{
    keys::KeysError, publisher::PublisherError, selling::ShopError, standing::StandingFileError,
};
use crate::{
    attest::{HostTee, Pieces, PolicyError, Source, SourceError, Verifier, read_policy},
    config::Config,
    control::{self, Access, Happenings, Serving, Socket, SocketError},
    metrics,
    mix::{
        FRAME_QUEUE, KeyRing, KeyRingError, Links, Mailroom, MixCounters, Mixer, MixerParts,
        NoMailboxes, Replier,
    },
    net::{self, NodeAddress, NodeConfig, Services},
    provider::{MessageGate, Requests, SystemClock},
    unix_now,
};

/// Streams that a relay brought and that nobody has taken yet; the relay waits while it is full.
const RELAYED_QUEUE: usize = 16;

/// How often it is looked which links are up, where no card changes: a node that is away for some minutes makes room.
const LINKS_LOOK: Duration = Duration::from_secs(60);

/// Tasks that have not ended so long after they were asked to are cut off.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Telling holders that the node stops takes no longer; replies wait for nothing but the store.
const TELL_PATIENCE: Duration = Duration::from_secs(2);

/// A node that runs.
pub struct Node {
    running: Arc<Running>,
    control_socket: PathBuf,
    metrics_address: Option<SocketAddr>,
    mixer: Mixer,
    tasks: JoinSet<()>,
    stop: CancellationToken,
    /// Held as long as the node runs.
    _lock: fs::File,
}

/// Why a node did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error("cannot use the data folder {}", path.display())]
    Data {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another node runs there.
    #[error("another node runs in {}", path.display())]
    InUse {
        /// The data folder.
        path: PathBuf,
    },
    /// The keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// How it stands to new leases.
    #[error(transparent)]
    Standing(#[from] StandingFileError),
    /// The mix keys or the replay tags.
    #[error(transparent)]
    Mix(#[from] KeyRingError),
    /// The policy for evidence.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The source of this node's evidence.
    #[error("the evidence of this node cannot be made")]
    Evidence(#[from] SourceError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] SocketError),
    /// The metrics listener.
    #[error("cannot serve metrics on {address}")]
    Metrics {
        /// The address of the configuration.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The provider.
    #[error(transparent)]
    Shop(#[from] ShopError),
    /// The network.
    #[error(transparent)]
    Net(#[from] net::StartError),
}

impl Node {
    /// Starts a node; it is reachable through its control socket when this returns, and soon by the network.
    ///
    /// # Errors
    /// [`StartError`] says what is in the way.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let now = unix_now();
        let lock = lock(&config.node.data_dir)?;
        let keys = Arc::new(Keys::open(&config.node.data_dir, now)?);
        let clock = EpochClock::of(&config.network.params);
        let ring = Arc::new(KeyRing::open(
            &config.node.data_dir.join("mix"),
            clock,
            now,
        )?);
        let standing = config.node.data_dir.join("standing");
        let desk = Desk::open(
            standing,
            config.network.id.clone(),
            keys.clone(),
            Arc::new(SystemClock),
        )?;
        let desk = Arc::new(desk);
        let test = config.network.params.is_test();
        let (network, local) = (&config.network.id, keys.node.public());
        let relied = config.node.bootstrap.iter().map(NodeAddress::node);
        let cards = Cards::new(local, network, test, clock, unix_now).relying_on(relied);
        let cards = Arc::new(cards);
        let evidence = EvidenceFolder::new(&config.node.data_dir, network.clone());
        cards.remember_evidence(evidence.read());
        let mut shop = match config.has(Role::Provider) {
            true => {
                let mut shop = Shop::open(&config, &keys, agent_of(&config), cards.seen()).await?;
                // It must not take a lease before it is told not to.
                shop.settings.intake = standing::intake(&desk.standing().borrow());
                Some(shop)
            }
            false => None,
        };
        let socket = Socket::bind(&config.control_socket)?;
        let monitor = config
            .monitor_socket
            .as_ref()
            .map(|monitor| Socket::bind_for(&monitor.path, monitor.mode))
            .transpose()?;
        let scraped = match config.metrics_listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.map_err(|source| StartError::Metrics { address, source })?)
            }
            None => None,
        };

        let data = &config.node.data_dir;
        let usable = |source| StartError::Data {
            path: data.join("attestation"),
            source,
        };
        let pieces = Arc::new(Pieces::open(&data.join("attestation")).map_err(usable)?);
        let policy = config.evidence.policy.as_deref();
        let policy = policy.map(|path| read_policy(path, data));
        let policy = policy.transpose()?.map(Arc::new);
        let trust = policy.as_deref().map_or_else(Trust::vendors, Policy::trust);
        let verifier = Verifier::start(trust, pieces.clone(), unix_now).map_err(usable)?;
        let source = Source::open(&config.evidence, policy.as_deref(), data.join("collateral"))?;

        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut registry = Registry::default();
        let (frames, arriving) = mpsc::channel(FRAME_QUEUE);
        let (relayed, streams) = mpsc::channel(RELAYED_QUEUE);
        let services = Services {
            validator: cards.clone(),
            snapshot: cards.clone(),
            pieces: Some(pieces.clone()),
            log: shop
                .as_ref()
                .map(|shop| Arc::new(shop.log.clone()) as Arc<dyn net::LogSource>),
            frames,
            relayed,
        };
        let net = net::Node::start(net_config(&config, &keys), services, &mut registry)?;

        let counters = Arc::new(MixCounters::default());
        let links: Arc<dyn Links> = Arc::new(net.links().clone());
        let replier = Replier::new(links.clone(), clock, counters.clone());
        let delay = MixDelay::of(&config.network.params);
        let requests = Requests::default();
        let mailroom = shop.as_ref().map(|shop| {
            let (network, node) = (config.network.id.clone(), keys.node.public());
            let policy = &shop.sales.policy;
            let (known, now) = (requests.clone(), Instant::now());
            let gate = MessageGate::new(network, node, policy, known, unix_now, now);
            Mailroom::start(delay, gate, replier.clone(), stop.clone())
        });
        let (bodies, messages) = mailroom.unzip();
        let mixer = Mixer::start(
            MixerParts {
                keys: ring,
                node: HopAddress(*keys.node.public().as_bytes()),
                delay,
                links,
                mailboxes: if config.has(Role::Entry) {
                    Arc::new(net.mailboxes().clone())
                } else {
                    Arc::new(NoMailboxes)
                },
                frames: arriving,
                mailroom: bodies,
                counters: counters.clone(),
                peelers: std::thread::available_parallelism().map_or(1, usize::from),
            },
            &stop,
        );

        let refusal = shop.as_ref().map_or_else(
            || watch::Sender::new(None).subscribe(),
            |shop| shop.publisher.refusal(),
        );
        let (own, own_card) = watch::channel(None);
        let refresh = Arc::<Notify>::default();
        let happenings = Arc::<Happenings>::default();
        let (proven, evidence_of_card) = watch::channel(source.is_none().then(Proven::default));
        let (failed, unattested) = watch::channel(None);
        let (working, provider) = watch::channel(None);
        let (rivals, rivals_seen) = watch::channel(Rivals::default());
        if let (Some(shop), Some(source)) = (&mut shop, &source) {
            shop.inside(HostTee {
                network: config.network.id.clone(),
                node: keys.node.public(),
                policy: policy.clone(),
                clock,
                source: source.clone(),
                card: own_card.clone(),
                pieces: pieces.clone(),
                now: unix_now,
            });
        }
        let publisher = Publisher {
            profile: Profile {
                network: config.network.id.clone(),
                roles: config.node.roles.clone(),
                operator: config.node.operator,
                test_network: test,
                sales: shop.as_ref().map(|shop| shop.sales.clone()),
            },
            keys: keys.clone(),
            cards: cards.clone(),
            peers: net.peers().clone(),
            mix_keys: mixer.mix_keys(),
            provider: provider.clone(),
            seen: cards.seen(),
            refusal: refusal.clone(),
            standing: desk.standing(),
            evidence: evidence_of_card.clone(),
            own,
            file: config.node.data_dir.join("card"),
            replaced: Replaced::new(&config.node.data_dir, config.network.id.clone()),
            now: unix_now,
            said_at: UnixTime(0),
            refresh: refresh.clone(),
            heard: cards.own(),
            answered_at: None,
            rivals,
            began: tokio::time::Instant::now(),
        };
        tasks.spawn(publisher.run(stop.clone()));
        if let Some(source) = source {
            let attester = Attester {
                network: config.network.id.clone(),
                keys: keys.clone(),
                clock,
                source,
                policy,
                pieces: pieces.clone(),
                proven,
                failed,
                now: unix_now,
            };
            tasks.spawn(attester.run(stop.clone()));
        }
        let gatherer = Gatherer {
            network: config.network.id.clone(),
            clock,
            peers: net.peers().clone(),
            cards: cards.clone(),
            bootstrap: config.node.bootstrap.clone(),
            pieces,
            verifier: verifier.clone(),
            own: evidence_of_card,
            now: unix_now,
        };
        tasks.spawn(gatherer.run(stop.clone()));
        tasks.spawn(Arc::clone(&desk).run(provider.clone(), shop.is_some(), stop.clone()));
        tasks.spawn(sync::run(
            net.peers().clone(),
            cards.clone(),
            config.node.bootstrap.clone(),
            stop.clone(),
        ));
        tasks.spawn(evidence::run(cards.clone(), evidence, stop.clone()));
        tasks.spawn(keep_links(
            net.clone(),
            cards.clone(),
            config.has(Role::Provider),
            stop.clone(),
        ));

        if let (Some(shop), Some(messages)) = (shop, messages) {
            let selling = Selling {
                network: config.network.id.clone(),
                keys,
                net: net.clone(),
                replier,
                clock,
                own: own_card.clone(),
                messages,
                requests,
                streams,
                working,
                replaced: Replaced::new(&config.node.data_dir, config.network.id.clone()),
                stop: stop.clone(),
            };
            tasks.spawn(selling.run(shop));
        }

        let observer = Observer {
            happenings: happenings.clone(),
            peers: net.peers().clone(),
            own: own_card.clone(),
            standing: desk.standing(),
            provider: provider.clone(),
        };
        tasks.spawn(observer.run(stop.clone()));
        let (shown, account) = watch::channel(None);
        let accounts = Accounts {
            costs: config.provider.costs,
            provider: provider.clone(),
            shown,
        };
        tasks.spawn(accounts.run(stop.clone()));
        let readiness = Readiness {
            sells: config.has(Role::Provider),
            own: own_card.clone(),
            cards: cards.clone(),
            provider: provider.clone(),
            standing: desk.standing(),
            refusal: refusal.clone(),
        };
        registry.register_collector(Box::new(Readings {
            started: now,
            mix: counters.clone(),
            verifier: verifier.clone(),
            readiness: readiness.clone(),
            rivals: rivals_seen.clone(),
            account: account.clone(),
            prices: config.provider.prices.clone(),
            hourly: Mutex::default(),
        }));
        let registry = Arc::new(registry);
        let running = Arc::new(Running {
            network: config.network.id.clone(),
            roles: config.node.roles.clone(),
            started: now,
            peers: net.peers().clone(),
            net,
            cards,
            own: own_card,
            rivals: rivals_seen,
            mix: counters,
            provider,
            refusal,
            unattested,
            verifier,
            desk,
            metrics: registry.clone(),
            mean_delay: delay.mean(),
            account,
            prices: config.provider.prices,
            happenings,
            refresh,
            asked: CancellationToken::new(),
        });
        let serving = Arc::new(Serving::new(running.clone(), stop.clone()));
        let sockets = [(Some(socket), Access::Full), (monitor, Access::ReadOnly)];
        for (socket, access) in sockets {
            let Some(socket) = socket else { continue };
            let serving = Arc::clone(&serving);
            tasks.spawn(async move {
                if let Err(error) = control::serve(socket, access, &serving).await {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        ?access,
                        "a control socket failed"
                    );
                }
            });
        }
        let metrics_address = scraped
            .as_ref()
            .and_then(|listener| listener.local_addr().ok());
        if let Some(listener) = scraped {
            tasks.spawn(metrics::serve(
                listener,
                metrics::Source {
                    metrics: Arc::new(move || metrics::text(&registry)),
                    missing: Arc::new(move || readiness.missing()),
                },
                stop.clone(),
            ));
        }
        Ok(Self {
            running,
            control_socket: config.control_socket,
            metrics_address,
            mixer,
            tasks,
            stop,
            _lock: lock,
        })
    }

    /// The identity of this node.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.running.peers.local()
    }

    /// Where its control socket is.
    #[must_use]
    pub fn control_socket(&self) -> &Path {
        &self.control_socket
    }

    /// Where its metrics are, with the port that was taken.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Waits until the node has a card, and returns where others reach it; empty when it was stopped before, or has retired.
    pub async fn announced(&self) -> Vec<NodeAddress> {
        let mut own = self.running.own.clone();
        let mut standing = self.running.desk.standing();
        tokio::select! {
            _ = own.wait_for(Option::is_some) => self.running.addresses(),
            _ = standing.wait_for(|now| matches!(now, Standing::Retired(_))) => Vec::new(),
            () = self.running.asked.cancelled() => Vec::new(),
        }
    }

    /// Returns when somebody asked the node to stop over the control API.
    pub async fn stopping(&self) {
        self.running.asked.cancelled().await;
    }

    /// Stops the node and waits for its parts, so that everything it promised is on the disk. It takes no new leases from now on,
    /// and tells the holders of open ones if their SURBs are at hand; instances go on.
    pub async fn stop(mut self) {
        let provider = self.running.provider.borrow().clone();
        if let Some(provider) = provider {
            provider.suspend(TELL_PATIENCE).await;
        }
        self.stop.cancel();
        let ended = async {
            while self.tasks.join_next().await.is_some() {}
            self.mixer.stopped().await;
        };
        if tokio::time::timeout(STOP_PATIENCE, ended).await.is_err() {
            tracing::warn!("some tasks did not end in time and were cut off");
        }
        self.running.peers.stop().await;
    }
}

/// Makes the data folder and the keys of a node that has none yet, and says who it is.
///
/// # Errors
/// [`StartError`] where the folder or the keys cannot be used, or a node runs there.
pub fn init(config: &Config) -> Result<NodeId, StartError> {
    let _lock = lock(&config.node.data_dir)?;
    let keys = Keys::open(&config.node.data_dir, unix_now())?;
    Ok(keys.node.public())
}

/// Locks the data folder, which is made with mode 0700 if it is missing.
fn lock(data: &Path) -> Result<fs::File, StartError> {
    let failed = |source| StartError::Data {
        path: data.to_owned(),
        source,
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .map_err(failed)?;
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data.join("lock"))
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::InUse {
            path: data.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn net_config(config: &Config, keys: &Keys) -> NodeConfig {
    let limits = &config.limits;
    NodeConfig {
        listen: config.node.listen.clone(),
        external: config.node.external.clone(),
        bootstrap: config.node.bootstrap.clone(),
        mdns: config.node.mdns,
        allow_private_addresses: config.network.params.is_test(),
        relay: config.has(Role::Relay),
        mailbox: config.has(Role::Entry),
        limits: net::Limits {
            inbound: limits.inbound,
            outbound: limits.outbound,
            per_ip: usize::try_from(limits.per_address).unwrap_or(usize::MAX),
            memory_mib: usize::try_from(limits.memory_mib).unwrap_or(usize::MAX),
            ..net::Limits::default()
        },
        ..NodeConfig::new(config.network.id.clone(), keys.node.clone())
    }
}

/// Keeps links to all nodes at which packets go on or end, and tells a provider which relays there are, as the cards say.
async fn keep_links(net: net::Node, cards: Arc<Cards>, provider: bool, stop: CancellationToken) {
    let mut changed = cards.changed();
    let mut look = tokio::time::interval(LINKS_LOOK);
    loop {
        net.links()
            .share_links(cards.linkable(&[Role::Mix, Role::Entry, Role::Provider]));
        if provider {
            net.registrations()
                .set_known(relays(net.peers().local(), &cards));
        }
        tokio::select! {
            changed = changed.changed() => if changed.is_err() { return },
            // Which links are up changes without a card.
            _ = look.tick() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// All relays, in an order that is this node's own: so that providers do not all keep the same few warm, and one of them
/// does not change those when a card comes or goes.
fn relays(local: NodeId, cards: &Cards) -> Vec<(NodeId, Vec<net::Multiaddr>)> {
    let mut relays = cards.dialable(&[Role::Relay]);
    relays.sort_by_cached_key(|(node, _)| {
        let mut hash = blake3::Hasher::new_derive_key("souk order of relays v1");
        hash.update(local.as_bytes()).update(node.as_bytes());
        *hash.finalize().as_bytes()
    });
    relays
}

/// The agent of the configuration, or else the one beside this program.
fn agent_of(config: &Config) -> PathBuf {
    let configured = config.provider.agent.clone();
    configured.unwrap_or_else(agent_beside)
}

/// Where the agent lies that no configuration names: beside this program.
#[must_use]
pub fn agent_beside() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.with_file_name("souk-agent")
}
