//! Why a backend did not do what was asked, by whose fault it was.
//!
//! Threat: a requester who learns the state of the machine from an error. Words are for the operator; what a requester is told
//! follows from the [`Blame`].

use crate::LeaseId;

/// Whose fault an error was; it decides what the requester is told and whether a retry makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The lease asked for something this backend does not do.
    Request,
    /// The backend is full or away for now.
    Capacity,
    /// The machine or its configuration is wrong; the operator must act.
    Operator,
    /// A bug of ours.
    Bug,
}

/// Why a backend did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The image is not in the store of this provider.
    #[error("image {0} is not in the image store")]
    NoSuchImage(crate::ImageHash),
    /// The lease demands what this backend cannot enforce or does not have.
    #[error("lease {lease} asks for {what}, which this backend does not have")]
    Unsupported {
        /// The lease.
        lease: LeaseId,
        /// What was asked for, in words.
        what: String,
    },
    /// The lease demands evidence of a TEE that its instance would not be in.
    #[error("lease {lease} asks for evidence of {tee}, which this backend cannot bring")]
    NoTee {
        /// The lease.
        lease: LeaseId,
        /// Of which TEE.
        tee: crate::Tee,
    },
    /// There is no room now.
    #[error("no room for lease {lease}: {what}")]
    Full {
        /// The lease.
        lease: LeaseId,
        /// Which resource is exhausted.
        what: String,
    },
    /// The machine refuses something that the driver needs.
    #[error("{what}; {hint}")]
    Host {
        /// What failed.
        what: String,
        /// What the operator can do about it.
        hint: String,
        /// The cause.
        #[source]
        source: Option<std::io::Error>,
    },
    /// The instance started and died, or never answered.
    #[error("instance of lease {lease} did not come up: {what}")]
    NotUp {
        /// The lease.
        lease: LeaseId,
        /// What was seen, for the operator.
        what: String,
    },
    /// It is not known whether the call took effect.
    #[error("lease {lease}: outcome unknown: {what}")]
    Unknown {
        /// The lease.
        lease: LeaseId,
        /// What was being done.
        what: String,
    },
}

impl BackendError {
    /// Whose fault this was.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::NoSuchImage(_) | Self::Unsupported { .. } | Self::NoTee { .. } => Blame::Request,
            Self::Full { .. } => Blame::Capacity,
            Self::Host { .. } => Blame::Operator,
            Self::NotUp { .. } | Self::Unknown { .. } => Blame::Bug,
        }
    }
}
