//! The crash sweep finds planted bugs over real processes.

use souk_node::failpoint::{Failpoint, PlantedBug};
use souk_tests::{
    simulation::Invariant,
    sweep::{Sweep, sweep},
};

/// Kills providers that have a bug where it shows.
fn is_found(bug: PlantedBug, at: Failpoint, invariant: Invariant) {
    let swept = sweep(&Sweep {
        runs: 4,
        seed: 0,
        workers: 1,
        bug: Some(bug),
        points: vec![at],
        stops: true,
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
