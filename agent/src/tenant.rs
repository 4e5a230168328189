//! Starting processes as the tenant: what the agent has and the tenant must not is dropped on the way.
//!
//! Order in the new process, between fork and exec: own session, controlling terminal, every descriptor above 2
//! close-on-exec, scheduling and OOM scores, then the ids of the tenant and with them every capability. The system-call
//! filter and the resource limits were put on the agent by the driver and are inherited.

use std::{
    ffi::CStr,
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
};

use rustix::{
    pipe::{PipeFlags, pipe_with},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt},
};
use souk_backend::agent::{AgentConfig, TenantIds};

use crate::{
    children::{Child, Children},
    meters::Meters,
    sftp::SFTP_ARG,
    ssh::{PtyRequest, WindowSize},
};

/// Nice value of the tenant's processes relative to the agent, so that a busy tenant can still log in.
const NICE: libc::c_int = 5;

/// `oom_score_adj` of the tenant's processes: they go before the agent when memory runs out.
pub(crate) const OOM_SCORE_ADJ: &str = "1000";

/// Shells that are tried, in this order.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];

/// Where programs are looked for if the driver gave no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts the tenant's processes.
#[derive(Clone)]
pub(crate) struct Tenant {
    user: String,
    home: String,
    shell: &'static str,
    path: String,
    switch_to: Option<TenantIds>,
    children: Children,
    meters: Meters,
}

/// What to run.
pub(crate) enum Task<'a> {
    /// A login shell.
    Shell,
    /// A command line, given to the shell.
    Command(&'a std::ffi::OsStr),
}

/// A running process and the agent's ends of its standard streams.
pub(crate) struct Piped {
    pub(crate) child: Child,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// A running process on a terminal of its own.
pub(crate) struct OnTerminal {
    pub(crate) child: Child,
    pub(crate) master: OwnedFd,
}

impl Tenant {
    /// Whose processes are started, and how.
    pub(crate) fn new(
        config: &AgentConfig,
        children: Children,
        meters: Meters,
    ) -> io::Result<Self> {
        let shell = SHELLS
            .into_iter()
            .find(|shell| Path::new(shell).exists())
            .ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, "the image has neither bash nor sh")
            })?;
        Ok(Self {
            user: config.user.clone(),
            home: config.home.clone(),
            shell,
            path: std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned()),
            switch_to: config.switch_to,
            children,
            meters,
        })
    }

    /// Runs a task with pipes as its standard streams.
    pub(crate) fn pipe(&self, task: &Task<'_>, env: &[(String, String)]) -> io::Result<Piped> {
        let (stdin_theirs, stdin) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stdout, stdout_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, stderr_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut command = self.shell_command(task, env);
        command
            .stdin(Stdio::from(stdin_theirs))
            .stdout(Stdio::from(stdout_theirs))
            .stderr(Stdio::from(stderr_theirs));
        Ok(Piped {
            child: self.spawn(command, Terminal::None)?,
            stdin,
            stdout,
            stderr,
        })
    }

    /// Runs a task on a new terminal.
    pub(crate) fn terminal(
        &self,
        task: &Task<'_>,
        env: &[(String, String)],
        pty: &PtyRequest,
    ) -> io::Result<OnTerminal> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(
            &master,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        pty.modes.apply(&slave)?;
        set_window_size(&master, pty.size)?;
        let mut command = self.shell_command(task, env);
        if let Ok(name) = ptsname(&master, Vec::new()) {
            command.env("SSH_TTY", &*name.to_string_lossy());
        }
        command
            .env("TERM", &pty.term)
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        Ok(OnTerminal {
            child: self.spawn(command, Terminal::Stdin)?,
            master,
        })
    }

    /// Runs the SFTP server: this very program, but as a process of the tenant. The stream carries the protocol; what
    /// is written to its standard error is dropped.
    pub(crate) fn sftp(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = self.command("/proc/self/exe", &[]);
        command
            .arg(SFTP_ARG)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok((self.spawn(command, Terminal::None)?, ours))
    }

    fn shell_command(&self, task: &Task<'_>, env: &[(String, String)]) -> Command {
        let mut command = self.command(self.shell, env);
        match task {
            // A leading dash in the name is how a shell learns that it is a login shell.
            Task::Shell => {
                let name = self.shell.rsplit('/').next().unwrap_or(self.shell);
                command.arg0(format!("-{name}"));
            }
            Task::Command(line) => {
                command.arg("-c").arg(line);
            }
        }
        command
    }

    fn command(&self, program: &str, env: &[(String, String)]) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .env("HOME", &self.home)
            .env("USER", &self.user)
            .env("LOGNAME", &self.user)
            .env("SHELL", self.shell)
            .env("PATH", &self.path)
            .current_dir(if Path::new(&self.home).is_dir() {
                &self.home
            } else {
                "/"
            });
        command
    }

    fn spawn(&self, mut command: Command, terminal: Terminal) -> io::Result<Child> {
        let switch_to = self.switch_to;
        // SAFETY: `become_tenant` only makes system calls and touches no memory that another thread could hold locked.
        unsafe {
            command.pre_exec(move || become_tenant(terminal, switch_to));
        }
        let child = self.children.spawn(&mut command)?;
        if switch_to.is_none() {
            child.group().prefer_for_oom();
        }
        self.meters.spawned();
        Ok(child)
    }
}

/// Tells a terminal its size.
pub(crate) fn set_window_size(master: &OwnedFd, size: WindowSize) -> io::Result<()> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    Ok(rustix::termios::tcsetwinsize(
        master,
        rustix::termios::Winsize {
            ws_row: clamp(size.rows),
            ws_col: clamp(size.columns),
            ws_xpixel: clamp(size.width_px),
            ws_ypixel: clamp(size.height_px),
        },
    )?)
}

/// Which terminal controls the new session.
#[derive(Clone, Copy)]
enum Terminal {
    None,
    /// The one on standard input.
    Stdin,
}

/// Runs in the new process between fork and exec, so it makes system calls and nothing else.
fn become_tenant(terminal: Terminal, switch_to: Option<TenantIds>) -> io::Result<()> {
    rustix::process::setsid()?;
    if matches!(terminal, Terminal::Stdin) {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    // Close-on-exec, not close: the standard library reports a failed exec over a descriptor of its own.
    // SAFETY: close_range takes no pointers, and with this flag it closes nothing yet.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if marked == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: nice takes no pointers. Its failure costs priority only.
    unsafe { libc::nice(NICE) };
    if let Some(ids) = switch_to {
        prefer_for_oom();
        drop_ids(ids)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Raises the OOM score of this process while it may still write to its own file in `/proc`. Best effort.
fn prefer_for_oom() {
    use rustix::fs::{CWD, Mode, OFlags, openat};
    const FILE: &CStr = c"/proc/self/oom_score_adj";
    if let Ok(file) = openat(CWD, FILE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = rustix::io::write(&file, OOM_SCORE_ADJ.as_bytes());
    }
}

/// Becomes the tenant for good. Raw system calls, because those of the C library take locks to reach all threads.
fn drop_ids(ids: TenantIds) -> io::Result<()> {
    let check = |result: libc::c_long| match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    };
    // SAFETY: an empty list of groups needs no pointer.
    check(unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) })?;
    // SAFETY: these calls take plain numbers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, ids.gid, ids.gid, ids.gid) })?;
    // SAFETY: as above. Leaving uid 0 for all three ids clears the permitted, effective and ambient capabilities.
    check(unsafe { libc::syscall(libc::SYS_setresuid, ids.uid, ids.uid, ids.uid) })
}
