//! Drives the mix cores of `souk-sphinx` over the network of this node.

mod links;

pub use links::{Deposit, LinkRefused, Links, Mailboxes};
