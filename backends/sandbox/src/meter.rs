//! Adding readings up into totals, without I/O.
//!
//! Each meter is told what was read and when; a reading that failed makes its total unknown for good, because what
//! passed in between cannot be told. A known total is never more than what was used.

use std::collections::HashMap;

use souk_backend::{Meter, Usage};

/// Bytes over a time, from readings of the present level: the mean of two neighbouring readings is held to have been
/// in use between them.
#[derive(Debug, Default)]
pub(crate) struct LevelMeter {
    last: Option<(u64, u64)>,
    byte_ms: u128,
    failed: bool,
}

impl LevelMeter {
    /// Takes a reading at an instant of a clock that never goes back.
    pub(crate) fn read(&mut self, now_ms: u64, bytes: Option<u64>) {
        let Some(bytes) = bytes else {
            self.failed = true;
            return;
        };
        if let Some((then, before)) = self.last {
            let mean = u128::midpoint(before.into(), bytes.into());
            self.byte_ms += mean * u128::from(now_ms.saturating_sub(then));
        }
        self.last = Some((now_ms, bytes));
    }

    fn mib_s(&self) -> Meter {
        let mib_s = self.byte_ms / (1_000 << 20);
        match u64::try_from(mib_s) {
            Ok(total) if !self.failed => Meter::Known(total),
            _ => Meter::Unknown,
        }
    }
}

/// A counter that somebody else adds up and that should never fall.
#[derive(Debug, Default)]
pub(crate) struct CounterMeter {
    total: u64,
    failed: bool,
}

impl CounterMeter {
    /// Takes a reading. One below an earlier one means that part of the count was lost.
    pub(crate) fn read(&mut self, reading: Option<u64>) {
        match reading {
            Some(total) if total >= self.total => self.total = total,
            _ => self.failed = true,
        }
    }

    /// Takes a reading that may lack what others have: the higher one stands.
    pub(crate) fn at_least(&mut self, total: u64) {
        self.total = self.total.max(total);
    }

    /// Whether a reading would be taken as a loss.
    pub(crate) fn would_fail(&self, reading: Option<u64>) -> bool {
        reading.is_none_or(|total| total < self.total)
    }

    fn total(&self, divisor: u64) -> Meter {
        if self.failed {
            Meter::Unknown
        } else {
            Meter::Known(self.total / divisor)
        }
    }
}

/// Bytes of one TCP socket since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SocketBytes {
    /// Arrived, in order.
    pub(crate) received: u64,
    /// Sent, and acknowledged by the other side.
    pub(crate) acknowledged: u64,
}

/// Bytes of all sockets of a port: the kernel's list of the open ones, and its word on each that is destroyed.
#[derive(Debug, Default)]
pub(crate) struct SocketMeter {
    open: HashMap<u64, SocketBytes>,
    closed: SocketBytes,
    lost: bool,
}

impl SocketMeter {
    /// Takes the list of open sockets, each by the kernel's cookie, or the news that it could not be had.
    pub(crate) fn listed(&mut self, open: Option<Vec<(u64, SocketBytes)>>) {
        match open {
            // A socket that is in neither list nor news yet stays until its news arrive.
            Some(open) => self.open.extend(open),
            None => self.lost = true,
        }
    }

    /// Takes the last count of a socket that is gone.
    pub(crate) fn destroyed(&mut self, cookie: u64, bytes: SocketBytes) {
        self.open.remove(&cookie);
        self.closed.received += bytes.received;
        self.closed.acknowledged += bytes.acknowledged;
    }

    /// Takes the news that news were lost.
    pub(crate) fn missed(&mut self) {
        self.lost = true;
    }

    /// Sockets that were open when last heard of.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    fn totals(&self) -> (Meter, Meter) {
        if self.lost {
            return (Meter::Unknown, Meter::Unknown);
        }
        let sum = |of: fn(&SocketBytes) -> u64| {
            Meter::Known(of(&self.closed) + self.open.values().map(of).sum::<u64>())
        };
        (sum(|s| s.received), sum(|s| s.acknowledged))
    }
}

/// All meters of a lease.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// Microseconds of CPU time.
    pub(crate) cpu: CounterMeter,
    pub(crate) memory: LevelMeter,
    pub(crate) sockets: SocketMeter,
}

impl Meters {
    pub(crate) fn usage(&self) -> Usage {
        let (net_rx_bytes, net_tx_bytes) = self.sockets.totals();
        Usage {
            cpu_core_ms: self.cpu.total(1_000),
            memory_mib_s: self.memory.mib_s(),
            net_rx_bytes,
            net_tx_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_constant_level_adds_up_exactly() {
        let mut meter = LevelMeter::default();
        for second in 0..=10 {
            meter.read(second * 1_000, Some(3 << 20));
        }
        assert_eq!(meter.mib_s(), Meter::Known(30));
    }

    #[test]
    fn one_failed_reading_makes_the_total_unknown() {
        let mut meters = Meters::default();
        meters.memory.read(0, Some(1));
        meters.memory.read(1, None);
        meters.memory.read(2, Some(1));
        meters.cpu.read(Some(5_000));
        meters.cpu.read(Some(4_000));
        meters.sockets.missed();
        assert_eq!(meters.usage(), Usage::UNKNOWN);
    }

    proptest! {
        #[test]
        fn every_socket_counts_once_however_list_and_news_interleave(
            sockets in proptest::collection::vec((0..1_000_u64, 0..1_000_u64, 0..4_u8), 0..40)
        ) {
            let mut meter = SocketMeter::default();
            let mut expected = SocketBytes::default();
            for (cookie, (received, acknowledged, fate)) in (0..).zip(sockets) {
                let bytes = SocketBytes { received, acknowledged };
                let half = SocketBytes { received: received / 2, acknowledged: acknowledged / 2 };
                if fate & 1 == 0 {
                    meter.listed(Some(vec![(cookie, half)]));
                }
                if fate & 2 == 0 {
                    meter.destroyed(cookie, bytes);
                } else {
                    meter.listed(Some(vec![(cookie, bytes)]));
                }
                expected.received += received;
                expected.acknowledged += acknowledged;
            }
            prop_assert_eq!(
                meter.totals(),
                (Meter::Known(expected.received), Meter::Known(expected.acknowledged))
            );
        }
    }
}
