//! The usage log against the vectors of RFC 6962 and of signed notes, and against `tlog_tiles` as an oracle.

use std::{collections::BTreeMap, convert::Infallible};

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};
use souk_crypto::{LogKey, LogPublicKey, NetworkId, NetworkParams, UnixTime};
use souk_market::{
    log::{
        AuditError, BundleSource, Checkpoint, CheckpointError, ConsistencyProof, Entry, Extension,
        Frontier, Hash, HourBucket, KeyName, LeaseEntry, NodeSource, NoteError, NoteVerifier,
        Opening, OutcomeClass, ProofError, RefusalEntry, SignedNote, TILE_WIDTH, TilePath,
        TileSource, TiledNodes, audit, bundle_entries, bundles_between, checkpoint_extends,
        encode_bundle, leaf_hash, origin, prove_consistency, prove_inclusion, root_of,
        tiles_between, verify_consistency, verify_inclusion,
    },
    units::Digest,
};

/// A log in memory, kept as it lies on disk: tiles and bundles by path, every partial form included.
#[derive(Default)]
struct Stored {
    entries: Vec<Vec<u8>>,
    nodes: BTreeMap<(u8, u64), Hash>,
    frontier: Frontier,
    files: BTreeMap<String, Vec<u8>>,
}

impl Stored {
    fn of(entries: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut stored = Self::default();
        for entry in entries {
            stored.append(entry);
        }
        stored.publish(0);
        stored
    }

    fn append(&mut self, entry: Vec<u8>) {
        let nodes = &mut self.nodes;
        self.frontier
            .append(leaf_hash(&entry), |level, index, hash| {
                nodes.insert((level, index), hash);
            });
        self.entries.push(entry);
    }

    fn publish(&mut self, old_size: u64) {
        let size = self.frontier.size();
        for path in tiles_between(old_size, size) {
            let level = path.level().expect("a tile");
            let first = path.index() * TILE_WIDTH;
            let bytes = (first..first + u64::from(path.width()))
                .flat_map(|index| self.nodes[&(level * 8, index)].0)
                .collect();
            self.files.insert(path.to_string(), bytes);
        }
        for path in bundles_between(old_size, size) {
            let first = (path.index() * TILE_WIDTH) as usize;
            let entries = &self.entries[first..first + usize::from(path.width())];
            let bundle = encode_bundle(entries.iter().map(Vec::as_slice)).expect("small entries");
            self.files.insert(path.to_string(), bundle);
        }
    }

    fn checkpoint(&self, name: &KeyName) -> Checkpoint {
        Checkpoint::new(name.clone(), self.frontier.size(), self.frontier.root())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no such file")]
struct Missing;

impl TileSource for Stored {
    type Error = Missing;
    fn tile(&self, path: &TilePath) -> Result<Vec<u8>, Missing> {
        self.files.get(&path.to_string()).cloned().ok_or(Missing)
    }
}

impl BundleSource for Stored {
    type Error = Missing;
    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, Missing> {
        self.files.get(&path.to_string()).cloned().ok_or(Missing)
    }
}

impl NodeSource for Stored {
    type Error = Infallible;
    fn node(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
        Ok(self.nodes[&(level, index)])
    }
}

/// The oracle reads hashes by its own index.
impl tlog_tiles::HashReader for Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog_tiles::Hash>, tlog_tiles::Error> {
        Ok(indexes
            .iter()
            .map(|index| {
                let (level, n) = tlog_tiles::split_stored_hash_index(*index);
                tlog_tiles::Hash(self.nodes[&(level, n)].0)
            })
            .collect())
    }
}

fn hash(hex: &str) -> Hash {
    Hash(hex::decode(hex).expect("hex").try_into().expect("32 bytes"))
}

fn rfc_leaves() -> Vec<Vec<u8>> {
    let leaves = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ];
    leaves
        .iter()
        .map(|leaf| hex::decode(leaf).expect("hex"))
        .collect()
}

const RFC_ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

#[test]
fn roots_are_those_of_the_vectors_of_rfc_6962() {
    let mut frontier = Frontier::new();
    assert_eq!(frontier.root(), hash(RFC_ROOTS[0]));
    let stored = Stored::of(rfc_leaves());
    for (size, leaf) in (1u64..).zip(rfc_leaves()) {
        frontier.append(leaf_hash(&leaf), |_, _, _| ());
        let expected = hash(RFC_ROOTS[size as usize]);
        assert_eq!(frontier.root(), expected, "frontier of {size}");
        assert_eq!(
            root_of(&stored, size),
            Ok(expected),
            "stored tree of {size}"
        );
    }
}

#[test]
fn proofs_are_those_of_the_vectors_of_rfc_6962() {
    let stored = Stored::of(rfc_leaves());
    let inclusion = |index, size| {
        let Ok(proof) = prove_inclusion(&stored, index, size);
        proof.expect("in the tree").path
    };
    let consistency = |old, new| {
        let Ok(proof) = prove_consistency(&stored, old, new);
        proof.expect("a prefix").path
    };
    let h0 = hash("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7");
    let h1 = hash("5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e");
    let h2 = hash("6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4");
    assert_eq!(inclusion(0, 1), []);
    assert_eq!(inclusion(0, 8), [h0, h1, h2]);
    assert_eq!(
        inclusion(2, 3),
        [hash(
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
        )]
    );
    assert_eq!(consistency(1, 8), [h0, h1, h2]);
    assert_eq!(
        consistency(6, 8),
        [
            hash("0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"),
            hash("ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"),
            hash(RFC_ROOTS[4]),
        ]
    );
    assert_eq!(
        consistency(2, 5),
        [
            h1,
            hash("bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b")
        ]
    );
}

fn numbered(size: u64) -> Stored {
    Stored::of((0..size).map(|n| n.to_be_bytes().to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn proofs_equal_the_oracles_and_each_believes_the_other(size in 1u64..700, a: u64, b: u64) {
        let stored = numbered(size);
        let new = 1 + a % size;
        let old = 1 + b % new;
        let index = b % new;
        let root = |n| -> Hash { let Ok(root) = root_of(&stored, n); root };
        prop_assert_eq!(root(new).0, tlog_tiles::tree_hash(new, &stored).expect("oracle").0);

        let Ok(ours) = prove_inclusion(&stored, index, new);
        let ours = ours.expect("in the tree");
        let theirs = tlog_tiles::prove_record(new, index, &stored).expect("oracle");
        prop_assert_eq!(ours.path.iter().map(|h| h.0).collect::<Vec<_>>(),
            theirs.iter().map(|h| h.0).collect::<Vec<_>>());
        prop_assert_eq!(verify_inclusion(&ours, &leaf_hash(&index.to_be_bytes()), &root(new)), Ok(()));

        let Ok(ours) = prove_consistency(&stored, old, new);
        let ours = ours.expect("a prefix");
        if old < new {
            let theirs = tlog_tiles::prove_tree(new, old, &stored).expect("oracle");
            prop_assert_eq!(ours.path.iter().map(|h| h.0).collect::<Vec<_>>(),
                theirs.iter().map(|h| h.0).collect::<Vec<_>>());
        }
        prop_assert_eq!(verify_consistency(&ours, &root(old), &root(new)), Ok(()));
    }

    #[test]
    fn a_proof_with_any_part_changed_does_not_hold(size in 2u64..300, a: u64, what in 0usize..5, bit in 0usize..256) {
        let stored = numbered(size);
        let index = a % size;
        let Ok(root) = root_of(&stored, size);
        let Ok(proof) = prove_inclusion(&stored, index, size);
        let mut proof = proof.expect("in the tree");
        let mut leaf = leaf_hash(&index.to_be_bytes());
        match what {
            0 => leaf.0[bit / 8] ^= 1 << (bit % 8),
            1 => { let i = bit % proof.path.len(); proof.path[i].0[bit / 8] ^= 1 << (bit % 8); }
            2 => { proof.path.pop(); }
            3 => proof.path.push(root),
            _ => proof.index = (proof.index + 1) % size,
        }
        prop_assert!(verify_inclusion(&proof, &leaf, &root).is_err());
    }

    #[test]
    fn a_consistency_proof_does_not_connect_a_rewritten_prefix(size in 2u64..300, a: u64, b: u64) {
        let old = 1 + a % (size - 1);
        let stored = numbered(size);
        let mut entries = stored.entries.clone();
        entries[(b % old) as usize].push(0xff);
        let rewritten = Stored::of(entries);
        let Ok(old_root) = root_of(&stored, old);
        let Ok(new_root) = root_of(&rewritten, size);
        let Ok(proof) = prove_consistency(&rewritten, old, size);
        prop_assert_eq!(
            verify_consistency(&proof.expect("a prefix"), &old_root, &new_root),
            Err(ProofError::Root)
        );
    }

    #[test]
    fn tiles_are_those_the_oracle_names_and_hold_the_same_tree(old in 0u64..70_000, grown in 0u64..1_000) {
        let new = old + grown;
        let ours: Vec<_> = tiles_between(old, new).map(|path| path.to_string()).collect();
        let theirs: Vec<_> = tlog_tiles::Tile::new_tiles(8, old, new)
            .iter()
            .map(|tile| tile.path().replacen("tile/8/", "tile/", 1))
            .collect();
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn a_tile_path_has_one_spelling(level in 0u8..8, index: u64, width in 1u16..=256, text in "[ -~]{0,40}") {
        let path = TilePath::tile(level, index, width).expect("in range");
        prop_assert_eq!(path.to_string().parse::<TilePath>(), Ok(path));
        if let Ok(path) = text.parse::<TilePath>() {
            prop_assert_eq!(path.to_string(), text);
        }
    }

    #[test]
    fn bundles_read_back_and_nothing_else_is_read(
        entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..256),
        noise in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let bundle = encode_bundle(entries.iter().map(Vec::as_slice)).expect("small");
        let width = entries.len() as u16;
        prop_assert_eq!(bundle_entries(&bundle, width).expect("just written"), entries);
        prop_assert!(bundle_entries(&bundle, width + 1).is_err());
        prop_assert!(bundle_entries(&bundle[..bundle.len() - 1], width).is_err());
        if let Ok(read) = bundle_entries(&noise, 3) {
            prop_assert_eq!(encode_bundle(read).expect("small"), noise);
        }
    }

    #[test]
    fn entries_read_back_and_nothing_else_is_read(
        commitment: [u8; 32], hour: u32, class in 1u64..=4,
        totals in prop::collection::btree_map(any::<u16>(), any::<u32>(), 1..=30),
        noise in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let lease = Entry::Lease(LeaseEntry {
            commitment: Digest(commitment),
            outcome: OutcomeClass::from_code(class).expect("known"),
            hour: HourBucket(hour),
        });
        let totals = Entry::Refusals(RefusalEntry::new(HourBucket(hour), totals).expect("few"));
        for entry in [lease, totals] {
            prop_assert_eq!(Entry::decode(&entry.encode()).expect("just written"), entry);
        }
        if let Ok(entry) = Entry::decode(&noise) {
            prop_assert_eq!(entry.encode(), noise);
        }
    }

    #[test]
    fn hostile_bytes_are_no_checkpoint(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let (name, key) = log_key();
        prop_assert!(Checkpoint::open(&noise, &name, &NoteVerifier::new(name.clone(), key.public())).is_err());
    }
}

#[test]
fn the_tree_read_from_tiles_is_the_tree_across_three_levels_of_tiles() {
    let size = 256 * 256 + 300;
    let stored = numbered(size);
    let tiled = TiledNodes::new(&stored, size);
    let root = stored.frontier.root();
    assert_eq!(root_of(&tiled, size).expect("tiles are there"), root);
    assert_eq!(
        Frontier::load(&tiled, size).expect("tiles are there"),
        stored.frontier
    );
    for index in [0, 255, 256, 65_535, 65_536, size - 1] {
        let proof = prove_inclusion(&tiled, index, size)
            .expect("tiles are there")
            .expect("in the tree");
        assert_eq!(
            verify_inclusion(&proof, &leaf_hash(&index.to_be_bytes()), &root),
            Ok(())
        );
    }
    let path = "tile/2/000.p/1".parse().expect("a path");
    assert!(
        stored.tile(&path).is_ok(),
        "the third level of tiles is there"
    );
}

#[test]
fn paths_are_those_of_the_specification() {
    let path = TilePath::tile(0, 1_234_067, 256).expect("in range");
    assert_eq!(path.to_string(), "tile/0/x001/x234/067");
    let path = TilePath::tile(3, 7, 12).expect("in range");
    assert_eq!(path.to_string(), "tile/3/007.p/12");
    for wrong in [
        "tile/0/7",
        "tile/0/0007",
        "tile/0/001/234",
        "tile/0/000.p/256",
        "tile/0/000.p/0",
        "tile/8/000",
        "tile/0/+07",
        "tile/entries/x000/001",
        "../tile/0/000",
        "",
    ] {
        assert!(wrong.parse::<TilePath>().is_err(), "{wrong}");
    }
}

fn log_key() -> (KeyName, LogKey) {
    let name = origin("souk-test.00000000", "12D3KooWTest").expect("a name");
    (name, LogKey::generate(&mut StdRng::seed_from_u64(1)))
}

/// The note in the documentation of Go's `golang.org/x/mod/sumdb/note`, which nobody here wrote.
#[test]
fn a_note_signed_by_the_go_implementation_verifies() {
    let name = KeyName::new("PeterNeumann").expect("a name");
    let key = hex::decode("1a5cd907143c384c41e830c5bce12aa8817ec5649aaabf2c31388b35b2d744d6")
        .expect("hex");
    let key = LogPublicKey::from_bytes(&key).expect("a key");
    let text = "If you think cryptography is the answer to your problem,\n\
                then you don't know what your problem is.\n";
    let note = format!(
        "{text}\n\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    );
    let verifier = NoteVerifier::new(name, key);
    assert_eq!(
        SignedNote::parse(&note).expect("a note").verify(&verifier),
        Ok(text)
    );
    let changed = note.replace("answer", "Answer");
    assert_eq!(
        SignedNote::parse(&changed)
            .expect("a note")
            .verify(&verifier),
        Err(NoteError::BadSignature(0xc74f_20a3))
    );
}

#[test]
fn a_checkpoint_opens_only_for_its_log_and_its_key() {
    let (name, key) = log_key();
    let checkpoint = numbered(5).checkpoint(&name);
    let note = checkpoint.sign(&key).to_string();
    let verifier = NoteVerifier::new(name.clone(), key.public());
    assert_eq!(
        Checkpoint::open(note.as_bytes(), &name, &verifier),
        Ok(checkpoint.clone())
    );

    let theirs = tlog_tiles::Checkpoint::from_bytes(
        note.split_once("\n\n")
            .map(|(text, _)| format!("{text}\n"))
            .expect("a note")
            .as_bytes(),
    )
    .expect("the oracle reads it");
    assert_eq!((theirs.origin(), theirs.size()), (name.as_str(), 5));
    assert_eq!(theirs.hash().0, checkpoint.root().0);

    let other = LogKey::generate(&mut StdRng::seed_from_u64(2));
    let stranger = NoteVerifier::new(name.clone(), other.public());
    assert!(matches!(
        Checkpoint::open(note.as_bytes(), &name, &stranger),
        Err(CheckpointError::Note(NoteError::NotSigned(_)))
    ));
    let elsewhere = origin("souk-test.00000000", "12D3KooWOther").expect("a name");
    assert_eq!(
        Checkpoint::open(note.as_bytes(), &elsewhere, &verifier),
        Err(CheckpointError::Origin)
    );
    assert!(Checkpoint::open(&vec![b'a'; 9_000], &name, &verifier).is_err());
}

#[test]
fn signatures_of_witnesses_travel_with_a_checkpoint_and_stand_in_nobodys_way() {
    let (name, key) = log_key();
    let checkpoint = numbered(3).checkpoint(&name);
    let mut note = checkpoint.sign(&key);
    let witness = KeyName::new("witness.example").expect("a name");
    note.add_signature(witness.clone(), vec![9; 76])
        .expect("there is room");
    let text = note.to_string();
    assert_eq!(SignedNote::parse(&text).expect("a note"), note);
    let verifier = NoteVerifier::new(name.clone(), key.public());
    assert_eq!(
        Checkpoint::open(text.as_bytes(), &name, &verifier),
        Ok(checkpoint)
    );
    for _ in 0..14 {
        note.add_signature(witness.clone(), vec![9; 76])
            .expect("there is room");
    }
    assert_eq!(
        note.add_signature(witness, vec![9; 76]),
        Err(NoteError::TooMany)
    );
}

#[test]
fn rollback_fork_and_growth_are_told_apart() {
    let (name, _) = log_key();
    let long = numbered(9);
    let short = numbered(4).checkpoint(&name);
    let empty = Stored::default().checkpoint(&name);
    let grown = long.checkpoint(&name);
    let proof = |old, new| {
        let Ok(proof) = prove_consistency(&long, old, new);
        proof.expect("a prefix")
    };
    let no_proof = ConsistencyProof {
        old_size: 0,
        new_size: 9,
        path: vec![],
    };
    assert_eq!(
        checkpoint_extends(&short, &grown, &proof(4, 9)).expect("extends"),
        Extension::Grown(5)
    );
    assert_eq!(
        checkpoint_extends(&grown, &grown, &no_proof).expect("same"),
        Extension::Same
    );
    assert_eq!(
        checkpoint_extends(&empty, &grown, &no_proof).expect("extends"),
        Extension::Grown(9)
    );
    assert!(matches!(
        checkpoint_extends(&grown, &short, &proof(4, 9)),
        Err(AuditError::Rollback { known: 9, shown: 4 })
    ));
    let forked = Stored::of((10..14u64).map(|n| n.to_be_bytes().to_vec())).checkpoint(&name);
    assert!(matches!(
        checkpoint_extends(&short, &forked, &proof(4, 9)),
        Err(AuditError::Fork { size: 4, .. })
    ));
    assert!(matches!(
        checkpoint_extends(&forked, &grown, &proof(4, 9)),
        Err(AuditError::NotProven {
            known: 4,
            source: ProofError::Root
        })
    ));
    assert!(matches!(
        checkpoint_extends(&short, &grown, &proof(3, 9)),
        Err(AuditError::NotProven { .. })
    ));
    let other = origin("souk-test.00000000", "12D3KooWOther").expect("a name");
    assert!(matches!(
        checkpoint_extends(&short, &long.checkpoint(&other), &proof(4, 9)),
        Err(AuditError::OtherLog)
    ));
}

fn real_entries(n: u32) -> Vec<Vec<u8>> {
    (0..n)
        .map(|i| {
            let hour = HourBucket(480_000 + i / 10);
            let entry = if i % 10 == 9 {
                let counts = BTreeMap::from([(3, i)]);
                Entry::Refusals(RefusalEntry::new(hour, counts).expect("one reason"))
            } else {
                Entry::Lease(LeaseEntry {
                    commitment: Digest([i as u8; 32]),
                    outcome: OutcomeClass::Completed,
                    hour,
                })
            };
            entry.encode()
        })
        .collect()
}

#[test]
fn an_audit_of_a_whole_log_counts_it_and_finds_what_was_changed() {
    let (name, _) = log_key();
    let log = Stored::of(real_entries(700));
    let signed = log.checkpoint(&name);
    let known = Stored::of(real_entries(300)).checkpoint(&name);
    let audited = audit(&log, &signed, Some(&known)).expect("an honest log");
    assert_eq!(audited.size, 700);
    assert_eq!(audited.leases[&OutcomeClass::Completed], 630);
    assert_eq!(
        audited.refusals[&3],
        (0..700u64).filter(|i| i % 10 == 9).sum::<u64>()
    );

    let mut entries = real_entries(700);
    entries[20] = entries[21].clone();
    let rewritten = Stored::of(entries);
    assert!(matches!(
        audit(&rewritten, &signed, None),
        Err(AuditError::Root { .. })
    ));
    assert!(matches!(
        audit(&rewritten, &rewritten.checkpoint(&name), Some(&known)),
        Err(AuditError::Fork { size: 300, .. })
    ));
    assert!(matches!(
        audit(&log, &known, Some(&signed)),
        Err(AuditError::Rollback { .. })
    ));

    let mut short = Stored::of(real_entries(700));
    short.files.remove("tile/entries/001");
    assert!(matches!(
        audit(&short, &signed, None),
        Err(AuditError::Source { .. })
    ));
    let mut torn = Stored::of(real_entries(700));
    torn.files.get_mut("tile/entries/001").expect("full").pop();
    assert!(matches!(
        audit(&torn, &signed, None),
        Err(AuditError::Bundle { .. })
    ));
    let noise = Stored::of([vec![0xff; 20]]);
    assert!(matches!(
        audit(&noise, &noise.checkpoint(&name), None),
        Err(AuditError::Entry { index: 0, .. })
    ));
}

#[test]
fn a_commitment_opens_with_its_salt_and_statement_alone() {
    let params = NetworkParams::new(50, 5_000, 3_600, true).expect("in bounds");
    let network = NetworkId::new("test", &params).expect("a name");
    let mut rng = StdRng::seed_from_u64(3);
    let opening = Opening::draw(b"statement".to_vec(), &mut rng);
    let again = Opening::draw(b"statement".to_vec(), &mut rng);
    assert_ne!(
        opening.commitment(&network),
        again.commitment(&network),
        "salts differ"
    );
    let mut other = opening.clone();
    other.statement = b"Statement".to_vec();
    assert_ne!(opening.commitment(&network), other.commitment(&network));
    assert!(
        !format!("{opening:?}").contains("73"),
        "an opening does not print itself"
    );
    assert_eq!(HourBucket::of(UnixTime(7_199)), HourBucket(1));
}
