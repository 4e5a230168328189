//! Cards whose evidence a software TEE made, for tests.

use std::collections::BTreeMap;

use ring::rand::SystemRandom;
use souk_attest::{
    CollateralDigest, EvidenceDigest, RootId, Tee as Structure,
    binding::{Freshness, NodeBinding},
    soft::{TdxRecipe, TestRoot, TestTdx},
};
use souk_crypto::{NetworkParams, UnixTime};
use souk_market::{
    card::{EvidenceRef, VerifiedCard},
    units::{Digest, Tee},
};
use souk_sphinx::EpochClock;

use super::examine::LIFE_AFTER_EPOCH_S;
use crate::market_support::{NOW, Node, list};

/// Pieces by digest.
pub(crate) type Bytes = BTreeMap<Digest, Vec<u8>>;

/// What a node would publish.
pub(crate) struct Minted {
    pub(crate) reference: EvidenceRef,
    pub(crate) bytes: Bytes,
    pub(crate) root: RootId,
}

pub(crate) fn clock() -> EpochClock {
    EpochClock::of(&NetworkParams::new(50, 5_000, 3_600, true).expect("valid"))
}

pub(crate) fn recipe() -> TdxRecipe {
    TdxRecipe::up_to_date(NOW)
}

/// Evidence of `node`; `change` may make its binding a wrong one.
pub(crate) fn minted(
    node: &Node,
    recipe: TdxRecipe,
    change: impl FnOnce(&mut NodeBinding<'_>),
) -> Minted {
    let root = TestRoot::new(NOW, &SystemRandom::new()).expect("drawn");
    minted_under(&root, node, recipe, change)
}

pub(crate) fn minted_under(
    root: &TestRoot,
    node: &Node,
    recipe: TdxRecipe,
    change: impl FnOnce(&mut NodeBinding<'_>),
) -> Minted {
    let rng = SystemRandom::new();
    let epoch = clock().at(NOW);
    let id = node.node.public();
    let mut binding = NodeBinding {
        network: &node.network,
        node: &id,
        attested_key: *node.card.public().as_bytes(),
        policy: [9; 32],
        freshness: Freshness::Epoch(epoch.0.into()),
    };
    change(&mut binding);
    let machine = TestTdx::under(root, recipe, &rng).expect("minted");
    let evidence = machine.quote(binding.report_data(), &rng).expect("minted");
    let collateral = machine.collateral().to_bytes();
    let names = [
        Digest(EvidenceDigest::of(Structure::Tdx, &evidence).0),
        Digest(CollateralDigest::of(Structure::Tdx, &collateral).0),
    ];
    Minted {
        reference: EvidenceRef {
            kind: u16::try_from(Tee::NoneTest.code()).expect("small"),
            scope: EvidenceRef::NODE,
            algorithm: EvidenceRef::BLAKE3,
            digest: names[0],
            collateral: Some(names[1]),
            not_after: end(),
            policy: Digest([9; 32]),
            epoch: epoch.0,
        },
        bytes: Bytes::from([(names[0], evidence), (names[1], collateral)]),
        root: root.id(),
    }
}

/// When evidence made now stops to count.
pub(crate) fn end() -> UnixTime {
    let epoch = clock().at(NOW);
    clock().start(epoch.next()).plus_s(LIFE_AFTER_EPOCH_S)
}

/// The card of `node` that names this.
pub(crate) fn card(node: &Node, sequence: u64, reference: &EvidenceRef) -> VerifiedCard {
    let mut card = node.plain_card(sequence);
    card.evidence = list(vec![reference.clone()]);
    node.sign(card)
}
