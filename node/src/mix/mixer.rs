//! The mix of this node: from frames that arrive to packets that go on.
//!
//! ```text
//!  frames ─► intake ─► peel on blocking threads ─► persist ─► end?  ─yes─► Mailroom
//!            batches    MAC, tag into memory        group      │no
//!                                                   commit     ▼
//!                                                            delay pool ─► mailbox here? ─► Mailboxes
//!                                                                               └no─► Links
//! ```
//!
//! All queues are bounded. A full one holds the stage before it back, and in the end the network stops reading, so
//! that the neighbours feel it; only what a stranger's packet could block for others (the pool, a link, a mailbox, the
//! mailroom) drops instead, and the sender of the packet resends.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use souk_crypto::MixKey;
use souk_sphinx::{
    Frame, HopAddress, Peeled,
    delay::{DelayPool, MixDelay, POOL_CAPACITY},
    packet::{Body, PeelError},
    replay::TagRefused,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    counters::MixCounters,
    key_ring::{EpochKeys, KeyRing},
    links::{Arrival, Deposit, Links, Mailboxes},
    unix_now,
};

/// Frames that wait to be peeled: 1.2 MB, about 50 ms of work for one core.
pub const FRAME_QUEUE: usize = 512;

/// Frames peeled on one thread without a pause: 1.4 ms of work, against some microseconds to hand it over.
const PEEL_BATCH: usize = 16;

/// Peeled batches that wait for the disk: 2.5 MB at most.
const BATCH_QUEUE: usize = 64;

/// Batches whose tags are written together.
const COMMIT_BATCHES: usize = 64;

/// Packets that wait for their place in the delay pool.
const POOL_QUEUE: usize = 1024;

/// How often the keys are looked at: soon enough for the shortest epoch that a network can have (10 s).
const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// What a mixer works with.
pub struct MixerParts {
    /// The keys of the open epochs.
    pub keys: Arc<KeyRing>,
    /// The address of this node.
    pub node: HopAddress,
    /// The delays of the network.
    pub delay: MixDelay,
    /// Links to other nodes.
    pub links: Arc<dyn Links>,
    /// Mailboxes held here.
    pub mailboxes: Arc<dyn Mailboxes>,
    /// What arrives on links; a queue of [`FRAME_QUEUE`].
    pub frames: mpsc::Receiver<Arrival>,
    /// Where packets that end here go, if somebody reads messages at this node.
    pub mailroom: Option<mpsc::Sender<Box<Body>>>,
    /// Totals.
    pub counters: Arc<MixCounters>,
    /// Threads that peel at once.
    pub peelers: usize,
}

/// A running mix. It stops when its token is cancelled or all links are gone.
#[derive(Debug)]
pub struct Mixer {
    tasks: TaskTracker,
    mix_keys: watch::Receiver<Vec<MixKey>>,
}

impl Mixer {
    /// Starts the tasks of the mix.
    #[must_use]
    pub fn start(parts: MixerParts, stop: &CancellationToken) -> Self {
        let (peeled, to_persist) = mpsc::channel(BATCH_QUEUE);
        let (persisted, to_delay) = mpsc::channel(POOL_QUEUE);
        let (publish, mix_keys) = watch::channel(parts.keys.mix_keys());
        let peeler = Arc::new(Peeler {
            keys: parts.keys.clone(),
            node: parts.node,
            counters: parts.counters.clone(),
        });
        let tasks = TaskTracker::new();
        let peelers = Semaphore::new(parts.peelers.max(1));
        tasks.spawn(intake(
            peeler,
            parts.frames,
            peeled,
            Arc::new(peelers),
            stop.clone(),
        ));
        tasks.spawn(persist(
            to_persist,
            persisted,
            parts.mailroom,
            parts.counters.clone(),
        ));
        tasks.spawn(
            Outlet {
                pool: DelayPool::new(POOL_CAPACITY, parts.delay.max()),
                links: parts.links,
                mailboxes: parts.mailboxes,
                counters: parts.counters,
            }
            .run(to_delay),
        );
        tasks.spawn(rotate(parts.keys, publish, stop.clone()));
        tasks.close();
        Self { tasks, mix_keys }
    }

    /// The public keys of the open epochs; it changes when keys are drawn, and the node's card with it.
    #[must_use]
    pub fn mix_keys(&self) -> watch::Receiver<Vec<MixKey>> {
        self.mix_keys.clone()
    }

    /// Returns when all tasks have ended. Packets in the delay pool are dropped then.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
    }
}

/// A packet whose tag is taken and not yet on disk.
struct Peel {
    keys: Arc<EpochKeys>,
    onward: Onward,
}

enum Onward {
    Hop(Hop),
    End(Box<Body>),
}

struct Hop {
    next: HopAddress,
    delay: Duration,
    arrived: Instant,
    frame: Frame,
}

/// Peels what arrives, a batch to a thread.
async fn intake(
    peeler: Arc<Peeler>,
    mut frames: mpsc::Receiver<Arrival>,
    peeled: mpsc::Sender<Vec<Peel>>,
    peelers: Arc<Semaphore>,
    stop: CancellationToken,
) {
    loop {
        let Ok(permit) = peelers.clone().acquire_owned().await else {
            break;
        };
        let mut batch = Vec::with_capacity(PEEL_BATCH);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            count = frames.recv_many(&mut batch, PEEL_BATCH) => if count == 0 { break },
        }
        let (peeler, peeled) = (peeler.clone(), peeled.clone());
        spawn_blocking(move || {
            let peels = peeler.peel_all(batch);
            // The stages behind end only after this one.
            if !peels.is_empty() && peeled.blocking_send(peels).is_err() {
                tracing::debug!("the mix stopped with packets at hand");
            }
            drop(permit);
        });
    }
}

#[derive(Debug)]
struct Peeler {
    keys: Arc<KeyRing>,
    node: HopAddress,
    counters: Arc<MixCounters>,
}

impl Peeler {
    fn peel_all(&self, arrivals: Vec<Arrival>) -> Vec<Peel> {
        let arrived = Instant::now();
        self.counters.frames_in.add(arrivals.len());
        arrivals
            .iter()
            .filter_map(|arrival| self.peel(arrival, arrived))
            .collect()
    }

    fn peel(&self, arrival: &Arrival, arrived: Instant) -> Option<Peel> {
        let (counters, frame) = (&self.counters, &arrival.frame);
        let open = self.keys.clock().accepts(frame.epoch, unix_now());
        let Some(keys) = self.keys.epoch(frame.epoch).filter(|_| open) else {
            counters.wrong_epoch.add(1);
            return None;
        };
        let onward = match keys.peel(frame, arrival.from) {
            Ok(Peeled::Forward {
                next,
                delay,
                packet,
            }) => {
                let frame = Frame {
                    epoch: frame.epoch,
                    packet,
                };
                Onward::Hop(Hop {
                    next,
                    delay,
                    arrived,
                    frame,
                })
            }
            Ok(Peeled::Message { destination, body }) if destination == self.node => {
                Onward::End(body)
            }
            // Nodes make no SURBs, so a reply that ends here is as meaningless as a message for somebody else.
            Ok(Peeled::Message { .. } | Peeled::Reply { .. }) => {
                counters.bad_format.add(1);
                return None;
            }
            Err(error) => {
                let counter = match error {
                    PeelError::Header => &counters.bad_header,
                    PeelError::Tag(TagRefused::Seen) => &counters.replays,
                    PeelError::Tag(TagRefused::Full) => &counters.tags_full,
                    PeelError::Tag(TagRefused::ShareUsed) => &counters.tags_share_used,
                    PeelError::Version { .. } | PeelError::Routing => &counters.bad_format,
                    PeelError::Payload => &counters.bad_payload,
                };
                counter.add(1);
                return None;
            }
        };
        Some(Peel { keys, onward })
    }
}

/// Writes the tags of all packets at hand to the disk, then lets the packets go on.
async fn persist(
    mut peeled: mpsc::Receiver<Vec<Peel>>,
    persisted: mpsc::Sender<Hop>,
    mailroom: Option<mpsc::Sender<Box<Body>>>,
    counters: Arc<MixCounters>,
) {
    loop {
        let mut batches = Vec::new();
        if peeled.recv_many(&mut batches, COMMIT_BATCHES).await == 0 {
            return;
        }
        let written = {
            let counters = counters.clone();
            spawn_blocking(move || persist_tags(batches, &counters)).await
        };
        let Ok(peels) = written else {
            tracing::error!("writing replay tags failed unexpectedly; its packets are dropped");
            continue;
        };
        for peel in peels {
            match peel.onward {
                Onward::Hop(hop) => {
                    if persisted.send(hop).await.is_err() {
                        return;
                    }
                }
                Onward::End(body) => {
                    counters.final_packets.add(1);
                    if mailroom
                        .as_ref()
                        .is_none_or(|mailroom| mailroom.try_send(body).is_err())
                    {
                        counters.unread.add(1);
                    }
                }
            }
        }
    }
}

/// The packets whose tags are on disk now.
fn persist_tags(batches: Vec<Vec<Peel>>, counters: &MixCounters) -> Vec<Peel> {
    let mut by_epoch: BTreeMap<_, Vec<Peel>> = BTreeMap::new();
    for peel in batches.into_iter().flatten() {
        by_epoch.entry(peel.keys.epoch()).or_default().push(peel);
    }
    let mut persisted = Vec::new();
    for mut peels in by_epoch.into_values() {
        let written = peels.first().map_or(Ok(()), |first| first.keys.persist());
        match written {
            Ok(()) => persisted.append(&mut peels),
            Err(error) => {
                counters.tags_unwritten.add(peels.len());
                tracing::error!(%error, source = ?std::error::Error::source(&error), "packets are dropped");
            }
        }
    }
    persisted
}

/// Lets packets wait for their time and passes them on.
struct Outlet {
    pool: DelayPool<(HopAddress, Frame)>,
    links: Arc<dyn Links>,
    mailboxes: Arc<dyn Mailboxes>,
    counters: Arc<MixCounters>,
}

impl Outlet {
    async fn run(mut self, mut persisted: mpsc::Receiver<Hop>) {
        let mut hops = Vec::new();
        loop {
            let next_due = self.pool.next_due();
            let due = async {
                match next_due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = persisted.recv_many(&mut hops, POOL_QUEUE) => if count == 0 { return },
                () = due => {}
            }
            for hop in hops.drain(..) {
                // The wait began when the packet arrived; what peeling and the disk took is part of it.
                if self
                    .pool
                    .push(hop.arrived, hop.delay, (hop.next, hop.frame))
                    .is_err()
                {
                    self.counters.pool_full.add(1);
                }
            }
            let now = Instant::now();
            while let Some((next, frame)) = self.pool.poll_due(now) {
                self.pass_on(next, frame);
            }
            self.counters.set_waiting(self.pool.len());
        }
    }

    fn pass_on(&self, next: HopAddress, frame: Frame) {
        let counter = match self.mailboxes.try_deposit(next, frame) {
            Deposit::Held => &self.counters.deposited,
            Deposit::Full => &self.counters.mailbox_full,
            Deposit::Unknown(frame) => match self.links.try_send(next, frame) {
                Ok(()) => &self.counters.forwarded,
                Err(_) => &self.counters.link_refused,
            },
        };
        counter.add(1);
    }
}

/// Draws and removes keys as the epochs pass.
async fn rotate(keys: Arc<KeyRing>, publish: watch::Sender<Vec<MixKey>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(ROTATION_CHECK) => {}
        }
        let ring = keys.clone();
        match spawn_blocking(move || ring.rotate(unix_now())).await {
            Ok(Ok(true)) => drop(publish.send_replace(keys.mix_keys())),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, source = ?std::error::Error::source(&error), "the mix keys cannot be rotated");
            }
            Err(error) => tracing::error!(%error, "rotating the mix keys failed unexpectedly"),
        }
    }
}
