//! The seam between a lease and the machine that carries it.
//!
//! A [`Backend`] turns a [`LeaseSpec`] into a running instance and back. It knows nothing of grants, mixes or money.
//!
//! ```text
//!            provision                     terminate
//!  (nothing) ─────────► running ─────────────────────► gone
//!                          │   process died              ▲
//!                          └────────► exited ────────────┘
//! ```
//!
//! Threats: a lease id, an image hash and a key come from a stranger, and everything an instance reports comes from a
//! tenant. Implementations therefore take only the validated types of this crate, and measure usage from outside.
//!
//! `provision` and `terminate` are idempotent by [`LeaseId`]: a caller that crashed repeats the call and gets the same
//! instance, or learns that it is gone. Every instance carries its lease id, so that [`Backend::list`] finds it.

pub mod agent;
mod error;
mod spec;
mod usage;

pub use error::{BackendError, Blame};
pub use spec::{
    Capabilities, EvidenceOrder, HostKey, ImageHash, Instance, InstanceState, LeaseId, LeaseSpec,
    Limit, Resources, SshPublicKey, Tee,
};
pub use usage::{Meter, Usage, UsageSample};

use std::time::Duration;

use async_trait::async_trait;

/// A driver that turns leases into machines.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Name of the driver, as in the configuration: `sandbox`, `container`, `microvm`.
    fn name(&self) -> &str;

    /// What this backend can carry and which limits it enforces, found by trying and not by asking the version.
    ///
    /// # Errors
    /// [`BackendError::Host`] where the machine cannot be asked.
    async fn capabilities(&self) -> Result<Capabilities, BackendError>;

    /// Starts the instance of a lease, or finds the one that runs already, and returns once it accepts SSH, with a quote where
    /// the lease orders one.
    ///
    /// # Errors
    /// [`BackendError`] says whose fault it was; after an error nothing of the lease is left running, or the error is
    /// [`BackendError::Unknown`] and the caller must [`Backend::inspect`] or [`Backend::terminate`].
    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError>;

    /// The instance of a lease, or `None` where there is none.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] where that cannot be told now; ask again.
    async fn inspect(&self, lease: LeaseId) -> Result<Option<Instance>, BackendError>;

    /// Every instance that this backend really has, known to the caller or not.
    ///
    /// # Errors
    /// [`BackendError`] where any of them cannot be told; a list is whole or not given.
    async fn list(&self) -> Result<Vec<Instance>, BackendError>;

    /// One sample of what the lease has used since it was provisioned, measured from outside of the instance.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] where the last sample cannot be read. A meter that failed is no error: it reads as
    /// [`Meter::Unknown`].
    async fn sample(&self, lease: LeaseId) -> Result<UsageSample, BackendError>;

    /// Waits until the instance has exited by itself, or until `timeout` passed; returns its last known state.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] where that cannot be told now; ask again.
    async fn watch(&self, lease: LeaseId, timeout: Duration)
    -> Result<InstanceState, BackendError>;

    /// Ends the instance and removes everything it left, and returns the final sample. Of a lease that does not exist
    /// the answer is the last sample that was kept, or one in which everything is unknown.
    ///
    /// # Errors
    /// [`BackendError::Unknown`] where something may still run or lie there; call again.
    async fn terminate(&self, lease: LeaseId) -> Result<UsageSample, BackendError>;
}
