//! Port forwarding inside the instance's network: to its addresses, and from its ports to the client.
//!
//! The instance has loopback only, so forwarding reaches the tenant's own programs and nothing else; `ssh -R` is how a
//! requester brings a network to an instance that has none. Names are not resolved: there is nobody to ask.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use russh::{
    Channel, ChannelOpenFailure,
    server::{ChannelOpenHandle, Handle, Msg},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{connection::Channels, wire::Wire};

/// How long a connection inside the instance may take; its network is its own loopback.
const CONNECT: Duration = Duration::from_secs(10);

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a client may want to be connected to. Empty when it named no address of ours to understand.
pub(super) fn targets(host: &str, port: u32) -> Vec<SocketAddr> {
    let Ok(port) = u16::try_from(port) else {
        return Vec::new();
    };
    let addresses = match host {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        literal => literal.parse::<IpAddr>().into_iter().collect(),
    };
    addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

/// Where a client may want us to listen (RFC 4254, section 7.1: an empty address is every one).
pub(super) fn listen_address(address: &str) -> Option<IpAddr> {
    match address {
        "" | "*" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        literal => literal.parse().ok(),
    }
}

/// Connects for the client, answers its request to open the channel, and carries bytes until both sides are done.
pub(super) async fn connect(
    targets: Vec<SocketAddr>,
    channel: Channel<Msg>,
    reply: ChannelOpenHandle,
    handle: Handle,
    channels: Arc<Channels>,
    permit: OwnedSemaphorePermit,
) {
    let id = channel.id();
    let attempt = timeout(CONNECT, TcpStream::connect(&targets[..])).await;
    let Ok(Ok(stream)) = attempt else {
        channels.inbound.close(id);
        return reply.reject(ChannelOpenFailure::ConnectFailed).await;
    };
    reply.accept().await;
    carry(stream, channels.wire(channel, handle, permit)).await;
}

/// Passes connections to a port of the instance on to the client, until it is cancelled.
pub(super) async fn listen(
    listener: TcpListener,
    address: String,
    handle: Handle,
    channels: Arc<Channels>,
    cancelled: CancellationToken,
) {
    let port = listener.local_addr().map_or(0, |a| u32::from(a.port()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = cancelled.cancelled() => return,
        };
        let Ok((stream, from)) = accepted else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // When all channels are in use the connection is dropped, which its program sees as a reset.
        let Ok(permit) = Semaphore::try_acquire_owned(channels.free.clone()) else {
            continue;
        };
        let (handle, channels, address) = (handle.clone(), channels.clone(), address.clone());
        tokio::spawn(async move {
            let opened = handle
                .channel_open_forwarded_tcpip(
                    address,
                    port,
                    from.ip().to_string(),
                    from.port().into(),
                )
                .await;
            if let Ok(channel) = opened {
                carry(stream, channels.wire(channel, handle, permit)).await;
            }
        });
    }
}

async fn carry(stream: TcpStream, wire: Wire) {
    let _ = stream.set_nodelay(true);
    let (read, write) = stream.into_split();
    let outwards = async {
        // An error means that the channel is closed, which ends everything below.
        if wire.drain(read, None).await.is_ok() {
            wire.end_of_output().await;
        }
    };
    tokio::select! {
        _ = async { tokio::join!(outwards, wire.feed(write)) } => {}
        () = wire.closed() => return,
    }
    wire.finish(None).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_and_localhost_are_targets() {
        assert_eq!(
            targets("127.0.0.1", 80),
            ["127.0.0.1:80".parse().expect("valid")]
        );
        assert_eq!(targets("::1", 80), ["[::1]:80".parse().expect("valid")]);
        assert_eq!(targets("localhost", 80).len(), 2);
        for (host, port) in [
            ("example.org", 80),
            ("", 80),
            ("127.0.0.1", 65_536),
            ("/run/x", 1),
        ] {
            assert!(targets(host, port).is_empty(), "{host}:{port}");
        }
    }

    #[test]
    fn an_empty_listen_address_is_every_address() {
        assert_eq!(listen_address(""), Some(Ipv4Addr::UNSPECIFIED.into()));
        assert_eq!(
            listen_address("localhost"),
            Some(Ipv4Addr::LOCALHOST.into())
        );
        assert_eq!(listen_address("::1"), Some(Ipv6Addr::LOCALHOST.into()));
        assert_eq!(listen_address("example.org"), None);
    }
}
