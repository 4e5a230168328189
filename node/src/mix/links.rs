//! What the mix driver needs of the network: links to neighbours, and mailboxes at this node.
//!
//! Incoming frames of all links arrive in one bounded channel of [`Arrival`]; a full channel makes the
//! network stop reading, so that the neighbours feel it. Who sent a frame is no business of the mix, which only shares out
//! by a number that the network gives it.

use souk_sphinx::{Frame, HopAddress, TagSource};

/// A frame from a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The frame.
    pub frame: Frame,
    /// Whose share of the replay tags its packet uses.
    pub from: TagSource,
}

/// Links to other nodes, by node id.
pub trait Links: Send + Sync + 'static {
    /// Hands a frame to the link of `to`, opening one if need be, without waiting.
    ///
    /// # Errors
    /// [`LinkRefused`]; the frame is dropped then, as a network may, and its sender resends.
    fn try_send(&self, to: HopAddress, frame: Frame) -> Result<(), LinkRefused>;

    /// Whether there is a link to `to`, up or being opened.
    fn has_link(&self, to: &HopAddress) -> bool;
}

/// Why a link did not take a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkRefused {
    /// No link, and no address to open one.
    #[error("there is no link to that node")]
    NoLink,
    /// The queue of the link is full.
    #[error("the queue of the link is full")]
    Full,
}

/// The mailboxes that this node holds for clients.
pub trait Mailboxes: Send + Sync + 'static {
    /// Puts a frame into a mailbox, without waiting.
    ///
    /// Gives it back as [`Deposit::Unknown`] if no mailbox has that address: it is a node's then.
    fn try_deposit(&self, mailbox: HopAddress, frame: Frame) -> Deposit;
}

/// What became of a frame for a mailbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deposit {
    /// It waits for its client.
    Held,
    /// The mailbox is full; the frame is dropped, and its sender resends.
    Full,
    /// There is no such mailbox here: the address is a node's, and this is the frame.
    Unknown(Frame),
}

/// A node that holds no mailboxes.
#[derive(Clone, Copy, Debug)]
pub struct NoMailboxes;

impl Mailboxes for NoMailboxes {
    fn try_deposit(&self, _mailbox: HopAddress, frame: Frame) -> Deposit {
        Deposit::Unknown(frame)
    }
}
