//! What the store costs: a step of a lease against a bare fsync, and the recovery of many leases; and the log: an inclusion proof
//! in ten million entries, and how long all its files take to be held against its rows.
//!
//! `cargo bench -p souk-node --bench store`, with a folder on another disk as `TMPDIR`. The large log takes a while to make:
//! `SOUK_BENCH_ENTRIES` says how large it is, and without it there is none.

#![expect(clippy::print_stdout, reason = "a table is what a benchmark is for")]

use std::{
    fs::File,
    hint::black_box,
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use souk_crypto::{HolderKey, LogKey, ReplyKey, UnixTime};
use souk_market::{
    lifecycle::{Requested, Terms},
    log::{Entry, HourBucket, LeaseEntry, OutcomeClass, leaf_hash, origin, verify_inclusion},
    units::{
        CardDigest, Digest, DurationS, EnvelopeDigest, ImageHash, LeaseId, Limits, Money,
        RelayToken, ReplyKeyHash, RequestId, Resources, Salt, SshPublicKey,
    },
};
use souk_node::store::{Contract, LeaseRecord, LogRecord, Publisher, Store, StoredOpening};
use tokio::runtime::Runtime;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::{measured, median, timed};

const STEPS: u32 = 300;
const OPEN_LEASES: u32 = 10_000;
/// Log entries that are appended in one transaction while a log is made.
const BATCH: u64 = 4_096;
const PROOFS: u64 = 1_000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    println!("in {}", directory.path().display());
    journal(&runtime, directory.path());
    recovery(&runtime, directory.path());
    if let Ok(entries) = std::env::var("SOUK_BENCH_ENTRIES") {
        log(
            &runtime,
            directory.path(),
            entries.parse().expect("a number"),
        );
    }
}

/// A row of a lease, durable, against the same bytes in a file and an fsync. They alternate.
fn journal(runtime: &Runtime, directory: &Path) {
    let (store, _) = runtime
        .block_on(Store::open(&directory.join("journal")))
        .expect("opens");
    let record = record(1);
    let bytes = minicbor::to_vec(&record).expect("a Vec takes every write");
    let mut bare = File::create(directory.join("bare")).expect("made");
    let (mut steps, mut syncs) = (Vec::new(), Vec::new());
    for _ in 0..STEPS {
        steps.push(timed(|| {
            runtime
                .block_on(store.save(record.clone()))
                .expect("durable");
        }));
        syncs.push(timed(|| {
            bare.write_all(&bytes).expect("written");
            bare.sync_data().expect("durable");
        }));
    }
    let (step, sync) = (median(steps), median(syncs));
    println!(
        "a step of a lease: {step:?}; write and fsync of {} bytes: {sync:?}",
        bytes.len()
    );
    measured(
        "journal-step",
        step.as_secs_f64() / sync.as_secs_f64(),
        "times",
    );
}

fn recovery(runtime: &Runtime, directory: &Path) {
    let folder = directory.join("recovery");
    let (store, _) = runtime.block_on(Store::open(&folder)).expect("opens");
    runtime.block_on(async {
        let mut waiting = tokio::task::JoinSet::new();
        for n in 0..OPEN_LEASES {
            let (store, record) = (store.clone(), record(n));
            waiting.spawn(async move { store.accept(record).await.expect("durable") });
        }
        waiting.join_all().await;
    });
    drop(store);
    let mut leases = 0;
    let times = (0..5).map(|_| {
        timed(|| {
            let (store, found) = runtime.block_on(Store::open(&folder)).expect("opens");
            leases = found.leases.len();
            drop(store);
        })
    });
    let opening = median(times.collect());
    measured("recovery", opening.as_secs_f64(), "s");
    assert_eq!(leases, OPEN_LEASES as usize);
}

fn log(runtime: &Runtime, directory: &Path, entries: u64) {
    let folder = directory.join("log");
    let (store, _) = runtime.block_on(Store::open(&folder)).expect("opens");
    let made = timed(|| {
        for start in (0..entries).step_by(BATCH as usize) {
            let batch = (start..entries.min(start + BATCH)).map(entry).collect();
            runtime
                .block_on(store.append(batch, None))
                .expect("durable");
        }
    });
    let origin = origin("bench.00000000", "provider").expect("a name");
    let key = LogKey::generate(&mut rand::rng());
    let files = folder.join("log");
    let open = || runtime.block_on(Publisher::open(&store, &files, origin.clone(), key.clone()));
    let mut publisher = None;
    let published = timed(|| publisher = Some(open().expect("published")));
    println!("a log of {entries} entries: made in {made:?}, its files in {published:?}");
    let started = timed(|| publisher = Some(open().expect("opens")));
    println!("taking it up again: {started:?}");
    let publisher = publisher.expect("opened");
    let (mut making, mut verifying) = (Vec::new(), Vec::new());
    for n in 0..PROOFS {
        // Spread over the whole log, so that no tile is read twice in a row.
        let index = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % entries;
        let bytes = store.log_record(index).expect("read").expect("there").entry;
        let start = Instant::now();
        let proven = publisher
            .prove(index, &bytes)
            .expect("tiles")
            .expect("covered");
        making.push(start.elapsed());
        let leaf = leaf_hash(&bytes);
        let root = publisher.root();
        verifying.push(timed(|| {
            verify_inclusion(black_box(&proven.proof), &leaf, &root).expect("proven");
        }));
    }
    measured("inclusion-proof", median(making).as_secs_f64() * 1e3, "ms");
    measured(
        "proof-verification",
        median(verifying).as_secs_f64() * 1e6,
        "µs",
    );
    let mut steps = Vec::new();
    let mut survey = publisher.survey();
    loop {
        let mut is_over = false;
        steps.push(timed(|| is_over = survey.step(&store).expect("whole")));
        if is_over {
            break;
        }
    }
    let all: Duration = steps.iter().sum();
    println!(
        "all files against the rows: {all:?} in {} steps of {:?}",
        steps.len(),
        median(steps)
    );
}

fn record(n: u32) -> LeaseRecord {
    let mut rng = rand::rng();
    let mut id = [0; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    let terms = Terms::new(UnixTime(1_000), UnixTime(1_060), UnixTime(2_000)).expect("rising");
    let lease = LeaseId(*id.first_chunk().expect("16 of 32 bytes"));
    LeaseRecord {
        row: *Requested { terms }.reserve(lease).row(),
        contract: Contract {
            request: RequestId(id),
            envelope: EnvelopeDigest(id),
            holder: HolderKey::generate(&mut rng).public(),
            reply_key: ReplyKey::generate(&mut rng).public(),
            reply_key_hash: ReplyKeyHash(id),
            offer: CardDigest(id),
            ssh_key: SshPublicKey(id),
            image: ImageHash(id),
            resources: Resources::ZERO,
            required: Limits::default(),
            duration: DurationS(600),
            prices: None,
            price: Money(1),
            relay_token: RelayToken(id),
            anonymous: true,
            forget_at: UnixTime(1_200),
            backend: "sandbox".parse().expect("a name"),
            relays: souk_market::wire::List::empty(),
            tee: None,
        },
        instance: None,
        refusal: None,
        log_index: None,
        clock: None,
        opening: None,
        evidence: None,
        direct_port: None,
    }
}

fn entry(n: u64) -> LogRecord {
    let mut commitment = [0; 32];
    commitment[..8].copy_from_slice(&n.to_be_bytes());
    LogRecord {
        entry: Entry::Lease(LeaseEntry {
            commitment: Digest(commitment),
            outcome: OutcomeClass::Completed,
            hour: HourBucket(1),
        })
        .encode(),
        opening: Some(StoredOpening {
            lease: LeaseId([7; 16]),
            salt: Salt([1; 32]),
            statement: vec![2; 120],
        }),
    }
}
