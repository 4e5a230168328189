//! Takes note of what happens at a running node, from what its parts tell or show anyway.
//!
//! ```text
//!  leases, refusals, checkpoints, standing, own card ──told──┐
//!  peers, backends, orphans ──looked at, each LOOK───────────┴──► Happenings
//! ```
//!
//! Nothing here can hold up a part: channels that say only that something changed, and a queue of changes of leases that drops
//! the oldest.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use souk_market::{
    card::VerifiedCard,
    refusal::{Reason, RefusalTotals},
    standing::Standing,
    units::BackendName,
};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::unix_ms,
    control::{Happening, Happenings},
    net::Peers,
    provider::{Findings, Head, LeaseChange, Provider},
};

/// Between two looks at what tells nobody when it changes.
const LOOK: Duration = Duration::from_secs(1);

/// What is observed.
pub(super) struct Observer {
    pub(super) happenings: Arc<Happenings>,
    pub(super) peers: Peers,
    pub(super) own: watch::Receiver<Option<Arc<VerifiedCard>>>,
    pub(super) standing: watch::Receiver<Standing>,
    pub(super) provider: watch::Receiver<Option<Provider>>,
}

/// What is observed of a provider, once it works.
struct Selling {
    provider: Provider,
    leases: broadcast::Receiver<LeaseChange>,
    refused: watch::Receiver<RefusalTotals>,
    head: watch::Receiver<Head>,
    refused_before: RefusalTotals,
    findings: BTreeMap<BackendName, Findings>,
}

impl Observer {
    /// Takes note until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        self.note(Happening::Started);
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut selling: Option<Selling> = None;
        let (mut peers, mut card) = (0, None);
        let mut standing = self.standing.borrow_and_update().as_str();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => {
                    let now = u32::try_from(self.peers.info().await.peers).unwrap_or(u32::MAX);
                    if now != peers {
                        peers = now;
                        self.note(Happening::Peers(now));
                    }
                    if let Some(selling) = &mut selling {
                        for happening in selling.look() {
                            self.note(happening);
                        }
                    }
                }
                Ok(()) = self.own.changed() => {
                    let now = self.own.borrow_and_update().as_ref().map(|card| card.sequence.0);
                    if let Some(sequence) = now.filter(|_| now != card) {
                        self.note(Happening::Card(sequence));
                    }
                    card = now;
                }
                Ok(()) = self.standing.changed() => {
                    let now = self.standing.borrow_and_update().as_str();
                    if now != standing {
                        standing = now;
                        self.note(Happening::Standing(now));
                    }
                }
                Ok(()) = self.provider.changed() => {
                    selling = self.provider.borrow_and_update().clone().map(Selling::new);
                }
                happening = told(&mut selling) => {
                    for happening in happening {
                        self.note(happening);
                    }
                }
            }
        }
    }

    fn note(&self, what: Happening) {
        self.happenings.note(unix_ms(), what);
    }
}

impl Selling {
    fn new(provider: Provider) -> Self {
        Self {
            leases: provider.changes(),
            refused: provider.refused(),
            head: provider.head(),
            refused_before: RefusalTotals::default(),
            findings: BTreeMap::new(),
            provider,
        }
    }

    /// What has changed at the backends since the last look.
    fn look(&mut self) -> Vec<Happening> {
        let now = self.provider.findings();
        let happened = changes(&self.findings, &now);
        self.findings = now;
        happened
    }

    /// Refusals since the last of them.
    fn refusals(&mut self) -> Vec<Happening> {
        let now = *self.refused.borrow_and_update();
        let before = std::mem::replace(&mut self.refused_before, now);
        let more = |(reason, count): (Reason, u64)| Happening::Refused {
            reason,
            count: count - before.of(reason),
        };
        now.iter()
            .filter(|(reason, count)| *count > before.of(*reason))
            .map(more)
            .collect()
    }
}

/// What a provider tells next; never, where there is none.
async fn told(selling: &mut Option<Selling>) -> Vec<Happening> {
    let Some(selling) = selling else {
        return pending().await;
    };
    tokio::select! {
        change = selling.leases.recv() => match change {
            Ok(LeaseChange { lease, state, backend }) => vec![Happening::Lease { lease, state, backend }],
            // More happened at once than is kept anyway.
            Err(RecvError::Lagged(_)) => Vec::new(),
            Err(RecvError::Closed) => pending().await,
        },
        Ok(()) = selling.refused.changed() => selling.refusals(),
        Ok(()) = selling.head.changed() => {
            vec![Happening::Checkpoint(selling.head.borrow_and_update().size)]
        }
        else => pending().await,
    }
}

fn changes(
    before: &BTreeMap<BackendName, Findings>,
    now: &BTreeMap<BackendName, Findings>,
) -> Vec<Happening> {
    let is_listed = |found: &Findings| found.listed.is_some() && found.failures == 0;
    let mut happened = Vec::new();
    for (backend, found) in now {
        let last = before.get(backend);
        let (listed, orphans) = (is_listed(found), found.orphans.len());
        // Before the first list nothing is known.
        let was_listed = last.is_none_or(is_listed);
        let looked = found.listed.is_some() || found.failures > 0;
        if looked && listed != was_listed {
            happened.push(Happening::Listed {
                backend: backend.clone(),
                listed,
            });
        }
        if orphans != last.map_or(0, |found| found.orphans.len()) {
            happened.push(Happening::Orphans {
                backend: backend.clone(),
                orphans,
            });
        }
    }
    happened
}

#[cfg(test)]
mod tests {
    use souk_market::{reconcile::OrphanReason, units::LeaseId};

    use super::*;
    use crate::provider::OrphanView;

    fn found(listed: bool, failures: u32, orphans: usize) -> Findings {
        Findings {
            listed: listed.then_some((3, Duration::ZERO)),
            failures,
            orphans: vec![
                OrphanView {
                    lease: LeaseId([1; 16]),
                    reason: OrphanReason::UnknownLease,
                    age: Duration::ZERO,
                    state: "waiting",
                    failed: 0,
                };
                orphans
            ],
            ..Findings::default()
        }
    }

    #[test]
    fn a_backend_is_told_of_when_it_changes_and_not_again() {
        let backend: BackendName = "sandbox".parse().expect("a name");
        let at = |findings: Findings| BTreeMap::from([(backend.clone(), findings)]);
        let listed = |listed| Happening::Listed {
            backend: backend.clone(),
            listed,
        };
        let orphans = |orphans| Happening::Orphans {
            backend: backend.clone(),
            orphans,
        };
        let mut last = BTreeMap::new();
        let mut look = |findings| {
            let now = at(findings);
            let happened = changes(&last, &now);
            last = now;
            happened
        };
        assert_eq!(look(found(false, 0, 0)), [], "nothing is known yet");
        assert_eq!(look(found(true, 0, 0)), [listed(true)]);
        assert_eq!(look(found(true, 0, 0)), []);
        assert_eq!(look(found(true, 1, 0)), [listed(false)]);
        assert_eq!(look(found(true, 2, 0)), []);
        assert_eq!(look(found(true, 0, 2)), [listed(true), orphans(2)]);
        assert_eq!(look(found(true, 0, 0)), [orphans(0)]);
    }
}
