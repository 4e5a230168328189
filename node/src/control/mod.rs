//! The control socket: how the command line reaches a running node.
//!
//! gRPC over a Unix socket, as `proto/souk/control/v1/control.proto` says. Whoever can open the socket is the operator:
//! it is made with mode 0600, before it has its name, in a folder that nobody else can write to.
//!
//! ```text
//! souk status ──► Client ──unix──► version check ──► Service ──► Operations (the node)
//! ```
//!
//! Threats: another user of the machine who wants to reach the socket or to put one of their own in its place; a
//! requester whose traces an operator, or who takes the operator's place, could read: no reply holds any.

mod client;
mod server;
mod socket;

pub use client::{Client, ClientError};
pub use server::{ChangeRefused, EndError, Operations, serve};
pub use socket::{Socket, SocketError};

/// Messages and stubs, generated from the `.proto` file.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes_without_reason,
    reason = "generated; the comments are in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("souk.control.v1");
}

/// The version of the API that both sides must speak.
pub const VERSION: u32 = 1;

/// The metadata key that carries it.
const VERSION_KEY: &str = "souk-control-version";

/// Calls that are served at once on one connection; an operator's scripts need few.
const MAX_CALLS: usize = 32;

/// A request is no larger, in bytes: none holds more than a lease id.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// A reply is no larger, in bytes: 10,000 offers of 1 KiB fit.
const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests;
