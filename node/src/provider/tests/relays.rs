//! Over which relays a requester comes is the requester's choice, and naming them costs the provider little.

use souk_crypto::{NodeId, NodeKey};
use souk_market::{
    refusal::Reason,
    reply::{Body, Endpoint},
    request::Action,
    statement::Outcome,
    units::Money,
};

use super::{
    harness::{Tenant, World},
    refusal, statement,
    support::{list, relay},
};

fn others(count: usize) -> Vec<NodeId> {
    let mut nodes: Vec<_> = (0..count)
        .map(|_| NodeKey::generate(&mut rand::rng()).public())
        .collect();
    nodes.sort();
    nodes
}

fn naming(world: &World, seed: u64, relays: &[NodeId]) -> Tenant {
    let mut relays = relays.to_vec();
    relays.sort();
    Tenant::new(world, seed, |envelope| envelope.relays = list(relays))
}

#[tokio::test]
async fn a_receipt_names_only_relays_that_its_request_named_and_that_let_the_holder_in() {
    let mut world = World::started().await;
    let (silent, unnamed) = (others(1)[0], others(1)[0]);
    let stranger = others(1)[0];
    *world.relays.known.lock().expect("not poisoned") = vec![relay(), silent, unnamed];
    *world.relays.silent.lock().expect("not poisoned") = vec![silent];
    let tenant = naming(&world, 1, &[relay(), silent, stranger]);
    tenant.ask(&world).await;
    let Body::Receipt(receipt) = world.reply(&tenant).await.body else {
        panic!("no receipt");
    };
    let named: Vec<_> = receipt
        .endpoints
        .iter()
        .map(|endpoint| match endpoint {
            Endpoint::Relay { relay, .. } => *relay,
            Endpoint::Direct(at) => panic!("nobody asked for {at}"),
        })
        .collect();
    assert_eq!(named, [relay()]);
    let asked = world.relays.asked.lock().expect("not poisoned").clone();
    assert!(asked.iter().all(|relays| !relays.contains(&unnamed)));
}

#[tokio::test]
async fn relays_that_nobody_has_a_card_of_are_refused_before_anything_is_done() {
    let mut world = World::started().await;
    let tenant = naming(&world, 1, &others(3));
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::RelayUnknown);
    assert_eq!(world.machines.made(), 0);
    assert!(world.relays.asked.lock().expect("not poisoned").is_empty());
    // The same envelope is good once the card has come.
    *world.relays.known.lock().expect("not poisoned") = tenant.envelope.relays.to_vec();
    tenant.ask(&world).await;
    assert!(matches!(world.reply(&tenant).await.body, Body::Receipt(_)));
}

#[tokio::test]
async fn a_lease_that_no_relay_leads_to_is_refused_and_its_machine_removed() {
    let mut world = World::started().await;
    *world.relays.silent.lock().expect("not poisoned") = vec![relay()];
    let tenant = Tenant::new(&world, 1, |_| ());
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoRelay);
    let (account, _) = statement(&mut world, &tenant).await;
    assert_eq!(
        (account.outcome, account.charge),
        (Outcome::ProvisionFailed, Money(0))
    );
    assert!(world.machines.running().is_empty());
    assert!(world.provider().leases().is_empty());
}

#[tokio::test]
async fn who_names_no_relay_comes_straight_where_the_provider_allows_it() {
    let mut world = World::started().await;
    let tenant = naming(&world, 1, &[]);
    tenant.ask(&world).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoDirect);
    world.settings.direct = Some("127.0.0.1".parse().expect("an address"));
    world.restart().await;
    tenant.ask(&world).await;
    let Body::Receipt(receipt) = world.reply(&tenant).await.body else {
        panic!("no receipt");
    };
    let [Endpoint::Direct(port)] = receipt.endpoints[..] else {
        panic!("not direct: {:?}", receipt.endpoints);
    };
    // The next start opens the port that the receipt names.
    world.restart().await;
    tenant.tell(&world, 1, Action::Poll).await;
    let Body::Receipt(receipt) = world.reply(&tenant).await.body else {
        panic!("no receipt");
    };
    assert_eq!(receipt.endpoints[..], [Endpoint::Direct(port)]);
    // Who comes over a relay gets no port of the host opened.
    let (_, receipt) = world.rent(2).await;
    assert!(matches!(receipt.endpoints[..], [Endpoint::Relay { .. }]));
}

#[tokio::test]
async fn relays_are_asked_again_after_a_restart_and_forget_the_token_with_the_lease() {
    let mut world = World::started().await;
    let (tenant, _) = world.rent(1).await;
    world.relays.asked.lock().expect("not poisoned").clear();
    world.relays.admitted.lock().expect("not poisoned").clear();
    world.restart().await;
    tenant.tell(&world, 1, Action::Poll).await;
    assert!(matches!(world.reply(&tenant).await.body, Body::Receipt(_)));
    let asked = world.relays.asked.lock().expect("not poisoned").clone();
    assert!(asked.contains(&vec![relay()]));
    assert!(
        !world
            .relays
            .admitted
            .lock()
            .expect("not poisoned")
            .is_empty()
    );
    tenant.tell(&world, 2, Action::End).await;
    statement(&mut world, &tenant).await;
    assert!(
        world
            .relays
            .admitted
            .lock()
            .expect("not poisoned")
            .is_empty()
    );
}
