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

use crate::{provider::Provider, store::LogRecord};

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
        let mut head = provider.head();
        let mut ledger = Ledger::new(self.costs);
        let mut read = 0;
        loop {
            let size = head.borrow_and_update().size;
            while read < size && !stop.is_cancelled() {
                let end = size.min(read + STEP);
                let for_thread = provider.clone();
                let records = spawn_blocking(move || for_thread.log_records(read, end)).await;
                // It fails only while the runtime goes down.
                let Ok(records) = records else { return };
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
                read = end;
            }
            if read == size {
                self.shown.send_replace(Some(Arc::new(ledger.clone())));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = head.changed() => if changed.is_err() { return },
            }
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
