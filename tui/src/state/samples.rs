//! What changed from snapshot to snapshot, for the lines of bars.

use std::collections::VecDeque;

use souk_control::v1;

use super::MAX_SAMPLES;

/// One value a snapshot each, the oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    pub(crate) leases: Series,
    pub(crate) peers: Series,
    /// Packets in each second.
    pub(crate) received: Series,
    pub(crate) sent: Series,
    pub(crate) queue: Series,
}

/// The last values of something.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(VecDeque<u64>);

impl Series {
    fn push(&mut self, value: u64) {
        if self.0.len() == MAX_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The last `count` of them.
    pub(crate) fn last(&self, count: usize) -> Vec<u64> {
        let skipped = self.0.len().saturating_sub(count);
        self.0.iter().skip(skipped).copied().collect()
    }

    /// The newest.
    pub(crate) fn newest(&self) -> u64 {
        self.0.back().copied().unwrap_or_default()
    }
}

impl Samples {
    pub(super) fn take(&mut self, before: Option<&v1::Snapshot>, now: &v1::Snapshot) {
        self.leases.push(now.leases.len() as u64);
        let status = now.status.as_ref();
        self.peers
            .push(status.map_or(0, |status| status.peers.into()));
        let Some(mix) = &now.mix else { return };
        self.queue.push(mix.queue.into());
        let Some((then, last)) = before.and_then(|then| Some((then, then.mix.as_ref()?))) else {
            return;
        };
        let elapsed_ms = now.at_unix_ms.saturating_sub(then.at_unix_ms);
        // The counters of a node that was started again begin at zero.
        let rate = |now: u64, then: u64| match elapsed_ms {
            0 => 0,
            ms => now.saturating_sub(then).saturating_mul(1000) / ms,
        };
        self.received
            .push(rate(mix.packets_received, last.packets_received));
        self.sent.push(rate(mix.packets_sent, last.packets_sent));
    }
}
