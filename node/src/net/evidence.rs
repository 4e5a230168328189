//! Evidence and collateral in bulk: `/souk/<network>/evidence/1`.
//!
//! ```text
//!  asker ──► Request{names}         some by digest, or everything
//!        ◄── Head{status, pieces}
//!        ◄── piece, piece, …        each in a frame of its own
//! ```
//!
//! Nodes ask for what the cards name and they lack. Requesters ask for everything and nothing else: whoever asks for one
//! provider's evidence tells whom it is going to rent from. Pieces are opaque here; whoever asked compares digests.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use souk_crypto::NodeId;
use souk_wire::evidence::{HEAD_CAP, Head, MAX_PIECE_BYTES, Name, REQUEST_CAP, Request, Status};
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
    streams::{Acceptor, OpenError},
};

/// Pieces in one answer: evidence and collateral of every node of a full directory.
pub const MAX_PIECES: usize = 8_192;

/// Bytes of pieces in one answer, 32 MiB.
pub const MAX_PIECES_BYTES: usize = 32 << 20;

/// How long each side waits for the other's next frame.
const IDLE: Duration = Duration::from_secs(15);

/// A whole answer must have gone out within this time.
const SERVE_DEADLINE: Duration = Duration::from_secs(120);

/// Answers sent at the same time; each holds one piece.
const MAX_CONCURRENT: usize = 16;

/// Of those, the ones to one address.
const MAX_CONCURRENT_OF_ORIGIN: usize = 4;

/// Requests of one peer: 16 at once, then one in two seconds.
const PER_SECOND: f64 = 0.5;
const BURST: f64 = 16.0;

/// Where served pieces come from.
pub trait PieceSource: Send + Sync + 'static {
    /// What there is, the smallest first, with sizes in bytes.
    fn names(&self) -> Vec<(Name, usize)>;

    /// One piece, if it is still there. Called on a thread that may block.
    fn piece(&self, name: &Name) -> Option<Bytes>;
}

/// Why no pieces came.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// The stream could not be opened.
    #[error("no stream to the node")]
    Open(#[from] OpenError),
    /// The node broke the protocol, or the stream broke.
    #[error("the evidence broke off")]
    Frame(#[from] FrameError),
    /// The node is busy or was asked too often.
    #[error("the node is busy; ask again later")]
    Busy,
    /// The node announces more than an answer may hold.
    #[error("the node announces {pieces} pieces where at most {most} are allowed")]
    TooLarge {
        /// Announced pieces.
        pieces: u32,
        /// Allowed pieces.
        most: usize,
    },
}

impl Peers {
    /// Asks a connected node for pieces by name, or for all that it has, as far as they fit into [`MAX_PIECES_BYTES`].
    /// What comes may be anything; `take` decides.
    ///
    /// # Errors
    /// [`PiecesError`]; what came before it was taken.
    pub async fn pieces(
        &self,
        node: NodeId,
        names: Option<&[Name]>,
        take: impl FnMut(Vec<u8>) + Send,
    ) -> Result<(), PiecesError> {
        let mut stream = self.open(node, What::Evidence).await?;
        let request = names.map_or_else(Request::everything, Request::of);
        ask(&mut stream, &request, take).await
    }
}

async fn ask(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    request: &Request,
    mut take: impl FnMut(Vec<u8>),
) -> Result<(), PiecesError> {
    frame::write_message(stream, request).await?;
    let head: Head = frame::read_message(stream, HEAD_CAP, IDLE).await?;
    if head.status == Status::Busy {
        return Err(PiecesError::Busy);
    }
    let pieces = head.pieces;
    let most = request
        .asked()
        .map_err(FrameError::from)?
        .map_or(MAX_PIECES, |names| names.len());
    if pieces as usize > most {
        return Err(PiecesError::TooLarge { pieces, most });
    }
    let mut left = MAX_PIECES_BYTES;
    for _ in 0..pieces {
        let piece = frame::read(stream, MAX_PIECE_BYTES, IDLE).await?;
        let Some(rest) = left.checked_sub(piece.len()) else {
            break;
        };
        left = rest;
        take(piece);
    }
    Ok(())
}

/// Answers all who ask. A slot is taken only once the request is here.
pub(super) async fn serve(peers: Peers, mut streams: Acceptor, source: Arc<dyn PieceSource>) {
    let slots = Slots::new(MAX_CONCURRENT, MAX_CONCURRENT_OF_ORIGIN);
    let mut rates = Rates::new(PER_SECOND, BURST);
    while let Some(mut stream) = streams.recv().await {
        let allowed = rates.try_take(stream.peer(), Instant::now());
        let (peers, source, slots) = (peers.clone(), source.clone(), slots.clone());
        // Bounded by the connections and by the streams of each.
        tokio::spawn(async move {
            let origin = peers.origin_of(&stream.peer());
            let place = || allowed.then(|| slots.try_take(origin)).flatten();
            let answer = timeout(SERVE_DEADLINE, answer(&mut stream, source, place)).await;
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
    source: Arc<dyn PieceSource>,
    place: impl FnOnce() -> Option<Slot>,
) -> Result<(), FrameError> {
    let request: Request = frame::read_message(stream, REQUEST_CAP, IDLE).await?;
    let asked = request.asked()?;
    let slot = place();
    let mut names = match slot {
        Some(_) => source.names(),
        None => Vec::new(),
    };
    if let Some(asked) = &asked {
        names.retain(|(name, _)| asked.contains(name));
    }
    names.truncate(fitting(&names));
    let head = Head {
        status: if slot.is_some() {
            Status::Ok
        } else {
            Status::Busy
        },
        pieces: u32::try_from(names.len()).expect("capped"),
    };
    frame::write_message(stream, &head).await?;
    for (name, _) in names {
        let source = source.clone();
        let piece = tokio::task::spawn_blocking(move || source.piece(&name)).await;
        // One that went meanwhile leaves its place empty: no card names the digest of nothing.
        let piece = piece.ok().flatten().unwrap_or_default();
        frame::write(stream, &piece).await?;
    }
    stream.shutdown().await.map_err(FrameError::Io)
}

/// How many of the first pieces an asker takes.
fn fitting(names: &[(Name, usize)]) -> usize {
    let mut left = MAX_PIECES_BYTES;
    let fits = |(_, len): &&(Name, usize)| {
        let rest = left.checked_sub(*len);
        left = rest.unwrap_or(0);
        rest.is_some() && *len <= MAX_PIECE_BYTES
    };
    names.iter().take(MAX_PIECES).take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use super::{super::origin::Origin, *};

    struct Some32(Vec<Bytes>);

    impl PieceSource for Some32 {
        fn names(&self) -> Vec<(Name, usize)> {
            let name = |piece: &Bytes| (*blake3::hash(piece).as_bytes(), piece.len());
            self.0.iter().map(name).collect()
        }

        fn piece(&self, name: &Name) -> Option<Bytes> {
            let named = |piece: &&Bytes| blake3::hash(piece).as_bytes() == name;
            self.0.iter().find(named).cloned()
        }
    }

    async fn taken(source: Some32, request: Request) -> Result<Vec<Vec<u8>>, PiecesError> {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let slots = Slots::new(1, 1);
        let server = async move {
            let _ = answer(&mut far, Arc::new(source), || slots.try_take(Origin::AWAY)).await;
        };
        let mut pieces = Vec::new();
        let ((), asked) = tokio::join!(server, async {
            let asked = ask(&mut near, &request, |piece| pieces.push(piece)).await;
            drop(near);
            asked
        });
        asked.map(|()| pieces)
    }

    #[tokio::test]
    async fn some_are_asked_for_by_digest_or_all_are() {
        let source = || Some32((1..=40u8).map(|n| vec![n; usize::from(n)].into()).collect());
        let wanted = [*blake3::hash(&[7; 7]).as_bytes(), [0; 32]];
        let some = taken(source(), Request::of(&wanted)).await.expect("some");
        assert_eq!(some, [vec![7; 7]]);
        let all = taken(source(), Request::everything()).await.expect("all");
        assert_eq!(all.len(), 40);
    }

    #[tokio::test]
    async fn a_server_sends_no_more_than_an_asker_takes() {
        let piece = |n: usize| {
            let mut bytes = vec![0; MAX_PIECE_BYTES];
            bytes[..8].copy_from_slice(&n.to_be_bytes());
            Bytes::from(bytes)
        };
        let many = Some32(
            (0..MAX_PIECES_BYTES / MAX_PIECE_BYTES + 3)
                .map(piece)
                .collect(),
        );
        let all = taken(many, Request::everything()).await.expect("what fits");
        assert_eq!(all.len(), MAX_PIECES_BYTES / MAX_PIECE_BYTES);
        let large = Some32(vec![vec![0; MAX_PIECE_BYTES + 1].into()]);
        let none = taken(large, Request::everything()).await.expect("none");
        assert!(none.is_empty());
    }

    #[tokio::test]
    async fn whoever_says_nothing_takes_no_place() {
        let slots = Slots::new(1, 1);
        let (_silent, mut far) = tokio::io::duplex(1 << 10);
        let place = || slots.try_take(Origin::AWAY);
        let source = Arc::new(Some32(Vec::new()));
        let mut waiting = Box::pin(answer(&mut far, source, place));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        assert!(slots.try_take(Origin::AWAY).is_some());
    }
}
