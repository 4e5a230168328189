//! The log of a provider whose disk damaged some of it.

use souk_market::request::Action;

use super::{harness::World, statement};

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
