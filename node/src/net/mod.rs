//! The network: libp2p, and souk's protocols on its streams. It carries bytes and asks validators; it knows nothing of leases.
//!
//! ```text
//!                         ┌───────────────── Driver (one task, owns the swarm) ─────────────────┐
//!  node, mix, provider    │ gate, limits │ identify, ping │ gossip ─► CardValidator │ Kademlia, mDNS │
//!     │                   └──────▲───────────────────────────────────────────────────────▲──────┘
//!     ├── Peers ─────────────────┘ connect, publish, report                        streams │
//!     ├── MixLinks            mix      frames between neighbours                           │
//!     ├── Peers::snapshot     cards    the whole card set, in bulk                         │
//!     ├── MailboxService      mailbox  replies for clients that are away       ────────────┘
//!     ├── RelayRegistrations  relay    sessions to providers without an open port
//!     ├── Peers::read_log     log      usage logs, in bulk
//!     └── Peers::pieces       evidence quotes and collateral, in bulk
//! ```
//!
//! Two personalities: [`Node`] has the identity of its node key, listens, gossips and serves; [`Client`] is a requester
//! who dials entries, has a fresh identity each time, and serves nothing.
//!
//! The threats are strangers who send what they like as fast as they like. Every read has a cap that is checked first and a
//! deadline, everything a stranger can grow has a bound, and a neighbour is punished only for what it did itself
//! (see `conduct.rs`). `docs/network.md` lists frames and bounds.

mod address;
mod afresh;
mod backoff;
mod behaviour;
mod conduct;
mod config;
mod counters;
mod driver;
mod evidence;
mod frame;
mod gate;
mod gossip;
mod links;
mod log;
mod mailbox;
mod names;
mod node;
mod origin;
mod peers;
mod places;
mod rate;
mod reading;
mod relay;
mod single;
mod slots;
mod snapshot;
mod streams;

pub use libp2p::Multiaddr;

pub(crate) use backoff::Backoff;
pub(crate) use streams::io_through;

pub use address::{NodeAddress, NodeAddressError, is_public, node_id, peer_id};
pub use conduct::Offence;
pub use config::{ClientConfig, Limits, NodeConfig};
pub use counters::Totals;
pub use evidence::{MAX_PIECES, MAX_PIECES_BYTES, PieceSource, PiecesError};
pub use frame::FrameError;
pub use gossip::{CardValidator, MAX_CAPACITY_BYTES, MAX_CARD_BYTES, Topic, Verdict};
pub use links::{LINK_QUEUE, MixLinks, STRANGER_PER_SECOND, Wanted};
pub use log::{LogFetchError, LogPath, LogPathError, LogReader, LogSource, MAX_LOG_FILE_BYTES};
pub use mailbox::{
    BATCH_BYTES, BATCH_FRAMES, MAX_LIFETIME, MAX_QUOTA, MAX_WAIT, Mailbox, MailboxError,
    MailboxKey, MailboxService,
};
pub use names::PROTOCOLS;
pub use node::{Client, Node, Services, StartError};
pub use origin::Origin;
pub use peers::{ConnectError, Neighbour, NetInfo, Peers, PublishError};
pub use places::MAX_LINKS;
pub(crate) use rate::{Rates, TokenBucket};
pub use reading::{LogReadError, LogReading, MAX_RESUMES};
pub use relay::{
    MAX_REGISTRATIONS, RelayConnectError, RelayRegistrations, RelayStream, RelayedStream,
    WARM_RELAYS, connect_via,
};
pub use snapshot::{
    MAX_OBJECTS, MAX_SNAPSHOT_BYTES, Snapshot, SnapshotError, SnapshotHead, SnapshotSource,
};
pub use streams::OpenError;
