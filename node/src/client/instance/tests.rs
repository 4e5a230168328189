use std::path::Path;

use ring::rand::SystemRandom;
use souk_attest::{
    CollateralDigest,
    soft::{TdxRecipe, TestRoot, TestTdx},
};
use souk_crypto::{CardKey, NetworkParams, keyfile, sign};
use souk_market::{
    envelope::VerifiedEnvelope,
    reply::{Endpoint, Reply},
    units::{Counter, HostKey, LeaseId, Money, RelayToken},
    wire::List,
};

use super::*;
use crate::{
    attest::minted::{clock, recipe},
    client::{
        ClientConfig,
        lease::{CARD, ENVELOPE, HOLDER_KEY, RECEIPT, REPLY_KEY, WAY},
    },
    market_support::{NOW, Node, Requester, network, relay},
};

/// A lease with evidence that the policy beside it accepts, and what may be wrong with it.
struct Scene {
    folder: tempfile::TempDir,
    lease: String,
}

/// What a quote binds.
#[derive(Clone, Copy)]
struct Bound {
    host_key: [u8; 32],
    image: [u8; 32],
    envelope: [u8; 32],
    key: [u8; 32],
    epoch: u64,
}

/// What is bound wrongly, and how.
type Wrong = (&'static str, fn(&mut Bound));

#[derive(Default)]
struct Plan {
    recipe: Option<TdxRecipe>,
    bind: Option<fn(&mut Bound)>,
    name: Option<fn(&mut EvidenceRef)>,
    /// Another card key of the provider, which signs the receipt and is bound.
    turned: bool,
}

impl Scene {
    fn new(plan: Plan) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (provider, tenant) = (Node::new(1), Requester::new(1));
        let card = provider.card(1);
        let mut envelope = tenant.plain_envelope(&provider, card.digest());
        envelope.grant.tee = Some(Tee::NoneTest);
        let envelope = tenant.sign(envelope);
        let turned = CardKey::generate(&mut rand::rng());
        let key = if plan.turned { &turned } else { &provider.card };
        let (node, rng) = (provider.node.public(), SystemRandom::new());
        let root = TestRoot::new(NOW, &rng).expect("drawn");
        let machine = TestTdx::under(&root, plan.recipe.unwrap_or_else(recipe), &rng);
        let machine = machine.expect("minted");
        let epoch = clock().at(NOW);
        let mut bound = Bound {
            host_key: [3; 32],
            image: envelope.grant.image.0,
            envelope: envelope.digest().0,
            key: *key.public().as_bytes(),
            epoch: epoch.0.into(),
        };
        if let Some(bind) = plan.bind {
            bind(&mut bound);
        }
        let binding = InstanceBinding {
            provider: NodeBinding {
                network: &provider.network,
                node: &node,
                attested_key: bound.key,
                policy: [9; 32],
                freshness: Freshness::Epoch(bound.epoch),
            },
            envelope: bound.envelope,
            host_key: bound.host_key,
            image: bound.image,
        };
        let quote = machine.quote(binding.report_data(), &rng).expect("minted");
        let collateral = machine.collateral().to_bytes();
        let mut reference = EvidenceRef {
            kind: u16::try_from(Tee::NoneTest.code()).expect("small"),
            scope: EvidenceRef::INSTANCE,
            algorithm: EvidenceRef::BLAKE3,
            digest: Digest(EvidenceDigest::of(Structure::Tdx, &quote).0),
            collateral: Some(Digest(CollateralDigest::of(Structure::Tdx, &collateral).0)),
            not_after: NOW.plus_s(86_400),
            policy: Digest([9; 32]),
            epoch: epoch.0,
        };
        if let Some(name) = plan.name {
            name(&mut reference);
        }
        let mut scene = Self {
            folder,
            lease: String::new(),
        };
        let policy = scene.policy(&root, &recipe());
        let client = scene.client(Some(&policy));
        let kept = |lease: &LeaseFolder| -> Result<(), StateError> {
            keyfile::create(&lease.file(HOLDER_KEY), &tenant.holder)?;
            keyfile::create(&lease.file(REPLY_KEY), &tenant.reply)?;
            lease.write(CARD, card.as_bytes())?;
            lease.write(ENVELOPE, envelope.as_bytes())?;
            lease.write(WAY, b"relay")?;
            lease.write(
                RECEIPT,
                receipt(&envelope, reference, key).signed().as_bytes(),
            )?;
            lease.write(QUOTE, &quote)?;
            lease.write(COLLATERAL, &collateral)
        };
        let lease = client.home.create_lease(envelope.grant.request, kept);
        scene.lease = lease.expect("written").name();
        scene
    }

    /// Writes a policy that names `root` and the measurements of `recipe`.
    fn policy(&self, root: &TestRoot, recipe: &TdxRecipe) -> PathBuf {
        let [r0, r1, r2, r3] = recipe.td.rtmr;
        let (root, mr_td) = (root.id(), recipe.td.mr_td);
        let text = format!(
            "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{root}\"]\n\n[[measurement]]\nname = \"minted\"\ntee = \"tdx\"\nmr_td = \"{mr_td}\"\nrtmr0 = \"{r0}\"\nrtmr1 = \"{r1}\"\nrtmr2 = \"{r2}\"\nrtmr3 = \"{r3}\"\n"
        );
        let path = self.folder.path().join("policy.toml");
        std::fs::write(&path, text).expect("written");
        path
    }

    fn client(&self, policy: Option<&Path>) -> Client {
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        let mut config = ClientConfig::new(network(), params, Vec::new(), "/usr/bin/souk".into());
        config.evidence = policy.map(|policy| EvidencePolicy {
            policy: policy.to_owned(),
            attested_mixes: false,
        });
        Client::open(&self.folder.path().join("home"), config).expect("opens")
    }

    fn judged(&self) -> Judgement {
        let policy = self.folder.path().join("policy.toml");
        let client = self.client(Some(&policy));
        let lease = client.find(&self.lease).expect("it is there");
        let judged = client.judge_instance(&lease, NOW).expect("judged");
        judged.expect("the lease requires evidence")
    }

    fn reason(&self) -> &'static str {
        match self.judged() {
            Judgement::Refused { reason, .. } => reason,
            Judgement::Accepted { .. } => panic!("it is believed"),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder
            .path()
            .join("home/leases")
            .join(&self.lease)
            .join(name)
    }
}

fn receipt(
    envelope: &VerifiedEnvelope,
    reference: EvidenceRef,
    key: &CardKey,
) -> souk_crypto::Verified<Reply> {
    let body = Body::Receipt(Receipt {
        lease: LeaseId([0xab; 16]),
        valid_to: NOW.plus_s(3_600),
        endpoints: List::new(vec![Endpoint::Relay {
            relay: relay(),
            token: RelayToken([5; 32]),
        }])
        .expect("one"),
        host_key: HostKey([3; 32]),
        user: "souk".parse().expect("a name"),
        price: Money(5),
        evidence: List::new(vec![reference]).expect("one"),
    });
    let reply = envelope.expected_reply().reply(Counter(0), NOW, body);
    sign::sign(reply, key, &network()).expect("valid")
}

#[test]
fn an_instance_that_binds_this_lease_is_believed() {
    let accepted = Judgement::Accepted {
        kind: Tee::NoneTest,
    };
    assert_eq!(Scene::new(Plan::default()).judged(), accepted);
    let turned = Plan {
        turned: true,
        ..Plan::default()
    };
    assert_eq!(Scene::new(turned).judged(), accepted, "a later card key");
}

#[test]
fn a_quote_that_binds_anything_else_is_refused() {
    let wrong: [Wrong; 5] = [
        ("host key", |bound| bound.host_key[31] ^= 1),
        ("image", |bound| bound.image[0] ^= 1),
        ("envelope", |bound| bound.envelope[0] ^= 1),
        ("card key", |bound| bound.key[0] ^= 1),
        ("epoch", |bound| bound.epoch -= 1),
    ];
    for (what, bind) in wrong {
        let plan = Plan {
            bind: Some(bind),
            ..Plan::default()
        };
        assert_eq!(Scene::new(plan).reason(), "report-data", "{what}");
    }
}

#[test]
fn a_receipt_that_names_none_of_the_kind_is_refused() {
    let wrong: [fn(&mut EvidenceRef); 3] = [
        |named| named.kind = 1,
        |named| named.scope = EvidenceRef::NODE,
        |named| named.algorithm = 7,
    ];
    for name in wrong {
        let plan = Plan {
            name: Some(name),
            ..Plan::default()
        };
        assert_eq!(Scene::new(plan).reason(), "no-evidence");
    }
}

#[test]
fn what_is_missing_damaged_or_over_is_refused() {
    for name in [QUOTE, COLLATERAL] {
        let scene = Scene::new(Plan::default());
        let bytes = std::fs::read(scene.file(name)).expect("there");
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 1;
        std::fs::write(scene.file(name), damaged).expect("written");
        scene.reason();
        std::fs::remove_file(scene.file(name)).expect("removed");
        assert_eq!(scene.reason(), "evidence-missing", "{name}");
    }
    let over = Plan {
        name: Some(|named| named.not_after = NOW.minus_s(1_000)),
        ..Plan::default()
    };
    assert_eq!(Scene::new(over).reason(), "expired");
}

#[test]
fn each_look_is_by_the_policy_of_then() {
    let scene = Scene::new(Plan::default());
    assert!(scene.judged().is_accepted());
    let policy = scene.folder.path().join("policy.toml");
    let text = std::fs::read_to_string(&policy).expect("there");
    let other = text.replace("mr_td = \"01", "mr_td = \"02");
    assert_ne!(text, other);
    std::fs::write(&policy, other).expect("written");
    assert_eq!(scene.reason(), "measurement");
    std::fs::remove_file(&policy).expect("removed");
    let client = scene.client(Some(&policy));
    let lease = client.find(&scene.lease).expect("it is there");
    assert!(client.judge_instance(&lease, NOW).is_err());
    assert!(client.believe(&lease).is_err(), "nothing connects without");
}

#[test]
fn a_client_without_a_policy_asks_the_one_of_the_rent_and_believes_nobody_without() {
    let scene = Scene::new(Plan::default());
    let policy = scene.folder.path().join("policy.toml");
    let client = scene.client(None);
    let lease = client.find(&scene.lease).expect("it is there");
    let none = client.judge_instance(&lease, NOW);
    assert!(matches!(none, Err(JudgeError::NoPolicy)), "{none:?}");
    let asked = EvidencePolicy {
        policy,
        attested_mixes: false,
    };
    remember_policy(&lease.folder, &asked, [1; 32]).expect("written");
    let judged = client.judge_instance(&lease, NOW).expect("judged");
    assert!(judged.is_some_and(|judged| judged.is_accepted()));
}

#[test]
fn an_instance_under_debug_is_refused() {
    let mut debug = recipe();
    debug.td.attributes[0] |= 1;
    let plan = Plan {
        recipe: Some(debug),
        ..Plan::default()
    };
    assert_eq!(Scene::new(plan).reason(), "debug");
}
