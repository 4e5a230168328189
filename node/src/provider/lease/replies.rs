//! What the holder of a lease is told.

use souk_market::{
    lifecycle::Reply,
    refusal::Reason,
    reply::{self, Body, Endpoint, EvidencePart, FinalStatement, Receipt, Refusal, Status},
    units::Digest,
    wire::{Blob, List},
};

use super::{Instead, LeaseTask, state_of};
use crate::{
    failpoint::failpoint,
    provider::{answer::Addressee, books::log_record_again},
    store::{LogRecord, PublishError, StoreError},
};

/// Why a final statement cannot be made.
#[derive(Debug, thiserror::Error)]
enum StatementError {
    /// The lease is closed, and the log has no entry of it.
    #[error("it has no log entry")]
    NoEntry,
    /// What only provider and holder know is missing.
    #[error("its log entry has no opening")]
    NoOpening,
    /// The entry.
    #[error("its log entry cannot be read")]
    Entry(#[from] StoreError),
    /// The tiles.
    #[error("its log entry cannot be proven")]
    Proof(#[from] PublishError),
    /// The log has outgrown what a reply holds.
    #[error("it does not fit a reply")]
    TooLarge,
}

impl LeaseTask {
    pub(super) async fn reply(&mut self, reply: Reply) {
        match self.instead.take() {
            Some(Instead::Refuse(reason)) => return self.refuse(reason).await,
            Some(Instead::Evidence(part)) => return self.send_evidence(part).await,
            None => {}
        }
        match reply {
            Reply::Receipt => match self.receipt().await {
                Some(receipt) => self.send(Body::Receipt(receipt)).await,
                None => self.send(self.status()).await,
            },
            Reply::Refusal => {
                let reason = self.record.refusal.unwrap_or(Reason::ProvisionFailed);
                self.refuse(reason).await;
            }
            Reply::Status => self.send(self.status()).await,
            Reply::Statement => {
                self.owed = true;
                self.send_statement().await;
            }
        }
    }

    pub(super) async fn refuse(&mut self, reason: Reason) {
        self.send(Body::Refusal(Refusal { reason })).await;
    }

    /// Sends a part of the evidence that the receipt names.
    async fn send_evidence(&mut self, part: u8) {
        let evidence = self.record.evidence.as_ref();
        let part = evidence.and_then(|evidence| {
            let digest = evidence.reference.digest;
            EvidencePart::of(self.lease(), digest, &evidence.quote, part)
        });
        match part {
            Some(part) => self.send(Body::Evidence(part)).await,
            None => self.refuse(Reason::NoEvidence).await,
        }
    }

    /// Tells the holder where the lease stands, unasked.
    pub(super) async fn tell_status(&mut self) {
        self.send(self.status()).await;
    }

    async fn send(&mut self, body: Body) {
        let contract = &self.record.contract;
        let to = Addressee::of(&self.shared, contract, self.answering);
        self.surbs.send(&self.shared, to, body).await;
    }

    /// The receipt of the running instance; none while nothing leads to it.
    async fn receipt(&self) -> Option<Receipt> {
        let instance = self.record.instance.as_ref()?;
        let terms = self.record.row.terms();
        let contract = &self.record.contract;
        let token = &contract.relay_token;
        let relays = if contract.relays.is_empty() {
            Vec::new()
        } else {
            let admitting = self
                .shared
                .relays
                .admit(token, self.time_left(), &contract.relays);
            admitting.await
        };
        let mut endpoints: Vec<_> = relays
            .into_iter()
            .take(reply::MAX_ENDPOINTS - 1)
            .map(|relay| Endpoint::Relay {
                relay,
                token: token.clone(),
            })
            .collect();
        endpoints.extend(
            self.direct
                .as_ref()
                .map(|port| Endpoint::Direct(port.address())),
        );
        if endpoints.is_empty() {
            tracing::warn!(lease = %self.lease(), "nothing leads to the instance now");
            return None;
        }
        Some(Receipt {
            lease: self.lease(),
            valid_to: terms.valid_to(),
            endpoints: List::new(endpoints)?,
            host_key: instance.host_key,
            user: instance.user.clone(),
            price: self.record.contract.price,
            evidence: List::new(
                self.record
                    .evidence
                    .iter()
                    .map(|evidence| evidence.reference.clone())
                    .collect(),
            )?,
        })
    }

    fn status(&self) -> Body {
        Body::Status(Status {
            lease: self.lease(),
            state: state_of(&self.record.row),
            valid_to: self.record.row.terms().valid_to(),
        })
    }

    /// Sends the statement that is owed, once a checkpoint covers its entry.
    pub(super) async fn send_statement(&mut self) {
        match self.final_statement().await {
            Ok(None) => {}
            Ok(Some(statement)) => {
                self.owed = false;
                self.send(Body::Statement(statement)).await;
            }
            Err(error) => {
                self.owed = false;
                tracing::error!(lease = %self.lease(), error = &error as &dyn std::error::Error, "the statement cannot be sent");
                self.send(self.status()).await;
            }
        }
        // Without a SURB there is nobody to wait for: the holder polls.
        self.owed &= !self.surbs.is_empty();
    }

    async fn final_statement(&mut self) -> Result<Option<FinalStatement>, StatementError> {
        use StatementError as E;
        let index = self.record.log_index.ok_or(E::NoEntry)?;
        if self.head.borrow_and_update().size <= index {
            return Ok(None);
        }
        let record = self.logged(index)?;
        // One that does not open it would prove to the holder that this provider lies.
        let opening = record
            .opening
            .filter(|opening| opening.opens(&record.entry, &self.shared.network));
        let opening = opening.ok_or(E::NoOpening)?;
        let proven = self
            .shared
            .publisher
            .lock()
            .await
            .prove(index, &record.entry);
        let Some(proven) = proven? else {
            return Ok(None);
        };
        let path = proven.proof.path.iter().flat_map(|hash| hash.0).collect();
        Ok(Some(FinalStatement {
            lease: self.lease(),
            statement: Blob::new(opening.statement).ok_or(E::TooLarge)?,
            salt: opening.salt,
            entry: Blob::new(record.entry).ok_or(E::TooLarge)?,
            index,
            path: Blob::new(path).ok_or(E::TooLarge)?,
            checkpoint: Blob::new(proven.checkpoint.into_bytes()).ok_or(E::TooLarge)?,
        }))
    }

    /// Its entry and what opens it; where that row of the log is damaged, or was and has only its entry back, from the own record.
    /// What is made of it is proven like any other.
    fn logged(&self, index: u64) -> Result<LogRecord, StatementError> {
        match (self.shared.store.log_record(index), &self.record.opening) {
            (Ok(Some(record)), _) if record.opening.is_some() => Ok(record),
            (found, Some(copy)) => log_record_again(&self.shared.network, copy.clone())
                .map_or_else(|| found?.ok_or(StatementError::NoEntry), Ok),
            (found, None) => found?.ok_or(StatementError::NoEntry),
        }
    }

    pub(super) async fn acknowledge(&mut self, statement: Digest, signed: Vec<u8>) {
        let record = self.record.log_index.map(|index| self.logged(index));
        let own = match record.transpose() {
            Ok(record) => record.and_then(|record| record.opening),
            Err(error) => {
                tracing::error!(lease = %self.lease(), error = &error as &dyn std::error::Error, "a statement cannot be read");
                None
            }
        };
        if own.is_none_or(|own| *blake3::hash(&own.statement).as_bytes() != statement.0) {
            self.instead = Some(Instead::Refuse(Reason::WrongStatement));
            return;
        }
        failpoint!(BeforeAcknowledgement);
        match self.shared.store.acknowledge(self.lease(), signed).await {
            Ok(()) => {
                failpoint!(Acknowledged);
            }
            Err(error) => {
                tracing::error!(lease = %self.lease(), error = &error as &dyn std::error::Error, "an acknowledgement was not kept");
            }
        }
    }
}
