//! Single-use reply blocks: a header made ahead of time, with which somebody answers without knowing whom.
//!
//! ```text
//!  maker: make ──► Surb ──in a message──► user: send_with ──packet──► mixes ──► maker's mailbox
//!    └──► Recovery, looked up by SurbId ◄───────────────────────────────────────────┘ recover
//! ```
//!
//! A SURB carries the payload seed of its *last* hop only (version 260 of `sphinx-packet`): whoever held the seeds
//! of all hops could compute what the payload looks like at each of them and follow the reply to its reader.
//! Using a SURB twice sends two packets with one header, which the mixes drop as replays; a node writes down
//! that a SURB is spent before it uses it.

use std::fmt;

use rand_core::CryptoRng;
use sphinx_packet::constants::{IDENTIFIER_LENGTH, NODE_ADDRESS_LENGTH, PAYLOAD_KEY_SEED_SIZE};
use sphinx_packet::payload::Payload;
use sphinx_packet::route::{Destination, DestinationAddressBytes};
use sphinx_packet::{SURB, SURBMaterial, SurbReplyRecovery};
use std::time::Duration;
use x25519_dalek::StaticSecret;

use crate::epoch::Epoch;
use crate::link::Frame;
use crate::packet::{
    Body, BuildError, HEADER_LEN, HopAddress, PAYLOAD_LEN, Packet, PeelError, VERSION,
    open_payload, wire_delays,
};
use crate::route::Route;

/// Length of the reply block alone in bytes.
const BLOCK_LEN: usize = HEADER_LEN + NODE_ADDRESS_LENGTH + PAYLOAD_KEY_SEED_SIZE;
/// Length of a SURB on the wire in bytes: the reply block, then the epoch it dies with (`u32`, big endian).
pub const SURB_LEN: usize = BLOCK_LEN + 4;

const _: () = assert!(BLOCK_LEN == 396);

/// Which SURB a reply came with: random, never zero, read in the clear by its maker only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SurbId([u8; IDENTIFIER_LENGTH]);

impl SurbId {
    /// Draws an id.
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; IDENTIFIER_LENGTH];
        rng.fill_bytes(&mut bytes);
        // Zero marks a forward packet.
        bytes[0] |= 1;
        Self(bytes)
    }

    /// Takes an id from a packet; `None` is the zero id of a forward packet.
    #[must_use]
    pub fn from_bytes(bytes: [u8; IDENTIFIER_LENGTH]) -> Option<Self> {
        (bytes != [0; IDENTIFIER_LENGTH]).then_some(Self(bytes))
    }

    /// The bytes of the id.
    #[must_use]
    pub fn to_bytes(self) -> [u8; IDENTIFIER_LENGTH] {
        self.0
    }
}

/// A reply block and the epoch after which no mix opens it.
pub struct Surb {
    block: SURB,
    epoch: Epoch,
}

impl Surb {
    /// Makes a SURB that comes back along `route`, whose last hop is its maker.
    ///
    /// `epoch` is the epoch of the keys of all hops on it.
    ///
    /// # Errors
    /// [`BuildError::Delays`] unless there is one delay per hop.
    pub fn make(
        route: &Route,
        delays: &[Duration],
        epoch: Epoch,
        rng: &mut (impl CryptoRng + ?Sized),
    ) -> Result<(Self, Recovery), BuildError> {
        let delays = wire_delays(delays, route)?;
        let id = SurbId::random(rng);
        let material = SURBMaterial::new(
            route.hops().iter().map(|hop| hop.to_node()).collect(),
            delays,
            Destination::new(
                DestinationAddressBytes::from_bytes(route.last().address.0),
                id.0,
            ),
            VERSION,
        );
        let ephemeral = StaticSecret::random_from_rng(rng);
        let (block, recovery) =
            SURB::new_recoverable(ephemeral, material).map_err(BuildError::Sphinx)?;
        Ok((
            Self { block, epoch },
            Recovery {
                id,
                epoch,
                inner: recovery,
            },
        ))
    }

    /// Reads a SURB from a message.
    ///
    /// # Errors
    /// [`SurbError`] unless it has exactly [`SURB_LEN`] bytes, hence exactly one seed.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SurbError> {
        let bytes: &[u8; SURB_LEN] = bytes
            .try_into()
            .map_err(|_| SurbError::Length { got: bytes.len() })?;
        let (block, epoch) = bytes.split_at(BLOCK_LEN);
        let block = SURB::from_bytes(block).map_err(|_| SurbError::Malformed)?;
        let epoch = Epoch(u32::from_be_bytes([epoch[0], epoch[1], epoch[2], epoch[3]]));
        Ok(Self { block, epoch })
    }

    /// Writes the SURB.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SURB_LEN] {
        let mut bytes = [0; SURB_LEN];
        bytes[..BLOCK_LEN].copy_from_slice(&self.block.to_bytes());
        bytes[BLOCK_LEN..].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes
    }

    /// The epoch of the keys that open it; it dies with them.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The node that its reply is handed to first.
    #[must_use]
    pub fn first_hop(&self) -> HopAddress {
        let bytes = self.to_bytes();
        HopAddress(
            *bytes[HEADER_LEN..]
                .first_chunk()
                .expect("an address follows the header"),
        )
    }

    /// What identifies this SURB in a journal of spent ones: the hash of its bytes.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        blake3::derive_key("souk 2026 surb fingerprint v1", &self.to_bytes())
    }

    /// Spends the SURB: the frame to send, and the node to send it to.
    ///
    /// # Errors
    /// [`SurbError::Malformed`] if the packet crate refuses the block.
    pub fn send_with(self, body: &Body) -> Result<(HopAddress, Frame), SurbError> {
        let epoch = self.epoch;
        let (packet, first) = self
            .block
            .use_surb(body, PAYLOAD_LEN)
            .map_err(|_| SurbError::Malformed)?;
        Ok((
            HopAddress(first.to_bytes()),
            Frame {
                epoch,
                packet: Packet::from_sphinx(&packet),
            },
        ))
    }
}

impl fmt::Debug for Surb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Surb(epoch {})", self.epoch)
    }
}

/// A SURB that cannot be used. The fault lies with whoever made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SurbError {
    /// Not the one size.
    #[error("a SURB of {got} bytes; every SURB has {SURB_LEN}")]
    Length {
        /// The length in bytes.
        got: usize,
    },
    /// The packet crate cannot read it.
    #[error("the SURB is malformed")]
    Malformed,
}

/// What the maker of a SURB keeps to read the reply; zeroized when dropped.
pub struct Recovery {
    id: SurbId,
    epoch: Epoch,
    inner: SurbReplyRecovery,
}

impl Recovery {
    /// The id under which the reply arrives.
    #[must_use]
    pub fn id(&self) -> SurbId {
        self.id
    }

    /// The epoch that the SURB dies with.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Reads the reply. Drop the recovery material only after this succeeds: a damaged packet must not cost the
    /// genuine one.
    ///
    /// # Errors
    /// [`PeelError::Payload`] if the payload was changed on the way.
    pub fn recover(&self, sealed: SealedReply) -> Result<Box<Body>, PeelError> {
        let payload = self
            .inner
            .unseal(sealed.0)
            .map_err(|_| PeelError::Payload)?;
        open_payload(payload)
    }
}

impl fmt::Debug for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recovery(epoch {})", self.epoch)
    }
}

/// The payload of a reply as its last hop sees it.
pub struct SealedReply(Payload);

impl SealedReply {
    pub(crate) fn new(payload: Payload) -> Self {
        Self(payload)
    }
}

impl fmt::Debug for SealedReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealedReply(…)")
    }
}
