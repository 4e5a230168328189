//! The last row of a lease and its entry in the log.

use souk_crypto::UnixTime;
use souk_market::{
    lifecycle::{Phase, Row},
    log::Opening,
    statement::{Outcome, Statement},
    units::{DurationS, Money},
};
use tokio::time::sleep;

use super::{LeaseTask, MAX_STORE_PAUSE, STORE_PAUSE};
use crate::{
    failpoint::{failpoint, planted},
    provider::books::log_record,
    store::{LeaseRecord, LogRecord, StoreError},
};

impl LeaseTask {
    pub(super) async fn close(&mut self, row: Row) {
        self.record.row = row;
        self.record.clock = Some(self.clock_watch.mark());
        let Phase::Closed { outcome, at } = row.phase() else {
            unreachable!("a lease is closed with a closed row");
        };
        let statement = self.statement(outcome, at);
        let opening = Opening::draw(statement.to_bytes(), &mut self.shared.randomness.rng());
        let record = log_record(&self.shared.network, &statement, opening);
        self.record.opening = record.opening.clone();
        if let Some(evidence) = &mut self.record.evidence {
            // Nobody logs in any more; the statement names its digest.
            evidence.quote = Vec::new();
        }
        let mut pause = STORE_PAUSE;
        failpoint!(BeforeClose);
        loop {
            let written = if planted!(DoubleAppend) {
                self.close_in_two(record.clone()).await
            } else {
                let closed = self.record.clone();
                self.shared.store.close(closed, record.clone()).await
            };
            match written {
                Ok(index) => {
                    self.record.log_index = Some(index);
                    break;
                }
                Err(error) => {
                    tracing::error!(lease = %row.lease(), error = &error as &dyn std::error::Error, "a lease was not closed");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_STORE_PAUSE);
        }
        failpoint!(Closed);
        self.shared
            .relays
            .dismiss(&self.record.contract.relay_token);
        self.direct = None;
        let now = self.shared.clock.moment();
        self.shared.board.show(&self.record, now);
        self.core.persisted(row.version());
    }

    /// What the one transaction is there to prevent: an entry without its row, for a moment.
    async fn close_in_two(&self, entry: LogRecord) -> Result<u64, StoreError> {
        let index = self.shared.store.append(vec![entry], None).await?;
        failpoint!(Closed);
        let closed = LeaseRecord {
            log_index: index,
            ..self.record.clone()
        };
        self.shared.store.save(closed).await?;
        Ok(index.unwrap_or_default())
    }

    fn statement(&self, outcome: Outcome, at: UnixTime) -> Statement {
        let (contract, usage) = (&self.record.contract, self.record.row.usage());
        Statement {
            lease: self.lease(),
            image: contract.image,
            resources: contract.resources,
            from: self.record.row.terms().accepted_at(),
            to: at,
            cpu_core_ms: usage.cpu_core_ms,
            memory_mib_s: usage.memory_mib_s,
            net_rx_bytes: usage.net_rx_bytes,
            net_tx_bytes: usage.net_tx_bytes,
            outcome,
            charge: self.charge(at),
            evidence: self
                .record
                .evidence
                .as_ref()
                .map(|evidence| evidence.reference.digest),
        }
    }

    /// What is owed: for the time in which the instance could be used, and never more than was agreed.
    fn charge(&self, until: UnixTime) -> Money {
        let contract = &self.record.contract;
        match (&self.record.instance, &contract.prices) {
            (Some(instance), Some(prices)) => {
                let used = until
                    .since_s(instance.since)
                    .min(u64::from(contract.duration.0));
                let used = DurationS(u32::try_from(used).unwrap_or(u32::MAX));
                prices
                    .charge(&contract.resources, used)
                    .map_or(contract.price, |charge| charge.min(contract.price))
            }
            _ => Money(0),
        }
    }
}
