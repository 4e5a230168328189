//! What goes out: the end of the program, or something to be asked of the node. The state only says so; its shell does it.

use serde::{Deserialize, Serialize};

use crate::text::duration;

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// End the program.
    Quit,
    /// Ask the node for something, and bring back an [`Event::Done`](crate::Event::Done).
    Do(Deed),
}

/// What the node is asked for. Nothing of this is done before the operator has said yes to [`Deed::question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Deed {
    /// Take no new leases.
    Drain,
    /// Take leases again.
    Resume,
    /// Make a new card.
    RefreshCard,
    /// Place no new leases at a backend.
    Pause {
        /// Its name.
        backend: String,
    },
    /// Place them again.
    Unpause {
        /// Its name.
        backend: String,
    },
    /// Remove an instance that no lease owns.
    Reap {
        /// Where it is.
        backend: String,
        /// Whose id it carries.
        lease: String,
    },
    /// End a lease before its time.
    EndLease {
        /// Its id.
        lease: String,
        /// Where it runs.
        backend: String,
        /// Since it was accepted, when it was asked.
        age_s: u64,
        /// Until it ends by itself, when it was asked.
        left_s: u64,
    },
}

impl Deed {
    /// What is asked before it is done.
    #[must_use]
    pub fn question(&self) -> String {
        match self {
            Self::Drain => "Take no new leases?".to_owned(),
            Self::Resume => "Take leases again?".to_owned(),
            Self::RefreshCard => "Make and publish a new card?".to_owned(),
            Self::Pause { backend } => format!("Place no new leases at {backend}?"),
            Self::Unpause { backend } => format!("Place new leases at {backend} again?"),
            Self::Reap { backend, lease } => {
                format!("Remove the instance {} at {backend}?", short(lease))
            }
            Self::EndLease {
                lease,
                backend,
                age_s,
                left_s,
            } => format!(
                "End the lease {} at {backend}, {} old, {} left?",
                short(lease),
                duration(*age_s),
                duration(*left_s)
            ),
        }
    }

    /// What will happen then.
    #[must_use]
    pub const fn consequence(&self) -> &'static str {
        match self {
            Self::Drain => {
                "Open leases run to their ends and their holders are told. The node stays drained over a restart, until it is told to resume."
            }
            Self::Resume => {
                "A drain or a retirement under way is taken back; a new card offers the machine again."
            }
            Self::RefreshCard => {
                "The card gets a new sequence and is sent to all nodes. Requests that were made against the old card are honoured."
            }
            Self::Pause { .. } => {
                "Leases that run there go on. The card's capacity says that there is no room. It stays so over a restart."
            }
            Self::Unpause { .. } => "The card's capacity shows its room again.",
            Self::Reap { .. } => {
                "No lease owns it. Whether one does is asked once more; if not, it is terminated now instead of after its grace, and what is in it is lost."
            }
            Self::EndLease { .. } => {
                "Its machine is terminated and what is in it is lost. The usage log says that the provider ended it. This cannot be taken back."
            }
        }
    }

    /// What is said once it was done.
    #[must_use]
    pub fn done(&self) -> String {
        match self {
            Self::Drain => "the node takes no new leases".to_owned(),
            Self::Resume => "the node takes leases again".to_owned(),
            Self::RefreshCard => "a new card was made".to_owned(),
            Self::Pause { backend } => format!("no new leases are placed at {backend}"),
            Self::Unpause { backend } => format!("new leases are placed at {backend} again"),
            Self::Reap { lease, .. } => format!("the instance {} is being removed", short(lease)),
            Self::EndLease { lease, .. } => format!("the lease {} is ending", short(lease)),
        }
    }
}

/// The first digits of an id, for sentences.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
