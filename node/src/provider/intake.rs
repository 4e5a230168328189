//! Whether a provider takes new leases, and what it tells its holders about that.

use souk_crypto::UnixTime;
use souk_market::reply::{Notice, NoticeKind};

/// How a provider stands to new leases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intake {
    /// It takes them.
    #[default]
    Open,
    /// It takes none; open ones run to their ends, or to `ends_by`.
    Draining {
        /// When those that are still open are ended.
        ends_by: Option<UnixTime>,
    },
    /// As draining, and the node does not come back.
    Retiring {
        /// When those that are still open are ended.
        ends_by: Option<UnixTime>,
    },
    /// The process ends; instances go on, and another process takes them up.
    Stopping,
}

impl Intake {
    /// Whether a new lease may be accepted.
    pub(super) fn is_open(self) -> bool {
        self == Self::Open
    }

    /// What every reply says of it.
    pub(super) fn notice(self) -> Option<Notice> {
        let (kind, ends_by) = match self {
            Self::Open => return None,
            Self::Draining { ends_by } => (NoticeKind::Drains, ends_by),
            Self::Retiring { ends_by } => (NoticeKind::Retires, ends_by),
            Self::Stopping => (NoticeKind::Stops, None),
        };
        Some(Notice { kind, ends_by })
    }
}
