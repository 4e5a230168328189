//! The process beside each instance, outside of it: it starts the instance, measures it, ends it in time, and outlives
//! the node.
//!
//! ```text
//!  order ──► starting ──Ready──► keeping ──agent gone, asked to terminate, valid_to──► settling ──► final sample, exit
//!               │ failed: Outcome::Failed, nothing is left
//! ```
//!
//! It is the node's own program, started again with a hidden argument, because the node has many threads and a
//! process that forks into namespaces must have one. A crash of the node leaves it alone; its own death kills the
//! instance through the parent death signal, so that no instance runs unmeasured. It holds the lock of the lease.
//!
//! Threat: the tenant sees nothing of it. It is in none of the tenant's namespaces nor in its control group, and what
//! the agent says is bounded and trusted for the host key alone.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, pidfd_send_signal},
};
use souk_backend::{
    HostKey, UsageSample,
    agent::{AgentConfig, AgentMessage, MAX_MESSAGE_BYTES, TenantIds},
};

use crate::{
    HOME, TENANT_ID, USER,
    clock::{ms_since, steady, unix_ms},
    enter::{self, CONTROL_FD, Cloned, Entry, LISTENER_FD},
    meter::Meters,
    probe, process,
    sock_diag::{News, PortWatch},
    stage::{AtStage, StageError},
    state::{InstanceRecord, KeeperRecord, LeaseDir},
    wire::{self, Answer, Ask, Failure, Ids, Launch, Order, Outcome},
};

/// How long an agent may take to its first message.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Between two readings of memory, which has no counter of its own.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// How long past its end a lease may go on before the keeper does what the agent did not.
const END_GRACE: Duration = Duration::from_secs(2);

/// How long the kernel may take to report the last sockets of an instance that is gone.
const SETTLE_WITHIN: Duration = Duration::from_millis(200);

/// The kernel hands socket reports to a work queue; without an open socket to wait for, this is how long it gets.
const REPORT_DELAY: Duration = Duration::from_millis(10);

/// What is kept of the end of the agent's output, for the error of an instance that did not come up.
const LOG_BYTES: usize = 4_096;

/// Times that a sum over processes is taken again when one seems to have been missed.
const RECOUNTS: usize = 3;

/// The main function of a keeper; returns the exit status.
///
/// The order is read from standard input, which must be the driver's socket. The calling process must have one thread.
#[must_use]
pub fn keeper_main() -> i32 {
    let run = || {
        enter::close_from(3)?;
        // Not of the node's terminal or process group. It fails for a group leader, which has its own already.
        let _ = rustix::process::setsid();
        match wire::receive(io::stdin())? {
            (Order::Launch(launch), descriptors) => {
                let given = descriptors
                    .try_into()
                    .map_err(|_| io::ErrorKind::InvalidData)?;
                keep(*launch, given)
            }
            (Order::Probe(folders), _) => report(&Outcome::Probed(probe::try_all(&folders))),
        }
    };
    i32::from(run().is_err())
}

fn report(outcome: &Outcome) -> io::Result<()> {
    wire::send(io::stdin(), outcome, &[] as &[OwnedFd])
}

fn keep(launch: Launch, descriptors: [OwnedFd; 4]) -> io::Result<()> {
    let [lock, listener, agent, folder] = descriptors;
    let dir = LeaseDir::at(format!("/proc/self/fd/{}", folder.as_raw_fd()).into());
    dir.write_keeper(KeeperRecord {
        process: process::ProcessId::own()?,
    })?;
    let asks = listen(&dir)?;
    let watch = PortWatch::open(launch.port).ok();
    let started = start(&launch, &listener, &agent);
    drop((listener, agent));
    let mut instance = match started {
        Ok(running) => running,
        Err(why) => {
            // What is left of the group is removed by the driver, which sees this process end without a final sample.
            let _ = launch.cgroup.remove();
            return report(&Outcome::Failed {
                why: Failure::Stage(why),
                log: String::new(),
            });
        }
    };
    let mut keeper = Keeper {
        ends: end_of(&launch),
        dir,
        launch,
        watch,
        meters: Meters::default(),
        began: Instant::now(),
    };
    match instance.wait_ready() {
        Ok(host_key) => {
            keeper.dir.write_instance(InstanceRecord { host_key })?;
            keeper.sample(Some(&instance));
            // The driver may have been killed by now; its successor finds the record.
            let _ = report(&Outcome::Up(host_key));
        }
        Err(why) => {
            instance.kill();
            instance.reap();
            let _ = keeper.launch.cgroup.remove();
            let log = instance.log.text();
            return report(&Outcome::Failed { why, log });
        }
    }
    let asked_by = keeper.supervise(&mut instance, &asks)?;
    let last = keeper.settle(instance)?;
    // A failure leaves the group for the driver's terminate, which tries again and says so.
    let _ = keeper.launch.cgroup.remove();
    if let Some(socket) = asked_by {
        // Whoever asked may be gone; the sample is on disk.
        let _ = wire::send(&socket, &Answer(last), &[] as &[OwnedFd]);
    }
    drop(lock);
    Ok(())
}

/// The socket in the lease's folder. Its path goes through the descriptor: a socket's path is short, a folder's not.
fn listen(dir: &LeaseDir) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(dir.socket())?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// A started first process.
struct Running {
    pid: Pid,
    handle: OwnedFd,
    control: Option<UnixStream>,
    log: Log,
}

fn start(launch: &Launch, listener: &OwnedFd, agent: &OwnedFd) -> Result<Running, StageError> {
    let stage = "preparing the instance";
    let pipe = || pipe_with(PipeFlags::CLOEXEC);
    let (config_read, config_write) = pipe().at(stage)?;
    let (log_read, log_write) = pipe().at(stage)?;
    let (errors_read, errors_write) = pipe().at(stage)?;
    let (go_read, go_write) = pipe().at(stage)?;
    let (control, agent_control) = UnixStream::pair().at(stage)?;
    let config = agent_config(launch);
    // Far less than the buffer of a pipe, so that this does not wait for a reader.
    let config = serde_json::to_vec(&config)
        .map_err(io::Error::from)
        .at(stage)?;
    File::from(config_write).write_all(&config).at(stage)?;
    launch
        .cgroup
        .create(&launch.spec.resources)
        .at("making the control group")?;

    let (pid, handle) = match enter::clone_into_namespaces().at("making namespaces")? {
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
        Cloned::Child => {
            drop((go_write, errors_read, log_read, control));
            enter::become_agent(&Entry {
                launch,
                agent: agent.as_fd(),
                listener: listener.as_fd(),
                config: config_read.as_fd(),
                control: agent_control.as_fd(),
                log: log_write.as_fd(),
                errors: errors_write.as_fd(),
                go: go_read.as_fd(),
            })
        }
    };
    drop((errors_write, log_write, go_read, config_read, agent_control));
    let running = Running {
        pid,
        handle,
        control: Some(control),
        log: Log::new(log_read),
    };
    let confirm = || {
        enter::map_ids(pid, launch.ids)?;
        let number = pid.as_raw_nonzero().get();
        launch
            .cgroup
            .attach(number)
            .at("joining the control group")?;
        rustix::io::write(&go_write, &[1]).at("letting the instance go on")?;
        read_error(&errors_read)
    };
    confirm().inspect_err(|_| {
        running.kill();
        running.reap();
    })?;
    Ok(running)
}

fn agent_config(launch: &Launch) -> AgentConfig {
    AgentConfig {
        lease: launch.spec.lease,
        authorized_key: launch.spec.authorized_key,
        user: USER.to_owned(),
        home: HOME.to_owned(),
        switch_to: match launch.ids {
            Ids::One { .. } => None,
            Ids::Two { .. } => Some(TenantIds {
                uid: TENANT_ID,
                gid: TENANT_ID,
            }),
        },
        valid_to_unix_s: launch.spec.valid_to_unix_s,
        listener_fd: LISTENER_FD,
        control_fd: CONTROL_FD,
    }
}

/// The pipe ends without a word when the child has become the agent.
fn read_error(errors: &OwnedFd) -> Result<(), StageError> {
    let stage = "starting the agent";
    let mut text = vec![];
    let mut errors = File::from(errors.try_clone().at(stage)?).take(4_096);
    errors.read_to_end(&mut text).at(stage)?;
    if text.is_empty() {
        return Ok(());
    }
    Err(serde_json::from_slice(&text)
        .map_err(io::Error::from)
        .at(stage)?)
}

impl Running {
    fn kill(&self) {
        // It fails where the process is gone, which is what was wanted.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Waits for the first process, with whom the kernel has ended all others, and returns the CPU time of it and of
    /// those it has waited for, in microseconds.
    fn reap(&self) -> Option<u64> {
        let mut status = 0;
        // SAFETY: all-zero bytes are a valid rusage.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        let pid = self.pid.as_raw_nonzero().get();
        // SAFETY: both are live variables of the types that the call fills in.
        let rc = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        let micros = |t: libc::timeval| {
            Some(u64::try_from(t.tv_sec).ok()? * 1_000_000 + u64::try_from(t.tv_usec).ok()?)
        };
        (rc == pid).then(|| Some(micros(usage.ru_utime)? + micros(usage.ru_stime)?))?
    }

    fn wait_ready(&mut self) -> Result<HostKey, Failure> {
        let until = Instant::now() + READY_WITHIN;
        let mut line = vec![];
        let control = self.control.as_ref().expect("set until here").try_clone();
        let mut control = control.at("reading from the agent")?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [
                PollFd::new(&control, PollFlags::IN),
                PollFd::new(&self.handle, PollFlags::IN),
                PollFd::new(&self.log.pipe, PollFlags::IN),
            ];
            wait(&mut fds, left).at("waiting for the agent")?;
            let [said, exited, logged] = fds.map(|fd| !fd.revents().is_empty());
            if logged {
                self.log.read();
            }
            if said && line.len() < MAX_MESSAGE_BYTES {
                let mut part = [0; MAX_MESSAGE_BYTES];
                let length = control.read(&mut part).at("reading from the agent")?;
                line.extend_from_slice(&part[..length]);
                let message = line.split(|&b| b == b'\n').next().unwrap_or_default();
                if line.contains(&b'\n')
                    && let Ok(AgentMessage::Ready { host_key }) = serde_json::from_slice(message)
                {
                    return Ok(host_key);
                }
            }
            if exited {
                self.log.read();
                return Err(Failure::Exited);
            }
            if left.is_zero() {
                return Err(Failure::Late);
            }
        }
    }
}

/// The end of what the agent wrote to its standard output and error.
struct Log {
    pipe: OwnedFd,
    open: bool,
    tail: VecDeque<u8>,
}

impl Log {
    fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe,
            open: true,
            tail: VecDeque::new(),
        }
    }

    /// Reads once what is there; only called when there is something, or the end.
    fn read(&mut self) {
        let mut part = [0; LOG_BYTES];
        let mut ready = [PollFd::new(&self.pipe, PollFlags::IN)];
        if !matches!(wait(&mut ready, Duration::ZERO), Ok(1)) {
            return;
        }
        match rustix::io::read(&self.pipe, &mut part) {
            Ok(length @ 1..) => {
                self.tail.extend(&part[..length]);
                let excess = self.tail.len().saturating_sub(LOG_BYTES);
                self.tail.drain(..excess);
            }
            _ => self.open = false,
        }
    }

    fn text(&mut self) -> String {
        String::from_utf8_lossy(self.tail.make_contiguous()).into_owned()
    }
}

/// How far away the end of the lease is gets read once by the wall clock; one that is set later neither ends nor stretches it.
fn end_of(launch: &Launch) -> Duration {
    let left_ms = launch
        .spec
        .valid_to_unix_s
        .saturating_mul(1_000)
        .saturating_sub(unix_ms());
    steady()
        .saturating_add(Duration::from_millis(left_ms))
        .saturating_add(END_GRACE)
}

struct Keeper {
    dir: LeaseDir,
    launch: Launch,
    watch: Option<PortWatch>,
    meters: Meters,
    began: Instant,
    /// When the keeper ends what the agent did not, by the clock that nobody can set.
    ends: Duration,
}

impl Keeper {
    /// Keeps the instance until its first process is gone. Returns the socket of who asked for that, if anybody did.
    fn supervise(&mut self, instance: &mut Running, asks: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        let mut asked_by = None;
        let mut next_sample = Instant::now() + SAMPLE_EVERY;
        loop {
            let nothing = instance.handle.as_fd();
            let watch = self.watch.as_ref().map_or(nothing, AsFd::as_fd);
            let control = instance.control.as_ref().map_or(nothing, AsFd::as_fd);
            let log = if instance.log.open {
                instance.log.pipe.as_fd()
            } else {
                nothing
            };
            let mut fds = [nothing, asks.as_fd(), watch, control, log]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            wait(
                &mut fds,
                next_sample.saturating_duration_since(Instant::now()),
            )?;
            let [exited, asked, news, said, logged] = fds.map(|fd| !fd.revents().is_empty());
            if exited {
                return Ok(asked_by);
            }
            if news {
                self.read_news();
            }
            if said {
                drain_control(&mut instance.control);
            }
            if logged {
                instance.log.read();
            }
            if asked && let Some(socket) = self.answer(asks, instance) {
                self.sample(Some(instance));
                instance.kill();
                asked_by = Some(socket);
            }
            if Instant::now() >= next_sample {
                self.sample(Some(instance));
                next_sample = Instant::now() + SAMPLE_EVERY;
            }
            if steady() >= self.ends {
                self.sample(Some(instance));
                instance.kill();
            }
        }
    }

    /// Answers one question; returns the socket where the answer is to come after the end.
    fn answer(&mut self, asks: &OwnedFd, instance: &Running) -> Option<OwnedFd> {
        let socket = rustix::net::accept_with(asks, SocketFlags::CLOEXEC).ok()?;
        // Only the provider's own user gets here; the bound is against a driver that was stopped in between.
        let patience = Some(Duration::from_secs(1));
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Recv,
            patience,
        )
        .ok()?;
        match wire::receive(&socket).ok()?.0 {
            Ask::Terminate => Some(socket),
            Ask::Sample => {
                let sample = self.sample(Some(instance));
                // Who hangs up needs no answer.
                let _ = wire::send(&socket, &Answer(sample), &[] as &[OwnedFd]);
                None
            }
        }
    }

    /// Reads every meter.
    fn sample(&mut self, instance: Option<&Running>) -> UsageSample {
        let cgroup = &self.launch.cgroup;
        let tree = || process::tree_usage(instance?.pid);
        let now_ms = ms_since(self.began);
        if cgroup.counts_cpu() {
            self.meters.cpu.read(cgroup.cpu_us());
        } else if instance.is_some() {
            let cpu = || tree().map(|t| t.cpu_us);
            let mut reading = cpu();
            for _ in 0..RECOUNTS {
                if self.meters.cpu.would_fail(reading) {
                    reading = cpu();
                }
            }
            self.meters.cpu.read(reading);
        }
        if cgroup.counts_memory() {
            self.meters.memory.read(now_ms, cgroup.memory_bytes());
        } else if let Some(instance) = instance {
            let used = tree().map(|t| t.private_bytes + disk_bytes(instance.pid).unwrap_or(0));
            self.meters.memory.read(now_ms, used);
        }
        // News, list, news: a socket that ends meanwhile is in one of them.
        self.read_news();
        let open = self.watch.as_ref().and_then(|w| w.list().ok());
        self.meters.sockets.listed(open);
        self.read_news();
        UsageSample {
            taken_at_unix_ms: unix_ms(),
            usage: self.meters.usage(),
        }
    }

    fn read_news(&mut self) {
        for news in self.watch.iter().flat_map(PortWatch::news) {
            match news {
                News::Destroyed(cookie, bytes) => self.meters.sockets.destroyed(cookie, bytes),
                News::Missed => self.meters.sockets.missed(),
            }
        }
    }

    /// Takes the last sample of an instance whose first process has exited, and records it.
    fn settle(&mut self, instance: Running) -> io::Result<UsageSample> {
        if let Some(cpu_us) = instance.reap()
            && !self.launch.cgroup.counts_cpu()
        {
            self.meters.cpu.at_least(cpu_us);
        }
        drop(instance);
        let until = Instant::now() + SETTLE_WITHIN;
        let mut patience = REPORT_DELAY;
        while let Some(watch) = &self.watch {
            let mut fds = [PollFd::new(watch, PollFlags::IN)];
            let reported = wait(&mut fds, patience)? > 0;
            self.read_news();
            let done = !reported && self.meters.sockets.open() == 0;
            if done || Instant::now() >= until {
                break;
            }
            patience = until
                .saturating_duration_since(Instant::now())
                .min(REPORT_DELAY);
        }
        let last = self.sample(None);
        self.dir.write_last_sample(&last)?;
        Ok(last)
    }
}

/// Agents tell more than their host key, but nothing that is relied upon.
fn drain_control(control: &mut Option<UnixStream>) {
    let mut part = [0; MAX_MESSAGE_BYTES];
    if !matches!(
        control.as_ref().map(|mut c| c.read(&mut part)),
        Some(Ok(1..))
    ) {
        *control = None;
    }
}

/// Bytes in the writable tmpfs of an instance, asked through its root.
fn disk_bytes(pid: Pid) -> Option<u64> {
    let tmp = format!("/proc/{}/root/tmp", pid.as_raw_nonzero());
    let disk = rustix::fs::statvfs(tmp).ok()?;
    Some((disk.f_blocks - disk.f_bfree) * disk.f_frsize)
}

fn wait(fds: &mut [PollFd<'_>], timeout: Duration) -> io::Result<usize> {
    let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(rustix::io::retry_on_intr(|| poll(fds, Some(&timeout)))?)
}
