//! The control socket: how the command line and the dashboard reach a running node.
//!
//! gRPC over a Unix socket, as `node/control/proto/souk/control/v1/control.proto` says. Whoever can open the socket is the
//! operator: it is made with mode 0600, before it has its name, in a folder that nobody else can write to. A second socket
//! answers a monitoring user, and only what changes nothing.
//!
//! ```text
//! souk status ──► Client ──unix──► version check ──► access check ──► Service ──► Operations (the node)
//! souk top ◄──── snapshots, happenings ◄──── feed ◄── one snapshot for all ◄─┘
//! ```
//!
//! Threats: another user of the machine who wants to reach the socket or to put one of their own in its place; a
//! requester whose traces an operator, or who takes the operator's place, could read: no reply holds any; a client that
//! reads nothing and would have the node pile up what it is to be told.

mod feed;
mod happenings;
mod server;
mod socket;

pub use happenings::{Happened, Happening, Happenings, MAX_HAPPENINGS};
pub use server::{
    Access, ChangeRefused, EndError, Operations, PauseError, ReapError, Serving, serve,
};
pub use socket::{Socket, SocketError};
pub use souk_control::{Client, ClientError, REVISION, Updates, VERSION, program, v1};
use souk_control::{MAX_REPLY_BYTES, VERSION_KEY};

/// Calls that are served at once on one connection; an operator's scripts need few.
const MAX_CALLS: usize = 32;

/// A request is no larger, in bytes: none holds more than a lease id.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests;
