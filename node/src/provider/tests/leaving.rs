//! A provider that takes no new leases, and what its holders hear of it.

use std::time::Duration;

use souk_market::{
    refusal::Reason,
    reply::{Body, LeaseState, Notice, NoticeKind},
    request::Action,
};
use support::NOW;

use super::{
    super::{Intake, PauseRefused},
    harness::{PATIENCE, Tenant, World},
    refusal, support,
};

fn notice(kind: NoticeKind, ends_by: Option<souk_crypto::UnixTime>) -> Option<Notice> {
    Some(Notice { kind, ends_by })
}

#[tokio::test]
async fn a_draining_provider_refuses_new_leases_and_tells_the_holders_of_open_ones() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    let ends_by = Some(NOW.plus_s(60));
    world.provider().set_intake(Intake::Draining { ends_by });
    let told = world.reply(&tenant).await;
    assert!(matches!(told.body, Body::Status(status) if status.state == LeaseState::Active));
    assert_eq!(told.notice, notice(NoticeKind::Drains, ends_by));

    let late = Tenant::new(&world, 2, |_| ());
    late.ask(&world).await;
    assert_eq!(refusal(&mut world, &late).await, Reason::Draining);
    tenant.tell(&world, 1, Action::Poll).await;
    let polled = world.reply(&tenant).await;
    assert!(matches!(polled.body, Body::Receipt(_)) && polled.notice == told.notice);

    world.provider().set_intake(Intake::Open);
    tenant.tell(&world, 2, Action::Poll).await;
    assert_eq!(world.reply(&tenant).await.notice, None);
    late.ask(&world).await;
    assert!(matches!(world.reply(&late).await.body, Body::Receipt(_)));
    assert!(world.machines.running().contains(&receipt.lease));
}

#[tokio::test]
async fn a_provider_that_starts_while_it_drains_takes_nothing_not_even_at_first() {
    let mut world = World::new();
    world.settings.intake = Intake::Retiring { ends_by: None };
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::Draining);
    assert_eq!(world.machines.made(), 0);
}

#[tokio::test]
async fn a_provider_that_stops_tells_its_holders_and_keeps_their_instances() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    world.provider().suspend(PATIENCE).await;
    let told = world.reply(&tenant).await;
    assert_eq!(told.notice, notice(NoticeKind::Stops, None));
    world.restart().await;
    assert_eq!(world.machines.running(), [receipt.lease]);
    tenant.tell(&world, 1, Action::Poll).await;
    assert_eq!(world.reply(&tenant).await.notice, None, "it is back");
}

#[tokio::test]
async fn a_lease_that_hangs_does_not_hold_up_the_stop() {
    let mut world = World::new();
    let hold = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    world.machines.fault(|faults| faults.hold = Some(hold));
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    world.machines.asked(1).await;
    world.provider().suspend(PATIENCE).await;
    assert_eq!(
        world.reply(&tenant).await.notice,
        notice(NoticeKind::Stops, None)
    );
    // Nothing to tell and nobody to wait for.
    world.provider().suspend(Duration::from_millis(1)).await;
    world.stop().await;
}

#[tokio::test]
async fn a_paused_backend_gets_no_new_leases_also_after_a_restart_and_keeps_those_it_has() {
    let mut world = World::started().await;
    let (_, receipt) = world.rent(1).await;
    let backends = world.provider().backends();
    let backend = backends.keys().next().expect("it has one");
    let other = "elsewhere".parse().expect("a name");
    assert!(matches!(
        world.provider().pause(&other, true).await,
        Err(PauseRefused::NoSuchBackend(name)) if name == other
    ));
    for _ in 0..2 {
        let paused = world.provider().pause(backend, true).await;
        paused.expect("is written");
    }
    let late = Tenant::new(&world, 2, |_| ());
    late.ask(&world).await;
    assert_eq!(refusal(&mut world, &late).await, Reason::NoCapacity);

    world.restart().await;
    assert!(world.provider().is_paused(backend));
    let later = Tenant::new(&world, 3, |_| ());
    later.ask(&world).await;
    assert_eq!(refusal(&mut world, &later).await, Reason::NoCapacity);
    assert_eq!(world.machines.running(), [receipt.lease]);

    let goes_on = world.provider().pause(backend, false).await;
    goes_on.expect("is written");
    world.rent(4).await;
    world.restart().await;
    assert!(!world.provider().is_paused(backend));
}
