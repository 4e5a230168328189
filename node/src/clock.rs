//! The wall clock, as everything that is signed or dated reads it.
//!
//! Threat: a clock that is wrong by hours. One before 1970 reads as 1970: every card and epoch is then from the future, which is
//! what a node says of it.

use std::time::{SystemTime, UNIX_EPOCH};

use souk_crypto::UnixTime;

/// The time now, in Unix seconds.
#[must_use]
pub fn unix_now() -> UnixTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixTime(since.as_secs())
}
