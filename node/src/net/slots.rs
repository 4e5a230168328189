//! Places for those who are served at the same time: so many for all, and so many of them for one address.
//!
//! Threat: one address that takes all places and keeps them. Peer ids cost nothing, so what is counted is the [`Origin`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::origin::Origin;

/// The places of one protocol; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    most: usize,
    most_of_origin: usize,
    taken: Arc<Mutex<Taken>>,
}

/// How many places are taken, together and by origin; no more entries than places.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_origin: HashMap<Origin, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    origin: Origin,
    taken: Arc<Mutex<Taken>>,
}

impl Slots {
    pub(super) fn new(most: usize, most_of_origin: usize) -> Self {
        let taken = Arc::default();
        Self {
            most,
            most_of_origin,
            taken,
        }
    }

    /// Takes a place for somebody at `origin` if there is one.
    pub(super) fn try_take(&self, origin: Origin) -> Option<Slot> {
        let mut taken = lock(&self.taken);
        let of_origin = taken.of_origin.get(&origin).copied().unwrap_or(0);
        if taken.all >= self.most || of_origin >= self.most_of_origin {
            return None;
        }
        taken.all += 1;
        taken.of_origin.insert(origin, of_origin + 1);
        let taken = Arc::clone(&self.taken);
        Some(Slot { origin, taken })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.all -= 1;
        if let Some(count) = taken.of_origin.get_mut(&self.origin) {
            *count -= 1;
            if *count == 0 {
                taken.of_origin.remove(&self.origin);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

    use super::{super::origin::Origins, *};

    fn origin(origins: &Origins, host: u8) -> Origin {
        let (peer, at) = (PeerId::random(), format!("/ip4/192.0.2.{host}/tcp/1"));
        let at: Multiaddr = at.parse().expect("an address");
        origins.handle_established(peer, ConnectionId::new_unchecked(host.into()), &at, false);
        origins.of(&peer)
    }

    #[test]
    fn one_address_never_takes_all_places_and_gets_its_own_back() {
        let (slots, origins) = (Slots::new(5, 2), Origins::new([7; 32]));
        let (greedy, other, third) = (
            origin(&origins, 1),
            origin(&origins, 2),
            origin(&origins, 3),
        );
        let mut held: Vec<_> = (0..9).filter_map(|_| slots.try_take(greedy)).collect();
        assert_eq!(held.len(), 2);
        held.pop();
        held.extend(slots.try_take(greedy));
        assert_eq!(held.len(), 2);
        held.extend((0..9).filter_map(|_| slots.try_take(other)));
        held.extend((0..9).filter_map(|_| slots.try_take(third)));
        assert_eq!(held.len(), 5, "no more than all places");
        held.clear();
        let taken = lock(&slots.taken);
        assert_eq!((taken.all, taken.of_origin.len()), (0, 0));
    }
}
