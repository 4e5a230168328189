//! Providers that change their minds about their logs.

use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{LogKey, NetworkParams, SubKeys, Verified, sign};
use souk_market::{
    log::{
        AuditError, BundleSource, Checkpoint, Entry, Frontier, HourBucket, LeaseEntry,
        OutcomeClass, TilePath, encode_bundle, leaf_hash, origin,
    },
    units::Digest,
};

use super::*;
use crate::client::{
    ClientConfig,
    audit::{Recomputed, recompute},
};

use crate::market_support as support;
use support::network;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Vec<Vec<u8>>);

impl Log {
    /// A log with one entry for each number.
    fn of(numbers: impl IntoIterator<Item = u16>) -> Self {
        let entry = |n| {
            Entry::Lease(LeaseEntry {
                commitment: Digest(blake3::hash(&u16::to_be_bytes(n)).into()),
                outcome: OutcomeClass::Completed,
                hour: HourBucket(1),
            })
            .encode()
        };
        Self(numbers.into_iter().map(entry).collect())
    }

    fn checkpoint(&self, node: NodeId) -> Checkpoint {
        let mut frontier = Frontier::new();
        for entry in &self.0 {
            frontier.append(leaf_hash(entry), |_, _, _| ());
        }
        let origin = origin(network(), node).expect("a name");
        Checkpoint::new(origin, frontier.size(), frontier.root())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no such bundle")]
struct Missing;

impl BundleSource for Log {
    type Error = Missing;
    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, Missing> {
        let start = usize::try_from(path.index()).expect("small") * 256;
        let entries = self.0.get(start..start + usize::from(path.width()));
        let entries = entries.ok_or(Missing)?.iter().map(Vec::as_slice);
        encode_bundle(entries).map_err(|_| Missing)
    }
}

/// A provider with a log key that it may change.
struct Provider {
    node: support::Node,
    list: Verified<SubKeys>,
    key: LogKey,
}

impl Provider {
    fn new() -> Self {
        let node = support::Node::new(1);
        let list = node.sub_keys.open(&network()).expect("a list");
        let key = node.log.clone();
        Self { node, list, key }
    }

    fn id(&self) -> NodeId {
        self.node.node.public()
    }

    fn change_log_key(&mut self) {
        self.key = LogKey::generate(&mut StdRng::seed_from_u64(99));
        let mut keys = (*self.list).clone();
        keys.serial += 1;
        keys.log_key = Some(self.key.public());
        self.list = sign::sign(keys, &self.node.node, &network()).expect("valid");
    }

    fn claim(&self, log: &Log) -> LogClaim {
        let note = log.checkpoint(self.id()).sign(&self.key).to_string();
        LogClaim::of_checkpoint(self.list.clone(), &network(), &note).expect("a claim")
    }
}

fn fresh() -> (tempfile::TempDir, Client, Provider) {
    let folder = tempfile::tempdir().expect("a folder");
    let client = client(&folder.path().join("home"));
    (folder, client, Provider::new())
}

fn client(home: &Path) -> Client {
    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    let config = ClientConfig::new(network(), params, Vec::new(), "/usr/bin/souk".into());
    Client::open(home, config).expect("a fresh folder")
}

fn known(client: &Client, provider: &Provider) -> KnownLog {
    let known = client.home.known_log(&network(), provider.id());
    known.expect("readable")
}

fn hear(client: &Client, claim: &LogClaim) -> Result<(), ClaimFailure> {
    client.home.hear(&network(), claim)
}

/// Holds a log to what is known, as `souk log verify` does once it has the files.
fn verify(client: &Client, provider: &Provider, log: &Log) -> Result<(), Recomputed<Missing>> {
    let claim = provider.claim(log);
    let checkpoint = log.checkpoint(provider.id());
    let known = known(client, provider);
    recompute(log, &checkpoint, &claim, &known)?;
    client.home.verified(&claim, &known).expect("kept");
    Ok(())
}

#[test]
fn a_log_that_grows_honestly_is_believed_and_remembered() {
    let (_folder, client, provider) = fresh();
    verify(&client, &provider, &Log::of(0..3)).expect("nothing was known");
    let heard = provider.claim(&Log::of(0..4));
    hear(&client, &heard).expect("it extends");
    hear(&client, &heard).expect("once more");
    assert_eq!(known(&client, &provider).heard.len(), 1);
    verify(&client, &provider, &Log::of(0..7)).expect("it leads to all of it");
    let known = known(&client, &provider);
    assert_eq!(known.verified.expect("kept").size(), 7);
    assert!(known.heard.is_empty());
    assert!(client.evidence(provider.id()).expect("readable").is_empty());
}

#[test]
fn a_provider_that_changes_its_log_key_is_refused_each_time() {
    let (_folder, client, mut provider) = fresh();
    verify(&client, &provider, &Log::of(0..3)).expect("nothing was known");
    provider.change_log_key();
    let claim = provider.claim(&Log::of(0..5));
    for _ in 0..2 {
        let error = hear(&client, &claim).expect_err("another key");
        let ClaimFailure::OtherKey(keys) = &error else {
            panic!("{error}");
        };
        assert_eq!(keys.known_size, 3);
        let said = error.to_string();
        assert!(said.contains(&provider.key.public().to_string()), "{said}");
        assert!(said.contains("rent elsewhere"), "{said}");
    }
}

#[test]
fn a_key_that_was_refused_does_not_become_the_known_one() {
    let (_folder, client, mut provider) = fresh();
    let old = Provider::new();
    verify(&client, &old, &Log::of(0..3)).expect("nothing was known");
    provider.change_log_key();
    let other = provider.claim(&Log::of(0..4));
    assert!(matches!(
        hear(&client, &other),
        Err(ClaimFailure::OtherKey(_))
    ));
    hear(&client, &old.claim(&Log::of(0..5))).expect("the key that is known");
    assert!(matches!(
        hear(&client, &other),
        Err(ClaimFailure::OtherKey(_))
    ));
}

#[test]
fn what_is_heard_while_a_log_is_recomputed_is_not_forgotten_with_it() {
    let (_folder, client, provider) = fresh();
    let before = known(&client, &provider);
    let log = Log::of(0..5);
    let meanwhile = provider.claim(&Log::of(0..3));
    hear(&client, &meanwhile).expect("another process");
    let verified = provider.claim(&log);
    client.home.verified(&verified, &before).expect("kept");
    assert_eq!(known(&client, &provider).heard, [meanwhile]);
}

#[test]
fn two_logs_of_one_size_are_evidence_also_under_two_keys() {
    let (_folder, client, mut provider) = fresh();
    let (one, other) = (Log::of([1, 2, 3]), Log::of([1, 2, 4]));
    verify(&client, &provider, &one).expect("nothing was known");
    let forked = hear(&client, &provider.claim(&other));
    assert!(matches!(forked, Err(ClaimFailure::Contradiction(_))));
    provider.change_log_key();
    let forked = hear(&client, &provider.claim(&other));
    let Err(ClaimFailure::Contradiction(kept)) = forked else {
        panic!("not told: {forked:?}");
    };
    assert!(matches!(kept.how, Contradicts::Fork { size: 3, .. }));
    let evidence = client.evidence(provider.id()).expect("readable");
    assert!(evidence.contains(&*kept));
    // Anybody can check the file.
    let bytes = fs::read(&kept.file).expect("kept");
    let proof = Contradiction::open(&bytes, &network()).expect("it proves itself");
    assert_eq!(proof.node(), provider.id());
    let stranger = support::Node::new(2).node.public();
    assert!(client.evidence(stranger).expect("readable").is_empty());
}

#[test]
fn a_larger_log_that_was_rewritten_is_evidence_with_a_proof() {
    for (before, after) in [(3, 5), (4, 7), (1, 600), (300, 600)] {
        let (_folder, client, provider) = fresh();
        verify(&client, &provider, &Log::of(0..before)).expect("nothing was known");
        let rewritten = Log::of([9_999].into_iter().chain(1..after));
        let Err(Recomputed::Fork(proof)) = verify(&client, &provider, &rewritten) else {
            panic!("{before} of {after}: not told");
        };
        let kept = client.home.keep(&network(), &proof).expect("kept");
        assert_eq!(client.evidence(provider.id()).expect("readable"), [kept]);
        let verified = known(&client, &provider).verified.expect("as before");
        assert_eq!(
            verified.size(),
            u64::from(before),
            "what was believed stays"
        );
    }
}

#[test]
fn the_checkpoint_of_a_final_statement_is_held_against_the_next_whole_log() {
    let (_folder, client, provider) = fresh();
    // The holder was shown a log of its own.
    let private = provider.claim(&Log::of([1, 9]));
    hear(&client, &private).expect("nothing was known");
    let public = Log::of([1, 2, 3, 4]);
    assert!(matches!(
        verify(&client, &provider, &public),
        Err(Recomputed::Fork(_))
    ));
}

#[test]
fn a_log_that_got_shorter_is_told() {
    let (_folder, client, provider) = fresh();
    verify(&client, &provider, &Log::of(0..5)).expect("nothing was known");
    let Err(Recomputed::Audit(error)) = verify(&client, &provider, &Log::of(0..4)) else {
        panic!("not told");
    };
    assert!(matches!(
        *error,
        AuditError::Rollback { known: 5, shown: 4 }
    ));
}

#[test]
fn what_is_known_and_damaged_is_not_taken_for_nothing() {
    let (_folder, client, provider) = fresh();
    verify(&client, &provider, &Log::of(0..3)).expect("nothing was known");
    let folder = client.home.path().join(LOGS).join(folder_of(provider.id()));
    fs::write(folder.join(VERIFIED), b"noise").expect("written");
    let heard = hear(&client, &provider.claim(&Log::of(0..3)));
    assert!(matches!(
        heard,
        Err(ClaimFailure::State(StateError::Damaged { .. }))
    ));
}

#[test]
fn what_is_heard_is_bounded() {
    let (_folder, client, provider) = fresh();
    for size in 1..70 {
        let claim = provider.claim(&Log::of(0..size));
        hear(&client, &claim).expect("honest");
    }
    assert_eq!(known(&client, &provider).heard.len(), MAX_HEARD);
}
