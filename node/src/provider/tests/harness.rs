//! A provider with a real store and real crypto, a clock of the test, and machines in memory that behave as a backend must.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rand::RngExt as _;
use souk_backend::{
    Backend, BackendError, Capabilities, HostKey, Instance, InstanceState, LeaseSpec, Meter, Usage,
    UsageSample,
};
use souk_crypto::{CardKey, NetworkParams, SealKey};
use souk_market::{
    card::{Card, Offer},
    envelope::{Envelope, Surb as SurbBytes, VerifiedEnvelope},
    log::origin,
    moment::{ClockStep, Moment, SteadyTime},
    reply::{Body, Reply},
    request::{Action, HolderRequest},
    sealed::{open_reply, seal_envelope, seal_holder_request},
    units::{CardDigest, Counter, DurationS, LeaseId, Tee},
    wire::Blob,
};
use souk_sphinx::{
    EpochClock, Hop, HopAddress, MixSecret, Route, Surb,
    message::{self, Admission, Class, Message, MessageId},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Clock, Offering, Provider, ProviderKeys, ProviderParts, Relays, ReplySink, Requests,
        Settings, Stand, SystemRandomness, TcpDoors,
    },
    seams::{TestClock, TestRelays},
    support::{NOW, Node, Requester, large, network, relay},
};
use crate::{
    attest::HostTee,
    store::{Publisher, Store, StoreError},
};

/// Longer than anything here takes, even on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// What the machines do that they should not.
#[derive(Clone, Default)]
pub(super) struct Faults {
    /// Instances come up and do not greet.
    pub(super) mute: bool,
    /// There is no room.
    pub(super) full: bool,
    /// Calls to provision wait for a permit.
    pub(super) hold: Option<Arc<Semaphore>>,
    /// Calls to terminate fail so often.
    pub(super) terminate_fails: u32,
    /// The meters are lost.
    pub(super) meterless: bool,
    /// Calls to list fail so often.
    pub(super) lists_fail: u32,
    /// Calls to list never return.
    pub(super) lists_hang: bool,
    /// Machines are made, and said not to be.
    pub(super) made_but_denied: bool,
    /// Calls to terminate find nothing and say that all is well: the backend does not show yet what it has.
    pub(super) terminate_sees_nothing: bool,
    /// Calls to terminate this one never return.
    pub(super) terminate_hangs: Option<souk_backend::LeaseId>,
    /// Machines that lists do not show yet, or still show.
    pub(super) lists_miss: Vec<souk_backend::LeaseId>,
    pub(super) lists_keep: Vec<Instance>,
}

struct Machine {
    instance: Instance,
    server: JoinHandle<()>,
    exited: watch::Sender<bool>,
}

/// Machines in memory. They outlive the provider, as real ones do.
#[derive(Default)]
pub(super) struct Machines {
    machines: Mutex<HashMap<souk_backend::LeaseId, Machine>>,
    faults: Mutex<Faults>,
    made: Mutex<u32>,
    provision_calls: watch::Sender<u32>,
    pub(super) samples: watch::Sender<u32>,
    /// Calls to list, ever.
    pub(super) lists: watch::Sender<u32>,
    /// Calls to terminate, ever.
    pub(super) terminations: watch::Sender<u32>,
}

impl Machines {
    /// Changes what goes wrong.
    pub(super) fn fault(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock().expect("not poisoned"));
    }

    /// Machines that were made, ever.
    pub(super) fn made(&self) -> u32 {
        *self.made.lock().expect("not poisoned")
    }

    /// Waits until machines were asked for so often.
    pub(super) async fn asked(&self, times: u32) {
        let mut calls = self.provision_calls.subscribe();
        timeout(PATIENCE, calls.wait_for(|n| *n >= times))
            .await
            .expect("asked for")
            .expect("open");
    }

    /// Waits for so many more lists to begin.
    pub(super) async fn listed(&self, more: u32) {
        let mut lists = self.lists.subscribe();
        let until = *lists.borrow() + more;
        timeout(PATIENCE, lists.wait_for(|n| *n >= until))
            .await
            .expect("listed")
            .expect("open");
    }

    /// A machine that no provider asked for.
    pub(super) async fn plant(&self, lease: u8) -> LeaseId {
        let spec = LeaseSpec {
            lease: souk_backend::LeaseId([lease; 16]),
            image: souk_backend::ImageHash([7; 32]),
            resources: souk_backend::Resources {
                cpu_millicores: 1,
                memory_mib: 1,
                disk_mib: 1,
                max_processes: 1,
            },
            required_limits: Vec::new(),
            authorized_key: souk_backend::SshPublicKey([1; 32]),
            valid_to_unix_s: u64::MAX,
            evidence: None,
        };
        self.provision(&spec).await.expect("made");
        LeaseId(spec.lease.0)
    }

    pub(super) fn running(&self) -> Vec<LeaseId> {
        self.machines
            .lock()
            .expect("not poisoned")
            .keys()
            .map(|id| LeaseId(id.0))
            .collect()
    }

    pub(super) fn exit(&self, lease: LeaseId) {
        let machines = self.machines.lock().expect("not poisoned");
        machines[&souk_backend::LeaseId(lease.0)]
            .exited
            .send_replace(true);
    }

    fn faults(&self) -> Faults {
        self.faults.lock().expect("not poisoned").clone()
    }

    fn usage(&self) -> Usage {
        if self.faults().meterless {
            Usage::UNKNOWN
        } else {
            Usage {
                cpu_core_ms: Meter::Known(1_500),
                memory_mib_s: Meter::Known(64),
                net_rx_bytes: Meter::Known(10),
                net_tx_bytes: Meter::Known(20),
            }
        }
    }
}

#[async_trait]
impl Backend for Machines {
    fn name(&self) -> &str {
        "sandbox"
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        Ok(Capabilities {
            arch: "x86_64".to_owned(),
            total: souk_backend::Resources {
                cpu_millicores: 1,
                memory_mib: 1,
                disk_mib: 1,
                max_processes: 1,
            },
            enforced: Vec::new(),
            shared_kernel: true,
            egress: false,
            tee: None,
            images: Vec::new(),
        })
    }

    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        self.provision_calls.send_modify(|n| *n += 1);
        let faults = self.faults();
        if let Some(hold) = &faults.hold {
            hold.acquire().await.expect("never closed").forget();
        }
        if faults.full {
            return Err(BackendError::Full {
                lease: spec.lease,
                what: "everything".to_owned(),
            });
        }
        if let Some(machine) = self.machines.lock().expect("not poisoned").get(&spec.lease) {
            return Ok(machine.instance.clone());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let instance = Instance {
            lease: spec.lease,
            state: InstanceState::Running,
            ssh: listener.local_addr().expect("bound"),
            user: "souk".to_owned(),
            host_key: HostKey([3; 32]),
            valid_to_unix_s: spec.valid_to_unix_s,
            quote: None,
        };
        let machine = Machine {
            instance: instance.clone(),
            server: tokio::spawn(serve(listener, faults.mute)),
            exited: watch::Sender::new(false),
        };
        *self.made.lock().expect("not poisoned") += 1;
        self.machines
            .lock()
            .expect("not poisoned")
            .insert(spec.lease, machine);
        if faults.made_but_denied {
            return Err(BackendError::Unknown {
                lease: spec.lease,
                what: "provision".to_owned(),
            });
        }
        Ok(instance)
    }

    async fn inspect(
        &self,
        lease: souk_backend::LeaseId,
    ) -> Result<Option<Instance>, BackendError> {
        let machines = self.machines.lock().expect("not poisoned");
        Ok(machines.get(&lease).map(|machine| machine.instance.clone()))
    }

    async fn list(&self) -> Result<Vec<Instance>, BackendError> {
        self.lists.send_modify(|n| *n += 1);
        let faults = {
            let mut faults = self.faults.lock().expect("not poisoned");
            let now = faults.clone();
            faults.lists_fail = faults.lists_fail.saturating_sub(1);
            now
        };
        if faults.lists_hang {
            std::future::pending::<()>().await;
        }
        if faults.lists_fail > 0 {
            return Err(BackendError::Host {
                what: "cannot list".to_owned(),
                hint: "wait".to_owned(),
                source: None,
            });
        }
        let machines = self.machines.lock().expect("not poisoned");
        let really = machines
            .values()
            .map(|machine| machine.instance.clone())
            .filter(|instance| !faults.lists_miss.contains(&instance.lease));
        Ok(really.chain(faults.lists_keep).collect())
    }

    async fn sample(&self, _: souk_backend::LeaseId) -> Result<UsageSample, BackendError> {
        self.samples.send_modify(|n| *n += 1);
        Ok(UsageSample {
            taken_at_unix_ms: 0,
            usage: self.usage(),
        })
    }

    async fn watch(
        &self,
        lease: souk_backend::LeaseId,
        patience: Duration,
    ) -> Result<InstanceState, BackendError> {
        let exited = {
            let machines = self.machines.lock().expect("not poisoned");
            machines
                .get(&lease)
                .map(|machine| machine.exited.subscribe())
        };
        let Some(mut exited) = exited else {
            return Ok(InstanceState::Gone);
        };
        match timeout(patience, exited.wait_for(|exited| *exited)).await {
            Ok(Ok(_)) => Ok(InstanceState::Exited),
            Ok(Err(_)) => Ok(InstanceState::Gone),
            Err(_) => Ok(InstanceState::Running),
        }
    }

    async fn terminate(&self, lease: souk_backend::LeaseId) -> Result<UsageSample, BackendError> {
        let faults = self.faults();
        self.terminations.send_modify(|n| *n += 1);
        if faults.terminate_hangs == Some(lease) {
            std::future::pending::<()>().await;
        }
        {
            let mut faults = self.faults.lock().expect("not poisoned");
            if faults.terminate_fails > 0 {
                faults.terminate_fails -= 1;
                return Err(BackendError::Unknown {
                    lease,
                    what: "terminate".to_owned(),
                });
            }
            if faults.terminate_sees_nothing {
                return Ok(UsageSample {
                    taken_at_unix_ms: 0,
                    usage: Usage::UNKNOWN,
                });
            }
        }
        let machine = self.machines.lock().expect("not poisoned").remove(&lease);
        let usage = if machine.is_some() {
            self.usage()
        } else {
            Usage::UNKNOWN
        };
        if let Some(machine) = machine {
            machine.server.abort();
        }
        Ok(UsageSample {
            taken_at_unix_ms: 0,
            usage,
        })
    }
}

/// Greets like an SSH server, then gives back what it gets.
async fn serve(listener: TcpListener, mute: bool) {
    while let Ok((mut stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            if mute {
                return;
            }
            stream.write_all(b"SSH-2.0-test\r\n").await.ok();
            let mut buffer = [0; 64];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

struct Captured {
    sent: mpsc::UnboundedSender<([u8; 32], Vec<u8>)>,
    /// No first hop is reached.
    cut: AtomicBool,
    /// There is no link to any first hop.
    unlinked: AtomicBool,
    tried: AtomicUsize,
}

impl ReplySink for Captured {
    fn can_use(&self, _: &Surb) -> bool {
        !self.unlinked.load(Ordering::Relaxed)
    }

    fn reply(&self, surb: Surb, reply: &message::Reply) -> Result<(), String> {
        self.tried.fetch_add(1, Ordering::Relaxed);
        if self.cut.load(Ordering::Relaxed) {
            return Err("the first hop is not reached".to_owned());
        }
        let sent = (surb.fingerprint(), reply.clone().into_bytes());
        self.sent
            .send(sent)
            .map_err(|_| "the test is over".to_owned())
    }
}

/// A provider, and everything around it that outlives it.
pub(super) struct World {
    pub(super) directory: tempfile::TempDir,
    pub(super) node: Node,
    pub(super) machines: Arc<Machines>,
    pub(super) clock: Arc<TestClock>,
    pub(super) settings: Settings,
    pub(super) relays: Arc<TestRelays>,
    /// The TEE that the provider runs in.
    pub(super) tee: Option<Arc<HostTee>>,
    /// The machines as the provider gets them; where there is none, as they are.
    pub(super) backend: Option<Arc<dyn Backend>>,
    /// Another backend, beside the machines.
    pub(super) away: Option<Arc<dyn Backend>>,
    keys: watch::Sender<Arc<ProviderKeys>>,
    offer: CardDigest,
    replies: Arc<Captured>,
    received: mpsc::UnboundedReceiver<([u8; 32], Vec<u8>)>,
    /// SURBs that replies came by.
    pub(super) used: Vec<[u8; 32]>,
    life: Option<Life>,
}

struct Life {
    provider: Provider,
    work: JoinHandle<()>,
    messages: mpsc::Sender<Message>,
    shutdown: CancellationToken,
}

pub(super) fn epochs() -> EpochClock {
    EpochClock::of(&NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds"))
}

impl World {
    pub(super) fn new() -> Self {
        let node = Node::new(1);
        let offer = node.card(1).digest();
        let keys = ProviderKeys {
            card: node.card.clone(),
            seal: vec![node.seal.clone()],
        };
        let (captured, received) = mpsc::unbounded_channel();
        Self {
            directory: tempfile::tempdir().expect("a directory"),
            node,
            machines: Arc::default(),
            clock: Arc::new(TestClock(watch::Sender::new(Moment {
                wall: NOW,
                steady: SteadyTime(Duration::from_secs(5_000)),
            }))),
            settings: Settings {
                checkpoint_period: Duration::from_millis(20),
                sample_period: Duration::from_millis(20),
                reap_period: Duration::from_millis(50),
                orphan_grace: Duration::from_millis(200),
                notice_pause: Duration::from_millis(1),
                doubt: Duration::ZERO,
                forget_period: Duration::from_millis(50),
                ..Settings::default()
            },
            relays: Arc::new(TestRelays {
                known: Mutex::new(vec![relay()]),
                ..TestRelays::default()
            }),
            tee: None,
            backend: None,
            away: None,
            keys: watch::Sender::new(Arc::new(keys)),
            offer,
            replies: Arc::new(Captured {
                sent: captured,
                cut: AtomicBool::new(false),
                unlinked: AtomicBool::new(false),
                tried: AtomicUsize::new(0),
            }),
            received,
            used: Vec::new(),
            life: None,
        }
    }

    pub(super) async fn started() -> Self {
        let mut world = Self::new();
        world.start().await;
        world
    }

    /// The provider's card announces new keys from now on; replies are read with the new card key, and what is sent is
    /// sealed to the seal key before until the one that is given back is put in its place.
    pub(super) fn turn_keys(&mut self) -> SealKey {
        let mut rng = rand::rng();
        let (card, seal) = (CardKey::generate(&mut rng), SealKey::generate(&mut rng));
        self.node.card = card.clone();
        let seals = vec![seal.clone(), self.node.seal.clone()];
        self.keys
            .send_replace(Arc::new(ProviderKeys { card, seal: seals }));
        seal
    }

    fn backend(&self) -> Arc<dyn Backend> {
        let plain = || Arc::clone(&self.machines) as Arc<dyn Backend>;
        self.backend.clone().unwrap_or_else(plain)
    }

    /// What is on offer: in the TEE where there is one.
    fn card(&self) -> Card {
        let mut card = self.node.plain_card(1);
        if self.tee.is_some() {
            let offers = card.offers.iter().cloned().map(|offer| Offer {
                tee: Tee::NoneTest,
                ..offer
            });
            card.offers = super::support::list(offers.collect());
        }
        card
    }

    pub(super) fn log_directory(&self) -> std::path::PathBuf {
        self.directory.path().join("log")
    }

    pub(super) async fn start(&mut self) {
        // Who was still served by the life before lets go of the store in a moment.
        let opened = timeout(PATIENCE, async {
            loop {
                match Store::open(self.directory.path()).await {
                    Err(StoreError::InUse { .. }) => tokio::task::yield_now().await,
                    opened => return opened,
                }
            }
        });
        let opened = opened.await.expect("the store is let go of");
        let (store, found) = opened.expect("the store opens");
        let origin = origin(network(), self.node.node.public()).expect("a name");
        let publisher =
            Publisher::open(&store, &self.log_directory(), origin, self.node.log.clone())
                .await
                .expect("the log opens");
        let (messages, to_read) = mpsc::channel(64);
        let offering = Offering {
            card: self.card(),
            honoured: vec![self.offer],
        };
        let (_, offering) = watch::channel(Arc::new(offering));
        let shutdown = CancellationToken::new();
        let away = self.away.clone().map(|backend| ("away", backend));
        let stands = [("sandbox", self.backend())].into_iter().chain(away);
        let stands = stands.map(|(name, backend)| Stand {
            name: name.parse().expect("a name"),
            backend,
            total: large(),
        });
        let (provider, work) = Provider::start(ProviderParts {
            network: network(),
            node: self.node.node.public(),
            keys: self.keys.subscribe(),
            store,
            found,
            publisher,
            stands: stands.collect(),
            requests: Requests::default(),
            messages: to_read,
            replies: Arc::clone(&self.replies) as Arc<dyn ReplySink>,
            relays: Arc::clone(&self.relays) as Arc<dyn Relays>,
            offering,
            epochs: epochs(),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            tee: self.tee.clone(),
            doors: Arc::new(TcpDoors),
            randomness: Arc::new(SystemRandomness),
            settings: self.settings.clone(),
            shutdown: shutdown.clone(),
        });
        self.life = Some(Life {
            provider,
            work,
            messages,
            shutdown,
        });
    }

    /// Ends the process in the middle of whatever it does: every task is dropped where it waits.
    pub(super) async fn stop(&mut self) {
        let life = self.life.take().expect("started");
        life.shutdown.cancel();
        timeout(PATIENCE, life.work)
            .await
            .expect("comes to rest")
            .expect("no panic");
    }

    pub(super) async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    pub(super) fn provider(&self) -> &Provider {
        &self.life.as_ref().expect("started").provider
    }

    pub(super) async fn send(&self, bytes: Vec<u8>) {
        let message = Message {
            id: MessageId::random(&mut rand::rng()),
            class: Class::Small,
            admission: Admission::NONE,
            bytes,
        };
        self.life
            .as_ref()
            .expect("started")
            .messages
            .send(message)
            .await
            .expect("it is read");
    }

    pub(super) fn advance(&self, seconds: u64) {
        self.clock.0.send_modify(|now| {
            now.wall = now.wall.plus_s(seconds);
            now.steady = now.steady.plus(Duration::from_secs(seconds));
        });
    }

    /// Somebody sets the clock of the wall.
    pub(super) fn set_clock(&self, by: i64) {
        let clock = &self.clock.0;
        clock.send_modify(|now| now.wall = ClockStep(by).shift(now.wall));
    }

    /// No reply leaves any more.
    pub(super) fn cut_replies(&self) {
        self.replies.cut.store(true, Ordering::Relaxed);
    }

    /// There is no link for any reply, or there is again.
    pub(super) fn unlink_replies(&self, unlinked: bool) {
        self.replies.unlinked.store(unlinked, Ordering::Relaxed);
    }

    /// How many SURBs replies were tried by, each journalled before.
    pub(super) fn tried_replies(&self) -> usize {
        self.replies.tried.load(Ordering::Relaxed)
    }

    /// The next reply, opened by its requester.
    pub(super) async fn reply(&mut self, tenant: &Tenant) -> Reply {
        let next = timeout(PATIENCE, self.received.recv())
            .await
            .expect("a reply comes");
        let (surb, sealed) = next.expect("the sink is open");
        self.used.push(surb);
        let expected = tenant.envelope.expected_reply();
        let signer = self.node.card.public();
        let reply = open_reply(&sealed, &tenant.keys.reply, &signer, &expected, &network());
        (*reply.expect("a reply to this requester")).clone()
    }

    /// Nothing more has been sent.
    pub(super) fn assert_silent(&mut self) {
        assert!(self.received.try_recv().is_err(), "a reply too many");
    }

    /// Rents, and waits for the receipt.
    pub(super) async fn rent(&mut self, seed: u64) -> (Tenant, souk_market::reply::Receipt) {
        let tenant = Tenant::new(self, seed, |_| ());
        tenant.ask(self).await;
        match self.reply(&tenant).await.body {
            Body::Receipt(receipt) => (tenant, receipt),
            other => panic!("no receipt: {other:?}"),
        }
    }

    /// Waits until no machine runs.
    pub(super) async fn until_nothing_runs(&self) {
        self.until_only(&[]).await;
    }

    /// Waits until these machines run, and no others.
    pub(super) async fn until_only(&self, leases: &[LeaseId]) {
        let alone = || self.machines.running() == leases;
        self.until("the others end", alone).await;
    }

    /// Waits until something holds.
    pub(super) async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waited = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, waited).await.expect(what);
    }
}

/// Somebody with one lease.
pub(super) struct Tenant {
    pub(super) keys: Requester,
    pub(super) envelope: VerifiedEnvelope,
}

impl Tenant {
    pub(super) fn new(world: &World, seed: u64, change: impl FnOnce(&mut Envelope)) -> Self {
        let keys = Requester::new(seed);
        let mut envelope = keys.plain_envelope(&world.node, world.offer);
        envelope.grant.duration = DurationS(600);
        envelope.surbs = surbs(world, 4);
        change(&mut envelope);
        let envelope = keys.sign(envelope);
        Self { keys, envelope }
    }

    /// Sends the envelope.
    pub(super) async fn ask(&self, world: &World) {
        let to = world.node.seal.public();
        let sealed = seal_envelope(&self.envelope, &to, &network(), &mut rand::rng());
        world.send(sealed.expect("a good key")).await;
    }

    pub(super) async fn tell(&self, world: &World, counter: u64, action: Action) {
        let request = HolderRequest {
            holder: self.keys.holder.public(),
            provider: world.node.node.public(),
            request: self.envelope.grant.request,
            counter: Counter(counter),
            action,
            surbs: surbs(world, 2),
        };
        let to = world.node.seal.public();
        let sealed = seal_holder_request(
            request,
            &self.keys.holder,
            &to,
            &network(),
            &mut rand::rng(),
        );
        world.send(sealed.expect("a good key")).await;
    }
}

/// SURBs over a route that leads nowhere: what is sent by them is caught before.
pub(super) fn surbs<const MAX: usize>(
    world: &World,
    count: usize,
) -> souk_market::wire::List<SurbBytes, MAX> {
    let mut rng = rand::rng();
    let epoch = epochs().at(world.clock.now());
    let made = (0..count).map(|_| {
        let hops = (0..4)
            .map(|_| Hop {
                address: HopAddress(rng.random()),
                key: MixSecret::generate(&mut rng).public(),
            })
            .collect();
        let route = Route::new(hops).expect("four hops");
        let (surb, _) =
            Surb::make(&route, &[Duration::ZERO; 4], epoch, &mut rng).expect("four delays");
        Blob::new(surb.to_bytes().to_vec()).expect("the size of a SURB")
    });
    super::support::list(made.collect())
}

pub(super) fn address_of(world: &World, lease: LeaseId) -> Option<SocketAddr> {
    let machines = world.machines.machines.lock().expect("not poisoned");
    machines
        .get(&souk_backend::LeaseId(lease.0))
        .map(|machine| machine.instance.ssh)
}
