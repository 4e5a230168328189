//! What the mix counts: totals of this process, without labels, so that nobody is in them.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::counter::ConstCounter,
    registry::Registry,
};

/// A total that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        self.0
            .fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The total so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// Totals of the mix.
        #[derive(Debug, Default)]
        pub struct MixCounters {
            $($(#[doc = $doc])+ pub $name: Counter,)+
            waiting: AtomicUsize,
        }

        impl MixCounters {
            /// Each total with its name and what it counts, for a registry of metrics.
            pub fn all(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), concat!($($doc),+).trim_ascii(), self.$name.total()),)+].into_iter()
            }
        }
    };
}

impl MixCounters {
    /// Packets that wait for the end of their delay now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn set_waiting(&self, packets: usize) {
        self.waiting.store(packets, Ordering::Relaxed);
    }

    /// Shows the totals in `registry`, as `mix_<name>`.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register_collector(Box::new(Shown(self.clone())));
    }
}

#[derive(Debug)]
struct Shown(Arc<MixCounters>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, total) in self.0.all() {
            let counter = ConstCounter::new(total);
            let help = help.trim_end_matches('.');
            let name = format!("mix_{name}");
            let metric = encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}

counters! {
    /// Frames taken from links.
    frames_in,
    /// Packets passed on to another node.
    forwarded,
    /// Packets put into a mailbox.
    deposited,
    /// Packets that ended here.
    final_packets,
    /// Frames of an epoch whose key is not open.
    wrong_epoch,
    /// Packets whose header is not for this node or was changed.
    bad_header,
    /// Packets that passed here before.
    replays,
    /// Packets refused because the epoch holds as many replay tags as it may.
    tags_full,
    /// Packets refused because those that came from the same address used its share of the epoch's replay tags.
    tags_share_used,
    /// Packets of another format, or with routing data that means nothing.
    bad_format,
    /// Packets whose payload was changed on the way.
    bad_payload,
    /// Packets dropped because their replay tag could not be written to disk.
    tags_unwritten,
    /// Packets dropped because the delay pool was full.
    pool_full,
    /// Packets for a node without a link, or past the queue of its link.
    link_refused,
    /// Packets for a mailbox that is full.
    mailbox_full,
    /// Packets that ended here and were dropped: nobody reads messages at this node, or too many wait.
    unread,
    /// Messages that were complete.
    messages,
    /// Fragments of messages that were not let in: past the rate, or without the work that the card asks for.
    not_admitted,
    /// Fragments that were refused for another reason.
    fragments_refused,
    /// Acknowledgements sent.
    acks_sent,
    /// Replies sent.
    replies_sent,
    /// Replies and acknowledgements whose SURB was dead or whose first node has no link.
    replies_dropped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_listed_under_their_names() {
        let counters = MixCounters::default();
        counters.replays.add(3);
        let listed: Vec<_> = counters.all().filter(|(_, _, total)| *total > 0).collect();
        assert_eq!(listed, [("replays", "Packets that passed here before.", 3)]);
    }

    #[test]
    fn totals_are_shown_in_the_registry() {
        let counters = Arc::new(MixCounters::default());
        let mut registry = Registry::default();
        counters.register(&mut registry);
        counters.forwarded.add(7);
        let text = crate::metrics::text(&registry);
        assert!(text.contains("\nmix_forwarded_total 7\n"), "{text}");
    }
}
