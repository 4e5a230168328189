//! Meter readings of a lease.
//!
//! Threat: a meter that failed and reads as zero would be a lease for nothing, or a bill that nobody can check: it is unknown.

use serde::{Deserialize, Serialize};

/// A meter reading. A meter that failed is unknown, which is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Meter {
    /// Measured from outside of the instance.
    Known(u64),
    /// The meter failed at least once, so the total cannot be told.
    Unknown,
}

impl Meter {
    /// The reading, where there is one.
    #[must_use]
    pub fn known(self) -> Option<u64> {
        match self {
            Self::Known(n) => Some(n),
            Self::Unknown => None,
        }
    }
}

/// Totals since the instance was provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time, in core-milliseconds.
    pub cpu_core_ms: Meter,
    /// Memory in use over time, in MiB-seconds.
    pub memory_mib_s: Meter,
    /// Bytes that entered the instance over its listeners.
    pub net_rx_bytes: Meter,
    /// Bytes that left the instance over its listeners.
    pub net_tx_bytes: Meter,
}

impl Usage {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        cpu_core_ms: Meter::Unknown,
        memory_mib_s: Meter::Unknown,
        net_rx_bytes: Meter::Unknown,
        net_tx_bytes: Meter::Unknown,
    };
}

/// What a lease has used until an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageSample {
    /// When it was taken, in Unix milliseconds.
    pub taken_at_unix_ms: u64,
    /// Totals until then.
    pub usage: Usage,
}
