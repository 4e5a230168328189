//! What the two ends say, as bytes. All numbers are big-endian.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::MAX_DATA;

/// What a greeting begins with. No SSH identification does (RFC 4253, section 4.2: `SSH-`), so one port serves both.
const MAGIC: [u8; 8] = *b"souk-s/1";

/// The name of a session, drawn at random by the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

/// The client's greeting on each new carrier: `magic ‖ id ‖ is_new u8 ‖ received u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which session is begun or taken up.
    pub id: SessionId,
    /// Whether it begins.
    pub is_new: bool,
    /// How far the client has received.
    pub received: u64,
}

/// The agent's answer: `magic ‖ status u8 ‖ received u64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Whether the session goes on.
    pub status: Status,
    /// How far the agent has received.
    pub received: u64,
}

/// Whether a session goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It does.
    Ok = 0,
    /// The agent does not know it, or not any more.
    Unknown = 1,
    /// The agent keeps as many as it can.
    Full = 2,
}

/// What the ends say over a carrier once they have greeted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `0 ‖ length u16 ‖ bytes`: bytes of the stream, 1 to [`MAX_DATA`].
    Data(Bytes),
    /// `1 ‖ position u64`: everything before this position was passed on. The end of the stream counts as one position.
    Passed(u64),
    /// `2`: no more bytes follow.
    End,
}

/// Bytes that are none of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end does not speak the session protocol")]
pub struct Malformed;

impl Hello {
    /// Length on the wire.
    pub const LENGTH: usize = MAGIC.len() + 16 + 1 + 8;

    /// Whether a connection that begins with `first` greets.
    #[must_use]
    pub fn begins_with(first: u8) -> bool {
        first == MAGIC[0]
    }

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let mut rest = &mut bytes[..];
        rest.put_slice(&MAGIC);
        rest.put_slice(&self.id.0);
        rest.put_u8(self.is_new.into());
        rest.put_u64(self.received);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(Malformed)?;
        let mut id = [0; 16];
        rest.copy_to_slice(&mut id);
        let is_new = match rest.get_u8() {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        Ok(Self {
            id: SessionId(id),
            is_new,
            received: rest.get_u64(),
        })
    }
}

impl Welcome {
    /// Length on the wire.
    pub const LENGTH: usize = MAGIC.len() + 1 + 8;

    /// Writes it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        let mut rest = &mut bytes[..];
        rest.put_slice(&MAGIC);
        rest.put_u8(self.status as u8);
        rest.put_u64(self.received);
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, Malformed> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(Malformed)?;
        let status = match rest.get_u8() {
            0 => Status::Ok,
            1 => Status::Unknown,
            2 => Status::Full,
            _ => return Err(Malformed),
        };
        Ok(Self {
            status,
            received: rest.get_u64(),
        })
    }
}

impl Frame {
    /// Writes it behind what is in `buffer`.
    ///
    /// # Panics
    /// If there are more data than [`MAX_DATA`].
    pub fn put(&self, buffer: &mut BytesMut) {
        match self {
            Self::Data(bytes) => {
                assert!(bytes.len() <= MAX_DATA, "one frame holds it");
                buffer.put_u8(0);
                buffer.put_u16(bytes.len() as u16);
                buffer.put_slice(bytes);
            }
            Self::Passed(position) => {
                buffer.put_u8(1);
                buffer.put_u64(*position);
            }
            Self::End => buffer.put_u8(2),
        }
    }

    /// Takes the first one out of what has arrived, once it is whole.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn take(arrived: &mut BytesMut) -> Result<Option<Self>, Malformed> {
        let mut head = &arrived[..];
        let Ok(kind) = head.try_get_u8() else {
            return Ok(None);
        };
        match kind {
            0 => {
                let Ok(length) = head.try_get_u16() else {
                    return Ok(None);
                };
                let length = usize::from(length);
                if length == 0 || length > MAX_DATA {
                    return Err(Malformed);
                }
                if head.len() < length {
                    return Ok(None);
                }
                arrived.advance(3);
                Ok(Some(Self::Data(arrived.split_to(length).freeze())))
            }
            1 => {
                let Ok(position) = head.try_get_u64() else {
                    return Ok(None);
                };
                arrived.advance(9);
                Ok(Some(Self::Passed(position)))
            }
            2 => {
                arrived.advance(1);
                Ok(Some(Self::End))
            }
            _ => Err(Malformed),
        }
    }
}
