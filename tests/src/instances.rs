//! Instances of a provider, seen from outside: by the keeper that each of them has.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The instances below the data folder of a node. They outlive a node on purpose, and end here with their fixture.
pub(crate) struct Instances(PathBuf);

impl Instances {
    pub(crate) fn below(folder: &Path) -> Self {
        Self(fs::canonicalize(folder).expect("the folder is there"))
    }

    /// The leases that instances are kept for, each as often as there are keepers for it, in rising order.
    #[cfg(feature = "proof")]
    pub(crate) fn leases(&self) -> Vec<String> {
        let mut leases: Vec<_> = self
            .keepers()
            .into_iter()
            .filter_map(|pid| self.files(pid).find_map(|path| lease_in(&path)))
            .collect();
        leases.sort_unstable();
        leases
    }

    /// Process ids of the keepers, each of which dies with its instance and takes it along, in rising order.
    pub(crate) fn keepers(&self) -> Vec<u32> {
        let processes = fs::read_dir("/proc").expect("Linux has it");
        let mut keepers: Vec<_> = processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| self.is_keeper(*pid))
            .collect();
        keepers.sort_unstable();
        // The first process of an instance is a copy of its keeper until it has become the agent.
        let all = keepers.clone();
        keepers.retain(|pid| parent(*pid).is_none_or(|parent| !all.contains(&parent)));
        keepers
    }

    /// Whether a process is a keeper that holds a file below the folder. Processes may end while they are looked at.
    fn is_keeper(&self, pid: u32) -> bool {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if arguments.split(|byte| *byte == 0).nth(1) != Some(b"sandbox-keeper") {
            return false;
        }
        self.files(pid).next().is_some()
    }

    /// What a process holds open below the folder.
    fn files(&self, pid: u32) -> impl Iterator<Item = PathBuf> {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten();
        descriptors
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.starts_with(&self.0))
    }
}

/// The parent of a process; none where it is gone.
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// The lease whose folder a path lies in: an id in hex.
#[cfg(feature = "proof")]
fn lease_in(path: &Path) -> Option<String> {
    let names = path.components().rev();
    names
        .filter_map(|name| name.as_os_str().to_str())
        .find(|name| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

impl Drop for Instances {
    fn drop(&mut self) {
        for keeper in self.keepers() {
            let pid = i32::try_from(keeper).expect("a process id");
            // SAFETY: kill takes no pointers; the process was just seen to be a keeper of this fixture.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}
