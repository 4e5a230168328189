//! The crash sweep, short: every failpoint that processes reach kills a provider once, and planted bugs are found.

use souk_node::failpoint::{Failpoint, PlantedBug};
use souk_tests::{
    needs,
    simulation::Invariant,
    sweep::{Sweep, sweep},
};

/// Providers side by side: a run mostly waits.
const WORKERS: u64 = 6;

#[test]
fn a_provider_that_is_killed_at_any_step_loses_and_doubles_nothing() {
    needs!(Leases);
    let points: Vec<_> = Failpoint::ALL
        .iter()
        .copied()
        .filter(|point| point.is_reached_by_processes())
        .collect();
    let swept = sweep(&Sweep {
        runs: points.len() as u64,
        seed: 0,
        workers: WORKERS,
        bug: None,
        points: Vec::new(),
        stops: false,
        logs: None,
    });
    assert!(swept.failures.is_empty(), "{:#?}", swept.failures);
    assert_eq!(swept.unreached(), Vec::<&str>::new());
    let survived: Vec<_> = points
        .iter()
        .filter(|point| !swept.died_at.contains_key(point))
        .collect();
    assert!(survived.is_empty(), "nobody died at {survived:?}");
}

/// Kills providers that have a bug where it shows.
fn is_found(bug: PlantedBug, at: Failpoint, invariant: Invariant) {
    needs!(Leases);
    let swept = sweep(&Sweep {
        runs: 4,
        seed: 0,
        workers: 1,
        bug: Some(bug),
        points: vec![at],
        stops: true,
        logs: None,
    });
    let mut broken = swept
        .failures
        .iter()
        .map(|(_, violation)| violation.invariant);
    assert!(broken.any(|found| found == invariant), "{swept:?}");
}

#[test]
fn a_double_append_is_found_over_processes() {
    is_found(
        PlantedBug::DoubleAppend,
        Failpoint::Closed,
        Invariant::ExactlyOneEntry,
    );
}

#[test]
fn lost_draining_is_found_over_processes() {
    let at = Failpoint::AfterTerminate;
    is_found(
        PlantedBug::LostDraining,
        at,
        Invariant::DrainBeforeTermination,
    );
}
