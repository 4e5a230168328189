//! One life of the provider after the other: start, live, die.
//!
//! ```text
//!   open the store ─► look at what is there ─► the node's own provider, on a runtime of its own
//!        ▲                                        │ effects come about as virtual time passes
//!        │                                        ▼
//!        └──────── some time passes ◄──── dies at a failpoint, a wait or an instant; or is told to stop
//! ```
//!
//! A life that dies takes its runtime along: no task of it runs again, and of its disk is left what a crash leaves.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use souk_crypto::NodeId;
use souk_market::{log::origin, units::RelayToken};
use souk_node::{
    failpoint,
    provider::{
        Offering, Provider, ProviderKeys, ProviderParts, Relays, Requests, Settings, Stand,
    },
    store::{Publisher, Store},
};
use souk_sphinx::message::{Admission, Class, Message, MessageId};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    check,
    disk::Survival,
    invariants::Invariant,
    machines::{self, SimulatedDoors},
    requester::{self, SimulatedMix},
    support,
    world::{Crashed, Effect, Ending, SeededRandomness, Shared, SimulatedClock},
};

/// Between two comparisons of what the backend has with the journal.
pub(super) const RECONCILE_S: u64 = 60;
/// How long a closed lease is remembered, so that a run can see it forgotten.
pub(super) const RETENTION_S: u64 = 3_600;

fn settings() -> Settings {
    Settings {
        checkpoint_period: Duration::from_secs(20),
        totals_period: Duration::from_secs(600),
        sample_period: Duration::from_secs(30),
        reap_period: Duration::from_secs(RECONCILE_S),
        forget_period: Duration::from_secs(300),
        provision_s: 60,
        retention_s: RETENTION_S,
        doubt: Duration::from_secs(300),
        ..Settings::default()
    }
}

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Died,
    Stopped,
    /// It was to last until here.
    Over,
}

/// Lives once, until `until_ms` at the latest or, where `is_over` says so, before.
pub(super) fn live(
    world: &Shared,
    log: &Path,
    ending: Option<Ending>,
    until_ms: u64,
    is_over: fn(&Shared, &Provider) -> bool,
) -> Ended {
    let dead = Arc::new(AtomicBool::new(false));
    {
        let mut world = world.lock();
        world.dead = Arc::clone(&dead);
        world.steps_left = match ending {
            Some(Ending::AtStep(steps)) => Some(steps),
            _ => None,
        };
    }
    let watcher = world.clone();
    failpoint::watch(Some(Rc::new(move |point| watcher.hit(point))));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without sockets");
    let lived = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            world.lock().runs(true);
            life(world, log, &dead, ending, until_ms, is_over).await
        })
    }));
    {
        let _inside = runtime.enter();
        let mut world = world.lock();
        world.die();
        world.runs(false);
        world.store = None;
    }
    // Every task of it goes, wherever it waits.
    drop(runtime);
    failpoint::watch(None);
    let ended = match lived {
        Ok(ended) => ended,
        Err(payload) if payload.is::<Crashed>() => Ended::Died,
        Err(payload) => resume_unwind(payload),
    };
    let mut guard = world.lock();
    let state = &mut *guard;
    let (disk, steps) = (state.disk.clone(), &mut state.steps);
    let is_lost = disk.crash(|| match steps.choose("an unsynced write", 3) {
        0 => Survival::Whole,
        1 => Survival::Torn,
        _ => Survival::Lost,
    });
    if is_lost {
        state.fault("unsynced-write-lost");
    }
    state.saw(|| format!("provider: {ended:?}"));
    ended
}

async fn life(
    world: &Shared,
    log: &Path,
    dead: &Arc<AtomicBool>,
    ending: Option<Ending>,
    until_ms: u64,
    is_over: fn(&Shared, &Provider) -> bool,
) -> Ended {
    let started = tokio::select! {
        biased;
        () = world.until_crashed() => return Ended::Died,
        started = start(world, log, dead) => started,
    };
    let mut running = match started {
        Ok(running) => running,
        Err(_) if world.is_dead() => return Ended::Died,
        // The disk is full or has failed, most likely; the operator starts it again.
        Err(error) => {
            let mut state = world.lock();
            state.saw(|| format!("provider: does not start: {error}"));
            let is_excused = state.disk.is_full() || state.disk.take_failure();
            state.require(Invariant::StaysUp, is_excused, || error);
            return Ended::Stopped;
        }
    };
    loop {
        loop {
            let effect = world.lock().due();
            let Some(effect) = effect else { break };
            bring_about(world, effect, Some(&running));
        }
        check::now(world);
        if is_over(world, &running.provider) {
            finish(world, log);
            return Ended::Over;
        }
        let end_ms = match ending {
            Some(Ending::At(at) | Ending::Stopped(at)) => at.min(until_ms),
            _ => until_ms,
        };
        let (now, next) = {
            let state = world.lock();
            (state.now_ms(), state.next_at_ms().unwrap_or(u64::MAX))
        };
        if now >= end_ms {
            finish(world, log);
            return match ending {
                Some(Ending::At(at)) if now >= at => Ended::Died,
                Some(Ending::Stopped(at)) if now >= at => stop(world, running).await,
                _ => Ended::Over,
            };
        }
        tokio::select! {
            biased;
            () = world.until_crashed() => return Ended::Died,
            work = &mut running.work => {
                if world.is_dead() {
                    return Ended::Died;
                }
                world.lock().require(Invariant::StaysUp, false, || {
                    format!("the provider has ended by itself: {work:?}")
                });
                return Ended::Stopped;
            }
            () = world.until_changed() => {}
            () = sleep(Duration::from_millis(next.min(end_ms) - now)) => {}
        }
    }
}

/// Looks at what is left, once all faults are over.
fn finish(world: &Shared, log: &Path) {
    let store = world.lock().store.clone();
    if let Some(store) = store
        && world.lock().is_settling
    {
        check::end(world, log, &store);
    }
}

/// A provider at work.
pub(super) struct Life {
    provider: Provider,
    work: JoinHandle<()>,
    messages: mpsc::Sender<Message>,
    shutdown: CancellationToken,
    _offering: watch::Sender<Arc<Offering>>,
    delivered: AtomicU64,
}

async fn start(world: &Shared, log: &Path, dead: &Arc<AtomicBool>) -> Result<Life, String> {
    let (open, keys) = {
        let state = world.lock();
        (state.disk.opener(dead), Arc::clone(&state.keys))
    };
    let node = &keys.node;
    let opened = Store::open_simulated(open).await;
    let (store, found) = opened.map_err(|e| e.to_string())?;
    world.lock().store = Some(store.clone());
    check::found(world, log, &store, &found);
    let name = origin(support::network(), node.node.public()).map_err(|e| e.to_string())?;
    let publisher = Publisher::open(&store, log, name, node.log.clone())
        .await
        .map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e)))?;
    let (messages, to_read) = mpsc::channel(64);
    let (offers, offering) = watch::channel(Arc::new(Offering {
        card: node.plain_card(1),
        honoured: vec![keys.offer],
    }));
    let shutdown = CancellationToken::new();
    let (provider, work) = Provider::start(ProviderParts {
        network: support::network(),
        node: node.node.public(),
        keys: ProviderKeys::lasting(node.card.clone(), vec![node.seal.clone()]),
        store,
        found,
        publisher,
        stands: vec![Stand {
            name: "sandbox".parse().map_err(|_| "no name")?,
            backend: machines::backend(world),
            total: support::large(),
        }],
        requests: Requests::default(),
        messages: to_read,
        replies: Arc::new(SimulatedMix(world.clone())),
        relays: Arc::new(FaultyRelays(world.clone())),
        offering,
        epochs: keys.epochs,
        clock: Arc::new(SimulatedClock(world.clone())),
        tee: None,
        doors: Arc::new(SimulatedDoors(world.clone())),
        randomness: Arc::new(SeededRandomness(world.clone())),
        settings: settings(),
        shutdown: shutdown.clone(),
    });
    Ok(Life {
        provider,
        work,
        messages,
        shutdown,
        _offering: offers,
        delivered: AtomicU64::new(0),
    })
}

/// Tells it to stop, and waits until it has.
async fn stop(world: &Shared, mut running: Life) -> Ended {
    running.shutdown.cancel();
    tokio::select! {
        biased;
        () = world.until_crashed() => Ended::Died,
        _ = &mut running.work => Ended::Stopped,
        () = sleep(Duration::from_secs(600)) => {
            world.lock().require(Invariant::StaysUp, false, || "it does not stop when told so".to_owned());
            Ended::Stopped
        }
    }
}

/// Brings an effect about; what would reach the provider is lost where none lives.
pub(super) fn bring_about(world: &Shared, effect: Effect, running: Option<&Life>) {
    let mut guard = world.lock();
    let state = &mut *guard;
    let now = state.now_ms();
    match effect {
        Effect::Make {
            lease,
            valid_to_unix_s,
            mute,
        } => {
            if state.machines.make(lease, valid_to_unix_s, mute, now) {
                let name = state.name(lease);
                state.saw(|| format!("backend: the machine of {name} is there"));
                let exits = !state.is_settling && state.steps.happens("a machine exits", 15);
                if exits {
                    state.fault("machine-exits");
                    let after = state.steps.delay_ms("a machine exits after", 100, 200_000);
                    state.later(after, Effect::Exit { lease });
                }
            }
        }
        Effect::Remove { lease } => {
            if state.machines.remove(lease, now) {
                let name = state.name(lease);
                state.saw(|| format!("backend: the machine of {name} is gone"));
            }
        }
        Effect::Exit { lease } => {
            if let Some(machine) = state.machines.of(lease) {
                machine.exited.send_replace(true);
            }
        }
        Effect::ToProvider(bytes) => {
            if let Some(life) = running {
                let id = life.delivered.fetch_add(1, Ordering::Relaxed);
                let message = Message {
                    id: MessageId::from_bytes(u128::from(id).to_be_bytes()),
                    class: Class::Small,
                    admission: Admission::NONE,
                    bytes,
                };
                // A full queue drops, as the mix does.
                let _ = life.messages.try_send(message);
            }
        }
        Effect::ToRequester { who, surb, sealed } => requester::receive(state, who, surb, &sealed),
        Effect::Wake { who } => requester::wake(state, who),
        Effect::Forget { who } => requester::forget(state, who),
        Effect::DiskFull(is_full) => {
            if is_full {
                state.fault("disk-full");
            }
            state.disk.set_full(is_full);
        }
        Effect::SyncFails { n } => {
            state.fault("sync-fails");
            state.disk.fail_sync(n);
        }
        Effect::ClockStep(by_s) => {
            state.fault(if by_s < 0 {
                "clock-set-back"
            } else {
                "clock-set-forward"
            });
            state.step_clock(by_s);
        }
        Effect::Settle => state.settle(),
        Effect::Withdraw => {
            let Some(life) = running else { return };
            let leases = life.provider.leases();
            if leases.is_empty() {
                return;
            }
            let count = u32::try_from(leases.len()).unwrap_or(u32::MAX);
            let lease = leases[state.steps.choose("a lease is withdrawn", count) as usize].lease;
            state.fault("withdrawn");
            let provider = life.provider.clone();
            tokio::spawn(async move { provider.withdraw(lease).await });
        }
    }
}

/// Relays that let every token in, unless they are away.
struct FaultyRelays(Shared);

#[async_trait]
impl Relays for FaultyRelays {
    fn knows(&self, _: &NodeId) -> bool {
        true
    }

    async fn admit(&self, _: &RelayToken, _: Duration, relays: &[NodeId]) -> Vec<NodeId> {
        self.0.alive().await;
        let mut state = self.0.lock();
        if !state.is_settling && state.steps.happens("the relays are away", 5) {
            state.fault("relays-away");
            return Vec::new();
        }
        relays.to_vec()
    }

    fn dismiss(&self, _: &RelayToken) {}
}
