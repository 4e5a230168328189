//! The provider from sealed request to proven statement, and across what goes wrong on the way.

mod books;
mod clocks;
mod evidence;
mod harness;
mod leaving;
mod pressure;
mod reconcile;
mod relays;
mod seams;

use std::sync::{Arc, atomic::Ordering};

use crate::market_support as support;
use harness::{Faults, PATIENCE, Tenant, World, address_of};
use souk_market::{
    envelope::accept_by,
    log::{
        BundleSource, Checkpoint, Entry, Hash, HourBucket, InclusionProof, NoteVerifier, Opening,
        OutcomeClass, TilePath, audit, leaf_hash, origin, verify_inclusion,
    },
    refusal::Reason,
    reply::{Body, Endpoint, FinalStatement, LeaseState},
    request::{Action, HolderRequest},
    statement::{Outcome, Statement},
    units::{Counter, Digest, DurationS, ImageHash, LeaseId, Meter, Money},
};
use support::{NOW, network, small};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};

use super::CarryError;
use crate::store::Store;

struct Files(std::path::PathBuf);

impl BundleSource for Files {
    type Error = std::io::Error;
    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, std::io::Error> {
        std::fs::read(self.0.join(path.to_string()))
    }
}

/// Checks a final statement as its holder does, against the log as everybody sees it.
fn verified(world: &World, last: &FinalStatement) -> Statement {
    let origin = origin(network(), world.node.node.public()).expect("a name");
    let verifier = NoteVerifier::new(origin.clone(), world.node.log.public());
    let checkpoint = Checkpoint::open(&last.checkpoint, &origin, &verifier).expect("signed");
    let statement = Statement::from_bytes(&last.statement).expect("a statement");
    let Entry::Lease(entry) = Entry::decode(&last.entry).expect("an entry") else {
        panic!("not the entry of a lease");
    };
    let opening = Opening {
        salt: last.salt.clone(),
        statement: last.statement.to_vec(),
    };
    assert_eq!(entry.commitment, opening.commitment(&network()));
    assert_eq!(entry.outcome, OutcomeClass::of(statement.outcome));
    assert_eq!(entry.hour, HourBucket::of(statement.to));
    let (path, rest) = last.path.as_chunks::<32>();
    assert!(rest.is_empty());
    let proof = InclusionProof {
        index: last.index,
        size: checkpoint.size(),
        path: path.iter().map(|hash| Hash(*hash)).collect(),
    };
    assert_eq!(
        verify_inclusion(&proof, &leaf_hash(&last.entry), checkpoint.root()),
        Ok(())
    );
    statement
}

fn audited(world: &World) -> souk_market::log::Audited {
    let origin = origin(network(), world.node.node.public()).expect("a name");
    let verifier = NoteVerifier::new(origin.clone(), world.node.log.public());
    let note = std::fs::read(world.log_directory().join("checkpoint")).expect("published");
    let checkpoint = Checkpoint::open(&note, &origin, &verifier).expect("signed");
    audit(&Files(world.log_directory()), &checkpoint, None).expect("an honest log")
}

async fn statement(world: &mut World, tenant: &Tenant) -> (Statement, FinalStatement) {
    match world.reply(tenant).await.body {
        Body::Statement(last) => (verified(world, &last), last),
        other => panic!("no statement: {other:?}"),
    }
}

async fn refusal(world: &mut World, tenant: &Tenant) -> Reason {
    match world.reply(tenant).await.body {
        Body::Refusal(refusal) => refusal.reason,
        other => panic!("no refusal: {other:?}"),
    }
}

async fn state(world: &mut World, tenant: &Tenant) -> LeaseState {
    match world.reply(tenant).await.body {
        Body::Status(status) => status.state,
        other => panic!("no status: {other:?}"),
    }
}

#[tokio::test]
async fn keys_that_turn_in_the_middle_of_a_lease_open_what_was_sealed_to_those_before() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    let seal = world.turn_keys();
    tenant.tell(&world, 1, Action::End).await;
    // It was sealed to the key before, and the answer is signed with the new one.
    statement(&mut world, &tenant).await;
    world.node.seal = seal;
    world.rent(2).await;
}

#[tokio::test]
async fn a_lease_goes_from_envelope_to_proven_statement() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    assert!(matches!(receipt.endpoints[0], Endpoint::Relay { .. }));
    assert_eq!(receipt.user.as_str(), "souk");
    assert_eq!(world.machines.running(), [receipt.lease]);
    assert_eq!(world.provider().leases()[0].state, LeaseState::Active);

    world.advance(100);
    tenant.tell(&world, 1, Action::End).await;
    let (account, last) = statement(&mut world, &tenant).await;
    assert_eq!(account.outcome, Outcome::EndedByHolder);
    assert_eq!(account.lease, receipt.lease);
    assert_eq!(account.cpu_core_ms, Meter::Known(1_500));
    assert_eq!(account.to.since_s(account.from), 100);
    // Two minutes begun, of 5 an hour.
    assert_eq!(account.charge, Money(1));
    assert!(world.machines.running().is_empty() && world.provider().leases().is_empty());
    assert_eq!(audited(&world).leases[&OutcomeClass::Completed], 1);

    let agreed = |bytes: &[u8]| Action::Acknowledge {
        statement: Digest(*blake3::hash(bytes).as_bytes()),
    };
    tenant.tell(&world, 2, agreed(b"another")).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::WrongStatement);
    tenant.tell(&world, 3, agreed(&last.statement)).await;
    assert_eq!(statement(&mut world, &tenant).await.0, account);
    world.stop().await;
    world.assert_silent();

    let (store, _) = Store::open(world.directory.path()).await.expect("opens");
    let kept = store.acknowledgement(account.lease).expect("read");
    let kept = souk_crypto::sign::open::<HolderRequest>(&kept.expect("kept"), &network());
    let kept = kept.expect("signed by the holder");
    assert_eq!(kept.holder, tenant.keys.holder.public());
    assert_eq!(kept.action, agreed(&last.statement));
}

#[tokio::test]
async fn the_same_envelope_is_the_same_lease_and_no_surb_is_used_twice() {
    let mut world = World::started().await;
    let (tenant, first) = world.rent(1).await;
    for _ in 0..3 {
        tenant.ask(&world).await;
        match world.reply(&tenant).await.body {
            Body::Receipt(again) => assert_eq!(again, first),
            other => panic!("no receipt: {other:?}"),
        }
    }
    assert_eq!(world.machines.made(), 1);
    // Four SURBs came with each copy, and they are the same four.
    tenant.ask(&world).await;
    tenant.tell(&world, 1, Action::Poll).await;
    assert_eq!(world.reply(&tenant).await.counter, Counter(1));
    let mut used = world.used.clone();
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), world.used.len());
}

#[tokio::test]
async fn a_refused_request_is_told_why_and_counted_in_the_log() {
    let mut world = World::started().await;
    let wrong = Tenant::new(&world, 1, |e| e.image = ImageHash([8; 32]));
    wrong.ask(&world).await;
    assert_eq!(refusal(&mut world, &wrong).await, Reason::ImageMismatch);
    let long = Tenant::new(&world, 2, |e| e.grant.duration = DurationS(7_201));
    long.ask(&world).await;
    assert_eq!(refusal(&mut world, &long).await, Reason::AnonymousDuration);
    assert_eq!(world.provider().refusals().sum(), 2);
    assert_eq!(world.machines.made(), 0);
    world.restart().await;
    let audited = audited(&world);
    assert_eq!(audited.leases.len(), 0, "refusals are no leases");
    assert_eq!(audited.refusals.values().sum::<u64>(), 2);
    assert_eq!(audited.size, 1, "one entry for the period");
}

#[tokio::test]
async fn a_lease_is_refused_when_there_is_no_room_and_served_when_there_is() {
    let mut world = World::started().await;
    let mut tenants = Vec::new();
    for seed in 1..=4 {
        tenants.push(world.rent(seed).await.0);
    }
    let late = Tenant::new(&world, 5, |_| ());
    late.ask(&world).await;
    // Four leases of a core and a GiB fill the machine of four cores; the anonymous limit is four as well.
    assert_eq!(
        refusal(&mut world, &late).await,
        Reason::AnonymousConcurrent
    );
    tenants[0].tell(&world, 1, Action::End).await;
    statement(&mut world, &tenants[0]).await;
    late.ask(&world).await;
    assert!(matches!(world.reply(&late).await.body, Body::Receipt(_)));
    assert_eq!(world.machines.running().len(), 4);
}

#[tokio::test]
async fn a_running_lease_survives_the_provider_and_ends_at_its_time() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    world.restart().await;
    assert_eq!(world.machines.running(), [receipt.lease]);
    tenant.tell(&world, 1, Action::Poll).await;
    match world.reply(&tenant).await.body {
        Body::Receipt(again) => assert_eq!(again, receipt),
        other => panic!("no receipt: {other:?}"),
    }
    world.stop().await;
    world.advance(700);
    world.start().await;
    world.until_nothing_runs().await;
    tenant.tell(&world, 2, Action::Poll).await;
    loop {
        match world.reply(&tenant).await.body {
            Body::Status(status) => {
                assert_eq!(status.state, LeaseState::Draining);
                tenant.tell(&world, 3, Action::Poll).await;
            }
            Body::Statement(last) => {
                assert_eq!(verified(&world, &last).outcome, Outcome::Expired);
                break;
            }
            other => panic!("neither status nor statement: {other:?}"),
        }
    }
    assert_eq!(world.machines.made(), 1);
    assert_eq!(audited(&world).size, 1);
}

#[tokio::test]
async fn a_provider_that_dies_while_it_provisions_makes_one_instance() {
    let mut world = World::new();
    let hold = Arc::new(Semaphore::new(0));
    world
        .machines
        .fault(|faults| faults.hold = Some(Arc::clone(&hold)));
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    world.machines.asked(1).await;
    tenant.tell(&world, 1, Action::Poll).await;
    assert_eq!(state(&mut world, &tenant).await, LeaseState::Provisioning);
    world.restart().await;
    world.machines.asked(2).await;
    hold.add_permits(8);
    // The SURBs of the envelope died with the first life; the receipt is fetched.
    let mut counter = 2;
    loop {
        tenant.tell(&world, counter, Action::Poll).await;
        counter += 1;
        match world.reply(&tenant).await.body {
            Body::Status(_) => tokio::task::yield_now().await,
            Body::Receipt(receipt) => break assert_eq!(world.machines.running(), [receipt.lease]),
            other => panic!("neither status nor receipt: {other:?}"),
        }
    }
    assert_eq!(world.machines.made(), 1);
}

#[tokio::test]
async fn an_instance_that_comes_up_late_or_mute_is_removed_and_owes_nothing() {
    for fault in [
        Faults {
            mute: true,
            ..Faults::default()
        },
        Faults {
            full: true,
            ..Faults::default()
        },
    ] {
        let mut world = World::new();
        let expected = if fault.full {
            Reason::NoCapacity
        } else {
            Reason::ProvisionFailed
        };
        world.machines.fault(|faults| *faults = fault);
        world.start().await;
        let tenant = Tenant::new(&world, 1, |_| ());
        tenant.ask(&world).await;
        assert_eq!(refusal(&mut world, &tenant).await, expected);
        let (account, _) = statement(&mut world, &tenant).await;
        assert_eq!(
            (account.outcome, account.charge),
            (Outcome::ProvisionFailed, Money(0))
        );
        assert!(world.machines.running().is_empty());
    }
}

#[tokio::test]
async fn an_end_during_provisioning_waits_for_it_and_leaves_nothing() {
    let mut world = World::new();
    let hold = Arc::new(Semaphore::new(0));
    world
        .machines
        .fault(|faults| faults.hold = Some(Arc::clone(&hold)));
    world.start().await;
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    world.machines.asked(1).await;
    tenant.tell(&world, 1, Action::End).await;
    tenant.tell(&world, 2, Action::Poll).await;
    assert_eq!(state(&mut world, &tenant).await, LeaseState::Draining);
    hold.add_permits(1);
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(
        (account.outcome, account.charge),
        (Outcome::EndedByHolder, Money(0))
    );
    assert!(world.machines.running().is_empty());
    assert_eq!(world.machines.made(), 1);
}

#[tokio::test]
async fn an_instance_that_ends_itself_closes_its_lease() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    world.machines.exit(receipt.lease);
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(account.outcome, Outcome::InstanceExited);
    assert!(world.machines.running().is_empty());
}

#[tokio::test]
async fn a_meter_that_was_lost_is_told_as_such() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    let mut samples = world.machines.samples.subscribe();
    timeout(PATIENCE, samples.wait_for(|n| *n >= 2))
        .await
        .expect("sampled")
        .expect("open");
    world.machines.fault(|faults| faults.meterless = true);
    tenant.tell(&world, 1, Action::End).await;
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(account.cpu_core_ms, Meter::AtLeast(1_500));
}

#[tokio::test]
async fn a_termination_that_fails_is_tried_until_it_is_confirmed() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    world.machines.fault(|faults| faults.terminate_fails = 3);
    assert!(world.provider().withdraw(receipt.lease).await);
    let trying = async {
        while !world.machines.running().is_empty() {
            world.advance(60);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, trying).await.expect("removed in the end");
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(account.outcome, Outcome::EndedByProvider);
    assert!(
        !world.provider().withdraw(receipt.lease).await,
        "it is closed"
    );
}

#[tokio::test]
async fn an_old_counter_ends_nothing() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    tenant.tell(&world, 7, Action::Poll).await;
    assert!(matches!(world.reply(&tenant).await.body, Body::Receipt(_)));
    world.restart().await;
    tenant.tell(&world, 7, Action::End).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::StaleCounter);
    assert_eq!(world.machines.running(), [receipt.lease]);
    let top_up = Action::TopUp {
        duration: DurationS(60),
        max_total: Money(1),
    };
    tenant.tell(&world, 8, top_up).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoTopUp);
}

#[tokio::test]
async fn a_lease_whose_row_was_damaged_is_ended_and_logged_once() {
    let mut world = World::started().await;
    let (_, damaged) = world.rent(1).await;
    let (tenant, healthy) = world.rent(2).await;
    world.stop().await;
    crate::store::damage_lease(world.directory.path(), damaged.lease);
    world.start().await;
    tenant.tell(&world, 1, Action::Poll).await;
    assert!(
        matches!(world.reply(&tenant).await.body, Body::Receipt(_)),
        "the other goes on"
    );
    world.until_only(&[healthy.lease]).await;
    world.restart().await;
    world.restart().await;
    assert_eq!(audited(&world).leases[&OutcomeClass::Lost], 1);
}

#[tokio::test]
async fn a_lease_that_hangs_holds_up_no_other() {
    let mut world = World::new();
    let hold = Arc::new(Semaphore::new(0));
    world.machines.fault(|faults| faults.hold = Some(hold));
    world.start().await;
    let stuck = Tenant::new(&world, 1, |_| ());
    stuck.ask(&world).await;
    world.machines.asked(1).await;
    world.machines.fault(|faults| faults.hold = None);
    let (_, receipt) = world.rent(2).await;
    assert_eq!(world.machines.running(), [receipt.lease]);
}

#[tokio::test]
async fn noise_and_strangers_are_counted_and_answered_by_nothing() {
    let mut world = World::started().await;
    for n in 0..200u8 {
        world.send(vec![n; usize::from(n) * 7]).await;
    }
    let stranger = Tenant::new(&world, 3, |_| ());
    stranger.tell(&world, 1, Action::End).await;
    let (tenant, _) = world.rent(1).await;
    let counters = world.provider().counters();
    assert_eq!(counters.unreadable.load(Ordering::Relaxed), 200);
    assert_eq!(counters.strays.load(Ordering::Relaxed), 1);
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.stop().await;
    world.assert_silent();
}

#[tokio::test]
async fn a_relayed_stream_reaches_the_instance_of_its_token_alone() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    let Endpoint::Relay { ref token, .. } = receipt.endpoints[0] else {
        panic!("not over a relay");
    };
    assert!(address_of(&world, receipt.lease).is_some());
    let (mut near, far) = tokio::io::duplex(256);
    let (provider, presented) = (world.provider().clone(), token.clone());
    let carrying = tokio::spawn(async move { provider.carry(&presented, far).await });
    let mut greeting = [0; 14];
    near.read_exact(&mut greeting).await.expect("a greeting");
    near.write_all(b"hello").await.expect("written");
    let mut echo = [0; 5];
    near.read_exact(&mut echo).await.expect("an echo");
    assert_eq!((&greeting[..8], &echo), (&b"SSH-2.0-"[..], b"hello"));
    drop(near);
    carrying.await.expect("no panic").expect("it ended well");

    // A relay that holds its end open holds no place beyond the lease.
    let (mut held, far) = tokio::io::duplex(256);
    let (provider, presented) = (world.provider().clone(), token.clone());
    let carrying = tokio::spawn(async move { provider.carry(&presented, far).await });
    held.read_exact(&mut greeting).await.expect("a greeting");
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    carrying.await.expect("no panic").expect("it ended well");
    let (_near, far) = tokio::io::duplex(256);
    assert!(matches!(
        world.provider().carry(token, far).await,
        Err(CarryError::NoLease)
    ));
}

#[tokio::test]
async fn sessions_of_one_lease_leave_room_for_those_of_another() {
    let mut world = World::started().await;
    let tokens = [world.rent(1).await.1, world.rent(2).await.1].map(|receipt| {
        let Endpoint::Relay { ref token, .. } = receipt.endpoints[0] else {
            panic!("not over a relay");
        };
        token.clone()
    });
    let mut held = Vec::new();
    let busy = loop {
        let (mut near, far) = tokio::io::duplex(64);
        let (provider, token) = (world.provider().clone(), tokens[0].clone());
        let carrying = tokio::spawn(async move { provider.carry(&token, far).await });
        let mut greeting = [0; 8];
        if near.read_exact(&mut greeting).await.is_err() {
            break carrying.await.expect("no panic");
        }
        held.push(near);
    };
    assert!(matches!(busy, Err(CarryError::LeaseBusy)));
    assert_eq!(held.len(), 64);
    let (mut near, far) = tokio::io::duplex(64);
    let (provider, token) = (world.provider().clone(), tokens[1].clone());
    let carrying = tokio::spawn(async move { provider.carry(&token, far).await });
    let mut greeting = [0; 8];
    near.read_exact(&mut greeting).await.expect("there is room");
    drop(near);
    carrying.await.expect("no panic").expect("it ended well");
}

#[tokio::test]
async fn a_holder_key_pays_for_one_lease_also_when_its_envelope_has_expired() {
    let mut world = World::started().await;
    world.rent(1).await;
    world.advance(2 * 3600);
    world.until_nothing_runs().await;
    world.restart().await;
    let again = Tenant::new(&world, 1, |envelope| {
        envelope.grant.accept_by = accept_by(NOW.plus_s(2 * 3600), 600);
    });
    again.ask(&world).await;
    assert_eq!(refusal(&mut world, &again).await, Reason::Replayed);
    assert_eq!(world.machines.made(), 1);
}

#[tokio::test]
async fn capacity_is_told_in_levels_that_follow_what_is_free() {
    use souk_market::capacity::Level;
    let mut world = World::started().await;
    let card = world.node.plain_card(1);
    assert_eq!(
        world.provider().levels(&card),
        [[Level::Plenty, Level::Some]]
    );
    world.rent(1).await;
    assert_eq!(world.provider().levels(&card), [[Level::Some, Level::None]]);
    assert!(small().fits_in(&support::large()));
}

#[tokio::test]
async fn what_is_on_disk_of_a_lease_holds_nothing_that_outlives_it() {
    let mut world = World::started().await;
    let (tenant, receipt) = world.rent(1).await;
    tenant.tell(&world, 1, Action::End).await;
    statement(&mut world, &tenant).await;
    world.settings.retention_s = 0;
    world.restart().await;
    let forgotten = async {
        loop {
            tenant.tell(&world, 2, Action::Poll).await;
            if world.provider().counters().strays.load(Ordering::Relaxed) > 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, forgotten)
        .await
        .expect("forgotten after its time");
    world.stop().await;
    let (store, found) = Store::open(world.directory.path()).await.expect("opens");
    assert!(found.leases.is_empty() && found.requests.is_empty());
    assert_eq!(store.lease(LeaseId(receipt.lease.0)).expect("read"), None);
    assert_eq!(store.log_size().expect("read"), 1, "its entry stays");
}
