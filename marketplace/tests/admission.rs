//! Admission and matching, seen from outside: each reason is given for its cause and for nothing else.

mod support;

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{IssuerKey, UnixTime, sign};
use souk_market::{
    admission::{Admission, Decision, Situation},
    capacity::Level,
    card::VerifiedCard,
    directory::Directory,
    envelope::{Envelope, MAX_ACCEPT_AHEAD_S, Typed, VerifiedEnvelope, Voucher, accept_by},
    matching::{Mismatch, Wanted, candidates},
    quorum::{Gathering, Market},
    refusal::Reason,
    units::{
        CardDigest, DurationS, ImageHash, LeaseId, Limit, Limits, Money, RequestId, Resources, Tee,
    },
    work,
};
use support::{IMAGE, NOW, Node, Requester, SOURCE, large, list, network, small};

struct Scene {
    provider: Node,
    card: VerifiedCard,
    honoured: [CardDigest; 1],
    free: [Resources; 1],
    anonymous_active: u32,
    draining: bool,
    admission: Admission,
    leases: u8,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut souk_market::card::Card)) -> Self {
        let provider = Node::new(1);
        let mut card = provider.plain_card(1);
        change(&mut card);
        let card = provider.sign(card);
        Self {
            admission: Admission::new(network(), provider.node.public()),
            honoured: [card.digest()],
            free: [large()],
            anonymous_active: 0,
            draining: false,
            leases: 0,
            provider,
            card,
        }
    }

    fn ask_at(&mut self, now: UnixTime, requester: &Requester, envelope: Envelope) -> Decision {
        self.leases += 1;
        let situation = Situation {
            card: &self.card,
            honoured: &self.honoured,
            free: &self.free,
            anonymous_active: self.anonymous_active,
            draining: self.draining,
        };
        let envelope = requester.sign(envelope);
        self.admission
            .handle_envelope(now, &situation, &envelope, LeaseId([self.leases; 16]))
    }

    fn ask(&mut self, seed: u64, change: impl FnOnce(&mut Envelope)) -> Decision {
        let requester = Requester::new(seed);
        let mut envelope = requester.plain_envelope(&self.provider, self.card.digest());
        change(&mut envelope);
        self.ask_at(NOW, &requester, envelope)
    }
}

fn accepted(decision: &Decision) -> &souk_market::admission::Accepted {
    match decision {
        Decision::Accept(accepted) => accepted,
        other => panic!("not accepted: {other:?}"),
    }
}

#[test]
fn a_good_envelope_is_accepted_for_its_duration_at_its_price() {
    let mut scene = Scene::new();
    let decision = scene.ask(1, |_| ());
    let accepted = accepted(&decision);
    assert_eq!(accepted.valid_to, NOW.plus_s(3_600));
    assert_eq!(
        (accepted.price, accepted.offer, accepted.anonymous),
        (Money(5), 0, true)
    );
}

#[test]
fn the_same_envelope_is_the_same_lease_and_another_under_its_id_is_refused() {
    let mut scene = Scene::new();
    let first = scene.ask(1, |_| ());
    let lease = accepted(&first).lease;
    assert_eq!(scene.ask(1, |_| ()), Decision::Again(lease));
    let other = scene.ask(1, |envelope| envelope.grant.duration = DurationS(60));
    assert_eq!(other, Decision::Refuse(Reason::Replayed));
}

#[test]
fn a_request_is_remembered_over_a_restart_until_it_can_no_more_be_accepted() {
    let mut scene = Scene::new();
    let first = scene.ask(1, |_| ());
    let accepted = accepted(&first).clone();
    scene.admission = Admission::new(network(), scene.provider.node.public());
    scene.admission.restore(NOW.plus_s(5), &accepted);
    assert_eq!(scene.ask(1, |_| ()), Decision::Again(accepted.lease));

    let mut later = Admission::new(network(), scene.provider.node.public());
    later.restore(accepted.forget_at, &accepted);
    assert_eq!(later.remembered(), 0);
    scene.admission = later;
    let requester = Requester::new(1);
    let envelope = requester.plain_envelope(&scene.provider, scene.card.digest());
    let late = scene.ask_at(accepted.forget_at, &requester, envelope);
    assert_eq!(late, Decision::Refuse(Reason::Expired));
}

type Change = Box<dyn Fn(&mut Envelope)>;

#[test]
fn each_reason_is_given_for_its_cause() {
    let other_provider = Node::new(99);
    let cases: Vec<(Reason, Change)> = vec![
        (
            Reason::ImageMismatch,
            Box::new(|e| e.image = ImageHash([8; 32])),
        ),
        (
            Reason::Expired,
            Box::new(|e| e.grant.accept_by = NOW.minus_s(300)),
        ),
        (
            Reason::TooEarly,
            Box::new(|e| {
                e.grant.accept_by = accept_by(NOW, MAX_ACCEPT_AHEAD_S + 600);
            }),
        ),
        (
            Reason::OtherProvider,
            Box::new(move |e| {
                e.grant.provider = other_provider.node.public();
                e.grant.request = RequestId::of(&network(), &e.grant.provider, &e.holder);
            }),
        ),
        (
            Reason::StaleOffer,
            Box::new(|e| e.grant.offer = CardDigest([0; 32])),
        ),
        (
            Reason::UnknownImage,
            Box::new(|e| {
                (e.image, e.grant.image) = (ImageHash([8; 32]), ImageHash([8; 32]));
            }),
        ),
        (Reason::TooLarge, Box::new(|e| e.grant.resources.gpus = 1)),
        (
            Reason::AnonymousSize,
            Box::new(|e| e.grant.resources.cpu_millicores = 5_000),
        ),
        (
            Reason::LimitNotEnforced,
            Box::new(|e| e.grant.required = Limits::of(&[Limit::Disk])),
        ),
        (
            Reason::TeeMissing,
            Box::new(|e| e.grant.tee = Some(Tee::Tdx)),
        ),
        (
            Reason::AnonymousDuration,
            Box::new(|e| {
                e.grant.duration = DurationS(7_201);
            }),
        ),
        (
            Reason::TooExpensive,
            Box::new(|e| e.grant.max_total = Money(4)),
        ),
        (
            Reason::VoucherInvalid,
            Box::new(|e| {
                e.grant.authorization = Typed::voucher(b"nonsense").expect("small");
            }),
        ),
        (
            Reason::AuthorizationUnknown,
            Box::new(|e| e.grant.authorization.kind = 7),
        ),
    ];
    for (reason, change) in cases {
        // A provider whose anonymous limits let a GPU through, so that its size is what fails.
        let mut scene = Scene::with(|card| {
            let anonymous = card.policy.anonymous.as_mut().expect("has some");
            anonymous.max_resources.gpus = 8;
        });
        assert_eq!(scene.ask(1, change), Decision::Refuse(reason));
        assert_eq!(scene.admission.refused().of(reason), 1);
        assert_eq!(scene.admission.refused().sum(), 1);
        assert_eq!(scene.admission.remembered(), 0, "{reason} is remembered");
    }
}

#[test]
fn a_grant_that_requires_a_tee_gets_an_offer_in_it_and_no_other() {
    let mut scene = Scene::with(|card| {
        let mut offers = card.offers.to_vec();
        for tee in [Tee::NoneTest, Tee::Tdx] {
            let mut offer = offers[0].clone();
            offer.tee = tee;
            offers.push(offer);
        }
        card.offers = list(offers);
    });
    let ask = |scene: &mut Scene, seed, tee| {
        let free = [large(); 3];
        let requester = Requester::new(seed);
        let mut envelope = requester.plain_envelope(&scene.provider, scene.card.digest());
        envelope.grant.tee = tee;
        let situation = Situation {
            card: &scene.card,
            honoured: &scene.honoured,
            free: &free,
            anonymous_active: 0,
            draining: false,
        };
        let lease = LeaseId([u8::try_from(seed).expect("small"); 16]);
        let envelope = requester.sign(envelope);
        scene
            .admission
            .handle_envelope(NOW, &situation, &envelope, lease)
    };
    for (seed, tee, offer) in [
        (1, None, 0),
        (2, Some(Tee::NoneTest), 1),
        (3, Some(Tee::Tdx), 2),
    ] {
        assert_eq!(
            accepted(&ask(&mut scene, seed, tee)).offer,
            offer,
            "{tee:?}"
        );
    }
    let other = ask(&mut scene, 4, Some(Tee::SevSnp));
    assert_eq!(other, Decision::Refuse(Reason::TeeMissing));
    assert_eq!(scene.admission.refused().of(Reason::TeeMissing), 1);
}

#[test]
fn evidence_of_no_tee_cannot_be_asked_for() {
    let (provider, requester) = (Node::new(1), Requester::new(1));
    let mut envelope = requester.plain_envelope(&provider, provider.card(1).digest());
    envelope.grant.tee = Some(Tee::None);
    let signed = VerifiedEnvelope::sign(envelope, &requester.holder, &network());
    assert!(signed.is_err());
}

#[test]
fn a_full_or_draining_provider_says_so() {
    let mut scene = Scene::new();
    scene.free = [Resources {
        memory_mib: 1_023,
        ..large()
    }];
    assert_eq!(scene.ask(1, |_| ()), Decision::Refuse(Reason::NoCapacity));
    scene.draining = true;
    assert_eq!(scene.ask(1, |_| ()), Decision::Refuse(Reason::Draining));
}

#[test]
fn strangers_get_the_anonymous_places_and_no_more() {
    let mut scene = Scene::new();
    scene.anonymous_active = 4;
    assert_eq!(
        scene.ask(1, |_| ()),
        Decision::Refuse(Reason::AnonymousConcurrent)
    );
    scene.anonymous_active = 0;
    for seed in 0..10 {
        accepted(&scene.ask(seed, |_| ()));
    }
    assert_eq!(
        scene.ask(10, |_| ()),
        Decision::Refuse(Reason::AnonymousRate)
    );
    let requester = Requester::new(10);
    let mut envelope = requester.plain_envelope(&scene.provider, scene.card.digest());
    envelope.grant.accept_by = accept_by(NOW.plus_s(3_600), 600);
    accepted(&scene.ask_at(NOW.plus_s(3_600), &requester, envelope));

    let mut closed = Scene::with(|card| card.policy.anonymous = None);
    assert_eq!(
        closed.ask(1, |_| ()),
        Decision::Refuse(Reason::AnonymousRefused)
    );
}

#[test]
fn work_is_asked_for_and_is_good_for_one_request_only() {
    let mut scene = Scene::with(|card| {
        card.policy.anonymous.as_mut().expect("has some").work_bits = 10;
    });
    assert_eq!(scene.ask(1, |_| ()), Decision::Refuse(Reason::WorkMissing));
    let mut nonce = None;
    let done = scene.ask(1, |envelope| {
        nonce = Some(work::find(&network(), envelope.grant.request, 10));
        envelope.grant.work = nonce;
    });
    accepted(&done);
    let stolen = scene.ask(2, |envelope| envelope.grant.work = nonce);
    assert_eq!(stolen, Decision::Refuse(Reason::WorkMissing));
}

#[test]
fn a_voucher_is_good_for_its_holder_size_time_and_provider() {
    let mut rng = StdRng::seed_from_u64(5);
    let (issuer, stranger) = (IssuerKey::generate(&mut rng), IssuerKey::generate(&mut rng));
    let listed = issuer.public();
    let mut scene = Scene::with(|card| {
        card.policy.anonymous = None;
        card.policy.issuers = list(vec![listed]);
    });
    let provider = scene.provider.node.public();
    let voucher = |change: &dyn Fn(&mut Voucher)| {
        let mut voucher = Voucher {
            issuer: listed,
            holder: Requester::new(1).holder.public(),
            provider: Some(provider),
            max_resources: small(),
            max_duration: DurationS(3_600),
            not_after: NOW.plus_s(60),
        };
        change(&mut voucher);
        voucher
    };
    let signed = |voucher: Voucher, key: &IssuerKey| {
        let signed = sign::sign(voucher, key, &network()).expect("valid");
        Typed::voucher(signed.signed().as_bytes()).expect("small")
    };
    let wrong: [(Reason, Voucher, &IssuerKey); 6] = [
        (
            Reason::VoucherInvalid,
            voucher(&|v| v.holder = Requester::new(2).holder.public()),
            &issuer,
        ),
        (
            Reason::VoucherInvalid,
            voucher(&|v| v.provider = Some(Node::new(9).node.public())),
            &issuer,
        ),
        (
            Reason::VoucherInvalid,
            voucher(&|v| v.max_duration = DurationS(3_599)),
            &issuer,
        ),
        (
            Reason::VoucherInvalid,
            voucher(&|v| v.not_after = NOW.minus_s(120)),
            &issuer,
        ),
        (Reason::VoucherInvalid, voucher(&|_| ()), &stranger),
        (
            Reason::IssuerUnknown,
            voucher(&|v| v.issuer = stranger.public()),
            &stranger,
        ),
    ];
    for (reason, voucher, key) in wrong {
        let authorization = signed(voucher, key);
        let decision = scene.ask(1, |envelope| envelope.grant.authorization = authorization);
        assert_eq!(decision, Decision::Refuse(reason));
    }
    let authorization = signed(voucher(&|_| ()), &issuer);
    let decision = scene.ask(1, |envelope| envelope.grant.authorization = authorization);
    assert!(!accepted(&decision).anonymous);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However envelopes are repeated, a request id stands for at most one lease.
    #[test]
    fn a_request_never_becomes_two_leases(asks in prop::collection::vec((0u64..4, 1u32..4), 1..24)) {
        let mut scene = Scene::new();
        let mut leases = std::collections::BTreeMap::new();
        for (seed, hours) in asks {
            let request = {
                let requester = Requester::new(seed);
                requester.plain_envelope(&scene.provider, scene.card.digest()).grant.request
            };
            let decision = scene.ask(seed, |envelope| envelope.grant.duration = DurationS(hours * 1_800));
            match decision {
                Decision::Accept(accepted) => {
                    prop_assert!(leases.insert(request, accepted.lease).is_none());
                }
                Decision::Again(lease) => prop_assert_eq!(leases.get(&request), Some(&lease)),
                Decision::Refuse(reason) => prop_assert_eq!(reason, Reason::Replayed),
            }
        }
    }
}

fn market(nodes: &[(&Node, VerifiedCard, Option<Level>)]) -> Market {
    let mut directory = Directory::new(network(), true);
    for (node, card, level) in nodes {
        directory.handle_card(NOW, SOURCE, card.as_bytes());
        if let Some(level) = level {
            directory.handle_capacity(NOW, &node.capacity(1, NOW, *level));
        }
    }
    let mut gathering = Gathering::new(network(), true, NOW);
    let set = directory.snapshot(NOW, 1);
    gathering
        .handle_set(
            Node::new(1000).node.public(),
            set.epoch(),
            set.root(),
            set.objects(),
        )
        .expect("an honest set");
    gathering.compare(1)
}

fn wanted() -> Wanted {
    Wanted {
        image: IMAGE,
        resources: small(),
        duration: DurationS(3_600),
        required: Limits::of(&[Limit::Memory]),
        arch: None,
        shared_kernel: true,
        max_total: None,
        issuer: None,
        attested: None,
        tees: None,
        provider: None,
    }
}

#[test]
fn who_wants_evidence_of_the_instance_finds_offers_that_bring_it() {
    let (plain, proven) = (Node::new(1), Node::new(2));
    let mut card = proven.plain_card(1);
    let mut offer = card.offers[0].clone();
    offer.tee = Tee::NoneTest;
    card.offers = list(vec![card.offers[0].clone(), offer]);
    let (plain_card, proven_card) = (plain.card(1), proven.sign(card));
    let market = market(&[(&plain, plain_card, None), (&proven, proven_card, None)]);
    let mut wanted = wanted();
    assert_eq!(candidates(&market, &wanted).0.len(), 2);
    wanted.tees = Some([Tee::None, Tee::NoneTest].into());
    let (found, others) = candidates(&market, &wanted);
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].card.node, found[0].offer),
        (proven.node.public(), 1)
    );
    assert_eq!(others, [(plain.node.public(), Mismatch::Tee)]);
    wanted.tees = Some([Tee::Tdx].into());
    assert!(candidates(&market, &wanted).0.is_empty());
}

#[test]
fn the_cheapest_comes_first_and_room_breaks_a_tie() {
    let (dear, empty, busy) = (Node::new(1), Node::new(2), Node::new(3));
    let mut card = dear.plain_card(1);
    card.prices.as_mut().expect("has some").core_hour = Money(50);
    let dear_card = dear.sign(card);
    let (empty_card, busy_card) = (empty.card(1), busy.card(1));
    let market = market(&[
        (&dear, dear_card, Some(Level::Plenty)),
        (&busy, busy_card, Some(Level::Some)),
        (&empty, empty_card, Some(Level::Plenty)),
    ]);
    let (found, others) = candidates(&market, &wanted());
    let order: Vec<_> = found.iter().map(|c| c.card.node).collect();
    assert_eq!(
        order,
        [empty.node.public(), busy.node.public(), dear.node.public()]
    );
    assert!(others.is_empty());
}

#[test]
fn amounts_of_different_assets_are_not_held_against_each_other() {
    let nodes: Vec<_> = (1..=4).map(Node::new).collect();
    let card = |node: &Node, asset: Option<&str>, exponent, core_hour| {
        let mut card = node.plain_card(1);
        match (asset, card.prices.as_mut()) {
            (Some(asset), Some(prices)) => {
                prices.asset = asset.parse().expect("an asset");
                prices.exponent = exponent;
                prices.core_hour = Money(core_hour);
                prices.memory_gib_hour = Money(0);
                prices.disk_gib_hour = Money(0);
            }
            _ => card.prices = None,
        }
        node.sign(card)
    };
    let market = market(&[
        // One whole coin, which is the smallest number of all.
        (&nodes[0], card(&nodes[0], Some("BTC"), 0, 1), None),
        (&nodes[1], card(&nodes[1], Some("EUR"), 4, 90_000), None),
        (&nodes[2], card(&nodes[2], Some("EUR"), 2, 1_000), None),
        (&nodes[3], card(&nodes[3], None, 0, 0), None),
    ]);
    let found = candidates(&market, &wanted()).0;
    let order: Vec<_> = found.iter().map(|c| c.card.node).collect();
    assert_eq!(order, [3, 1, 2, 0].map(|at| nodes[at].node.public()));
    assert!(!found[1].costs_as_much_as(&found[2]));
}

#[test]
fn what_does_not_match_says_why() {
    let node = Node::new(1);
    let market = market(&[(&node, node.card(1), Some(Level::None))]);
    let why = |change: &dyn Fn(&mut Wanted)| {
        let mut wanted = wanted();
        change(&mut wanted);
        candidates(&market, &wanted).1[0].1
    };
    assert_eq!(why(&|_| ()), Mismatch::Full);
    assert_eq!(why(&|w| w.image = ImageHash([0; 32])), Mismatch::Image);
    assert_eq!(
        why(&|w| w.arch = Some("riscv64".parse().expect("an arch"))),
        Mismatch::Arch
    );
    assert_eq!(
        why(&|w| w.required = Limits::of(&[Limit::Disk])),
        Mismatch::Limits
    );
    assert_eq!(why(&|w| w.shared_kernel = false), Mismatch::SharedKernel);
    assert_eq!(why(&|w| w.duration = DurationS(9_999)), Mismatch::Anonymous);
    let asset: souk_market::units::Asset = "TEST".parse().expect("an asset");
    assert_eq!(
        why(&|w| w.max_total = Some((asset.clone(), Money(4)))),
        Mismatch::Price
    );
}
