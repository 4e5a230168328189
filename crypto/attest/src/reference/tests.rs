use std::fs;

use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{IssuerKey, NetworkId, NetworkParams, keys::Issuer};

use super::*;
use crate::{
    Expected, Verified as Evidenced,
    soft::{TdxRecipe, TestTdx},
    verify,
};

const NOW: UnixTime = UnixTime(1_800_000_000);
const DAY_S: u64 = 86_400;

fn key(seed: u64) -> ReferenceKey {
    ReferenceKey::generate(&mut StdRng::seed_from_u64(seed))
}

/// The values of what the software TEE mints.
fn values(serial: u64) -> ReferenceValues {
    let td = TdxRecipe::up_to_date(NOW).td;
    let [r0, r1, r2, r3] = td.rtmr;
    ReferenceValues {
        name: "guest".to_owned(),
        serial,
        window: Window::new(NOW, NOW.plus_s(30 * DAY_S)).expect("a month"),
        values: format!(
            "[[measurement]]\nname = \"guest {serial}\"\ntee = \"tdx\"\nmr_td = \"{}\"\nrtmr0 = \"{r0}\"\nrtmr1 = \"{r1}\"\nrtmr2 = \"{r2}\"\nrtmr3 = \"{r3}\"\n",
            td.mr_td
        ),
    }
}

struct Scene(tempfile::TempDir);

impl Scene {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn seen(&self) -> PathBuf {
        self.0.path().join("serials")
    }

    fn put(&self, bytes: &[u8]) {
        fs::write(self.0.path().join("guest.ref"), bytes).expect("written");
    }

    fn sign(&self, values: ReferenceValues, by: u64) {
        self.put(&sign_reference(values, &key(by)).expect("signed"));
    }

    fn policy(&self, more: &str) -> Policy {
        let text = format!(
            "version = 1\nkinds = [\"tdx\"]\n\n[[reference]]\nfile = \"guest.ref\"\nname = \"guest\"\nkeys = [\"{}\"]\n{more}",
            key(1).public()
        );
        Policy::parse(&text).expect("a policy")
    }

    fn read(&self, more: &str) -> Result<Policy, ReferenceError> {
        with_references(self.policy(more), self.0.path(), Some(&self.seen()))
    }

    fn reason(&self, more: &str) -> &'static str {
        self.read(more).expect_err("it is not used").reason()
    }
}

#[test]
fn values_of_a_key_that_the_policy_names_are_its_own() {
    let scene = Scene::new();
    assert_eq!(
        scene.policy("").references().count(),
        0,
        "before they are read"
    );
    scene.sign(values(3), 1);
    let policy = scene.read("min_serial = 3").expect("read");
    let (name, _, from, to) = policy.references().next().expect("one");
    assert_eq!(name, "guest 3");
    assert_eq!((from, to), (Some(NOW), Some(NOW.plus_s(30 * DAY_S - 1))));
    assert_eq!(policy.digest(), scene.policy("min_serial = 3").digest());
}

#[test]
fn dates_of_a_value_and_of_its_file_count_both() {
    let scene = Scene::new();
    let mut dated = values(1);
    dated.values += "not_before = \"2020-01-01T00:00:00Z\"\nnot_after = \"2027-01-16T00:00:00Z\"\n";
    scene.sign(dated, 1);
    let policy = scene.read("").expect("read");
    let (_, _, from, to) = policy.references().next().expect("one");
    assert_eq!(from, Some(NOW));
    assert_eq!(to, crate::date::parse("2027-01-16T00:00:00Z"));
}

#[test]
fn evidence_is_decided_about_by_signed_values_while_they_hold() {
    let rng = ring::rand::SystemRandom::new();
    let machine = TestTdx::new(TdxRecipe::up_to_date(NOW), &rng).expect("minted");
    let root = machine.root();
    let quote = machine
        .quote(crate::ReportData([1; 64]), &rng)
        .expect("minted");
    let evidence = crate::Evidence::parse(&quote).expect("a quote");
    let collateral = crate::Collateral::Tdx(Box::new(machine.collateral().clone()));
    let scene = Scene::new();
    scene.sign(values(1), 1);
    let text = format!(
        "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{root}\"]\n\n[[reference]]\nfile = \"guest.ref\"\nname = \"guest\"\nkeys = [\"{}\"]\n",
        key(1).public()
    );
    let plain = Policy::parse(&text).expect("a policy");
    let verified: Evidenced =
        verify(&evidence, &collateral, &plain.trust(), NOW).expect("it verifies");
    let accepts = |policy: &Policy, at| {
        let decision = policy.decide(&verified, Expected::default(), at);
        decision.is_accepted()
    };
    assert!(!accepts(&plain, NOW), "nothing was read");
    let read = with_references(plain, scene.0.path(), None).expect("read");
    assert!(accepts(&read, NOW));
    assert!(accepts(&read, NOW.plus_s(30 * DAY_S - 1)));
    assert!(
        !accepts(&read, NOW.plus_s(30 * DAY_S)),
        "its window is over"
    );
    assert!(!accepts(&read, NOW.minus_s(1)), "its window has not begun");
}

#[test]
fn a_file_of_another_key_or_use_or_network_is_not_used() {
    let scene = Scene::new();
    scene.sign(values(1), 2);
    assert_eq!(scene.reason(""), "unknown-signer");

    /// As it would be signed for grants, by the same secret.
    #[derive(Clone, Debug, Encode, Decode)]
    #[cbor(map)]
    struct Other {
        #[n(0)]
        name: String,
        #[n(1)]
        serial: u64,
        #[n(2)]
        window: Window,
        #[n(3)]
        values: String,
    }
    impl Object for Other {
        type Signer = Issuer;
        const DOMAIN: SignDomain<Issuer> = domain::VOUCHER;
    }
    impl Anywhere for Other {}
    let ReferenceValues {
        name,
        serial,
        window,
        ..
    } = values(1);
    let other = Other {
        name,
        serial,
        window,
        values: String::new(),
    };
    let secret = souk_crypto::keys::Secret::secret_bytes(&key(1));
    let issuer = <IssuerKey as souk_crypto::keys::Secret>::from_secret_bytes(&secret);
    assert_eq!(issuer.public().as_bytes(), key(1).public().as_bytes());
    let signed = sign::sign_anywhere(other, &issuer).expect("signed");
    scene.put(signed.signed().as_bytes());
    assert_eq!(scene.reason(""), "unsigned");

    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    let network = NetworkId::new("test", &params).expect("a name");
    let bound = sign::sign(values(1), &key(1), &network).expect("signed");
    scene.put(bound.signed().as_bytes());
    assert_eq!(scene.reason(""), "unsigned");
}

#[test]
fn no_byte_of_a_signed_file_can_be_changed() {
    let scene = Scene::new();
    let bytes = sign_reference(values(1), &key(1)).expect("signed");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        scene.put(&changed);
        assert!(scene.read("").is_err(), "byte {at}");
    }
    scene.put(&bytes[..bytes.len() - 1]);
    assert!(scene.read("").is_err());
    assert!(!scene.seen().exists(), "nothing of it is remembered");
}

#[test]
fn serials_do_not_go_back_over_runs_and_are_one_file_each() {
    let scene = Scene::new();
    scene.sign(values(5), 1);
    scene.read("").expect("the first");
    scene.read("").expect("the same again");
    scene.sign(values(4), 1);
    assert_eq!(scene.reason(""), "rollback");
    let mut other = values(5);
    other.values += "\n";
    scene.sign(other, 1);
    assert_eq!(scene.reason(""), "two-of-one-serial");
    scene.sign(values(6), 1);
    scene.read("").expect("a newer one");
    scene.sign(values(5), 1);
    assert_eq!(scene.reason(""), "rollback");
    // Another release line has serials of its own, and is not what the policy asks for.
    let mut other = values(1);
    other.name = "other".to_owned();
    scene.sign(other, 1);
    assert_eq!(scene.reason(""), "name");
    // What is not believed moves nothing.
    scene.sign(values(100), 2);
    assert_eq!(scene.reason(""), "unknown-signer");
    scene.sign(values(7), 1);
    scene.read("").expect("the next");
    assert_eq!(scene.reason("min_serial = 8"), "serial");
}

#[test]
fn a_memory_that_is_damaged_is_not_taken_for_an_empty_one() {
    let scene = Scene::new();
    scene.sign(values(1), 1);
    scene.read("").expect("read");
    let whole = fs::read_to_string(scene.seen()).expect("kept");
    for damaged in [
        &whole[..whole.len() / 2],
        "nonsense\n",
        &format!("{whole}x y z\n"),
    ] {
        fs::write(scene.seen(), damaged).expect("written");
        assert_eq!(scene.reason(""), "seen", "{damaged}");
    }
    fs::write(scene.seen(), "x".repeat(MAX_SEEN_BYTES + 1)).expect("written");
    assert_eq!(scene.reason(""), "file");
}

#[test]
fn what_would_not_be_used_is_not_signed() {
    let sign = |change: fn(&mut ReferenceValues)| {
        let mut values = values(1);
        change(&mut values);
        sign_reference(values, &key(1)).is_ok()
    };
    assert!(sign(|_| ()));
    assert!(!sign(|values| values.values = String::new()));
    assert!(!sign(|values| values.values.insert_str(0, "version = 1\n")));
    assert!(!sign(
        |values| values.values = values.values.replace("rtmr0", "rtmr9")
    ));
    assert!(!sign(|values| values.name = "a name".to_owned()));
    assert!(!sign(|values| values.name = "n".repeat(65)));
    assert!(!sign(|values| {
        let end = NOW.plus_s(MAX_WINDOW_S + 1);
        values.window = Window::new(NOW, end).expect("rising");
    }));
}

#[test]
fn a_policy_says_whom_it_believes_or_has_a_mistake() {
    let with = |section: &str| {
        let text = format!("version = 1\nkinds = [\"tdx\"]\n[[reference]]\n{section}");
        Policy::parse(&text)
    };
    let key = key(1).public();
    assert!(with(&format!("file = \"a\"\nname = \"n\"\nkeys = [\"{key}\"]\n")).is_ok());
    for wrong in [
        format!("file = \"a\"\nkeys = [\"{key}\"]\n"),
        format!("file = \"a\"\nname = \"a name\"\nkeys = [\"{key}\"]\n"),
        format!("name = \"n\"\nkeys = [\"{key}\"]\n"),
        "file = \"a\"\nname = \"n\"\n".to_owned(),
        "file = \"a\"\nname = \"n\"\nkeys = []\n".to_owned(),
        "file = \"a\"\nname = \"n\"\nkeys = [\"00\"]\n".to_owned(),
        format!("file = \"\"\nname = \"n\"\nkeys = [\"{key}\"]\n"),
        format!("file = \"a\"\nname = \"n\"\nkeys = [\"{key}\"]\nserial = 3\n"),
    ] {
        assert!(with(&wrong).is_err(), "{wrong}");
    }
}
