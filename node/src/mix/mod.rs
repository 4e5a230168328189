//! Drives the mix cores of `souk-sphinx` over the network of this node.
//!
//! ```text
//!  at every node                                                        at a destination
//!  frames ─► peel (blocking threads) ─► tags to disk ─► delay pool ─┬─► Links      ┌─► Mailroom ─► messages
//!            MAC, tag, payload          group commit                ├─► Mailboxes  │      └─ acks ─► Links
//!                                                                   └──────────────┘
//!  at a client
//!  Messenger ─► Session ─► Links ─► entry …        mailbox ─► frames ─► Session ─► Replies
//! ```
//!
//! | part | holds |
//! |---|---|
//! | [`KeyRing`] | the mix keys of the epochs that are open, with their replay tags, on disk |
//! | [`Mixer`] | peels, persists, delays and passes on |
//! | [`Mailroom`] | puts messages together at their destination, and acknowledges them |
//! | [`Replier`] | spends SURBs |
//! | [`Messenger`] | sends a client's messages and opens what comes back |
//! | [`MailboxCollector`] | fetches what waits at the client's entry |
//!
//! Nothing here says who is who: no peer id, address or mailbox is logged, and counters have no labels.

mod collect;
mod counters;
mod key_ring;
mod links;
mod mailroom;
mod messenger;
mod mixer;
mod tag_log;

#[cfg(test)]
mod tests;

pub use collect::MailboxCollector;
pub use counters::{Counter, MixCounters};
pub use key_ring::{EpochKeys, KeyRing, KeyRingError};
pub use links::{Arrival, Deposit, LinkRefused, Links, Mailboxes, NoMailboxes};
pub use mailroom::{MESSAGE_QUEUE, Mailroom, Replier, ReplyRefused};
pub use messenger::{Messenger, MessengerClosed, MessengerParts, Replies, SendError};
pub use mixer::{FRAME_QUEUE, Mixer, MixerParts};
pub use tag_log::TagLogError;

use crate::unix_now;
