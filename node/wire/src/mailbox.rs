//! `mailbox`: replies for clients that are away, in batches of one size.
//!
//! Threat: a key in a log. It travels as bytes here, and nothing in this module prints one.

use std::fmt;

use minicbor::{Decode, Encode, bytes::ByteArray};
use souk_sphinx::Frame;

use crate::Malformed;

/// Frames in one batch.
pub const BATCH_FRAMES: usize = 8;

/// Bytes of every batch on the wire: status, number of the last frame, count, frames, filled up with zeros.
pub const BATCH_BYTES: usize = HEAD_BYTES + BATCH_FRAMES * Frame::LEN;

const HEAD_BYTES: usize = 1 + 8 + 1;

/// Longest request, in bytes.
pub const REQUEST_CAP: usize = 96;

/// Longest answer to a registration, in bytes.
pub const ANSWER_CAP: usize = 16;

/// Client to entry.
#[derive(PartialEq, Eq, Encode, Decode)]
pub enum Request {
    /// Open a mailbox, or renew it.
    #[n(0)]
    #[cbor(map)]
    Register {
        /// The capability.
        #[n(0)]
        key: ByteArray<32>,
        /// How long it is to live, in seconds.
        #[n(1)]
        lifetime_s: u32,
        /// Frames that it is to hold.
        #[n(2)]
        quota: u16,
    },
    /// Take what has come.
    #[n(1)]
    #[cbor(map)]
    Collect {
        /// The capability.
        #[n(0)]
        key: ByteArray<32>,
        /// Number of the last frame that arrived.
        #[n(1)]
        acknowledged: u64,
        /// How long to wait for mail, in milliseconds.
        #[n(2)]
        wait_ms: u32,
    },
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Register { .. } => "Register(..)",
            Self::Collect { .. } => "Collect(..)",
        })
    }
}

/// The answer to a registration.
#[derive(Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Answer {
    /// What became of it.
    #[n(0)]
    pub status: Status,
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Status {
    /// The mailbox is there.
    #[n(0)]
    Ok,
    /// A bound was reached.
    #[n(1)]
    NoRoom,
    /// There is no such mailbox.
    #[n(2)]
    Unknown,
}

/// Frames for a client, oldest first; at most [`BATCH_FRAMES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Number of the last frame in it, to be acknowledged with the next collection; unchanged where the batch is empty.
    pub last: u64,
    /// The frames.
    pub frames: Vec<Frame>,
}

/// The answer to a collection: exactly [`BATCH_BYTES`], with `None` where there is no such mailbox.
///
/// # Panics
/// If the batch has more frames than one may have.
#[must_use]
pub fn encode_batch(batch: Option<&Batch>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BATCH_BYTES);
    bytes.push(u8::from(batch.is_none()));
    bytes.extend_from_slice(&batch.map_or(0, |batch| batch.last).to_be_bytes());
    let frames = batch.map_or(&[][..], |batch| &batch.frames);
    assert!(frames.len() <= BATCH_FRAMES, "{} frames", frames.len());
    bytes.push(u8::try_from(frames.len()).expect("a batch is small"));
    for frame in frames {
        bytes.extend_from_slice(&*frame.to_bytes());
    }
    bytes.resize(BATCH_BYTES, 0);
    bytes
}

/// Reads a batch; `None` where the entry does not know the mailbox.
///
/// # Errors
/// [`Malformed`].
///
/// # Panics
/// Never: the size is checked first.
pub fn decode_batch(bytes: &[u8]) -> Result<Option<Batch>, Malformed> {
    if bytes.len() != BATCH_BYTES {
        return Err(Malformed);
    }
    let (head, frames) = bytes.split_at(HEAD_BYTES);
    let last = u64::from_be_bytes(head[1..9].try_into().expect("eight bytes"));
    let count = usize::from(head[9]);
    match head[0] {
        0 if count <= BATCH_FRAMES => {}
        1 => return Ok(None),
        _ => return Err(Malformed),
    }
    let frames = frames
        .chunks_exact(Frame::LEN)
        .take(count)
        .map(|bytes| Frame::from_bytes(bytes).map_err(|_| Malformed))
        .collect::<Result<_, _>>()?;
    Ok(Some(Batch { last, frames }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use souk_sphinx::{Epoch, Packet, packet::PACKET_LEN};

    use super::*;

    #[test]
    fn every_batch_has_one_size() {
        let frame = Frame {
            epoch: Epoch(1),
            packet: Packet::from_bytes(&[5; PACKET_LEN]).expect("the one size"),
        };
        for count in 0..=BATCH_FRAMES {
            let batch = Batch {
                last: 77,
                frames: vec![frame.clone(); count],
            };
            let bytes = encode_batch(Some(&batch));
            assert_eq!(bytes.len(), BATCH_BYTES);
            assert_eq!(decode_batch(&bytes), Ok(Some(batch)));
        }
        let unknown = encode_batch(None);
        assert_eq!(unknown.len(), BATCH_BYTES);
        assert_eq!(decode_batch(&unknown), Ok(None));
    }

    proptest! {
        #[test]
        fn hostile_batches_are_refused(head in any::<[u8; HEAD_BYTES]>(), len in 0..BATCH_BYTES + 2) {
            let mut bytes = vec![0; len.max(HEAD_BYTES)];
            bytes[..HEAD_BYTES].copy_from_slice(&head);
            if let Ok(Some(batch)) = decode_batch(&bytes) {
                prop_assert!(bytes.len() == BATCH_BYTES && batch.frames.len() <= BATCH_FRAMES);
            }
        }
    }
}
