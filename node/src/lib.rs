//! The souk node: the network, the mix driver, the provider and the requester.
//!
//! Each role is a module, and none of them starts another: `node` composes them from a [`config::Config`].

pub mod attest;
pub mod client;
pub mod config;
pub mod control;
pub mod metrics;
pub mod node;

pub mod mix;
pub mod net;
pub mod provider;
pub mod store;

mod clock;
mod durable;
#[cfg(feature = "failpoints")]
pub mod failpoint;
#[cfg(not(feature = "failpoints"))]
mod failpoint;
mod process;

#[cfg(all(feature = "failpoints", not(debug_assertions)))]
compile_error!("failpoints and planted bugs are for test builds; a release must not have them");

pub use clock::unix_now;

/// Nodes, cards and envelopes for tests, as those of the market have them.
#[cfg(test)]
#[path = "../../marketplace/tests/support/mod.rs"]
mod market_support;
