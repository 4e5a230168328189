//! What is looked at in a run: at every start, all the time, and at the end.

use std::{collections::BTreeMap, fs, io, path::Path, path::PathBuf};

use souk_backend::LeaseId;
use souk_crypto::UnixTime;
use souk_market::{
    lifecycle::Phase,
    log::{BundleSource, Checkpoint, NoteVerifier, TilePath, audit, origin},
};
use souk_node::store::{Found, Store};

use super::{
    invariants::Invariant,
    life::RECONCILE_S,
    support,
    world::{Shared, World},
};

/// What a deadline may be exceeded by beyond the period of reconciliation once all faults are over: a call that hangs, the
/// pause after it, and what a life that has just begun needs.
const CALL_S: u64 = 60 + 60 + 30;
/// The same for an instance that nobody owns: a list that hangs, the grace, a removal that hangs, and the pause after it.
const ORPHAN_S: u64 = 30 + 120 + 60 + 64 + 30;

/// The files of the published log.
struct Files(PathBuf);

impl BundleSource for Files {
    type Error = io::Error;

    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, io::Error> {
        fs::read(self.0.join(path.to_string()))
    }
}

/// Memory of the log across lives.
#[derive(Default)]
pub(super) struct SeenLog {
    entries: Vec<Vec<u8>>,
    checkpoint: Option<Checkpoint>,
}

/// Looks at what a life finds: the journal, the log and its published files.
pub(super) fn found(world: &Shared, log: &Path, store: &Store, found: &Found) {
    let mut guard = world.lock();
    let state = &mut *guard;
    let is_whole = found.corrupt.is_empty() && found.lost.is_empty();
    state.require(Invariant::NothingIsLost, is_whole, || {
        format!("damaged rows: {:?}", found.corrupt)
    });
    let now: BTreeMap<_, _> = found
        .leases
        .iter()
        .map(|record| (LeaseId(record.row.lease().0), record))
        .collect();
    for record in now.values() {
        state.note_row(record);
    }
    let wall = state.wall();
    let missing: Vec<_> = state
        .rows
        .iter()
        .filter(|(lease, record)| {
            !now.contains_key(*lease) && !may_be_forgotten(record.row.phase(), wall)
        })
        .map(|(lease, _)| *lease)
        .collect();
    for lease in missing {
        let name = state.name(lease);
        state.require(Invariant::NothingIsLost, false, || {
            format!("{name} has no row any more")
        });
    }
    entries(
        state,
        store,
        &now.values()
            .map(|r| (LeaseId(r.row.lease().0), r.row.phase()))
            .collect(),
    );
    published(state, log);
}

fn may_be_forgotten(phase: Phase, now: UnixTime) -> bool {
    matches!(phase, Phase::Closed { at, .. } if at.plus_s(super::life::RETENTION_S) <= now)
}

/// Entries stay as they were, and closed leases have one each.
fn entries(state: &mut World, store: &Store, phases: &BTreeMap<LeaseId, Phase>) {
    let records = store.log_size().and_then(|size| store.log_records(0, size));
    let records = match records {
        Ok(records) => records,
        Err(error) => {
            state.require(Invariant::NothingIsLost, false, || {
                format!("the log: {error}")
            });
            return;
        }
    };
    let bytes: Vec<_> = records.iter().map(|record| record.entry.clone()).collect();
    let is_longer = bytes.starts_with(&state.seen_log.entries);
    state.require(Invariant::LogOnlyGrows, is_longer, || {
        "entries have changed".to_owned()
    });
    state.seen_log.entries = bytes;
    let mut counts: BTreeMap<LeaseId, u32> = BTreeMap::new();
    for opening in records.iter().filter_map(|record| record.opening.as_ref()) {
        *counts.entry(LeaseId(opening.lease.0)).or_default() += 1;
    }
    for (lease, phase) in phases {
        let wanted = u32::from(matches!(phase, Phase::Closed { .. }));
        let count = counts.get(lease).copied().unwrap_or(0);
        let name = state.name(*lease);
        state.require(Invariant::ExactlyOneEntry, count == wanted, || {
            format!("{name} is {phase:?} and has {count} entries")
        });
    }
    for (lease, count) in counts {
        let name = state.name(lease);
        state.require(Invariant::ExactlyOneEntry, count == 1, || {
            format!("{name} has {count} entries")
        });
    }
}

/// What is published is covered by its tiles, by the entries, and extends what was published before.
fn published(state: &mut World, log: &Path) {
    let Ok(note) = fs::read(log.join("checkpoint")) else {
        return;
    };
    let node = &state.keys.node;
    let looked = (|| {
        let origin = origin(support::network(), node.node.public()).map_err(|e| e.to_string())?;
        let verifier = NoteVerifier::new(origin.clone(), node.log.public());
        let checkpoint = Checkpoint::open(&note, &origin, &verifier).map_err(|e| e.to_string())?;
        let known = state.seen_log.checkpoint.as_ref();
        audit(&Files(log.to_owned()), &checkpoint, known).map_err(|e| e.to_string())?;
        if checkpoint.size() > state.seen_log.entries.len() as u64 {
            return Err("it covers entries that are not in the store".to_owned());
        }
        Ok(checkpoint)
    })();
    match looked {
        Ok(checkpoint) => state.seen_log.checkpoint = Some(checkpoint),
        Err(error) => state.require(Invariant::LogOnlyGrows, false, || {
            format!("the published checkpoint: {error}")
        }),
    }
}

/// What holds at every instant once all faults are over.
pub(super) fn now(world: &Shared) {
    let mut guard = world.lock();
    let state = &mut *guard;
    let Some(settled_ms) = state.settled_at_ms else {
        return;
    };
    let (now_ms, wall_ms) = (state.now_ms(), state.wall_ms());
    let leases: Vec<_> = state
        .machines
        .running
        .iter()
        .map(|machine| (machine.lease, machine.valid_to_unix_s, machine.made_at_ms()))
        .collect();
    for (lease, valid_to, made_ms) in leases {
        let record = state.row_on_disk(lease);
        let over_ms = match record.as_ref().map(|record| record.row.phase()) {
            // Nobody owns it: it is to be found and removed, from when it is there.
            None | Some(Phase::Closed { .. }) => {
                let since = settled_ms.max(made_ms);
                (now_ms > since + (RECONCILE_S + ORPHAN_S) * 1_000).then_some(Invariant::NoOrphan)
            }
            Some(_) => {
                let deadline = record.map_or(valid_to, |record| record.row.terms().valid_to().0);
                let allowed_ms = (RECONCILE_S + CALL_S) * 1_000;
                let late_ms = wall_ms.saturating_sub(deadline * 1_000);
                let is_late = late_ms > allowed_ms && now_ms > settled_ms + allowed_ms;
                is_late.then_some(Invariant::NoLeasePastItsDeadline)
            }
        };
        if let Some(invariant) = over_ms {
            let name = state.name(lease);
            // Said once, then the machine is taken away.
            state.machines.remove(lease, now_ms);
            state.require(invariant, false, || {
                format!("the machine of {name} is still there")
            });
        }
    }
}

/// What holds at the end: everything is over, and everybody was told.
pub(super) fn end(world: &Shared, log: &Path, store: &Store) {
    let mut guard = world.lock();
    let state = &mut *guard;
    let known: Vec<_> = state.rows.keys().copied().collect();
    let mut phases = BTreeMap::new();
    for lease in known {
        let Some(phase) = state.phase_on_disk(lease) else {
            continue;
        };
        phases.insert(lease, phase);
        if state.must_have_forgotten {
            state.require(Invariant::NothingIsLost, false, || {
                "a closed lease is remembered for too long".to_owned()
            });
        }
        let is_closed = matches!(phase, Phase::Closed { .. });
        let name = state.name(lease);
        state.require(Invariant::NoLeasePastItsDeadline, is_closed, || {
            format!("{name} is still {phase:?}")
        });
    }
    entries(state, store, &phases);
    published(state, log);
    for who in 0..state.requesters.len() {
        let requester = &state.requesters[who];
        let has_lease = state.leases_of_requests.contains_key(&requester.request());
        let is_fine = requester.is_told() || !has_lease;
        state.require(Invariant::RequesterIsTold, is_fine, || {
            format!("requester {who} has a lease and was told nothing")
        });
    }
}
