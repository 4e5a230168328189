//! Packets: built by a sender for a route, peeled by one hop after another.
//!
//! ```text
//!  bytes ─size─► Packet ─MAC─► replay tag ─► inserted? ─► version ─► payload ─► Peeled
//!                   └─ forged     └─ refused: seen before, or no room
//! ```
//!
//! The order matters. A tag is taken only after the header's MAC held, so that nobody can burn the tag of a
//! packet they did not make, and the payload is opened only after the tag was taken, so that no replay gets
//! as far as an answer. [`peel`] keeps that order; its caller cannot get it wrong.
//!
//! The format is Sphinx (Danezis and Goldberg, 2009) as the crate `sphinx-packet` 0.8 writes it, version 260,
//! with a payload of [`PAYLOAD_LEN`]. That crate also processes its older versions, whose SURBs let their users
//! link replies; a hop here refuses them.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand_core::CryptoRng;
use sphinx_packet::constants::MAX_PATH_LENGTH;
use sphinx_packet::header::HEADER_SIZE;
use sphinx_packet::header::delays::Delay;
use sphinx_packet::payload::{PAYLOAD_OVERHEAD_SIZE, Payload};
use sphinx_packet::route::{Destination, DestinationAddressBytes, Node, NodeAddressBytes};
use sphinx_packet::version::{SINGLE_SEED_SURB_VERSION, Version};
use sphinx_packet::{ProcessedPacketData, SphinxPacket, SphinxPacketBuilder};
use x25519_dalek::StaticSecret;

use crate::keys::{MixPublic, MixSecret};
use crate::replay::{ReplayTag, TagRefused};
use crate::route::Route;
use crate::surb::{SealedReply, SurbId};

/// Length of a packet's header in bytes: room for [`MAX_HOPS`] hops.
pub const HEADER_LEN: usize = HEADER_SIZE;
/// Length of a packet's payload in bytes.
pub const PAYLOAD_LEN: usize = 2048;
/// Bytes of the payload that a sender can fill; the rest shows whether the payload came through unharmed.
pub const USABLE_LEN: usize = PAYLOAD_LEN - PAYLOAD_OVERHEAD_SIZE;
/// Length of every packet in bytes.
pub const PACKET_LEN: usize = HEADER_LEN + PAYLOAD_LEN;
/// Hops that fit a header.
pub const MAX_HOPS: usize = MAX_PATH_LENGTH;

/// The only packet format that a hop accepts.
pub(crate) const VERSION: Version = SINGLE_SEED_SURB_VERSION;

const _: () = assert!(HEADER_LEN == 348 && USABLE_LEN == 2031 && PACKET_LEN == 2396);

/// What a packet carries: always filled to the last byte, so that no length shows.
pub type Body = [u8; USABLE_LEN];

/// Where a packet goes next: a node id (its Ed25519 public key), or the random address of a mailbox.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HopAddress(pub [u8; 32]);

impl HopAddress {
    /// Draws the address of a new mailbox.
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; 32];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }
}

impl fmt::Debug for HopAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell hops apart in a test; too little to find a mailbox in a log.
        write!(f, "HopAddress({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// A hop as a sender sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Where it is reached.
    pub address: HopAddress,
    /// Its key of the epoch that the packet is built for.
    pub key: MixPublic,
}

impl Hop {
    pub(crate) fn to_node(self) -> Node {
        Node::new(
            NodeAddressBytes::from_bytes(self.address.0),
            self.key.inner(),
        )
    }
}

/// A packet of the one size.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet(Box<[u8; PACKET_LEN]>);

impl Packet {
    /// Takes the bytes of a packet.
    ///
    /// # Errors
    /// [`WrongPacketLength`] if there are not exactly [`PACKET_LEN`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WrongPacketLength> {
        let bytes: &[u8; PACKET_LEN] = bytes
            .try_into()
            .map_err(|_| WrongPacketLength { got: bytes.len() })?;
        Ok(Self(Box::new(*bytes)))
    }

    /// The bytes of the packet.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; PACKET_LEN] {
        &self.0
    }

    pub(crate) fn from_sphinx(packet: &SphinxPacket) -> Self {
        let mut bytes = Box::new([0; PACKET_LEN]);
        bytes[..HEADER_LEN].copy_from_slice(&packet.header.to_bytes());
        bytes[HEADER_LEN..].copy_from_slice(packet.payload.as_bytes());
        Self(bytes)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Packet(…)")
    }
}

/// A packet has another size than all packets have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of {got} bytes; every packet has {PACKET_LEN}")]
pub struct WrongPacketLength {
    /// The length in bytes.
    pub got: usize,
}

/// A route needs exactly one delay per hop; the last one is never read.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// One delay per hop is needed.
    #[error("{delays} delays for a route of {hops} hops")]
    Delays {
        /// Delays given.
        delays: usize,
        /// Hops of the route.
        hops: usize,
    },
    /// The packet crate refused the route; a bug, for a [`Route`] is checked.
    #[error("the packet could not be built")]
    Sphinx(#[source] sphinx_packet::Error),
}

/// Builds a packet that carries `body` along `route` to its last hop.
///
/// `delays` are the waits at each hop, as [`crate::delay::MixDelay`] samples them. The ephemeral key is drawn from
/// `rng`; the padding behind the last hop's routing data is drawn by `sphinx-packet` from the operating system.
///
/// # Errors
/// [`BuildError::Delays`] unless there is one delay per hop.
pub fn build(
    route: &Route,
    body: &Body,
    delays: &[Duration],
    rng: &mut (impl CryptoRng + ?Sized),
) -> Result<Packet, BuildError> {
    let nodes: Vec<Node> = route.hops().iter().map(|hop| hop.to_node()).collect();
    let delays = wire_delays(delays, route)?;
    let ephemeral = StaticSecret::random_from_rng(rng);
    let destination = Destination::new(
        DestinationAddressBytes::from_bytes(route.last().address.0),
        [0; 16],
    );
    let packet = SphinxPacketBuilder::new()
        .with_version(VERSION)
        .with_payload_size(PAYLOAD_LEN)
        .with_initial_secret(&ephemeral)
        .build_packet(body, &nodes, &destination, &delays)
        .map_err(BuildError::Sphinx)?;
    Ok(Packet::from_sphinx(&packet))
}

pub(crate) fn wire_delays(delays: &[Duration], route: &Route) -> Result<Vec<Delay>, BuildError> {
    if delays.len() != route.hops().len() {
        return Err(BuildError::Delays {
            delays: delays.len(),
            hops: route.hops().len(),
        });
    }
    Ok(delays
        .iter()
        .map(|delay| {
            let nanos = delay.as_nanos();
            Delay::new_from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        })
        .collect())
}

/// What a hop finds in a packet.
#[derive(Debug)]
pub enum Peeled {
    /// The packet goes on.
    Forward {
        /// The next node, or a mailbox that this node holds.
        next: HopAddress,
        /// How long to hold it first, as the sender wrote: centuries parse. The delay pool cuts it.
        delay: Duration,
        /// The packet without its outer layer.
        packet: Packet,
    },
    /// This hop is the end of a forward route, and the payload came through unharmed.
    Message {
        /// Whom the sender meant, which must be this hop.
        destination: HopAddress,
        /// What the sender wrote.
        body: Box<Body>,
    },
    /// This hop made the SURB that the packet travelled with.
    Reply {
        /// Whom the maker of the SURB meant, which must be this hop.
        destination: HopAddress,
        /// Which SURB it was.
        id: SurbId,
        /// What only the maker's recovery material opens.
        sealed: SealedReply,
    },
}

/// Why a hop dropped a packet. None of them may be held against the neighbour who passed it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeelError {
    /// The header's MAC does not hold: forged, damaged, or made for another key.
    #[error("the header is not for this key or was changed on the way")]
    Header,
    /// Its replay tag was refused.
    #[error("the replay tag was refused")]
    Tag(#[source] TagRefused),
    /// A genuine header that asks for another packet format.
    #[error("the packet has format {got}; only {} is accepted", VERSION.value())]
    Version {
        /// The format's number.
        got: u16,
    },
    /// A genuine header with routing data that means nothing, or tripped an assertion of the packet crate.
    #[error("the routing data means nothing")]
    Routing,
    /// The payload was changed on the way.
    #[error("the payload was changed on the way")]
    Payload,
}

/// Takes one layer off `packet` with this hop's `secret`.
///
/// `take_tag` is called exactly once, after the header proved genuine and before the payload is opened. It inserts
/// the tag where replays are remembered, and refuses a tag that is already there or has no room.
///
/// # Errors
/// [`PeelError`]; the packet is to be dropped and counted, and nobody punished.
pub fn peel(
    secret: &MixSecret,
    packet: &Packet,
    take_tag: impl FnOnce(ReplayTag) -> Result<(), TagRefused>,
) -> Result<Peeled, PeelError> {
    let bytes: &[u8] = packet.as_bytes();
    let parsed = SphinxPacket::from_bytes(bytes).map_err(|_| PeelError::Header)?;
    let shared = parsed.header.compute_expanded_shared_secret(secret.inner());
    parsed
        .header
        .ensure_header_integrity(&shared)
        .map_err(|_| PeelError::Header)?;
    take_tag(ReplayTag::from_sphinx(shared.replay_tag())).map_err(PeelError::Tag)?;

    // With debug assertions, sphinx-packet panics on a genuine header with an unusual version field.
    let processed = catch_unwind(AssertUnwindSafe(|| {
        parsed.process_with_expanded_secret(&shared)
    }))
    .map_err(|_| PeelError::Routing)?
    .map_err(|_| PeelError::Routing)?;
    if processed.version != VERSION {
        return Err(PeelError::Version {
            got: processed.version.value(),
        });
    }
    match processed.data {
        ProcessedPacketData::ForwardHop {
            next_hop_packet,
            next_hop_address,
            delay,
        } => Ok(Peeled::Forward {
            next: HopAddress(next_hop_address.to_bytes()),
            delay: delay.to_duration(),
            packet: Packet::from_sphinx(&next_hop_packet),
        }),
        ProcessedPacketData::FinalHop {
            destination,
            identifier,
            payload,
        } => {
            let destination = HopAddress(destination.as_bytes());
            match SurbId::from_bytes(identifier) {
                Some(id) => Ok(Peeled::Reply {
                    destination,
                    id,
                    sealed: SealedReply::new(payload),
                }),
                None => Ok(Peeled::Message {
                    destination,
                    body: open_payload(payload)?,
                }),
            }
        }
    }
}

/// The sender's bytes of a payload whose layers are all off.
pub(crate) fn open_payload(payload: Payload) -> Result<Box<Body>, PeelError> {
    let bytes = payload
        .recover_plaintext()
        .map_err(|_| PeelError::Payload)?;
    bytes
        .into_boxed_slice()
        .try_into()
        .map_err(|_| PeelError::Payload)
}
