//! The log of a provider whose disk damaged some of it.

use std::{fs, sync::Arc, time::Duration};

use souk_market::{
    log::OutcomeClass, reply::LeaseState, request::Action, statement::Outcome, units::Digest,
};
use tokio::time::{self, timeout};

use super::{
    audited,
    harness::{Machines, PATIENCE, World},
    state, statement,
};
use crate::store::{damage_entry, damage_lease};

#[tokio::test]
async fn a_damaged_bundle_is_made_again_while_the_provider_goes_on() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.stop().await;
    let bundle = world.log_directory().join("tile/entries/000.p/1");
    let whole = fs::read(&bundle).expect("published");
    let mut flipped = whole.clone();
    flipped[7] ^= 1;
    fs::write(&bundle, flipped).expect("written");

    world.start().await;
    world
        .until("the bundle is made again", || {
            fs::read(&bundle).is_ok_and(|found| found == whole)
        })
        .await;
    let (tenant, _) = world.rent(2).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
}

#[tokio::test]
async fn a_damaged_row_of_the_log_takes_no_statement_from_its_holder() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    let (_, told) = statement(&mut world, &tenant).await;
    world.stop().await;
    damage_entry(world.directory.path(), told.index);

    for [poll, agree] in [[2, 3], [4, 5]] {
        // Also after the row has its entry back from the bundle.
        world.start().await;
        tenant.tell(&world, poll, Action::Poll).await;
        let (_, again) = statement(&mut world, &tenant).await;
        assert_eq!(
            (again.statement, again.salt),
            (told.statement.clone(), told.salt.clone())
        );
        assert_eq!((again.entry, again.index), (told.entry.clone(), told.index));
        let statement_digest = Digest(*blake3::hash(&told.statement).as_bytes());
        let agreed = Action::Acknowledge {
            statement: statement_digest,
        };
        tenant.tell(&world, agree, agreed).await;
        statement(&mut world, &tenant).await;
        world.stop().await;
    }
}

#[tokio::test]
async fn a_damaged_row_that_no_checkpoint_covers_is_made_again_from_the_record_of_its_lease() {
    let mut world = World::new();
    world.settings.checkpoint_period = Duration::from_secs(3_600);
    world.start().await;
    let (tenant, receipt) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    world
        .until("it is closed", || world.provider().leases().is_empty())
        .await;
    world.stop().await;
    damage_entry(world.directory.path(), 0);

    world.settings.checkpoint_period = Duration::from_millis(20);
    world.start().await;
    tenant.tell(&world, 2, Action::Poll).await;
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(
        (account.lease, account.outcome),
        (receipt.lease, Outcome::EndedByHolder)
    );
}

#[tokio::test]
async fn a_tile_that_goes_bad_while_the_provider_runs_is_made_again_and_statements_go_on() {
    let mut world = World::started().await;
    let (first, _) = world.rent(1).await;
    first.tell(&world, 1, Action::End).await;
    statement(&mut world, &first).await;
    let (second, _) = world.rent(2).await;
    second.tell(&world, 1, Action::End).await;
    statement(&mut world, &second).await;

    // A proof meets it: that of the first entry is the hash of the second.
    let tile = world.log_directory().join("tile/0/000.p/2");
    let whole = fs::read(&tile).expect("published");
    let mut flipped = whole.clone();
    flipped[40] ^= 1;
    fs::write(&tile, &flipped).expect("written");
    first.tell(&world, 2, Action::Poll).await;
    assert_eq!(state(&mut world, &first).await, LeaseState::Closed);
    world
        .until("the tile is made again", || {
            fs::read(&tile).is_ok_and(|found| found == whole)
        })
        .await;
    first.tell(&world, 3, Action::Poll).await;
    statement(&mut world, &first).await;

    // The next checkpoint meets it: damaged, and gone.
    fs::write(&tile, &flipped).expect("written");
    let (third, _) = world.rent(3).await;
    third.tell(&world, 1, Action::End).await;
    statement(&mut world, &third).await;
    fs::remove_file(world.log_directory().join("tile/0/000.p/3")).expect("removed");
    let (fourth, _) = world.rent(4).await;
    fourth.tell(&world, 1, Action::End).await;
    statement(&mut world, &fourth).await;
    assert_eq!(audited(&world).size, 4);
}

/// Whether one lost lease has its entry.
fn is_settled(world: &World) -> bool {
    audited(world).leases.get(&OutcomeClass::Lost) == Some(&1)
}

#[tokio::test]
async fn a_backend_that_never_answers_about_a_lost_lease_is_asked_again() {
    let mut world = World::started().await;
    let (_, lost) = world.rent(1).await;
    world.stop().await;
    damage_lease(world.directory.path(), lost.lease);
    let id = souk_backend::LeaseId(lost.lease.0);
    world
        .machines
        .fault(|faults| faults.terminate_hangs = Some(id));
    let mut asked = world.machines.terminations.subscribe();
    world.start().await;
    let first = timeout(PATIENCE, asked.changed()).await;
    first.expect("it is asked").expect("open");
    world.machines.fault(|faults| faults.terminate_hangs = None);
    // Its patience is over.
    time::pause();
    time::advance(Duration::from_secs(61)).await;
    time::resume();
    world.until("it is settled", || is_settled(&world)).await;
}

#[tokio::test]
async fn a_lost_lease_waits_for_no_backend_but_its_own() {
    let mut world = World::started().await;
    let (_, lost) = world.rent(1).await;
    world.stop().await;
    damage_lease(world.directory.path(), lost.lease);
    let away = Machines::default();
    away.fault(|faults| faults.terminate_hangs = Some(souk_backend::LeaseId(lost.lease.0)));
    world.away = Some(Arc::new(away));
    // Nobody else may end it before.
    world.settings.orphan_grace = Duration::from_secs(3_600);
    world.start().await;
    world.until("it is settled", || is_settled(&world)).await;
    assert!(world.machines.running().is_empty());
}
