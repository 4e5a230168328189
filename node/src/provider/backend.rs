//! The market's words in those of a backend, and back.

use souk_backend::{BackendError, Blame, EvidenceOrder, Instance};
use souk_crypto::UnixTime;
use souk_market::{lifecycle::Usage, refusal::Reason, units};

use super::Doors;
use crate::store::{Contract, InstanceRecord};

/// What a backend has to know of a lease.
pub(super) fn spec(
    lease: units::LeaseId,
    contract: &Contract,
    valid_to: UnixTime,
    evidence: Option<EvidenceOrder>,
) -> souk_backend::LeaseSpec {
    souk_backend::LeaseSpec {
        lease: lease_id(lease),
        image: souk_backend::ImageHash(contract.image.0),
        resources: resources(&contract.resources),
        required_limits: contract.required.iter().map(limit).collect(),
        authorized_key: souk_backend::SshPublicKey(contract.ssh_key.0),
        valid_to_unix_s: valid_to.0,
        evidence,
    }
}

pub(super) fn lease_id(lease: units::LeaseId) -> souk_backend::LeaseId {
    souk_backend::LeaseId(lease.0)
}

fn resources(r: &units::Resources) -> souk_backend::Resources {
    souk_backend::Resources {
        cpu_millicores: r.cpu_millicores,
        memory_mib: r.memory_mib,
        disk_mib: r.disk_mib,
        max_processes: r.max_processes,
    }
}

fn limit(limit: units::Limit) -> souk_backend::Limit {
    match limit {
        units::Limit::Cpu => souk_backend::Limit::Cpu,
        units::Limit::Memory => souk_backend::Limit::Memory,
        units::Limit::Processes => souk_backend::Limit::Processes,
        units::Limit::Disk => souk_backend::Limit::Disk,
    }
}

/// What a requester is told of an instance that did not come up.
pub(super) fn reason(error: &BackendError) -> Reason {
    match (error, error.blame()) {
        (BackendError::NoSuchImage(_), _) => Reason::UnknownImage,
        (BackendError::NoTee { .. }, _) => Reason::TeeMissing,
        (_, Blame::Request) => Reason::LimitNotEnforced,
        (_, Blame::Capacity) => Reason::NoCapacity,
        (_, Blame::Operator | Blame::Bug) => Reason::ProvisionFailed,
    }
}

pub(super) fn usage(usage: &souk_backend::Usage) -> Usage {
    let meter = |meter| match meter {
        souk_backend::Meter::Known(n) => units::Meter::Known(n),
        souk_backend::Meter::Unknown => units::Meter::Unknown,
    };
    Usage {
        cpu_core_ms: meter(usage.cpu_core_ms),
        memory_mib_s: meter(usage.memory_mib_s),
        net_rx_bytes: meter(usage.net_rx_bytes),
        net_tx_bytes: meter(usage.net_tx_bytes),
    }
}

/// The record of an instance that has shown that it speaks SSH; `None` where it does not, or has an impossible user.
pub(super) async fn proven(
    doors: &dyn Doors,
    instance: &Instance,
    now: UnixTime,
) -> Option<InstanceRecord> {
    if !doors.greets(instance.ssh).await {
        return None;
    }
    Some(InstanceRecord {
        ssh: instance.ssh,
        user: instance.user.parse().ok()?,
        host_key: units::HostKey(instance.host_key.0),
        since: now,
    })
}
