//! Control groups of leases, version 1 and version 2, under whatever part of the hierarchy this process may write.
//!
//! ```text
//!  <own group>/souk/<lease>      cpu: quota   memory: limit, no swap   pids: limit
//! ```
//!
//! Root may nearly always make them; an ordinary user only where a part of the tree was delegated (`systemd-run --user
//! --scope -p Delegate=yes`). What can be enforced is therefore found by making a group, and not by asking who we are.
//! The keeper of a lease stays outside of the lease's group, so that a tenant who exhausts it cannot touch the keeper.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use souk_backend::{LeaseId, Limit, Resources};

use crate::AGENT_TASKS;

/// Period of the CPU quota in microseconds; the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// Where the node itself goes, in a version 2 group that hands its controllers on. The systemd units name it too (`DelegateSubgroup=`):
/// nothing can start in the group itself while leases run below it.
const NODE: &str = "souk-node";

/// How long the kernel may take to let go of a group whose processes were killed.
const REMOVAL: Duration = Duration::from_secs(2);

/// Part of the hierarchy, or of one hierarchy of version 1, that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Controller {
    Cpu,
    Cpuacct,
    Memory,
    Pids,
}

impl Controller {
    const ALL: [Self; 4] = [Self::Cpu, Self::Cpuacct, Self::Memory, Self::Pids];

    const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

/// A folder that holds one or more controllers of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    path: PathBuf,
    v2: bool,
    controllers: Vec<Controller>,
}

/// Where groups of leases can be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CgroupParent {
    places: Vec<Place>,
}

impl CgroupParent {
    /// Finds, or makes, the folders in which this process can make groups. Empty where it can make none.
    pub(crate) fn find() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let found = own_places(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let places = found.into_iter().filter_map(prepare).collect();
        Self { places }
    }

    /// The limits that groups made here enforce.
    pub(crate) fn enforced(&self) -> Vec<Limit> {
        let has = |wanted| self.places.iter().any(|p| p.controllers.contains(&wanted));
        [
            (Controller::Cpu, Limit::Cpu),
            (Controller::Memory, Limit::Memory),
            (Controller::Pids, Limit::Processes),
        ]
        .into_iter()
        .filter_map(|(controller, limit)| has(controller).then_some(limit))
        .collect()
    }

    /// The group of a lease, which may or may not exist.
    pub(crate) fn lease(&self, lease: LeaseId) -> LeaseCgroup {
        let places = self.places.iter().map(|place| Place {
            path: place.path.join(lease.to_string()),
            ..place.clone()
        });
        LeaseCgroup {
            places: places.collect(),
        }
    }
}

/// The group of one lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LeaseCgroup {
    places: Vec<Place>,
}

impl LeaseCgroup {
    /// Makes the group with its limits. Memory and disk share one limit, because the disk is a tmpfs.
    pub(crate) fn create(&self, resources: &Resources) -> io::Result<()> {
        for place in &self.places {
            match fs::create_dir(&place.path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
            for (file, value, optional) in limits(place, resources) {
                match fs::write(place.path.join(file), value) {
                    Err(_) if optional => {}
                    written => written?,
                }
            }
        }
        Ok(())
    }

    /// Moves a process into the group.
    pub(crate) fn attach(&self, pid: i32) -> io::Result<()> {
        self.places
            .iter()
            .try_for_each(|place| fs::write(place.path.join("cgroup.procs"), pid.to_string()))
    }

    /// Whether the group counts the CPU time of all that ever ran in it.
    pub(crate) fn counts_cpu(&self) -> bool {
        self.place_of(Controller::Cpuacct).is_some()
    }

    /// Whether the group counts its memory.
    pub(crate) fn counts_memory(&self) -> bool {
        self.place_of(Controller::Memory).is_some()
    }

    /// CPU time of the group since it was made, in microseconds.
    pub(crate) fn cpu_us(&self) -> Option<u64> {
        let place = self.place_of(Controller::Cpuacct)?;
        if place.v2 {
            let stat = fs::read_to_string(place.path.join("cpu.stat")).ok()?;
            let line = stat.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
            line.trim().parse().ok()
        } else {
            Some(read_number(&place.path.join("cpuacct.usage"))? / 1_000)
        }
    }

    /// Memory in use, in bytes, with the page cache and the tmpfs that belong to the group.
    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        let place = self.place_of(Controller::Memory)?;
        let file = if place.v2 {
            "memory.current"
        } else {
            "memory.usage_in_bytes"
        };
        read_number(&place.path.join(file))
    }

    /// Kills what is in the group and removes it. A group that does not exist is removed already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let until = Instant::now() + REMOVAL;
        for place in &self.places {
            while let Err(e) = fs::remove_dir(&place.path) {
                match e.kind() {
                    io::ErrorKind::NotFound => break,
                    _ if Instant::now() >= until => return Err(e),
                    _ => {
                        kill_members(place);
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        }
        Ok(())
    }

    fn place_of(&self, controller: Controller) -> Option<&Place> {
        self.places
            .iter()
            .find(|p| p.controllers.contains(&controller))
    }
}

/// File, value, and whether a kernel may lack the file.
fn limits(place: &Place, resources: &Resources) -> Vec<(&'static str, String, bool)> {
    let quota_us = u64::from(resources.cpu_millicores) * CPU_PERIOD_US / 1_000;
    let bytes = (u64::from(resources.memory_mib) + u64::from(resources.disk_mib)) << 20;
    let tasks = resources.max_processes.saturating_add(AGENT_TASKS);
    let mut files = vec![];
    for controller in &place.controllers {
        match (controller, place.v2) {
            (Controller::Cpu, false) => {
                files.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), false));
                files.push(("cpu.cfs_quota_us", quota_us.to_string(), false));
            }
            (Controller::Cpu, true) => {
                files.push(("cpu.max", format!("{quota_us} {CPU_PERIOD_US}"), false));
            }
            (Controller::Memory, false) => {
                files.push(("memory.limit_in_bytes", bytes.to_string(), false));
                files.push(("memory.memsw.limit_in_bytes", bytes.to_string(), true));
                files.push(("memory.swappiness", "0".to_owned(), true));
            }
            (Controller::Memory, true) => {
                files.push(("memory.max", bytes.to_string(), false));
                files.push(("memory.swap.max", "0".to_owned(), true));
            }
            (Controller::Pids, _) => files.push(("pids.max", tasks.to_string(), false)),
            (Controller::Cpuacct, _) => {}
        }
    }
    files
}

/// The group of this process in each hierarchy that has a wanted controller.
fn own_places(mountinfo: &str, cgroup: &str) -> Vec<Place> {
    let mut places = vec![];
    for mount in mountinfo.lines().filter_map(Mount::parse) {
        let controllers: Vec<Controller> = if mount.v2 {
            vec![]
        } else {
            let listed = |c: &Controller| mount.options.split(',').any(|o| o == c.name());
            Controller::ALL.into_iter().filter(listed).collect()
        };
        if !mount.v2 && controllers.is_empty() {
            continue;
        }
        let own = cgroup.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            let same = if mount.v2 {
                names.is_empty()
            } else {
                names.split(',').any(|n| n == controllers[0].name())
            };
            same.then_some(path)
        });
        let Some(inside) = own.and_then(|p| Path::new(p).strip_prefix(mount.root).ok()) else {
            continue;
        };
        // A service manager puts a node that starts again where the one before it went.
        let inside = match inside.parent() {
            Some(above) if mount.v2 && inside.ends_with(NODE) => above,
            _ => inside,
        };
        places.push(Place {
            path: Path::new(mount.point).join(inside),
            v2: mount.v2,
            controllers,
        });
    }
    places
}

/// A line of `/proc/self/mountinfo` that mounts a cgroup hierarchy.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    options: &'a str,
    v2: bool,
}

impl<'a> Mount<'a> {
    /// Fields 4 and 5 before the hyphen, type and super options after it (proc_pid_mountinfo(5)).
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let kind = after.next()?;
        let options = after.nth(1)?;
        matches!(kind, "cgroup" | "cgroup2").then_some(Self {
            root,
            point,
            options,
            v2: kind == "cgroup2",
        })
    }
}

/// Makes `souk` below a group of ours, with the controllers that can be had there.
fn prepare(own: Place) -> Option<Place> {
    let path = own.path.join("souk");
    if own.v2 {
        delegate(&own.path);
    }
    match fs::create_dir(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let controllers = if own.v2 {
        delegate(&path);
        let enabled = fs::read_to_string(path.join("cgroup.subtree_control")).unwrap_or_default();
        let is_on = |c: &Controller| enabled.split_whitespace().any(|name| name == c.name());
        let mut on: Vec<_> = Controller::ALL.into_iter().filter(is_on).collect();
        if on.contains(&Controller::Cpu) {
            on.push(Controller::Cpuacct);
        }
        on
    } else {
        own.controllers
    };
    let place = Place {
        path,
        v2: own.v2,
        controllers,
    };
    let usable = !place.controllers.is_empty() && is_writable(&place);
    usable.then_some(place)
}

/// Hands the wanted controllers of a version 2 group to its children. A group with processes may not do so, unless it
/// is the root: then our own process moves to a child first.
fn delegate(group: &Path) {
    let available = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for name in ["cpu", "memory", "pids"] {
        if !available.split_whitespace().any(|a| a == name) {
            continue;
        }
        let enable = || fs::write(group.join("cgroup.subtree_control"), format!("+{name}"));
        if matches!(enable(), Err(e) if e.kind() == io::ErrorKind::ResourceBusy)
            && move_ourselves(group).is_ok()
        {
            // What remains refused is reported by leaving the controller out.
            let _ = enable();
        }
    }
}

fn move_ourselves(group: &Path) -> io::Result<()> {
    let node = group.join(NODE);
    match fs::create_dir(&node) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    fs::write(node.join("cgroup.procs"), std::process::id().to_string())
}

fn is_writable(parent: &Place) -> bool {
    let trial = Place {
        path: parent.path.join(format!("trial-{}", std::process::id())),
        ..parent.clone()
    };
    let group = LeaseCgroup {
        places: vec![trial],
    };
    let small = Resources {
        cpu_millicores: 1_000,
        memory_mib: 64,
        disk_mib: 0,
        max_processes: 16,
    };
    let made = group.create(&small);
    let removed = group.remove();
    made.is_ok() && removed.is_ok()
}

fn kill_members(place: &Place) {
    if place.v2 && fs::write(place.path.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(place.path.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|l| l.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // A process that is gone by now is what was wanted.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_through_a_bind_mounted_root() {
        let mountinfo = "\
30 29 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw\n\
31 29 0:27 /outer /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
32 29 0:28 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
33 29 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let cgroup = "5:pids:/\n4:cpu,cpuacct:/outer/inner\n3:blkio:/x\n0::/user.slice\n";
        let places = own_places(mountinfo, cgroup);
        let paths: Vec<_> = places.iter().map(|p| p.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            [
                "/sys/fs/cgroup/unified/user.slice",
                "/sys/fs/cgroup/cpu,cpuacct/inner",
                "/sys/fs/cgroup/pids/",
            ]
        );
        assert!(places[0].v2 && !places[1].v2);
        assert_eq!(
            places[1].controllers,
            [Controller::Cpu, Controller::Cpuacct]
        );
    }

    #[test]
    fn a_node_that_starts_where_the_one_before_it_went_makes_groups_beside_itself() {
        let mountinfo = "30 29 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        let of = |cgroup| own_places(mountinfo, cgroup)[0].path.clone();
        let unit = Path::new("/sys/fs/cgroup/system.slice/souk.service");
        assert_eq!(of("0::/system.slice/souk.service\n"), unit);
        assert_eq!(of("0::/system.slice/souk.service/souk-node\n"), unit);
    }

    #[test]
    fn version_2_limits_count_disk_as_memory_and_allow_for_the_agent() {
        let tree = tempfile::tempdir().unwrap();
        let parent = CgroupParent {
            places: vec![Place {
                path: tree.path().to_owned(),
                v2: true,
                controllers: Controller::ALL.to_vec(),
            }],
        };
        let group = parent.lease(LeaseId([7; 16]));
        let resources = Resources {
            cpu_millicores: 1_500,
            memory_mib: 64,
            disk_mib: 36,
            max_processes: 100,
        };
        group.create(&resources).unwrap();
        let read = |file| fs::read_to_string(group.places[0].path.join(file)).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!(read("memory.max"), (100_u64 << 20).to_string());
        assert_eq!(read("pids.max"), (100 + AGENT_TASKS).to_string());
        fs::write(
            group.places[0].path.join("cpu.stat"),
            "usage_usec 42\nuser_usec 40\n",
        )
        .unwrap();
        assert_eq!(group.cpu_us(), Some(42));
        assert_eq!(group.memory_bytes(), None);
    }
}
