//! The way to a rented machine's SSH server, over one of the relays of its receipt.
//!
//! A provider that starts again comes back to its relays within seconds; until then they do not know the token. So an
//! active lease is tried again for [`PATIENCE`]: who logs in during an upgrade waits, and is not turned away.
//!
//! Threat: a relay that joins sessions of one requester. Each attempt has a network identity of its own.

use std::time::{Duration, Instant};

use crate::{
    net::{self, Backoff, RelayConnectError, RelayStream},
    unix_now,
};

use super::{Client, JudgeError, Judgement, Lease, Stage, StateError};

/// For so long relays are tried again that do not know the instance, or do not answer.
pub const PATIENCE: Duration = Duration::from_secs(15);

const MIN_PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(2);

/// Why an instance could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// The client's folder.
    #[error("the lease could not be read")]
    State(#[from] StateError),
    /// The receipt names no relay that is neither entry nor provider.
    #[error(
        "no relay of the receipt is usable: each is the entry of this client; rent again, or --direct"
    )]
    NoRelay,
    /// It cannot be said what the instance runs on.
    #[error("the instance cannot be judged")]
    Judge(#[from] JudgeError),
    /// The instance does not prove what it must.
    #[error("the instance is not believed any more ({reason}: {why})")]
    Unproven {
        /// The name of the first reason.
        reason: &'static str,
        /// What was found.
        why: String,
    },
    /// No relay let us through.
    #[error("no relay leads to the instance")]
    Relay(#[source] RelayConnectError),
}

impl Client {
    /// Opens a stream to the SSH server of a lease over a relay that is neither this client's entry nor the provider,
    /// with a network identity that is made for this stream alone. `waits` hears once why it is tried again. Before anybody is
    /// asked, the evidence of the instance is judged, where the lease requires any.
    ///
    /// # Errors
    /// [`ReachError`], for an active lease after [`PATIENCE`].
    pub async fn relay_stream(
        &self,
        lease: &Lease,
        waits: impl FnOnce(&RelayConnectError),
    ) -> Result<RelayStream, ReachError> {
        self.believe(lease)?;
        let start = Instant::now();
        let mut backoff = Backoff::new(MIN_PAUSE, MAX_PAUSE);
        let mut waits = Some(waits);
        loop {
            let error = match self.try_relays(lease).await {
                Err(ReachError::Relay(error)) => error,
                other => return other,
            };
            let pause = backoff.pause(&mut rand::rng());
            let is_active = matches!(lease.stage(unix_now()), Stage::Active);
            if !is_active || start.elapsed() + pause > PATIENCE {
                return Err(ReachError::Relay(error));
            }
            if let Some(waits) = waits.take() {
                waits(&error);
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Fails where the lease requires evidence and the policy does not accept that of its instance now.
    ///
    /// # Errors
    /// [`ReachError::Unproven`] and [`ReachError::Judge`]; nobody was asked anything.
    pub fn believe(&self, lease: &Lease) -> Result<(), ReachError> {
        match self.judge_instance(lease, unix_now())? {
            Some(Judgement::Refused { reason, why, .. }) => {
                Err(ReachError::Unproven { reason, why })
            }
            Some(Judgement::Accepted { .. }) | None => Ok(()),
        }
    }

    /// One round over all relays of the lease.
    async fn try_relays(&self, lease: &Lease) -> Result<RelayStream, ReachError> {
        let entry = self.entry()?;
        let config = self.net_config();
        let mut outcome = ReachError::NoRelay;
        for way in lease.relay_ways(entry)? {
            let token = &way.token;
            match net::connect_via(&config, &way.relay, way.provider, token).await {
                Ok(stream) => return Ok(stream),
                Err(error) => outcome = ReachError::Relay(error),
            }
        }
        Err(outcome)
    }
}
