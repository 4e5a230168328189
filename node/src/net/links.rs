//! Links: the long-lived streams that carry mix frames.
//!
//! A link has one direction; two mixes that send to each other hold two. The sender keeps it open:
//!
//! ```text
//!  set_links ──► connecting ──► open ──► writing ◄──► idle
//!                  ▲  │ failed    │ the stream ends
//!                  │  ▼           │
//!                  waiting ◄──────┘   (doubling, with jitter, up to MAX_BACKOFF; at once if the node connects by itself)
//! ```
//!
//! Frames have one size ([`Frame::LEN`]) and no length prefix. Each link has a queue of [`LINK_QUEUE`] frames; what does
//! not fit is dropped and counted, and the acknowledgements of the message layer see to it. The receiving side hands
//! frames to one bounded queue; when that is full the streams are not read, which holds the senders back. All peers of one
//! [`Origin`] to which there is no link (a client at its entry, or a stranger) may send [`STRANGER_PER_SECOND`] frames together,
//! over however many streams, and those to which there is one [`NEIGHBOUR_PER_SECOND`]. Each frame says from which origin it is,
//! so that the mix can share out what an epoch holds.
//!
//! Threats: whoever sends what is valid as fast as it can, under very many identities or with a card of its own, to use up what
//! this node remembers of an epoch. And whoever shows more cards than there are links: [`Places`] says who gets one.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId};
use souk_crypto::NodeId;
use souk_market::shares::Source;
use souk_sphinx::{Frame, HopAddress, TagSource};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::mix::{self, Arrival, LinkRefused};

use super::{
    address,
    backoff::Backoff,
    conduct::Offence,
    counters::{Counters, Lost},
    frame::FRAME_DEADLINE,
    names::What,
    origin::Origin,
    peers::Peers,
    places::Places,
    rate::Rates,
    streams::{Acceptor, PeerStream},
};

/// Frames that wait for one link: 600 KiB at worst, a tenth of a second at full speed.
pub const LINK_QUEUE: usize = 256;

/// Frames per second from one address, of peers to which this node has no link. A client sends a request of 24 packets and its
/// repeats; at an epoch of an hour this is a fifth of the replay tags.
pub const STRANGER_PER_SECOND: f64 = 200.0;
const STRANGER_BURST: f64 = 512.0;

/// Frames per second from one address, of neighbours to which this node has a link: about what one core opens, and eight times
/// what an epoch of an hour has replay tags for, so that only one who floods is ever held back.
const NEIGHBOUR_PER_SECOND: f64 = 8_192.0;
const NEIGHBOUR_BURST: f64 = 16_384.0;

/// Frames written together, to save system calls: 19 KiB.
const BATCH: usize = 8;

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The links of one node or client.
#[derive(Clone, Debug)]
pub struct MixLinks {
    peers: Peers,
    table: Arc<RwLock<Table>>,
    strangers: Arc<Mutex<Rates<Origin>>>,
    neighbours: Arc<Mutex<Rates<Origin>>>,
    counters: Counters,
}

/// A node to which there may be a link.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The node.
    pub node: NodeId,
    /// Where it listens.
    pub addresses: Vec<Multiaddr>,
    /// Where its card came from, to share out places by.
    pub source: Source,
}

#[derive(Debug)]
struct Table {
    links: HashMap<HopAddress, Link>,
    places: Places,
}

#[derive(Debug)]
struct Link {
    addresses: Vec<Multiaddr>,
    queue: mpsc::Sender<Frame>,
    /// Its stream is open.
    is_up: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl MixLinks {
    pub(super) fn new(peers: Peers, counters: Counters) -> Self {
        Self {
            peers,
            table: Arc::new(RwLock::new(Table {
                links: HashMap::new(),
                places: Places::new(rand::random()),
            })),
            strangers: Arc::new(Mutex::new(Rates::new(STRANGER_PER_SECOND, STRANGER_BURST))),
            neighbours: Arc::new(Mutex::new(Rates::new(
                NEIGHBOUR_PER_SECOND,
                NEIGHBOUR_BURST,
            ))),
            counters,
        }
    }

    /// Keeps links to exactly these nodes, of this node's own choice: new ones are opened, others closed; unchanged ones are left
    /// alone. This node itself is left out.
    pub fn set_links(&self, wanted: Vec<(NodeId, Vec<Multiaddr>)>) {
        let own = |(node, addresses)| Wanted {
            node,
            addresses,
            source: Source::Own,
        };
        self.share_links(wanted.into_iter().map(own).collect());
    }

    /// The same for nodes that others told of. Of more than [`MAX_LINKS`](super::MAX_LINKS) some are drawn. To be called every
    /// few minutes at least: nodes that did not answer for a while lose theirs to others.
    pub fn share_links(&self, mut wanted: Vec<Wanted>) {
        let local = self.peers.local();
        let mut table = self.write();
        let Table { links, places } = &mut *table;
        wanted.retain(|to| to.node != local);
        let shown: Vec<_> = wanted.iter().map(|to| (to.node, to.source)).collect();
        let is_up = |node: &NodeId| {
            let link = links.get(&hop(node));
            link.is_some_and(|link| link.is_up.load(Ordering::Relaxed))
        };
        let chosen = places.choose(&shown, is_up, Instant::now());
        let keep: HashSet<_> = chosen.iter().map(hop).collect();
        links.retain(|hop, _| keep.contains(hop));
        wanted.retain(|to| chosen.contains(&to.node));
        for Wanted {
            node, addresses, ..
        } in wanted
        {
            if links
                .get(&hop(&node))
                .is_some_and(|link| link.addresses == addresses)
            {
                continue;
            }
            let (queue, frames) = mpsc::channel(LINK_QUEUE);
            let is_up = Arc::new(AtomicBool::new(false));
            let task = tokio::spawn(keep_link(
                self.peers.clone(),
                node,
                addresses.clone(),
                frames,
                is_up.clone(),
                self.counters.clone(),
            ));
            let link = Link {
                addresses,
                queue,
                is_up,
                task,
            };
            links.insert(hop(&node), link);
        }
    }

    fn has(&self, peer: &PeerId) -> bool {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        address::public_key(peer).is_some_and(|key| table.links.contains_key(&HopAddress(key)))
    }

    /// How long a frame of `peer` has to wait for its turn.
    fn pace(&self, peer: &PeerId, origin: Origin) -> Duration {
        let rates = match self.has(peer) {
            true => &self.neighbours,
            false => &self.strangers,
        };
        let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.take(origin, Instant::now())
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(|e| e.into_inner())
    }

    /// Reads the links that others keep to this node.
    pub(super) async fn serve(self, mut streams: Acceptor, incoming: mpsc::Sender<Arrival>) {
        while let Some(stream) = streams.recv().await {
            let (links, incoming) = (self.clone(), incoming.clone());
            // Bounded by the connections and by the streams of each.
            tokio::spawn(async move { links.read(stream, incoming).await });
        }
    }

    async fn read(self, mut stream: PeerStream, incoming: mpsc::Sender<Arrival>) {
        let peer = stream.peer();
        let origin = self.peers.origin_of(&peer);
        let from = TagSource(origin.number());
        let mut bytes = vec![0; Frame::LEN];
        loop {
            let frame = match read_frame(&mut stream, &mut bytes).await {
                Ok(frame) => frame,
                Err(None) => return,
                Err(Some(offence)) => return self.peers.report(peer, offence).await,
            };
            self.counters.count_received();
            let wait = self.pace(&peer, origin);
            if !wait.is_zero() {
                sleep(wait).await;
            }
            if incoming.send(Arrival { frame, from }).await.is_err() {
                return;
            }
        }
    }
}

impl mix::Links for MixLinks {
    fn has_link(&self, to: &HopAddress) -> bool {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        // A link that never comes up fills its queue, and then takes nothing.
        table
            .links
            .get(to)
            .is_some_and(|link| link.queue.capacity() > 0)
    }

    fn try_send(&self, to: HopAddress, frame: Frame) -> Result<(), LinkRefused> {
        let table = self.table.read().unwrap_or_else(|e| e.into_inner());
        let result = match table.links.get(&to) {
            None => Err(LinkRefused::NoLink),
            Some(link) => link.queue.try_send(frame).map_err(|_| LinkRefused::Full),
        };
        result.inspect_err(|refused| {
            self.counters.count_dropped(match refused {
                LinkRefused::NoLink => Lost::NoLink,
                LinkRefused::Full => Lost::Full,
            });
        })
    }
}

/// A node's address in a Sphinx route is its key.
fn hop(node: &NodeId) -> HopAddress {
    HopAddress(*node.as_bytes())
}

/// The next frame, or what the peer is to be blamed for.
async fn read_frame(stream: &mut PeerStream, bytes: &mut [u8]) -> Result<Frame, Option<Offence>> {
    // Between two frames a link may rest as long as it likes; the connection's own pings find out whether it is alive.
    stream.read_exact(&mut bytes[..1]).await.map_err(|_| None)?;
    if bytes[0] != souk_sphinx::link::FRAME_VERSION {
        return Err(Some(Offence::Framing));
    }
    match timeout(FRAME_DEADLINE, stream.read_exact(&mut bytes[1..])).await {
        Err(_) => Err(Some(Offence::Stalled)),
        Ok(Err(_)) => Err(None),
        Ok(Ok(_)) => Frame::from_bytes(bytes).map_err(|_| Some(Offence::Framing)),
    }
}

/// Keeps one link open for as long as it is wanted.
async fn keep_link(
    peers: Peers,
    node: NodeId,
    addresses: Vec<Multiaddr>,
    mut frames: mpsc::Receiver<Frame>,
    is_up: Arc<AtomicBool>,
    counters: Counters,
) {
    let mut backoff = Backoff::new(MIN_BACKOFF, MAX_BACKOFF);
    loop {
        let (mut tried, mut opened) = (None, None);
        if peers.connect(node, &addresses).await.is_ok() {
            tried = peers.connection(node);
            opened = peers.open(node, What::Mix).await.ok();
        }
        if let Some(stream) = opened {
            let since = Instant::now();
            let _up = Up::begin(&counters, &is_up);
            match write_frames(stream, &mut frames, &counters).await {
                LinkEnd::NoLongerWanted => return,
                LinkEnd::Broken => {}
            }
            backoff.handle_success(since.elapsed());
        }
        let pause = backoff.pause(&mut rand::rng());
        peers.pause(node, tried, pause).await;
    }
}

/// A link whose stream is open; it is told when that ends, also where its task is aborted.
struct Up<'a> {
    counters: &'a Counters,
    is_up: &'a AtomicBool,
}

impl<'a> Up<'a> {
    fn begin(counters: &'a Counters, is_up: &'a AtomicBool) -> Self {
        counters.add_link(1);
        is_up.store(true, Ordering::Relaxed);
        Self { counters, is_up }
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.counters.add_link(-1);
        self.is_up.store(false, Ordering::Relaxed);
    }
}

enum LinkEnd {
    NoLongerWanted,
    Broken,
}

async fn write_frames(
    stream: PeerStream,
    frames: &mut mpsc::Receiver<Frame>,
    counters: &Counters,
) -> LinkEnd {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut batch = Vec::with_capacity(BATCH);
    let mut bytes = Vec::with_capacity(BATCH * Frame::LEN);
    loop {
        tokio::select! {
            count = frames.recv_many(&mut batch, BATCH) => {
                if count == 0 {
                    return LinkEnd::NoLongerWanted;
                }
                bytes.clear();
                for frame in batch.drain(..) {
                    bytes.extend_from_slice(&*frame.to_bytes());
                }
                let write = async {
                    writer.write_all(&bytes).await?;
                    writer.flush().await
                };
                match timeout(FRAME_DEADLINE, write).await {
                    Ok(Ok(())) => counters.count_sent(count),
                    Ok(Err(_)) | Err(_) => return LinkEnd::Broken,
                }
            }
            // Nothing may come back on a link; an end or a byte both mean that this stream is of no more use.
            _ = reader.read_u8() => return LinkEnd::Broken,
        }
    }
}
