//! Bytes between requesters and instances: from relays, and from a port of this host for direct leases.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use souk_market::units::RelayToken;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use super::Shared;

/// Sessions of all leases at one time; each holds two sockets and two buffers of 8 KiB.
pub(super) const MAX_SESSIONS: usize = 1024;
/// Sessions of one lease at one time, over relays or over its port. The instance's own server has a bound, too; this one
/// protects the host, and the other leases.
pub(super) const MAX_SESSIONS_OF_LEASE: usize = 64;
/// How long the instance may take to accept.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Why a stream did not reach an instance.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// No running lease has this token.
    #[error("no running lease has this token")]
    NoLease,
    /// As many sessions as are allowed run already.
    #[error("{MAX_SESSIONS} sessions run already")]
    Busy,
    /// As many sessions as one lease may have run already.
    #[error("{MAX_SESSIONS_OF_LEASE} sessions of the lease run already")]
    LeaseBusy,
    /// The instance did not accept, or the stream broke.
    #[error("the session broke off")]
    Broken(#[source] io::Error),
}

/// Joins a stream from a relay to the instance of its lease, until one of them ends, or the lease is closed.
pub(super) async fn carry(
    shared: &Shared,
    token: &RelayToken,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
) -> Result<(), CarryError> {
    let (ssh, sessions) = shared.board.door_of(token).ok_or(CarryError::NoLease)?;
    // First its own share: whoever holds one lease must not lock out the others.
    let _own = sessions
        .places
        .try_acquire()
        .map_err(|_| CarryError::LeaseBusy)?;
    let _permit = shared
        .sessions
        .try_acquire()
        .map_err(|_| CarryError::Busy)?;
    let mut instance = connect(ssh).await.map_err(CarryError::Broken)?;
    tokio::select! {
        ended = copy_bidirectional(&mut stream, &mut instance) => {
            ended.map(drop).map_err(CarryError::Broken)
        }
        () = sessions.over.cancelled() => Ok(()),
    }
}

/// A port of this host that leads to one instance; closed when it is dropped.
pub(super) struct DirectPort {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl DirectPort {
    /// Opens a port on `ip`, `before` if it can: the holder was told of that one. None where that fails, and the lease goes on without.
    pub(super) fn open(ip: IpAddr, before: Option<u16>, instance: SocketAddr) -> Option<Self> {
        let open = || {
            let again = before.map(|port| (port, std::net::TcpListener::bind((ip, port))));
            if let Some((port, Err(error))) = &again {
                tracing::warn!(
                    port,
                    error = error as &dyn std::error::Error,
                    "a direct lease gets another port, which its holder has to ask for"
                );
            }
            let listener = again
                .and_then(|(_, bound)| bound.ok())
                .map_or_else(|| std::net::TcpListener::bind((ip, 0)), Ok)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            let address = listener.local_addr()?;
            Ok::<_, io::Error>((listener, address))
        };
        let (listener, address) = open()
            .inspect_err(|error| {
                tracing::warn!(
                    error = error as &dyn std::error::Error,
                    "no port for a direct lease"
                );
            })
            .ok()?;
        let task = tokio::spawn(accept(listener, instance));
        Some(Self { address, task })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for DirectPort {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, instance: SocketAddr) {
    let sessions = Arc::new(Semaphore::new(MAX_SESSIONS_OF_LEASE));
    // Sessions end with the port.
    let mut running = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&sessions).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((mut client, _)) => {
                running.spawn(async move {
                    let _permit = permit;
                    if let Ok(mut server) = connect(instance).await {
                        // Who hung up first is nobody's error.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
            // Out of descriptors, most likely: others will end.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
        while running.try_join_next().is_some() {}
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_PATIENCE, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
