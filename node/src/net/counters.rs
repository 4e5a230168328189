//! What the network counts, beside libp2p's own metrics. No label ever names a peer.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::conduct::{Offence, OffenceLabel};

/// Why a frame was not sent.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelValue,
)]
pub(super) enum Lost {
    /// The queue of the link is full.
    Full,
    /// There is no link to the peer.
    NoLink,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabel {
    reason: Lost,
}

/// What was counted, at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Neighbours that broke the protocol.
    pub offences: u64,
    /// Mix frames written to links.
    pub frames_sent: u64,
    /// Mix frames read from links.
    pub frames_received: u64,
    /// Mix frames that no link took.
    pub frames_dropped: u64,
    /// Links with an open stream.
    pub links_up: u64,
    /// Packets held for clients.
    pub mailbox_packets: u64,
    /// Sessions spliced now.
    pub relay_sessions: u64,
    /// Bytes copied between requesters and providers.
    pub relayed_bytes: u64,
}

/// The counters; clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters {
    offences: Family<OffenceLabel, Counter>,
    frames_sent: Counter,
    frames_received: Counter,
    frames_dropped: Family<DropLabel, Counter>,
    links_up: Gauge,
    mailbox_packets: Gauge,
    relay_sessions: Gauge,
    relayed_bytes: Counter,
}

impl Counters {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("souk_net");
        registry.register(
            "offences",
            "Neighbours that broke the protocol, by kind",
            self.offences.clone(),
        );
        registry.register(
            "link_frames_sent",
            "Mix frames written to links",
            self.frames_sent.clone(),
        );
        registry.register(
            "link_frames_received",
            "Mix frames read from links",
            self.frames_received.clone(),
        );
        registry.register(
            "link_frames_dropped",
            "Mix frames that no link took, by reason",
            self.frames_dropped.clone(),
        );
        registry.register(
            "links_up",
            "Links with an open stream",
            self.links_up.clone(),
        );
        registry.register(
            "mailbox_packets",
            "Packets held for clients",
            self.mailbox_packets.clone(),
        );
        registry.register(
            "relay_sessions",
            "Sessions spliced now",
            self.relay_sessions.clone(),
        );
        registry.register(
            "relayed_bytes",
            "Bytes copied between requesters and providers",
            self.relayed_bytes.clone(),
        );
        // All labels from the start: a series that appears with its first event shows no increase.
        let _ = self.totals();
    }

    /// Everything as it stands now.
    pub(super) fn totals(&self) -> Totals {
        let dropped = |reason| {
            self.frames_dropped
                .get_or_create(&DropLabel { reason })
                .get()
        };
        let offences = Offence::ALL.map(|offence| {
            let label = OffenceLabel { offence };
            self.offences.get_or_create(&label).get()
        });
        let level = |gauge: &Gauge| u64::try_from(gauge.get()).unwrap_or_default();
        Totals {
            offences: offences.iter().sum(),
            frames_sent: self.frames_sent.get(),
            frames_received: self.frames_received.get(),
            frames_dropped: dropped(Lost::Full) + dropped(Lost::NoLink),
            links_up: level(&self.links_up),
            mailbox_packets: level(&self.mailbox_packets),
            relay_sessions: level(&self.relay_sessions),
            relayed_bytes: self.relayed_bytes.get(),
        }
    }

    pub(super) fn count_offence(&self, offence: Offence) {
        self.offences.get_or_create(&OffenceLabel { offence }).inc();
    }

    pub(super) fn count_sent(&self, frames: usize) {
        self.frames_sent.inc_by(frames as u64);
    }

    pub(super) fn count_received(&self) {
        self.frames_received.inc();
    }

    pub(super) fn count_dropped(&self, reason: Lost) {
        self.frames_dropped
            .get_or_create(&DropLabel { reason })
            .inc();
    }

    pub(super) fn add_link(&self, change: i64) {
        self.links_up.inc_by(change);
    }

    pub(super) fn set_mailbox_packets(&self, packets: usize) {
        self.mailbox_packets
            .set(i64::try_from(packets).unwrap_or(i64::MAX));
    }

    pub(super) fn add_relay_session(&self, change: i64) {
        self.relay_sessions.inc_by(change);
    }

    pub(super) fn count_relayed(&self, bytes: u64) {
        self.relayed_bytes.inc_by(bytes);
    }
}
