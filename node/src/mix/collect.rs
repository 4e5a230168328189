//! Collects a client's mailbox at its entry, on a clock.
//!
//! ```text
//!  open ─► wait for the tick ─► one batch of fixed size, full or empty ─► frames to the Session ─► ended: released
//!    ▲            ▲                          │ok                  │ the stream broke
//!    │            └──────────────────────────┘                    │
//!    └──── later, at most RETRIES times in a row ◄────────────────┘
//! ```
//!
//! The threat is somebody who watches the client's line and would see a reply arrive: batches come at the same pace and
//! in the same size whether or not there is anything in them.

use std::time::Duration;

use souk_crypto::NodeId;
use souk_sphinx::{Frame, HopAddress};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::net::{Mailbox, MailboxError, MailboxKey, Multiaddr, Peers};

/// Time between two batches: 192 kB/s while a session lives, and 50 ms of waiting for a reply on average.
const TICK: Duration = Duration::from_millis(100);

/// How long to wait before a broken stream is opened again.
const PAUSE: Duration = Duration::from_millis(500);

/// A mailbox outlives the slowest exchange by far, and gives its place at the entry back also where its process was killed. A session
/// that lasts longer registers it again.
const LIFE: Duration = Duration::from_secs(3600);

/// Packets that the mailbox holds: acknowledgements and replies of a few leases.
const QUOTA: u16 = 128;

/// Attempts in a row after which the entry counts as gone.
const RETRIES: u32 = 10;

/// A mailbox at an entry, held for one session.
#[derive(Debug)]
pub struct MailboxCollector {
    peers: Peers,
    entry: NodeId,
    addresses: Vec<Multiaddr>,
    key: MailboxKey,
    mailbox: Mailbox,
}

impl MailboxCollector {
    /// Registers a mailbox with a fresh key at a connected `entry`; `addresses` are where it is dialed again after the
    /// connection broke.
    ///
    /// # Errors
    /// [`MailboxError`] if the entry holds none for this client.
    pub async fn open(
        peers: Peers,
        entry: NodeId,
        addresses: Vec<Multiaddr>,
    ) -> Result<Self, MailboxError> {
        let key = MailboxKey::from_bytes(rand::random());
        let mailbox = register(&peers, entry, &key).await?;
        Ok(Self {
            peers,
            entry,
            addresses,
            key,
            mailbox,
        })
    }

    /// The address of the mailbox, for the session.
    #[must_use]
    pub fn address(&self) -> HopAddress {
        self.key.address()
    }

    /// Collects until nobody takes `frames` any more, and then gives the mailbox back.
    ///
    /// # Errors
    /// [`MailboxError`] when the entry could not be reached ten times in a row.
    pub async fn run(mut self, frames: mpsc::Sender<Frame>) -> Result<(), MailboxError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failed = 0;
        loop {
            tokio::select! {
                () = frames.closed() => break,
                _ = ticks.tick() => {}
            }
            match self.mailbox.collect(Duration::ZERO).await {
                Ok(batch) => {
                    failed = 0;
                    for frame in batch {
                        // Where nobody takes it, the next look sees that.
                        let _ = frames.send(frame).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the mailbox is opened again");
                    self.reopen(&mut failed).await?;
                }
            }
        }
        if let Err(error) = self.mailbox.release().await {
            tracing::debug!(%error, "the entry keeps the mailbox until it needs the place");
        }
        Ok(())
    }

    async fn reopen(&mut self, failed: &mut u32) -> Result<(), MailboxError> {
        loop {
            sleep(PAUSE).await;
            *failed += 1;
            if let Err(error) = self.peers.connect(self.entry, &self.addresses).await {
                tracing::debug!(%error, "the entry is not dialed");
            }
            match register(&self.peers, self.entry, &self.key).await {
                Ok(mailbox) => {
                    self.mailbox = mailbox;
                    return Ok(());
                }
                Err(error) if *failed >= RETRIES => return Err(error),
                Err(error) => tracing::debug!(%error, "the entry is not reached"),
            }
        }
    }
}

async fn register(peers: &Peers, entry: NodeId, key: &MailboxKey) -> Result<Mailbox, MailboxError> {
    peers.open_mailbox(entry, key.clone(), LIFE, QUOTA).await
}
