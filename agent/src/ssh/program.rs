//! A program of the tenant on a channel: its streams, its end, and what happens when the client goes first.
//!
//! ```text
//!  running ── ends, output sent ──► exit state, EOF, close
//!     └───── channel or connection closes ──► HUP ── GRACE ──► KILL, to the process group
//! ```
//!
//! A program that ended by itself may leave others behind; they live on, as with OpenSSH, until the lease ends.

use std::{
    future::pending,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rustix::process::{Signal, WaitStatus};
use tokio::{
    io::{AsyncRead, AsyncWrite, empty, unix::AsyncFd},
    net::{UnixStream, unix::pipe},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::wire::{CHUNK, Closed, STDERR, Wire, read_fd};
use crate::{children::Child, tenant::Piped};

/// What a program gets between being hung up on and being killed.
const GRACE: Duration = Duration::from_secs(2);

/// A terminal whose first process is gone has said everything once it is silent for so long.
const QUIET: Duration = Duration::from_millis(100);

/// Bytes that are still taken from such a terminal: more than the kernel buffers, in case others go on writing to it.
const LAST_OUTPUT: usize = 256 << 10;

/// A terminal's master side.
pub(super) type Master = Arc<AsyncFd<OwnedFd>>;

/// Runs a program on pipes to its end.
pub(super) async fn run_piped(piped: Piped, wire: Wire) {
    let streams = || -> io::Result<_> {
        Ok((
            pipe::Sender::from_owned_fd(piped.stdin)?,
            pipe::Receiver::from_owned_fd(piped.stdout)?,
            pipe::Receiver::from_owned_fd(piped.stderr)?,
        ))
    };
    match streams() {
        Ok((stdin, stdout, stderr)) => run(piped.child, stdin, stdout, stderr, wire).await,
        Err(_) => hang_up(piped.child).await,
    }
}

/// Runs a program whose standard input and output are one socket.
pub(super) async fn run_on_socket(child: Child, stream: StdUnixStream, wire: Wire) {
    let stream = stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream));
    match stream {
        Ok(stream) => {
            let (output, input) = stream.into_split();
            run(child, input, output, empty(), wire).await;
        }
        Err(_) => hang_up(child).await,
    }
}

async fn run(
    mut child: Child,
    stdin: impl AsyncWrite + Unpin,
    stdout: impl AsyncRead + Unpin,
    stderr: impl AsyncRead + Unpin,
    wire: Wire,
) {
    let ended = async {
        let (_, _, status) = tokio::join!(
            wire.drain(stdout, None),
            wire.drain(stderr, Some(STDERR)),
            child.ended(),
        );
        status
    };
    let status = until_closed(&wire, ended, wire.feed(stdin)).await;
    conclude(child, status, wire).await;
}

/// Runs a program on a terminal to its end.
pub(super) async fn run_on_terminal(mut child: Child, master: Master, wire: Wire) {
    let leader_gone = CancellationToken::new();
    let ended = async {
        let leader = async {
            let status = child.ended().await;
            leader_gone.cancel();
            status
        };
        let (_, status) = tokio::join!(drain_terminal(&master, &wire, &leader_gone), leader);
        status
    };
    let status = until_closed(&wire, ended, feed_terminal(&master, &wire)).await;
    // The kernel hangs up on whatever still has the terminal.
    drop(master);
    conclude(child, status, wire).await;
}

/// Waits for a program's end while it is fed; the outer `None` means that the channel was closed first.
async fn until_closed(
    wire: &Wire,
    ended: impl Future<Output = Option<WaitStatus>>,
    feed: impl Future<Output = ()>,
) -> Option<Option<WaitStatus>> {
    tokio::select! {
        status = ended => Some(status),
        () = wire.closed() => None,
        () = async { feed.await; pending().await } => None,
    }
}

async fn conclude(child: Child, status: Option<Option<WaitStatus>>, wire: Wire) {
    match status {
        Some(status) => wire.finish(status).await,
        None => hang_up(child).await,
    }
}

/// Ends a program whose client is gone, with everything in its process group.
async fn hang_up(mut child: Child) {
    let group = child.group();
    group.signal(Signal::HUP);
    group.signal(Signal::CONT);
    let _ = timeout(GRACE, child.ended()).await;
    group.signal(Signal::KILL);
    child.ended().await;
}

async fn drain_terminal(
    master: &Master,
    wire: &Wire,
    leader_gone: &CancellationToken,
) -> Result<(), Closed> {
    let mut buffer = vec![0; CHUNK];
    let mut last_output = 0;
    loop {
        let read = if leader_gone.is_cancelled() {
            match timeout(QUIET, read_fd(master, &mut buffer)).await {
                Ok(read) if last_output < LAST_OUTPUT => read,
                _ => return Ok(()),
            }
        } else {
            tokio::select! {
                read = read_fd(master, &mut buffer) => read,
                () = leader_gone.cancelled() => continue,
            }
        };
        match read {
            // EIO says that nobody has the other side open any more.
            Ok(0) | Err(_) => return Ok(()),
            Ok(n) => {
                if leader_gone.is_cancelled() {
                    last_output += n;
                }
                wire.send(None, Bytes::copy_from_slice(&buffer[..n]))
                    .await?;
            }
        }
    }
}

/// A terminal knows no end of input, so the client's changes nothing.
async fn feed_terminal(master: &Master, wire: &Wire) {
    while let Some(chunk) = wire.queue.next().await {
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let written = master
                .async_io(tokio::io::Interest::WRITABLE, |fd| {
                    Ok(rustix::io::write(fd, rest)?)
                })
                .await;
            match written {
                Ok(n) => rest = &rest[n..],
                Err(_) => return wire.queue.refuse(),
            }
        }
    }
}
