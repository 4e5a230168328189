//! Length-prefixed frames: `length: u32 (big endian) ‖ body`.
//!
//! The length is checked against the cap of the message before a byte of the body is read, memory grows with what has
//! really arrived, and a frame that has begun must end within its deadline. A [`FrameError`] says whose fault it was.

use std::{io, time::Duration};

use minicbor::{Decode, Encode};
use souk_wire::Malformed;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::conduct::Offence;

/// A frame that has begun must be complete within this time. A slow mobile line carries the largest frame (64 KiB) in it.
pub(super) const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than this message may have.
    #[error("the peer sent a frame of {len} bytes where at most {cap} are allowed")]
    TooLong {
        /// Announced bytes.
        len: usize,
        /// Allowed bytes.
        cap: usize,
    },
    /// The body is not what the protocol says.
    #[error("the peer sent a malformed frame")]
    Malformed,
    /// The frame began and did not end in time.
    #[error("the peer stopped in the middle of a frame")]
    Stalled,
    /// The peer ended the stream in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    CutOff,
    /// The peer ended the stream between two frames.
    #[error("the peer ended the stream")]
    Ended,
    /// No frame began in time.
    #[error("the peer sent nothing in time")]
    Silent,
    /// The stream broke.
    #[error("the stream broke")]
    Io(#[source] io::Error),
}

impl From<Malformed> for FrameError {
    fn from(_: Malformed) -> Self {
        Self::Malformed
    }
}

impl FrameError {
    /// What the peer is to be blamed for, if anything. A stream that breaks can be the fault of the network.
    pub(super) fn offence(&self) -> Option<Offence> {
        match self {
            Self::TooLong { .. } => Some(Offence::Oversized),
            Self::Malformed => Some(Offence::Framing),
            Self::Stalled => Some(Offence::Stalled),
            Self::CutOff | Self::Ended | Self::Silent | Self::Io(_) => None,
        }
    }
}

/// Reads one frame of at most `cap` bytes. Waits up to `idle` for it to begin.
pub(super) async fn read<S>(
    stream: &mut S,
    cap: usize,
    idle: Duration,
) -> Result<Vec<u8>, FrameError>
where
    S: AsyncRead + Unpin,
{
    let first = match timeout(idle, stream.read_u8()).await {
        Err(_) => return Err(FrameError::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(FrameError::Ended);
        }
        Ok(Err(error)) => return Err(FrameError::Io(error)),
        Ok(Ok(first)) => first,
    };
    timeout(FRAME_DEADLINE, rest(stream, first, cap))
        .await
        .unwrap_or(Err(FrameError::Stalled))
}

async fn rest<S>(stream: &mut S, first: u8, cap: usize) -> Result<Vec<u8>, FrameError>
where
    S: AsyncRead + Unpin,
{
    let mut prefix = [first, 0, 0, 0];
    stream.read_exact(&mut prefix[1..]).await.map_err(cut_off)?;
    let len = u32::from_be_bytes(prefix) as usize;
    if len > cap {
        return Err(FrameError::TooLong { len, cap });
    }
    // Grows with what arrives: the announced length alone takes no memory.
    let mut body = Vec::new();
    stream
        .take(len as u64)
        .read_to_end(&mut body)
        .await
        .map_err(cut_off)?;
    if body.len() < len {
        return Err(FrameError::CutOff);
    }
    Ok(body)
}

/// An end in the middle is told apart from other failures.
pub(super) fn cut_off(error: io::Error) -> FrameError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        FrameError::CutOff
    } else {
        FrameError::Io(error)
    }
}

/// Writes one frame and flushes it.
pub(super) async fn write<S>(stream: &mut S, body: &[u8]) -> Result<(), FrameError>
where
    S: AsyncWrite + Unpin,
{
    let len = u32::try_from(body.len()).expect("frames are far below 4 GiB");
    let work = async {
        stream.write_all(&len.to_be_bytes()).await?;
        stream.write_all(body).await?;
        stream.flush().await
    };
    match timeout(FRAME_DEADLINE, work).await {
        Err(_) => Err(FrameError::Stalled),
        Ok(result) => result.map_err(FrameError::Io),
    }
}

/// Reads one frame and decodes it; bytes after the message are refused.
pub(super) async fn read_message<S, T>(
    stream: &mut S,
    cap: usize,
    idle: Duration,
) -> Result<T, FrameError>
where
    S: AsyncRead + Unpin,
    T: for<'b> Decode<'b, ()>,
{
    Ok(souk_wire::decode(&read(stream, cap, idle).await?)?)
}

/// Encodes and writes one frame.
pub(super) async fn write_message<S, T>(stream: &mut S, message: &T) -> Result<(), FrameError>
where
    S: AsyncWrite + Unpin,
    T: Encode<()>,
{
    write(stream, &souk_wire::encode(message)).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 64;

    async fn read_from(bytes: &[u8]) -> Result<Vec<u8>, FrameError> {
        read(&mut &bytes[..], CAP, Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_by_its_announcement() {
        let error = read_from(&[0, 0, 0, 65]).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong { len: 65, cap: CAP }));
        assert_eq!(error.offence(), Some(Offence::Oversized));
    }

    #[tokio::test]
    async fn an_end_between_frames_and_one_inside_are_told_apart() {
        assert!(matches!(read_from(&[]).await, Err(FrameError::Ended)));
        assert!(matches!(
            read_from(&[0, 0, 0, 2, 7]).await,
            Err(FrameError::CutOff)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_that_stalls_is_blamed_and_silence_is_not() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let silent = read(&mut ours, CAP, Duration::from_secs(5)).await;
        assert_eq!(silent.unwrap_err().offence(), None);
        theirs.write_all(&[0, 0, 0, 9, 1]).await.unwrap();
        let stalled = read(&mut ours, CAP, Duration::from_secs(5)).await;
        assert_eq!(stalled.unwrap_err().offence(), Some(Offence::Stalled));
    }

    #[test]
    fn trailing_bytes_are_malformed() {
        assert_eq!(souk_wire::decode::<u8>(&[1]), Ok(1));
        assert_eq!(souk_wire::decode::<u8>(&[1, 2]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(body in proptest::collection::vec(any::<u8>(), 0..=CAP)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let read = runtime.block_on(async {
                let mut wire = Vec::new();
                write(&mut wire, &body).await.unwrap();
                read_from(&wire).await.unwrap()
            });
            prop_assert_eq!(read, body);
        }
    }
}
