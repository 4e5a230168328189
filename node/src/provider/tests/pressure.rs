//! What a flood and a backend that hangs cost, and whom.

use std::sync::{Arc, atomic::Ordering};

use souk_market::{
    capacity::Level,
    envelope::MAX_SURBS,
    refusal::Reason,
    reply::{Body, LeaseState},
    request::Action,
    statement::Outcome,
    units::{Counter, ImageHash},
};
use tokio::{sync::Semaphore, task::yield_now, time::timeout};

use super::{
    super::Intake,
    harness::{PATIENCE, Tenant, World, surbs},
    statement,
};

#[tokio::test]
async fn a_flood_of_grants_is_refused_counted_and_slows_no_running_lease() {
    const FLOOD: u64 = 200;
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    for n in 0..FLOOD {
        // Each is well formed and signed, so that it costs all that a refusal can cost.
        let wrong = Tenant::new(&world, 1_000 + n, |e| {
            e.image = ImageHash([8; 32]);
            // Without SURBs there is nobody to answer, and every reply that is seen is the tenant's.
            e.surbs = super::support::list(Vec::new());
        });
        wrong.ask(&world).await;
        if n % 10 == 9 {
            let counter = n / 10 + 1;
            tenant.tell(&world, counter, Action::Poll).await;
            let reply = world.reply(&tenant).await;
            assert_eq!(
                reply.counter,
                Counter(counter),
                "in the order of its commands"
            );
            assert!(matches!(reply.body, Body::Receipt(_)));
        }
    }
    assert_eq!(world.provider().refusals().sum(), FLOOD);
    let refused = world.provider().refusals();
    let reasons: Vec<_> = refused.iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(reasons, [(Reason::ImageMismatch, FLOOD)]);
    assert_eq!(
        world.provider().leases().len(),
        1,
        "nothing is kept of the others"
    );
    assert_eq!(world.machines.made(), 1);
}

#[tokio::test]
async fn a_refusal_spends_one_surb_however_many_lead_nowhere() {
    let world = World::started().await;
    world.cut_replies();
    let wrong = Tenant::new(&world, 1, |e| {
        e.image = ImageHash([8; 32]);
        e.surbs = surbs(&world, MAX_SURBS);
    });
    wrong.ask(&world).await;
    let unanswered = &world.provider().counters().unanswered;
    let given_up = async {
        while unanswered.load(Ordering::Relaxed) == 0 {
            yield_now().await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("it gives up");
    assert_eq!(world.tried_replies(), 1);
}

#[tokio::test]
async fn a_surb_to_which_there_is_no_link_is_not_spent() {
    let mut world = World::started().await;
    let wrong = Tenant::new(&world, 1, |e| {
        e.image = ImageHash([8; 32]);
        e.surbs = surbs(&world, 1);
    });
    world.unlink_replies(true);
    wrong.ask(&world).await;
    let unanswered = &world.provider().counters().unanswered;
    let given_up = async {
        while unanswered.load(Ordering::Relaxed) == 0 {
            yield_now().await;
        }
    };
    timeout(PATIENCE, given_up).await.expect("it gives up");
    assert_eq!(world.tried_replies(), 0);
    // The same one again: had it been spent, no answer would come.
    world.unlink_replies(false);
    wrong.ask(&world).await;
    let reply = world.reply(&wrong).await;
    assert!(matches!(reply.body, Body::Refusal(_)));
    assert_eq!(world.tried_replies(), 1);
}

#[tokio::test]
async fn a_backend_that_hangs_in_one_lease_holds_up_nothing_else() {
    let mut world = World::new();
    let never = Arc::new(Semaphore::new(0));
    world.machines.fault(|faults| faults.hold = Some(never));
    world.start().await;
    let stuck = Tenant::new(&world, 1, |_| ());
    stuck.ask(&world).await;
    world.machines.asked(1).await;
    world.machines.fault(|faults| faults.hold = None);

    let (tenant, receipt) = world.rent(2).await;
    let planted = world.machines.plant(9).await;
    world
        .until("orphans are removed", || {
            !world.machines.running().contains(&planted)
        })
        .await;
    let levels = world.provider().levels(&world.node.plain_card(1));
    assert_eq!(levels, [[Level::Some, Level::None]], "capacity is told");
    stuck.tell(&world, 1, Action::Poll).await;
    assert!(
        matches!(world.reply(&stuck).await.body, Body::Status(status) if status.state == LeaseState::Provisioning)
    );

    // One that hangs while it is removed does not either.
    world.machines.fault(|faults| {
        faults.terminate_hangs = Some(souk_backend::LeaseId(receipt.lease.0));
    });
    tenant.tell(&world, 1, Action::End).await;
    let (other, _) = world.rent(3).await;
    other.tell(&world, 1, Action::End).await;
    let (account, _) = statement(&mut world, &other).await;
    assert_eq!(account.outcome, Outcome::EndedByHolder);
    world
        .provider()
        .set_intake(Intake::Draining { ends_by: None });
    assert_eq!(
        world.provider().leases().len(),
        2,
        "both that hang are still open"
    );
    let dropped = &world.provider().counters().dropped;
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    world.stop().await;
}
