//! The mix as a core without I/O: packets, reply blocks, replay tags, delays, messages.
//!
//! ```text
//!  message ──split──► fragments ──build──► packet ─► entry ─► mix ─► mix ─► destination
//!     ▲                                                                        │
//!     └──ack / reply──recover◄── mailbox ◄── entry ◄─ mix ◄─ mix ◄──SURB used──┘
//! ```
//!
//! Nothing here opens a socket, reads a clock or touches a disk. Callers pass `now` and randomness in and
//! carry out what comes back: the node, a simulation with a virtual clock and a fuzzer run the same code.
//!
//! The threats that each part answers:
//!
//! | module | answers |
//! |---|---|
//! | [`packet`] | packets told apart by size or version; crafted headers; payloads opened before a replay is ruled out |
//! | [`surb`] | a provider that learns where a reply goes; replies that a mix on the way can link |
//! | [`replay`] | a packet sent again to see where it comes out |
//! | [`delay`] | matching packets in and out by time; a pool filled until it lets packets go early |
//! | [`message`] | memory taken by strangers; a lost packet that loses a message; a message delivered twice |
//! | [`route`] | routes that meet a node twice, or two of one operator, or end where they pass |
//! | [`topology`] | a node that names the operator of others, to bar them from its routes |

pub mod delay;
pub mod epoch;
pub mod keys;
pub mod link;
pub mod message;
pub mod packet;
pub mod replay;
pub mod route;
pub mod session;
pub mod surb;
pub mod topology;

pub use epoch::{Epoch, EpochClock};
pub use keys::{MixPublic, MixSecret};
pub use link::Frame;
pub use packet::{Hop, HopAddress, Packet, Peeled};
pub use replay::{ReplayTag, TagSource};
pub use route::Route;
pub use session::Session;
pub use surb::{Surb, SurbId};
pub use topology::{Group, Topology};
