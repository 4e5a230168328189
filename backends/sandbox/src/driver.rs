//! The node's side: leases into keepers and back. The states of a lease, as the disk tells them, are drawn in `docs/sandbox.md`.
//!
//! [`starting`] holds how one is started.
//!
//! Threat: a node that is killed between any two acts. What a lease has is found again from its folder and the lock in it,
//! never from a process number, and nothing of a start that failed is left.

mod starting;

use std::{
    collections::HashMap,
    error::Error,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rustix::{
    fs::{Mode, OFlags},
    process::{Signal, pidfd_send_signal},
};
use souk_backend::{
    Backend, BackendError, Capabilities, HostKey, ImageHash, Instance, InstanceState, LeaseId,
    LeaseSpec, Limit, Resources, Usage, UsageSample,
};
use souk_image::Store;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    USER,
    cgroup::{CgroupParent, LeaseCgroup},
    clock::unix_ms,
    order::{ANSWER_WITHIN, KeeperProgram, ask, host, probe, raise_descriptor_limit},
    probe::Ability,
    process,
    state::{LeaseDir, StateDir, is_lost},
    wire::{Ask, Launch},
};

/// Between two looks at an instance whose keeper's record is lost.
const UNKNOWN_KEEPER_PAUSE: Duration = Duration::from_secs(1);

/// What a [`Sandbox`] needs to know.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Folder for the state of leases; it is made where it is missing, and used by one node at a time.
    pub state: PathBuf,
    /// The image store.
    pub images: Store,
    /// The static agent program; readable and executable by everybody where the node runs as root.
    pub agent: PathBuf,
    /// How keepers are started.
    pub keeper: KeeperProgram,
    /// All that leases may have together.
    pub total: Resources,
    /// Whether images may be laid under an overlay where the machine can; without it the instance writes to
    /// `/home`, `/tmp`, `/run`, `/var` and `/dev/shm` only.
    pub overlay: bool,
}

/// Carries leases in namespaces of this machine.
#[derive(Clone, Debug)]
pub struct Sandbox(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: SandboxConfig,
    state: StateDir,
    cgroups: CgroupParent,
    ability: Ability,
    /// Calls about one lease take turns; calls about different ones run side by side. An entry lives as long as a call.
    turns: Mutex<HashMap<LeaseId, Arc<Mutex<()>>>>,
    /// Held from the choice of a slot until the intent that takes it is on disk, and by whoever asks for the lock of a
    /// lease, so that two who ask do not take each other for its keeper.
    admission: Mutex<()>,
    keepers: Mutex<Vec<Child>>,
}

impl Sandbox {
    /// Opens the state and tries once what a lease needs.
    ///
    /// # Errors
    /// [`BackendError::Host`] where the machine refuses, within about a second, with the command that allows it.
    pub fn open(config: SandboxConfig) -> Result<Self, BackendError> {
        let state = StateDir::open(config.state.clone()).map_err(|source| BackendError::Host {
            what: format!("cannot use the state folder {}", config.state.display()),
            hint: "check its owner and the space on its disk".to_owned(),
            source: Some(source),
        })?;
        open_agent(&config.agent)?;
        raise_descriptor_limit()
            .map_err(|e| host("cannot raise the limit on open files", state.path(), e))?;
        let mut ability = probe(&config.keeper, state.path())?;
        ability.overlay &= config.overlay;
        Ok(Self(Arc::new(Inner {
            cgroups: CgroupParent::find(),
            config,
            state,
            ability,
            turns: Mutex::default(),
            admission: Mutex::new(()),
            keepers: Mutex::new(vec![]),
        })))
    }

    async fn state_of(&self, lease: LeaseId) -> Result<InstanceState, BackendError> {
        let now = self.inspect(lease).await?;
        Ok(now.map_or(InstanceState::Gone, |instance| instance.state))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        lease: LeaseId,
        call: impl FnOnce(&Inner) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let inner = Arc::clone(&self.0);
        let called = tokio::task::spawn_blocking(move || call(&inner)).await;
        called.unwrap_or_else(|e| {
            Err(BackendError::Unknown {
                lease,
                what: format!("the call did not finish: {e}"),
            })
        })
    }
}

#[async_trait]
impl Backend for Sandbox {
    fn name(&self) -> &'static str {
        "sandbox"
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        Ok(Capabilities {
            arch: std::env::consts::ARCH.to_owned(),
            total: self.0.config.total,
            enforced: self.0.enforced(),
            shared_kernel: true,
            egress: false,
            tee: None,
            images: self.0.images()?,
        })
    }

    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        let spec = spec.clone();
        self.blocking(spec.lease, move |inner| inner.provision(&spec))
            .await
    }

    async fn inspect(&self, lease: LeaseId) -> Result<Option<Instance>, BackendError> {
        self.blocking(lease, move |inner| inner.inspect(lease))
            .await
    }

    async fn list(&self) -> Result<Vec<Instance>, BackendError> {
        self.blocking(LeaseId([0; 16]), Inner::list).await
    }

    async fn sample(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.blocking(lease, move |inner| inner.sample(lease)).await
    }

    async fn watch(
        &self,
        lease: LeaseId,
        timeout: Duration,
    ) -> Result<InstanceState, BackendError> {
        let keeper = self
            .blocking(lease, move |inner| inner.keeper(lease))
            .await?;
        if let Some(keeper) = keeper {
            let unknown = |e| unknown(lease, "watching the keeper", io::Error::from(e));
            // SAFETY: an OwnedFd is open, and the same descriptor, for as long as it lives.
            let exit = unsafe { AsyncFd::register_with_interest(keeper, Interest::READABLE) };
            let exit = exit.map_err(unknown)?;
            // Both ends lead to the same question.
            let _ = tokio::time::timeout(timeout, exit.readable()).await;
            return self.state_of(lease).await;
        }
        let now = self.state_of(lease).await?;
        if now == InstanceState::Running {
            // Nobody knows which process keeps it, so its end is looked for.
            tokio::time::sleep(timeout.min(UNKNOWN_KEEPER_PAUSE)).await;
        }
        Ok(now)
    }

    async fn terminate(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.blocking(lease, move |inner| inner.terminate(lease))
            .await
    }
}

/// What the disk and the lock tell of a lease.
enum Found {
    Nothing,
    /// A keeper lives, but has no instance to show yet.
    Starting,
    Present(Instance),
    /// It has or had an instance, but a record of it is lost: it goes on, and can be ended, but not be reached anew.
    Unreadable(InstanceState, io::Error),
}

impl Inner {
    fn enforced(&self) -> Vec<Limit> {
        let mut enforced = self.cgroups.enforced();
        enforced.push(Limit::Disk);
        if self.ability.counts_processes && !enforced.contains(&Limit::Processes) {
            enforced.push(Limit::Processes);
        }
        enforced.sort();
        enforced
    }

    fn images(&self) -> Result<Vec<ImageHash>, BackendError> {
        self.config.images.list().map_err(|e| BackendError::Host {
            what: e.to_string(),
            hint: "check the image store".to_owned(),
            source: e.source().map(|cause| io::Error::other(cause.to_string())),
        })
    }

    fn rootfs(&self, image: ImageHash) -> Result<PathBuf, BackendError> {
        let path = self.config.images.path(image);
        let path = path.map_err(|_| BackendError::NoSuchImage(image))?;
        // A keeper has another working folder.
        std::path::absolute(path).map_err(|e| host("cannot name the image", self.state.path(), e))
    }

    fn inspect(&self, lease: LeaseId) -> Result<Option<Instance>, BackendError> {
        self.reap_keepers();
        match self.find(lease)? {
            Found::Present(instance) => Ok(Some(instance)),
            Found::Unreadable(state, error) => {
                warn_of(&self.state.lease(lease), &error);
                Ok(Some(unreachable_instance(lease, state)))
            }
            Found::Nothing | Found::Starting => Ok(None),
        }
    }

    /// A lease that cannot be looked at is listed, too: it may run, and whoever finds that nobody owns it has it ended.
    fn list(&self) -> Result<Vec<Instance>, BackendError> {
        let leases = self.state.leases();
        let leases = leases.map_err(|e| host("cannot list leases", self.state.path(), e))?;
        let found = leases.into_iter().filter_map(|lease| {
            self.inspect(lease).unwrap_or_else(|error| {
                warn_of(&self.state.lease(lease), &error);
                Some(unreachable_instance(lease, InstanceState::Running))
            })
        });
        Ok(found.collect())
    }

    /// Looks at one lease. What a start has left that failed, or was killed, before it had an instance, is removed.
    fn find(&self, lease: LeaseId) -> Result<Found, BackendError> {
        let dir = self.state.lease(lease);
        let failed = |e| unknown(lease, "reading its state", e);
        let _admission = lock(&self.admission);
        if !dir.exists() {
            return Ok(Found::Nothing);
        }
        // The lock is asked before the records: what is written under it is complete once it is free.
        let held = match dir.try_lock() {
            // Another call has removed it just now.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            held => held.map_err(failed)?,
        };
        let state = if held.is_some() {
            InstanceState::Exited
        } else {
            InstanceState::Running
        };
        let (intent, record) = match (dir.intent(), dir.instance()) {
            (Ok(intent), Ok(record)) => (intent, record),
            (Err(e), _) | (_, Err(e)) if is_lost(&e) => return Ok(Found::Unreadable(state, e)),
            (Err(e), _) | (_, Err(e)) => return Err(failed(e)),
        };
        match (intent, record) {
            (Some(launch), Some(record)) => {
                Ok(Found::Present(instance(&launch, state, record.host_key)))
            }
            _ if state == InstanceState::Running => Ok(Found::Starting),
            (launch, _) => {
                remove_remains(lease, &dir, &self.group_of(lease, launch))?;
                Ok(Found::Nothing)
            }
        }
    }

    fn sample(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        let dir = self.state.lease(lease);
        if let Ok(answer) = ask(&dir, &Ask::Sample) {
            return Ok(answer);
        }
        let group = self.group(lease, &dir)?;
        self.last_sample(lease, &dir, &group)
    }

    /// The sample that was kept of a lease without a living keeper; where it is lost, what else is known.
    fn last_sample(
        &self,
        lease: LeaseId,
        dir: &LeaseDir,
        group: &LeaseCgroup,
    ) -> Result<UsageSample, BackendError> {
        let kept = unless_lost(dir, dir.last_sample()).and_then(|last| match last {
            Some(last) => Ok(Some(last)),
            None => unless_lost(dir, self.state.closed(lease)),
        });
        let kept = kept.map_err(|e| unknown(lease, "reading its last sample", e))?;
        Ok(kept.unwrap_or_else(|| {
            let mut usage = Usage::UNKNOWN;
            // The group outlives a keeper that was killed, and what it counted is whole.
            if let Some(cpu_us) = group.cpu_us() {
                usage.cpu_core_ms = souk_backend::Meter::Known(cpu_us / 1_000);
            }
            UsageSample {
                taken_at_unix_ms: unix_ms(),
                usage,
            }
        }))
    }

    /// The control group of a lease, found without its intent where that is lost.
    fn group(&self, lease: LeaseId, dir: &LeaseDir) -> Result<LeaseCgroup, BackendError> {
        let intent = unless_lost(dir, dir.intent());
        let intent = intent.map_err(|e| unknown(lease, "reading its state", e))?;
        Ok(self.group_of(lease, intent))
    }

    /// The control group that an intent names, which an earlier life of the node may have made elsewhere; without one, where it
    /// is made now.
    fn group_of(&self, lease: LeaseId, intent: Option<Launch>) -> LeaseCgroup {
        intent.map_or_else(|| self.cgroups.lease(lease), |launch| launch.cgroup)
    }

    fn terminate(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.in_turn(lease, || self.terminate_now(lease))
    }

    fn terminate_now(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        let dir = self.state.lease(lease);
        if !dir.exists() {
            return self.last_sample(lease, &dir, &self.group_of(lease, None));
        }
        let asked = ask(&dir, &Ask::Terminate);
        self.stop_keeper(&dir, lease)?;
        let group = self.group(lease, &dir)?;
        let last = match asked {
            Ok(last) => last,
            Err(_) => self.last_sample(lease, &dir, &group)?,
        };
        let closed = self.state.close(lease, &last);
        closed.map_err(|e| unknown(lease, "keeping its last sample", e))?;
        remove_remains(lease, &dir, &group)?;
        self.reap_keepers();
        Ok(last)
    }

    /// Makes sure that no keeper of a lease lives, and with it no instance.
    fn stop_keeper(&self, dir: &LeaseDir, lease: LeaseId) -> Result<(), BackendError> {
        let failed = |e| unknown(lease, "stopping its keeper", e);
        let until = Instant::now() + ANSWER_WITHIN;
        let patience = Instant::now() + Duration::from_millis(500);
        while self.has_keeper(dir).map_err(failed)? {
            // One that was asked to end is given a moment to do so.
            if Instant::now() >= patience
                && let Some(keeper) = self.keeper(lease)?
            {
                // It fails where the process is gone, which is what was wanted.
                let _ = pidfd_send_signal(&keeper, Signal::KILL);
                process::wait_exit(&keeper, ANSWER_WITHIN).map_err(failed)?;
            }
            if Instant::now() >= until {
                return Err(failed(io::ErrorKind::TimedOut.into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn has_keeper(&self, dir: &LeaseDir) -> io::Result<bool> {
        let _admission = lock(&self.admission);
        Ok(dir.try_lock()?.is_none())
    }

    /// A handle on the living keeper of a lease.
    fn keeper(&self, lease: LeaseId) -> Result<Option<OwnedFd>, BackendError> {
        let dir = self.state.lease(lease);
        let record = unless_lost(&dir, dir.keeper());
        let record = record.map_err(|e| unknown(lease, "reading its state", e))?;
        Ok(record.and_then(|keeper| keeper.process.open()))
    }

    /// Does something about a lease while nobody else does.
    fn in_turn<T>(&self, lease: LeaseId, act: impl FnOnce() -> T) -> T {
        let turn = Arc::clone(lock(&self.turns).entry(lease).or_default());
        let done = {
            let _turn = lock(&turn);
            act()
        };
        drop(turn);
        // Whoever waits for it holds it, too.
        lock(&self.turns).retain(|_, turn| Arc::strong_count(turn) > 1);
        done
    }

    /// Collects keepers of this process that have exited; those of earlier ones belong to the system's first process.
    fn reap_keepers(&self) {
        lock(&self.keepers).retain_mut(|keeper| matches!(keeper.try_wait(), Ok(None)));
    }
}

fn open_agent(path: &Path) -> Result<OwnedFd, BackendError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| BackendError::Host {
        what: format!("cannot open the agent program {}", path.display()),
        hint: "`cargo xtask build` makes it beside souk; or name it as provider.agent in souk.toml"
            .to_owned(),
        source: Some(e.into()),
    })
}

fn remove_remains(lease: LeaseId, dir: &LeaseDir, group: &LeaseCgroup) -> Result<(), BackendError> {
    let removed = group.remove().and_then(|()| dir.remove());
    removed.map_err(|e| unknown(lease, "removing what it left", e))
}

/// What was read of a lease; nothing where that is lost, which asking again would not mend.
fn unless_lost<T>(dir: &LeaseDir, read: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match read {
        Err(error) if is_lost(&error) => {
            warn_of(dir, &error);
            Ok(None)
        }
        read => read,
    }
}

fn warn_of(dir: &LeaseDir, error: &(dyn Error + 'static)) {
    tracing::warn!(folder = %dir.path().display(), error, "the state of a lease cannot be read; other leases go on");
}

/// An instance of which no more is known than that it is there; nothing answers at its address.
fn unreachable_instance(lease: LeaseId, state: InstanceState) -> Instance {
    Instance {
        lease,
        state,
        ssh: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        user: USER.to_owned(),
        host_key: HostKey([0; 32]),
        valid_to_unix_s: 0,
        quote: None,
    }
}

fn instance(launch: &Launch, state: InstanceState, host_key: HostKey) -> Instance {
    Instance {
        lease: launch.spec.lease,
        state,
        ssh: SocketAddr::from((Ipv4Addr::LOCALHOST, launch.port)),
        user: USER.to_owned(),
        host_key,
        valid_to_unix_s: launch.spec.valid_to_unix_s,
        quote: None,
    }
}

fn not_up(lease: LeaseId, what: &str) -> BackendError {
    BackendError::NotUp {
        lease,
        what: what.to_owned(),
    }
}

fn unknown(lease: LeaseId, doing: &str, error: io::Error) -> BackendError {
    BackendError::Unknown {
        lease,
        what: format!("{doing}: {error}"),
    }
}

/// A poisoned lock guards no data of its own; what it orders is on disk.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
