//! Sums what the provider's usage log says of closed leases, and follows it as it grows.
//!
//! ```text
//!  store ──log, in steps──► Ledger ──► Running, for snapshots
//!    ▲                                   │
//!    └──── again at each checkpoint ◄────┘
//! ```
//!
//! Nothing is kept between runs: the sums are those of the log by being read from it. A step at a time, on a thread that may wait
//! for the disk, so that a long log holds up nothing; until it was read once there are no sums.

use std::sync::Arc;

use souk_market::{
    account::{Costs, Ledger},
    log::Entry,
    statement::Statement,
};
use tokio::{sync::watch, task::spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::{
    provider::{Head, Provider},
    store::{LogRecord, StoreError},
};

/// Entries that are read at once: about 500 KiB.
const STEP: u64 = 1_000;

/// What sums.
pub(super) struct Accounts {
    pub(super) costs: Costs,
    pub(super) provider: watch::Receiver<Option<Provider>>,
    /// The sums, once the log was read as far as it went.
    pub(super) shown: watch::Sender<Option<Arc<Ledger>>>,
}

impl Accounts {
    /// Follows the log until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let provider = tokio::select! {
            () = stop.cancelled() => return,
            provider = self.provider.wait_for(Option::is_some) => provider.ok().and_then(|p| p.clone()),
        };
        let Some(provider) = provider else { return };
        let head = provider.head();
        let read = move |start, end| provider.log_records(start, end);
        follow(Ledger::new(self.costs), head, read, &self.shown, &stop).await;
    }
}

/// Takes what `read` gives of a log up to its head, and again whenever that has moved. What is shown is always the sum of a whole log:
/// of one that could not be read to its head, nothing.
async fn follow(
    mut ledger: Ledger,
    mut head: watch::Receiver<Head>,
    read: impl Fn(u64, u64) -> Result<Vec<LogRecord>, StoreError> + Clone + Send + 'static,
    shown: &watch::Sender<Option<Arc<Ledger>>>,
    stop: &CancellationToken,
) {
    let mut done = 0;
    loop {
        let size = head.borrow_and_update().size;
        while done < size && !stop.is_cancelled() {
            let end = size.min(done + STEP);
            let read = read.clone();
            // It fails only while the runtime goes down.
            let Ok(records) = spawn_blocking(move || read(done, end)).await else {
                return;
            };
            match records {
                Ok(records) => records.iter().for_each(|record| take(&mut ledger, record)),
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "revenue and cost are not summed: the usage log cannot be read"
                    );
                    break;
                }
            }
            done = end;
        }
        if done == size {
            shown.send_replace(Some(Arc::new(ledger.clone())));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = head.changed() => if changed.is_err() { return },
        }
    }
}

fn take(ledger: &mut Ledger, record: &LogRecord) {
    // Totals of refusals bring nothing, and nothing else is an entry.
    let (Ok(Entry::Lease(entry)), Some(opening)) = (Entry::decode(&record.entry), &record.opening)
    else {
        return;
    };
    match Statement::from_bytes(&opening.statement) {
        Ok(statement) => ledger.take(entry.hour, &statement),
        Err(error) => {
            tracing::error!(lease = %opening.lease, %error, "a statement in the usage log is none");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf, time::Duration};

    use proptest::prelude::*;
    use souk_crypto::{NetworkId, NetworkParams, UnixTime};
    use souk_market::{
        account::Sum,
        log::{Hash, HourBucket, Opening, RefusalEntry},
        statement::Outcome,
        units::{ImageHash, LeaseId, Meter, Money, Resources},
    };
    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::provider::books::log_record;

    const COSTS: Costs = Costs {
        core_hour: Money(7),
        memory_gib_hour: Money(3),
        disk_gib_hour: Money(1),
        gib_out: Money(11),
    };
    const BEGIN: UnixTime = UnixTime(1_800_000_000);

    /// Less than the hours that a ledger keeps apart.
    const LONGEST_S: u32 = 600_000;

    /// The entry of a lease, or none: then that of refusals.
    type Row = Option<(u32, u32, u64, u64)>;

    fn statement((lasted_s, cpu_millicores, tx, charge): (u32, u32, u64, u64)) -> Statement {
        Statement {
            lease: LeaseId([1; 16]),
            image: ImageHash([0; 32]),
            resources: Resources {
                cpu_millicores,
                memory_mib: 512,
                disk_mib: 100,
                ..Resources::ZERO
            },
            from: BEGIN,
            to: BEGIN.plus_s(lasted_s.into()),
            cpu_core_ms: Meter::Known(1),
            memory_mib_s: Meter::Unknown,
            net_rx_bytes: Meter::Known(1),
            net_tx_bytes: Meter::Known(tx),
            outcome: Outcome::Expired,
            charge: Money(charge),
            evidence: None,
        }
    }

    fn record(network: &NetworkId, row: Row) -> LogRecord {
        let Some(row) = row else {
            let totals = RefusalEntry::new(HourBucket::of(BEGIN), BTreeMap::from([(1, 3)]));
            return LogRecord {
                entry: Entry::Refusals(totals.expect("one reason")).encode(),
                opening: None,
            };
        };
        let statement = statement(row);
        let opening = Opening::draw(statement.to_bytes(), &mut rand::rng());
        log_record(network, &statement, opening)
    }

    /// What the leases of a log come to, added up without a ledger.
    fn by_hand(rows: &[Row]) -> Sum {
        let leases = rows.iter().flatten().map(|row| statement(*row));
        leases.fold(Sum::default(), |sum, lease| Sum {
            leases: sum.leases + 1,
            revenue: sum.revenue + u128::from(lease.charge.0),
            cost: sum.cost + COSTS.of(&lease).amount,
            with_unknown: 0,
        })
    }

    fn head(size: usize) -> Head {
        Head {
            size: size as u64,
            root: Hash([0; 32]),
        }
    }

    /// Grows a log by parts, some of which cannot be read at first, and looks at what is shown behind each.
    async fn grows(parts: Vec<(Vec<Row>, bool)>) {
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        let network = NetworkId::new("test", &params).expect("a name");
        let all: Vec<Row> = parts.iter().flat_map(|(rows, _)| rows.clone()).collect();
        let log: Vec<_> = all.iter().map(|row| record(&network, *row)).collect();
        let (grown, growing) = watch::channel(head(0));
        let shown = watch::Sender::new(None);
        let mut sums = shown.subscribe();
        let (breaks, broken) = watch::channel(false);
        let (failed, mut failures) = mpsc::unbounded_channel();
        let read = move |start: u64, end: u64| {
            // The last step alone fails: what was read before it is no whole log.
            if *broken.borrow() && end - start < STEP {
                failed.send(()).expect("it is looked at");
                return Err(StoreError::InUse {
                    path: PathBuf::from("log"),
                });
            }
            let index = |n| usize::try_from(n).expect("a small log");
            Ok(log[index(start)..index(end)].to_vec())
        };
        let stop = CancellationToken::new();
        let follows = follow(Ledger::new(COSTS), growing, read, &shown, &stop);
        let watches = async {
            let (mut size, mut whole) = (0, 0);
            for (rows, is_broken) in parts {
                size += rows.len();
                breaks.send_replace(is_broken);
                grown.send_replace(head(size));
                if is_broken && size > whole {
                    failures.recv().await.expect("it is read");
                    // When it is read again, what came of the first time has been shown.
                    grown.send_replace(head(size));
                    failures.recv().await.expect("it is read again");
                } else {
                    whole = size;
                }
                let wanted = by_hand(&all[..whole]);
                let is_it = |ledger: &Option<Arc<Ledger>>| {
                    let lifetime = ledger.as_ref().map(|ledger| *ledger.lifetime());
                    lifetime.unwrap_or_default() == wanted
                };
                sums.wait_for(is_it).await.expect("it is followed");
                let ledger = sums.borrow().clone();
                if let Some(ledger) = ledger {
                    let last = HourBucket::of(BEGIN.plus_s(LONGEST_S.into()));
                    assert_eq!(ledger.window(last, LONGEST_S / 3_600 + 2), wanted);
                }
            }
            stop.cancel();
        };
        tokio::join!(follows, watches);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn sums_are_those_of_the_log_to_the_last_unit_however_it_grows_and_whenever_it_cannot_be_read(
            parts in prop::collection::vec(
                (
                    prop::collection::vec(
                        prop::option::of((0..LONGEST_S, 0u32..64_000, 0u64..1 << 40, any::<u64>())),
                        0..30,
                    ),
                    any::<bool>(),
                ),
                1..8,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build()
                .expect("a runtime");
            let all = async { timeout(Duration::from_secs(60), grows(parts)).await };
            let done = runtime.block_on(all);
            prop_assert!(done.is_ok(), "what is shown never became what the log says");
        }
    }

    #[tokio::test]
    async fn a_log_of_several_steps_is_read_as_a_whole_before_its_sums_are_shown() {
        let rows = (0..2 * STEP + 7).map(|n| Some((60, 1_000, n, n)));
        let parts = vec![(rows.collect(), true), (vec![None], false)];
        timeout(Duration::from_secs(60), grows(parts))
            .await
            .expect("it ends");
    }
}
