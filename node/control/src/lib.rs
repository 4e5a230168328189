//! The control API of a node, as its clients have it: messages, versions, and the client.
//!
//! gRPC over a Unix socket, as `proto/souk/control/v1/control.proto` says. The node's side of it is in souk-node; this crate is
//! below it and knows nothing of it, so that a dashboard or a script can speak with a node without being one.
//!
//! ```text
//! souk status ──┐
//! souk top ─────┴─► Client ──unix──► the node
//! ```

mod client;

pub use client::{Client, ClientError, Updates};

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
pub const VERSION_KEY: &str = "souk-control-version";

/// A reply is no larger, in bytes: 10,000 offers of 1 KiB fit.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;
