//! The last things that happened at the node, for whoever watches it.
//!
//! Redacted by construction: a happening is one of a few kinds, with ids and numbers that this node gave itself. There is no
//! place in it for a text, so nothing that a stranger wrote can get there.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use souk_market::{
    reply::LeaseState,
    units::{BackendName, LeaseId},
};
use tokio::sync::watch;

use super::v1::{self, happening::What};

/// How many are kept: what fits a screen. About 100 bytes each.
pub const MAX_HAPPENINGS: usize = 50;

/// Something that happened at the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The node began to work.
    Started,
    /// A lease has another state.
    Lease {
        /// Which.
        lease: LeaseId,
        /// Its state now.
        state: LeaseState,
        /// What carries it.
        backend: BackendName,
    },
    /// Requests were refused.
    Refused {
        /// Why.
        reason: souk_market::refusal::Reason,
        /// How many more.
        count: u64,
    },
    /// The node stands otherwise to new leases; the word for it.
    Standing(&'static str),
    /// The node made a card with this sequence.
    Card(u64),
    /// A checkpoint over so many entries was made.
    Checkpoint(u64),
    /// A backend can be listed now, or no more.
    Listed {
        /// Which.
        backend: BackendName,
        /// Whether it can.
        listed: bool,
    },
    /// New leases are placed at a backend again, or no more.
    Paused {
        /// Which.
        backend: BackendName,
        /// Whether they are not.
        paused: bool,
    },
    /// So many instances at a backend have no owner now.
    Orphans {
        /// Where.
        backend: BackendName,
        /// How many.
        orphans: usize,
    },
    /// So many nodes are connected now.
    Peers(u32),
}

/// One of them, with its place in the order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happened {
    /// Rises by one.
    pub sequence: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// What.
    pub what: Happening,
}

/// The last [`MAX_HAPPENINGS`]. Whoever is slow to read finds out how many it missed.
#[derive(Debug)]
pub struct Happenings {
    kept: Mutex<VecDeque<Happened>>,
    /// The sequence of the next one.
    next: watch::Sender<u64>,
}

impl Default for Happenings {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            next: watch::Sender::new(0),
        }
    }
}

impl Happenings {
    /// Takes note of something; the oldest is forgotten when there are more than are kept.
    pub fn note(&self, at_unix_ms: u64, what: Happening) {
        let mut kept = self.kept();
        let sequence = *self.next.borrow();
        kept.push_back(Happened {
            sequence,
            at_unix_ms,
            what,
        });
        while kept.len() > MAX_HAPPENINGS {
            kept.pop_front();
        }
        self.next.send_replace(sequence + 1);
    }

    /// Those from a sequence on that are still kept, the oldest first, and how many are not.
    #[must_use]
    pub fn since(&self, sequence: u64) -> (Vec<Happened>, u64) {
        let kept = self.kept();
        let first = kept.front().map_or(sequence, |oldest| oldest.sequence);
        let late = kept.iter().filter(|one| one.sequence >= sequence);
        (late.cloned().collect(), first.saturating_sub(sequence))
    }

    /// Changes whenever there is a new one.
    #[must_use]
    pub fn next(&self) -> watch::Receiver<u64> {
        self.next.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Happened>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Happened> for v1::Happening {
    fn from(happened: Happened) -> Self {
        let what = match happened.what {
            Happening::Started => What::Started(v1::Started {}),
            Happening::Lease {
                lease,
                state,
                backend,
            } => What::Lease(v1::LeaseChanged {
                lease: lease.to_string(),
                state: state.as_str().to_owned(),
                backend: backend.to_string(),
            }),
            Happening::Refused { reason, count } => What::Refused(v1::Refused {
                reason: reason.as_str().to_owned(),
                count,
            }),
            Happening::Standing(standing) => What::Standing(v1::StandingChanged {
                standing: standing.to_owned(),
            }),
            Happening::Card(sequence) => What::Card(v1::CardMade { sequence }),
            Happening::Checkpoint(size) => What::Checkpoint(v1::CheckpointMade { size }),
            Happening::Listed { backend, listed } => What::Backend(v1::BackendListed {
                backend: backend.to_string(),
                listed,
            }),
            Happening::Paused { backend, paused } => What::Paused(v1::BackendPaused {
                backend: backend.to_string(),
                paused,
            }),
            Happening::Orphans { backend, orphans } => What::Orphans(v1::OrphansChanged {
                backend: backend.to_string(),
                orphans: u32::try_from(orphans).unwrap_or(u32::MAX),
            }),
            Happening::Peers(peers) => What::Peers(v1::PeersChanged { peers }),
        };
        Self {
            sequence: happened.sequence,
            at_unix_ms: happened.at_unix_ms,
            what: Some(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_and_a_slow_reader_learns_how_many_it_missed() {
        let all = Happenings::default();
        assert_eq!(all.since(0), (Vec::new(), 0));
        let many = MAX_HAPPENINGS as u64 + 7;
        for n in 0..many {
            all.note(n, Happening::Card(n));
        }
        let (kept, missed) = all.since(0);
        assert_eq!((kept.len(), missed), (MAX_HAPPENINGS, 7));
        assert!(
            kept.windows(2)
                .all(|two| two[0].sequence + 1 == two[1].sequence)
        );
        let (rest, missed) = all.since(many - 2);
        assert_eq!((rest.len(), missed), (2, 0));
        assert_eq!(all.since(many), (Vec::new(), 0));
        assert_eq!(*all.next().borrow(), many);
    }
}
