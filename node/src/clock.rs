//! The wall clock, as everything that is signed or dated reads it, and the one beside it that nobody can set.
//!
//! Threat: a clock that is wrong by hours. One before 1970 reads as 1970: every card and epoch is then from the future, which is
//! what a node says of it.

use std::{
    fs,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use souk_crypto::UnixTime;
use souk_market::moment::{Boot, SteadyTime};

/// The time now, in Unix seconds.
#[must_use]
pub fn unix_now() -> UnixTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UnixTime(since.as_secs())
}

/// The time now, in milliseconds since 1970: for people who watch, never for what is signed.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time since the machine was started, with that in which it slept (`CLOCK_BOOTTIME` of clock_gettime(2)).
pub(crate) fn steady_now() -> SteadyTime {
    let since = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(since.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(since.tv_nsec).unwrap_or_default();
    SteadyTime(Duration::new(seconds, nanos))
}

/// Which start of the machine that counts from (random(4)); where the kernel does not say, one that is this process's alone, so that
/// nothing is concluded about the time before it.
pub(crate) fn boot() -> Boot {
    static BOOT: OnceLock<Boot> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let told = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let digits = told.map(|text| text.trim().replace('-', ""));
        let mut id = [0; 16];
        match digits.map(|digits| hex::decode_to_slice(digits, &mut id)) {
            Some(Ok(())) => Boot(id),
            _ => Boot(rand::random()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steady_clock_goes_on_and_the_boot_stays() {
        let before = steady_now();
        assert!(before > SteadyTime::default() && steady_now() >= before);
        assert_eq!(boot(), boot());
        assert!(unix_now() > UnixTime(1_700_000_000));
    }
}
