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

/// The commit that the program was built from, with `-dirty` behind it where files were changed since; `None` where the build
/// was not told.
pub const REVISION: Option<&str> = option_env!("SOUK_REVISION");

/// The version of the program as people and other programs are told it: with the commit behind a plus, where it is known, so that
/// two builds of one version can be told apart.
#[must_use]
pub fn program() -> String {
    named(REVISION)
}

fn named(revision: Option<&str>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    revision.map_or_else(
        || version.to_owned(),
        |revision| format!("{version}+{revision}"),
    )
}

/// A reply is no larger, in bytes: 10,000 offers of 1 KiB fit.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_of_one_version_are_told_apart_where_their_commits_are_known() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(named(None), version);
        assert_eq!(named(Some("5f3c")), format!("{version}+5f3c"));
        assert_ne!(named(Some("5f3c")), named(Some("5f3c-dirty")));
    }
}
