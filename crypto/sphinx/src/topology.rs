//! The nodes of an epoch: what packets go through, where they begin or end, and who says to belong together.
//!
//! Threats: nodes of one operator that together see both ends of a route. Those who say that they belong together are kept
//! apart; nothing proves it, and who is hostile does not say it. And a node that names the group of others, to bar them
//! from the routes that it is on itself: so a group of more than a quarter of the mixes is not listened to.

use std::collections::BTreeMap;

use crate::epoch::Epoch;
use crate::packet::{Hop, HopAddress};

/// The part of all mixes that one group may hold: whoever names it bars no more than that from a route.
const MAX_GROUP: usize = 4;

/// Nodes that say of themselves that they belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group(pub [u8; 32]);

/// The nodes that packets may go over in one epoch, with their keys: all verified cards, the same for everybody.
#[derive(Clone, Debug)]
pub struct Topology {
    epoch: Epoch,
    /// By address: the mixes, and those at which packets only begin or end.
    nodes: Vec<Hop>,
    mixes: Vec<Hop>,
    groups: BTreeMap<HopAddress, Group>,
}

impl Topology {
    /// The mixes of `epoch`, each once; of a node given twice the first is taken.
    #[must_use]
    pub fn new(epoch: Epoch, mixes: impl IntoIterator<Item = Hop>) -> Self {
        let mixes = by_address(mixes);
        Self {
            epoch,
            nodes: mixes.clone(),
            mixes,
            groups: BTreeMap::new(),
        }
    }

    /// Adds nodes that no packet goes through: it begins there, at an entry, or ends there, at a provider.
    #[must_use]
    pub fn with_ends(self, ends: impl IntoIterator<Item = Hop>) -> Self {
        Self {
            nodes: by_address(self.nodes.into_iter().chain(ends)),
            ..self
        }
    }

    /// Takes the group that each node names for itself, which keeps its mixes off the routes of one another and of its ends. A group of
    /// more than a quarter of the mixes is not listened to.
    #[must_use]
    pub fn with_groups(mut self, named: impl IntoIterator<Item = (HopAddress, Group)>) -> Self {
        self.groups = named.into_iter().collect();
        let mut sizes: BTreeMap<Group, usize> = BTreeMap::new();
        for group in self.mixes.iter().filter_map(|mix| self.group(mix.address)) {
            *sizes.entry(group).or_default() += 1;
        }
        let most = self.mixes.len() / MAX_GROUP;
        let is_small = |group: &Group| sizes.get(group).is_none_or(|size| *size <= most);
        self.groups.retain(|_, group| is_small(group));
        self
    }

    /// The epoch of all keys.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Hop] {
        &self.nodes
    }

    /// The nodes that packets go through.
    #[must_use]
    pub fn mixes(&self) -> &[Hop] {
        &self.mixes
    }

    /// The node with this address.
    #[must_use]
    pub fn node(&self, address: HopAddress) -> Option<Hop> {
        self.nodes
            .binary_search_by_key(&address, |hop| hop.address)
            .ok()
            .map(|at| self.nodes[at])
    }

    /// The group of the node with this address, where it names one that is listened to.
    #[must_use]
    pub fn group(&self, address: HopAddress) -> Option<Group> {
        self.groups.get(&address).copied()
    }
}

fn by_address(hops: impl IntoIterator<Item = Hop>) -> Vec<Hop> {
    let mut hops: Vec<Hop> = hops.into_iter().collect();
    hops.sort_by_key(|hop| hop.address);
    hops.dedup_by_key(|hop| hop.address);
    hops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::MixSecret;

    #[test]
    fn a_group_of_more_than_a_quarter_of_the_mixes_is_not_listened_to() {
        let key = MixSecret::from_bytes(&[7; 32]).public();
        let address = |n| HopAddress([n; 32]);
        let hop = |n| Hop {
            address: address(n),
            key,
        };
        let mixes = Topology::new(Epoch(0), (0..8).map(hop)).with_ends((8..12).map(hop));
        let (one, other) = (Group([1; 32]), Group([2; 32]));
        let with = |nodes: &[u8], group| {
            let named = nodes.iter().map(|n| (address(*n), group));
            mixes.clone().with_groups(named)
        };
        // Packets do not go through ends, so any number of them may belong together.
        let honest = [0, 1, 8, 9, 10, 11];
        let listened = with(&honest, one);
        assert!(
            honest
                .iter()
                .all(|n| listened.group(address(*n)) == Some(one))
        );
        assert_eq!(listened.group(address(2)), None);
        // A third mix that names the group of two others bars neither of them.
        let drowned = with(&[0, 1, 2, 8], other);
        assert!((0..12).all(|n| drowned.group(address(n)).is_none()));
    }
}
