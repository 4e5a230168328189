//! The mailboxes of an entry as a core without I/O.
//!
//! ```text
//!  register ──► empty ──deposit──► holding ──collect(ack)──► empty
//!                 │                   │ frames older than MAX_AGE are dropped
//!                 └── expiry, or room needed and long not collected ──► gone
//! ```
//!
//! A mailbox's address is a hash of its key, so whoever knows the key is the owner, and nobody can register the address of a
//! node and swallow what is meant for it. A batch stays until it is acknowledged: a connection that breaks loses nothing.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use souk_sphinx::{Frame, HopAddress};
use souk_wire::mailbox::Batch;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::net::origin::Origin;

/// Mailboxes at one entry.
pub(super) const MAX_MAILBOXES: usize = 2_048;

/// Mailboxes that one peer opened. A client needs one; another while it changes.
pub(super) const MAX_OF_PEER: usize = 4;

/// Mailboxes opened from one address, an eighth of all: a household or a university behind it, but not one stranger with very
/// many identities.
pub(super) const MAX_OF_ORIGIN: usize = MAX_MAILBOXES / 8;

/// Frames that one mailbox may hold; a registration with more is cut to it. A final statement takes one packet.
pub const MAX_QUOTA: u16 = 256;

/// Frames of all mailboxes: 10 MiB. When it is reached, the fullest mailbox loses its oldest frame.
pub(super) const MAX_HELD: usize = 4_096;

/// Longest lifetime of a registration. It is renewed by registering again.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Age at which a frame is dropped; its sender has long given up by then.
pub(super) const MAX_AGE: Duration = Duration::from_secs(15 * 60);

/// A mailbox that was not collected for this long makes room for a new one, where room is needed.
const ABANDONED: Duration = Duration::from_secs(120);

/// The capability of a mailbox: whoever holds it collects. It is drawn at random and known to the client and its entry only.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MailboxKey([u8; 32]);

impl MailboxKey {
    /// Takes 32 random bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret bytes, for the client's state file.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The address of the mailbox, which stands as the last hop in the client's SURBs.
    pub fn address(&self) -> HopAddress {
        HopAddress(blake3::derive_key("souk mailbox address v1", &self.0))
    }
}

impl fmt::Debug for MailboxKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MailboxKey(..)")
    }
}

/// Who opened a mailbox, to be counted by. The origin is a hash that says nothing outside this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) peer: PeerId,
    pub(super) origin: Origin,
}

/// Why a mailbox was not registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the entry has no room for another mailbox")]
pub(super) struct NoRoom;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deposited {
    /// It waits for its client.
    Held,
    /// The mailbox is full.
    Full,
}

/// All mailboxes of one entry.
#[derive(Debug, Default)]
pub(super) struct MailboxStore {
    boxes: HashMap<HopAddress, Mailbox>,
    held: usize,
}

#[derive(Debug)]
struct Mailbox {
    owner: Owner,
    quota: usize,
    expires: Instant,
    collected: Instant,
    frames: VecDeque<(Instant, Frame)>,
    // Number of the frame before the first in the queue; numbers start at one.
    acknowledged: u64,
}

impl MailboxStore {
    /// Registers the mailbox of `key`, or renews it: then it is the mailbox of whoever did so last, among its others. For no time at
    /// all, it gives the mailbox back with what is in it.
    ///
    /// # Errors
    /// [`NoRoom`] where there are [`MAX_MAILBOXES`], or of this owner, beside this one, [`MAX_OF_PEER`] or [`MAX_OF_ORIGIN`], and all of them are in use.
    pub(super) fn handle_register(
        &mut self,
        key: &MailboxKey,
        owner: Owner,
        lifetime: Duration,
        quota: u16,
        now: Instant,
    ) -> Result<(), NoRoom> {
        let address = key.address();
        if lifetime.is_zero() {
            self.remove(&address);
            return Ok(());
        }
        match self.boxes.get(&address).map(|mailbox| mailbox.owner) {
            None => {
                self.make_room_of(owner, &address, now)?;
                self.make_room_among(|_, _| true, MAX_MAILBOXES, now)?;
            }
            // Else who holds many keys would take places under other identities, and put all of them under one.
            Some(before) if before != owner => self.make_room_of(owner, &address, now)?,
            Some(_) => {}
        }
        let mailbox = self.boxes.entry(address).or_insert(Mailbox {
            owner,
            quota: 0,
            expires: now,
            collected: now,
            frames: VecDeque::new(),
            acknowledged: 0,
        });
        mailbox.owner = owner;
        mailbox.quota = usize::from(quota.min(MAX_QUOTA));
        mailbox.expires = now + lifetime.min(MAX_LIFETIME);
        mailbox.collected = now;
        Ok(())
    }

    /// Holds a frame for the mailbox of `address`; gives it back where there is none.
    pub(super) fn handle_deposit(
        &mut self,
        address: &HopAddress,
        frame: Frame,
        now: Instant,
    ) -> Result<Deposited, Frame> {
        let Some(mailbox) = self.boxes.get(address).filter(|m| now < m.expires) else {
            return Err(frame);
        };
        if mailbox.frames.len() >= mailbox.quota {
            return Ok(Deposited::Full);
        }
        if self.held >= MAX_HELD && !self.drop_from_fullest(mailbox.frames.len()) {
            return Ok(Deposited::Full);
        }
        if let Some(mailbox) = self.boxes.get_mut(address) {
            mailbox.frames.push_back((now, frame));
            self.held += 1;
        }
        Ok(Deposited::Held)
    }

    /// Forgets the frames up to number `acknowledged` and returns up to `max` that follow; `None` where the key opens
    /// no mailbox.
    pub(super) fn handle_collect(
        &mut self,
        key: &MailboxKey,
        acknowledged: u64,
        max: usize,
        now: Instant,
    ) -> Option<Batch> {
        let mailbox = self
            .boxes
            .get_mut(&key.address())
            .filter(|m| now < m.expires)?;
        mailbox.collected = now;
        while mailbox.acknowledged < acknowledged && mailbox.frames.pop_front().is_some() {
            mailbox.acknowledged += 1;
            self.held -= 1;
        }
        let frames: Vec<Frame> = mailbox
            .frames
            .iter()
            .take(max)
            .map(|(_, frame)| frame.clone())
            .collect();
        Some(Batch {
            last: mailbox.acknowledged + frames.len() as u64,
            frames,
        })
    }

    /// Drops what has expired.
    pub(super) fn handle_time(&mut self, now: Instant) {
        self.boxes.retain(|_, mailbox| now < mailbox.expires);
        for mailbox in self.boxes.values_mut() {
            while mailbox
                .frames
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= MAX_AGE)
            {
                mailbox.drop_oldest();
            }
        }
        self.held = self.boxes.values().map(|m| m.frames.len()).sum();
    }

    /// Frames held now.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Makes room for `owner` to have the mailbox of `address` beside its others, among its own, so that nobody pays for another's
    /// greed.
    fn make_room_of(
        &mut self,
        owner: Owner,
        address: &HopAddress,
        now: Instant,
    ) -> Result<(), NoRoom> {
        let of_peer = |a: &HopAddress, m: &Mailbox| a != address && m.owner.peer == owner.peer;
        let of_origin =
            |a: &HopAddress, m: &Mailbox| a != address && m.owner.origin == owner.origin;
        self.make_room_among(of_peer, MAX_OF_PEER, now)?;
        self.make_room_among(of_origin, MAX_OF_ORIGIN, now)
    }

    /// Sees to it that there are fewer than `max` of those that count: one that was abandoned goes.
    fn make_room_among(
        &mut self,
        counts: impl Fn(&HopAddress, &Mailbox) -> bool,
        max: usize,
        now: Instant,
    ) -> Result<(), NoRoom> {
        let among = || {
            self.boxes
                .iter()
                .filter(|(address, mailbox)| counts(address, mailbox))
        };
        if among().count() < max {
            return Ok(());
        }
        let oldest = among().min_by_key(|(_, mailbox)| mailbox.collected.min(mailbox.expires));
        let (address, mailbox) = oldest.ok_or(NoRoom)?;
        let unused = now.saturating_duration_since(mailbox.collected);
        if unused < ABANDONED && now < mailbox.expires {
            return Err(NoRoom);
        }
        let address = *address;
        self.remove(&address);
        Ok(())
    }

    fn remove(&mut self, address: &HopAddress) {
        if let Some(gone) = self.boxes.remove(address) {
            self.held -= gone.frames.len();
        }
    }

    /// Whether a mailbox fuller than `than` lost its oldest frame.
    fn drop_from_fullest(&mut self, than: usize) -> bool {
        let fullest = self.boxes.values_mut().max_by_key(|m| m.frames.len());
        match fullest {
            Some(mailbox) if mailbox.frames.len() > than => {
                mailbox.drop_oldest();
                self.held -= 1;
                true
            }
            _ => false,
        }
    }
}

impl Mailbox {
    fn drop_oldest(&mut self) {
        if self.frames.pop_front().is_some() {
            self.acknowledged += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_sphinx::{Epoch, Packet, packet::PACKET_LEN};

    use super::*;
    use crate::net::origin::Origins;

    fn key(n: u16) -> MailboxKey {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&n.to_be_bytes());
        MailboxKey::from_bytes(bytes)
    }

    /// The `n`th peer, from an address that it shares with a few.
    fn owner(n: u16) -> Owner {
        Owner {
            peer: peer(n),
            origin: origin(n / 64),
        }
    }

    fn peer(n: u16) -> PeerId {
        let digest = [&n.to_be_bytes()[..], &[7; 30]].concat();
        let hash = libp2p::core::multihash::Multihash::wrap(0x12, &digest).expect("32 bytes");
        PeerId::from_multihash(hash).expect("a SHA-256 peer id")
    }

    fn origin(n: u16) -> Origin {
        let origins = Origins::new([0; 32]);
        let address = format!("/ip4/203.0.{}.{}/tcp/1", n >> 8, n & 0xff);
        let id = libp2p::swarm::ConnectionId::new_unchecked(1);
        origins.handle_established(
            peer(0),
            id,
            &address.parse().expect("a multiaddress"),
            false,
        );
        origins.of(&peer(0))
    }

    fn frame(n: u32) -> Frame {
        Frame {
            epoch: Epoch(n),
            packet: Packet::from_bytes(&[0; PACKET_LEN]).expect("the one size"),
        }
    }

    fn numbers(batch: &Batch) -> Vec<u32> {
        batch.frames.iter().map(|frame| frame.epoch.0).collect()
    }

    const DAY: Duration = MAX_LIFETIME;

    #[test]
    fn a_batch_stays_until_it_is_acknowledged() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        store
            .handle_register(&key(1), owner(1), DAY, 10, now)
            .unwrap();
        for n in 0..5 {
            store
                .handle_deposit(&key(1).address(), frame(n), now)
                .unwrap();
        }
        let first = store.handle_collect(&key(1), 0, 3, now).unwrap();
        assert_eq!(numbers(&first), [0, 1, 2]);
        // The answer was lost: the same again.
        assert_eq!(store.handle_collect(&key(1), 0, 3, now).unwrap(), first);
        let second = store.handle_collect(&key(1), first.last, 3, now).unwrap();
        assert_eq!(numbers(&second), [3, 4]);
        let last = store.handle_collect(&key(1), second.last, 3, now).unwrap();
        assert!(last.frames.is_empty() && store.held() == 0);
    }

    #[test]
    fn only_the_holder_of_the_key_collects_and_nobody_takes_a_nodes_address() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        store
            .handle_register(&key(1), owner(1), DAY, 10, now)
            .unwrap();
        assert!(store.handle_collect(&key(2), 0, 8, now).is_none());
        // The address is no key: who has seen it on a packet cannot collect with it.
        let address_as_key = MailboxKey::from_bytes(key(1).address().0);
        assert!(store.handle_collect(&address_as_key, 0, 8, now).is_none());
        let node = HopAddress([3; 32]);
        store
            .handle_register(&MailboxKey::from_bytes(node.0), owner(3), DAY, 10, now)
            .unwrap();
        assert!(store.handle_deposit(&node, frame(0), now).is_err());
    }

    #[test]
    fn acknowledging_the_future_only_empties_the_box() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        store
            .handle_register(&key(1), owner(1), DAY, 10, now)
            .unwrap();
        store
            .handle_deposit(&key(1).address(), frame(0), now)
            .unwrap();
        let batch = store.handle_collect(&key(1), u64::MAX, 8, now).unwrap();
        assert_eq!((batch.last, batch.frames.len()), (1, 0));
        store
            .handle_deposit(&key(1).address(), frame(1), now)
            .unwrap();
        let batch = store.handle_collect(&key(1), batch.last, 8, now).unwrap();
        assert_eq!(numbers(&batch), [1]);
    }

    #[test]
    fn quota_age_and_expiry_bound_a_mailbox() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let lifetime = 2 * MAX_AGE;
        store
            .handle_register(&key(1), owner(1), lifetime, 1, now)
            .unwrap();
        let address = key(1).address();
        assert_eq!(
            store.handle_deposit(&address, frame(0), now),
            Ok(Deposited::Held)
        );
        assert_eq!(
            store.handle_deposit(&address, frame(1), now),
            Ok(Deposited::Full)
        );
        store.handle_time(now + MAX_AGE);
        assert_eq!(store.held(), 0);
        assert!(store.handle_collect(&key(1), 0, 8, now + MAX_AGE).is_some());
        assert!(
            store
                .handle_collect(&key(1), 0, 8, now + lifetime)
                .is_none()
        );
    }

    #[test]
    fn a_flood_costs_the_flooder_and_not_its_neighbours() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let full = u16::try_from(MAX_HELD).unwrap() / MAX_QUOTA;
        for n in 0..=full {
            store
                .handle_register(&key(n), owner(n), DAY, u16::MAX, now)
                .unwrap();
        }
        for n in 0..full {
            for _ in 0..MAX_QUOTA {
                store
                    .handle_deposit(&key(n).address(), frame(0), now)
                    .unwrap();
            }
        }
        assert_eq!(store.held(), MAX_HELD);
        let honest = key(full).address();
        assert_eq!(
            store.handle_deposit(&honest, frame(9), now),
            Ok(Deposited::Held)
        );
        assert_eq!(store.held(), MAX_HELD);
        let batch = store.handle_collect(&key(full), 0, 8, now).unwrap();
        assert_eq!(numbers(&batch), [9]);
    }

    #[test]
    fn a_mailbox_that_was_given_back_leaves_its_place_and_no_frame() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let stranger = |n| Owner {
            peer: peer(n),
            origin: origin(1),
        };
        let max = u16::try_from(MAX_OF_ORIGIN).unwrap();
        let mut register =
            |n, lifetime| store.handle_register(&key(n), stranger(n), lifetime, 1, now);
        for n in 0..max {
            register(n, DAY).unwrap();
        }
        assert_eq!(register(max, DAY), Err(NoRoom));
        register(7, Duration::ZERO).unwrap();
        register(max, DAY).unwrap();
        let address = key(max).address();
        store.handle_deposit(&address, frame(0), now).unwrap();
        let given_back = store.handle_register(&key(max), stranger(max), Duration::ZERO, 1, now);
        assert_eq!((given_back, store.held()), (Ok(()), 0));
        assert!(store.handle_collect(&key(max), 0, 8, now).is_none());
        // One that there never was is given back all the same.
        let unknown = store.handle_register(&key(999), stranger(9), Duration::ZERO, 1, now);
        assert_eq!(unknown, Ok(()));
    }

    #[test]
    fn registrations_are_bounded_and_abandoned_ones_make_room() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let max = u16::try_from(MAX_MAILBOXES).unwrap();
        for n in 0..max {
            store
                .handle_register(&key(n), owner(n), DAY, 1, now)
                .unwrap();
        }
        assert_eq!(
            store.handle_register(&key(max), owner(max), DAY, 1, now),
            Err(NoRoom)
        );
        // Who is there already may renew.
        store
            .handle_register(&key(0), owner(0), DAY, 1, now)
            .unwrap();
        store
            .handle_register(&key(max), owner(max), DAY, 1, now + ABANDONED)
            .unwrap();
        assert_eq!(store.boxes.len(), MAX_MAILBOXES);
    }

    #[test]
    fn one_peer_and_one_address_have_their_share_of_places() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let greedy = owner(0);
        let mut open = |n: usize, owner, now| {
            let key = key(u16::try_from(n).unwrap());
            store.handle_register(&key, owner, DAY, 1, now)
        };
        for n in 0..MAX_OF_PEER {
            open(n, greedy, now).unwrap();
        }
        assert_eq!(open(MAX_OF_PEER, greedy, now), Err(NoRoom));
        // With ever more identities, from the same address.
        let origin = greedy.origin;
        let mut fresh = (1..).map(|n| Owner {
            peer: peer(n),
            origin,
        });
        for n in MAX_OF_PEER..MAX_OF_ORIGIN {
            open(n, fresh.next().unwrap(), now).unwrap();
        }
        let more = fresh.next().unwrap();
        assert_eq!(open(MAX_OF_ORIGIN, more, now), Err(NoRoom));
        // Others have room, and an abandoned one of its own makes some.
        open(MAX_OF_ORIGIN, owner(6_000), now).unwrap();
        open(MAX_OF_ORIGIN + 1, more, now + ABANDONED).unwrap();
        assert_eq!(store.boxes.len(), MAX_OF_ORIGIN + 1);
    }

    #[test]
    fn renewing_gets_nobody_past_the_bounds() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        let max = u16::try_from(MAX_OF_ORIGIN).unwrap();
        // From several addresses, as many mailboxes as one may have and one more.
        for n in 0..=max {
            store
                .handle_register(&key(n), owner(n), DAY, 1, now)
                .unwrap();
        }
        let mut renew = |n: u16, peer: PeerId| {
            let origin = origin(5_000);
            store.handle_register(&key(n), Owner { peer, origin }, DAY, 1, now)
        };
        for n in 0..max {
            renew(n, peer(n)).unwrap();
        }
        assert_eq!(renew(max, peer(max)), Err(NoRoom));
        // Who has its places may renew them, under another identity, too.
        renew(0, peer(0)).unwrap();
        renew(0, peer(7_000)).unwrap();
        for n in 1..u16::try_from(MAX_OF_PEER).unwrap() {
            renew(n, peer(7_000)).unwrap();
        }
        assert_eq!(renew(20, peer(7_000)), Err(NoRoom));
        assert_eq!(store.boxes.len(), MAX_OF_ORIGIN + 1);
    }

    #[test]
    fn a_client_that_comes_back_under_another_identity_keeps_its_mailbox() {
        let (mut store, now) = (MailboxStore::default(), Instant::now());
        store
            .handle_register(&key(1), owner(1), DAY, 1, now)
            .unwrap();
        store
            .handle_register(&key(1), owner(2), DAY, 1, now)
            .unwrap();
        for n in 2..=MAX_OF_PEER {
            let n = u16::try_from(n).unwrap();
            store
                .handle_register(&key(n), owner(2), DAY, 1, now)
                .unwrap();
        }
        assert_eq!(
            store.handle_register(&key(99), owner(2), DAY, 1, now),
            Err(NoRoom)
        );
        store
            .handle_register(&key(99), owner(1), DAY, 1, now)
            .unwrap();
    }
}
