//! From a single-threaded keeper to the first process of an instance.
//!
//! ```text
//!  keeper  clone ──────────────► child in new namespaces, without identity
//!          maps, cgroup ──go──►  ids, death signal, network, mounts, limits, confinement ──► exec agent
//!          reads errors  ◄────── closed by exec, or one StageError
//! ```
//!
//! The keeper has one thread, so its clone may allocate and call what it likes until `exec`; the node itself, which
//! has many threads, only ever starts the keeper as a program.

use std::{
    convert::Infallible,
    ffi::CStr,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    fs::{Mode, OFlags},
    io::{FdFlags, fcntl_setfd},
    process::{Pid, Signal, set_parent_process_death_signal, setsid, umask},
    thread::{
        CapabilitySet, Gid, Uid, UnshareFlags, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};
use souk_backend::agent::{AGENT_ARG, CONFIG_FD};

use crate::{
    TENANT_ID, confine,
    rootfs::{self, OpenFolders, Plan},
    stage::{AtStage, StageError},
    wire::{Folders, Ids, Launch},
};

/// Descriptors of the agent; [`CONFIG_FD`] comes before them.
pub(crate) const LISTENER_FD: RawFd = CONFIG_FD + 1;
pub(crate) const CONTROL_FD: RawFd = CONFIG_FD + 2;
const PROGRAM_FD: RawFd = CONFIG_FD + 3;
const ERRORS_FD: RawFd = CONFIG_FD + 4;
const FIRST_CLOSED_FD: RawFd = CONFIG_FD + 5;

/// Both sides of a clone.
pub(crate) enum Cloned {
    /// In the parent.
    Parent { pid: Pid, pidfd: OwnedFd },
    /// In the child, which is process 1 of its namespace.
    Child,
}

/// Forks into new user, mount, process, network, IPC and host name namespaces.
pub(crate) fn clone_into_namespaces() -> io::Result<Cloned> {
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_PIDFD
        | libc::SIGCHLD;
    let mut pidfd: RawFd = -1;
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM this is a fork: the child has a copy of the stack it returns on. The keeper has one
    // thread, so no lock is held by another. The kernel writes the descriptor into a live variable.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, null, &raw mut pidfd, null, null) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        None => Ok(Cloned::Child),
        Some(pid) => {
            // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
    }
}

/// Writes the user and group maps of a cloned child; done by its parent.
pub(crate) fn map_ids(pid: Pid, ids: Ids) -> Result<(), StageError> {
    let path = |file| format!("/proc/{}/{file}", pid.as_raw_nonzero());
    let (users, groups) = match ids {
        Ids::One { uid, gid } => {
            // Without this, an ordinary user may not map a group.
            fs::write(path("setgroups"), "deny").at("closing setgroups")?;
            (
                format!("{TENANT_ID} {uid} 1\n"),
                format!("{TENANT_ID} {gid} 1\n"),
            )
        }
        Ids::Two { base } => {
            let map = format!("0 {base} 1\n{TENANT_ID} {} 1\n", base + 1);
            (map.clone(), map)
        }
    };
    fs::write(path("uid_map"), users).at("mapping the user")?;
    fs::write(path("gid_map"), groups).at("mapping the group")
}

/// What the child turns into the agent.
pub(crate) struct Entry<'a> {
    pub(crate) launch: &'a Launch,
    pub(crate) agent: BorrowedFd<'a>,
    pub(crate) listener: BorrowedFd<'a>,
    pub(crate) config: BorrowedFd<'a>,
    pub(crate) control: BorrowedFd<'a>,
    pub(crate) log: BorrowedFd<'a>,
    pub(crate) errors: BorrowedFd<'a>,
    pub(crate) go: BorrowedFd<'a>,
}

/// Becomes the agent, or reports why not and exits.
pub(crate) fn become_agent(entry: &Entry<'_>) -> ! {
    let (error, errors) = match prepare(entry) {
        Err(error) => (error, entry.errors),
        Ok(arranged) => {
            let Err(error) = finish(arranged.agent, entry.launch.ids);
            (error, arranged.errors)
        }
    };
    if let Ok(bytes) = serde_json::to_vec(&error) {
        // The keeper may be gone; then nobody is left to tell.
        let _ = rustix::io::write(errors, &bytes);
    }
    // SAFETY: ends this process without running what the keeper registered to run at its own exit.
    unsafe { libc::_exit(1) }
}

fn prepare(entry: &Entry<'_>) -> Result<Arranged, StageError> {
    let folders = join(entry.go, entry.launch.ids, &entry.launch.folders)?;
    let resources = &entry.launch.spec.resources;
    rootfs::enter(&Plan {
        folders,
        disk_mib: resources.disk_mib,
        overlay: entry.launch.overlay,
        tenant: TENANT_ID,
    })?;
    confine::limit(resources, entry.launch.memory_is_enforced)?;
    umask(Mode::from(0o022));
    arrange_descriptors(entry)
}

fn finish(agent: BorrowedFd<'_>, ids: Ids) -> Result<Infallible, StageError> {
    die_with_keeper()?;
    confine::drop_capabilities(match ids {
        Ids::One { .. } => CapabilitySet::empty(),
        Ids::Two { .. } => CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL,
    })?;
    confine::landlock(Some(agent))?;
    reset_signals();
    confine::filter_calls()?;
    execute(agent)
}

/// Opens the folders, waits for the maps, takes on the ids, and gives the namespaces but the mounts their contents.
/// Shared with the probe.
pub(crate) fn join(
    go: BorrowedFd<'_>,
    ids: Ids,
    folders: &Folders,
) -> Result<OpenFolders, StageError> {
    let folders = OpenFolders::open(folders)?;
    confine::offer_to_oom_killer();
    let mut byte = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(go, &mut byte));
    if read.at("waiting for the keeper")? == 0 {
        return Err(rustix::io::Errno::PIPE).at("waiting for the keeper");
    }
    let id = match ids {
        Ids::One { .. } => TENANT_ID,
        Ids::Two { .. } => {
            set_thread_groups(&[]).at("leaving groups")?;
            0
        }
    };
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_res_gid(gid, gid, gid).at("taking the group id")?;
    set_thread_res_uid(uid, uid, uid).at("taking the user id")?;
    die_with_keeper()?;
    setsid().at("opening a session")?;
    // Only now, so that the instance sees its own group as the root of all groups.
    // SAFETY: changes no descriptor table and nothing that other threads share.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }.at("unsharing cgroups")?;
    rustix::system::sethostname(b"souk").at("setting the host name")?;
    loopback_up().at("starting the loopback interface")?;
    Ok(folders)
}

/// The keeper measures and ends the instance, so the instance must not outlive it.
fn die_with_keeper() -> Result<(), StageError> {
    set_parent_process_death_signal(Some(Signal::KILL)).at("binding to the keeper")
}

fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).expect("a small flag");
    // SAFETY: the request is a live ifreq with a name that ends in NUL, as this call wants it.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Descriptors of a child that has only those of the agent left, and these two, which close on exec.
struct Arranged {
    agent: BorrowedFd<'static>,
    errors: BorrowedFd<'static>,
}

/// Puts the agent's descriptors where it expects them and closes all others.
fn arrange_descriptors(entry: &Entry<'_>) -> Result<Arranged, StageError> {
    let stage = "handing over descriptors";
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.at(stage)?;
    let wanted = [
        (null.as_fd(), 0, false),
        (entry.log, 1, false),
        (entry.log, 2, false),
        (entry.config, CONFIG_FD, false),
        (entry.listener, LISTENER_FD, false),
        (entry.control, CONTROL_FD, false),
        (entry.agent, PROGRAM_FD, true),
        (entry.errors, ERRORS_FD, true),
    ];
    // First out of the way of the targets, so that none is overwritten before it was moved.
    let parked = wanted
        .iter()
        .map(|(fd, _, _)| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_CLOSED_FD))
        .collect::<Result<Vec<_>, _>>()
        .at(stage)?;
    for (from, (_, to, close_on_exec)) in parked.iter().zip(wanted) {
        // SAFETY: the numbers up to FIRST_CLOSED_FD belong to this process, which is about to become another program:
        // whatever owned them in the keeper's memory is never used or dropped, as this function's callers diverge.
        if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
            return Err(io::Error::last_os_error()).at(stage);
        }
        // SAFETY: dup2 has just opened it.
        let target = unsafe { BorrowedFd::borrow_raw(to) };
        let flags = if close_on_exec {
            FdFlags::CLOEXEC
        } else {
            FdFlags::empty()
        };
        fcntl_setfd(target, flags).at(stage)?;
    }
    drop(parked);
    std::mem::forget(null);
    close_from(FIRST_CLOSED_FD).at(stage)?;
    // SAFETY: both were opened above and are never closed but by exec.
    let borrow = |fd| unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(Arranged {
        agent: borrow(PROGRAM_FD),
        errors: borrow(ERRORS_FD),
    })
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: callers are about to exec, or have just started: no descriptor from here on is in use.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Rust programs ignore SIGPIPE, and ignored signals pass through exec to every program of the tenant.
fn reset_signals() {
    // SAFETY: the default action needs no handler; the process has one thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn execute(agent: BorrowedFd<'_>) -> Result<Infallible, StageError> {
    let argument = std::ffi::CString::new(AGENT_ARG).expect("no NUL inside");
    let arguments: [*const libc::c_char; 3] =
        [c"souk-agent".as_ptr(), argument.as_ptr(), std::ptr::null()];
    let environment: [&CStr; 4] = [
        c"PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
        c"HOME=/home/souk",
        c"USER=souk",
        c"LANG=C.UTF-8",
    ];
    let mut variables: Vec<*const libc::c_char> = environment.iter().map(|v| v.as_ptr()).collect();
    variables.push(std::ptr::null());
    // SAFETY: both lists hold pointers to live strings that end in NUL, and end with a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            agent.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            variables.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Err(io::Error::last_os_error()).at("starting the agent")
}
