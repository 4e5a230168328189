//! What the files of a dead provider say, held against its instances and what its requester was told.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde_json::Value;
use souk_market::lifecycle::Phase;
use souk_node::{
    store::{Found, LogRecord, Store},
    unix_now,
};

use crate::{
    requester::Requester,
    simulation::{Invariant, Violation},
};

/// What was seen at earlier looks.
#[derive(Default)]
pub(super) struct Seen {
    /// Leases that had a row.
    leases: BTreeSet<String>,
    /// The log, entry by entry.
    entries: Vec<Vec<u8>>,
}

/// Everything that is wrong.
pub(super) fn look(
    data: &Path,
    instances: &[String],
    requester: Option<&Requester>,
    seen: &mut Seen,
    is_over: bool,
) -> Vec<Violation> {
    let mut wrong = Wrong(Vec::new());
    let Some((found, log)) = read(data, &mut wrong) else {
        return wrong.0;
    };
    let phases: BTreeMap<_, _> = found
        .leases
        .iter()
        .map(|record| (record.row.lease().to_string(), record.row.phase()))
        .collect();
    nothing_is_lost(&found, &phases, seen, &mut wrong);
    exactly_one_entry(&phases, &log, seen, &mut wrong);
    let now = unix_now();
    let over = found.leases.iter().map(|record| &record.row);
    let over = over.filter(|row| row.terms().valid_to() <= now);
    let over = over.map(|row| row.lease().to_string()).collect();
    instances_are_announced(&phases, &over, instances, &mut wrong);
    if let Some(requester) = requester {
        receipts_are_written(&phases, requester, &mut wrong);
    }
    if is_over {
        for (lease, phase) in &phases {
            wrong.unless(
                matches!(phase, Phase::Closed { .. }),
                Invariant::NoLeasePastItsDeadline,
                || format!("{lease} is still {phase:?}"),
            );
        }
        wrong.unless(instances.is_empty(), Invariant::NoOrphan, || {
            format!("{instances:?} are left")
        });
    }
    seen.leases.extend(phases.into_keys());
    wrong.0
}

struct Wrong(Vec<Violation>);

impl Wrong {
    fn unless(&mut self, holds: bool, invariant: Invariant, seen: impl FnOnce() -> String) {
        if !holds {
            let seen = seen();
            self.0.push(Violation { invariant, seen });
        }
    }
}

/// Reads a copy of the store: opening repairs, and the next life must find what this one left.
fn read(data: &Path, wrong: &mut Wrong) -> Option<(Found, Vec<LogRecord>)> {
    let copy = tempfile::tempdir().expect("a temporary folder");
    let name = "provider.redb";
    if fs::copy(data.join("store").join(name), copy.path().join(name)).is_err() {
        // Killed before there was a store.
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let read = runtime.block_on(async {
        let (store, found) = Store::open(copy.path()).await?;
        let log = store.log_records(0, store.log_size()?)?;
        Ok::<_, souk_node::store::StoreError>((found, log))
    });
    match read {
        Ok(read) => Some(read),
        Err(error) => {
            wrong.unless(false, Invariant::NothingIsLost, || error.to_string());
            None
        }
    }
}

fn nothing_is_lost(
    found: &Found,
    phases: &BTreeMap<String, Phase>,
    seen: &Seen,
    wrong: &mut Wrong,
) {
    wrong.unless(found.corrupt.is_empty(), Invariant::NothingIsLost, || {
        format!("damaged rows: {:?}", found.corrupt)
    });
    for lease in seen
        .leases
        .iter()
        .filter(|lease| !phases.contains_key(*lease))
    {
        wrong.unless(false, Invariant::NothingIsLost, || {
            format!("{lease} has no row any more")
        });
    }
}

fn exactly_one_entry(
    phases: &BTreeMap<String, Phase>,
    log: &[LogRecord],
    seen: &mut Seen,
    wrong: &mut Wrong,
) {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for opening in log.iter().filter_map(|record| record.opening.as_ref()) {
        *counts.entry(opening.lease.to_string()).or_default() += 1;
    }
    for lease in phases.keys().chain(counts.keys()).collect::<BTreeSet<_>>() {
        let phase = phases.get(lease);
        let wanted = u32::from(matches!(phase, None | Some(Phase::Closed { .. })));
        let count = counts.get(lease).copied().unwrap_or(0);
        wrong.unless(count == wanted, Invariant::ExactlyOneEntry, || {
            format!("{lease} is {phase:?} and has {count} entries")
        });
    }
    let entries: Vec<_> = log.iter().map(|record| record.entry.clone()).collect();
    wrong.unless(
        entries.starts_with(&seen.entries),
        Invariant::LogOnlyGrows,
        || "entries have changed".to_owned(),
    );
    seen.entries = entries;
}

/// Every instance has a lease that was announced, one lease has one, and none is gone of which the journal does not know
/// that it is to go; of a lease whose time is over it ends by itself.
fn instances_are_announced(
    phases: &BTreeMap<String, Phase>,
    over: &BTreeSet<String>,
    instances: &[String],
    wrong: &mut Wrong,
) {
    for lease in instances {
        let phase = phases.get(lease);
        let is_announced = matches!(
            phase,
            Some(Phase::Provisioning | Phase::Active | Phase::Draining { .. })
        );
        wrong.unless(is_announced, Invariant::IntentBeforeInstance, || {
            format!("{lease} runs and is {phase:?}")
        });
    }
    for pair in instances.windows(2) {
        wrong.unless(pair[0] != pair[1], Invariant::NoDoubleInstance, || {
            format!("{} has two instances", pair[0])
        });
    }
    for (lease, _) in phases.iter().filter(|(_, phase)| **phase == Phase::Active) {
        wrong.unless(
            instances.contains(lease) || over.contains(lease),
            Invariant::DrainBeforeTermination,
            || format!("{lease} is active and its instance is gone"),
        );
    }
}

/// Whoever has a receipt has a lease whose instance is in the journal.
fn receipts_are_written(
    phases: &BTreeMap<String, Phase>,
    requester: &Requester,
    wrong: &mut Wrong,
) {
    let Ok(output) = requester.souk(&["leases", "--json"]).output() else {
        return;
    };
    let leases: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    for lease in leases.as_array().into_iter().flatten() {
        let Some(id) = lease["lease"].as_str() else {
            continue;
        };
        let phase = phases.get(id);
        let is_written = matches!(
            phase,
            Some(Phase::Active | Phase::Draining { .. } | Phase::Closed { .. })
        );
        wrong.unless(is_written, Invariant::JournalBeforeReceipt, || {
            format!("the receipt of {id} is there, and it is {phase:?}")
        });
    }
}
