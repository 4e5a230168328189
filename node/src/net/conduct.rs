//! What neighbours did, and what follows from it.
//!
//! Only what a neighbour did itself counts: framing, size, rate, stalling. A bad MAC, a replayed packet, a payload that
//! does not open, a clock that is off or a request that local policy refuses never reach this module, because a third
//! party could cause each of them through an honest node.
//!
//! ```text
//!            Rate: score sinks            sum of penalties ≥ BAN_AT
//!  good ───────────────────────► watched ───────────────────────────► banned for BAN
//!   ▲  ▲                            │ Framing, Oversized, Stalled: disconnected at once
//!   │  └── decays by half every HALF_LIFE
//!   └──────────────── BAN is over
//! ```

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

/// Peers remembered. A stranger can take a fresh identity at any time, so more memory buys nothing; the entry touched
/// longest ago goes first.
pub(super) const MAX_REMEMBERED: usize = 1_024;

/// Time after which half of a penalty is forgotten.
const HALF_LIFE: Duration = Duration::from_secs(120);

/// Sum of penalties at which a peer is no longer let in.
const BAN_AT: f64 = 30.0;

/// How long a peer is kept out. Short: behind one address or identity an honest program may have been restarted.
const BAN: Duration = Duration::from_secs(120);

/// What a neighbour did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Offence {
    /// It sent bytes that are not of the protocol.
    Framing,
    /// It announced more bytes than the protocol allows.
    Oversized,
    /// It began a frame and did not end it.
    Stalled,
    /// It asks for more than its share.
    Rate,
}

impl Offence {
    pub(super) const ALL: [Self; 4] = [Self::Framing, Self::Oversized, Self::Stalled, Self::Rate];

    fn penalty(self) -> f64 {
        match self {
            Self::Framing | Self::Oversized => 20.0,
            Self::Stalled => 10.0,
            Self::Rate => 1.0,
        }
    }

    fn disconnects(self) -> bool {
        match self {
            Self::Framing | Self::Oversized | Self::Stalled => true,
            Self::Rate => false,
        }
    }
}

/// Label of the counter of offences: the kind only, never the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OffenceLabel {
    pub(super) offence: Offence,
}

/// What the swarm does about an offence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sentence {
    /// The application's part of the gossip score: zero or negative.
    pub(super) score: f64,
    /// Close all connections to the peer.
    pub(super) disconnect: bool,
}

/// The record of all neighbours.
#[derive(Debug, Default)]
pub(super) struct Conduct {
    peers: HashMap<PeerId, Record>,
}

#[derive(Debug)]
struct Record {
    penalty: f64,
    at: Instant,
    banned_until: Option<Instant>,
}

impl Conduct {
    /// Records an offence and says what follows.
    pub(super) fn handle_offence(
        &mut self,
        peer: PeerId,
        offence: Offence,
        now: Instant,
    ) -> Sentence {
        self.make_room(&peer);
        let record = self.peers.entry(peer).or_insert(Record {
            penalty: 0.0,
            at: now,
            banned_until: None,
        });
        record.penalty =
            decayed(record.penalty, now.saturating_duration_since(record.at)) + offence.penalty();
        record.at = now;
        let banned = record.penalty >= BAN_AT;
        if banned {
            record.banned_until = Some(now + BAN);
        }
        Sentence {
            score: -record.penalty,
            disconnect: banned || offence.disconnects(),
        }
    }

    /// Whether the peer is kept out at `now`.
    pub(super) fn is_banned(&self, peer: &PeerId, now: Instant) -> bool {
        self.peers
            .get(peer)
            .and_then(|record| record.banned_until)
            .is_some_and(|until| now < until)
    }

    /// The application's part of a peer's gossip score at `now`.
    pub(super) fn score(&self, peer: &PeerId, now: Instant) -> f64 {
        self.peers.get(peer).map_or(0.0, |record| {
            -decayed(record.penalty, now.saturating_duration_since(record.at))
        })
    }

    fn make_room(&mut self, peer: &PeerId) {
        if self.peers.len() < MAX_REMEMBERED || self.peers.contains_key(peer) {
            return;
        }
        if let Some(oldest) = self
            .peers
            .iter()
            .min_by_key(|(_, record)| record.at)
            .map(|(peer, _)| *peer)
        {
            self.peers.remove(&oldest);
        }
    }
}

fn decayed(penalty: f64, elapsed: Duration) -> f64 {
    penalty * 0.5f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_framing_disconnects_and_repetition_bans_for_a_while() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        assert!(
            conduct
                .handle_offence(peer, Offence::Framing, now)
                .disconnect
        );
        assert!(!conduct.is_banned(&peer, now));
        conduct.handle_offence(peer, Offence::Framing, now);
        assert!(conduct.is_banned(&peer, now));
        assert!(!conduct.is_banned(&peer, now + BAN));
    }

    #[test]
    fn haste_alone_sinks_the_score_long_before_it_bans() {
        let (mut conduct, peer, now) = (Conduct::default(), PeerId::random(), Instant::now());
        for _ in 0..10 {
            assert!(!conduct.handle_offence(peer, Offence::Rate, now).disconnect);
        }
        assert!(conduct.score(&peer, now) < -9.0);
        assert!(conduct.score(&peer, now + 10 * HALF_LIFE) > -0.1);
    }

    #[test]
    fn strangers_cannot_grow_the_record() {
        let (mut conduct, now) = (Conduct::default(), Instant::now());
        for _ in 0..2 * MAX_REMEMBERED {
            conduct.handle_offence(PeerId::random(), Offence::Rate, now);
        }
        assert_eq!(conduct.peers.len(), MAX_REMEMBERED);
    }
}
