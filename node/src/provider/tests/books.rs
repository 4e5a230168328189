//! The log of a provider whose disk damaged some of it.

use std::time::Duration;

use souk_market::{request::Action, statement::Outcome, units::Digest};

use super::{harness::World, statement};
use crate::store::damage_entry;

#[tokio::test]
async fn a_damaged_bundle_is_made_again_while_the_provider_goes_on() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.stop().await;
    let bundle = world.log_directory().join("tile/entries/000.p/1");
    let whole = std::fs::read(&bundle).expect("published");
    let mut flipped = whole.clone();
    flipped[7] ^= 1;
    std::fs::write(&bundle, flipped).expect("written");

    world.start().await;
    world
        .until("the bundle is made again", || {
            std::fs::read(&bundle).is_ok_and(|found| found == whole)
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
