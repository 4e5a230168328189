//! The card directory of a running node: gossip and snapshots go in, what the other parts need comes out.
//!
//! Threats: bytes from strangers, judged by [`Directory`] alone; a clock of ours that is wrong, which makes every card
//! of the others look wrong (told as a warning, because the node would otherwise just see nobody).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use libp2p::{Multiaddr, multiaddr::Protocol};
use souk_crypto::{NetworkId, NodeId, UnixTime, Verified, sign};
use souk_market::{
    capacity::Capacity,
    card::{Address, Card, Role, Transport, VerifiedCard},
    directory::{Directory, Ignored, MAX_CARDS, Verdict},
};
use souk_sphinx::EpochClock;
use tokio::sync::watch;

use crate::net::{CardValidator, Snapshot, SnapshotSource, Topic, Verdict as NetVerdict};

/// Cards from other nodes that must look as if our clock were wrong before we say so.
const CLOCK_WITNESSES: usize = 2;

/// The directory, shared by the tasks of a node.
#[derive(Debug)]
pub(super) struct Cards {
    directory: Mutex<Directory>,
    network: NetworkId,
    clock: EpochClock,
    now: fn() -> UnixTime,
    /// Nodes whose last card was not of our time; bounded by the directory's own bound on cards.
    mistimed: Mutex<BTreeMap<NodeId, Ignored>>,
    changed: watch::Sender<()>,
}

/// A card with the last capacity of its node.
pub(super) type Listed = (Arc<VerifiedCard>, Option<Arc<Verified<Capacity>>>);

impl Cards {
    pub(super) fn new(
        network: &NetworkId,
        private_addresses: bool,
        clock: EpochClock,
        now: fn() -> UnixTime,
    ) -> Self {
        Self {
            directory: Mutex::new(Directory::new(network.clone(), private_addresses)),
            network: network.clone(),
            clock,
            now,
            mistimed: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Wakes its reader whenever the set of cards has changed.
    pub(super) fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Takes one signed object of a snapshot: a card, a capacity message or a retirement.
    pub(super) fn take(&self, object: &[u8]) {
        if !matches!(self.card(object), Verdict::Reject(_)) {
            return;
        }
        let now = (self.now)();
        let mut directory = self.directory();
        if matches!(directory.handle_capacity(now, object), Verdict::Reject(_))
            && matches!(directory.handle_retirement(now, object), Verdict::Accept)
        {
            drop(directory);
            self.changed.send_replace(());
        }
    }

    /// Forgets what has expired.
    pub(super) fn tick(&self) {
        if self.directory().handle_time((self.now)()) > 0 {
            self.changed.send_replace(());
        }
    }

    /// Usable cards.
    pub(super) fn all(&self) -> Vec<Listed> {
        let directory = self.directory();
        directory
            .cards((self.now)())
            .map(|(card, capacity)| (card.clone(), capacity.cloned()))
            .collect()
    }

    /// Nodes with one of these roles, and the addresses that they can be dialed at.
    pub(super) fn dialable(&self, roles: &[Role]) -> Vec<(NodeId, Vec<Multiaddr>)> {
        let directory = self.directory();
        directory
            .cards((self.now)())
            .filter(|(card, _)| {
                roles.iter().any(|role| card.has_role(*role)) && !card.addresses.is_empty()
            })
            .map(|(card, _)| (card.node, card.addresses.iter().map(multiaddr).collect()))
            .collect()
    }

    /// What is to be said about our own clock, if anything.
    pub(super) fn clock_warning(&self) -> Option<String> {
        let mistimed = self.mistimed.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = self.directory().len();
        if mistimed.len() < CLOCK_WITNESSES.max(usable) {
            return None;
        }
        let future = mistimed
            .values()
            .filter(|verdict| **verdict == Ignored::Future)
            .count();
        let side = if 2 * future >= mistimed.len() {
            "behind"
        } else {
            "ahead of"
        };
        Some(format!(
            "the clock of this machine seems to be {side} that of {} other nodes: their cards are not of its time; set it, by NTP for example",
            mistimed.len()
        ))
    }

    fn card(&self, bytes: &[u8]) -> Verdict {
        let now = (self.now)();
        let mut directory = self.directory();
        let verdict = directory.handle_card(now, bytes);
        match &verdict {
            Verdict::Accept => {
                drop(directory);
                self.remember(bytes, None);
                self.changed.send_replace(());
            }
            Verdict::Ignore(why @ (Ignored::Future | Ignored::Expired)) => {
                drop(directory);
                self.remember(bytes, Some(*why));
            }
            Verdict::Ignore(_) | Verdict::Reject(_) => {}
        }
        verdict
    }

    /// Keeps in mind whether the card of a node was of our time.
    fn remember(&self, bytes: &[u8], mistimed: Option<Ignored>) {
        let mut all = self.mistimed.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() && mistimed.is_none() {
            return;
        }
        let Ok(card) = sign::open::<Card>(bytes, &self.network) else {
            return;
        };
        match mistimed {
            Some(why) if all.len() < MAX_CARDS => drop(all.insert(card.node, why)),
            Some(_) => {}
            None => drop(all.remove(&card.node)),
        }
    }

    fn directory(&self) -> MutexGuard<'_, Directory> {
        self.directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl CardValidator for Cards {
    fn validate(&self, topic: Topic, message: &[u8]) -> NetVerdict {
        let now = (self.now)();
        let verdict = match topic {
            Topic::Cards => match self.card(message) {
                Verdict::Reject(_) => {
                    let verdict = self.directory().handle_retirement(now, message);
                    if matches!(verdict, Verdict::Accept) {
                        self.changed.send_replace(());
                    }
                    verdict
                }
                verdict => verdict,
            },
            Topic::Capacity => self.directory().handle_capacity(now, message),
        };
        match verdict {
            Verdict::Accept => NetVerdict::Accept,
            Verdict::Ignore(_) => NetVerdict::Ignore,
            Verdict::Reject(_) => NetVerdict::Reject,
        }
    }
}

impl SnapshotSource for Cards {
    fn snapshot(&self) -> Snapshot {
        let now = (self.now)();
        let snapshot = self
            .directory()
            .snapshot(now, u64::from(self.clock.at(now).0));
        Snapshot {
            epoch: snapshot.epoch(),
            root: snapshot.root().0,
            objects: snapshot.objects().map(Bytes::copy_from_slice).collect(),
        }
    }
}

/// The address of a card as libp2p writes it.
pub(super) fn multiaddr(address: &Address) -> Multiaddr {
    let ip = Multiaddr::from(address.ip);
    match address.transport {
        Transport::Tcp => ip.with(Protocol::Tcp(address.port)),
        Transport::Quic => ip.with(Protocol::Udp(address.port)).with(Protocol::QuicV1),
    }
}

/// The address of a card for one that libp2p listens on or announces; `None` for what a card cannot hold.
pub(super) fn card_address(address: &Multiaddr) -> Option<Address> {
    let parts: Vec<_> = address
        .iter()
        .filter(|part| !matches!(part, Protocol::P2p(_)))
        .collect();
    let (ip, rest) = parts.split_first()?;
    let ip = match ip {
        Protocol::Ip4(ip) => (*ip).into(),
        Protocol::Ip6(ip) => (*ip).into(),
        _ => return None,
    };
    let (transport, port) = match rest {
        [Protocol::Tcp(port)] => (Transport::Tcp, *port),
        [Protocol::Udp(port), Protocol::QuicV1] => (Transport::Quic, *port),
        _ => return None,
    };
    (port != 0).then_some(Address {
        ip,
        transport,
        port,
    })
}
