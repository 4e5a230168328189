//! Whether this machine lets this user make what a lease needs, found by making it once.
//!
//! A throw-away keeper goes through every step of an instance but the agent. Versions and settings are only read to
//! explain a refusal, with the one command that lifts it.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Resource, Rlimit, setrlimit},
    thread::CapabilitySet,
};
use serde::{Deserialize, Serialize};
use souk_backend::{BackendError, Resources};

use crate::{
    TENANT_ID, confine,
    enter::{self, Cloned},
    rootfs::{self, Plan},
    stage::{AtStage, StageError},
    uids,
    wire::{Folders, Ids},
};

/// An AppArmor profile that lets the `souk` program make user namespaces, for systems that let only named ones.
pub const APPARMOR_PROFILE: &str = include_str!("../apparmor/souk");

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Leases can be carried.
    Able(Ability),
    /// They cannot.
    Refused(StageError),
}

/// What leases can have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ability {
    /// An image can be the lower layer of an overlay.
    pub(crate) overlay: bool,
    /// The limit on processes counts those of the lease alone.
    pub(crate) counts_processes: bool,
}

/// Runs in a keeper. An empty folder stands for the image.
pub(crate) fn try_all(folders: &Folders) -> Report {
    let with = |overlay| try_once(folders, overlay);
    match with(true).or_else(|first| with(false).map_err(|_| first)) {
        Ok(ability) => Report::Able(ability),
        Err(refused) => Report::Refused(refused),
    }
}

fn try_once(folders: &Folders, overlay: bool) -> Result<Ability, StageError> {
    let stage = "preparing the trial";
    let (go_read, go_write) = pipe_with(PipeFlags::CLOEXEC).at(stage)?;
    let (told_read, told_write) = pipe_with(PipeFlags::CLOEXEC).at(stage)?;
    let ids = uids::plan(0);
    let pid = match enter::clone_into_namespaces().at("making namespaces")? {
        Cloned::Parent { pid, .. } => pid,
        Cloned::Child => {
            drop((go_write, told_read));
            let tried = trial(go_read.as_fd(), folders, overlay, ids);
            let told = serde_json::to_vec(&tried).unwrap_or_default();
            // A keeper that is gone needs no answer.
            let _ = rustix::io::write(&told_write, &told);
            // SAFETY: ends this copy of the keeper without running what the keeper does at its own end.
            unsafe { libc::_exit(0) }
        }
    };
    drop((told_write, go_read));
    let mapped = enter::map_ids(pid, ids).and_then(|()| {
        rustix::io::write(&go_write, &[1]).at(stage)?;
        Ok(())
    });
    drop(go_write);
    let told = io::read_to_string(fs::File::from(told_read)).at(stage)?;
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).at(stage)?;
    mapped?;
    serde_json::from_str(&told)
        .map_err(|_| io::Error::from_raw_os_error(libc::EPIPE))
        .at("hearing from the trial")?
}

fn trial(
    go: BorrowedFd<'_>,
    folders: &Folders,
    overlay: bool,
    ids: Ids,
) -> Result<Ability, StageError> {
    let folders = enter::join(go, ids, folders)?;
    rootfs::enter(&Plan {
        folders,
        disk_mib: 1,
        overlay,
        tenant: TENANT_ID,
    })?;
    let counts_processes = counts_processes().at("trying the limit on processes")?;
    let small = Resources {
        cpu_millicores: 1_000,
        memory_mib: 64,
        disk_mib: 1,
        max_processes: 1,
    };
    confine::limit(&small, false)?;
    confine::drop_capabilities(CapabilitySet::empty())?;
    confine::landlock(None)?;
    confine::filter_calls()?;
    Ok(Ability {
        overlay,
        counts_processes,
    })
}

/// Whether one process more is refused where one is the limit, and allowed where two are. Node, keeper and this
/// process are three of one user, so the second shows that only the namespace's own are counted.
fn counts_processes() -> io::Result<bool> {
    let can_fork_within = |limit| {
        let limits = Rlimit {
            current: Some(limit),
            maximum: Some(64),
        };
        setrlimit(Resource::Nproc, limits)?;
        fork_once()
    };
    Ok(!can_fork_within(1)? && can_fork_within(2)?)
}

fn fork_once() -> io::Result<bool> {
    // SAFETY: this process has one thread, and the child calls nothing but _exit.
    match unsafe { libc::fork() } {
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        pid if pid > 0 => {
            let child = rustix::process::Pid::from_raw(pid);
            rustix::process::waitpid(child, rustix::process::WaitOptions::empty())?;
            Ok(true)
        }
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            e => Err(e),
        },
    }
}

/// The error that an operator reads where the trial was refused.
pub(crate) fn explain(refused: StageError) -> BackendError {
    let hint = hint(|setting| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(setting)).ok()?;
        text.trim().parse().ok()
    });
    BackendError::Host {
        what: format!(
            "this machine refuses the namespaces of a lease ({})",
            refused.stage
        ),
        hint,
        source: Some(io::Error::from_raw_os_error(refused.errno)),
    }
}

/// What lifts the refusal, by the settings that are known to cause it.
fn hint(setting: impl Fn(&str) -> Option<u64>) -> String {
    let advice = if setting("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        "AppArmor lets only named programs make them; allow it with\n  \
         sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n\
         or for this program alone with the profile that is shipped as backends/sandbox/apparmor/souk"
    } else if setting("kernel/unprivileged_userns_clone") == Some(0) {
        "allow them with\n  sudo sysctl -w kernel.unprivileged_userns_clone=1"
    } else if setting("user/max_user_namespaces") == Some(0) {
        "allow them with\n  sudo sysctl -w user.max_user_namespaces=15000"
    } else {
        "inside a container, start that container with\n  \
         --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined"
    };
    advice.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_command_that_lifts_it() {
        for (name, value, command) in [
            (
                "kernel/apparmor_restrict_unprivileged_userns",
                1,
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            (
                "kernel/unprivileged_userns_clone",
                0,
                "sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            (
                "user/max_user_namespaces",
                0,
                "sysctl -w user.max_user_namespaces=",
            ),
        ] {
            let hint = hint(|setting| (setting == name).then_some(value));
            assert!(hint.contains(command), "{hint}");
        }
        assert!(hint(|_| None).contains("--security-opt seccomp=unconfined"));
    }
}
