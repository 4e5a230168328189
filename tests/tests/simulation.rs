//! The simulation: a few hundred seeds keep every promise and reach everything, each planted bug is found, and a seed is the
//! same run each time.

use souk_node::failpoint::PlantedBug;
use souk_tests::simulation::{Batch, Invariant, Script, replay, run};

/// Seeds in which a planted bug must be found.
const SEEDS_FOR_A_BUG: u64 = 300;

#[test]
fn every_promise_is_kept_and_everything_is_reached() {
    let batch = Batch::run(0, 300, None, false);
    assert!(batch.failures.is_empty(), "{:#?}", batch.failures);
    assert_eq!(batch.unreached(), Vec::<&str>::new());
}

/// Seeds in which a life that was to go on to the end did not come up.
#[test]
fn a_life_that_does_not_come_up_leaves_time_to_settle() {
    for seed in [699, 1161, 1399, 4923] {
        let broken = run(seed, None, false).violations;
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    }
}

fn is_found(bug: PlantedBug, invariant: Invariant) {
    let batch = Batch::run(0, SEEDS_FOR_A_BUG, Some(bug), true);
    let broken = batch.failures.values().flatten();
    assert!(
        broken
            .clone()
            .any(|violation| violation.invariant == invariant),
        "{bug:?} in {} seeds: {:?}",
        batch.seeds,
        broken.collect::<Vec<_>>()
    );
}

#[test]
fn acting_before_the_intent_is_found() {
    is_found(PlantedBug::ActBeforeIntent, Invariant::IntentBeforeInstance);
}

#[test]
fn a_double_append_is_found() {
    is_found(PlantedBug::DoubleAppend, Invariant::ExactlyOneEntry);
}

#[test]
fn lost_draining_is_found() {
    is_found(PlantedBug::LostDraining, Invariant::DrainBeforeTermination);
}

#[test]
fn a_receipt_before_the_journal_is_found() {
    is_found(
        PlantedBug::ReceiptBeforeJournal,
        Invariant::JournalBeforeReceipt,
    );
}

#[test]
fn forgotten_reaping_is_found() {
    is_found(PlantedBug::ForgetsReaping, Invariant::NoOrphan);
}

#[test]
fn a_seed_is_the_same_run_each_time_and_replays_from_its_file() {
    let first = run(7, None, true);
    assert!(first.script.steps.len() > 100);
    assert_eq!(run(7, None, true).script, first.script);
    let mut file = Vec::new();
    first
        .script
        .write(&mut file)
        .expect("a Vec takes every write");
    let script = Script::read(&*file).expect("just written");
    assert_eq!(script, first.script);
    let again = replay(&script);
    assert_eq!(again.divergence, None);
    assert_eq!(again.violations, first.violations);
}

#[test]
fn a_replay_stops_at_the_step_that_differs() {
    let mut script = run(7, None, true).script;
    script.steps[50].at_ms += 1;
    let divergence = replay(&script).divergence.expect("it differs");
    assert_eq!(divergence.step, 51);
}
