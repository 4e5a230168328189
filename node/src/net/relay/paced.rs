//! A session between relay and provider, paced by whoever reads it.
//!
//! All sessions of a provider share its one connection to the relay, and one whose reader has stopped must not fill what that
//! connection may hold, or pings, mix frames and all other tenants would wait for it. So both ends of a spliced stream read it
//! at all times, and neither sends more than [`SPLICED_WINDOW`] bytes ahead of what the other has passed on:
//!
//! ```text
//!            ┌─ send ───── Bytes ≤ credit, End ──────────► far
//!  near ─────┤
//!            └─ deliver ◄─ at most SPLICED_WINDOW ◄─ receive ◄─ Bytes, End ── far
//!                  └─ Taken ───────────────────────────► far       └─ Taken: credit for send
//! ```
//!
//! Threat: a client or an instance that never reads, eight times for each lease. It waits alone. A far end that sends past its
//! window breaks the framing itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use souk_wire::relay::{SPLICED_BYTES, SPLICED_CAP, SPLICED_WINDOW, Spliced};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, simplex, split},
    pin,
    sync::{Mutex, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::net::{
    conduct::Offence,
    frame::{self, FrameError},
};

use super::{SILENCE, STEP};

/// What the near end has taken is told in portions of this size: a fraction of the window, so that a session that flows never
/// waits, and a small message for each is no burden.
const PORTION: usize = SPLICED_WINDOW / 4;

/// Why a session ended before both directions had; what the far end is to be blamed for, if anything.
type Broken = Option<Offence>;

/// Carries a session between its `near` end and the spliced stream to the `far` one, until both directions have ended or the
/// stream breaks. Once `dropped` is cancelled, nobody is left at the near end: what it wrote still leaves, for a while.
pub(super) async fn carry<N, F>(near: N, far: F, dropped: &CancellationToken) -> Result<(), Broken>
where
    N: AsyncRead + AsyncWrite,
    F: AsyncRead + AsyncWrite,
{
    let (near_reader, near_writer) = split(near);
    let (far_reader, far_writer) = split(far);
    let (waiting, arrived) = simplex(SPLICED_WINDOW);
    let (far_writer, credit) = (Mutex::new(far_writer), Semaphore::new(SPLICED_WINDOW));
    let room = AtomicUsize::new(SPLICED_WINDOW);
    let send = send(near_reader, &far_writer, &credit);
    let deliver = deliver(waiting, near_writer, &far_writer, &room);
    let receive = receive(far_reader, arrived, &room, &credit);
    let given_up = async {
        dropped.cancelled().await;
        sleep(STEP).await;
    };
    pin!(send, deliver, receive, given_up);
    let (mut is_sent, mut is_delivered, mut is_closed) = (false, false, false);
    let mut is_dropped = false;
    while !((is_delivered || is_dropped) && (is_sent || is_closed)) {
        tokio::select! {
            sent = &mut send, if !is_sent => {
                sent?;
                is_sent = true;
            }
            delivered = &mut deliver, if !is_delivered => {
                delivered?;
                is_delivered = true;
            }
            closed = &mut receive, if !is_closed => {
                closed?;
                is_closed = true;
            }
            () = dropped.cancelled(), if !is_dropped => is_dropped = true,
            () = &mut given_up => break,
        }
    }
    Ok(())
}

/// From the near end to the far one, as far as the credit goes. What the far end takes no more is told by [`receive`].
async fn send(
    mut near: impl AsyncRead + Unpin,
    far: &Mutex<impl AsyncWrite + Unpin>,
    credit: &Semaphore,
) -> Result<(), Broken> {
    let mut buffer = vec![0; SPLICED_BYTES];
    loop {
        drop(credit.acquire().await.map_err(|_| None)?);
        // Nobody else takes any.
        let most = buffer.len().min(credit.available_permits());
        let count = near.read(&mut buffer[..most]).await.map_err(|_| None)?;
        credit.forget_permits(count);
        let message = match count {
            0 => Spliced::End,
            _ => Spliced::Bytes(buffer[..count].to_vec()),
        };
        if write(far, &message).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

/// From what has arrived to the near end, and word of it to the far one.
async fn deliver(
    mut waiting: impl AsyncRead + Unpin,
    mut near: impl AsyncWrite + Unpin,
    far: &Mutex<impl AsyncWrite + Unpin>,
    room: &AtomicUsize,
) -> Result<(), Broken> {
    let mut buffer = vec![0; SPLICED_BYTES];
    let mut taken = 0;
    loop {
        let count = waiting.read(&mut buffer).await.map_err(|_| None)?;
        if count == 0 {
            // Where that fails nobody reads any more.
            let _ = near.shutdown().await;
            return Ok(());
        }
        let passed_on = async {
            near.write_all(&buffer[..count]).await?;
            near.flush().await
        };
        if passed_on.await.is_err() {
            // Nobody reads; what comes from there still goes on.
            return Ok(());
        }
        taken += count;
        if taken >= PORTION {
            room.fetch_add(taken, Ordering::Relaxed);
            let portion = u32::try_from(taken).expect("less than the window");
            // A far end that has closed has sent all that it will; the rest of it is still passed on.
            let _ = write(far, &Spliced::Taken(portion)).await;
            taken = 0;
        }
    }
}

/// From the far end into the window, at all times.
async fn receive(
    mut far: impl AsyncRead + Unpin,
    mut arrived: impl AsyncWrite + Unpin,
    room: &AtomicUsize,
    credit: &Semaphore,
) -> Result<(), Broken> {
    let breach = Err(Some(Offence::Framing));
    let mut has_ended = false;
    loop {
        match frame::read_message(&mut far, SPLICED_CAP, SILENCE).await {
            Ok(Spliced::Bytes(bytes)) => {
                let left = room.load(Ordering::Relaxed);
                if has_ended || bytes.is_empty() || bytes.len() > left {
                    return breach;
                }
                room.fetch_sub(bytes.len(), Ordering::Relaxed);
                // There is room, so that this never waits.
                arrived.write_all(&bytes).await.map_err(|_| None)?;
            }
            Ok(Spliced::Taken(count)) => {
                let count = count as usize;
                if count > SPLICED_WINDOW - credit.available_permits() {
                    return breach;
                }
                credit.add_permits(count);
            }
            Ok(Spliced::End) if !has_ended => {
                has_ended = true;
                arrived.shutdown().await.map_err(|_| None)?;
            }
            Ok(Spliced::End) => return breach,
            Err(error) => match error.offence() {
                None if has_ended => return Ok(()),
                offence => return Err(offence),
            },
        }
    }
}

async fn write(far: &Mutex<impl AsyncWrite + Unpin>, message: &Spliced) -> Result<(), FrameError> {
    frame::write_message(&mut *far.lock().await, message).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex};

    use super::*;

    /// Frames to one end, by hand.
    async fn say(far: &mut DuplexStream, message: Spliced) {
        frame::write_message(far, &message)
            .await
            .expect("it is read");
    }

    fn bytes(count: usize) -> Spliced {
        Spliced::Bytes(vec![7; count])
    }

    #[tokio::test]
    async fn bytes_and_their_ends_travel_both_ways() {
        const LEN: usize = 5 * SPLICED_WINDOW + 3;
        let (mut client, near) = duplex(1_000);
        let (relay, provider) = duplex(3_000);
        let (instance_side, mut instance) = duplex(2_000);
        let held = CancellationToken::new();
        let at_client = async {
            client.write_all(&vec![1; LEN]).await.expect("taken");
            client.shutdown().await.expect("taken");
            let mut back = Vec::new();
            client.read_to_end(&mut back).await.expect("an end");
            back
        };
        let at_instance = async {
            let mut seen = Vec::new();
            instance.read_to_end(&mut seen).await.expect("an end");
            instance.write_all(&seen).await.expect("taken");
            instance.shutdown().await.expect("taken");
        };
        let (left, right, back, ()) = tokio::join!(
            carry(near, relay, &held),
            carry(instance_side, provider, &held),
            at_client,
            at_instance,
        );
        assert!(back == vec![1; LEN], "{} bytes came back", back.len());
        // Whoever is done first closes the stream; that is an end, too.
        assert_eq!((left, right), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn a_reader_that_stops_is_waited_for_and_its_stream_is_read_all_the_same() {
        let (_unread, near) = duplex(1);
        let (mut far, ours) = duplex(64);
        let held = CancellationToken::new();
        let flood = async {
            for _ in 0..SPLICED_WINDOW / SPLICED_BYTES {
                say(&mut far, bytes(SPLICED_BYTES)).await;
            }
            // One byte past the window is what no honest end sends.
            say(&mut far, bytes(1)).await;
            far
        };
        let (ended, _far) = tokio::join!(carry(near, ours, &held), flood);
        assert_eq!(ended, Err(Some(Offence::Framing)));
    }

    #[tokio::test]
    async fn credit_that_was_not_used_is_not_given_back() {
        for breach in [Spliced::Taken(1), Spliced::Bytes(Vec::new())] {
            let (_idle, near) = duplex(64);
            let (mut far, ours) = duplex(64);
            say(&mut far, breach).await;
            let ended = carry(near, ours, &CancellationToken::new()).await;
            assert_eq!(ended, Err(Some(Offence::Framing)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_written_leaves_after_its_writer_has_gone_or_is_given_up() {
        for taken in [true, false] {
            let (mut instance, near) = duplex(SPLICED_BYTES);
            let (mut far, ours) = duplex(4 * SPLICED_WINDOW);
            let (dropped, mut seen) = (CancellationToken::new(), 0);
            let write = async {
                let all = vec![7; SPLICED_WINDOW + 1_000];
                let written = instance.write_all(&all).await;
                written.expect("the window and a buffer hold it");
                drop(instance);
                dropped.cancel();
                if taken {
                    say(&mut far, Spliced::Taken(2_000)).await;
                }
            };
            let (ended, ()) = tokio::join!(carry(near, ours, &dropped), write);
            assert_eq!(ended, Ok(()));
            let end = loop {
                match frame::read_message(&mut far, SPLICED_CAP, SILENCE).await {
                    Ok(Spliced::Bytes(bytes)) => seen += bytes.len(),
                    other => break other,
                }
            };
            assert_eq!(matches!(end, Ok(Spliced::End)), taken);
            assert_eq!(seen, SPLICED_WINDOW + if taken { 1_000 } else { 0 });
        }
    }
}
