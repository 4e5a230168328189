//! A backend whose instances share the kernel of this node, and so are inside of the TEE that the node runs in.
//!
//! It does what the backend below does, and takes a quote where a lease orders one. What it says it can bring follows the evidence on
//! the card: where the TEE gives none any more, such leases are refused.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use souk_backend::{
    Backend, BackendError, Capabilities, Instance, InstanceState, LeaseId, LeaseSpec, UsageSample,
};

use super::HostTee;

/// A backend inside of the TEE of this node.
pub(crate) struct InTee {
    backend: Arc<dyn Backend>,
    tee: Arc<HostTee>,
}

impl InTee {
    /// `backend` must share the kernel of this node with its instances.
    pub(crate) fn new(backend: Arc<dyn Backend>, tee: Arc<HostTee>) -> Self {
        Self { backend, tee }
    }
}

#[async_trait]
impl Backend for InTee {
    fn name(&self) -> &str {
        self.backend.name()
    }

    async fn capabilities(&self) -> Result<Capabilities, BackendError> {
        Ok(Capabilities {
            tee: self.tee.kind(),
            ..self.backend.capabilities().await?
        })
    }

    async fn provision(&self, spec: &LeaseSpec) -> Result<Instance, BackendError> {
        let Some(order) = &spec.evidence else {
            return self.backend.provision(spec).await;
        };
        let (lease, tee) = (spec.lease, order.tee);
        if self.tee.kind() != Some(tee) {
            return Err(BackendError::NoTee { lease, tee });
        }
        let plain = LeaseSpec {
            evidence: None,
            ..spec.clone()
        };
        let mut instance = self.backend.provision(&plain).await?;
        let quote = self.tee.quote(order, instance.host_key, spec.image).await;
        // The instance runs: whoever asked for it removes it.
        instance.quote = Some(quote.map_err(|error| {
            tracing::error!(%lease, error = &error as &dyn std::error::Error, "no quote of an instance");
            let what = "taking its quote".to_owned();
            BackendError::Unknown { lease, what }
        })?);
        Ok(instance)
    }

    async fn inspect(&self, lease: LeaseId) -> Result<Option<Instance>, BackendError> {
        self.backend.inspect(lease).await
    }

    async fn list(&self) -> Result<Vec<Instance>, BackendError> {
        self.backend.list().await
    }

    async fn sample(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.backend.sample(lease).await
    }

    async fn watch(
        &self,
        lease: LeaseId,
        timeout: Duration,
    ) -> Result<InstanceState, BackendError> {
        self.backend.watch(lease, timeout).await
    }

    async fn terminate(&self, lease: LeaseId) -> Result<UsageSample, BackendError> {
        self.backend.terminate(lease).await
    }
}
