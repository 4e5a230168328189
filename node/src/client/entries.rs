//! The entries on record: the one that is kept, and those that stand in for it where it cannot be used.
//!
//! ```text
//!  <home>/entry    <node id> <since> <away since, or 0> <sessions with changed packets>
//!                  one line for each, in the order in which they are tried
//! ```
//!
//! Threats: an entry sees the address of its client, so a client that takes a new one each time is seen by all of them in the
//! end. The one that was chosen first is kept, also while it is away, and what stands in for it is kept like it: who can make
//! an entry unreachable for a moment does not make its clients choose anew. An entry that is the provider of a lease as well
//! would see both ends. An entry that marks packets to recognise them changes them.

use std::{collections::BTreeSet, fmt};

use souk_crypto::{NodeId, UnixTime};

use super::{StateError, state::Home};

/// An entry is kept for so long: changing it often would show the requester to every entry in the end.
const ENTRY_LIFE_S: u64 = 30 * 86_400;
/// An entry that cannot be reached is kept for so long.
const AWAY_S: u64 = 86_400;
/// Sessions with changed packets after which an entry is used no more, where there is another.
const MAX_TAMPERED: u64 = 3;
/// Entries on record: the one that is kept, and one for each reason not to use it.
const MAX_KEPT: usize = 3;
/// File of the record.
const ENTRY: &str = "entry";

/// The entries on record, in the order in which they are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries(Vec<KeptEntry>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptEntry {
    node: NodeId,
    since: UnixTime,
    /// Since when it was not reached.
    away_since: Option<UnixTime>,
    /// Sessions over it in which packets were changed on their way here.
    tampered: u64,
}

impl Entries {
    /// The record of those that are not too old at `now`.
    pub(super) fn read(home: &Home, now: UnixTime) -> Result<Self, StateError> {
        let text = home.read_text(ENTRY)?.unwrap_or_default();
        // A line that does not read is no reason to fail: another entry is chosen.
        let mut kept: Vec<_> = text.lines().filter_map(KeptEntry::parse).collect();
        kept.retain(|entry| now.since_s(entry.since) < ENTRY_LIFE_S);
        kept.truncate(MAX_KEPT);
        Ok(Self(kept))
    }

    pub(super) fn write(&self, home: &Home) -> Result<(), StateError> {
        let text: String = self.0.iter().map(ToString::to_string).collect();
        home.write_text(ENTRY, &text)
    }

    /// Notes a session over `node` in which packets were changed on their way here.
    pub(super) fn note_tampered(
        home: &Home,
        node: NodeId,
        now: UnixTime,
    ) -> Result<(), StateError> {
        let mut entries = Self::read(home, now)?;
        for entry in entries.0.iter_mut().filter(|entry| entry.node == node) {
            entry.tampered = entry.tampered.saturating_add(1);
        }
        entries.write(home)
    }

    /// The one that is kept.
    pub(super) fn kept(&self) -> Option<NodeId> {
        let kept = self.0.iter().find(|entry| !entry.is_spoiled());
        kept.map(|entry| entry.node)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.0.iter().map(|entry| entry.node)
    }

    /// Where a node comes in the order in which entries are tried: those on record, others, those behind which packets were
    /// changed, and last what is to be avoided.
    pub(super) fn order(&self, node: NodeId, avoided: &BTreeSet<NodeId>) -> (bool, usize) {
        let at = self.0.iter().position(|entry| entry.node == node);
        let at = match at {
            Some(at) if self.0[at].is_spoiled() => MAX_KEPT + 1,
            Some(at) => at,
            None => MAX_KEPT,
        };
        (avoided.contains(&node), at)
    }

    /// Notes that `reached` let this client in, and that those which come before it did not: one that has been away for a day is kept
    /// no longer. What was avoided keeps its place, and gets none.
    pub(super) fn note_reached(
        &mut self,
        reached: NodeId,
        avoided: &BTreeSet<NodeId>,
        now: UnixTime,
    ) {
        let until = self.order(reached, avoided);
        let before = |node: &NodeId| self.order(*node, avoided) < until;
        let missed: BTreeSet<NodeId> = self.nodes().filter(before).collect();
        self.0.retain_mut(|entry| {
            if entry.node == reached {
                entry.away_since = None;
            } else if missed.contains(&entry.node) {
                let since = *entry.away_since.get_or_insert(now);
                return now.since_s(since) < AWAY_S;
            }
            true
        });
        if avoided.contains(&reached) || self.nodes().any(|node| node == reached) {
            return;
        }
        if self.0.len() == MAX_KEPT {
            let Some(spoiled) = self.0.iter().position(KeptEntry::is_spoiled) else {
                return;
            };
            self.0.remove(spoiled);
        }
        self.0.push(KeptEntry {
            node: reached,
            since: now,
            away_since: None,
            tampered: 0,
        });
    }
}

impl KeptEntry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        // An older record has an address that ends in the node, and the first instant only.
        let node = words.next()?.rsplit('/').next()?.parse().ok()?;
        let since = UnixTime(words.next()?.parse().ok()?);
        let mut number = || {
            let word = words.next();
            word.map_or(Some(0), |word| word.parse::<u64>().ok())
        };
        let (away_since, tampered) = (number()?, number()?);
        Some(Self {
            node,
            since,
            away_since: (away_since > 0).then_some(UnixTime(away_since)),
            tampered,
        })
    }

    fn is_spoiled(&self) -> bool {
        self.tampered >= MAX_TAMPERED
    }
}

impl fmt::Display for KeptEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let away_since = self.away_since.unwrap_or(UnixTime(0));
        let (node, since, tampered) = (self.node, self.since, self.tampered);
        writeln!(f, "{node} {since} {away_since} {tampered}")
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use souk_crypto::NodeKey;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const HOUR_S: u64 = 3_600;
    const DAY_S: u64 = 24 * HOUR_S;

    fn node(n: u64) -> NodeId {
        NodeKey::generate(&mut StdRng::seed_from_u64(n)).public()
    }

    fn none() -> BTreeSet<NodeId> {
        BTreeSet::new()
    }

    /// A record of nodes 0 up to `count`, each of which was reached while those before it were avoided.
    fn record(count: u64) -> Entries {
        let mut entries = Entries::default();
        for n in 0..count {
            entries.note_reached(node(n), &(0..n).map(node).collect(), NOW);
        }
        entries
    }

    /// Nodes 0 up to `count` as they are tried.
    fn tried(entries: &Entries, count: u64, avoided: &BTreeSet<NodeId>) -> Vec<u64> {
        let mut all: Vec<u64> = (0..count).collect();
        all.sort_by_key(|n| entries.order(node(*n), avoided));
        all
    }

    #[test]
    fn what_is_kept_is_tried_first_and_what_is_to_be_avoided_last() {
        let mut entries = Entries::default();
        entries.note_reached(node(2), &none(), NOW);
        entries.note_reached(node(1), &BTreeSet::from([node(2)]), NOW);
        assert_eq!(tried(&entries, 4, &none()), [2, 1, 0, 3]);
        let avoided = BTreeSet::from([node(0), node(2)]);
        assert_eq!(tried(&entries, 4, &avoided), [1, 3, 2, 0]);
    }

    #[test]
    fn an_entry_is_replaced_only_after_it_was_away_for_a_day() {
        let mut entries = record(1);
        let mut reach = |n, after_s| {
            entries.note_reached(node(n), &none(), NOW.plus_s(after_s));
            entries.kept()
        };
        assert_eq!(reach(1, HOUR_S), Some(node(0)), "one stands in");
        assert_eq!(reach(0, 2 * HOUR_S), Some(node(0)), "it is back");
        let away_s = 2 * DAY_S;
        assert_eq!(reach(1, away_s), Some(node(0)));
        assert_eq!(reach(1, away_s + DAY_S - 1), Some(node(0)));
        assert_eq!(reach(1, away_s + DAY_S), Some(node(1)));
        assert_eq!(entries.nodes().count(), 1);
    }

    #[test]
    fn an_entry_that_is_avoided_keeps_its_place_and_one_stands_in_for_it() {
        let mut entries = record(1);
        let avoided = BTreeSet::from([node(0)]);
        for day in 0..20 {
            entries.note_reached(node(1), &avoided, NOW.plus_s(day * DAY_S));
        }
        assert_eq!(entries.kept(), Some(node(0)));
        assert_eq!(tried(&entries, 3, &avoided), [1, 2, 0]);
        assert_eq!(tried(&entries, 3, &none()), [0, 1, 2]);
        // Where nobody else lets the client in, what is to be avoided does, and is not kept for it.
        let mut entries = record(1);
        entries.note_reached(node(1), &BTreeSet::from([node(1)]), NOW);
        assert_eq!(entries.nodes().collect::<Vec<_>>(), [node(0)]);
    }

    #[test]
    fn an_entry_behind_which_packets_are_changed_is_left_after_three_sessions() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::open(&folder.path().join("home")).expect("a fresh folder");
        record(1).write(&home).expect("written");
        let mut kept = Vec::new();
        for _ in 0..3 {
            Entries::note_tampered(&home, node(0), NOW).expect("noted");
            kept.push(Entries::read(&home, NOW).expect("read").kept());
        }
        assert_eq!(kept, [Some(node(0)), Some(node(0)), None]);
        let mut entries = Entries::read(&home, NOW).expect("read");
        assert_eq!(tried(&entries, 3, &none()), [1, 2, 0]);
        entries.note_reached(node(1), &none(), NOW);
        assert_eq!(entries.kept(), Some(node(1)));
        assert_eq!(tried(&entries, 3, &none()), [1, 2, 0]);
    }

    #[test]
    fn the_record_is_small_and_reads_back_without_what_is_too_old_or_damaged() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = Home::open(&folder.path().join("home")).expect("a fresh folder");
        let mut entries = record(10);
        let first: Vec<_> = (0..3).map(node).collect();
        assert_eq!(entries.nodes().collect::<Vec<_>>(), first);
        entries.note_reached(node(2), &none(), NOW.plus_s(1));
        entries.write(&home).expect("written");
        assert_eq!(Entries::read(&home, NOW).expect("read"), entries);
        let old = NOW.plus_s(ENTRY_LIFE_S);
        assert_eq!(Entries::read(&home, old).expect("read"), Entries::default());

        let older = format!("/ip4/192.0.2.1/tcp/1/p2p/{} {NOW}\n", node(0));
        let text = format!("\nwho knows\n{older}{} {NOW} x 0\n", node(1));
        home.write_text(ENTRY, &text).expect("written");
        assert_eq!(Entries::read(&home, NOW).expect("read"), record(1));
    }
}
