//! The mailbox at an entry: `/souk/<network>/mailbox/1`.
//!
//! ```text
//!  client ──► Register{key, lifetime, quota}      ◄── Answer{status}
//!  client ──► Collect{key, acknowledged, wait}    ◄── batch: always BATCH_BYTES, at the next tick that has something
//!  client ──► Register{key, no lifetime}          ◄── Answer{status}: the mailbox is given back
//! ```
//!
//! A batch has one size, full or empty, and answers leave on ticks of [`TICK`]. A collection that waits is answered at the
//! first tick that has mail, so an observer of the line sees when something came; one that asks not to wait hides it. The
//! entry knows that this client has mail and never from whom.

mod store;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use souk_crypto::NodeId;
use souk_sphinx::{Frame, HopAddress};
use souk_wire::mailbox::{
    ANSWER_CAP, Answer, Batch, REQUEST_CAP, Request, Status, decode_batch, encode_batch,
};
pub use souk_wire::mailbox::{BATCH_BYTES, BATCH_FRAMES};
use tokio::time::{MissedTickBehavior, interval, sleep};

use store::{Deposited, MailboxStore, NoRoom, Owner};
pub use store::{MAX_LIFETIME, MAX_QUOTA, MailboxKey};

use crate::mix::{Deposit, Mailboxes};

use super::{
    conduct::Offence,
    counters::Counters,
    frame::{self, FrameError},
    names::What,
    peers::Peers,
    rate::TokenBucket,
    streams::{Acceptor, OpenError, PeerStream},
};

/// Answers to collections leave on ticks of this clock.
const TICK: Duration = Duration::from_millis(25);

/// Longest wait that a collection may ask for.
pub const MAX_WAIT: Duration = Duration::from_secs(25);

/// How long a client may rest between two requests before its stream is closed.
const IDLE: Duration = Duration::from_secs(600);

/// How long the client waits beyond what it asked the entry to wait.
const PATIENCE: Duration = Duration::from_secs(15);

/// Requests on one stream; a faster client is slowed down to it.
const PER_SECOND: f64 = 20.0;
const BURST: f64 = 40.0;

/// The mailboxes of this node, for the mix driver and the protocol.
#[derive(Clone, Debug)]
pub struct MailboxService {
    store: Arc<Mutex<MailboxStore>>,
    counters: Counters,
}

impl MailboxService {
    pub(super) fn new(counters: Counters) -> Self {
        Self {
            store: Arc::default(),
            counters,
        }
    }

    fn store(&self) -> MutexGuard<'_, MailboxStore> {
        self.store.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn handle_time(&self, now: Instant) {
        let mut store = self.store();
        store.handle_time(now);
        self.counters.set_mailbox_packets(store.held());
    }
}

impl Mailboxes for MailboxService {
    fn try_deposit(&self, mailbox: HopAddress, frame: Frame) -> Deposit {
        let deposited = self.store().handle_deposit(&mailbox, frame, Instant::now());
        match deposited {
            Ok(Deposited::Held) => Deposit::Held,
            Ok(Deposited::Full) => Deposit::Full,
            Err(frame) => Deposit::Unknown(frame),
        }
    }
}

/// Why a mailbox could not be used.
#[derive(Debug, thiserror::Error)]
pub enum MailboxError {
    /// The stream could not be opened.
    #[error("no stream to the entry")]
    Open(#[from] OpenError),
    /// The entry broke the protocol, or the stream broke.
    #[error("the connection to the mailbox broke off")]
    Frame(#[from] FrameError),
    /// The entry has no room.
    #[error("the entry has no room for another mailbox")]
    NoRoom,
    /// The mailbox has expired or the entry has forgotten it: register again.
    #[error("the entry does not know the mailbox")]
    Unknown,
}

/// A client's stream to its mailbox.
#[derive(Debug)]
pub struct Mailbox {
    stream: PeerStream,
    key: MailboxKey,
    acknowledged: u64,
}

impl Peers {
    /// Registers the mailbox of `key` at a connected entry, or renews it, and returns the stream to collect over.
    ///
    /// `lifetime` is cut to [`MAX_LIFETIME`] and `quota` to [`MAX_QUOTA`] frames.
    ///
    /// # Errors
    /// [`MailboxError`].
    pub async fn open_mailbox(
        &self,
        entry: NodeId,
        key: MailboxKey,
        lifetime: Duration,
        quota: u16,
    ) -> Result<Mailbox, MailboxError> {
        let mut stream = self.open(entry, What::Mailbox).await?;
        register(&mut stream, &key, lifetime, quota).await?;
        Ok(Mailbox {
            stream,
            key,
            acknowledged: 0,
        })
    }
}

async fn register(
    stream: &mut PeerStream,
    key: &MailboxKey,
    lifetime: Duration,
    quota: u16,
) -> Result<(), MailboxError> {
    let request = Request::Register {
        key: (*key.as_bytes()).into(),
        lifetime_s: u32::try_from(lifetime.min(MAX_LIFETIME).as_secs())
            .expect("a day has fewer seconds"),
        quota,
    };
    frame::write_message(stream, &request).await?;
    let answer: Answer = frame::read_message(stream, ANSWER_CAP, PATIENCE).await?;
    match answer.status {
        Status::Ok => Ok(()),
        Status::NoRoom => Err(MailboxError::NoRoom),
        Status::Unknown => Err(MailboxError::Unknown),
    }
}

impl Mailbox {
    /// Acknowledges the last batch and waits up to `wait` (cut to [`MAX_WAIT`]) for the next; it may be empty.
    ///
    /// # Errors
    /// [`MailboxError`]; after a broken stream the same batch comes again over a new one.
    pub async fn collect(&mut self, wait: Duration) -> Result<Vec<Frame>, MailboxError> {
        let wait = wait.min(MAX_WAIT);
        let request = Request::Collect {
            key: (*self.key.as_bytes()).into(),
            acknowledged: self.acknowledged,
            wait_ms: u32::try_from(wait.as_millis()).expect("capped"),
        };
        frame::write_message(&mut self.stream, &request).await?;
        let bytes = frame::read(&mut self.stream, BATCH_BYTES, wait + PATIENCE).await?;
        let batch = decode_batch(&bytes)
            .map_err(FrameError::from)?
            .ok_or(MailboxError::Unknown)?;
        self.acknowledged = batch.last;
        Ok(batch.frames)
    }

    /// Gives the mailbox back, so that its place is free at once.
    ///
    /// # Errors
    /// [`MailboxError`]; its place is free then once the entry needs it.
    pub async fn release(mut self) -> Result<(), MailboxError> {
        register(&mut self.stream, &self.key, Duration::ZERO, 0).await
    }
}

/// Answers all clients, and drops what has expired.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, service: MailboxService) {
    let mut sweep = interval(Duration::from_secs(5));
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { return };
                let (peers, service) = (peers.clone(), service.clone());
                // Bounded by the connections and by the streams of each.
                tokio::spawn(async move {
                    let peer = stream.peer();
                    let origin = peers.origin_of(&peer);
                    let owner = Owner { peer, origin };
                    if let Some(offence) = answer_all(stream, owner, &service).await {
                        peers.report(peer, offence).await;
                    }
                });
            }
            _ = sweep.tick() => service.handle_time(Instant::now()),
        }
    }
}

/// Answers one client until it goes; what it is to be blamed for, if anything.
async fn answer_all(
    mut stream: PeerStream,
    owner: Owner,
    service: &MailboxService,
) -> Option<Offence> {
    let mut rate = TokenBucket::new(PER_SECOND, BURST, Instant::now());
    loop {
        let request = match frame::read_message(&mut stream, REQUEST_CAP, IDLE).await {
            Ok(request) => request,
            Err(error) => return error.offence(),
        };
        sleep(rate.take(Instant::now())).await;
        let written = match request {
            Request::Register {
                key,
                lifetime_s,
                quota,
            } => {
                let registered = service.store().handle_register(
                    &MailboxKey::from_bytes(*key),
                    owner,
                    Duration::from_secs(lifetime_s.into()),
                    quota,
                    Instant::now(),
                );
                let status = match registered {
                    Ok(()) => Status::Ok,
                    Err(NoRoom) => Status::NoRoom,
                };
                frame::write_message(&mut stream, &Answer { status }).await
            }
            Request::Collect {
                key,
                acknowledged,
                wait_ms,
            } => {
                let wait = Duration::from_millis(wait_ms.into()).min(MAX_WAIT);
                let key = MailboxKey::from_bytes(*key);
                let batch = collect(service, &key, acknowledged, wait).await;
                frame::write(&mut stream, &encode_batch(batch.as_ref())).await
            }
        };
        if written.is_err() {
            // Not reading is no offence: such a client holds one batch here, and no longer than the deadline.
            return None;
        }
    }
}

/// Waits for mail, looking at every tick.
async fn collect(
    service: &MailboxService,
    key: &MailboxKey,
    acknowledged: u64,
    wait: Duration,
) -> Option<Batch> {
    let deadline = Instant::now() + wait;
    let mut clock = interval(TICK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        clock.tick().await;
        let now = Instant::now();
        let batch = service
            .store()
            .handle_collect(key, acknowledged, BATCH_FRAMES, now)?;
        if !batch.frames.is_empty() || now >= deadline {
            return Some(batch);
        }
    }
}
