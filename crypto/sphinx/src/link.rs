//! What travels on a link between two neighbours: one frame size, back to back, no length prefix.

use crate::epoch::Epoch;
use crate::packet::{PACKET_LEN, Packet};

/// The version of the frame.
pub const FRAME_VERSION: u8 = 1;

const PACKET_AT: usize = 5;

/// A packet and the epoch of the keys that open it: `version u8 ‖ epoch u32 ‖ packet`, big endian.
///
/// All hops of a packet open it with their keys of the same epoch, so a mix forwards the number as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The epoch of the keys of every hop on the way.
    pub epoch: Epoch,
    /// The packet.
    pub packet: Packet,
}

impl Frame {
    /// Length of every frame in bytes.
    pub const LEN: usize = PACKET_AT + PACKET_LEN;

    /// Writes the frame.
    #[must_use]
    pub fn to_bytes(&self) -> Box<[u8; Self::LEN]> {
        let mut bytes = Box::new([0; Self::LEN]);
        bytes[0] = FRAME_VERSION;
        bytes[1..PACKET_AT].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[PACKET_AT..].copy_from_slice(self.packet.as_bytes());
        bytes
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// [`FrameError`]; both kinds are the fault of the neighbour who sent it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FrameError> {
        let bytes: &[u8; Self::LEN] = bytes
            .try_into()
            .map_err(|_| FrameError::Length { got: bytes.len() })?;
        if bytes[0] != FRAME_VERSION {
            return Err(FrameError::Version { got: bytes[0] });
        }
        let epoch = Epoch(u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]));
        let packet = Packet::from_bytes(&bytes[PACKET_AT..])
            .map_err(|_| FrameError::Length { got: bytes.len() })?;
        Ok(Self { epoch, packet })
    }
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame(epoch {})", self.epoch)
    }
}

/// A frame that breaks the framing of the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not the one size.
    #[error("a frame of {got} bytes; every frame has {}", Frame::LEN)]
    Length {
        /// The length in bytes.
        got: usize,
    },
    /// A version this node does not speak.
    #[error("a frame of version {got}; this node speaks {FRAME_VERSION}")]
    Version {
        /// The version byte.
        got: u8,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_one_size_and_come_back_as_they_were() {
        let frame = Frame {
            epoch: Epoch(7),
            packet: Packet::from_bytes(&[9; PACKET_LEN]).expect("the one size"),
        };
        let bytes = frame.to_bytes();
        assert_eq!(bytes.len(), 2401);
        assert_eq!(Frame::from_bytes(&*bytes), Ok(frame));
    }

    #[test]
    fn another_size_or_version_breaks_the_framing() {
        assert_eq!(
            Frame::from_bytes(&[1; 2400]),
            Err(FrameError::Length { got: 2400 })
        );
        assert_eq!(
            Frame::from_bytes(&[2; Frame::LEN]),
            Err(FrameError::Version { got: 2 })
        );
    }
}
