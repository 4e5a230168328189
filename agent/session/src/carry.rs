//! Moves a session's bytes between its near side and one carrier.

use bytes::BytesMut;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, split,
};

use crate::{Frame, MAX_DATA, Session};

/// Frames that wait for the carrier.
const WAITING_BYTES: usize = 4 * MAX_DATA;

/// How a carrier's part of a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The session is over.
    Over,
    /// The carrier broke; another one can take the session up.
    Cut,
    /// The other end broke the session.
    Broken,
}

/// Carries a session whose ends have greeted. It may be dropped at any time, as if the carrier had broken.
pub async fn carry<C>(session: &mut Session, carrier: C, near: &mut DuplexStream) -> Ending
where
    C: AsyncRead + AsyncWrite,
{
    let (mut from_peer, mut to_peer) = split(carrier);
    let (mut from_near, mut to_near) = split(near);
    let mut arrived = BytesMut::new();
    let mut waiting = BytesMut::new();
    let mut is_flushed = true;
    let mut piece = [0; MAX_DATA];
    loop {
        loop {
            match Frame::take(&mut arrived) {
                Ok(Some(frame)) if session.handle_frame(&frame).is_ok() => {}
                Ok(None) => break,
                _ => return Ending::Broken,
            }
        }
        if session.deliver_end() {
            // Where that fails nobody reads any more.
            let _ = to_near.shutdown().await;
        }
        while waiting.len() < WAITING_BYTES
            && let Some(frame) = session.next_frame()
        {
            frame.put(&mut waiting);
        }
        let is_sending = !waiting.is_empty() || !is_flushed;
        if session.is_over() && !is_sending {
            return Ending::Over;
        }
        arrived.reserve(MAX_DATA);
        let room = session.room().min(piece.len());
        tokio::select! {
            read = from_peer.read_buf(&mut arrived) => match read {
                Ok(0) | Err(_) => return Ending::Cut,
                Ok(_) => {}
            },
            sent = send(&mut to_peer, &mut waiting), if is_sending => match sent {
                Ok(flushed) => is_flushed = flushed,
                Err(_) => return Ending::Cut,
            },
            read = from_near.read(&mut piece[..room]), if room > 0 => match read {
                Ok(0) | Err(_) => session.handle_end(),
                Ok(count) => session.handle_bytes(&piece[..count]),
            },
            written = to_near.write(session.deliverable()), if !session.deliverable().is_empty() => match written {
                // Nobody reads any more; what comes still counts as passed on, so that both ends come to an end.
                Ok(0) | Err(_) => session.handle_delivered(session.deliverable().len()),
                Ok(count) => session.handle_delivered(count),
            },
        }
    }
}

/// Gives the near side what has come, where no carrier will bring more.
pub async fn deliver(session: &mut Session, near: &mut DuplexStream) {
    while !session.deliverable().is_empty() {
        match near.write(session.deliverable()).await {
            Ok(0) | Err(_) => return,
            Ok(count) => session.handle_delivered(count),
        }
    }
    // Where that fails nobody reads any more.
    let _ = near.shutdown().await;
}

/// One step of sending; whether everything has left.
async fn send(
    carrier: &mut (impl AsyncWrite + Unpin),
    waiting: &mut BytesMut,
) -> std::io::Result<bool> {
    if waiting.is_empty() {
        carrier.flush().await?;
        return Ok(true);
    }
    match carrier.write_buf(waiting).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        _ => Ok(false),
    }
}
