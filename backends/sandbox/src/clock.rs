//! The two clocks that keepers and the driver read.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 by the host's wall clock.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since an instant, by a clock that never goes back.
pub(crate) fn ms_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
