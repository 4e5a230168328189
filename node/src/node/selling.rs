//! The provider in a node: its store, its backend, its offers, and what ties it to the network.
//!
//! Threat: an offer on the card that the machine cannot keep: what is sold is what the backend found by trying, within what the
//! configuration allows.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use souk_backend::{Backend as _, BackendError, Capabilities, Resources};
use souk_crypto::{NetworkId, UnixTime};
use souk_image::{Store as ImageStore, StoreError as ImageError};
use souk_market::{
    card::{Image, Offer, VerifiedCard},
    log::origin,
    units::{self, BackendName, CardDigest, Limits, Tee},
    wire::List,
};
use souk_sandbox::{KeeperProgram, Sandbox, SandboxConfig};
use souk_sphinx::{EpochClock, message::Message};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{keys::Keys, publisher::Sales, replaced::Replaced};
use crate::{
    attest::{HostTee, InTee},
    config::{self, Config},
    mix::Replier,
    net::{self, RelayedStream},
    provider::{
        Clock as _, Offering, Provider, ProviderParts, PublishedLog, Requests, Settings, Stand,
        SystemClock, SystemRandomness, TcpDoors,
    },
    store::{Found, PublishError, Publisher, Seen, Store, StoreError},
};

/// Cards before the current one whose offers are still honoured: more are only made when addresses change all the time.
pub(super) const MAX_HONOURED: usize = 16;

/// Streams that are carried to instances at once are bounded by the provider; this bounds those that wait to be told so.
const MAX_CARRIED: usize = 1024;

/// A provider that is ready to work and waits for its card.
pub(super) struct Shop {
    pub(super) store: Store,
    pub(super) found: Found,
    pub(super) publisher: Publisher,
    pub(super) stands: Vec<Stand>,
    pub(super) sales: Sales,
    pub(super) settings: Settings,
    /// What the node serves of the usage log.
    pub(super) log: PublishedLog,
    /// The TEE that the node runs in.
    tee: Option<Arc<HostTee>>,
}

/// Why a provider could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ShopError {
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The usage log.
    #[error(transparent)]
    Log(#[from] PublishError),
    /// The images.
    #[error(transparent)]
    Images(#[from] ImageError),
    /// The backend.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The backend has what a card cannot say.
    #[error("the backend cannot stand on a card: {0}")]
    Offer(String),
    /// The size of the machine.
    #[error("cannot find out the memory of this machine")]
    Memory(#[source] io::Error),
}

impl Shop {
    /// Opens everything a provider needs.
    pub(super) async fn open(
        config: &Config,
        keys: &Keys,
        agent: PathBuf,
        seen: watch::Receiver<Seen>,
    ) -> Result<Self, ShopError> {
        let data = &config.node.data_dir;
        let (store, found) = Store::open(&data.join("store")).await?;
        let directory = data.join("log");
        let name = origin(&config.network.id, keys.node.public())
            .expect("neither id holds a character that a note's name cannot");
        let publisher =
            Publisher::heeding(&store, &directory, name, keys.log.clone(), seen).await?;
        let images = ImageStore::open(data)?;
        let total = total(&config.provider).map_err(ShopError::Memory)?;
        let sandbox = SandboxConfig {
            state: data.join("leases"),
            images,
            agent,
            keeper: KeeperProgram::this_program(),
            total,
            overlay: true,
        };
        let backend = tokio::task::spawn_blocking(move || Sandbox::open(sandbox))
            .await
            .map_err(|panic| ShopError::Offer(panic.to_string()))??;
        let capabilities = backend.capabilities().await?;
        let name = backend_name(backend.name())?;
        Ok(Self {
            store,
            found,
            publisher,
            sales: Sales {
                offers: List::new(vec![offer(name.clone(), &capabilities)?])
                    .expect("one offer fits"),
                images: capabilities.images.iter().map(image).collect(),
                prices: config.provider.prices.clone(),
                policy: config.provider.policy.clone(),
            },
            stands: vec![Stand {
                name,
                backend: Arc::new(backend),
                total: market_resources(&capabilities.total),
            }],
            settings: Settings {
                checkpoint_period: Duration::from_secs(config.provider.checkpoint_s.into()),
                direct: config.provider.direct_address,
                ..Settings::default()
            },
            log: PublishedLog(directory),
            tee: None,
        })
    }
}

impl Shop {
    /// This node runs in a TEE: instances that share its kernel do, too.
    pub(super) fn inside(&mut self, tee: HostTee) {
        let tee = Arc::new(tee);
        for stand in &mut self.stands {
            let shares = |offer: &&Offer| offer.backend == stand.name && offer.shared_kernel;
            if self.sales.offers.iter().any(|offer| shares(&offer)) {
                let backend = Arc::clone(&stand.backend);
                stand.backend = Arc::new(InTee::new(backend, Arc::clone(&tee)));
            }
        }
        self.tee = Some(tee);
    }
}

/// What ties a provider to the rest of its node.
pub(super) struct Selling {
    pub(super) network: NetworkId,
    pub(super) keys: Arc<Keys>,
    pub(super) net: net::Node,
    pub(super) replier: Replier,
    pub(super) clock: EpochClock,
    pub(super) own: watch::Receiver<Option<Arc<VerifiedCard>>>,
    pub(super) messages: mpsc::Receiver<Message>,
    /// Those that are accepted, for the gate in front of the messages.
    pub(super) requests: Requests,
    pub(super) streams: mpsc::Receiver<RelayedStream>,
    /// Shows the provider to the others once it works.
    pub(super) working: watch::Sender<Option<Provider>>,
    /// The cards before this start.
    pub(super) replaced: Replaced,
    pub(super) stop: CancellationToken,
}

impl Selling {
    /// Waits for the first card, then works until it is stopped and everything is at rest.
    pub(super) async fn run(mut self, shop: Shop) {
        let card = tokio::select! {
            card = self.own.wait_for(Option::is_some) => card.ok().and_then(|card| card.clone()),
            () = self.stop.cancelled() => return,
        };
        let Some(card) = card else {
            return;
        };
        let before = self.replaced.honoured(&card, SystemClock.now());
        let mut honoured = before.unwrap_or_else(|error| {
            tracing::warn!(%error, "the offers of earlier cards are not honoured");
            Vec::new()
        });
        honoured.push((card.to, card.digest()));
        let (offers, on_offer) = watch::channel(Arc::new(offering(&card, &honoured)));
        let parts = ProviderParts {
            network: self.network,
            node: self.keys.node.public(),
            keys: self.keys.subscribe(),
            store: shop.store,
            found: shop.found,
            publisher: shop.publisher,
            stands: shop.stands,
            requests: self.requests,
            messages: self.messages,
            replies: Arc::new(self.replier),
            relays: Arc::new(self.net.registrations().clone()),
            offering: on_offer,
            epochs: self.clock,
            clock: Arc::new(SystemClock),
            tee: shop.tee,
            doors: Arc::new(TcpDoors),
            randomness: Arc::new(SystemRandomness),
            settings: shop.settings,
            shutdown: self.stop.clone(),
        };
        let (provider, mut work) = Provider::start(parts);
        self.working.send_replace(Some(provider.clone()));
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                Ok(()) = self.own.changed() => {
                    if let Some(card) = self.own.borrow_and_update().clone() {
                        honour(&mut honoured, &card);
                        offers.send_replace(Arc::new(offering(&card, &honoured)));
                    }
                }
                Some(relayed) = self.streams.recv(), if sessions.len() < MAX_CARRIED => {
                    sessions.spawn(carry(provider.clone(), relayed));
                }
                Some(_) = sessions.join_next() => {}
                // It ends on its own once `stop` is cancelled and all leases are at rest.
                _ = &mut work => return,
            }
        }
    }
}

/// Joins one stream to its instance. A session that breaks is told to both ends by their ends.
async fn carry(provider: Provider, relayed: RelayedStream) {
    let _ = provider.carry(&relayed.token, relayed.stream).await;
}

/// Remembers a new card, and forgets those that have ended.
fn honour(honoured: &mut Vec<(UnixTime, CardDigest)>, card: &VerifiedCard) {
    let now = SystemClock.now();
    honoured.retain(|(to, digest)| now < *to && *digest != card.digest());
    honoured.push((card.to, card.digest()));
    let surplus = honoured.len().saturating_sub(MAX_HONOURED);
    honoured.drain(..surplus);
}

fn offering(card: &VerifiedCard, honoured: &[(UnixTime, CardDigest)]) -> Offering {
    Offering {
        card: (**card).clone(),
        honoured: honoured.iter().map(|(_, digest)| *digest).collect(),
    }
}

/// What all leases get: what the operator says, and of the rest what the machine has.
fn total(provider: &config::Provider) -> io::Result<Resources> {
    let memory = memory_mib()?;
    let cores = std::thread::available_parallelism()?.get();
    let cores = u32::try_from(cores).unwrap_or(u32::MAX / 1000);
    Ok(Resources {
        cpu_millicores: provider.cpu_millicores.unwrap_or(cores * 1000),
        memory_mib: provider.memory_mib.unwrap_or(memory / 2),
        disk_mib: provider.disk_mib.unwrap_or(memory / 10),
        max_processes: provider.max_processes,
    })
}

/// Memory of this machine, in MiB (proc(5)).
fn memory_mib() -> io::Result<u32> {
    let text = fs::read_to_string(Path::new("/proc/meminfo"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo has no MemTotal")
        })?;
    Ok(u32::try_from(kib / 1024).unwrap_or(u32::MAX))
}

fn backend_name(name: &str) -> Result<BackendName, ShopError> {
    name.parse()
        .map_err(|error: units::ParseError| ShopError::Offer(error.to_string()))
}

fn offer(backend: BackendName, capabilities: &Capabilities) -> Result<Offer, ShopError> {
    Ok(Offer {
        backend,
        arch: capabilities
            .arch
            .parse()
            .map_err(|error: units::ParseError| ShopError::Offer(error.to_string()))?,
        classes: List::new(classes(&market_resources(&capabilities.total)))
            .expect("at most four were made"),
        enforced: Limits::of(
            &capabilities
                .enforced
                .iter()
                .copied()
                .map(limit)
                .collect::<Vec<_>>(),
        ),
        shared_kernel: capabilities.shared_kernel,
        egress: capabilities.egress,
        // What the evidence on the card says is added with it.
        tee: Tee::None,
    })
}

/// An eighth, a quarter, a half and all of the machine; on a small machine some of them are the same, and one stands
/// for all.
fn classes(total: &units::Resources) -> Vec<units::Resources> {
    let part = |of: u32| units::Resources {
        cpu_millicores: total.cpu_millicores / of,
        memory_mib: total.memory_mib / of,
        disk_mib: total.disk_mib / of,
        gpus: 0,
        max_processes: total.max_processes / of,
    };
    let mut classes: Vec<_> = [8, 4, 2, 1].map(part).to_vec();
    classes.dedup();
    classes
}

fn market_resources(resources: &Resources) -> units::Resources {
    units::Resources {
        cpu_millicores: resources.cpu_millicores,
        memory_mib: resources.memory_mib,
        disk_mib: resources.disk_mib,
        gpus: 0,
        max_processes: resources.max_processes,
    }
}

fn limit(limit: souk_backend::Limit) -> units::Limit {
    match limit {
        souk_backend::Limit::Cpu => units::Limit::Cpu,
        souk_backend::Limit::Memory => units::Limit::Memory,
        souk_backend::Limit::Processes => units::Limit::Processes,
        souk_backend::Limit::Disk => units::Limit::Disk,
    }
}

/// People see the first digits; what counts is the hash.
fn image(hash: &souk_backend::ImageHash) -> Image {
    let name = format!("image-{}", &hash.to_string()[..12]);
    Image {
        hash: units::ImageHash(hash.0),
        name: name.parse().expect("hex digits, letters and a hyphen"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_rise_also_on_a_tiny_machine() {
        for total in [8, 16, 1000, 96_000] {
            let all = units::Resources {
                cpu_millicores: total,
                memory_mib: total,
                disk_mib: total,
                gpus: 0,
                max_processes: total,
            };
            let classes = classes(&all);
            assert_eq!(classes.last(), Some(&all));
            assert!(
                classes
                    .windows(2)
                    .all(|pair| pair[0] != pair[1] && pair[0].fits_in(&pair[1]))
            );
        }
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_mib().expect("Linux says so") > 0);
    }
}
