//! Keepers as the node starts and asks them.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use souk_backend::{BackendError, UsageSample};

use crate::{
    KEEPER_ARG,
    probe::{self, Ability, Report},
    state::{LeaseDir, TrialDir},
    wire::{self, Answer, Ask, Order, Outcome},
};

/// How long a keeper may take to end an instance or answer a question.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The trial at start takes a few milliseconds; a machine that hangs in it is refused.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// How a keeper is started.
#[derive(Clone, Debug)]
pub struct KeeperProgram {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl KeeperProgram {
    /// This very program, which must call [`crate::keeper_main`] where its only argument is [`KEEPER_ARG`], before it
    /// starts any thread.
    #[must_use]
    pub fn this_program() -> Self {
        Self {
            // The link leads to the running program even where its file was replaced since.
            program: "/proc/self/exe".into(),
            arguments: vec![KEEPER_ARG.to_owned()],
        }
    }
}

/// Tries once what a lease needs on this machine and for this user, in folders that it makes in `scratch`.
///
/// # Errors
/// [`BackendError::Host`] where the machine refuses, within about a second, with the command that allows it.
pub fn check(keeper: &KeeperProgram, scratch: &Path) -> Result<(), BackendError> {
    probe(keeper, scratch).map(|_| ())
}

/// As [`check`], and returns what was found.
pub(crate) fn probe(keeper: &KeeperProgram, scratch: &Path) -> Result<Ability, BackendError> {
    let failed = |e| host("cannot try out namespaces", scratch, e);
    let trial = TrialDir::create(scratch).map_err(failed)?;
    let order = Order::Probe(trial.folders());
    let (mut child, socket) = order_keeper(keeper, &order, &[], PROBE_WITHIN).map_err(failed)?;
    let outcome = wire::receive::<Outcome>(&socket);
    if outcome.is_err() {
        // It may have exited already.
        let _ = child.kill();
    }
    child.wait().map_err(failed)?;
    match outcome.map_err(failed)?.0 {
        Outcome::Probed(Report::Able(ability)) => Ok(ability),
        Outcome::Probed(Report::Refused(refused)) => Err(probe::explain(refused)),
        Outcome::Up(_) | Outcome::Failed { .. } => Err(failed(io::ErrorKind::InvalidData.into())),
    }
}

/// Lets this process have as many descriptors as it may: a tenant, which may have half of that, can then not use up what the
/// kernel lets this user have on their way through sockets (`confine::limit`).
///
/// # Errors
/// What the system says.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

/// Starts a keeper and gives it its order.
pub(crate) fn order_keeper(
    keeper: &KeeperProgram,
    order: &Order,
    descriptors: &[OwnedFd],
    patience: Duration,
) -> io::Result<(Child, OwnedFd)> {
    let (ours, its) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, Some(patience))?;
    let mut child = Command::new(&keeper.program)
        .args(&keeper.arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(its))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    if let Err(error) = wire::send(&ours, order, descriptors) {
        // It may have exited already; unless it is waited for, its entry stays in the table of processes.
        let _ = child.kill();
        child.wait()?;
        return Err(error);
    }
    Ok((child, ours))
}

/// Asks the living keeper of a lease.
pub(crate) fn ask(dir: &LeaseDir, question: &Ask) -> io::Result<UsageSample> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(dir.path(), flags, Mode::empty())?;
    // A socket's path is short, a folder's need not be.
    let path = LeaseDir::at(format!("/proc/self/fd/{}", folder.as_raw_fd()).into()).socket();
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_WITHIN))?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    wire::send(&socket, question, &[] as &[OwnedFd])?;
    let (Answer(sample), _) = wire::receive(&socket)?;
    Ok(sample)
}

/// The error of a machine that did not do what the driver needs.
pub(crate) fn host(what: &str, state: &Path, source: io::Error) -> BackendError {
    BackendError::Host {
        what: format!("{what} (state in {})", state.display()),
        hint: "check free space, permissions and the limit on open files".to_owned(),
        source: Some(source),
    }
}
