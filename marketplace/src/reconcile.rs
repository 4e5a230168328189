//! What a backend really has, held against what the journal knows.
//!
//! ```text
//!        ┌─────────────── on a period, or when a grace ends ◄────────────────┐
//!        ▼                                                                   │
//!      due ─► listing ─► whole list ─► owned: its lease's task adopts it ────┤
//!        ▲       │                └──► nobody's: orphan ─► grace ─► removing ┤
//!        │       ▼                                ▲                 │        │
//!        └── failed, or late: 1, 2, 4 … s         └── failed: 1, 2, 4 … s    │
//!                                                                 gone ──────┘
//! ```
//!
//! One [`Reconcile`] stands for one backend, so that a backend that cannot be listed holds up no other. It takes what happens
//! with `now` and gives [`Step`]s; calls are made by its driver.
//!
//! Threats: an instance that nobody owns and that costs for ever (a creation that was reported as failed, a row that was lost);
//! an instance of a lease that is just being accepted or closed, and is taken for one (the grace, and two lists that show it: a
//! list may be as old as the backend likes); a backend that is asked over and over while it is down.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{moment::SteadyTime, units::LeaseId};

/// Orphans that are kept in mind for one backend, about 100 bytes each. Those above it are found again by later lists, once
/// there are fewer.
pub const MAX_ORPHANS: usize = 4_096;
/// Orphans that are removed at one time, so that one that hangs holds up few others.
pub const MAX_REMOVALS: usize = 4;
/// First pause after a call that failed; it doubles up to the [period](Periods::list), or [`MAX_PAUSE`] for removals.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause before an orphan that could not be removed is tried again.
const MAX_PAUSE: Duration = Duration::from_secs(600);

/// How often, and how patiently.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Between two lists.
    pub list: Duration,
    /// How long an instance is known to have no owner before it is removed.
    pub grace: Duration,
}

/// Why nobody owns an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrphanReason {
    /// No journal row has its lease.
    UnknownLease,
    /// Its lease is closed: the backend showed it only after it was said to be gone.
    ClosedLease,
    /// Its lease runs on another backend.
    OtherBackend,
    /// The row of its lease is damaged.
    RecordLost,
}

impl OrphanReason {
    /// The word that people and `--json` see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownLease => "unknown-lease",
            Self::ClosedLease => "closed-lease",
            Self::OtherBackend => "other-backend",
            Self::RecordLost => "record-lost",
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask for the list of all instances, then [`Reconcile::handle_list`] or [`Reconcile::handle_list_failed`].
    List,
    /// Ask whether the lease has an owner once more, and if not, terminate it; then [`Reconcile::handle_removed`].
    Remove(LeaseId),
}

/// An instance that nobody owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Why.
    pub reason: OrphanReason,
    /// When a list first showed it.
    pub since: SteadyTime,
    /// Attempts to remove it that failed.
    pub failed: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is removed if a list shows it then or later.
    Waits {
        until: SteadyTime,
    },
    Due,
    Removing,
    /// It is being removed, and a list has not shown it since: whatever carries its lease later is another matter.
    Leaving,
}

impl Orphan {
    /// The word for where it stands: `waiting`, `removing` or `failing`.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match (self.state, self.failed) {
            (State::Due | State::Removing | State::Leaving, _) => "removing",
            (State::Waits { .. }, 0) => "waiting",
            (State::Waits { .. }, _) => "failing",
        }
    }
}

/// One backend.
#[derive(Clone, Debug)]
pub struct Reconcile {
    periods: Periods,
    /// When to list; none while a list is under way.
    list_at: Option<SteadyTime>,
    list_pause: Duration,
    list_failures: u32,
    listed: Option<(SteadyTime, usize)>,
    orphans: BTreeMap<LeaseId, Orphan>,
    totals: Totals,
}

/// What was seen and done since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Instances that were found without an owner.
    pub found: u64,
    /// Removals that the backend confirmed.
    pub removed: u64,
    /// Lists that failed.
    pub failed_lists: u64,
}

impl Reconcile {
    /// Begins with a list at once.
    #[must_use]
    pub fn new(now: SteadyTime, periods: Periods) -> Self {
        Self {
            periods,
            list_at: Some(now),
            list_pause: FIRST_PAUSE,
            list_failures: 0,
            listed: None,
            orphans: BTreeMap::new(),
            totals: Totals::default(),
        }
    }

    /// The next thing to do now, if any.
    pub fn poll(&mut self, now: SteadyTime) -> Option<Step> {
        let removing = self
            .orphans
            .values()
            .filter(|orphan| matches!(orphan.state, State::Removing | State::Leaving))
            .count();
        let due = self
            .orphans
            .iter_mut()
            .find(|(_, orphan)| orphan.state == State::Due);
        if removing < MAX_REMOVALS
            && let Some((lease, orphan)) = due
        {
            orphan.state = State::Removing;
            return Some(Step::Remove(*lease));
        }
        if self.list_at.is_some_and(|at| at <= now) {
            self.list_at = None;
            return Some(Step::List);
        }
        None
    }

    /// When [`Self::poll`] will have something to do by itself.
    #[must_use]
    pub fn next_at(&self) -> Option<SteadyTime> {
        self.list_at
    }

    /// A whole list came. `owner` says for each instance why nobody owns it, or that somebody does; it is asked now, because
    /// leases may have been accepted since the list was asked for.
    pub fn handle_list(
        &mut self,
        now: SteadyTime,
        instances: &[LeaseId],
        mut owner: impl FnMut(LeaseId) -> Option<OrphanReason>,
    ) {
        self.list_pause = FIRST_PAUSE;
        self.list_failures = 0;
        self.listed = Some((now, instances.len()));
        let mut shown = BTreeSet::new();
        for lease in instances {
            let Some(reason) = owner(*lease) else {
                continue;
            };
            if !self.orphans.contains_key(lease) && self.orphans.len() >= MAX_ORPHANS {
                continue;
            }
            shown.insert(*lease);
            let orphan = self.orphans.entry(*lease).or_insert_with(|| {
                self.totals.found += 1;
                Orphan {
                    reason,
                    since: now,
                    failed: 0,
                    state: State::Waits {
                        until: now.plus(self.periods.grace),
                    },
                }
            });
            orphan.reason = reason;
            if matches!(orphan.state, State::Waits { until } if until <= now) {
                orphan.state = State::Due;
            }
        }
        // What is shown no more is gone, or has got its owner.
        self.orphans.retain(|lease, orphan| {
            if orphan.state == State::Removing && !shown.contains(lease) {
                orphan.state = State::Leaving;
            }
            orphan.state == State::Leaving || shown.contains(lease)
        });
        let waits = self
            .orphans
            .values()
            .filter_map(|orphan| match orphan.state {
                State::Waits { until } => Some(until.max(now.plus(FIRST_PAUSE))),
                State::Due | State::Removing | State::Leaving => None,
            });
        self.list_at = waits.chain([now.plus(self.periods.list)]).min();
    }

    /// No list came, or not in time. What is known of orphans stays; nothing is removed on old knowledge.
    pub fn handle_list_failed(&mut self, now: SteadyTime) {
        self.list_failures = self.list_failures.saturating_add(1);
        self.totals.failed_lists += 1;
        let pause = self.list_pause.min(self.periods.list);
        self.list_at = Some(now.plus(pause));
        self.list_pause = (self.list_pause * 2).min(self.periods.list.max(FIRST_PAUSE));
    }

    /// An attempt to remove an orphan has ended. One that is still shown later is tried again: a list may be old, and a backend
    /// wrong about what it removed.
    pub fn handle_removed(&mut self, now: SteadyTime, lease: LeaseId, removed: bool) {
        self.totals.removed += u64::from(removed);
        let Some(orphan) = self.orphans.get_mut(&lease) else {
            return;
        };
        if orphan.state == State::Leaving {
            self.orphans.remove(&lease);
            return;
        }
        let pause = if removed {
            self.periods.grace.max(FIRST_PAUSE)
        } else {
            orphan.failed = orphan.failed.saturating_add(1);
            let doublings = (orphan.failed - 1).min(16);
            FIRST_PAUSE.saturating_mul(1 << doublings).min(MAX_PAUSE)
        };
        let until = now.plus(pause);
        orphan.state = State::Waits { until };
        if removed {
            orphan.failed = 0;
        }
        let soon = until.min(now.plus(self.periods.list));
        self.list_at = self.list_at.map(|at| at.min(soon));
    }

    /// The operator does not want to wait for the end of an orphan's grace, or of the pause after a failure; says whether there is
    /// such an orphan. Its owner is still asked for once more before it is removed.
    pub fn handle_hurry(&mut self, lease: LeaseId) -> bool {
        let Some(orphan) = self.orphans.get_mut(&lease) else {
            return false;
        };
        if matches!(orphan.state, State::Waits { .. }) {
            orphan.state = State::Due;
        }
        true
    }

    /// The owner of an orphan turned up before it was removed.
    pub fn handle_owned(&mut self, lease: LeaseId) {
        self.orphans.remove(&lease);
    }

    /// All orphans.
    pub fn orphans(&self) -> impl Iterator<Item = (LeaseId, &Orphan)> {
        self.orphans.iter().map(|(lease, orphan)| (*lease, orphan))
    }

    /// When the last whole list came, and how many instances it had.
    #[must_use]
    pub fn listed(&self) -> Option<(SteadyTime, usize)> {
        self.listed
    }

    /// What was seen and done since the beginning.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Lists that failed since the last whole one.
    #[must_use]
    pub fn list_failures(&self) -> u32 {
        self.list_failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PERIODS: Periods = Periods {
        list: Duration::from_secs(60),
        grace: Duration::from_secs(120),
    };
    const A: LeaseId = LeaseId([1; 16]);
    const B: LeaseId = LeaseId([2; 16]);

    fn at(seconds: u64) -> SteadyTime {
        SteadyTime(Duration::from_secs(seconds))
    }

    fn nobodys(_: LeaseId) -> Option<OrphanReason> {
        Some(OrphanReason::UnknownLease)
    }

    #[test]
    fn an_orphan_is_removed_after_its_grace_and_not_before() {
        let mut core = Reconcile::new(at(0), PERIODS);
        let mut removed = None;
        for now in 0..=200 {
            while let Some(step) = core.poll(at(now)) {
                match step {
                    Step::List => core.handle_list(at(now), &[A], nobodys),
                    Step::Remove(lease) => removed = removed.or(Some((lease, now))),
                }
            }
        }
        assert_eq!(removed, Some((A, 120)));
    }

    #[test]
    fn an_orphan_that_the_operator_wants_gone_is_removed_at_once_and_only_once() {
        let mut core = Reconcile::new(at(0), PERIODS);
        assert_eq!(core.poll(at(0)), Some(Step::List));
        core.handle_list(at(0), &[A], nobodys);
        assert_eq!(core.poll(at(1)), None, "its grace runs");
        assert!(!core.handle_hurry(B), "nobody knows it");
        assert!(core.handle_hurry(A));
        assert_eq!(core.poll(at(1)), Some(Step::Remove(A)));
        assert!(core.handle_hurry(A), "it is being removed");
        assert_eq!(core.poll(at(1)), None);
    }

    #[test]
    fn what_is_owned_or_shown_once_only_is_never_removed() {
        let mut core = Reconcile::new(at(0), PERIODS);
        core.handle_list(at(0), &[A, B], |lease| {
            (lease == B).then_some(OrphanReason::ClosedLease)
        });
        assert_eq!(core.orphans().count(), 1);
        core.handle_list(at(60), &[A], |_| None);
        core.handle_list(at(180), &[A, B], |lease| {
            (lease == B).then_some(OrphanReason::ClosedLease)
        });
        assert_eq!(core.poll(at(180)), None, "B was away in between");
        assert_eq!(core.orphans().next().expect("B").1.since, at(180));
    }

    #[test]
    fn a_backend_that_cannot_be_listed_is_asked_ever_more_rarely_and_nothing_is_removed() {
        let mut core = Reconcile::new(at(0), PERIODS);
        core.handle_list(at(0), &[A], nobodys);
        let mut asked = Vec::new();
        for now in 60..600 {
            while let Some(step) = core.poll(at(now)) {
                assert_eq!(step, Step::List);
                asked.push(now);
                core.handle_list_failed(at(now));
            }
        }
        assert_eq!(asked[..8], [60, 61, 63, 67, 75, 91, 123, 183]);
        assert_eq!(core.list_failures() as usize, asked.len());
        assert_eq!(
            core.orphans().count(),
            1,
            "it is still shown to the operator"
        );
    }

    #[test]
    fn an_orphan_that_cannot_be_removed_holds_up_no_other() {
        let stuck: Vec<_> = (0..MAX_REMOVALS + 2)
            .map(|n| LeaseId([u8::try_from(n).expect("few"); 16]))
            .collect();
        let mut core = Reconcile::new(at(0), PERIODS);
        core.handle_list(at(0), &stuck, nobodys);
        core.handle_list(at(120), &stuck, nobodys);
        let steps: Vec<_> = std::iter::from_fn(|| core.poll(at(120))).collect();
        assert_eq!(steps.len(), MAX_REMOVALS);
        core.handle_removed(at(121), stuck[0], false);
        assert_eq!(core.poll(at(121)), Some(Step::Remove(stuck[MAX_REMOVALS])));
        let first = core.orphans().next().expect("there");
        assert_eq!((first.1.failed, first.1.state()), (1, "failing"));
    }

    proptest! {
        /// Over any lists, failures and outcomes: whoever is removed had no owner in two lists that are a grace apart, is not
        /// removed twice at once, and no more than [`MAX_REMOVALS`] are under way.
        #[test]
        fn only_what_nobody_owns_for_a_grace_is_removed(
            rounds in prop::collection::vec((1u64..100, 0u8..8, any::<u16>(), any::<u16>()), 1..60)
        ) {
            let lease = |n: usize| LeaseId([u8::try_from(n).expect("few"); 16]);
            let mut core = Reconcile::new(at(0), PERIODS);
            let mut now = 0;
            let mut under_way: Vec<LeaseId> = Vec::new();
            // Since when each was listed without a break and without an owner.
            let mut unowned: BTreeMap<LeaseId, u64> = BTreeMap::new();
            for (passed, kind, shown, owned) in rounds {
                now += passed;
                match kind {
                    0 => core.handle_list_failed(at(now)),
                    1 | 2 => if let Some(lease) = under_way.pop() {
                        core.handle_removed(at(now), lease, kind == 1);
                    },
                    _ => {
                        let list: Vec<_> = (0..16).filter(|n| shown >> n & 1 == 1).map(lease).collect();
                        let is_owned = |lease: LeaseId| owned >> lease.0[0] & 1 == 1;
                        core.handle_list(at(now), &list, |lease| {
                            (!is_owned(lease)).then_some(OrphanReason::UnknownLease)
                        });
                        unowned.retain(|lease, _| list.contains(lease) && !is_owned(*lease));
                        for lease in list.into_iter().filter(|lease| !is_owned(*lease)) {
                            unowned.entry(lease).or_insert(now);
                        }
                    }
                }
                while let Some(step) = core.poll(at(now)) {
                    match step {
                        Step::List => core.handle_list_failed(at(now)),
                        Step::Remove(lease) => {
                            prop_assert!(!under_way.contains(&lease));
                            prop_assert!(now - unowned[&lease] >= PERIODS.grace.as_secs());
                            under_way.push(lease);
                            prop_assert!(under_way.len() <= MAX_REMOVALS);
                        }
                    }
                }
                prop_assert!(core.next_at().is_some(), "there is always a next list");
            }
        }
    }
}
