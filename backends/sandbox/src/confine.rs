//! What an instance's first process gives up before it becomes the agent; all it starts inherits it.
//!
//! Order: limits, capabilities, Landlock, seccomp, because each step needs calls that the next one takes away. With
//! `no_new_privs` nothing comes back: no set-user-id program in an image gains anything.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, Scope,
};
use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
        configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};
use souk_backend::Resources;

use crate::{
    AGENT_TASKS,
    stage::{AtStage, StageError},
    syscalls,
};

/// Descriptors of one process. Half of the host's hard limit, where that is lower, stays.
const MAX_DESCRIPTORS: u64 = 16_384;

/// Memory that may be locked; locked memory cannot be reclaimed under pressure.
const MAX_LOCKED_BYTES: u64 = 8 << 20;

/// Bytes in POSIX message queues, which the kernel holds outside of any process.
const MAX_QUEUED_BYTES: u64 = 819_200;

/// Signals that may be queued; each is kernel memory.
const MAX_PENDING_SIGNALS: u64 = 4_096;

/// The newest Landlock interface that the rules were written for; older kernels get what they know.
const LANDLOCK: ABI = ABI::V7;

/// How far the kernel's OOM killer prefers an instance over the host's own processes, of 1,000.
const OOM_SCORE: &str = "500";

/// Sets the limits that hold for each process, and, since the tenant's uid is counted by user namespace, the number of
/// processes of the whole instance.
pub(crate) fn limit(resources: &Resources, memory_is_enforced: bool) -> Result<(), StageError> {
    let stage = "setting limits";
    let tasks = resources.max_processes.saturating_add(AGENT_TASKS);
    let mut limits = vec![
        (Resource::Nproc, u64::from(tasks)),
        (Resource::Nofile, MAX_DESCRIPTORS),
        (Resource::Core, 0),
        (Resource::Memlock, MAX_LOCKED_BYTES),
        (Resource::Msgqueue, MAX_QUEUED_BYTES),
        (Resource::Sigpending, MAX_PENDING_SIGNALS),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
    ];
    if !memory_is_enforced {
        limits.push((Resource::Data, u64::from(resources.memory_mib) << 20));
    }
    for (resource, wanted) in limits {
        let host = getrlimit(resource).maximum;
        // The kernel counts descriptors on their way through sockets by user, and refuses more to whoever is past its own
        // limit. A tenant with the node's uid stops far below the node's, which still hands some to the next keeper.
        let host = match resource {
            Resource::Nofile => host.map(|host| host / 2),
            _ => host,
        };
        let hard = host.map_or(wanted, |host| host.min(wanted));
        let both = Rlimit {
            current: Some(hard),
            maximum: Some(hard),
        };
        setrlimit(resource, both).at(stage)?;
    }
    Ok(())
}

/// Makes the instance one of the first that the kernel ends when the host runs out of memory. The caller has still the
/// ids that it was started with, since it owns no file of `/proc` after changing them.
pub(crate) fn offer_to_oom_killer() {
    // Best effort: a node that runs at a higher score already may not lower it.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
}

/// Empties every capability set but for `kept`, which the next program receives through the ambient set.
pub(crate) fn drop_capabilities(kept: CapabilitySet) -> Result<(), StageError> {
    let stage = "dropping capabilities";
    let all = capabilities(None).at(stage)?;
    // What is to be inherited must still be in the bounding set when it is named.
    let inheritable = kept;
    set_capabilities(None, CapabilitySets { inheritable, ..all }).at(stage)?;
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        match remove_capability_from_bounding_set(one) {
            // The first number that the kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            removed => removed.at(stage)?,
        }
    }
    clear_ambient_capability_set().at(stage)?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable,
    };
    set_capabilities(None, sets).at(stage)?;
    for one in kept.iter() {
        configure_capability_in_ambient_set(one, true).at(stage)?;
    }
    Ok(())
}

/// Closes every file outside of the present root but the agent's program, device files outside of `/dev`, and, where
/// the kernel can, signals and abstract sockets to the outside. A kernel without Landlock leaves all as it is: the
/// namespaces stand on their own, and this is the second wall.
pub(crate) fn landlock(agent: Option<BorrowedFd<'_>>) -> Result<(), StageError> {
    let stage = "restricting with Landlock";
    let refused = || std::io::Error::from_raw_os_error(libc::EPERM);
    let root = PathFd::new("/").map_err(|_| refused()).at(stage)?;
    let dev = PathFd::new("/dev").map_err(|_| refused()).at(stage)?;
    let everything = AccessFs::from_all(LANDLOCK);
    let devices = AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev;
    let restrict = || {
        Ruleset::default()
            .handle_access(everything)?
            .scope(Scope::from_all(LANDLOCK))?
            .create()?
            .add_rules(agent.map(|agent| {
                let rule = PathBeneath::new(agent, AccessFs::Execute | AccessFs::ReadFile);
                Ok::<_, landlock::RulesetError>(rule)
            }))?
            .add_rule(PathBeneath::new(root, everything & !devices))?
            .add_rule(PathBeneath::new(dev, AccessFs::IoctlDev))?
            .restrict_self()
    };
    let restricted: Result<_, landlock::RulesetError> = restrict();
    restricted.map(|_| ()).map_err(|_| refused()).at(stage)
}

/// Installs the system call filters. Nothing after it may need a call that they refuse.
pub(crate) fn filter_calls() -> Result<(), StageError> {
    let stage = "filtering system calls";
    set_no_new_privs(true).at(stage)?;
    let invalid = || std::io::Error::from_raw_os_error(libc::EINVAL);
    let programs = syscalls::filters().map_err(|_| invalid()).at(stage)?;
    for program in &programs {
        seccompiler::apply_filter(program)
            .map_err(|_| invalid())
            .at(stage)?;
    }
    Ok(())
}
