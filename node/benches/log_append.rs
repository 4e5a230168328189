//! How much of the speed of bare redb is left when the usage log is appended to, with the same durability.
//!
//! Both write the same number of bytes under the same keys and are durable after each batch in the same way: two syncs, and what a
//! repair after a kill needs. The log also draws a salt,
//! commits to the statement, frames the row with its checksum, and passes it to the writer's thread. Rounds alternate, so that a busy
//! machine slows both down.
//!
//! `cargo bench -p souk-node --bench log_append`

#![expect(clippy::print_stdout, reason = "a table is what a benchmark is for")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use redb::{Database, TableDefinition};
use souk_crypto::{NetworkId, NetworkParams, UnixTime};
use souk_market::{
    log::{Entry, HourBucket, LeaseEntry, Opening, OutcomeClass},
    statement::{Outcome, Statement},
    units::{ImageHash, LeaseId, Meter, Money, Resources},
};
use souk_node::store::{LogRecord, Store, StoredOpening};

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::measured;

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const ROUNDS: u32 = 20;
/// Of each side in each round.
const SLICE: Duration = Duration::from_millis(150);

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .expect("a runtime");
    let directory = tempfile::tempdir().expect("a directory");
    let network = network();
    let row = minicbor::to_vec(record(&network)).expect("a Vec takes every write");
    // Version and checksum, as the store puts before each row.
    let row = [vec![0; 17], row].concat();
    println!(
        "rows of {} bytes on {}",
        row.len(),
        directory.path().display()
    );
    println!("batch      redb/s       log/s");
    for batch in [1, 64, 256] {
        let bare = bare(&directory.path().join(format!("bare-{batch}")));
        let ours = directory.path().join(format!("ours-{batch}"));
        let (store, _) = runtime.block_on(Store::open(&ours)).expect("opens");
        let (mut redb, mut log) = (Rate::default(), Rate::default());
        let mut next = 0;
        for _ in 0..ROUNDS {
            redb.measure(batch, || {
                let mut write = bare.begin_write().expect("a transaction");
                write.set_quick_repair(true);
                let mut table = write.open_table(TABLE).expect("the table");
                for _ in 0..batch {
                    table.insert(next, row.as_slice()).expect("written");
                    next += 1;
                }
                drop(table);
                write.commit().expect("durable");
            });
            log.measure(batch, || {
                let records = (0..batch).map(|_| record(&network)).collect();
                runtime
                    .block_on(store.append(records, None))
                    .expect("durable");
            });
        }
        println!(
            "{batch:>5} {:>11.0} {:>11.0}",
            redb.per_second(),
            log.per_second()
        );
        let ratio = log.per_second() / redb.per_second();
        measured(&format!("log-append-{batch}"), 100.0 * ratio, "%");
    }
}

#[derive(Default)]
struct Rate {
    entries: u64,
    time: Duration,
}

impl Rate {
    fn measure(&mut self, batch: u64, mut append: impl FnMut()) {
        let start = Instant::now();
        while start.elapsed() < SLICE {
            append();
            self.entries += batch;
        }
        self.time += start.elapsed();
    }

    fn per_second(&self) -> f64 {
        self.entries as f64 / self.time.as_secs_f64()
    }
}

fn bare(path: &Path) -> Database {
    Database::create(path).expect("opens")
}

fn network() -> NetworkId {
    let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
    NetworkId::new("bench", &params).expect("a name")
}

/// All that a closed lease adds to the log.
fn record(network: &NetworkId) -> LogRecord {
    let lease = LeaseId([7; 16]);
    let statement = Statement {
        lease,
        image: ImageHash([1; 32]),
        resources: Resources::ZERO,
        from: UnixTime(1_800_000_000),
        to: UnixTime(1_800_003_600),
        cpu_core_ms: Meter::Known(1_234_567),
        memory_mib_s: Meter::Known(7_654_321),
        net_rx_bytes: Meter::Known(1 << 30),
        net_tx_bytes: Meter::AtLeast(1 << 20),
        outcome: Outcome::Expired,
        charge: Money(120),
        evidence: None,
    };
    let opening = Opening::draw(statement.to_bytes(), &mut rand::rng());
    let entry = Entry::Lease(LeaseEntry {
        commitment: opening.commitment(network),
        outcome: OutcomeClass::of(statement.outcome),
        hour: HourBucket::of(statement.to),
    });
    LogRecord {
        entry: entry.encode(),
        opening: Some(StoredOpening {
            lease,
            salt: opening.salt,
            statement: opening.statement,
        }),
    }
}
