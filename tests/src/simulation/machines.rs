//! A backend that does what backends do when the network between is bad.
//!
//! ```text
//!   call ──► may be lost ──► effect: now, late, twice or never ──► answer: now, late, an error or never
//! ```
//!
//! It keeps its contract: it is idempotent by lease id, and an answer of success is true. All else is allowed: a machine
//! that is there after an error, or appears after its removal; a list of a minute ago; a call that hangs for ever.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use souk_backend::{
    Backend, BackendError, Capabilities, HostKey, Instance, InstanceState, LeaseId, LeaseSpec,
    Meter, Usage, UsageSample,
};
use souk_market::{lifecycle::Phase, units};
use souk_node::provider::Doors;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    invariants::Invariant,
    world::{Effect, Shared, World},
};

/// Longest that a slow call takes, in milliseconds.
const SLOW_MS: u32 = 20_000;
/// How far behind a list may be.
const LIST_LAG_MS: u64 = 20_000;

/// A machine that exists.
pub(super) struct Machine {
    pub(super) lease: LeaseId,
    pub(super) ssh: SocketAddr,
    pub(super) valid_to_unix_s: u64,
    pub(super) exited: watch::Sender<bool>,
    /// It never greets.
    mute: bool,
    /// When it is looked at by a list of the past.
    made_at_ms: u64,
}

impl Machine {
    pub(super) fn made_at_ms(&self) -> u64 {
        self.made_at_ms
    }

    fn instance(&self) -> Instance {
        Instance {
            lease: self.lease,
            state: if *self.exited.borrow() {
                InstanceState::Exited
            } else {
                InstanceState::Running
            },
            ssh: self.ssh,
            user: "souk".to_owned(),
            host_key: HostKey([3; 32]),
            valid_to_unix_s: self.valid_to_unix_s,
            quote: None,
        }
    }
}

/// All machines, and those that were there a moment ago.
#[derive(Default)]
pub(super) struct Machines {
    pub(super) running: Vec<Machine>,
    /// Machines that are gone, from when to when they were there.
    gone: Vec<(Instance, u64, u64)>,
    made: u16,
}

impl Machines {
    pub(super) fn of(&self, lease: LeaseId) -> Option<&Machine> {
        self.running.iter().find(|machine| machine.lease == lease)
    }

    /// Makes the machine of a lease; says whether there was none.
    pub(super) fn make(
        &mut self,
        lease: LeaseId,
        valid_to_unix_s: u64,
        mute: bool,
        now_ms: u64,
    ) -> bool {
        if self.of(lease).is_some() {
            return false;
        }
        self.made += 1;
        let [high, low] = self.made.to_be_bytes();
        self.running.push(Machine {
            lease,
            ssh: (Ipv4Addr::new(127, 1, high, low), 22).into(),
            valid_to_unix_s,
            exited: watch::Sender::new(false),
            mute,
            made_at_ms: now_ms,
        });
        true
    }

    /// Removes the machine of a lease; says whether there was one.
    pub(super) fn remove(&mut self, lease: LeaseId, now_ms: u64) -> bool {
        let Some(at) = self.running.iter().position(|m| m.lease == lease) else {
            return false;
        };
        let machine = self.running.remove(at);
        self.gone
            .push((machine.instance(), machine.made_at_ms, now_ms));
        true
    }

    /// What was there at an instant of the past.
    fn at(&self, past_ms: u64) -> Vec<Instance> {
        let gone = self
            .gone
            .iter()
            .filter(|(_, from, to)| *from <= past_ms && past_ms < *to);
        let running = self
            .running
            .iter()
            .filter(|machine| machine.made_at_ms <= past_ms);
        gone.map(|(instance, ..)| instance.clone())
            .chain(running.map(Machine::instance))
            .collect()
    }
}

/// What becomes of one call.
struct Fate {
    /// After which time the effect comes, if it does.
    effect_ms: Option<u64>,
    /// A second effect, of a call that was delivered twice.
    again_ms: Option<u64>,
    /// After which time the answer comes, if it does.
    answer_ms: Option<u64>,
    /// The answer is an error.
    errs: bool,
}

impl Fate {
    const GOOD: Self = Self {
        effect_ms: Some(0),
        again_ms: None,
        answer_ms: Some(0),
        errs: false,
    };
}

/// The backend as one life of a provider reaches it.
pub(super) struct FaultyBackend(pub(super) Shared);

impl FaultyBackend {
    /// Decides about a call to make or remove a machine.
    fn fate(world: &mut World, call: &str) -> Fate {
        let quick = world.steps.delay_ms("a call takes", 1, 400);
        let plain = Fate {
            effect_ms: Some(quick / 2),
            answer_ms: Some(quick),
            ..Fate::GOOD
        };
        if world.is_settling {
            return plain;
        }
        let slow = |world: &mut World| world.steps.delay_ms("a slow call takes", 1_000, SLOW_MS);
        let (fault, fate) = match world.steps.choose(call, 100) {
            0..55 => return plain,
            55..65 => {
                let answer = slow(world);
                let effect_ms = Some(answer / 2);
                (
                    "slow",
                    Fate {
                        effect_ms,
                        answer_ms: Some(answer),
                        ..Fate::GOOD
                    },
                )
            }
            65..72 => (
                "error-without-effect",
                Fate {
                    effect_ms: None,
                    errs: true,
                    ..plain
                },
            ),
            72..80 => (
                "error-with-effect",
                Fate {
                    errs: true,
                    ..plain
                },
            ),
            80..86 => {
                let late = slow(world);
                (
                    "error-then-effect",
                    Fate {
                        effect_ms: Some(late),
                        errs: true,
                        ..plain
                    },
                )
            }
            86..90 => {
                let again = slow(world);
                (
                    "delivered-twice",
                    Fate {
                        again_ms: Some(again),
                        ..plain
                    },
                )
            }
            90..94 => (
                "answer-lost",
                Fate {
                    answer_ms: None,
                    ..plain
                },
            ),
            94..97 => (
                "call-lost",
                Fate {
                    effect_ms: None,
                    answer_ms: None,
                    ..Fate::GOOD
                },
            ),
            _ => (
                "error-late",
                Fate {
                    effect_ms: None,
                    answer_ms: Some(slow(world)),
                    errs: true,
                    again_ms: None,
                },
            ),
        };
        world.fault(&format!("{call}-{fault}"));
        fate
    }

    /// Lets the effects come, and waits for the answer; none comes to a process that is dead.
    async fn follow(&self, fate: &Fate, effect: Effect) {
        {
            let mut world = self.0.lock();
            for after_ms in [fate.effect_ms, fate.again_ms].into_iter().flatten() {
                world.later(after_ms, effect.clone());
            }
        }
        self.0.changed();
        match fate.answer_ms {
            // What is due at the same instant as the answer has come before it.
            Some(ms) => sleep(Duration::from_millis(ms + 1)).await,
            None => std::future::pending().await,
        }
    }

    fn sample(&self) -> UsageSample {
        let mut world = self.0.lock();
        let known = !world.steps.happens("a meter is lost", 10);
        let meter = |n| {
            if known {
                Meter::Known(n)
            } else {
                Meter::Unknown
            }
        };
        let seconds = world.now_ms() / 1_000;
        UsageSample {
            taken_at_unix_ms: world.wall_ms(),
            usage: Usage {
                cpu_core_ms: meter(seconds * 10),
                memory_mib_s: meter(seconds * 64),
                net_rx_bytes: meter(seconds),
                net_tx_bytes: meter(seconds),
            },
        }
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn name(&self) -> &str {
        "sandbox"
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        Err(BackendError::Host {
            what: "the totals are configured".to_owned(),
            hint: String::new(),
            source: None,
        })
    }

    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        let lease = spec.lease;
        self.0.alive().await;
        let (fate, mute) = {
            let mut world = self.0.lock();
            let name = world.name(lease);
            let phase = world.phase_on_disk(lease);
            world.saw(|| format!("backend: provision {name} with {phase:?} on disk"));
            world.require(
                Invariant::IntentBeforeInstance,
                phase == Some(Phase::Provisioning),
                || format!("{name} is provisioned with {phase:?} on disk"),
            );
            let mute = !world.is_settling && world.steps.happens("an instance is mute", 4);
            if mute {
                world.fault("instance-mute");
            }
            (Self::fate(&mut world, "provision"), mute)
        };
        let valid_to_unix_s = spec.valid_to_unix_s;
        self.follow(
            &fate,
            Effect::Make {
                lease,
                valid_to_unix_s,
                mute,
            },
        )
        .await;
        self.0.alive().await;
        let mut world = self.0.lock();
        let made = world.machines.of(lease).map(Machine::instance);
        let name = world.name(lease);
        world.saw(|| {
            format!(
                "backend: answers the provision of {name}, errs {}",
                fate.errs
            )
        });
        match made {
            Some(instance) if !fate.errs => Ok(instance),
            _ if world.steps.happens("an error says full", 30) => Err(BackendError::Full {
                lease,
                what: "memory".to_owned(),
            }),
            _ => Err(unknown(lease, "provision")),
        }
    }

    async fn inspect(&self, lease: LeaseId) -> Result<Option<Instance>, BackendError> {
        self.0.alive().await;
        let world = self.0.lock();
        Ok(world.machines.of(lease).map(Machine::instance))
    }

    async fn list(&self) -> Result<Vec<Instance>, BackendError> {
        self.0.alive().await;
        let (fault, wait_ms) = {
            let mut world = self.0.lock();
            let wait_ms = world.steps.delay_ms("a list takes", 1, 400);
            let fault = if world.is_settling {
                0
            } else {
                world.steps.choose("list", 100)
            };
            (fault, wait_ms)
        };
        match fault {
            0..70 => sleep(Duration::from_millis(wait_ms)).await,
            70..80 => {
                self.0.lock().fault("list-fails");
                sleep(Duration::from_millis(wait_ms)).await;
                return Err(BackendError::Host {
                    what: "the list cannot be had".to_owned(),
                    hint: String::new(),
                    source: None,
                });
            }
            80..95 => {
                let mut world = self.0.lock();
                world.fault("list-of-the-past");
                return Ok(world
                    .machines
                    .at(world.now_ms().saturating_sub(LIST_LAG_MS)));
            }
            _ => {
                self.0.lock().fault("list-hangs");
                std::future::pending::<()>().await;
            }
        }
        self.0.alive().await;
        let world = self.0.lock();
        Ok(world.machines.at(world.now_ms()))
    }

    async fn sample(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.0.alive().await;
        let fault = {
            let mut world = self.0.lock();
            if world.is_settling {
                0
            } else {
                world.steps.choose("sample", 100)
            }
        };
        match fault {
            0..85 => Ok(self.sample()),
            85..93 => {
                self.0.lock().fault("sample-fails");
                Err(unknown(lease, "sample"))
            }
            _ => {
                self.0.lock().fault("sample-hangs");
                std::future::pending().await
            }
        }
    }

    async fn watch(
        &self,
        lease: LeaseId,
        patience: Duration,
    ) -> Result<InstanceState, BackendError> {
        self.0.alive().await;
        let exited = {
            let mut world = self.0.lock();
            if !world.is_settling && world.steps.happens("watch", 5) {
                world.fault("watch-fails");
                return Err(unknown(lease, "watch"));
            }
            world
                .machines
                .of(lease)
                .map(|machine| machine.exited.subscribe())
        };
        let Some(mut exited) = exited else {
            return Ok(InstanceState::Gone);
        };
        let state = match timeout(patience, exited.wait_for(|exited| *exited)).await {
            Ok(Ok(_)) => InstanceState::Exited,
            Ok(Err(_)) => InstanceState::Gone,
            Err(_) => InstanceState::Running,
        };
        self.0.alive().await;
        Ok(state)
    }

    async fn terminate(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.0.alive().await;
        let fate = {
            let mut world = self.0.lock();
            let name = world.name(lease);
            let phase = world.phase_on_disk(lease);
            world.saw(|| format!("backend: terminate {name} with {phase:?} on disk"));
            let is_announced = matches!(
                phase,
                None | Some(Phase::Draining { .. } | Phase::Closed { .. })
            );
            world.require(Invariant::DrainBeforeTermination, is_announced, || {
                format!("{name} is terminated with {phase:?} on disk")
            });
            Self::fate(&mut world, "terminate")
        };
        self.follow(&fate, Effect::Remove { lease }).await;
        self.0.alive().await;
        let is_gone = self.0.lock().machines.of(lease).is_none();
        if fate.errs || !is_gone {
            return Err(unknown(lease, "terminate"));
        }
        Ok(self.sample())
    }
}

fn unknown(lease: LeaseId, what: &str) -> BackendError {
    BackendError::Unknown {
        lease,
        what: what.to_owned(),
    }
}

/// The doors of the machines.
pub(super) struct SimulatedDoors(pub(super) Shared);

#[async_trait]
impl Doors for SimulatedDoors {
    async fn greets(&self, ssh: SocketAddr) -> bool {
        sleep(Duration::from_millis(5)).await;
        let greets = {
            let world = self.0.lock();
            let mut running = world.machines.running.iter();
            running.any(|machine| machine.ssh == ssh && !machine.mute && !*machine.exited.borrow())
        };
        if !greets {
            sleep(Duration::from_secs(10)).await;
        }
        self.0.alive().await;
        greets
    }
}

/// The id of a lease in the words of the market.
pub(super) fn market_id(lease: LeaseId) -> units::LeaseId {
    units::LeaseId(lease.0)
}

/// A handle that a backend is given as.
pub(super) fn backend(world: &Shared) -> Arc<dyn Backend> {
    Arc::new(FaultyBackend(world.clone()))
}
