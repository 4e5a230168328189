//! The driver over the real kernel: what a lease can do, and what a hostile tenant cannot.

#![expect(
    clippy::print_stderr,
    reason = "tests say what they skipped and what is not enforced here"
)]

mod common;
mod hostile_tenant;
mod lease;
mod ssh;
