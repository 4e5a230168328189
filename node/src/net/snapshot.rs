//! The whole card set in bulk: `/souk/<network>/cards/1`.
//!
//! ```text
//!  asker ──► Request{what}
//!        ◄── Head{status, epoch, root, objects}
//!        ◄── page, page, …   (only for What::All; each an array of byte strings, until all objects have come)
//! ```
//!
//! Nobody can ask for one provider's data, because that question alone would tell who rents from whom. A server could
//! hand out marked or missing cards: so the head carries the root of the card set of an epoch, and a client compares
//! the roots of several entries. Everything that comes is opaque here; whoever asked verifies it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use souk_crypto::NodeId;
use souk_wire::cards::{
    HEAD_CAP, Head, PAGE_BYTES, REQUEST_CAP, Request, Status, Wanted, decode_page, encode_page,
    pages,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::{
    conduct::Offence,
    frame::{self, FrameError},
    names::What,
    peers::Peers,
    rate::Rates,
    slots::{Slot, Slots},
    streams::{Acceptor, OpenError, PeerStream},
};

/// Objects in one snapshot. A market ten times the size that is measured fits in it.
pub const MAX_OBJECTS: usize = 32_768;

/// Bytes of objects in one snapshot, 32 MiB.
pub const MAX_SNAPSHOT_BYTES: usize = 32 << 20;

/// How long each side waits for the other's next frame.
const IDLE: Duration = Duration::from_secs(15);

/// A whole snapshot must have gone out within this time.
const SERVE_DEADLINE: Duration = Duration::from_secs(120);

/// Snapshots sent at the same time; each holds one page.
const MAX_CONCURRENT: usize = 32;

/// Of those, the ones to one address: some nodes behind one router at once, and four addresses to take them all.
const MAX_CONCURRENT_OF_ORIGIN: usize = 8;

/// Requests of one peer: eight at once, then one in five seconds.
const PER_SECOND: f64 = 0.2;
const BURST: f64 = 8.0;

/// The card set of one epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The epoch that the root belongs to.
    pub epoch: u64,
    /// Root over the card set of the epoch.
    pub root: [u8; 32],
    /// Signed objects as they travelled by gossip, in the order of their worth: cards, capacity, what was said of logs.
    pub objects: Arc<[Bytes]>,
}

/// Head of a snapshot: what entries are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotHead {
    /// The epoch that the root belongs to.
    pub epoch: u64,
    /// Root over the card set of the epoch.
    pub root: [u8; 32],
    /// Objects in the snapshot.
    pub objects: usize,
}

/// Where the served card set comes from.
pub trait SnapshotSource: Send + Sync + 'static {
    /// The card set now. It is called for each request, so it should be a clone of something prepared.
    fn snapshot(&self) -> Snapshot;
}

/// Why no snapshot came.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream could not be opened.
    #[error("no stream to the node")]
    Open(#[from] OpenError),
    /// The node broke the protocol, or the stream broke.
    #[error("the snapshot broke off")]
    Frame(#[from] FrameError),
    /// The node is busy or was asked too often.
    #[error("the node is busy; ask again later")]
    Busy,
    /// The node announces more than a snapshot may hold.
    #[error("the node announces {objects} objects where at most {MAX_OBJECTS} are allowed")]
    TooLarge {
        /// Announced objects.
        objects: u32,
    },
}

impl Peers {
    /// Asks a connected node for the head of its card set.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn snapshot_head(&self, node: NodeId) -> Result<SnapshotHead, SnapshotError> {
        let mut stream = self.open(node, What::Cards).await?;
        ask(&mut stream, Wanted::Head).await
    }

    /// Takes the card set of a connected node, as far as it fits into [`MAX_SNAPSHOT_BYTES`]: cards come first, and whoever
    /// asked sees by the root whether they are complete.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn snapshot(&self, node: NodeId) -> Result<Snapshot, SnapshotError> {
        let mut stream = self.open(node, What::Cards).await?;
        let head = ask(&mut stream, Wanted::All).await?;
        let objects = take_objects(&mut stream, head.objects, MAX_SNAPSHOT_BYTES).await?;
        Ok(Snapshot {
            epoch: head.epoch,
            root: head.root,
            objects: objects.into(),
        })
    }
}

/// Reads `count` objects, or as many as come before they would take more than `budget` bytes.
async fn take_objects(
    stream: &mut (impl AsyncRead + Unpin),
    count: usize,
    budget: usize,
) -> Result<Vec<Bytes>, FrameError> {
    let mut objects: Vec<Bytes> = Vec::new();
    let mut total = 0;
    while objects.len() < count {
        let page = frame::read(stream, PAGE_BYTES, IDLE).await?;
        let room = count - objects.len();
        total += decode_page(&page, room, &mut objects)?;
        if total > budget {
            objects.truncate(fitting(&objects, budget));
            break;
        }
    }
    Ok(objects)
}

/// How many of the first objects fit into `budget` bytes. They are in the order of their worth, and the root is over the
/// first kind alone, so what is left out at the end spoils nothing.
fn fitting(objects: &[Bytes], budget: usize) -> usize {
    let mut left = budget;
    let fits = |object: &&Bytes| {
        let rest = left.checked_sub(object.len());
        left = rest.unwrap_or(0);
        rest.is_some()
    };
    objects.iter().take(MAX_OBJECTS).take_while(fits).count()
}

async fn ask(stream: &mut PeerStream, wanted: Wanted) -> Result<SnapshotHead, SnapshotError> {
    frame::write_message(stream, &Request { wanted }).await?;
    let head: Head = frame::read_message(stream, HEAD_CAP, IDLE).await?;
    match head.status {
        Status::Busy => Err(SnapshotError::Busy),
        Status::Ok if head.objects as usize > MAX_OBJECTS => Err(SnapshotError::TooLarge {
            objects: head.objects,
        }),
        Status::Ok => Ok(SnapshotHead {
            epoch: head.epoch,
            root: *head.root,
            objects: head.objects as usize,
        }),
    }
}

/// Answers all who ask.
///
/// A slot is taken only once the request is here and something is to be sent: whoever opens a stream and is silent costs
/// the others nothing.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, source: Arc<dyn SnapshotSource>) {
    let slots = Slots::new(MAX_CONCURRENT, MAX_CONCURRENT_OF_ORIGIN);
    let mut rates = Rates::new(PER_SECOND, BURST);
    while let Some(mut stream) = streams.recv().await {
        let allowed = rates.try_take(stream.peer(), Instant::now());
        let (peers, source, slots) = (peers.clone(), source.clone(), slots.clone());
        // Bounded by the connections and by the streams of each.
        tokio::spawn(async move {
            let origin = peers.origin_of(&stream.peer());
            let place = || allowed.then(|| slots.try_take(origin)).flatten();
            let answer = timeout(SERVE_DEADLINE, answer(&mut stream, &*source, place)).await;
            let offence = if allowed {
                answer.ok().and_then(|answer| answer.err()?.offence())
            } else {
                Some(Offence::Rate)
            };
            if let Some(offence) = offence {
                peers.report(stream.peer(), offence).await;
            }
        });
    }
}

async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    source: &dyn SnapshotSource,
    place: impl FnOnce() -> Option<Slot>,
) -> Result<(), FrameError> {
    let request: Request = frame::read_message(stream, REQUEST_CAP, IDLE).await?;
    let slot = place();
    let (status, snapshot) = match slot {
        Some(_) => (Status::Ok, source.snapshot()),
        None => (Status::Busy, Snapshot::default()),
    };
    let count = fitting(&snapshot.objects, MAX_SNAPSHOT_BYTES);
    let head = Head {
        status,
        epoch: snapshot.epoch,
        root: snapshot.root.into(),
        objects: u32::try_from(count).expect("capped"),
    };
    frame::write_message(stream, &head).await?;
    if request.wanted == Wanted::All {
        for page in pages(&snapshot.objects[..count]) {
            frame::write(stream, &encode_page(page)).await?;
        }
    }
    stream.shutdown().await.map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::{super::origin::Origin, *};

    /// More than a snapshot may hold: objects of the largest size, each of them told apart by its first bytes.
    fn too_many() -> Vec<Bytes> {
        let object = |n: usize| {
            let mut bytes = vec![0; 4000];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            Bytes::from(bytes)
        };
        (0..MAX_SNAPSHOT_BYTES / 4000 + 100).map(object).collect()
    }

    #[test]
    fn a_server_sends_no_more_bytes_than_a_client_takes() {
        let objects = too_many();
        let count = fitting(&objects, MAX_SNAPSHOT_BYTES);
        assert_eq!(count, MAX_SNAPSHOT_BYTES / 4000);
        assert_eq!(fitting(&objects[..10], MAX_SNAPSHOT_BYTES), 10);
        let small = vec![Bytes::from_static(b"x"); MAX_OBJECTS + 1];
        assert_eq!(fitting(&small, MAX_SNAPSHOT_BYTES), MAX_OBJECTS);
    }

    #[tokio::test]
    async fn a_client_keeps_the_first_objects_of_a_set_that_outgrows_it() {
        let objects = too_many();
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let sent = objects.clone();
        let server = async move {
            for page in pages(&sent) {
                // The client hangs up where it has enough.
                if frame::write(&mut far, &encode_page(page)).await.is_err() {
                    break;
                }
            }
        };
        let client = async move {
            let taken = take_objects(&mut near, objects.len(), MAX_SNAPSHOT_BYTES).await;
            drop(near);
            (taken.expect("no error for its size"), objects)
        };
        let ((), (taken, objects)) = tokio::join!(server, client);
        assert_eq!(taken[..], objects[..MAX_SNAPSHOT_BYTES / 4000]);
    }

    struct Empty;

    impl SnapshotSource for Empty {
        fn snapshot(&self) -> Snapshot {
            Snapshot::default()
        }
    }

    #[tokio::test]
    async fn whoever_says_nothing_takes_no_place() {
        let slots = Slots::new(1, 1);
        let place = || slots.try_take(Origin::AWAY);
        let (_silent, mut far) = tokio::io::duplex(1 << 10);
        let mut waiting = Box::pin(answer(&mut far, &Empty, place));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        let (mut near, mut far) = tokio::io::duplex(1 << 10);
        let wanted = Wanted::Head;
        frame::write_message(&mut near, &Request { wanted })
            .await
            .expect("it fits");
        answer(&mut far, &Empty, place).await.expect("answered");
        let head: Head = frame::read_message(&mut near, HEAD_CAP, IDLE)
            .await
            .expect("a head");
        assert_eq!(head.status, Status::Ok);
    }
}
