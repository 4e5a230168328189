//! Requests and replies as they travel, and the bounds of every object on the wire.

mod support;

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{CardPublicKey, NodeId, ReplyKey, SealKey, UnixTime, cbor, sign};
use souk_market::{
    card::{Card, EvidenceRef, MAX_CARD_LEN, VerifiedCard},
    envelope::{Envelope, MAX_NAMED_RELAYS, MAX_SURBS, VerifiedEnvelope},
    refusal::Reason,
    reply::{
        Body, EVIDENCE_PART_LEN, Endpoint, EvidencePart, FinalStatement, LeaseState,
        MAX_CHECKPOINT_LEN, MAX_EVIDENCE_PARTS, MAX_PATH_LEN, Receipt, Refusal, Reply, Status,
    },
    request::{Action, HolderRequest},
    sealed::{
        ReplyError, Request, RequestError, SEALED_REPLY_LEN, open_reply, open_request,
        seal_envelope, seal_holder_request, seal_reply,
    },
    statement::{Outcome, Statement},
    units::{
        Counter, Digest, DurationS, HostKey, LeaseId, Meter, Money, RelayToken, Resources, Salt,
    },
    wire::{Blob, List},
};
use support::{IMAGE, NOW, Node, Requester, full_card, list, network, relay, small, surb};

fn receipt() -> Body {
    Body::Receipt(Receipt {
        lease: LeaseId([1; 16]),
        valid_to: NOW.plus_s(3_600),
        endpoints: list(vec![
            Endpoint::Relay {
                relay: relay(),
                token: RelayToken([5; 32]),
            },
            Endpoint::Direct("192.0.2.1:2222".parse().expect("an address")),
            Endpoint::Direct("[2001:db8::1]:2222".parse().expect("an address")),
        ]),
        host_key: HostKey([3; 32]),
        user: "souk".parse().expect("a name"),
        price: Money(5),
        evidence: List::empty(),
    })
}

/// The largest there is: with all relays, and evidence.
fn receipt_with_evidence() -> Body {
    let Body::Receipt(mut receipt) = receipt() else {
        unreachable!("it is one");
    };
    receipt.evidence = list(vec![EvidenceRef {
        kind: u16::MAX,
        scope: EvidenceRef::INSTANCE,
        algorithm: EvidenceRef::BLAKE3,
        digest: Digest([4; 32]),
        collateral: Some(Digest([5; 32])),
        not_after: UnixTime(u64::MAX),
        policy: Digest([6; 32]),
        epoch: u32::MAX,
    }]);
    Body::Receipt(receipt)
}

/// The evidence is as large as the largest quote.
fn evidence(part: u8) -> Body {
    let quote = vec![7; 16_384];
    let lease = LeaseId([1; 16]);
    Body::Evidence(EvidencePart::of(lease, Digest([4; 32]), &quote, part).expect("a part"))
}

fn statement() -> Statement {
    Statement {
        lease: LeaseId([1; 16]),
        image: IMAGE,
        resources: Resources {
            cpu_millicores: u32::MAX,
            memory_mib: u32::MAX,
            disk_mib: u32::MAX,
            gpus: u8::MAX,
            max_processes: u32::MAX,
        },
        from: UnixTime(u64::MAX),
        to: UnixTime(u64::MAX),
        cpu_core_ms: Meter::AtLeast(u64::MAX),
        memory_mib_s: Meter::Known(u64::MAX),
        net_rx_bytes: Meter::Known(u64::MAX),
        net_tx_bytes: Meter::Unknown,
        outcome: Outcome::RecordLost,
        charge: Money(u64::MAX),
        evidence: Some(Digest([4; 32])),
    }
}

fn largest_statement() -> Body {
    Body::Statement(FinalStatement {
        lease: LeaseId([1; 16]),
        statement: Blob::new(statement().to_bytes()).expect("within its bound"),
        salt: Salt([6; 32]),
        entry: Blob::new(vec![1; 64]).expect("within its bound"),
        index: u64::MAX,
        path: Blob::new(vec![1; MAX_PATH_LEN]).expect("within its bound"),
        checkpoint: Blob::new(vec![1; 400]).expect("within its bound"),
    })
}

fn reply(envelope: &VerifiedEnvelope, body: Body) -> Reply {
    envelope.expected_reply().reply(Counter(0), NOW, body)
}

#[test]
fn parts_of_evidence_are_the_whole_and_there_are_no_others() {
    let quote: Vec<u8> = (0..4_000_u32).map(|n| n as u8).collect();
    let (lease, digest) = (LeaseId([1; 16]), Digest([4; 32]));
    let part = |n| EvidencePart::of(lease, digest, &quote, n);
    let parts: Vec<_> = (0..3).map(|n| part(n).expect("a part")).collect();
    let whole: Vec<u8> = parts.iter().flat_map(|part| part.bytes.to_vec()).collect();
    assert_eq!(whole, quote);
    assert!(parts.iter().all(|part| part.parts == 3));
    assert_eq!(part(3), None);
    let too_long = vec![0; EVIDENCE_PART_LEN * usize::from(MAX_EVIDENCE_PARTS) + 1];
    assert_eq!(EvidencePart::of(lease, digest, &too_long, 0), None);
    let full = EvidencePart::of(lease, digest, &too_long[1..], MAX_EVIDENCE_PARTS - 1);
    assert!(full.is_some(), "the last of as many as may be");

    let (mut provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let wrong: [fn(&mut EvidencePart); 3] = [
        |part| part.part = part.parts,
        |part| part.parts = MAX_EVIDENCE_PARTS + 1,
        |part| part.bytes = Blob::new(vec![1]).expect("small"),
    ];
    for change in wrong {
        let mut part = parts[0].clone();
        change(&mut part);
        let sealed = seal_reply(
            reply(&envelope, Body::Evidence(part)),
            &provider.card,
            &envelope.reply_key,
            &network(),
            &mut provider.rng,
        );
        assert!(sealed.is_err());
    }
}

#[test]
fn every_reply_has_one_size_whatever_it_says() {
    let (mut provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let bodies = [
        receipt(),
        receipt_with_evidence(),
        Body::Refusal(Refusal {
            reason: Reason::NoCapacity,
        }),
        Body::Status(Status {
            lease: LeaseId([1; 16]),
            state: LeaseState::Active,
            valid_to: NOW,
        }),
        largest_statement(),
        evidence(0),
    ];
    for body in bodies {
        let sealed = seal_reply(
            reply(&envelope, body.clone()),
            &provider.card,
            &envelope.reply_key,
            &network(),
            &mut provider.rng,
        )
        .expect("fits");
        assert_eq!(sealed.len(), SEALED_REPLY_LEN);
        let opened = open_reply(
            &sealed,
            &requester.reply,
            &provider.card.public(),
            &envelope.expected_reply(),
            &network(),
        )
        .expect("opens");
        assert_eq!(opened.body, body);
    }
}

#[test]
fn a_reply_that_does_not_fit_is_not_made() {
    let (mut provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let Body::Statement(mut large) = largest_statement() else {
        unreachable!("it is one")
    };
    large.checkpoint = Blob::new(vec![1; MAX_CHECKPOINT_LEN]).expect("within its bound");
    large.entry = Blob::new(vec![1; 128]).expect("within its bound");
    let reply = reply(&envelope, Body::Statement(large));
    let sealed = seal_reply(
        reply,
        &provider.card,
        &envelope.reply_key,
        &network(),
        &mut provider.rng,
    );
    assert!(sealed.is_err());
}

#[test]
fn a_reply_counts_for_whom_and_what_it_was_made_and_from_whom() {
    let (mut provider, requester) = (Node::new(1), Requester::new(1));
    let digest = provider.card(1).digest();
    let envelope = requester.envelope(&provider, digest);
    let mut changed = requester.plain_envelope(&provider, digest);
    changed.grant.duration = DurationS(60);
    let changed = requester.sign(changed);
    let signer = provider.card.public();
    let sealed = seal_reply(
        reply(&envelope, receipt()),
        &provider.card,
        &envelope.reply_key,
        &network(),
        &mut provider.rng,
    )
    .expect("fits");
    let open = |reply_key: &ReplyKey, signer: &CardPublicKey, expected| {
        open_reply(&sealed, reply_key, signer, &expected, &network()).map(drop)
    };
    assert!(open(&requester.reply, &signer, envelope.expected_reply()).is_ok());
    assert!(matches!(
        open(&Requester::new(2).reply, &signer, envelope.expected_reply()),
        Err(ReplyError::Unseal(_))
    ));
    assert!(matches!(
        open(
            &requester.reply,
            &Node::new(2).card.public(),
            envelope.expected_reply()
        ),
        Err(ReplyError::OtherSigner)
    ));
    assert!(matches!(
        open(&requester.reply, &signer, changed.expected_reply()),
        Err(ReplyError::Binding("envelope"))
    ));
}

#[test]
fn requests_open_with_the_current_and_the_previous_seal_key_only() {
    let (mut provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let to = provider.seal.public();
    let frame = seal_envelope(&envelope, &to, &network(), &mut provider.rng).expect("seals");
    let newer = SealKey::generate(&mut provider.rng);
    let keys = [newer.clone(), provider.seal.clone()];
    match open_request(&frame, &keys, &network()).expect("opens") {
        Request::Envelope(opened) => assert_eq!(opened.digest(), envelope.digest()),
        Request::Holder(_) => panic!("an envelope became something else"),
    }
    assert!(matches!(
        open_request(&frame, &[newer], &network()),
        Err(RequestError::Unseal(_))
    ));
    for at in 0..frame.len() {
        let mut bytes = frame.clone();
        bytes[at] ^= 0x10;
        assert!(
            open_request(&bytes, &keys, &network()).is_err(),
            "byte {at} may be changed"
        );
    }
}

#[test]
fn only_the_holder_can_speak_for_a_lease() {
    let (mut provider, requester, thief) = (Node::new(1), Requester::new(1), Requester::new(2));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let request = |counter| HolderRequest {
        holder: requester.holder.public(),
        provider: provider.node.public(),
        request: envelope.grant.request,
        counter: Counter(counter),
        action: Action::End,
        surbs: list(vec![surb(3); MAX_SURBS]),
    };
    let mut seal = |request, key| {
        seal_holder_request(
            request,
            key,
            &provider.seal.public(),
            &network(),
            &mut provider.rng,
        )
    };
    let good = seal(request(1), &requester.holder).expect("seals");
    let forged = seal(request(1), &thief.holder).expect("seals");
    let other_lease = seal(
        HolderRequest {
            holder: thief.holder.public(),
            ..request(1)
        },
        &thief.holder,
    )
    .expect("seals");
    assert!(
        seal(request(0), &requester.holder).is_err(),
        "counter 0 is the envelope's"
    );
    let open = |frame: &[u8]| open_request(frame, std::slice::from_ref(&provider.seal), &network());
    assert!(matches!(open(&good), Ok(Request::Holder(r)) if r.action == Action::End));
    assert!(matches!(open(&forged), Err(RequestError::Holder(_))));
    assert!(matches!(open(&other_lease), Err(RequestError::Holder(_))));
}

#[test]
fn an_envelope_is_its_holders_at_one_provider() {
    let (provider, other) = (Node::new(1), Node::new(2));
    let requester = Requester::new(1);
    let mut moved = requester.plain_envelope(&provider, provider.card(1).digest());
    moved.grant.provider = other.node.public();
    assert!(VerifiedEnvelope::sign(moved, &requester.holder, &network()).is_err());
    let stolen = requester.plain_envelope(&provider, provider.card(1).digest());
    assert!(VerifiedEnvelope::sign(stolen, &Requester::new(2).holder, &network()).is_err());
}

#[test]
fn the_relays_of_a_request_are_a_rising_list_without_its_provider() {
    let (provider, requester) = (Node::new(1), Requester::new(1));
    let mut nodes: Vec<_> = (10..14).map(|n| Node::new(n).node.public()).collect();
    nodes.sort();
    let sign = |relays: &[NodeId]| {
        let mut envelope = requester.plain_envelope(&provider, provider.card(1).digest());
        envelope.relays = list(relays.to_vec());
        VerifiedEnvelope::sign(envelope, &requester.holder, &network())
    };
    assert!(sign(&[]).is_ok());
    let most = sign(&nodes[..MAX_NAMED_RELAYS]).expect("in order");
    let bytes = most.as_bytes();
    let read = VerifiedEnvelope::open(bytes, &network()).expect("it was signed");
    assert_eq!(&*read.relays, &nodes[..MAX_NAMED_RELAYS]);
    assert!(sign(&[nodes[0], nodes[0]]).is_err(), "twice the same");
    assert!(sign(&[nodes[1], nodes[0]]).is_err(), "another order");
    assert!(sign(&[provider.node.public()]).is_err());
    // One too many does not decode, however it was written.
    let mut plain = requester.plain_envelope(&provider, provider.card(1).digest());
    plain.relays = List::empty();
    let mut bytes = cbor::encode(&plain);
    assert_eq!(bytes.pop(), Some(0x80), "the relays come last");
    bytes.push(0x80 + u8::try_from(nodes.len()).expect("few"));
    for node in &nodes {
        bytes.extend(cbor::encode(node));
    }
    assert!(cbor::decode::<Envelope>(&bytes, 9_999).is_err());
}

#[test]
fn a_receipt_that_names_another_relay_is_told() {
    let (provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let Body::Receipt(mut receipt) = receipt() else {
        unreachable!("made above")
    };
    assert_eq!(envelope.unnamed_relay(&receipt), None);
    let other = Node::new(2).node.public();
    let mut endpoints = receipt.endpoints.into_vec();
    endpoints.push(Endpoint::Relay {
        relay: other,
        token: RelayToken([5; 32]),
    });
    receipt.endpoints = list(endpoints);
    assert_eq!(envelope.unnamed_relay(&receipt), Some(other));
}

#[test]
fn the_fullest_card_fits_and_one_image_more_than_fits_is_refused() {
    let node = Node::new(1);
    let fits = |images| VerifiedCard::sign(full_card(&node, images), &node.card, &node.network);
    let largest = (0..=16).rev().find(|n| fits(*n).is_ok()).expect("some fit");
    let len = fits(largest).expect("fits").as_bytes().len();
    assert!(
        largest >= 12,
        "only {largest} images fit beside everything else"
    );
    assert!(len <= MAX_CARD_LEN);
}

/// A map with one more entry, in canonical order: `key` must be above all others.
fn with_entry(map: &[u8], key: u8) -> Vec<u8> {
    let entries = map[0] & 0x1f;
    assert!(map[0] >> 5 == 5 && entries < 23, "a small map");
    let mut out = vec![map[0] + 1];
    out.extend_from_slice(&map[1..]);
    out.extend_from_slice(if key < 24 { &[] } else { &[0x18] });
    out.extend_from_slice(&[key, 0x01]);
    out
}

#[test]
fn an_unknown_critical_key_is_refused_and_an_ignorable_one_is_not() {
    let node = Node::new(1);
    let requester = Requester::new(1);
    let digest = node.card(1).digest();
    let card = cbor::encode(&node.plain_card(1));
    let envelope = cbor::encode(&requester.plain_envelope(&node, digest));
    let statement = statement().to_bytes();
    for key in [100, 127] {
        assert!(cbor::decode::<Card>(&with_entry(&card, key), 9_999).is_err());
        assert!(cbor::decode::<Envelope>(&with_entry(&envelope, key), 9_999).is_err());
        assert!(Statement::from_bytes(&with_entry(&statement, key)).is_err());
    }
    for key in [128, 255] {
        assert_eq!(
            cbor::decode::<Card>(&with_entry(&card, key), 9_999).expect("ignored"),
            node.plain_card(1)
        );
        assert!(Statement::from_bytes(&with_entry(&statement, key)).is_ok());
    }
}

/// The pinned bytes of `name`; written anew where `SOUK_PIN` is set.
fn pinned(name: &str, bytes: &[u8]) {
    let path = format!("{}/../fixtures/wire/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("SOUK_PIN").is_some() {
        std::fs::write(&path, hex::encode(bytes) + "\n").expect("fixtures can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the vector is in fixtures/wire");
    assert_eq!(
        hex::encode(bytes),
        expected.trim(),
        "{name} has changed on the wire"
    );
}

#[test]
fn signed_objects_have_the_pinned_bytes() {
    let (node, requester) = (Node::new(1), Requester::new(1));
    let card = node.card(1);
    let envelope = requester.envelope(&node, card.digest());
    pinned("card", card.as_bytes());
    pinned(
        "capacity",
        &node.capacity(1, NOW, souk_market::capacity::Level::Some),
    );
    pinned("envelope", envelope.as_bytes());
    let end = HolderRequest {
        holder: requester.holder.public(),
        provider: node.node.public(),
        request: envelope.grant.request,
        counter: Counter(1),
        action: Action::End,
        surbs: List::empty(),
    };
    let end = sign::sign(end, &requester.holder, &network()).expect("valid");
    pinned("end", end.signed().as_bytes());
    for (name, body) in [
        ("receipt", receipt()),
        (
            "refusal",
            Body::Refusal(Refusal {
                reason: Reason::NoCapacity,
            }),
        ),
        ("statement", largest_statement()),
    ] {
        let reply = sign::sign(reply(&envelope, body), &node.card, &network()).expect("valid");
        pinned(name, reply.signed().as_bytes());
    }
}

fn meter() -> impl Strategy<Value = Meter> {
    prop_oneof![
        any::<u64>().prop_map(Meter::Known),
        any::<u64>().prop_map(Meter::AtLeast),
        Just(Meter::Unknown),
    ]
}

prop_compose! {
    fn any_statement()(
        lease: [u8; 16],
        from in any::<u64>(),
        length in any::<u32>(),
        meters in [meter(), meter(), meter(), meter()],
        outcome in prop::sample::select(Outcome::ALL),
        evidence: Option<[u8; 32]>,
        charge: u64,
    ) -> Statement {
        let [cpu_core_ms, memory_mib_s, net_rx_bytes, net_tx_bytes] = meters;
        Statement {
            lease: LeaseId(lease),
            image: IMAGE,
            resources: small(),
            from: UnixTime(from),
            to: UnixTime(from).plus_s(u64::from(length)),
            cpu_core_ms,
            memory_mib_s,
            net_rx_bytes,
            net_tx_bytes,
            outcome,
            charge: Money(charge),
            evidence: evidence.map(Digest),
        }
    }
}

proptest! {
    #[test]
    fn a_statement_reads_back_as_it_was_written(statement in any_statement()) {
        prop_assert_eq!(Statement::from_bytes(&statement.to_bytes()).expect("valid"), statement);
    }

    /// Whatever bytes decode, they encode to something that decodes to the same.
    #[test]
    fn decode_encode_decode_is_decode(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let node = Node::new(1);
        let requester = Requester::new(1);
        let digest = node.card(1).digest();
        let envelope = requester.envelope(&node, digest);
        fn check<T>(mut bytes: Vec<u8>, flips: &[(prop::sample::Index, u8)])
        where
            T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()> + PartialEq + std::fmt::Debug,
        {
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            if let Ok(value) = cbor::decode::<T>(&bytes, 16_384) {
                let again: T = cbor::decode(&cbor::encode(&value), 16_384).expect("its own bytes");
                assert_eq!(again, value);
            }
        }
        check::<Card>(cbor::encode(&node.plain_card(1)), &flips);
        check::<Envelope>(
            cbor::encode(&requester.plain_envelope(&node, digest)), &flips,
        );
        check::<Reply>(cbor::encode(&reply(&envelope, receipt())), &flips);
        check::<Reply>(cbor::encode(&reply(&envelope, largest_statement())), &flips);
        check::<Statement>(statement().to_bytes(), &flips);
    }

    #[test]
    fn noise_is_refused_everywhere(bytes in prop::collection::vec(any::<u8>(), 0..4_096)) {
        let node = Node::new(1);
        prop_assert!(VerifiedCard::open(&bytes, &network(), |_| None).is_err());
        prop_assert!(VerifiedEnvelope::open(&bytes, &network()).is_err());
        prop_assert!(HolderRequest::open(&bytes, &network()).is_err());
        prop_assert!(open_request(&bytes, std::slice::from_ref(&node.seal), &network()).is_err());
    }

    #[test]
    fn texts_hold_nothing_that_a_shell_or_an_ssh_config_would_read(text in ".{1,40}") {
        use souk_market::units::{BackendName, ImageName, UserName};
        let plain = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        for accepted in [
            text.parse::<UserName>().ok().map(|t| t.to_string()),
            text.parse::<BackendName>().ok().map(|t| t.to_string()),
            text.parse::<ImageName>().ok().map(|t| t.to_string()),
        ].into_iter().flatten() {
            prop_assert!(plain(&accepted), "{accepted:?}");
        }
    }
}

#[test]
fn sealing_is_different_each_time_although_keys_and_contents_are_the_same() {
    let (provider, requester) = (Node::new(1), Requester::new(1));
    let envelope = requester.envelope(&provider, provider.card(1).digest());
    let seal = |seed| {
        let mut rng = StdRng::seed_from_u64(seed);
        seal_envelope(&envelope, &provider.seal.public(), &network(), &mut rng).expect("seals")
    };
    assert_ne!(seal(1), seal(2));
    assert_eq!(seal(1)[..33], seal(2)[..33]);
}
