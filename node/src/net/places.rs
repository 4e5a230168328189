//! Which of the nodes that cards tell of get a link, as a core without I/O.
//!
//! ```text
//!              drawn                   was up within GRACE
//!  newcomer ─────────► on trial ─────────────────────────► holds its place
//!                         │ not up for GRACE                  │ not up for GRACE
//!                         ▼                                   ▼
//!                     behind the newcomers of its source ◄────┘
//! ```
//!
//! Threats: whoever shows very many cards and would take every link. Where there are more nodes than places, those whose link is
//! up keep theirs; the others are shared out between the [`Source`]s of the cards, and drawn within each by a key that nobody
//! else knows, so that no choice of node ids comes first. And whoever shows cards of nodes that do not exist: a place is lost when
//! nothing answered for a while.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use souk_crypto::NodeId;
use souk_market::shares::Source;

/// Links that one node keeps. A full mesh of this many mixes is more than one network needs; past it, others are left out.
pub const MAX_LINKS: usize = 256;

/// How long a node may be away, or not have been reached yet, before its place is drawn again: a restart and some attempts to
/// connect take far less.
const GRACE: Duration = Duration::from_secs(600);

/// The places of one node.
#[derive(Debug)]
pub(super) struct Places {
    order: [u8; 32],
    /// Of the wanted nodes that had a place: when their link was up last, or else when they got it.
    alive_at: HashMap<NodeId, Instant>,
}

impl Places {
    /// Draws by this key.
    pub(super) fn new(order: [u8; 32]) -> Self {
        Self {
            order,
            alive_at: HashMap::new(),
        }
    }

    /// Who of `wanted` has a place from now on: all, where there are no more than [`MAX_LINKS`]. To be asked again from time
    /// to time, and more often than [`GRACE`].
    pub(super) fn choose(
        &mut self,
        wanted: &[(NodeId, Source)],
        is_up: impl Fn(&NodeId) -> bool,
        now: Instant,
    ) -> HashSet<NodeId> {
        let present: HashSet<_> = wanted.iter().map(|(node, _)| *node).collect();
        self.alive_at.retain(|node, _| present.contains(node));
        for (node, at) in &mut self.alive_at {
            if is_up(node) {
                *at = now;
            }
        }
        let mut of_source: HashMap<Source, usize> = HashMap::new();
        let mut chosen = HashSet::new();
        let mut others = Vec::new();
        for (node, source) in wanted {
            match self.alive_at.get(node) {
                Some(at) if now.saturating_duration_since(*at) < GRACE => {
                    *of_source.entry(*source).or_default() += 1;
                    chosen.insert(*node);
                }
                before => others.push((before.is_some(), self.draw(node), *node, *source)),
            }
        }
        others.sort_unstable();
        let mut turns: Vec<_> = others
            .into_iter()
            .map(|(was_tried, draw, node, source)| {
                let turn = of_source.entry(source).or_default();
                *turn += 1;
                (*turn, was_tried, draw, node)
            })
            .collect();
        turns.sort_unstable();
        let free = MAX_LINKS.saturating_sub(chosen.len());
        for (_, _, _, node) in turns.into_iter().take(free) {
            self.alive_at.entry(node).or_insert(now);
            chosen.insert(node);
        }
        chosen
    }

    fn draw(&self, node: &NodeId) -> [u8; 32] {
        *blake3::keyed_hash(&self.order, node.as_bytes()).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use souk_crypto::NodeKey;

    use super::*;

    const FLOOD: Source = Source::Neighbour(1);
    const OTHER: Source = Source::Neighbour(2);

    fn nodes(count: usize, source: Source) -> Vec<(NodeId, Source)> {
        let mut nodes: Vec<_> = (0..count)
            .map(|_| (NodeKey::generate(&mut rand::rng()).public(), source))
            .collect();
        nodes.sort_by_key(|(node, _)| *node);
        nodes
    }

    fn count_of(chosen: &HashSet<NodeId>, nodes: &[(NodeId, Source)]) -> usize {
        nodes.iter().filter(|(n, _)| chosen.contains(n)).count()
    }

    #[test]
    fn many_nodes_with_chosen_ids_take_no_link_from_another() {
        let now = Instant::now();
        let all = nodes(2 * MAX_LINKS, FLOOD);
        // The ids of strangers come first in every list that is sorted by them.
        let (before, after) = all.split_at(MAX_LINKS);
        let mut places = Places::new([1; 32]);
        let linked = places.choose(after, |_| true, now);
        assert_eq!(linked.len(), MAX_LINKS);
        let later = now + 2 * GRACE;
        assert_eq!(places.choose(&all, |n| linked.contains(n), later), linked);

        let fresh = Places::new([1; 32]).choose(&all, |_| false, now);
        let first = count_of(&fresh, before);
        assert!((64..=192).contains(&first), "{first} of the first half");
    }

    #[test]
    fn cards_of_nodes_that_do_not_exist_lose_their_places() {
        let (mut places, start) = (Places::new([1; 32]), Instant::now());
        for source in [FLOOD, OTHER] {
            let dead = nodes(MAX_LINKS, FLOOD);
            let live = nodes(10, source);
            assert_eq!(places.choose(&dead, |_| false, start).len(), MAX_LINKS);
            let all = [dead, live.clone()].concat();
            let is_up = |node: &NodeId| live.iter().any(|(n, _)| n == node);
            // They are left their time to answer.
            let soon = places.choose(&all, is_up, start + GRACE / 2);
            assert_eq!(count_of(&soon, &live), 0);
            let later = places.choose(&all, is_up, start + GRACE);
            assert_eq!(count_of(&later, &live), live.len());
            // Those that answer stay, and as many others are tried as there is room for.
            let last = places.choose(&all, is_up, start + 10 * GRACE);
            assert_eq!(
                (count_of(&last, &live), last.len()),
                (live.len(), MAX_LINKS)
            );
        }
    }

    #[test]
    fn places_are_shared_between_those_who_bring_cards() {
        let (mut places, now) = (Places::new([1; 32]), Instant::now());
        let (flood, few) = (nodes(4_000, FLOOD), nodes(100, OTHER));
        let all = [flood, few.clone()].concat();
        let chosen = places.choose(&all, |_| false, now);
        assert_eq!((chosen.len(), count_of(&chosen, &few)), (MAX_LINKS, 100));
        // Also when all were tried in vain, as after our own network was away.
        let again = places.choose(&all, |_| false, now + GRACE);
        assert_eq!((again.len(), count_of(&again, &few)), (MAX_LINKS, 100));
    }

    #[test]
    fn only_wanted_nodes_are_remembered() {
        let (mut places, now) = (Places::new([1; 32]), Instant::now());
        for _ in 0..3 {
            places.choose(&nodes(100, FLOOD), |_| false, now);
        }
        assert_eq!(places.alive_at.len(), 100);
    }
}
