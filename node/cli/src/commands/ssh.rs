//! `souk ssh` and the `ProxyCommand` behind it.

use std::{
    error::Error as _,
    fs,
    future::poll_fn,
    io,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    task::Poll,
};

use clap::Args;
use souk_node::client::{
    Client, Lease, Notice, PATIENCE, ReachError, SESSION_LINGER, SessionStream,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    signal::unix::{SignalKind, signal},
};

use super::{
    builtin_ssh,
    requester::{self, Requester},
    wait,
};
use crate::{
    failure::{Failure, UNAVAILABLE},
    out::note,
    stdio,
};

/// The exit status of `ssh` where it was interrupted.
pub(super) const INTERRUPTED: u8 = 255;

/// Bytes carried at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Log in to a lease, or run a command in it.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  souk ssh souk-5f3c0a91\n  souk ssh souk-5f3c0a91 -- uname -a\n\nPlain ssh, scp and rsync work as well: `souk rent` prints the `ssh -F` line."
)]
pub(crate) struct Ssh {
    #[command(flatten)]
    requester: Requester,
    /// Use the client that is built in, not the `ssh` of this machine
    #[arg(long)]
    builtin: bool,
    /// The lease: its name, its id, or how `ssh` calls it
    lease: String,
    /// A command to run there, and options for ssh before it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Carry a stream to a lease; `ssh` runs this as its `ProxyCommand`.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  ssh -o ProxyCommand='souk ssh-proxy 5f3c0a91' souk-5f3c0a91")]
pub(crate) struct SshProxy {
    #[command(flatten)]
    requester: Requester,
    /// The name of the lease
    lease: String,
}

impl Ssh {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = self.requester.open()?;
        let lease = requester::find(&client, &self.lease)?;
        let Some(alias) = lease.ssh_alias() else {
            return Err(
                Failure::new(format_args!("lease {} has no receipt yet", lease.name()))
                    .hint(format_args!("souk rent --resume {}", lease.name()))
                    .code(UNAVAILABLE),
            );
        };
        if !lease.is_ready() {
            return Err(
                Failure::new(format_args!("lease {} was not finished", lease.name()))
                    .hint(format_args!("souk rent --resume {}", lease.name()))
                    .code(UNAVAILABLE),
            );
        }
        client.believe(&lease).map_err(|error| unreached(&error))?;
        if !self.builtin {
            // It returns only when it failed.
            let error = Command::new("ssh")
                .arg("-F")
                .arg(lease.ssh_config())
                .arg(alias)
                .args(&self.command)
                .exec();
            if error.kind() != io::ErrorKind::NotFound {
                return Err(Failure::because("cannot start ssh", &error));
            }
        }
        wait(builtin_ssh::session(
            &client,
            &lease,
            &self.command.join(" "),
        ))
    }
}

impl SshProxy {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = self.requester.open()?;
        let lease = requester::find(&client, &self.lease)?;
        wait(carry(&client, &lease))
    }
}

async fn carry(client: &Client, lease: &Lease) -> Result<ExitCode, Failure> {
    let broken = |error: io::Error| Failure::because("cannot use stdin and stdout", &error);
    let told = told_to_end().map_err(broken)?;
    tokio::pin!(told);
    let mut stream = tokio::select! {
        stream = client.session(lease, say) => stream.map_err(|error| unreached(&error))?,
        () = &mut told => return Ok(INTERRUPTED.into()),
    };
    let carried = tokio::select! {
        carried = pass_on(&mut stream) => carried.map(|()| ExitCode::SUCCESS).map_err(broken),
        () = told => Ok(INTERRUPTED.into()),
    };
    stream.close().await;
    carried
}

/// Ends when a signal asks for it: `ssh` hangs up when it ends, and a terminal interrupts both. What whoever started this wants
/// ignored stays so: `sftp` goes on after an interrupt, and `nohup` after its terminal.
pub(super) fn told_to_end() -> io::Result<impl Future<Output = ()>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    let ignored = ignored.unwrap_or(0);
    let mut heard = [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
    ]
    .into_iter()
    .filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0)
    .map(signal)
    .collect::<io::Result<Vec<_>>>()?;
    Ok(poll_fn(move |cx| {
        let mut told = heard.iter_mut().map(|signal| signal.poll_recv(cx));
        match told.any(|told| told.is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }))
}

/// Between `ssh` and the instance, until either has ended.
async fn pass_on(stream: &mut SessionStream) -> io::Result<()> {
    let mut input = BufReader::with_capacity(PIECE_BYTES, stdio::input()?);
    let mut output = stdio::output()?;
    let (from, mut to) = tokio::io::split(stream);
    let mut from = BufReader::with_capacity(PIECE_BYTES, from);
    // Either side may go away in the middle; ssh tells the user what that means.
    let up = async {
        let _ = tokio::io::copy_buf(&mut input, &mut to).await;
        let _ = to.shutdown().await;
        std::future::pending::<()>().await;
    };
    let down = async {
        while let Ok(piece) = from.fill_buf().await
            && !piece.is_empty()
        {
            let len = piece.len();
            if output.write_all(piece).await.is_err() || output.flush().await.is_err() {
                return;
            }
            from.consume(len);
        }
    };
    tokio::select! {
        // The instance has the last word: what it still sends after our side ended is carried.
        () = down => {}
        () = up => {}
    }
    Ok(())
}

/// Tells a user who waits for an instance why.
#[expect(
    clippy::needless_pass_by_value,
    reason = "it is called with what is made for it"
)]
pub(super) fn say(notice: Notice<'_>) {
    match notice {
        Notice::Waits(error) => note(format_args!(
            "{}; trying again for up to {} s",
            cause(error),
            PATIENCE.as_secs()
        )),
        Notice::Cut => note(format_args!(
            "the connection broke; the session is kept for {} s and taken up as soon as something leads to it",
            SESSION_LINGER.as_secs()
        )),
        Notice::Back => note("the session goes on"),
        Notice::Lost(error) => note(format_args!("the session is lost: {}", cause(error))),
    }
}

/// The cause in one line.
fn cause(error: &ReachError) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Why an instance was not reached.
pub(crate) fn unreached(error: &ReachError) -> Failure {
    let failure = Failure::of(error);
    match error {
        ReachError::State(source) => requester::state(source),
        ReachError::Judge(source) => requester::unjudged(failure, source),
        ReachError::Unproven { .. } => failure
            .hint("nothing was sent; `souk attest policy check` shows what the policy accepts; end the lease if that is right")
            .code(UNAVAILABLE),
        ReachError::Ended => failure.code(UNAVAILABLE),
        ReachError::NoWay
        | ReachError::Relay(_)
        | ReachError::Direct(_)
        | ReachError::Instance(_) => failure
            .hint("try again; if it stays so, end the lease and rent another, or --direct")
            .code(UNAVAILABLE),
    }
}
