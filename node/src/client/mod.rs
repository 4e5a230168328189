//! The requester's client: finds a provider, rents, gets in, ends, and checks the account. It has no daemon.
//!
//! ```text
//!  Client (a folder) ── visit ─► Visitor (market, logs) ── connect ─► Connected (entry, mix session) ── rent ─► Lease
//!    │ leases, find                                                    │ resume, poll, end                  │
//!    └ session ◄── ssh's ProxyCommand                                       ssh files, proven statement ◄───┘
//!
//!  rent:  keys and envelope on disk ─► envelope over the mix ─► receipt by SURB
//!             killed here or later: resume polls, and sends the very same envelope where the provider never saw it
//! ```
//!
//! What ties two leases together stays out: keys are drawn for each lease, the network identity for each process, the
//! mailbox for each session. What lasts is the chosen entry, because a new one each time would show the requester to
//! everybody in the end.
//!
//! Threats: entries that show a requester a market of its own (a quorum of them must agree), a provider or relay that
//! learns who rents (the mix, and a relay that the client draws and that is neither entry nor provider), replies that were made for somebody
//! else (bound to the envelope), a crash that starts a lease twice (the same envelope is the same lease).

mod audit;
mod connect;
mod entries;
mod evidence;
mod instance;
mod lease;
mod logs;
mod market;
mod proof;
mod reach;
mod relays;
mod rent;
mod ssh;
mod state;
mod talk;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use souk_crypto::{HolderKey, HolderPublicKey, NetworkId, NetworkParams, NodeId, UnixTime};

use crate::{net::NodeAddress, unix_now};

pub use audit::{BundleError, LogError, VerifiedLog};
pub use connect::{ConnectError, Connected, Visitor};
pub use evidence::{EvidencePolicy, JudgeError, Judgement, Judgements};
pub use lease::{Dispute, Lease, RecordError, RelayWay, Stage, Way};
pub use logs::{ClaimFailure, KeptEvidence, OtherKey};
pub use market::{EntryFailure, MarketError};
pub use proof::{ProvenStatement, StatementError, verify_statement};
pub use reach::{Farewell, GreetError, Notice, PATIENCE, ReachError, SessionStream};
pub use rent::{RentError, RentRequest, VoucherFile};
pub use souk_session::LINGER as SESSION_LINGER;
pub use state::{MAX_LEASES, StateError};
pub use talk::{Ended, TalkError};

/// What a client is built from.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The network.
    pub network: NetworkId,
    /// Its parameters.
    pub params: NetworkParams,
    /// Nodes to ask for their card sets; nobody else's set counts.
    pub entries: Vec<NodeAddress>,
    /// How many card sets are compared, at most [`souk_market::quorum::MAX_ENTRIES`]. Default 3.
    pub entries_asked: usize,
    /// How many of them must show a card. Default 2.
    pub quorum: usize,
    /// This program, for the `ProxyCommand` of `ssh`.
    pub souk: PathBuf,
    /// What is asked of providers and mixes; nothing where absent.
    pub evidence: Option<EvidencePolicy>,
}

impl ClientConfig {
    /// Three card sets compared, of which two must agree.
    #[must_use]
    pub fn new(
        network: NetworkId,
        params: NetworkParams,
        entries: Vec<NodeAddress>,
        souk: PathBuf,
    ) -> Self {
        Self {
            network,
            params,
            entries,
            entries_asked: 3,
            quorum: 2,
            souk,
            evidence: None,
        }
    }
}

/// What a long step is doing now, for who watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Card sets are being taken.
    AskingEntries {
        /// From so many nodes.
        entries: usize,
    },
    /// The market is known.
    Market {
        /// Cards that a quorum showed.
        cards: usize,
        /// Whether all entries showed the same set.
        unanimous: bool,
        /// Entries whose sets were compared.
        entries: usize,
    },
    /// The mailbox at the entry is open.
    Entry {
        /// The entry.
        node: NodeId,
    },
    /// A provider was chosen.
    Provider {
        /// The provider.
        node: NodeId,
        /// How many others would have done.
        others: usize,
    },
    /// Proof of work is being done.
    Working {
        /// Leading zero bits that are asked for.
        bits: u8,
    },
    /// Keys and envelope are on the disk.
    Stored {
        /// The name of the lease here.
        name: String,
    },
    /// The request leaves.
    Sending {
        /// Bytes of the sealed request.
        bytes: usize,
    },
    /// The provider has all of it.
    Delivered,
    /// The provider has not answered yet and is asked again.
    Polling {
        /// For the how-many-th time.
        attempt: u32,
    },
    /// The provider said no, and another one is tried.
    Refused {
        /// Why.
        reason: souk_market::refusal::Reason,
    },
    /// A usage log is being read.
    ReadingLog {
        /// The bundle of entries that is asked for, from 0.
        bundle: u64,
        /// How many there are.
        of: u64,
    },
    /// It broke off, and the rest is asked for.
    ResumingLog {
        /// The bundle that did not come, from 0.
        bundle: u64,
        /// How many there are.
        of: u64,
        /// For the how-many-th time.
        attempt: u32,
    },
    /// The evidence of the instance is fetched.
    Evidence {
        /// Which part of it.
        part: u8,
    },
    /// An answer came.
    Answered {
        /// Bytes of the sealed answer; always the same.
        bytes: usize,
    },
}

/// A watcher of [`Progress`].
pub type Watch<'w> = &'w mut (dyn FnMut(Progress) + Send);

/// A requester's folder.
#[derive(Clone, Debug)]
pub struct Client {
    home: state::Home,
    config: ClientConfig,
}

impl Client {
    /// Opens the folder of a client, making it where there is none.
    ///
    /// # Errors
    /// [`StateError`] where the folder cannot be used, or others have access to it.
    pub fn open(home: &Path, config: ClientConfig) -> Result<Self, StateError> {
        let home = state::Home::open(home)?;
        if !ssh::is_quotable(&config.souk) {
            return Err(StateError::Path { path: config.souk });
        }
        Ok(Self { home, config })
    }

    /// The folder.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &NetworkId {
        &self.config.network
    }

    /// What says which providers and mixes are accepted, if anything does.
    #[must_use]
    pub fn evidence_policy(&self) -> Option<&EvidencePolicy> {
        self.config.evidence.as_ref()
    }

    /// The nodes that are kept as entries, the one that is tried first in front.
    ///
    /// # Errors
    /// [`StateError`] where the record cannot be read.
    pub fn entries(&self) -> Result<Vec<NodeId>, StateError> {
        let entries = entries::Entries::read(&self.home, unix_now())?;
        let first = entries.kept();
        let others = entries.nodes().filter(|node| Some(*node) != first);
        Ok(first.into_iter().chain(others).collect())
    }

    /// All leases, the youngest last. A damaged one fails alone.
    ///
    /// # Errors
    /// [`StateError`] where the folder cannot be listed.
    pub fn leases(&self) -> Result<Vec<Result<Lease, StateError>>, StateError> {
        let folders = self.home.leases()?;
        let mut leases: Vec<_> = folders
            .into_iter()
            .map(|folder| Lease::load(folder, &self.config.network))
            .collect();
        let age = |lease: &Result<Lease, StateError>| {
            lease
                .as_ref()
                .map_or(UnixTime(0), |lease| lease.envelope().grant.accept_by)
        };
        leases.sort_by_key(age);
        Ok(leases)
    }

    /// The one lease whose id, name or `ssh` alias begins with `name`.
    ///
    /// # Errors
    /// [`StateError::Name`] where there is none, or more than one.
    pub fn find(&self, name: &str) -> Result<Lease, StateError> {
        let wanted = name.strip_prefix("souk-").unwrap_or(name);
        // The whole name says which: the others are not even read. `ssh` asks by it.
        if let Some(folder) = self.home.lease(wanted) {
            return Lease::load(folder, &self.config.network);
        }
        let matches = |lease: &Lease| {
            let id = lease
                .id()
                .is_some_and(|id| id.to_string().starts_with(wanted));
            id || lease.name().starts_with(wanted)
        };
        let mut found: Vec<_> = self
            .leases()?
            .into_iter()
            .flatten()
            .filter(matches)
            .collect();
        match found.pop() {
            Some(lease) if found.is_empty() && !wanted.is_empty() => Ok(lease),
            last => {
                let found = found.len() + usize::from(last.is_some());
                Err(StateError::Name {
                    name: name.to_owned(),
                    found,
                })
            }
        }
    }

    /// Takes the market, which costs the entries nothing but its bytes.
    ///
    /// # Errors
    /// [`MarketError`].
    pub async fn visit(&self, watch: Watch<'_>) -> Result<Visitor, MarketError> {
        Visitor::new(self.clone(), watch).await
    }
}

/// A key for a voucher: its holder draws it, an issuer signs for its public half, and it is used for one lease.
#[must_use]
pub fn draw_holder() -> (HolderKey, HolderPublicKey) {
    let key = HolderKey::generate(&mut rand::rng());
    let public = key.public();
    (key, public)
}
