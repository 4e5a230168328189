//! How a lease gets its instance: checked, given room and a slot, written down, and started.
//!
//! ```text
//!  find ─nothing─► check ─► room, slot, port ─► intent on disk ─► keeper ─► up
//!    │ runs: that one                                                └ failed: what it left is removed
//!    └ another call starts it: wait for that
//! ```
//!
//! Threat: a node that is killed in between. The intent is on the disk before anything of the lease is, and the lock in its folder
//! tells whether a keeper lives.

use std::{
    collections::HashSet,
    fs::File,
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{Mode, OFlags};
use souk_backend::{BackendError, Instance, InstanceState, LeaseId, LeaseSpec, Limit, Resources};

use super::{Found, Inner, instance, lock, not_up, open_agent, remove_remains, unknown, warn_of};
use crate::{
    clock::unix_ms,
    order::{host, order_keeper},
    process,
    state::LeaseDir,
    uids,
    wire::{self, Failure, Folders, Launch, Order, Outcome},
};

/// How long a keeper may take to answer its order; longer than it gives the agent.
const START_WITHIN: Duration = Duration::from_secs(15);

impl Inner {
    pub(super) fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        self.reap_keepers();
        self.in_turn(spec.lease, || self.provision_now(spec))
    }

    fn provision_now(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        let lease = spec.lease;
        match self.find(lease)? {
            Found::Present(instance) if instance.state == InstanceState::Running => {
                return Ok(instance);
            }
            Found::Present(_) => return Err(not_up(lease, "it has ended already")),
            Found::Unreadable(_, e) => return Err(unknown(lease, "reading its state", e)),
            Found::Starting => return self.wait_started(lease),
            Found::Nothing => {}
        }
        let closed = self.state.closed(lease);
        if closed
            .map_err(|e| unknown(lease, "reading its last sample", e))?
            .is_some()
        {
            return Err(not_up(lease, "it was terminated already"));
        }
        self.refuse_what_cannot_be(spec)?;
        let dir = self.state.lease(lease);
        let order = self.admit(spec, &dir)?;
        let started = self.launch(&order, &dir);
        if started.is_err() {
            remove_remains(lease, &dir, &order.launch.cgroup)?;
        }
        started
    }

    fn refuse_what_cannot_be(&self, spec: &LeaseSpec) -> Result<(), BackendError> {
        let unsupported = |what: String| {
            Err(BackendError::Unsupported {
                lease: spec.lease,
                what,
            })
        };
        if let Some(order) = &spec.evidence {
            return Err(BackendError::NoTee {
                lease: spec.lease,
                tee: order.tee,
            });
        }
        self.rootfs(spec.image)?;
        let enforced = self.enforced();
        if let Some(limit) = spec.required_limits.iter().find(|l| !enforced.contains(l)) {
            return unsupported(format!("an enforced limit on {limit:?}").to_lowercase());
        }
        if spec.valid_to_unix_s <= unix_ms() / 1_000 {
            return unsupported("an end that has passed".to_owned());
        }
        for (amount, least, name) in [
            // The kernel takes no quota below one hundredth of a core.
            (spec.resources.cpu_millicores, 10, "millicores"),
            (spec.resources.memory_mib, 16, "MiB of memory"),
            (spec.resources.disk_mib, 1, "MiB of disk"),
            (spec.resources.max_processes, 1, "processes"),
        ] {
            if amount < least {
                return unsupported(format!("{amount} {name}; the least is {least}"));
            }
        }
        Ok(())
    }

    /// Finds room for a lease and writes down that it is about to be started.
    fn admit(&self, spec: &LeaseSpec, dir: &LeaseDir) -> Result<Admitted, BackendError> {
        let lease = spec.lease;
        let failed = |e| host("cannot write the state of a lease", self.state.path(), e);
        let _admission = lock(&self.admission);
        let mut used = spec.resources;
        let mut taken = HashSet::new();
        let mut hidden = 0;
        for other in self.state.leases().map_err(failed)? {
            let other = self.state.lease(other);
            match other.intent() {
                Ok(None) => {}
                Ok(Some(intent)) => {
                    used = add(used, intent.spec.resources);
                    taken.insert(intent.slot);
                }
                // What it has of the machine is unknown here; whoever sells keeps books of that, too.
                Err(error) => {
                    warn_of(&other, &error);
                    hidden += 1;
                }
            }
        }
        if let Some(what) = exceeds(&used, &self.config.total) {
            let what = what.to_owned();
            return Err(BackendError::Full { lease, what });
        }
        let slot = free_slot(&taken, hidden)
            .map_err(|e| host("cannot see whose processes run", self.state.path(), e))?;
        let Some(slot) = slot else {
            let what = format!("{} leases at one time", uids::MAX_LEASES);
            return Err(BackendError::Full { lease, what });
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .map_err(|e| host("cannot open a port on the loopback", self.state.path(), e))?;
        let port = listener.local_addr().map_err(failed)?.port();
        let launch = Launch {
            spec: spec.clone(),
            slot,
            port,
            ids: uids::plan(slot),
            folders: Folders {
                image: self.rootfs(spec.image)?,
                scaffold: dir.scaffold(),
            },
            cgroup: self.cgroups.lease(lease),
            memory_is_enforced: self.enforced().contains(&Limit::Memory),
            overlay: self.ability.overlay,
        };
        dir.create().map_err(failed)?;
        let held = dir.try_lock().map_err(failed)?;
        let held = held.ok_or_else(|| not_up(lease, "another driver starts it"))?;
        dir.write_intent(&launch).map_err(failed)?;
        Ok(Admitted {
            launch,
            lock: held,
            listener,
        })
    }

    fn launch(&self, admitted: &Admitted, dir: &LeaseDir) -> Result<Instance, BackendError> {
        let launch = &admitted.launch;
        let lease = launch.spec.lease;
        let io = |what: &'static str| move |e| host(what, self.state.path(), e);
        let agent = open_agent(&self.config.agent)?;
        let folder = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)
        };
        let own = folder(dir.path()).map_err(io("cannot open the folder of a lease"))?;
        let descriptors = [
            admitted.lock.try_clone().map(OwnedFd::from),
            admitted.listener.try_clone().map(OwnedFd::from),
            Ok(agent),
            Ok(own),
        ];
        let descriptors: Vec<OwnedFd> = descriptors
            .into_iter()
            .collect::<io::Result<_>>()
            .map_err(io("cannot hand over descriptors"))?;
        let order = Order::Launch(Box::new(launch.clone()));
        let (child, socket) = order_keeper(&self.config.keeper, &order, &descriptors, START_WITHIN)
            .map_err(io("cannot start a keeper"))?;
        lock(&self.keepers).push(child);
        match wire::receive::<Outcome>(&socket) {
            Ok((Outcome::Up(host_key), _)) => {
                Ok(instance(launch, InstanceState::Running, host_key))
            }
            Ok((Outcome::Failed { why, log }, _)) => Err(start_error(lease, why, &log)),
            Ok((Outcome::Probed(_), _)) => Err(not_up(lease, "its keeper answered another order")),
            Err(e) => {
                self.stop_keeper(dir, lease)?;
                Err(not_up(lease, &format!("its keeper did not answer: {e}")))
            }
        }
    }

    /// Waits for the end of a start that an earlier call, perhaps of an earlier process, has begun.
    fn wait_started(&self, lease: LeaseId) -> Result<Instance, BackendError> {
        let until = Instant::now() + START_WITHIN;
        loop {
            match self.find(lease)? {
                Found::Present(instance) => return Ok(instance),
                Found::Unreadable(_, e) => return Err(unknown(lease, "reading its state", e)),
                Found::Nothing => return Err(not_up(lease, "an earlier start failed")),
                Found::Starting if Instant::now() >= until => {
                    return Err(BackendError::Unknown {
                        lease,
                        what: "waiting for an earlier start".to_owned(),
                    });
                }
                Found::Starting => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

struct Admitted {
    launch: Launch,
    lock: File,
    listener: TcpListener,
}

/// The first slot that no lease has. Of `hidden` leases it is not known which they have: as many free ones are left out, and all
/// whose users run something.
fn free_slot(taken: &HashSet<u32>, hidden: usize) -> io::Result<Option<u32>> {
    let mut free = (0..uids::MAX_LEASES).filter(|slot| !taken.contains(slot));
    if hidden == 0 {
        return Ok(free.next());
    }
    let running = process::users()?;
    Ok(free
        .filter(|slot| !uids::are_among(*slot, &running))
        .nth(hidden))
}

fn add(a: Resources, b: Resources) -> Resources {
    Resources {
        cpu_millicores: a.cpu_millicores.saturating_add(b.cpu_millicores),
        memory_mib: a.memory_mib.saturating_add(b.memory_mib),
        disk_mib: a.disk_mib.saturating_add(b.disk_mib),
        max_processes: a.max_processes.saturating_add(b.max_processes),
    }
}

/// The first resource of which more is used than there is.
fn exceeds(used: &Resources, total: &Resources) -> Option<&'static str> {
    [
        (used.cpu_millicores, total.cpu_millicores, "CPU"),
        (used.memory_mib, total.memory_mib, "memory"),
        (used.disk_mib, total.disk_mib, "disk"),
        (used.max_processes, total.max_processes, "processes"),
    ]
    .into_iter()
    .find_map(|(used, total, name)| (used > total).then_some(name))
}

fn start_error(lease: LeaseId, why: Failure, log: &str) -> BackendError {
    match why {
        Failure::Stage(stage) => BackendError::Host {
            what: format!("lease {lease} could not be started: {}", stage.stage),
            hint: "see docs/sandbox.md for what the machine has to allow".to_owned(),
            source: Some(io::Error::from_raw_os_error(stage.errno)),
        },
        Failure::Exited | Failure::Late if log.is_empty() => not_up(lease, &why.to_string()),
        Failure::Exited | Failure::Late => not_up(lease, &format!("{why}: {}", log.trim())),
    }
}
