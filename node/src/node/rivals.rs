//! Whether another node runs with the keys of this one.
//!
//! A node whose data folder was restored hears of one card of its own that it did not make, goes above it, and knows its cards from then
//! on. Two nodes with the same keys go above each other's cards for as long as both run: so more than one such card in a while is told.
//!
//! Threat: none from a stranger; only the node key makes a card that counts here.

use std::collections::VecDeque;

use souk_crypto::UnixTime;

/// How long a card of another is remembered, in seconds: ten times the shortest time between two answers to one.
const WINDOW_S: u64 = 600;
/// From so many within that time on they are told.
const SUSPECT: usize = 2;
/// Most that are remembered.
const MAX_SEEN: usize = 16;

/// When this node went above a card of its own that it did not make.
#[derive(Clone, Debug, Default)]
pub(super) struct Rivals(VecDeque<UnixTime>);

impl Rivals {
    pub(super) fn note(&mut self, now: UnixTime) {
        if self.0.len() >= MAX_SEEN {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// Whether somebody else makes cards with these keys. What was seen before the clock was set back does not count.
    pub(super) fn are_suspected(&self, now: UnixTime) -> bool {
        let counts = |at: &&UnixTime| **at <= now && now.since_s(**at) < WINDOW_S;
        self.0.iter().filter(counts).count() >= SUSPECT
    }

    /// What is to be said of it.
    pub(super) fn warning(&self, now: UnixTime) -> Option<String> {
        self.are_suspected(now).then(|| {
            "another node runs with the keys of this one: each replaces the card of the other, and requesters reach now one, now the other; stop one of them"
                .to_owned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    #[test]
    fn a_restored_node_is_not_suspected_and_two_that_answer_each_other_are_until_one_stops() {
        let mut rivals = Rivals::default();
        assert!(!rivals.are_suspected(NOW));
        rivals.note(NOW);
        assert!(!rivals.are_suspected(NOW), "the folder was restored");
        assert!(!rivals.are_suspected(NOW.plus_s(3_600)));
        for minute in 1..100 {
            let now = NOW.plus_s(60 * minute);
            rivals.note(now);
            assert!(rivals.warning(now).is_some());
        }
        assert_eq!(rivals.0.len(), MAX_SEEN);
        let last = NOW.plus_s(60 * 99);
        assert!(rivals.are_suspected(last.plus_s(WINDOW_S - 61)));
        assert!(!rivals.are_suspected(last.plus_s(WINDOW_S)));
        assert!(!rivals.are_suspected(NOW), "the clock was set back");
    }

    #[test]
    fn a_folder_that_is_restored_once_a_day_says_nothing() {
        let mut rivals = Rivals::default();
        for day in 0..5 {
            let now = NOW.plus_s(86_400 * day);
            rivals.note(now);
            assert_eq!(rivals.warning(now), None);
        }
    }
}
