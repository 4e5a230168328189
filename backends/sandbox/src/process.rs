//! What `/proc` tells of processes, as the host sees them.

use std::{collections::HashSet, fs, io, time::Duration};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// A process, told apart from a later one with the same number by its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pid: i32,
    /// Clock ticks after boot.
    started: u64,
}

impl ProcessId {
    /// This process.
    pub(crate) fn own() -> io::Result<Self> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let stat = Stat::read(pid).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self {
            pid,
            started: stat.started,
        })
    }

    /// A handle on the process, or `None` where it is gone.
    pub(crate) fn open(self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Read after opening: if the start fits, the handle is of that process, whatever came before.
        let same = Stat::read(self.pid).is_some_and(|s| s.started == self.started);
        same.then_some(handle)
    }
}

/// CPU time and memory of a tree of processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeUsage {
    /// Of the living, and of the dead whom somebody waited for.
    pub(crate) cpu_us: u64,
    /// Memory that belongs to one process alone.
    pub(crate) private_bytes: u64,
}

/// Adds up a process and all below it; `None` where the kernel does not list children, or the root is gone.
pub(crate) fn tree_usage(root: Pid) -> Option<TreeUsage> {
    let page = u64::try_from(rustix::param::page_size()).ok()?;
    let mut total = TreeUsage {
        cpu_us: 0,
        private_bytes: 0,
    };
    let mut seen = HashSet::new();
    let mut open = vec![root.as_raw_nonzero().get()];
    Stat::read(open[0])?;
    fs::metadata(format!("/proc/{0}/task/{0}/children", open[0])).ok()?;
    while let Some(pid) = open.pop() {
        if !seen.insert(pid) {
            continue;
        }
        // A process that ended meanwhile shows up in its parent's sums at the next reading.
        let Some(stat) = Stat::read(pid) else {
            continue;
        };
        total.cpu_us += stat.cpu_us;
        total.private_bytes += private_pages(pid).unwrap_or(0) * page;
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            open.extend(
                children
                    .split_whitespace()
                    .filter_map(|c| c.parse::<i32>().ok()),
            );
        }
    }
    Some(total)
}

/// The fields of `/proc/<pid>/stat` that are used here (proc_pid_stat(5)).
struct Stat {
    started: u64,
    cpu_us: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(line: &str) -> Option<Self> {
        // The command name is the tenant's choice and may hold blanks and parentheses.
        let (_, rest) = line.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks: u64 = [14, 15, 16, 17]
            .into_iter()
            .map(number)
            .sum::<Option<_>>()?;
        let per_second = rustix::param::clock_ticks_per_second();
        Some(Self {
            started: number(22)?,
            cpu_us: ticks * 1_000_000 / per_second,
        })
    }
}

/// Resident pages less those shared with files or others.
fn private_pages(pid: i32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut fields = statm.split(' ').skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    Some(resident.saturating_sub(shared))
}

/// Every user whose processes there are now.
pub(crate) fn users() -> io::Result<HashSet<u32>> {
    let mut users = HashSet::new();
    for entry in fs::read_dir("/proc")? {
        // What is no process, or none any more, has no status.
        let status = fs::read(entry?.path().join("status")).unwrap_or_default();
        users.extend(users_in(&status));
    }
    Ok(users)
}

/// The real, effective, saved and file system user of a process, out of its status (proc_pid_status(5)).
fn users_in(status: &[u8]) -> Vec<u32> {
    // The command name above them is the tenant's choice and need not be text; a line of its own it cannot begin.
    let status = String::from_utf8_lossy(status);
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let ids = ids.unwrap_or_default().split_whitespace();
    ids.filter_map(|id| id.parse().ok()).collect()
}

/// Waits until the process of a handle has exited, or `timeout` passed; tells which.
pub(crate) fn wait_exit(handle: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    let timeout =
        rustix::event::Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&timeout)))? == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_cannot_forge_the_fields_behind_it() {
        let line = "42 (a) R 1 1 (b) S 1 42 42 0 -1 4194560 1 0 0 0 30 10 5 5 20 0 1 0 777 1000 10";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.started, 777);
        assert_eq!(stat.cpu_us, 500_000);
    }

    #[test]
    fn a_command_name_that_is_no_text_does_not_hide_the_users_of_a_process() {
        assert_eq!(
            users_in(b"Name:\t\xff\\nUid:\nUid:\t7\t8\t7\t9\n"),
            [7_u32, 8, 7, 9]
        );
        assert!(users_in(b"").is_empty());
        let own = rustix::process::geteuid().as_raw();
        assert!(users().unwrap().contains(&own));
    }

    #[test]
    fn a_process_is_not_mistaken_for_another_with_its_number() {
        let own = ProcessId::own().unwrap();
        assert!(own.open().is_some());
        let earlier = ProcessId {
            started: own.started - 1,
            ..own
        };
        assert!(earlier.open().is_none());
    }
}
