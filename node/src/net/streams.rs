//! Byte streams between connected peers, by protocol name.
//!
//! ```text
//!  Opener::open ──► behaviour ──► handler of one connection ──► negotiated ──► PeerStream
//!  remote opens ──► handler: permit? room in the acceptor's queue? ──► Acceptor ──► PeerStream
//!                      │ no                    │ no
//!                      └───────────────────────┴──► the stream is reset; without a permit the peer is counted
//! ```
//!
//! The threat is a stranger who opens streams or connections without end: every connection has a fixed number of inbound
//! streams, every acceptor a queue of fixed length, and nothing is kept for a connection that has closed.
//!
//! Streams that a peer opens for third parties, as a relay does for its clients, have places of their own, and one too
//! many is refused without blame: else the clients of an honest relay could have it thrown out, or take the places of its
//! own links.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Ready, ready},
    io,
    sync::Arc,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    core::{Endpoint, InboundUpgrade, OutboundUpgrade, UpgradeInfo, transport::PortUse},
    swarm::{
        ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent,
        ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, Stream, StreamUpgradeError,
        SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
        behaviour::ConnectionEstablished,
        handler::{
            ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
        },
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _};

/// Inbound streams that one connection may have open: one of each protocol, and some snapshot and log readers.
pub(super) const MAX_INBOUND_STREAMS: usize = 24;

/// Inbound streams that one connection may have open for third parties: relayed sessions. A relay lets no more through to one
/// provider (its registry's bound), so only one that keeps to no rule finds none.
pub(super) const MAX_INBOUND_SPLICES: usize = 48;

/// Streams that one connection may have open in the muxers: both kinds above, and as many as the first again for the
/// protocols of libp2p and for what is being negotiated.
pub(super) const MAX_STREAMS: usize = 2 * MAX_INBOUND_STREAMS + MAX_INBOUND_SPLICES;

/// Streams that wait for their acceptor, for each protocol. An acceptor only spawns a task, so a full queue means an attack
/// or a stalled machine; either way a stream less is the better loss.
const ACCEPT_QUEUE: usize = 64;

/// Outbound streams in negotiation on one connection.
const MAX_PENDING_OPENS: usize = 32;

/// Requests to open a stream that wait for the swarm.
const OPEN_QUEUE: usize = 64;

/// A stream to or from a known peer.
#[derive(Debug)]
pub(super) struct PeerStream {
    peer: PeerId,
    stream: Compat<Stream>,
    // Gives the place back to the connection when the stream is dropped.
    _permit: Option<OwnedSemaphorePermit>,
}

impl PeerStream {
    /// The authenticated peer at the other end.
    pub(super) fn peer(&self) -> PeerId {
        self.peer
    }
}

/// Lets a type be read and written through the stream in one of its fields.
macro_rules! io_through {
    ($name:ident, $field:ident) => {
        impl tokio::io::AsyncRead for $name {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_read(cx, buf)
            }
        }

        impl tokio::io::AsyncWrite for $name {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_shutdown(cx)
            }
        }
    };
}

pub(crate) use io_through;

io_through!(PeerStream, stream);

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection to the peer.
    #[error("not connected to the peer")]
    NotConnected,
    /// Too many streams of this connection are being opened.
    #[error("too many streams are being opened to the peer")]
    Busy,
    /// The peer does not speak the protocol.
    #[error("the peer does not speak {protocol}")]
    Unsupported {
        /// Name of the protocol.
        protocol: StreamProtocol,
    },
    /// The negotiation broke off.
    #[error("the stream broke off while it was negotiated")]
    Io(#[source] io::Error),
    /// The local node is shutting down.
    #[error("the local node is stopping")]
    Stopped,
}

/// Opens streams to connected peers.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    requests: mpsc::Sender<Open>,
}

impl Opener {
    /// Opens a stream of `protocol` on a connection that exists already.
    pub(super) async fn open(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
    ) -> Result<PeerStream, OpenError> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Open {
                peer,
                protocol,
                reply,
            })
            .await
            .map_err(|_| OpenError::Stopped)?;
        // The reply is dropped with the connection, or with the swarm.
        let stream = answer.await.unwrap_or(Err(OpenError::NotConnected))?;
        Ok(PeerStream {
            peer,
            stream: stream.compat(),
            _permit: None,
        })
    }
}

/// Streams that peers open of one protocol.
pub(super) type Acceptor = mpsc::Receiver<PeerStream>;

/// A protocol that is accepted from peers.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    pub(super) protocol: StreamProtocol,
    pub(super) places: Places,
}

/// Which places of a connection a stream takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// [`MAX_INBOUND_STREAMS`], of the peer itself.
    Own,
    /// [`MAX_INBOUND_SPLICES`], for third parties.
    Splices,
}

/// The accepted protocols, each with the way to its acceptor.
type Table = Arc<[(Accepted, mpsc::Sender<PeerStream>)]>;

/// A stream was refused; `peer` opens more than it may.
#[derive(Debug)]
pub(super) struct TooManyStreams {
    pub(super) peer: PeerId,
}

/// The behaviour: routes requests to connections and inbound streams to acceptors.
pub(super) struct Behaviour {
    table: Table,
    connections: HashMap<PeerId, Vec<ConnectionId>>,
    requests: mpsc::Receiver<Open>,
    events: VecDeque<TooManyStreams>,
}

impl Behaviour {
    /// A behaviour that accepts these protocols, an opener for it, and one acceptor for each protocol, in the same order.
    pub(super) fn new(accepted: &[Accepted]) -> (Self, Opener, Vec<Acceptor>) {
        let (senders, acceptors): (Vec<_>, Vec<_>) = accepted
            .iter()
            .map(|accepted| {
                let (sender, acceptor) = mpsc::channel(ACCEPT_QUEUE);
                ((accepted.clone(), sender), acceptor)
            })
            .unzip();
        let (sender, requests) = mpsc::channel(OPEN_QUEUE);
        let behaviour = Self {
            table: senders.into(),
            connections: HashMap::new(),
            requests,
            events: VecDeque::new(),
        };
        (behaviour, Opener { requests: sender }, acceptors)
    }

    fn handler(&self, peer: PeerId) -> Handler {
        Handler {
            peer,
            table: self.table.clone(),
            own: Arc::new(Semaphore::new(MAX_INBOUND_STREAMS)),
            splices: Arc::new(Semaphore::new(MAX_INBOUND_SPLICES)),
            opens: VecDeque::new(),
            negotiating: 0,
            refused: false,
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = TooManyStreams;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                ..
            }) => self
                .connections
                .entry(peer_id)
                .or_default()
                .push(connection_id),
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => {
                if let Some(ids) = self.connections.get_mut(&peer_id) {
                    ids.retain(|id| *id != connection_id);
                    if ids.is_empty() {
                        self.connections.remove(&peer_id);
                    }
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        Refused: THandlerOutEvent<Self>,
    ) {
        // Handlers are held back by the swarm while this queue is not empty, so it holds at most one event for each.
        self.events.push_back(TooManyStreams { peer });
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(event));
        }
        while let Poll::Ready(Some(open)) = self.requests.poll_recv(cx) {
            // The newest connection: an older one may be dead without anybody having noticed yet.
            match self.connections.get(&open.peer).and_then(|ids| ids.last()) {
                Some(id) => {
                    return Poll::Ready(ToSwarm::NotifyHandler {
                        peer_id: open.peer,
                        handler: NotifyHandler::One(*id),
                        event: open,
                    });
                }
                None => open.answer(Err(OpenError::NotConnected)),
            }
        }
        Poll::Pending
    }
}

/// A request to open a stream, on its way to the handler of a connection.
#[derive(Debug)]
pub(super) struct Open {
    peer: PeerId,
    protocol: StreamProtocol,
    reply: oneshot::Sender<Result<Stream, OpenError>>,
}

impl Open {
    fn answer(self, result: Result<Stream, OpenError>) {
        // Whoever asked may have given up: then the stream is dropped, which resets it.
        let _ = self.reply.send(result);
    }
}

/// The handler dropped an inbound stream because the peer has too many of its own.
#[derive(Debug)]
pub(super) struct Refused;

/// One connection's part.
pub(super) struct Handler {
    peer: PeerId,
    table: Table,
    own: Arc<Semaphore>,
    splices: Arc<Semaphore>,
    opens: VecDeque<Open>,
    negotiating: usize,
    refused: bool,
}

impl Handler {
    fn accept(&mut self, stream: Stream, protocol: &StreamProtocol) {
        let Some((accepted, queue)) = self.table.iter().find(|(a, _)| a.protocol == *protocol)
        else {
            return;
        };
        let permits = match accepted.places {
            Places::Own => &self.own,
            Places::Splices => &self.splices,
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else {
            // Who opens for others may be crowded by them.
            self.refused |= accepted.places == Places::Own;
            return;
        };
        let stream = PeerStream {
            peer: self.peer,
            stream: stream.compat(),
            _permit: Some(permit),
        };
        if queue.try_send(stream).is_err() {
            tracing::debug!(%protocol, "inbound stream dropped: its acceptor is behind");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Refused;
    type InboundProtocol = AnyOf;
    type OutboundProtocol = One;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(AnyOf(self.table.clone()), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Open, Self::ToBehaviour>> {
        if std::mem::take(&mut self.refused) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Refused));
        }
        if let Some(open) = self.opens.pop_front() {
            self.negotiating += 1;
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(One(open.protocol.clone()), open),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, open: Open) {
        if self.opens.len() + self.negotiating >= MAX_PENDING_OPENS {
            open.answer(Err(OpenError::Busy));
        } else {
            self.opens.push_back(open);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Open>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                info: (),
            }) => self.accept(stream, &protocol),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: open,
            }) => {
                self.negotiating -= 1;
                open.answer(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: open, error }) => {
                self.negotiating -= 1;
                let error = match error {
                    StreamUpgradeError::Timeout => OpenError::Io(io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported {
                        protocol: open.protocol.clone(),
                    },
                    StreamUpgradeError::Io(error) => OpenError::Io(error),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                open.answer(Err(error));
            }
            _ => {}
        }
    }
}

/// Inbound: any protocol of the table.
pub(super) struct AnyOf(Table);

impl UpgradeInfo for AnyOf {
    type Info = StreamProtocol;
    type InfoIter = Names;

    fn protocol_info(&self) -> Names {
        Names {
            table: self.0.clone(),
            next: 0,
        }
    }
}

/// The names of a table, without copying it: a connection asks for them at every poll.
pub(super) struct Names {
    table: Table,
    next: usize,
}

impl Iterator for Names {
    type Item = StreamProtocol;

    fn next(&mut self) -> Option<StreamProtocol> {
        let (accepted, _) = self.table.get(self.next)?;
        self.next += 1;
        Some(accepted.protocol.clone())
    }
}

impl InboundUpgrade<Stream> for AnyOf {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        ready(Ok((stream, name)))
    }
}

/// Outbound: one protocol.
pub(super) struct One(StreamProtocol);

impl UpgradeInfo for One {
    type Info = StreamProtocol;
    type InfoIter = std::iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(self.0.clone())
    }
}

impl OutboundUpgrade<Stream> for One {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}
