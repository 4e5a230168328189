//! A client's folder and what is read back from it, without a network.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{
    CardKey, HolderKey, LogKey, MAX_SKEW_S, MixKey, MixPublicKey, NetworkId, NetworkParams, NodeId,
    NodeKey, ReplyKey, SealKey, SubKeys, UnixTime, Window, keyfile, sign,
};
use souk_market::{
    capacity::Level,
    card::{Card, Policy, Role, VerifiedCard},
    envelope::{Envelope, Grant, Typed, VerifiedEnvelope, accept_by},
    log::{
        Checkpoint, Entry, Hash, HourBucket, LeaseEntry, Opening, OutcomeClass, leaf_hash, origin,
    },
    matching::Candidate,
    refusal::Reason,
    reply::{
        Body, Endpoint, FinalStatement, LeaseState, Notice, NoticeKind, Receipt, Refusal, Reply,
        Status,
    },
    statement::{Outcome, Statement},
    units::{
        Counter, Digest, DurationS, HostKey, ImageHash, LeaseId, Limits, Meter, Money, RelayToken,
        RequestId, Resources, Sequence, SshPublicKey,
    },
    wire::{Blob, List},
};

use super::{
    Client, ClientConfig, Dispute, Lease, RecordError, Stage, StateError, StatementError,
    connect::open_providers,
    lease::{CARD, ENVELOPE, HOLDER_KEY, RELAYS, REPLY_KEY, STATUS, WAY},
    rent::{Step, draw},
    state::{Home, LeaseFolder},
    verify_statement,
};

const NOW: UnixTime = UnixTime(1_800_000_000);
const LEASE: LeaseId = LeaseId([0xab; 16]);

struct Provider {
    network: NetworkId,
    node: NodeKey,
    key: CardKey,
    log: LogKey,
    card: VerifiedCard,
}

fn network() -> (NetworkId, NetworkParams) {
    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    (NetworkId::new("test", &params).expect("a name"), params)
}

impl Provider {
    fn new() -> Self {
        let mut rng = StdRng::seed_from_u64(1);
        let (network, _) = network();
        let (node, key) = (NodeKey::generate(&mut rng), CardKey::generate(&mut rng));
        let log = LogKey::generate(&mut rng);
        let window = Window::new(NOW.minus_s(60), NOW.plus_s(86_400)).expect("not empty");
        let mix_key = MixKey {
            epoch: 0,
            suite: 1,
            key: MixPublicKey::from_bytes(&[1; 32]).expect("32 bytes"),
            window,
        };
        let sub_keys = SubKeys {
            serial: 1,
            window,
            card_key: key.public(),
            log_key: Some(log.public()),
            seal_key: Some(SealKey::generate(&mut rng).public()),
            mix_keys: vec![mix_key],
        };
        let sub_keys = sign::sign(sub_keys, &node, &network).expect("valid");
        let card = Card {
            node: node.public(),
            sequence: Sequence(1),
            from: NOW.minus_s(60),
            to: NOW.plus_s(3_600),
            roles: List::new(vec![Role::Provider]).expect("few"),
            addresses: List::empty(),
            sub_keys: sub_keys.signed().clone(),
            operator: None,
            offers: List::empty(),
            images: List::empty(),
            prices: None,
            policy: Policy::default(),
            evidence: List::empty(),
            succeeds: None,
        };
        let card = VerifiedCard::sign(card, &key, &network).expect("valid");
        Self {
            network,
            node,
            key,
            log,
            card,
        }
    }

    /// Stores a request to this provider in `home`, as renting does.
    fn request(&self, home: &Home, seed: u64) -> LeaseFolder {
        let mut rng = StdRng::seed_from_u64(seed);
        let (holder, reply) = (HolderKey::generate(&mut rng), ReplyKey::generate(&mut rng));
        let request = RequestId::of(&self.network, &self.node.public(), &holder.public());
        let image = ImageHash([7; 32]);
        let envelope = Envelope {
            holder: holder.public(),
            grant: Grant {
                request,
                provider: self.node.public(),
                image,
                resources: Resources::ZERO,
                required: Limits::default(),
                duration: DurationS(60),
                accept_by: accept_by(NOW, 600),
                max_total: Money(0),
                offer: self.card.digest(),
                authorization: Typed::anonymous(),
                refund: None,
                work: None,
                tee: None,
            },
            reply_key: reply.public(),
            ssh_key: SshPublicKey([9; 32]),
            image,
            surbs: List::empty(),
            relays: List::new(vec![relay()]).expect("one"),
        };
        let envelope = VerifiedEnvelope::sign(envelope, &holder, &self.network).expect("valid");
        home.create_lease(request, |folder| -> Result<(), StateError> {
            keyfile::create(&folder.file(HOLDER_KEY), &holder)?;
            keyfile::create(&folder.file(REPLY_KEY), &reply)?;
            folder.write(CARD, self.card.as_bytes())?;
            folder.write(ENVELOPE, envelope.as_bytes())?;
            folder.write(WAY, b"relay")
        })
        .expect("the folder can be written")
    }

    fn answer(&self, lease: &Lease, body: Body) -> souk_crypto::Verified<Reply> {
        self.answer_to(Counter(0), lease, body)
    }

    fn answer_to(
        &self,
        counter: Counter,
        lease: &Lease,
        body: Body,
    ) -> souk_crypto::Verified<Reply> {
        let expected = lease.envelope().expected_reply();
        let reply = expected.reply(counter, NOW, body);
        sign::sign(reply, &self.key, &self.network).expect("valid")
    }

    /// The final statement of the only lease in the log.
    fn statement(&self) -> FinalStatement {
        self.statement_with(|_| ())
    }

    fn statement_with(&self, change: impl FnOnce(&mut Statement)) -> FinalStatement {
        let mut statement = Statement {
            lease: LEASE,
            image: ImageHash([7; 32]),
            resources: Resources::ZERO,
            from: NOW,
            to: NOW.plus_s(60),
            cpu_core_ms: Meter::Known(1),
            memory_mib_s: Meter::Unknown,
            net_rx_bytes: Meter::Known(2),
            net_tx_bytes: Meter::Known(3),
            outcome: Outcome::EndedByHolder,
            charge: Money(0),
            evidence: None,
        };
        change(&mut statement);
        let opening = Opening::draw(statement.to_bytes(), &mut StdRng::seed_from_u64(2));
        let entry = Entry::Lease(LeaseEntry {
            commitment: opening.commitment(&self.network),
            outcome: OutcomeClass::of(statement.outcome),
            hour: HourBucket::of(statement.to),
        })
        .encode();
        let origin = origin(&self.network, self.node.public()).expect("a name");
        let checkpoint = Checkpoint::new(origin, 1, leaf_hash(&entry)).sign(&self.log);
        FinalStatement {
            lease: LEASE,
            statement: Blob::new(opening.statement).expect("small"),
            salt: opening.salt,
            entry: Blob::new(entry).expect("small"),
            index: 0,
            path: Blob::default(),
            checkpoint: Blob::new(checkpoint.to_string().into_bytes()).expect("small"),
        }
    }

    fn verify(&self, claimed: &FinalStatement) -> Result<super::ProvenStatement, StatementError> {
        let log_key = self.log.public();
        verify_statement(
            &self.network,
            &self.node.public(),
            Some(&log_key),
            LEASE,
            claimed,
        )
    }
}

/// The relay that every request here names.
fn relay() -> NodeId {
    NodeKey::generate(&mut StdRng::seed_from_u64(3)).public()
}

fn receipt(relay: NodeId) -> Body {
    Body::Receipt(Receipt {
        lease: LEASE,
        valid_to: NOW.plus_s(60),
        endpoints: List::new(vec![Endpoint::Relay {
            relay,
            token: RelayToken([5; 32]),
        }])
        .expect("few"),
        host_key: HostKey([3; 32]),
        user: "souk".parse().expect("a name"),
        price: Money(0),
        evidence: List::empty(),
    })
}

fn status(state: LeaseState, valid_to: UnixTime) -> Body {
    Body::Status(Status {
        lease: LEASE,
        state,
        valid_to,
    })
}

fn client(home: &Path) -> Client {
    let (network, params) = network();
    let config = ClientConfig::new(network, params, Vec::new(), "/usr/bin/souk".into());
    Client::open(home, config).expect("a fresh folder")
}

#[test]
fn a_lease_moves_on_with_the_answers_that_are_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    assert_eq!(load().stage(NOW), Stage::Requested);
    assert_eq!(load().stage(NOW.plus_s(3_600)), Stage::Lapsed);

    let mut lease = load();
    let relay = relay();
    lease
        .record(&provider.answer(&lease, receipt(relay)))
        .expect("stored");
    assert_eq!(load().stage(NOW), Stage::Active);
    assert_eq!(load().stage(NOW.plus_s(60)), Stage::Ended);
    assert_eq!(load().ssh_alias().as_deref(), Some("souk-abababab"));
    assert_eq!(
        client.find("souk-abab").expect("by alias").name(),
        lease.name()
    );
    assert_eq!(
        client.find(&lease.name()[..5]).expect("by name").id(),
        Some(LEASE)
    );
    assert!(matches!(
        client.find("ffff"),
        Err(StateError::Name { found: 0, .. })
    ));
    assert!(matches!(client.find(""), Err(StateError::Name { .. })));

    // A refusal of a later request does not undo the lease.
    let refusal = Body::Refusal(Refusal {
        reason: Reason::StaleCounter,
    });
    lease
        .record(&provider.answer(&lease, refusal))
        .expect("nothing to store");
    assert_eq!(load().stage(NOW), Stage::Active);

    let statement = Body::Statement(provider.statement());
    lease
        .record(&provider.answer(&lease, statement))
        .expect("proven");
    assert_eq!(load().stage(NOW), Stage::Closed);
    assert_eq!(load().statement().expect("proven").log_size, 1);
}

#[test]
fn a_request_without_an_answer_lapses_only_once_nothing_of_it_can_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let mut lease = client.leases().expect("listed").remove(0).expect("loads");
    let too_late = lease.envelope().grant.accept_by.plus_s(MAX_SKEW_S);
    let over = too_late.plus_s(60);
    let stages = |lease: &Lease| {
        [too_late.minus_s(1), too_late, over.minus_s(1), over].map(|now| lease.stage(now))
    };
    assert_eq!(
        stages(&lease),
        [
            Stage::Requested,
            Stage::Unanswered,
            Stage::Unanswered,
            Stage::Lapsed
        ]
    );
    assert_eq!(lease.may_run_until(), over);
    assert!(lease.may_be_sent(too_late.minus_s(1)) && !lease.may_be_sent(too_late));

    // Who says where it stands has accepted it, and says until when.
    let valid_to = too_late.plus_s(30);
    lease
        .record(&provider.answer(&lease, status(LeaseState::Active, valid_to)))
        .expect("stored");
    assert_eq!(
        stages(&lease),
        [
            Stage::Requested,
            Stage::Requested,
            Stage::Ended,
            Stage::Ended
        ]
    );
    assert_eq!(lease.may_run_until(), valid_to);
    assert!(!lease.may_be_sent(too_late));
}

#[test]
fn what_a_provider_says_of_an_end_is_kept_and_no_older_word_undoes_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    let take = |counter: u64, body: Body| {
        let mut lease = load();
        lease
            .record(&provider.answer_to(Counter(counter), &lease, body))
            .expect("stored");
        assert_eq!(lease.stage(NOW), load().stage(NOW));
        load().stage(NOW)
    };
    let say = |counter, state| take(counter, status(state, NOW.plus_s(60)));
    assert_eq!(say(0, LeaseState::Provisioning), Stage::Requested);
    assert_eq!(take(0, receipt(relay())), Stage::Active);
    assert_eq!(say(1, LeaseState::Active), Stage::Active);
    assert_eq!(say(3, LeaseState::Draining), Stage::Draining);
    assert_eq!(load().stage(NOW.plus_s(60)), Stage::Ended);
    assert_eq!(say(2, LeaseState::Active), Stage::Draining);
    assert_eq!(say(3, LeaseState::Closed), Stage::Ended);
    assert_eq!(say(3, LeaseState::Draining), Stage::Ended);

    // It says nothing of another lease.
    let said = load().folder.read(STATUS).expect("readable");
    let other = provider.request(&client.home, 2);
    other.write(STATUS, &said.expect("kept")).expect("written");
    let error = client.find(&other.name()).expect_err("it is not its own");
    assert!(matches!(error, StateError::Damaged { path, .. } if path.ends_with(STATUS)));
}

#[test]
fn an_agreement_to_a_statement_is_owed_until_it_is_known_to_have_arrived() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    let owed = || load().unacknowledged().expect("readable");
    assert_eq!(owed(), None);
    let claimed = provider.statement();
    let digest = Digest(*blake3::hash(&claimed.statement).as_bytes());
    let mut lease = load();
    lease
        .record(&provider.answer(&lease, Body::Statement(claimed)))
        .expect("proven");
    assert_eq!(owed(), Some(digest));
    lease
        .keep_acknowledged(Digest([0; 32]))
        .expect("of another statement");
    assert_eq!(owed(), Some(digest));
    lease.keep_acknowledged(digest).expect("written");
    assert_eq!(owed(), None);
}

#[test]
fn what_a_provider_says_of_leaving_is_kept_until_it_says_it_no_more() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    let say = |after_s: u64, notice: Option<Notice>| {
        let mut lease = load();
        let mut reply = (*provider.answer(&lease, receipt(relay()))).clone();
        (reply.at, reply.notice) = (NOW.plus_s(after_s), notice);
        let reply = sign::sign(reply, &provider.key, &provider.network).expect("valid");
        lease.record(&reply).expect("stored");
        assert_eq!(lease.notice(), load().notice());
        load().notice()
    };
    let drains = Some(Notice {
        kind: NoticeKind::Drains,
        ends_by: Some(NOW.plus_s(60)),
    });
    assert_eq!(say(0, None), None);
    assert_eq!(say(2, drains), drains);
    assert_eq!(say(1, None), drains, "an answer from before");
    assert_eq!(say(3, None), None);
}

#[test]
fn only_a_refusal_of_the_envelope_itself_refuses_the_lease() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    let refuse = |reason| {
        let mut lease = load();
        let answer = provider.answer(&lease, Body::Refusal(Refusal { reason }));
        lease.record(&answer).expect("taken");
        (lease.stage(NOW), load().stage(NOW))
    };
    assert_eq!(
        refuse(Reason::StaleCounter),
        (Stage::Requested, Stage::Requested)
    );
    let refused = Stage::Refused(Reason::NoCapacity);
    assert_eq!(refuse(Reason::NoCapacity), (refused, refused));
}

#[test]
fn a_receipt_with_a_relay_that_was_not_drawn_is_kept_as_evidence_and_not_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let load = || client.leases().expect("listed").remove(0).expect("loads");
    let mut lease = load();
    let other = NodeKey::generate(&mut StdRng::seed_from_u64(4)).public();
    let answer = provider.answer(&lease, receipt(other));
    assert!(matches!(
        lease.record(&answer),
        Err(RecordError::Disputed(Dispute::OtherRelay(relay))) if relay == other
    ));
    assert_eq!((lease.id(), load().id()), (None, None));
    assert_eq!(load().stage(NOW), Stage::Requested);
    let kept = lease.folder.read("disputed").expect("readable");
    assert_eq!(kept.as_deref(), Some(answer.signed().as_bytes()));
    // Nor is it believed where somebody put it among the answers.
    lease
        .folder
        .write("receipt", answer.signed().as_bytes())
        .expect("written");
    let error = client.leases().expect("listed").remove(0);
    assert!(matches!(error, Err(StateError::Damaged { .. })));
    fs::remove_file(lease.folder.file("receipt")).expect("it was written");
    // The provider may still give a receipt that keeps to the request.
    let answer = provider.answer(&lease, receipt(relay()));
    lease.record(&answer).expect("stored");
    assert_eq!(load().stage(NOW), Stage::Active);
}

#[test]
fn an_envelope_that_may_not_have_arrived_is_sent_again_while_it_is_in_time() {
    let silence = |start: Step, in_time: bool| {
        let mut step = start;
        std::iter::from_fn(move || {
            step = step.after(None, in_time);
            Some(step)
        })
        .take(4)
        .collect::<Vec<_>>()
    };
    let by_turns = [Step::Poll, Step::Envelope, Step::Poll, Step::Envelope];
    assert_eq!(silence(Step::Envelope, true), by_turns);
    assert_eq!(silence(Step::Envelope, false), [Step::Poll; 4]);
    // Who answers anything has the envelope.
    for step in [Step::Envelope, Step::Poll] {
        assert_eq!(step.after(Some(&receipt(relay())), true), Step::Poll);
    }
}

#[test]
fn a_statement_that_is_not_proven_is_not_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let mut lease = client.leases().expect("listed").remove(0).expect("loads");
    let mut claimed = provider.statement();
    claimed.salt.0[0] ^= 1;
    let answer = provider.answer(&lease, Body::Statement(claimed));
    assert!(lease.record(&answer).is_err());
    assert!(
        client
            .find(&lease.name())
            .expect("there")
            .statement()
            .is_none()
    );
}

#[test]
fn a_statement_beyond_what_was_agreed_is_kept_as_evidence_and_not_agreed_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    let mut lease = client.leases().expect("listed").remove(0).expect("loads");
    let changes: [fn(&mut Statement); 4] = [
        |s| s.charge = Money(1),
        |s| s.image = ImageHash([8; 32]),
        |s| s.resources.memory_mib = 1,
        |s| (s.outcome, s.charge) = (Outcome::RecordLost, Money(1)),
    ];
    for change in changes {
        let claimed = provider.statement_with(change);
        provider.verify(&claimed).expect("it is in the log");
        let answer = provider.answer(&lease, Body::Statement(claimed));
        assert!(matches!(
            lease.record(&answer),
            Err(RecordError::Disputed(Dispute::Statement(
                StatementError::Beyond(_)
            )))
        ));
        assert!(lease.statement().is_none());
        let kept = lease.folder.read("disputed").expect("readable");
        assert_eq!(kept.as_deref(), Some(answer.signed().as_bytes()));
    }
    let lost = provider.statement_with(|s| {
        (s.outcome, s.image) = (Outcome::RecordLost, ImageHash([0; 32]));
    });
    let answer = provider.answer(&lease, Body::Statement(lost));
    lease.record(&answer).expect("a lost record costs nothing");
}

#[test]
fn a_statement_holds_only_with_each_link_of_its_chain() {
    let provider = Provider::new();
    let broken = |change: &dyn Fn(&mut FinalStatement)| {
        let mut claimed = provider.statement();
        change(&mut claimed);
        provider.verify(&claimed).expect_err("a broken link")
    };
    let proven = provider.verify(&provider.statement()).expect("holds");
    assert_eq!((proven.index, proven.log_size, proven.path_len), (0, 1, 0));
    assert!(matches!(
        broken(&|c| c.salt.0[0] ^= 1),
        StatementError::Differs("the commitment")
    ));
    assert!(matches!(
        broken(&|c| c.lease.0[0] ^= 1),
        StatementError::OtherLease
    ));
    assert!(matches!(
        broken(&|c| c.index = 1),
        StatementError::NotIncluded(_)
    ));
    assert!(matches!(
        broken(&|c| c.path = Blob::new(vec![0; 31]).expect("small")),
        StatementError::Path
    ));
    assert!(matches!(
        broken(&|c| c.path = Blob::new(vec![0; 32]).expect("small")),
        StatementError::NotIncluded(_)
    ));
    let forged = |c: &mut FinalStatement| {
        let origin = origin(&provider.network, provider.node.public()).expect("a name");
        let thief = LogKey::generate(&mut StdRng::seed_from_u64(9));
        let note = Checkpoint::new(origin, 1, leaf_hash(&c.entry)).sign(&thief);
        c.checkpoint = Blob::new(note.to_string().into_bytes()).expect("small");
    };
    assert!(matches!(broken(&forged), StatementError::Checkpoint(_)));
    let other_root = |c: &mut FinalStatement| {
        let origin = origin(&provider.network, provider.node.public()).expect("a name");
        let note = Checkpoint::new(origin, 1, Hash([0; 32])).sign(&provider.log);
        c.checkpoint = Blob::new(note.to_string().into_bytes()).expect("small");
    };
    assert!(matches!(
        broken(&other_root),
        StatementError::NotIncluded(_)
    ));
}

#[test]
fn counters_rise_over_restarts_and_are_never_used_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    provider.request(&client.home, 1);
    for expected in 1..5 {
        let lease = client.leases().expect("listed").remove(0).expect("loads");
        assert_eq!(lease.next_counter().expect("stored"), Counter(expected));
    }
}

#[test]
fn a_lease_is_there_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::open(&folder.path().join("home")).expect("a fresh folder");
    let request = RequestId([0x11; 32]);
    let failed = home.create_lease(request, |lease| {
        lease.write(CARD, b"half")?;
        Err(StateError::Name {
            name: "the disk is full".to_owned(),
            found: 0,
        })
    });
    assert!(failed.is_err());
    assert!(home.leases().expect("listed").is_empty());
    // The same request can be stored afterwards, also where a crash left a half one behind.
    fs::create_dir(home.path().join("leases/.1111111111111111")).expect("what a crash left");
    home.create_lease(request, |lease| lease.write(CARD, b"whole"))
        .expect("stored");
    assert_eq!(home.leases().expect("listed").len(), 1);
}

#[test]
fn a_lease_is_worked_on_by_one_process_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let home = Home::open(&folder.path().join("home")).expect("a fresh folder");
    let lease = Provider::new().request(&home, 1);
    let held = lease.lock().expect("free");
    assert!(matches!(lease.lock(), Err(StateError::Busy { .. })));
    drop(held);
    assert!(lease.lock().is_ok());
}

#[test]
fn nobody_else_can_read_what_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("home");
    let home = Home::open(&path).expect("a fresh folder");
    let lease = Provider::new().request(&home, 1);
    for entry in fs::read_dir(lease.path()).expect("listed") {
        let meta = entry.expect("listed").metadata().expect("there");
        assert_eq!(meta.permissions().mode() & 0o077, 0);
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).expect("ours");
    assert!(matches!(
        Home::open(&path),
        Err(StateError::Mode { mode: 0o750, .. })
    ));
}

#[test]
fn folders_that_an_ssh_config_cannot_hold_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for bad in ["a b", "a\"b", "a%h", "a\nb", "ä"] {
        let opened = Home::open(&folder.path().join(bad));
        assert!(matches!(opened, Err(StateError::Path { .. })), "{bad:?}");
    }
}

#[test]
fn a_relay_is_neither_the_entry_nor_the_provider() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    let stored = provider.request(&client.home, 1);
    let relay = relay();
    let mut lease = client.leases().expect("listed").remove(0).expect("loads");
    lease
        .record(&provider.answer(&lease, receipt(relay)))
        .expect("stored");
    let line = format!("/ip4/127.0.0.1/tcp/1/p2p/{relay}\n");
    stored.write(RELAYS, line.as_bytes()).expect("written");
    assert_eq!(lease.ways(&[], true).expect("reads").len(), 1);
    assert!(lease.ways(&[relay], true).expect("reads").is_empty());
    let entries = [provider.node.public(), relay];
    assert_eq!(lease.ways(&entries, true).expect("reads").len(), 1);
    // A relay that the receipt does not name has no token, so it is no way.
    let line = format!("/ip4/127.0.0.1/tcp/1/p2p/{}\n", provider.node.public());
    stored.write(RELAYS, line.as_bytes()).expect("written");
    assert!(lease.ways(&[], true).expect("reads").is_empty());
}

#[test]
fn a_damaged_lease_fails_alone_and_says_which_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    let broken = provider.request(&client.home, 1);
    provider.request(&client.home, 2);
    broken.write(ENVELOPE, b"noise").expect("written");
    let leases = client.leases().expect("listed");
    assert_eq!(leases.iter().filter(|lease| lease.is_ok()).count(), 1);
    let error = leases
        .into_iter()
        .find_map(Result::err)
        .expect("one is broken");
    assert!(matches!(error, StateError::Damaged { path, .. } if path.ends_with(ENVELOPE)));
}

#[test]
fn of_the_cheapest_those_are_drawn_first_that_have_said_how_much_room_they_have() {
    let card = Arc::new(Provider::new().card);
    let candidate = |price, level| Candidate {
        card: Arc::clone(&card),
        offer: 0,
        class: 0,
        level,
        price: Money(price),
        work_bits: 0,
    };
    for _ in 0..100 {
        let mut found = vec![
            candidate(1, Some(Level::Some)),
            candidate(1, Some(Level::Plenty)),
            candidate(1, None),
            candidate(2, Some(Level::Plenty)),
        ];
        let drawn: Vec<_> = std::iter::from_fn(|| draw(&mut found))
            .map(|drawn| (drawn.price.0, drawn.level.is_some()))
            .collect();
        assert_eq!(drawn, [(1, true), (1, true), (1, false), (2, true)]);
    }
}

#[test]
fn the_provider_of_a_lease_that_is_not_over_is_none_to_enter_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let (client, provider) = (client(&folder.path().join("home")), Provider::new());
    let open = || open_providers(&client, NOW.plus_s(86_400)).expect("listed");
    assert!(open().is_empty());
    provider.request(&client.home, 1);
    let own = BTreeSet::from([provider.node.public()]);
    assert_eq!(open(), own, "it may still have to be asked");
    let take = |body| {
        let mut lease = client.leases().expect("listed").remove(0).expect("loads");
        let answer = provider.answer(&lease, body);
        lease.record(&answer).expect("stored");
    };
    take(receipt(relay()));
    assert_eq!(open(), own, "its account has not come");
    take(Body::Statement(provider.statement()));
    assert!(open().is_empty());

    // A damaged lease bars nobody, and hides no other.
    provider.request(&client.home, 2);
    let damaged = provider.request(&client.home, 3);
    damaged.write(ENVELOPE, b"nothing").expect("written");
    assert_eq!(open(), own);
}
