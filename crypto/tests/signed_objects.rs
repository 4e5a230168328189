//! A signed object opens on its own network, as its own kind, byte for byte, and in no other way.

use coset::{
    Algorithm, ContentType, CoseSign1, CoseSign1Builder, Header, Label,
    TaggedCborSerializable as _, cbor::Value, iana,
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use minicbor::{Decode, Encode};
use proptest::prelude::*;
use souk_crypto::{
    CardKey, LogKey, MixKey, MixPublicKey, NetworkId, NetworkParams, NodeKey, Object, OpenError,
    SealKey, SignError, Signed, SubKeys, UnixTime, Verified, Window,
    cbor::{self, DecodeError},
    domain::{self, SignDomain},
    keys::{Node, Secret as _},
    sign,
};

fn network(name: &str) -> NetworkId {
    let params = NetworkParams::new(50, 10_000, 3_600, false).expect("in bounds");
    NetworkId::new(name, &params).expect("valid name")
}

fn node_key() -> NodeKey {
    NodeKey::from_secret_bytes(&[7; 32])
}

fn sub_keys(serial: u64, epochs: u32) -> SubKeys {
    let window = Window::new(UnixTime(1_000_000), UnixTime(2_000_000)).expect("not empty");
    let mix_key = |epoch| MixKey {
        epoch,
        suite: 1,
        key: MixPublicKey::from_bytes(&[9; 32]).expect("32 bytes"),
        window,
    };
    SubKeys {
        serial,
        window,
        card_key: CardKey::from_secret_bytes(&[1; 32]).public(),
        log_key: Some(LogKey::from_secret_bytes(&[2; 32]).public()),
        seal_key: Some(SealKey::from_secret_bytes(&[3; 32]).public()),
        mix_keys: (0..epochs).map(mix_key).collect(),
    }
}

fn signed() -> Verified<SubKeys> {
    sign::sign(sub_keys(5, 3), &node_key(), &network("souk")).expect("valid")
}

/// The same signer and fields as [`SubKeys`] under another domain.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Retirement {
    #[n(0)]
    serial: u64,
}

impl Object for Retirement {
    type Signer = Node;
    const DOMAIN: SignDomain<Node> = domain::RETIREMENT;
}

#[test]
fn what_was_signed_opens_with_the_same_bytes_and_signer() {
    let made = signed();
    let opened = made.signed().open(&network("souk")).expect("opens");
    assert_eq!(*opened, *made);
    assert_eq!(opened.signer(), &node_key().public());
    assert_eq!(opened.signed().as_bytes(), made.signed().as_bytes());
    assert_eq!(opened.digest(), made.digest());
}

#[test]
fn the_largest_list_of_sub_keys_fits_its_cap() {
    let made = sign::sign(
        sub_keys(u64::MAX, 8),
        &node_key(),
        &network(&"n".repeat(32)),
    );
    let len = made.expect("fits").signed().as_bytes().len();
    assert!(len <= domain::SUB_KEYS.max_bytes(), "{len} bytes");
}

#[test]
fn an_object_that_breaks_its_rules_is_never_signed() {
    let refused = sign::sign(sub_keys(1, 9), &node_key(), &network("souk"));
    assert!(matches!(refused, Err(SignError::Invalid(why)) if why.field == "mix_keys"));
}

#[test]
fn another_network_or_kind_is_refused_by_name() {
    let made = signed();
    let error = made
        .signed()
        .open(&network("other"))
        .expect_err("another network");
    assert!(
        matches!(error, OpenError::Header { field: "network" }),
        "{error}"
    );

    let retirement = sign::sign(Retirement { serial: 5 }, &node_key(), &network("souk"));
    let bytes = retirement.expect("valid").signed().as_bytes().to_vec();
    let error = sign::open::<SubKeys>(&bytes, &network("souk")).expect_err("another kind");
    assert!(
        matches!(error, OpenError::Header { field: "kind" }),
        "{error}"
    );
}

#[test]
fn size_is_checked_before_anything_is_decoded() {
    let huge = vec![0xff; domain::SUB_KEYS.max_bytes() + 1];
    let error = Signed::<SubKeys>::from_bytes(&huge).expect_err("too large");
    assert!(matches!(error, OpenError::TooLarge { .. }), "{error}");
}

#[test]
fn an_unopened_object_shows_nothing_of_its_content() {
    let text = format!("{:?}", signed().signed());
    assert_eq!(text, "Signed<souk/1/sub-keys>(477 bytes)");
}

#[test]
fn unknown_critical_keys_are_refused_and_ignorable_ones_are_kept_in_the_bytes() {
    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Old {
        #[n(0)]
        a: u64,
        #[n(1)]
        inner: Option<Box<Old>>,
    }
    let decode = |bytes: &[u8]| cbor::decode::<Old>(bytes, 64);
    let plain = Old { a: 1, inner: None };
    assert_eq!(decode(&[0xa1, 0, 1]).expect("plain"), plain);
    assert_eq!(
        decode(&[0xa2, 0, 1, 0x18, 128, 9]).expect("ignorable"),
        plain
    );
    assert!(matches!(
        decode(&[0xa2, 0, 1, 0x18, 127, 9]),
        Err(DecodeError::NotUnderstood)
    ));
    assert!(matches!(
        decode(&[0xa2, 0, 1, 2, 9]),
        Err(DecodeError::NotUnderstood)
    ));
    // The same one level down.
    assert!(decode(&[0xa2, 0, 1, 1, 0xa2, 0, 2, 0x19, 1, 0, 9]).is_ok());
    let nested = decode(&[0xa2, 0, 1, 1, 0xa2, 0, 2, 3, 9]);
    assert!(matches!(nested, Err(DecodeError::NotUnderstood)));
    // A known key with an explicit null is a second form of the same value.
    assert!(matches!(
        decode(&[0xa2, 0, 1, 1, 0xf6]),
        Err(DecodeError::NotUnderstood)
    ));
}

#[test]
fn the_bytes_are_those_of_an_independent_implementation() {
    let text = include_str!("../../fixtures/crypto/signed-object.json");
    let vector: serde_json::Value = serde_json::from_str(text).expect("the fixture is JSON");
    let field = |name: &str| vector[name].as_str().expect(name);
    assert_eq!(network("souk").as_str(), field("network"));
    let made = signed();
    assert_eq!(hex::encode(made.signed().as_bytes()), field("signed"));
    assert_eq!(made.digest().to_string(), field("digest"));
    let theirs = hex::decode(field("signed")).expect("hex");
    let opened = sign::open::<SubKeys>(&theirs, &network("souk")).expect("opens");
    assert_eq!(*opened, sub_keys(5, 3));
}

#[test]
fn the_cose_working_groups_example_verifies_by_the_same_steps() {
    let text = include_str!("../../fixtures/crypto/cose-eddsa-sig-01.json");
    let vector: serde_json::Value = serde_json::from_str(text).expect("the fixture is JSON");
    let field = |name: &str| hex::decode(vector[name].as_str().expect(name)).expect(name);
    let cose = CoseSign1::from_tagged_slice(&field("signed")).expect("a COSE_Sign1");
    assert_eq!(cose.payload.as_deref(), Some(&*field("payload")));
    let public: [u8; 32] = field("public").try_into().expect("32 bytes");
    let key = VerifyingKey::from_bytes(&public).expect("a key");
    let verify = |cose: &CoseSign1| {
        cose.verify_signature(&[], |signature, tbs| {
            key.verify_strict(tbs, &Signature::from_slice(signature)?)
        })
    };
    verify(&cose).expect("as published");
    let mut changed = cose;
    changed.payload.as_mut().expect("it has one")[0] ^= 1;
    verify(&changed).expect_err("another payload");
    // It is no object of ours: no domain, no network, another algorithm id.
    assert!(sign::open::<SubKeys>(&field("signed"), &network("souk")).is_err());
}

/// Signs header and payload as they are, without the checks of [`sign::sign`].
fn forge(header: Header, unprotected: Header, payload: Vec<u8>) -> Vec<u8> {
    let key = SigningKey::from_bytes(&[7; 32]);
    CoseSign1Builder::new()
        .protected(header)
        .unprotected(unprotected)
        .payload(payload)
        .create_signature(&[], |tbs| key.sign(tbs).to_bytes().to_vec())
        .build()
        .to_tagged_vec()
        .expect("encodes")
}

fn good_header() -> Header {
    let made = signed();
    CoseSign1::from_tagged_slice(made.signed().as_bytes())
        .expect("a COSE_Sign1")
        .protected
        .header
}

#[test]
fn a_valid_signature_over_anything_but_the_one_form_is_refused() {
    let payload = cbor::encode(&sub_keys(5, 3));
    let open = |bytes: &[u8]| sign::open::<SubKeys>(bytes, &network("souk"));
    let forged = |change: &dyn Fn(&mut Header)| {
        let mut header = good_header();
        change(&mut header);
        forge(header, Header::default(), payload.clone())
    };
    open(&forged(&|_| ())).expect("unchanged, so that the rest of this test means something");

    let eddsa = forged(&|h| h.alg = Some(Algorithm::Assigned(iana::Algorithm::EdDSA)));
    assert!(matches!(
        open(&eddsa),
        Err(OpenError::Header { field: "algorithm" })
    ));
    let more = forged(&|h| h.rest.push((Label::Int(-70_000), Value::Bool(true))));
    assert!(matches!(
        open(&more),
        Err(OpenError::Header { field: "header" })
    ));
    let domain = forged(&|h| h.rest[1].1 = Value::Text("souk/2/sub-keys".into()));
    let later = open(&domain).expect_err("of a later version");
    assert!(matches!(later, OpenError::LaterVersion { version: 2 }));
    assert!(later.may_be_of_later_version());
    for no_version in [
        "souk/02/sub-keys",
        "souk/0/sub-keys",
        "souk/+2/sub-keys",
        "souk/sub-keys",
    ] {
        let domain = forged(&|h| h.rest[1].1 = Value::Text(no_version.into()));
        let refused = open(&domain).expect_err("no version");
        assert!(matches!(refused, OpenError::Header { field: "domain" }));
        assert!(!refused.may_be_of_later_version());
    }
    let less = forged(&|h| h.rest.truncate(2));
    assert!(matches!(
        open(&less),
        Err(OpenError::Header { field: "network" })
    ));
    let other = forged(&|h| {
        h.key_id = CardKey::from_secret_bytes(&[1; 32])
            .public()
            .as_bytes()
            .to_vec();
    });
    assert!(matches!(open(&other), Err(OpenError::Signature)));
    let nobody = forged(&|h| h.key_id = vec![0; 32]);
    assert!(matches!(open(&nobody), Err(OpenError::Signer(_))));

    let unprotected = Header {
        content_type: Some(ContentType::Text("x/y".into())),
        ..Header::default()
    };
    let bytes = forge(good_header(), unprotected, payload.clone());
    assert!(matches!(
        open(&bytes),
        Err(OpenError::Header { field: "header" })
    ));

    // The payload in a second form: an integer in two bytes.
    let long = [&payload[..1], &[0x18, 0x00], &payload[2..]].concat();
    let bytes = forge(good_header(), Header::default(), long);
    assert!(matches!(
        open(&bytes),
        Err(OpenError::Payload(DecodeError::Canonical(_)))
    ));

    let mut invalid = sub_keys(5, 3);
    invalid.mix_keys.reverse();
    let bytes = forge(good_header(), Header::default(), cbor::encode(&invalid));
    assert!(matches!(open(&bytes), Err(OpenError::Invalid(why)) if why.field == "mix_keys"));

    // The same object without its tag.
    assert!(matches!(
        open(&signed().signed().as_bytes()[1..]),
        Err(OpenError::Form)
    ));
}

proptest! {
    #[test]
    fn no_other_network_or_kind_opens_an_object(name in "[a-z0-9]{1,12}", delay in 1u32..10_000) {
        let params = NetworkParams::new(delay, 10_000, 3_600, false).expect("in bounds");
        let other = NetworkId::new(&name, &params).expect("valid name");
        prop_assume!(other != network("souk"));
        prop_assert!(signed().signed().open(&other).is_err());
        let bytes = signed().signed().as_bytes().to_vec();
        prop_assert!(sign::open::<Retirement>(&bytes, &network("souk")).is_err());
    }

    #[test]
    fn no_flipped_bit_survives(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = signed().signed().as_bytes().to_vec();
        bytes[at.index(477)] ^= 1 << bit;
        prop_assert!(sign::open::<SubKeys>(&bytes, &network("souk")).is_err());
    }

    #[test]
    fn no_truncation_or_extension_survives(keep in 0usize..477, extra in 1usize..9) {
        let bytes = signed().signed().as_bytes().to_vec();
        prop_assert!(sign::open::<SubKeys>(&bytes[..keep], &network("souk")).is_err());
        let longer = [bytes, vec![0; extra]].concat();
        prop_assert!(sign::open::<SubKeys>(&longer, &network("souk")).is_err());
    }

    #[test]
    fn random_bytes_never_panic_and_never_open(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(sign::open::<SubKeys>(&bytes, &network("souk")).is_err());
    }
}
