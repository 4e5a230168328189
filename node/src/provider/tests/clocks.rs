//! Leases of a provider whose clock is set.

use std::time::Duration;

use souk_market::{
    reply::{Body, LeaseState},
    request::Action,
    statement::Outcome,
    units::Money,
};

use super::{
    harness::{PATIENCE, World},
    statement,
};

const HOUR_S: i64 = 3_600;

/// Between two looks whether a lease is forgotten: twice as long as the provider takes.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_clock_that_is_set_neither_ends_nor_prolongs_nor_bills_a_lease() {
    for by in [-30 * 24 * HOUR_S, -HOUR_S, HOUR_S, 30 * 24 * HOUR_S] {
        for restarts in [false, true] {
            let mut world = World::started().await;
            let (tenant, receipt) = world.rent(1).await;
            world.advance(300);
            if restarts {
                world.stop().await;
            }
            world.set_clock(by);
            if restarts {
                world.start().await;
            }
            let shown = || {
                world
                    .provider()
                    .leases()
                    .first()
                    .map(|lease| lease.valid_to)
            };
            let moved = receipt.valid_to.0.checked_add_signed(by);
            world
                .until("the deadline moves", || shown().map(|at| at.0) == moved)
                .await;
            tenant.tell(&world, 1, Action::Poll).await;
            match world.reply(&tenant).await.body {
                Body::Receipt(again) => assert_eq!(Some(again.valid_to.0), moved),
                other => panic!("no receipt: {other:?}"),
            }
            world.advance(299);
            assert_eq!(world.provider().leases()[0].state, LeaseState::Active);
            world.advance(1);
            let (account, _) = statement(&mut world, &tenant).await;
            assert_eq!(account.outcome, Outcome::Expired);
            assert_eq!(account.to.since_s(account.from), 600, "set by {by}");
            // Ten minutes of 5 an hour, and nothing for what was jumped over.
            assert_eq!(account.charge, Money(1));
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_at_a_start_makes_nobody_forget() {
    let mut world = World::new();
    world.settings.doubt = Duration::from_secs(3_600);
    world.start().await;
    let (tenant, _) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.stop().await;
    // The statement is kept for 30 days.
    world.set_clock(365 * 24 * HOUR_S);
    world.start().await;
    // What has its time comes before what strangers send, so the provider has looked what it may forget.
    tenant.tell(&world, 2, Action::Poll).await;
    assert!(matches!(
        world.reply(&tenant).await.body,
        Body::Statement(_)
    ));

    world.advance(3_601);
    let strays = || {
        let counters = world.provider().counters();
        counters.strays.load(std::sync::atomic::Ordering::Relaxed)
    };
    let mut counter = 3;
    let forgotten = async {
        while strays() == 0 {
            tenant.tell(&world, counter, Action::Poll).await;
            counter += 1;
            // What is being asked about is not forgotten, so it is left alone between two looks.
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, forgotten).await;
    in_time.expect("once nothing is in doubt any more, it is forgotten");
}
