//! Every process below the agent: starting, reaping, ending.
//!
//! As the first process of its namespace the agent inherits orphans, so one place reaps everything. Exit states go to
//! whoever started the process; those of orphans are dropped. A process is started under the same lock that reaping
//! takes, so that none is reaped before it is known.

use std::{
    collections::HashMap,
    io,
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process_group, wait},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, oneshot},
};

/// Processes that the agent has started for the tenant and that run at one time. The process limit of the lease is the
/// tenant's own bound; this one keeps the table finite where no such limit is enforced.
const MAX_CHILDREN: usize = 512;

/// All children of the agent.
#[derive(Clone)]
pub(crate) struct Children(Arc<Shared>);

struct Shared {
    table: Mutex<HashMap<Pid, oneshot::Sender<WaitStatus>>>,
    reaped: Notify,
}

/// A process of the tenant, leader of a session and a process group of its own.
pub(crate) struct Child {
    group: Group,
    exit: oneshot::Receiver<WaitStatus>,
    /// Kept, because the receiver yields it once.
    ended: Option<Option<WaitStatus>>,
}

/// The process group of a child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group(Pid);

impl Children {
    /// Begins to reap; every process must be started through [`Children::spawn`] from here on.
    pub(crate) fn start() -> io::Result<Self> {
        let mut ended = signal(SignalKind::child())?;
        let children = Self(Arc::new(Shared {
            table: Mutex::default(),
            reaped: Notify::new(),
        }));
        let reaper = children.clone();
        tokio::spawn(async move {
            loop {
                reaper.reap();
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(children)
    }

    /// Starts a process, which must make itself the leader of its process group.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut table = self.table();
        if table.len() >= MAX_CHILDREN {
            return Err(io::Error::other("too many processes are running"));
        }
        let pid = Pid::from_child(&command.spawn()?);
        let (tx, exit) = oneshot::channel();
        table.insert(pid, tx);
        Ok(Child {
            group: Group(pid),
            exit,
            ended: None,
        })
    }

    /// Asks everything to end, waits until it has or until the grace is over, and kills what is left.
    pub(crate) async fn end_all(&self, grace: Duration) {
        for signal in [Signal::HUP, Signal::TERM, Signal::CONT] {
            self.signal_all(signal);
        }
        let all_gone = async {
            loop {
                let reaped = self.0.reaped.notified();
                if self.table().is_empty() {
                    return;
                }
                reaped.await;
            }
        };
        let _ = tokio::time::timeout(grace, all_gone).await;
        self.signal_all(Signal::KILL);
    }

    /// As the first process: everything else in the namespace. Elsewhere only the groups that were started here, since
    /// the rest of the machine is not ours.
    fn signal_all(&self, signal: Signal) {
        if getpid() == Pid::INIT {
            // SAFETY: kill takes no pointers; -1 is everybody whom the first process may signal, itself excepted.
            unsafe { libc::kill(-1, signal.as_raw()) };
        } else {
            for pid in self.table().keys() {
                Group(*pid).signal(signal);
            }
        }
    }

    fn reap(&self) {
        let mut table = self.table();
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    if let Some(waiting) = table.remove(&pid) {
                        // Nobody waits any more where the connection is gone.
                        let _ = waiting.send(status);
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => break,
            }
        }
        drop(table);
        self.0.reaped.notify_waiters();
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Pid, oneshot::Sender<WaitStatus>>> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Its process group.
    pub(crate) fn group(&self) -> Group {
        self.group
    }

    /// Waits until it has ended; `None` where its state was lost.
    pub(crate) async fn ended(&mut self) -> Option<WaitStatus> {
        if let Some(status) = self.ended {
            return status;
        }
        let status = (&mut self.exit).await.ok();
        self.ended = Some(status);
        status
    }
}

impl Group {
    /// Signals every process of the group; one that is gone is no error.
    pub(crate) fn signal(self, signal: Signal) {
        let _ = kill_process_group(self.0, signal);
    }

    /// Raises the score by which the kernel chooses whom to kill when memory runs out, so that it is not the agent.
    /// Works where the process has the uid of the agent; elsewhere the process has done it itself.
    pub(crate) fn prefer_for_oom(self) {
        let path = format!("/proc/{}/oom_score_adj", self.0.as_raw_pid());
        let _ = std::fs::write(path, crate::tenant::OOM_SCORE_ADJ);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::process::CommandExt as _,
        process::Stdio,
    };

    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", script])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// One test for all, since only one reaper may run in a process.
    #[tokio::test]
    async fn children_report_their_states_and_end_when_asked() {
        let children = Children::start().expect("signals work");

        let mut quick: Vec<Child> = (0..20)
            .map(|n| {
                children
                    .spawn(&mut shell(&format!("exit {n}")))
                    .expect("spawns")
            })
            .collect();
        for (n, child) in quick.iter_mut().enumerate() {
            let status = child.ended().await.expect("status arrives");
            assert_eq!(status.exit_status(), Some(i32::try_from(n).expect("small")));
        }

        let missing = children.spawn(&mut Command::new("/nowhere/at/all"));
        assert_eq!(
            missing.err().map(|e| e.kind()),
            Some(io::ErrorKind::NotFound)
        );

        let mut polite = children.spawn(&mut shell("sleep 1000")).expect("spawns");
        let (says, writes) = io::pipe().expect("a pipe");
        let mut deaf = shell("trap '' HUP TERM; echo deaf; sleep 1000 >/dev/null");
        let mut deaf = children.spawn(deaf.stdout(writes)).expect("spawns");
        let said = BufReader::new(says).lines().next().expect("a line");
        assert_eq!(said.expect("read"), "deaf");
        children.end_all(Duration::from_millis(300)).await;
        assert!(polite.ended().await.expect("status").signaled());
        let signal = deaf.ended().await.expect("status").terminating_signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()));
    }
}
