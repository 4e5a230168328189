//! Whether a node takes leases, and how it stops taking them.
//!
//! ```text
//!            drain                retire                     no lease, farewell over
//!   Open ────────────► Draining ────────────► Retiring ─────────────────────────────► Retired
//!    ▲ │◄─── resume ───┘  │ deadline: the rest is ended  │                             (for ever)
//!    │ └── retire ────────┴──────────────────────────────┤
//!    └──────────────────────────── resume ───────────────┘
//! ```
//!
//! A [`Standing`] is a value that its driver writes before it acts on it, so that a drain survives a restart, and a node that has
//! retired never sells again.
//!
//! Threats: a node that is killed while it leaves and takes leases again; a retirement that goes out while holders could still
//! fetch their statements, for nobody can reach a node that has no card; a lease that is accepted in the moment in which the
//! node is told to retire. So the farewell is counted from when the last lease closed, whenever the order came.

use minicbor::{Decode, Encode};
use souk_crypto::{Signed, UnixTime};

use crate::{
    moment::{Boot, ClockMark, ClockStep, ClockWatch, Moment},
    retirement::Succession,
};

/// For how long a node that retires stays reachable after its last lease has ended, so that the holder gets the statement:
/// a few checkpoints, and a requester who looks every few minutes.
pub const FAREWELL_S: u64 = 600;

/// What was let in before the order to retire is seen among the open leases after so long: it takes no disk to get there.
const SETTLE_S: u64 = 2;

/// How a node stands to new leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub enum Standing {
    /// It takes them.
    #[default]
    #[n(0)]
    Open,
    /// It takes none, until it is told to resume.
    #[n(1)]
    Draining(#[n(0)] Leaving),
    /// It takes none, and retires once the last one has ended.
    #[n(2)]
    Retiring(
        #[n(0)] Leaving,
        /// What the heir signed.
        #[n(1)]
        Option<Signed<Succession>>,
    ),
    /// It has ended; the bytes are its signed retirement.
    #[n(3)]
    Retired(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

/// Since when, and until when at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Leaving {
    /// Since when no lease is taken.
    #[n(0)]
    pub since: UnixTime,
    /// Leases that are open then are ended; none waits for their own ends.
    #[n(1)]
    pub deadline: Option<UnixTime>,
    /// How far the clocks were apart when these instants were written; none until [`Standing::settled`] says so.
    #[n(2)]
    pub clock: Option<ClockMark>,
    /// When the last lease closed, as far as this was written.
    #[n(3)]
    pub last_closed: Option<UnixTime>,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// End every open lease.
    EndLeases,
    /// Write this standing: it knows better when the last lease closed.
    Write(Standing),
    /// Sign the retirement with what the heir signed, and write [`Standing::Retired`].
    Retire(Option<Signed<Succession>>),
}

/// Why the standing stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandingError {
    /// Retirement is for ever.
    #[error("the node has retired, and that cannot be taken back")]
    Retired,
    /// It takes leases.
    #[error("the node takes leases; there is nothing to resume")]
    NothingToResume,
    /// The deadline has passed.
    #[error("the deadline {deadline} lies before now, {now}")]
    Past {
        /// What was asked for.
        deadline: UnixTime,
        /// The time.
        now: UnixTime,
    },
    /// It is about to retire, which ends leases as well.
    #[error("the node retires; resume first to only drain it")]
    Retires,
}

impl Standing {
    /// Whether new leases are taken.
    #[must_use]
    pub const fn takes_leases(&self) -> bool {
        matches!(self, Self::Open)
    }

    /// When open leases are ended, if ever.
    #[must_use]
    pub fn deadline(&self) -> Option<UnixTime> {
        self.leaving().and_then(|leaving| leaving.deadline)
    }

    /// Since when it leaves, while it does.
    #[must_use]
    pub const fn leaving(&self) -> Option<&Leaving> {
        match self {
            Self::Draining(leaving) | Self::Retiring(leaving, ..) => Some(leaving),
            Self::Open | Self::Retired(_) => None,
        }
    }

    /// The same by the clock as it stands now: where it was set since the instants were written, even by an earlier process of
    /// this boot, as much time is left as before. After another boot the instants stay, and are watched from now on.
    #[must_use]
    pub fn settled(&self, boot: Boot, now: Moment) -> Self {
        let Some(leaving) = self.leaving() else {
            return self.clone();
        };
        let mut watch = ClockWatch::resume(leaving.clock, boot, now);
        let step = watch.observe(now);
        let is_marked = leaving.clock.is_some_and(|mark| mark.boot == boot);
        if step.is_none() && is_marked {
            return self.clone();
        }
        let step = step.unwrap_or(ClockStep(0));
        let leaving = Leaving {
            since: step.shift(leaving.since),
            deadline: leaving.deadline.map(|at| step.shift(at)),
            clock: Some(watch.mark()),
            last_closed: leaving.last_closed.map(|at| step.shift(at)),
        };
        self.with(leaving)
    }

    /// The word that people and `--json` see.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Draining(_) => "draining",
            Self::Retiring(..) => "retiring",
            Self::Retired(_) => "retired",
        }
    }

    /// Takes no leases from now on. Again with another deadline, it takes that one.
    ///
    /// # Errors
    /// [`StandingError`]; nothing changes then.
    pub fn drain(&self, now: UnixTime, deadline: Option<UnixTime>) -> Result<Self, StandingError> {
        if matches!(self, Self::Retiring(..)) {
            return Err(StandingError::Retires);
        }
        self.leave(now, deadline).map(Self::Draining)
    }

    /// Takes leases again.
    ///
    /// # Errors
    /// [`StandingError`]; nothing changes then.
    pub const fn resume(&self) -> Result<Self, StandingError> {
        match self {
            Self::Draining(_) | Self::Retiring(..) => Ok(Self::Open),
            Self::Open => Err(StandingError::NothingToResume),
            Self::Retired(_) => Err(StandingError::Retired),
        }
    }

    /// Takes no leases from now on, and ends the node once none is open.
    ///
    /// # Errors
    /// [`StandingError`]; nothing changes then.
    pub fn retire(
        &self,
        now: UnixTime,
        deadline: Option<UnixTime>,
        succession: Option<Signed<Succession>>,
    ) -> Result<Self, StandingError> {
        let leaving = self.leave(now, deadline)?;
        Ok(Self::Retiring(leaving, succession))
    }

    /// What has to be done, with so many leases open, and the last one that closed having done so then; none where no closed
    /// one is known.
    #[must_use]
    pub fn poll(
        &self,
        now: UnixTime,
        open_leases: usize,
        last_closed: Option<UnixTime>,
    ) -> Option<Due> {
        let leaving = self.leaving()?;
        // What a clock ahead wrote must not hold it up for as long.
        let closed = leaving.last_closed.max(last_closed).map(|at| at.min(now));
        if closed != leaving.last_closed {
            return Some(Due::Write(self.with(Leaving {
                last_closed: closed,
                ..*leaving
            })));
        }
        if open_leases > 0 {
            let over = leaving.deadline.is_some_and(|deadline| deadline <= now);
            return over.then_some(Due::EndLeases);
        }
        let Self::Retiring(leaving, succession) = self else {
            return None;
        };
        // Who never had a lease has nobody to say farewell to.
        let is_told = closed.is_none_or(|at| at.plus_s(FAREWELL_S) <= now);
        // An order from the future was given before a boot with the clock behind, and nothing is under way from then.
        let is_settled = leaving.since > now || leaving.since.plus_s(SETTLE_S) <= now;
        (is_told && is_settled).then(|| Due::Retire(succession.clone()))
    }

    /// The same, and the instants are these.
    fn with(&self, leaving: Leaving) -> Self {
        match self {
            Self::Open | Self::Retired(_) => self.clone(),
            Self::Draining(_) => Self::Draining(leaving),
            Self::Retiring(_, succession) => Self::Retiring(leaving, succession.clone()),
        }
    }

    fn leave(&self, now: UnixTime, deadline: Option<UnixTime>) -> Result<Leaving, StandingError> {
        if let Some(deadline) = deadline
            && deadline < now
        {
            return Err(StandingError::Past { deadline, now });
        }
        match self {
            Self::Retired(_) => Err(StandingError::Retired),
            _ => Ok(Leaving {
                since: self.leaving().map_or(now, |leaving| leaving.since),
                deadline,
                // The deadline is by the clock of now, whatever happened to it before.
                clock: None,
                last_closed: self.leaving().and_then(|leaving| leaving.last_closed),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::moment::SteadyTime;

    const NOW: UnixTime = UnixTime(1_000_000);

    #[test]
    fn a_drain_ends_what_is_open_at_its_deadline_and_nothing_before() {
        let draining = Standing::Open
            .drain(NOW, Some(NOW.plus_s(60)))
            .expect("can");
        assert!(!draining.takes_leases());
        assert_eq!(draining.poll(NOW.plus_s(59), 2, None), None);
        assert_eq!(draining.poll(NOW.plus_s(60), 2, None), Some(Due::EndLeases));
        assert_eq!(draining.poll(NOW.plus_s(61), 0, None), None);
        let later = draining.drain(NOW.plus_s(10), None).expect("can");
        assert_eq!(later.leaving().expect("it drains").since, NOW);
        assert_eq!(
            later.poll(NOW.plus_s(99), 2, None),
            None,
            "it waits for their own ends"
        );
        assert_eq!(later.resume(), Ok(Standing::Open));
    }

    fn moment(wall: UnixTime, steady_s: u64) -> Moment {
        Moment {
            wall,
            steady: SteadyTime(Duration::from_secs(steady_s)),
        }
    }

    #[test]
    fn a_deadline_moves_with_a_clock_that_is_set_after_it_was_given_and_only_then() {
        let boot = Boot([1; 16]);
        let draining = Standing::Open
            .drain(NOW, Some(NOW.plus_s(60)))
            .expect("can")
            .settled(boot, moment(NOW, 10));
        let later = draining.settled(boot, moment(NOW.plus_s(20), 30));
        assert_eq!(later, draining, "time that passes changes nothing");
        let set = draining.settled(boot, moment(NOW.minus_s(3_580), 30));
        assert_eq!(set.deadline(), Some(NOW.minus_s(3_540)));
        assert_eq!(set.settled(boot, moment(NOW.minus_s(3_570), 40)), set);
        let other = draining.settled(Boot([2; 16]), moment(NOW.plus_s(9_000), 1));
        assert_eq!(other.deadline(), draining.deadline());
        let again = other.settled(Boot([2; 16]), moment(NOW.plus_s(9_100), 1));
        assert_eq!(again.deadline(), Some(NOW.plus_s(160)));
        // A deadline that is given by a clock that was set before it is not moved by that.
        let anew = set.drain(NOW.minus_s(3_000), Some(NOW)).expect("can");
        let anew = anew.settled(boot, moment(NOW.minus_s(3_000), 5_000));
        assert_eq!(anew.deadline(), Some(NOW));
    }

    /// Does what is due until nothing but time can change anything; says whether it retires.
    fn settle(
        standing: &mut Standing,
        now: UnixTime,
        open: usize,
        closed: Option<UnixTime>,
    ) -> bool {
        loop {
            match standing.poll(now, open, closed) {
                Some(Due::Write(next)) => *standing = next,
                Some(Due::Retire(_)) => return true,
                Some(Due::EndLeases) | None => return false,
            }
        }
    }

    #[test]
    fn a_retirement_waits_for_the_last_lease_and_for_its_holder() {
        let mut standing = Standing::Open.retire(NOW, None, None).expect("can");
        assert!(!settle(&mut standing, NOW, 1, None));
        let closed = Some(NOW.plus_s(5));
        assert!(!settle(&mut standing, NOW.plus_s(5), 0, closed));
        // Whoever asks twice, and a process that knows nothing of it, do not shorten it.
        let mut standing = standing.retire(NOW.plus_s(9), None, None).expect("again");
        let end = NOW.plus_s(5 + FAREWELL_S);
        assert!(!settle(&mut standing, end.minus_s(1), 0, None));
        assert!(settle(&mut standing, end, 0, None));
    }

    #[test]
    fn who_has_no_lease_open_still_waits_for_the_holder_of_the_one_that_just_closed() {
        let retiring = || Standing::Open.retire(NOW, None, None).expect("can");
        let closed = Some(NOW.minus_s(60));
        let end = NOW.plus_s(FAREWELL_S - 60);
        assert!(!settle(&mut retiring(), end.minus_s(1), 0, closed));
        assert!(settle(&mut retiring(), end, 0, closed));
        let mut alone = retiring();
        assert!(
            !settle(&mut alone, NOW, 0, None),
            "one may just be accepted"
        );
        assert!(settle(&mut alone, NOW.plus_s(SETTLE_S), 0, None));
        assert!(!settle(&mut alone, NOW.plus_s(SETTLE_S), 1, None));
    }

    #[test]
    fn a_boot_with_the_clock_behind_prolongs_a_farewell_by_no_more_than_itself() {
        let mut standing = Standing::Open.retire(NOW, None, None).expect("can");
        assert!(!settle(
            &mut standing,
            NOW.plus_s(5),
            0,
            Some(NOW.plus_s(5))
        ));
        let behind = NOW.minus_s(86_400);
        assert!(!settle(&mut standing, behind, 0, None));
        assert!(settle(&mut standing, behind.plus_s(FAREWELL_S), 0, None));
    }

    /// What can happen to a node, in any order.
    #[derive(Clone, Debug)]
    enum Event {
        Accept,
        Close,
        Passes(u64),
        Drain,
        Retire,
        Resume,
        Restart,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => Just(Event::Accept),
            3 => Just(Event::Close),
            4 => (0u64..400).prop_map(Event::Passes),
            1 => Just(Event::Drain),
            2 => Just(Event::Retire),
            1 => Just(Event::Resume),
            1 => Just(Event::Restart),
        ]
    }

    #[test]
    fn nothing_is_changed_by_what_makes_no_sense() {
        let past = Standing::Open.drain(NOW, Some(NOW.minus_s(1)));
        assert!(matches!(past, Err(StandingError::Past { .. })));
        assert_eq!(Standing::Open.resume(), Err(StandingError::NothingToResume));
        let retiring = Standing::Open.retire(NOW, None, None).expect("can");
        assert_eq!(retiring.drain(NOW, None), Err(StandingError::Retires));
        assert_eq!(retiring.resume(), Ok(Standing::Open));
    }

    fn standing() -> impl Strategy<Value = Standing> {
        let leaving = || {
            let clock = any::<Option<([u8; 16], i64)>>().prop_map(|mark| {
                mark.map(|(boot, apart_s)| ClockMark {
                    boot: Boot(boot),
                    apart_s,
                })
            });
            let instant = any::<Option<u64>>;
            (any::<u64>(), instant(), clock, instant()).prop_map(
                |(since, deadline, clock, closed)| Leaving {
                    since: UnixTime(since),
                    deadline: deadline.map(UnixTime),
                    clock,
                    last_closed: closed.map(UnixTime),
                },
            )
        };
        prop_oneof![
            Just(Standing::Open),
            leaving().prop_map(Standing::Draining),
            leaving().prop_map(|leaving| Standing::Retiring(leaving, None)),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(Standing::Retired),
        ]
    }

    proptest! {
        #[test]
        fn a_node_retires_only_when_all_holders_had_their_time_and_then_it_does(
            events in prop::collection::vec(event(), 1..60)
        ) {
            let (mut standing, mut now) = (Standing::Open, NOW);
            let (mut open, mut closed, mut retired) = (0usize, None::<UnixTime>, false);
            for event in events {
                match event {
                    // One that was let in just before the order is shown just after it.
                    Event::Accept if standing.takes_leases()
                        || standing.leaving().is_some_and(|leaving| leaving.since == now) => open += 1,
                    Event::Accept => {}
                    Event::Close if open > 0 => {
                        open -= 1;
                        closed = Some(now);
                    }
                    Event::Close => {}
                    Event::Passes(seconds) => now = now.plus_s(seconds),
                    Event::Drain => standing = standing.drain(now, None).unwrap_or(standing),
                    Event::Retire => standing = standing.retire(now, None, None).unwrap_or(standing),
                    Event::Resume => standing = standing.resume().unwrap_or(standing),
                    Event::Restart => {
                        let bytes = minicbor::to_vec(&standing).expect("into memory");
                        standing = minicbor::decode(&bytes).expect("decodes");
                    }
                }
                if settle(&mut standing, now, open, closed) {
                    prop_assert_eq!(open, 0);
                    prop_assert!(closed.is_none_or(|at| now.since_s(at) >= FAREWELL_S));
                    retired = true;
                    break;
                }
            }
            if !retired && matches!(standing, Standing::Retiring(..)) {
                let end = now.plus_s(FAREWELL_S);
                prop_assert!(settle(&mut standing, end, 0, (open > 0).then_some(now).max(closed)));
            }
        }

        #[test]
        fn it_is_read_as_it_was_written(standing in standing()) {
            let bytes = minicbor::to_vec(&standing).expect("into memory");
            prop_assert_eq!(minicbor::decode::<Standing>(&bytes).expect("decodes"), standing);
        }

        #[test]
        fn who_has_retired_stays_so(tombstone in any::<Vec<u8>>(), now in any::<u64>(), open in 0usize..3) {
            let (retired, now) = (Standing::Retired(tombstone), UnixTime(now));
            prop_assert_eq!(retired.drain(now, None), Err(StandingError::Retired));
            prop_assert_eq!(retired.resume(), Err(StandingError::Retired));
            prop_assert_eq!(retired.retire(now, None, None), Err(StandingError::Retired));
            prop_assert_eq!(retired.poll(now, open, Some(now)), None);
            prop_assert!(!retired.takes_leases());
        }
    }
}
