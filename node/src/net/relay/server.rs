//! The relay's side: registrations, and splicing.
//!
//! Threats: clients that try tokens, ask faster than anybody needs, hold sessions that carry nothing, or do not read what theirs
//! carry; a provider that does not answer. Rates, deadlines, an idle limit and a quota end each of them, what is not read waits
//! within the bounds of its own session, and nothing is logged of a session.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::PeerId;
use souk_crypto::NodeId;
use souk_market::units::RelayToken;
use souk_wire::relay::{ANSWER_CAP, Answer, Connect, REQUEST_CAP, Registration, Splice, Status};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::net::{
    address,
    conduct::Offence,
    counters::Counters,
    frame::{self, FrameError},
    names::What,
    peers::Peers,
    rate::{Rates, TokenBucket},
    streams::{Acceptor, PeerStream},
};

use super::{
    SILENCE, STEP, TokenHash, paced,
    registry::{Admission, Registry},
};

/// A session over which no byte went in either direction for this time is ended. SSH clients that want to rest longer
/// send keep-alives.
const SESSION_IDLE: Duration = Duration::from_secs(30 * 60);

/// Bytes of one session, both directions together: 64 GiB.
const SESSION_QUOTA_BYTES: u64 = 64 << 30;

/// Registrations of one provider; a faster one is slowed down to it.
const CHANGES_PER_SECOND: f64 = 20.0;
const CHANGES_BURST: f64 = 256.0;

/// Connections that one client may ask for.
const CONNECTS_PER_SECOND: f64 = 1.0;
const CONNECTS_BURST: f64 = 16.0;

/// The relay of one node.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    peers: Peers,
    registry: Arc<Mutex<Registry>>,
    streams: Arc<AtomicU64>,
    counters: Counters,
}

impl Server {
    pub(crate) fn new(peers: Peers, counters: Counters) -> Self {
        Self {
            peers,
            registry: Arc::default(),
            streams: Arc::default(),
            counters,
        }
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Keeps the registrations of providers.
    pub(crate) async fn serve_registrations(self, mut streams: Acceptor) {
        while let Some(stream) = streams.recv().await {
            let server = self.clone();
            // Bounded by the connections and by the streams of each.
            tokio::spawn(async move {
                let (peer, number) = (
                    stream.peer(),
                    server.streams.fetch_add(1, Ordering::Relaxed),
                );
                let offence = server.keep_registration(stream, peer, number).await;
                server.registry().handle_gone(&peer, number);
                if let Some(offence) = offence {
                    server.peers.report(peer, offence).await;
                }
            });
        }
    }

    async fn keep_registration(
        &self,
        mut stream: PeerStream,
        peer: PeerId,
        number: u64,
    ) -> Option<Offence> {
        let admitted = self.registry().handle_registered(peer, number);
        let mut rate = TokenBucket::new(CHANGES_PER_SECOND, CHANGES_BURST, Instant::now());
        loop {
            let read = frame::read_message(&mut stream, REQUEST_CAP, SILENCE).await;
            let change = match read {
                Ok(change) => change,
                Err(error) => return error.offence(),
            };
            sleep(rate.take(Instant::now())).await;
            let status = if admitted == Admission::Granted {
                self.change(&peer, change)
            } else {
                Status::Busy
            };
            frame::write_message(&mut stream, &Answer { status })
                .await
                .ok()?;
        }
    }

    fn change(&self, provider: &PeerId, change: Registration) -> Status {
        let mut registry = self.registry();
        match change {
            Registration::Add { hash, lifetime_s } => {
                let lifetime = Duration::from_secs(lifetime_s.into());
                let hash = TokenHash(*hash);
                status(registry.handle_add(provider, hash, lifetime, Instant::now()))
            }
            Registration::Remove { hash } => {
                registry.handle_remove(provider, &TokenHash(*hash));
                Status::Ok
            }
        }
    }

    /// Splices clients to providers.
    pub(crate) async fn serve_connections(self, mut streams: Acceptor) {
        let mut rates = Rates::new(CONNECTS_PER_SECOND, CONNECTS_BURST);
        while let Some(mut stream) = streams.recv().await {
            let client = stream.peer();
            let allowed = rates.try_take(client, Instant::now());
            let server = self.clone();
            // Bounded by the connections and by the streams of each.
            tokio::spawn(async move {
                let result = if allowed {
                    server.connect(&mut stream, client).await
                } else {
                    let answer = Answer {
                        status: Status::Busy,
                    };
                    let _ = frame::write_message(&mut stream, &answer).await;
                    Err(Some(Offence::Rate))
                };
                if let Err(Some(offence)) = result {
                    server.peers.report(client, offence).await;
                }
            });
        }
    }

    async fn connect(
        &self,
        stream: &mut PeerStream,
        client: PeerId,
    ) -> Result<(), Option<Offence>> {
        let blame = |error: FrameError| error.offence();
        let request: Connect = frame::read_message(stream, REQUEST_CAP, STEP)
            .await
            .map_err(blame)?;
        let token = RelayToken(*request.token);
        let Ok(provider) = NodeId::from_bytes(&*request.provider) else {
            return Err(Some(Offence::Framing));
        };
        let peer = address::peer_id(&provider);
        let hash = super::hash(&token);
        let admission = self
            .registry()
            .handle_connect(client, &peer, &hash, Instant::now());
        if admission != Admission::Granted {
            let status = status(admission);
            return frame::write_message(stream, &Answer { status })
                .await
                .map_err(|_| None);
        }
        let _session = Session::begin(self, client, peer, hash);
        let (status, onward) = match timeout(STEP, self.reach(provider, &token)).await {
            Ok(Ok(onward)) => (Status::Ok, Some(onward)),
            Ok(Err(status)) => (status, None),
            Err(_) => (Status::Away, None),
        };
        frame::write_message(stream, &Answer { status })
            .await
            .map_err(|_| None)?;
        if let Some(onward) = onward
            && let Some(offence) = self.splice(stream, onward).await
        {
            self.peers.report(peer, offence).await;
        }
        Ok(())
    }

    /// Asks the provider over its own connection; the status to pass on where it declines.
    async fn reach(&self, provider: NodeId, token: &RelayToken) -> Result<PeerStream, Status> {
        let mut onward = self
            .peers
            .open(provider, What::RelaySplice)
            .await
            .map_err(|_| Status::Away)?;
        let splice = Splice {
            token: token.0.into(),
        };
        frame::write_message(&mut onward, &splice)
            .await
            .map_err(|_| Status::Away)?;
        let answer: Answer = frame::read_message(&mut onward, ANSWER_CAP, STEP)
            .await
            .map_err(|_| Status::Away)?;
        match answer.status {
            Status::Ok => Ok(onward),
            declined => Err(declined),
        }
    }

    /// Carries a session to its end; what the provider is to be blamed for, if anything.
    async fn splice(&self, client: &mut PeerStream, mut provider: PeerStream) -> Option<Offence> {
        let read = Arc::new(AtomicU64::new(0));
        let client = Metered::new(client, read.clone());
        let provider = Metered::new(&mut provider, read.clone());
        // The client's stream is held until the session is over.
        let held = CancellationToken::new();
        let ended = tokio::select! {
            // How else a session ended is between its two ends.
            ended = paced::carry(client, provider, &held) => ended.err().flatten(),
            () = silence(&read) => None,
        };
        self.counters.count_relayed(read.load(Ordering::Relaxed));
        ended
    }
}

fn status(admission: Admission) -> Status {
    match admission {
        Admission::Granted => Status::Ok,
        Admission::Unknown => Status::Unknown,
        Admission::Full => Status::Busy,
    }
}

/// Gives a session's place back, however it ends.
struct Session<'a> {
    server: &'a Server,
    client: PeerId,
    provider: PeerId,
    token: TokenHash,
}

impl<'a> Session<'a> {
    fn begin(server: &'a Server, client: PeerId, provider: PeerId, token: TokenHash) -> Self {
        server.counters.add_relay_session(1);
        Self {
            server,
            client,
            provider,
            token,
        }
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.server.counters.add_relay_session(-1);
        self.server
            .registry()
            .handle_session_end(&self.client, &self.provider, &self.token);
    }
}

/// Returns once `bytes` has not changed for [`SESSION_IDLE`].
async fn silence(bytes: &AtomicU64) {
    let mut look = interval(SESSION_IDLE / 8);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut last, mut unchanged) = (0, 0);
    loop {
        look.tick().await;
        let now = bytes.load(Ordering::Relaxed);
        unchanged = if now == last { unchanged + 1 } else { 0 };
        last = now;
        if unchanged > 8 {
            return;
        }
    }
}

/// Counts what is read and ends the session at its quota.
struct Metered<'a> {
    stream: &'a mut PeerStream,
    read: Arc<AtomicU64>,
}

impl<'a> Metered<'a> {
    fn new(stream: &'a mut PeerStream, read: Arc<AtomicU64>) -> Self {
        Self { stream, read }
    }
}

impl AsyncRead for Metered<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut *self.stream).poll_read(cx, buf);
        let new = (buf.filled().len() - before) as u64;
        if self.read.fetch_add(new, Ordering::Relaxed) + new > SESSION_QUOTA_BYTES {
            return Poll::Ready(Err(io::ErrorKind::QuotaExceeded.into()));
        }
        poll
    }
}

impl AsyncWrite for Metered<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}
