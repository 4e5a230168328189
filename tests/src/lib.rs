//! Fixtures of the end-to-end tests: real programs as separate processes, on loopback or on hosts of their own.
//!
//! Everything binds to free ports or lives in network namespaces, keeps its files in temporary folders, and is ended
//! when its fixture is dropped, also by a panic. Nothing waits a fixed time: fixtures look until a condition holds and
//! fail after [`PATIENCE`].
//!
//! The programs are those that `cargo xtask test` has just built and names in `SOUK_BIN` and `SOUK_AGENT_BIN`; without
//! these they are looked for in `target/release/`.

mod capture;
mod clock;
mod hosts;
mod instances;
mod needs;
mod network;
mod process;
#[cfg(feature = "proof")]
pub mod program;
mod programs;
mod requester;
mod search;
#[cfg(feature = "proof")]
pub mod simulation;
#[cfg(feature = "proof")]
pub mod sweep;

pub use capture::{Capture, Frames};
pub use clock::Clock;
pub use hosts::{Host, Lan};
pub use needs::{Need, lacks};
pub use network::{Discovery, Network, NodeUnderTest, Plan, Role, node_command};
pub use process::{PATIENCE, Process, eventually, eventually_or_why, succeed};
pub use programs::{agent, souk};
pub use requester::{Rented, Requester};
pub use search::{Needle, find};

/// Says that a test did not run, in the form that `cargo xtask test` looks for.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}
