//! Who makes room when a table is full: fair shares between those who filled it.
//!
//! Identities cost nothing, so a stranger could fill every table with valid objects of nodes that it made up. What it cannot
//! make up is where its messages come from. Each object remembers its [`Source`], and once a table is full a newcomer from a source
//! with a smaller share takes the place of the *latest* object of the largest one:
//!
//! ```text
//!  room ───────────────────────────────────────────────► it is kept
//!  full, its source has (almost) the largest share ────► it is not
//!  full, its source has a smaller one ─────────────────► the latest of the largest source goes
//! ```
//!
//! So what has been known for long stays, nobody gains by bringing more, and the order of node ids, which can be ground, decides
//! nothing. Nobody is blamed: an honest neighbour passes on what others made up.

use std::collections::BTreeMap;

/// Where an object came from: the same number for all that must share. What it stands for is the caller's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// This node itself; its own objects never make room.
    Own,
    /// A neighbour, or a group of neighbours that are counted as one.
    Neighbour(u64),
}

/// How an object got into a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Brought {
    source: Source,
    /// Rises from object to object.
    serial: u64,
}

impl Brought {
    pub(crate) fn source(self) -> Source {
        self.source
    }

    /// The same, as if it had come after all others.
    pub(crate) fn first_to_go(self) -> Self {
        let serial = self.serial | 1 << (u64::BITS - 1);
        Self { serial, ..self }
    }
}

/// Gives the objects of one table their places in time.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(u64);

impl Arrivals {
    pub(crate) fn next(&mut self, source: Source) -> Brought {
        self.0 += 1;
        let serial = self.0;
        Brought { source, serial }
    }
}

/// Which object of a full table goes for one more from `newcomer`; `None` where the newcomer has to do without.
pub(crate) fn makes_room<K>(
    newcomer: Source,
    held: impl IntoIterator<Item = (K, Brought)>,
) -> Option<K> {
    let mut shares = shares(held);
    let own = shares.get(&newcomer).map_or(0, |(count, ..)| *count);
    shares.remove(&Source::Own);
    let (count, latest) = largest(shares)?;
    // By two, else two sources would take one place from each other for ever.
    (own + 1 < count).then_some(latest)
}

/// Which object goes for one that is kept in any case.
pub(crate) fn latest_of_most<K>(held: impl IntoIterator<Item = (K, Brought)>) -> Option<K> {
    largest(shares(held)).map(|(_, latest)| latest)
}

/// Of each source: how many objects, the serial of the latest, and its key.
type Shares<K> = BTreeMap<Source, (usize, u64, K)>;

fn shares<K>(held: impl IntoIterator<Item = (K, Brought)>) -> Shares<K> {
    let mut shares = Shares::new();
    for (key, brought) in held {
        match shares.get_mut(&brought.source) {
            None => {
                shares.insert(brought.source, (1, brought.serial, key));
            }
            Some((count, latest, last)) => {
                *count += 1;
                if brought.serial > *latest {
                    (*latest, *last) = (brought.serial, key);
                }
            }
        }
    }
    shares
}

fn largest<K>(shares: Shares<K>) -> Option<(usize, K)> {
    let largest = shares
        .into_values()
        .max_by_key(|(count, at, _)| (*count, *at));
    largest.map(|(count, _, latest)| (count, latest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACES: usize = 24;

    /// A full-size table that takes objects of sources in this order; what it holds in the end.
    fn table(sources: &[Source]) -> Vec<(usize, Source)> {
        let (mut arrivals, mut held) = (Arrivals::default(), Vec::<(usize, Brought)>::new());
        for (key, source) in sources.iter().enumerate() {
            if held.len() >= PLACES {
                let Some(gone) = makes_room(*source, held.iter().copied()) else {
                    continue;
                };
                held.retain(|(key, _)| *key != gone);
            }
            held.push((key, arrivals.next(*source)));
        }
        held.into_iter().map(|(key, b)| (key, b.source)).collect()
    }

    fn share(held: &[(usize, Source)], source: Source) -> usize {
        held.iter().filter(|(_, s)| *s == source).count()
    }

    proptest! {
        #[test]
        fn nobody_keeps_more_than_its_share_from_one_who_wants_it(
            order in proptest::collection::vec(0u64..4, 0..200), last in 0u64..4
        ) {
            let last = Source::Neighbour(last);
            let before = order.into_iter().map(Source::Neighbour);
            let sources: Vec<_> = before.chain(std::iter::repeat_n(last, PLACES)).collect();
            let held = table(&sources);
            prop_assert_eq!(held.len(), PLACES);
            for other in (0..4).map(Source::Neighbour) {
                prop_assert!(share(&held, other) <= share(&held, last) + 1);
            }
        }

        #[test]
        fn a_flood_from_one_source_leaves_the_others_their_shares(
            before in 1..PLACES, flood in 0usize..500
        ) {
            let honest = (0..before).map(|n| Source::Neighbour(1 + n as u64 % 3));
            let sources: Vec<_> = honest
                .chain(std::iter::repeat_n(Source::Neighbour(9), flood))
                .collect();
            let held = table(&sources);
            // All of them, while their sources have less than the flood could ever have.
            let kept = held.iter().filter(|(key, _)| *key < before).count();
            prop_assert!(kept >= before.min(3 * PLACES / 4), "{} of {}", kept, before);
        }
    }

    #[test]
    fn a_latecomer_takes_the_latest_place_of_whoever_has_most() {
        let flood = std::iter::repeat_n(Source::Neighbour(9), 2 * PLACES);
        let sources: Vec<_> = flood.chain([Source::Neighbour(1)]).collect();
        let held = table(&sources);
        assert_eq!(share(&held, Source::Neighbour(1)), 1);
        // The first that the flood brought are still there, its last one is not.
        assert!(held.iter().any(|(key, _)| *key == 0));
        assert!(!held.iter().any(|(key, _)| *key == PLACES - 1));
    }

    #[test]
    fn what_is_our_own_never_goes() {
        let own = std::iter::repeat_n(Source::Own, PLACES);
        let sources: Vec<_> = own.chain([Source::Neighbour(1)]).collect();
        assert_eq!(share(&table(&sources), Source::Own), PLACES);
    }
}
