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
use minicbor::{
    Decode, Encode,
    bytes::{ByteArray, ByteSlice},
};
use souk_crypto::NodeId;
use tokio::{io::AsyncWriteExt as _, sync::Semaphore, time::timeout};

use super::{
    conduct::Offence,
    frame::{self, FrameError},
    gossip::MAX_CARD_BYTES,
    names::What,
    peers::Peers,
    rate::PeerRates,
    streams::{Acceptor, OpenError, PeerStream},
};

/// Objects in one snapshot. A market ten times the size that is measured fits in it.
pub const MAX_OBJECTS: usize = 32_768;

/// Bytes of objects in one snapshot, 32 MiB.
pub const MAX_SNAPSHOT_BYTES: usize = 32 << 20;

/// Bytes of one page on the wire; a page closes before the object that would not fit.
const PAGE_BYTES: usize = 64 * 1024;

/// Objects on one page: what fits when they are as small as a signature lets them be.
const MAX_PAGE_OBJECTS: usize = PAGE_BYTES / 64;

const REQUEST_CAP: usize = 16;
const HEAD_CAP: usize = 96;

/// How long each side waits for the other's next frame.
const IDLE: Duration = Duration::from_secs(15);

/// A whole snapshot must have gone out within this time.
const SERVE_DEADLINE: Duration = Duration::from_secs(120);

/// Snapshots sent at the same time; each holds one page.
const MAX_CONCURRENT: usize = 32;

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
    /// Signed objects as they travelled by gossip: cards, retirements, capacity.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
enum Wanted {
    #[n(0)]
    Head,
    #[n(1)]
    All,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Request {
    #[n(0)]
    wanted: Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
enum Status {
    #[n(0)]
    Ok,
    #[n(1)]
    Busy,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Head {
    #[n(0)]
    status: Status,
    #[n(1)]
    epoch: u64,
    #[n(2)]
    root: ByteArray<32>,
    #[n(3)]
    objects: u32,
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

    /// Takes the whole card set of a connected node. At most [`MAX_SNAPSHOT_BYTES`] are kept.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub async fn snapshot(&self, node: NodeId) -> Result<Snapshot, SnapshotError> {
        let mut stream = self.open(node, What::Cards).await?;
        let head = ask(&mut stream, Wanted::All).await?;
        let mut objects: Vec<Bytes> = Vec::new();
        let mut total = 0;
        while objects.len() < head.objects {
            let page = frame::read(&mut stream, PAGE_BYTES, IDLE).await?;
            let room = head.objects - objects.len();
            let added = read_page(&page, room, &mut objects)?;
            total += added;
            if total > MAX_SNAPSHOT_BYTES {
                let (len, cap) = (total, MAX_SNAPSHOT_BYTES);
                return Err(FrameError::TooLong { len, cap }.into());
            }
        }
        Ok(Snapshot {
            epoch: head.epoch,
            root: head.root,
            objects: objects.into(),
        })
    }
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

/// Adds the objects of a page and returns their bytes. An empty page, or one with more objects than are missing, is malformed.
fn read_page(page: &[u8], room: usize, objects: &mut Vec<Bytes>) -> Result<usize, FrameError> {
    let mut decoder = minicbor::Decoder::new(page);
    let malformed = |_| FrameError::Malformed;
    let count = decoder.array().map_err(malformed)?.unwrap_or(0);
    if count == 0 || count > room.min(MAX_PAGE_OBJECTS) as u64 {
        return Err(FrameError::Malformed);
    }
    let mut added = 0;
    for _ in 0..count {
        let object = decoder.bytes().map_err(malformed)?;
        if object.len() > MAX_CARD_BYTES {
            return Err(FrameError::Malformed);
        }
        added += object.len();
        objects.push(Bytes::copy_from_slice(object));
    }
    if decoder.position() != page.len() {
        return Err(FrameError::Malformed);
    }
    Ok(added)
}

/// Answers all who ask.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, source: Arc<dyn SnapshotSource>) {
    let slots = Arc::new(Semaphore::new(MAX_CONCURRENT));
    let mut rates = PeerRates::new(PER_SECOND, BURST);
    while let Some(mut stream) = streams.recv().await {
        let allowed = rates.try_take(stream.peer(), Instant::now());
        let slot = slots.clone().try_acquire_owned();
        let (peers, source) = (peers.clone(), source.clone());
        tokio::spawn(async move {
            let busy = !allowed || slot.is_err();
            let answer = timeout(SERVE_DEADLINE, answer(&mut stream, &*source, busy)).await;
            let offence = match answer {
                Err(_) => None,
                Ok(Err(error)) => error.offence(),
                Ok(Ok(())) => (!allowed).then_some(Offence::Rate),
            };
            if let Some(offence) = offence {
                peers.report(stream.peer(), offence).await;
            }
        });
    }
}

async fn answer(
    stream: &mut PeerStream,
    source: &dyn SnapshotSource,
    busy: bool,
) -> Result<(), FrameError> {
    let request: Request = frame::read_message(stream, REQUEST_CAP, IDLE).await?;
    let snapshot = if busy {
        Snapshot::default()
    } else {
        source.snapshot()
    };
    let count = snapshot.objects.len().min(MAX_OBJECTS);
    let head = Head {
        status: if busy { Status::Busy } else { Status::Ok },
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

/// Splits objects into pages that fit [`PAGE_BYTES`].
fn pages(mut objects: &[Bytes]) -> impl Iterator<Item = &[Bytes]> {
    // Longest head of a byte string of at most MAX_CARD_BYTES, and of the array.
    const STRING_HEAD: usize = 3;
    const ARRAY_HEAD: usize = 3;
    std::iter::from_fn(move || {
        let mut bytes = ARRAY_HEAD;
        let fitting = objects
            .iter()
            .take(MAX_PAGE_OBJECTS)
            .take_while(|object| {
                bytes += STRING_HEAD + object.len();
                bytes <= PAGE_BYTES
            })
            .count();
        let (page, rest) = objects.split_at(fitting);
        objects = rest;
        (!page.is_empty()).then_some(page)
    })
}

fn encode_page(page: &[Bytes]) -> Vec<u8> {
    let page: Vec<&ByteSlice> = page.iter().map(|object| (&**object).into()).collect();
    minicbor::to_vec(page).expect("writing to a vector cannot fail")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(pages: &[Vec<u8>], objects: usize) -> Result<Vec<Bytes>, FrameError> {
        let mut read = Vec::new();
        for page in pages {
            let room = objects - read.len();
            read_page(page, room, &mut read)?;
        }
        Ok(read)
    }

    proptest! {
        #[test]
        fn pages_hold_every_object_once_and_in_order(
            sizes in proptest::collection::vec(0..=MAX_CARD_BYTES, 0..200)
        ) {
            let objects: Vec<Bytes> =
                sizes.iter().enumerate().map(|(i, n)| vec![i as u8; *n].into()).collect();
            let pages: Vec<_> = pages(&objects).map(encode_page).collect();
            for page in &pages {
                prop_assert!(page.len() <= PAGE_BYTES);
            }
            prop_assert_eq!(read_all(&pages, objects.len()).unwrap(), objects);
        }

        #[test]
        fn hostile_pages_are_refused_or_bounded(page in proptest::collection::vec(any::<u8>(), 0..512)) {
            let mut objects = Vec::new();
            if let Ok(added) = read_page(&page, 4, &mut objects) {
                prop_assert!(objects.len() <= 4 && added <= page.len());
            }
        }
    }

    #[test]
    fn more_objects_than_announced_are_malformed() {
        let page = encode_page(&[Bytes::from_static(b"a"), Bytes::from_static(b"b")]);
        assert!(read_page(&page, 2, &mut Vec::new()).is_ok());
        assert!(read_page(&page, 1, &mut Vec::new()).is_err());
    }

    #[test]
    fn an_endless_row_of_empty_pages_is_malformed() {
        assert!(read_page(&encode_page(&[]), 5, &mut Vec::new()).is_err());
    }
}
