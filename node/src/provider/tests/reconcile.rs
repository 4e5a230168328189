//! What a provider does about what its backend really has: adopts, removes, and never twice.

use souk_backend::Backend as _;
use souk_market::{
    log::OutcomeClass, reconcile::OrphanReason, refusal::Reason, reply::Body, request::Action,
    statement::Outcome,
};

use super::{
    super::{Findings, OrphanView},
    audited,
    harness::{Tenant, World, address_of},
    refusal, statement,
};

fn findings(world: &World) -> Findings {
    let all = world.provider().findings();
    all.into_values().next().unwrap_or_default()
}

fn orphans(world: &World) -> Vec<OrphanView> {
    findings(world).orphans
}

#[tokio::test]
async fn an_instance_that_nobody_owns_is_shown_and_after_its_grace_removed() {
    let mut world = World::new();
    world.settings.orphan_grace = std::time::Duration::from_secs(3600);
    let planted = world.machines.plant(9).await;
    world.start().await;
    let (_, receipt) = world.rent(1).await;
    world
        .until("it is found", || !orphans(&world).is_empty())
        .await;
    let found = orphans(&world);
    assert_eq!(found.len(), 1, "the lease has an owner");
    assert_eq!(
        (found[0].lease, found[0].reason, found[0].state),
        (planted, OrphanReason::UnknownLease, "waiting")
    );
    world.machines.listed(3).await;
    assert!(
        world.machines.running().contains(&planted),
        "it has its grace"
    );

    world.stop().await;
    world.settings.orphan_grace = std::time::Duration::from_millis(100);
    world.start().await;
    world.until_only(&[receipt.lease]).await;
    world
        .until("it is forgotten", || orphans(&world).is_empty())
        .await;
    let totals = findings(&world).totals;
    assert_eq!((totals.found, totals.removed), (1, 1));
}

#[tokio::test]
async fn an_orphan_that_the_operator_wants_gone_does_not_have_its_grace_and_a_lease_is_none() {
    let mut world = World::new();
    world.settings.orphan_grace = std::time::Duration::from_secs(3600);
    let planted = world.machines.plant(9).await;
    world.start().await;
    let (_, receipt) = world.rent(1).await;
    world
        .until("it is found", || !orphans(&world).is_empty())
        .await;
    let backends = world.provider().backends();
    let backend = backends.keys().next().expect("it has one");
    assert!(!world.provider().reap(backend, receipt.lease));
    assert!(world.provider().reap(backend, planted));
    world.until_only(&[receipt.lease]).await;
    world
        .until("it is forgotten", || orphans(&world).is_empty())
        .await;
    assert!(!world.provider().reap(backend, planted), "it is gone");
}

#[tokio::test]
async fn a_backend_that_cannot_be_listed_blocks_nothing_and_is_asked_again() {
    let mut world = World::new();
    world.machines.fault(|faults| faults.lists_fail = 3);
    let planted = world.machines.plant(9).await;
    world.start().await;
    world
        .until("it failed", || findings(&world).totals.failed_lists > 0)
        .await;
    assert!(
        findings(&world)
            .error
            .is_some_and(|why| why.contains("cannot list"))
    );
    let (tenant, receipt) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.until_nothing_runs().await;
    let now = findings(&world);
    assert_eq!(
        (now.failures, now.error),
        (0, None),
        "it can be listed again"
    );
    assert!(planted != receipt.lease && now.totals.failed_lists == 3);
}

#[tokio::test]
async fn a_list_that_never_comes_blocks_nothing() {
    let mut world = World::new();
    world.machines.fault(|faults| faults.lists_hang = true);
    world.start().await;
    world.machines.listed(1).await;
    let (tenant, _) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.restart().await;
    assert_eq!(audited(&world).leases[&OutcomeClass::Completed], 1);
}

#[tokio::test]
async fn a_creation_that_is_reported_as_failed_leaves_nothing_and_is_not_repeated() {
    let mut world = World::new();
    world.machines.fault(|faults| faults.made_but_denied = true);
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::ProvisionFailed);
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(account.outcome, Outcome::ProvisionFailed);
    assert_eq!(
        (world.machines.made(), world.machines.running().len()),
        (1, 0)
    );
}

#[tokio::test]
async fn an_instance_that_shows_only_after_its_lease_is_closed_is_removed_as_an_orphan() {
    let mut world = World::new();
    world.machines.fault(|faults| {
        faults.made_but_denied = true;
        faults.terminate_sees_nothing = true;
    });
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::ProvisionFailed);
    statement(&mut world, &tenant).await;
    assert_eq!(world.machines.running().len(), 1, "nobody owns it now");
    world
        .until("it is found", || !orphans(&world).is_empty())
        .await;
    assert_eq!(orphans(&world)[0].reason, OrphanReason::ClosedLease);
    world
        .machines
        .fault(|faults| faults.terminate_sees_nothing = false);
    world.until_nothing_runs().await;
    world.restart().await;
    assert_eq!(audited(&world).size, 1, "one entry, with all that");
}

#[tokio::test]
async fn lists_that_are_older_than_the_truth_end_no_lease_and_start_none() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    let id = souk_backend::LeaseId(receipt.lease.0);
    let instance = world
        .machines
        .inspect(id)
        .await
        .expect("told")
        .expect("runs");
    world.machines.fault(|faults| faults.lists_miss = vec![id]);
    world.machines.listed(4).await;
    world.restart().await;
    world.machines.listed(4).await;
    assert_eq!(world.machines.running(), [receipt.lease]);
    assert!(address_of(&world, receipt.lease).is_some());
    tenant.tell(&world, 1, Action::Poll).await;
    assert!(matches!(world.reply(&tenant).await.body, Body::Receipt(_)));

    // It goes on being listed after it is gone.
    world
        .machines
        .fault(|faults| faults.lists_keep = vec![instance]);
    tenant.tell(&world, 2, Action::End).await;
    statement(&mut world, &tenant).await;
    world
        .until("it is taken for an orphan", || {
            findings(&world).totals.removed > 0
        })
        .await;
    world.machines.fault(|faults| faults.lists_keep.clear());
    world
        .until("it is forgotten", || orphans(&world).is_empty())
        .await;
    world.restart().await;
    assert_eq!((world.machines.made(), audited(&world).size), (1, 1));
}

#[tokio::test]
async fn an_orphan_that_cannot_be_removed_is_tried_again_and_told() {
    let mut world = World::new();
    world.machines.fault(|faults| faults.terminate_fails = 2);
    world.machines.plant(9).await;
    world.start().await;
    world
        .until("it failed", || {
            orphans(&world).iter().any(|orphan| orphan.failed > 0)
        })
        .await;
    assert_eq!(orphans(&world)[0].state, "failing");
    world.until_nothing_runs().await;
}
