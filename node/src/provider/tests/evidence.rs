//! Leases that require evidence: none starts where it cannot be brought, and no receipt names one that does not hold.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use ring::rand::SystemRandom;
use souk_attest::soft::TestRoot;
use souk_backend::{
    Backend, BackendError, Capabilities, Instance, InstanceState, LeaseSpec, UsageSample,
};
use souk_market::{
    card::EvidenceRef,
    refusal::Reason,
    reply::{Body, Receipt},
    request::Action,
    units::{Digest, Tee},
};
use tokio::sync::watch;

use super::{
    harness::{Tenant, World, epochs},
    refusal, statement,
    support::{NOW, list, network},
};
use crate::attest::{HostTee, InTee, Pieces, Source, Wanted, minted};

/// The software TEE, with what the card of the node names.
async fn host(world: &World, named: bool) -> Arc<HostTee> {
    let root = TestRoot::new(NOW, &SystemRandom::new()).expect("drawn");
    let source = Source::soft(root);
    let pieces = Arc::new(Pieces::open(&world.directory.path().join("pieces")).expect("opens"));
    let data = souk_attest::ReportData([1; 64]);
    let (bundle, _) = source.make(data, NOW).await.expect("made");
    let collateral = Digest(bundle.collateral.digest().0);
    let wanted = Wanted::from([(collateral, souk_market::shares::Source::Own)]);
    pieces.put(&bundle.collateral.to_bytes(), &wanted);
    let reference = EvidenceRef {
        kind: u16::try_from(Tee::NoneTest.code()).expect("small"),
        scope: EvidenceRef::NODE,
        algorithm: EvidenceRef::BLAKE3,
        digest: Digest(bundle.evidence.digest().0),
        collateral: Some(collateral),
        not_after: minted::end(),
        policy: Digest([0; 32]),
        epoch: epochs().at(NOW).0,
    };
    let mut card = world.node.plain_card(1);
    card.evidence = list(if named { vec![reference] } else { Vec::new() });
    let card = world.node.sign(card);
    Arc::new(HostTee {
        network: network(),
        node: world.node.node.public(),
        policy: None,
        clock: epochs(),
        source,
        card: watch::Sender::new(Some(Arc::new(card))).subscribe(),
        pieces,
        now: || NOW,
    })
}

fn in_tee(world: &World, tee: &Arc<HostTee>) -> Arc<dyn Backend> {
    let machines = Arc::clone(&world.machines) as Arc<dyn Backend>;
    Arc::new(InTee::new(machines, Arc::clone(tee)))
}

async fn attested() -> World {
    let mut world = World::new();
    let tee = host(&world, true).await;
    world.backend = Some(in_tee(&world, &tee));
    world.tee = Some(tee);
    world.start().await;
    world
}

/// Asks for a lease with evidence of this TEE.
async fn ask(world: &World, seed: u64, tee: Tee) -> Tenant {
    let tenant = Tenant::new(world, seed, |envelope| envelope.grant.tee = Some(tee));
    tenant.ask(world).await;
    tenant
}

async fn receipt(world: &mut World, tenant: &Tenant) -> Receipt {
    match world.reply(tenant).await.body {
        Body::Receipt(receipt) => receipt,
        other => panic!("no receipt: {other:?}"),
    }
}

#[tokio::test]
async fn the_receipt_names_the_quote_polls_bring_it_and_the_statement_repeats_it() {
    let mut world = attested().await;
    let tenant = ask(&world, 1, Tee::NoneTest).await;
    let named = receipt(&mut world, &tenant).await.evidence;
    assert_eq!(named.len(), 1);
    assert_eq!(named[0].scope, EvidenceRef::INSTANCE);
    assert_eq!(named[0].claimed(), Some(Tee::NoneTest));
    let mut quote = Vec::new();
    let mut counter = 0;
    for part in 0.. {
        counter += 1;
        let action = Action::Evidence { part };
        tenant.tell(&world, counter, action).await;
        let Body::Evidence(got) = world.reply(&tenant).await.body else {
            panic!("no part {part}");
        };
        assert_eq!((got.part, got.digest), (part, named[0].digest));
        quote.extend_from_slice(&got.bytes);
        if part + 1 == got.parts {
            break;
        }
        // Also of a provider that was killed in between.
        world.restart().await;
    }
    let evidence = souk_attest::Evidence::parse(&quote).expect("a quote");
    assert_eq!(evidence.digest().0, named[0].digest.0);
    let beyond = Action::Evidence { part: 200 };
    tenant.tell(&world, counter + 1, beyond).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoEvidence);

    tenant.tell(&world, counter + 2, Action::End).await;
    let (last, _) = statement(&mut world, &tenant).await;
    assert_eq!(last.evidence, Some(named[0].digest));
    // The quote goes with the lease.
    let first = Action::Evidence { part: 0 };
    tenant.tell(&world, counter + 3, first).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoEvidence);
}

#[tokio::test]
async fn a_lease_that_requires_none_gets_none() {
    let mut world = attested().await;
    let (tenant, receipt) = world.rent(1).await;
    assert!(receipt.evidence.is_empty());
    tenant.tell(&world, 1, Action::Evidence { part: 0 }).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::NoEvidence);
    tenant.tell(&world, 2, Action::End).await;
    assert_eq!(statement(&mut world, &tenant).await.0.evidence, None);
}

#[tokio::test]
async fn a_grant_that_requires_tdx_reaches_no_backend_that_cannot_bring_it() {
    // The card offers the software TEE; that is not what is asked for.
    let mut world = attested().await;
    let tenant = ask(&world, 1, Tee::Tdx).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::TeeMissing);
    assert_eq!(
        world.provider().refused().borrow().of(Reason::TeeMissing),
        1
    );
    assert_eq!(world.machines.made(), 0);

    // A provider in no TEE at all.
    let mut world = World::started().await;
    let tenant = ask(&world, 1, Tee::NoneTest).await;
    assert_eq!(refusal(&mut world, &tenant).await, Reason::TeeMissing);
    assert_eq!(
        world.provider().refused().borrow().of(Reason::TeeMissing),
        1
    );
    assert_eq!(world.machines.made(), 0);
}

#[tokio::test]
async fn what_the_card_offered_and_the_backend_has_lost_since_is_refused_before_anything_starts() {
    for in_a_tee in [true, false] {
        let mut world = World::new();
        // The evidence has ended; or the backend is another one.
        let tee = host(&world, !in_a_tee).await;
        world.backend = in_a_tee.then(|| in_tee(&world, &tee));
        world.tee = Some(tee);
        world.start().await;
        let tenant = ask(&world, 1, Tee::NoneTest).await;
        assert_eq!(refusal(&mut world, &tenant).await, Reason::TeeMissing);
        assert_eq!(
            world.provider().refused().borrow().of(Reason::TeeMissing),
            1
        );
        assert_eq!(world.machines.made(), 0, "in a TEE: {in_a_tee}");
    }
}

/// A backend in a TEE whose quotes are not what was ordered.
struct Lying {
    inner: Arc<dyn Backend>,
    lie: Lie,
    /// The first quote that was taken.
    first: Mutex<Option<Vec<u8>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    Silent,
    OtherHostKey,
    OtherImage,
    OtherLease,
    OtherEpoch,
    Garbage,
}

#[async_trait]
impl Backend for Lying {
    fn name(&self) -> &str {
        self.inner.name()
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        self.inner.capabilities().await
    }

    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        let mut spec = spec.clone();
        let order = spec.evidence.as_mut().expect("these leases require it");
        match self.lie {
            Lie::OtherImage => spec.image.0[0] ^= 1,
            Lie::OtherEpoch => order.epoch -= 1,
            _ => {}
        }
        let mut instance = self.inner.provision(&spec).await?;
        match self.lie {
            Lie::Silent => instance.quote = None,
            Lie::OtherHostKey => instance.host_key.0[0] ^= 1,
            Lie::Garbage => instance.quote = Some(vec![4; 600]),
            Lie::OtherLease => {
                let mut first = self.first.lock().expect("not poisoned");
                let taken = instance.quote.take();
                instance.quote = Some(first.get_or_insert(taken.expect("taken")).clone());
            }
            Lie::OtherImage | Lie::OtherEpoch => {}
        }
        Ok(instance)
    }

    async fn inspect(
        &self,
        lease: souk_backend::LeaseId,
    ) -> Result<Option<Instance>, BackendError> {
        self.inner.inspect(lease).await
    }

    async fn list(&self) -> Result<Vec<Instance>, BackendError> {
        self.inner.list().await
    }

    async fn sample(&self, lease: souk_backend::LeaseId) -> Result<UsageSample, BackendError> {
        self.inner.sample(lease).await
    }

    async fn watch(
        &self,
        lease: souk_backend::LeaseId,
        patience: Duration,
    ) -> Result<InstanceState, BackendError> {
        self.inner.watch(lease, patience).await
    }

    async fn terminate(&self, lease: souk_backend::LeaseId) -> Result<UsageSample, BackendError> {
        self.inner.terminate(lease).await
    }
}

#[tokio::test]
async fn evidence_that_is_not_what_was_ordered_is_a_failed_start_and_nothing_is_left() {
    for lie in [
        Lie::Silent,
        Lie::OtherHostKey,
        Lie::OtherImage,
        Lie::OtherLease,
        Lie::OtherEpoch,
        Lie::Garbage,
    ] {
        let mut world = World::new();
        let tee = host(&world, true).await;
        world.backend = Some(Arc::new(Lying {
            inner: in_tee(&world, &tee),
            lie,
            first: Mutex::default(),
        }));
        world.tee = Some(tee);
        world.start().await;
        let mut seed = 1;
        if lie == Lie::OtherLease {
            // The first lease gets its own; it is the next that gets it, too.
            let tenant = ask(&world, seed, Tee::NoneTest).await;
            receipt(&mut world, &tenant).await;
            tenant.tell(&world, 1, Action::End).await;
            statement(&mut world, &tenant).await;
            seed += 1;
        }
        let tenant = ask(&world, seed, Tee::NoneTest).await;
        let refused = refusal(&mut world, &tenant).await;
        assert_eq!(refused, Reason::ProvisionFailed, "{lie:?}");
        world.until_nothing_runs().await;
    }
}
