//! Routes, drawn at random and the same shape for everybody.
//!
//! ```text
//!  forward   entry ─► mix ─► mix ─► destination
//!  reply     mix ─► mix ─► entry ─► mailbox          (made by the client, used by the provider)
//! ```
//!
//! No node stands on a route twice, no mix of it belongs to another hop as far as there are others, and the destination never
//! passes its own traffic. A reply route never *starts* at the client's entry: the provider would learn it from the SURB. The
//! client is the last hop of its replies under the address of a mailbox, so its entry only ever sees packets that are still
//! sealed.

use rand_core::Rng;

use crate::packet::{Hop, HopAddress, MAX_HOPS};
use crate::topology::{Group, Topology};

/// Mixes between the entry and the destination, for everybody.
pub const MIXES: usize = 2;

/// The hops of a packet: at least one, at most [`MAX_HOPS`], none twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route(Vec<Hop>);

impl Route {
    /// Takes hops that somebody chose.
    ///
    /// # Errors
    /// [`RouteError`] if there is no hop, too many, or one twice.
    pub fn new(hops: Vec<Hop>) -> Result<Self, RouteError> {
        if hops.is_empty() || hops.len() > MAX_HOPS {
            return Err(RouteError::Length { got: hops.len() });
        }
        let twice = |(at, hop): (usize, &Hop)| {
            hops[..at]
                .iter()
                .any(|earlier| earlier.address == hop.address)
        };
        if hops.iter().enumerate().any(twice) {
            return Err(RouteError::Twice);
        }
        Ok(Self(hops))
    }

    /// Draws a route from a client's `entry` over two mixes of `topology` to `destination`.
    ///
    /// Neither mix is of the group of the other or of an end; such mixes are taken only where there are too few others.
    ///
    /// `avoid` names a node for each earlier attempt that went over it and may have failed by it, the more often the
    /// more it is suspected. The nodes named
    /// least often are taken, so a resend takes a fresh route, and a dead node is singled out in a few attempts.
    ///
    /// # Errors
    /// [`RouteError::TooFewMixes`] if fewer than two mixes are neither the entry nor the destination, and
    /// [`RouteError::Twice`] if the entry is the destination.
    pub fn forward(
        entry: Hop,
        topology: &Topology,
        destination: Hop,
        avoid: &[HopAddress],
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Self, RouteError> {
        let taken = [entry.address, destination.address];
        let [first, second] = draw_mixes(topology, &taken, avoid, rng)?;
        Self::new(vec![entry, first, second, destination])
    }

    /// Draws the route of a reply: over two mixes of `topology` and the client's `entry` to its `mailbox`.
    ///
    /// `correspondent` is the one who will use the SURB, and is never on the route. Its group is that of an end, and `avoid` is as in
    /// [`Self::forward`].
    ///
    /// # Errors
    /// [`RouteError::TooFewMixes`] if fewer than two mixes are neither the entry nor the correspondent.
    pub fn reply(
        entry: Hop,
        topology: &Topology,
        mailbox: Hop,
        correspondent: HopAddress,
        avoid: &[HopAddress],
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Self, RouteError> {
        let taken = [entry.address, mailbox.address, correspondent];
        let [first, second] = draw_mixes(topology, &taken, avoid, rng)?;
        Self::new(vec![first, second, entry, mailbox])
    }

    /// The hops in their order.
    #[must_use]
    pub fn hops(&self) -> &[Hop] {
        &self.0
    }

    /// The hop that the packet is handed to first.
    #[must_use]
    pub fn first(&self) -> &Hop {
        self.0.first().expect("a route has at least one hop")
    }

    /// The hop that the packet ends at.
    #[must_use]
    pub fn last(&self) -> &Hop {
        self.0.last().expect("a route has at least one hop")
    }
}

/// Draws two different mixes, uniformly among those not taken that belong to nobody on the route and that `avoid` names least often.
fn draw_mixes(
    topology: &Topology,
    taken: &[HopAddress],
    avoid: &[HopAddress],
    rng: &mut (impl Rng + ?Sized),
) -> Result<[Hop; MIXES], RouteError> {
    let mixes = topology.mixes().iter();
    let mut free: Vec<Hop> = mixes
        .filter(|hop| !taken.contains(&hop.address))
        .copied()
        .collect();
    if free.len() < MIXES {
        return Err(RouteError::TooFewMixes { free: free.len() });
    }
    let named = taken.iter().filter_map(|node| topology.group(*node));
    let mut groups: Vec<Group> = named.collect();
    let mut pick = || {
        let is_kin = |hop: &Hop| {
            let group = topology.group(hop.address);
            group.is_some_and(|group| groups.contains(&group))
        };
        let blame = |hop: &Hop| avoid.iter().filter(|node| **node == hop.address).count();
        let ranks: Vec<_> = free.iter().map(|hop| (is_kin(hop), blame(hop))).collect();
        let best = ranks.iter().min();
        let wanted: Vec<usize> = (0..free.len())
            .filter(|at| Some(&ranks[*at]) == best)
            .collect();
        let drawn = free.swap_remove(wanted[below(wanted.len(), rng)]);
        groups.extend(topology.group(drawn.address));
        drawn
    };
    let mut drawn = [pick(), pick()];
    // The least blamed is picked first; which position it takes must not show that.
    if below(2, rng) == 1 {
        drawn.reverse();
    }
    Ok(drawn)
}

/// A uniform index below `bound`, which is at least one.
pub(crate) fn below(bound: usize, rng: &mut (impl Rng + ?Sized)) -> usize {
    let bound = u64::try_from(bound).expect("an index fits 64 bits").max(1);
    // Values past the largest multiple of the bound would favour the low indices.
    let limit = u64::MAX - u64::MAX % bound;
    loop {
        let value = rng.next_u64();
        if value < limit {
            return usize::try_from(value % bound).expect("below a usize");
        }
    }
}

/// Why no route could be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No hop, or more than a header holds.
    #[error("a route of {got} hops; it takes 1 to {MAX_HOPS}")]
    Length {
        /// Hops given.
        got: usize,
    },
    /// A node stands on the route twice.
    #[error("a node stands on the route twice")]
    Twice,
    /// The network is too small.
    #[error("only {free} mixes are neither entry nor destination; a route takes {MIXES}")]
    TooFewMixes {
        /// Mixes that could be used.
        free: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Epoch;
    use crate::keys::MixSecret;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::HashMap;

    fn hops(count: u8) -> Vec<Hop> {
        let key = MixSecret::from_bytes(&[7; 32]).public();
        (0..count)
            .map(|n| Hop {
                address: HopAddress([n; 32]),
                key,
            })
            .collect()
    }

    fn mixes(hops: &[Hop]) -> Topology {
        Topology::new(Epoch(0), hops.iter().copied())
    }

    fn addresses(route: &Route) -> Vec<HopAddress> {
        route.hops().iter().map(|hop| hop.address).collect()
    }

    proptest! {
        #[test]
        fn no_node_twice_and_the_ends_where_they_belong(count in 4u8..12, seed: u64, avoid in proptest::collection::vec(0u8..12, 0..6)) {
            let all = hops(count);
            let (entry, destination) = (all[0], all[1]);
            let avoid: Vec<_> = avoid.into_iter().map(|n| HopAddress([n; 32])).collect();
            let rng = &mut StdRng::seed_from_u64(seed);
            let mixes = mixes(&all);
            let forward = Route::forward(entry, &mixes, destination, &avoid, rng).expect("enough mixes");
            prop_assert_eq!((forward.first(), forward.last()), (&entry, &destination));
            let mailbox = Hop { address: HopAddress([255; 32]), key: entry.key };
            let reply = Route::reply(entry, &mixes, mailbox, destination.address, &avoid, rng).expect("enough mixes");
            prop_assert_eq!((reply.hops()[2], *reply.last()), (entry, mailbox));
            prop_assert!(!addresses(&reply).contains(&destination.address), "the provider passes its own replies");
            for route in [forward, reply] {
                let mut seen = addresses(&route);
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), 4);
            }
        }

        #[test]
        fn a_resend_avoids_what_failed_while_others_are_left(seed: u64) {
            let all = hops(6);
            let avoid = [all[2].address, all[3].address];
            let route = Route::forward(all[0], &mixes(&all), all[1], &avoid, &mut StdRng::seed_from_u64(seed)).expect("enough");
            prop_assert!(!addresses(&route).iter().any(|hop| avoid.contains(hop)));
        }

        #[test]
        fn no_two_nodes_of_one_group_are_on_a_route(named in proptest::collection::vec(0u8..8, 16), seed: u64, avoid in proptest::collection::vec(0u8..16, 0..6)) {
            let all = hops(16);
            let (entry, destination) = (all[0], all[1]);
            // Who names group 0 names none. A group of more than four is not listened to, so others are always left.
            let named = all.iter().zip(named).filter(|(_, group)| *group > 0);
            let topology = mixes(&all).with_groups(named.map(|(hop, group)| (hop.address, Group([group; 32]))));
            let avoid: Vec<_> = avoid.into_iter().map(|n| HopAddress([n; 32])).collect();
            let rng = &mut StdRng::seed_from_u64(seed);
            let forward = Route::forward(entry, &topology, destination, &avoid, rng).expect("enough mixes");
            let mailbox = Hop { address: HopAddress([255; 32]), key: entry.key };
            let reply = Route::reply(entry, &topology, mailbox, destination.address, &avoid, rng).expect("enough mixes");
            let ends = [entry, destination].map(|end| topology.group(end.address));
            for drawn in [&forward.hops()[1..3], &reply.hops()[..2]] {
                let [first, second] = [0, 1].map(|at| topology.group(drawn[at].address));
                prop_assert!(first.is_none() || first != second, "two mixes of one group");
                for group in [first, second] {
                    prop_assert!(group.is_none() || !ends.contains(&group), "a mix of the group of an end");
                }
            }
        }
    }

    #[test]
    fn mixes_are_drawn_uniformly_at_each_position() {
        let all = hops(6);
        let mixes = mixes(&all);
        let rng = &mut StdRng::seed_from_u64(3);
        let mut counts: HashMap<(usize, HopAddress), u32> = HashMap::new();
        for _ in 0..8000 {
            let route = Route::forward(all[0], &mixes, all[1], &[], rng).expect("enough");
            for position in [1, 2] {
                *counts
                    .entry((position, route.hops()[position].address))
                    .or_default() += 1;
            }
        }
        // Four mixes: 2,000 expected at each position, standard deviation 39.
        assert_eq!(counts.len(), 8);
        assert!(
            counts.values().all(|count| (1770..2230).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn too_small_a_network_has_no_routes() {
        let all = hops(3);
        let rng = &mut StdRng::seed_from_u64(0);
        let error = Route::forward(all[0], &mixes(&all), all[1], &[], rng).expect_err("one mix");
        assert_eq!(error, RouteError::TooFewMixes { free: 1 });
        assert_eq!(Route::new(vec![all[0], all[0]]), Err(RouteError::Twice));
    }
}
