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
//! fetch their statements, for nobody can reach a node that has no card.

use minicbor::{Decode, Encode};
use souk_crypto::{Signed, UnixTime};

use crate::{
    moment::{Boot, ClockMark, ClockStep, ClockWatch, Moment},
    retirement::Succession,
};

/// For how long a node that retires stays reachable after its last lease has ended, so that the holder gets the statement:
/// a few checkpoints, and a requester who looks every few minutes.
pub const FAREWELL_S: u64 = 600;

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
        /// When it retires, once no lease is open.
        #[n(2)]
        Option<UnixTime>,
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
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// End every open lease.
    EndLeases,
    /// Write this standing: no lease is open any more, and the farewell begins.
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
        };
        match self {
            Self::Retiring(_, succession, at) => {
                Self::Retiring(leaving, succession.clone(), at.map(|at| step.shift(at)))
            }
            _ => Self::Draining(leaving),
        }
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
        open_leases: usize,
    ) -> Result<Self, StandingError> {
        let leaving = self.leave(now, deadline)?;
        // Who has no lease has nobody to say farewell to.
        let retires_at = (open_leases == 0).then_some(now);
        Ok(Self::Retiring(leaving, succession, retires_at))
    }

    /// What has to be done, with so many leases open.
    #[must_use]
    pub fn poll(&self, now: UnixTime, open_leases: usize) -> Option<Due> {
        let leaving = self.leaving()?;
        if open_leases > 0 {
            let over = leaving.deadline.is_some_and(|deadline| deadline <= now);
            return over.then_some(Due::EndLeases);
        }
        match self {
            Self::Retiring(_, succession, Some(at)) if *at <= now => {
                Some(Due::Retire(succession.clone()))
            }
            Self::Retiring(leaving, succession, None) => Some(Due::Write(Self::Retiring(
                *leaving,
                succession.clone(),
                Some(now.plus_s(FAREWELL_S)),
            ))),
            _ => None,
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
        assert_eq!(draining.poll(NOW.plus_s(59), 2), None);
        assert_eq!(draining.poll(NOW.plus_s(60), 2), Some(Due::EndLeases));
        assert_eq!(draining.poll(NOW.plus_s(61), 0), None);
        let later = draining.drain(NOW.plus_s(10), None).expect("can");
        assert_eq!(later.leaving().expect("it drains").since, NOW);
        assert_eq!(
            later.poll(NOW.plus_s(99), 2),
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

    #[test]
    fn a_retirement_waits_for_the_last_lease_and_for_its_holder() {
        let mut standing = Standing::Open.retire(NOW, None, None, 1).expect("can");
        assert_eq!(standing.poll(NOW, 1), None);
        let Some(Due::Write(next)) = standing.poll(NOW.plus_s(5), 0) else {
            panic!("the farewell begins");
        };
        standing = next;
        assert_eq!(standing.poll(NOW.plus_s(5 + FAREWELL_S - 1), 0), None);
        let end = NOW.plus_s(5 + FAREWELL_S);
        assert_eq!(standing.poll(end, 0), Some(Due::Retire(None)));
        let alone = Standing::Open.retire(NOW, None, None, 0).expect("can");
        assert_eq!(alone.poll(NOW, 0), Some(Due::Retire(None)));
    }

    #[test]
    fn nothing_is_changed_by_what_makes_no_sense() {
        let past = Standing::Open.drain(NOW, Some(NOW.minus_s(1)));
        assert!(matches!(past, Err(StandingError::Past { .. })));
        assert_eq!(Standing::Open.resume(), Err(StandingError::NothingToResume));
        let retiring = Standing::Open.retire(NOW, None, None, 1).expect("can");
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
            (any::<u64>(), any::<Option<u64>>(), clock).prop_map(|(since, deadline, clock)| {
                Leaving {
                    since: UnixTime(since),
                    deadline: deadline.map(UnixTime),
                    clock,
                }
            })
        };
        prop_oneof![
            Just(Standing::Open),
            leaving().prop_map(Standing::Draining),
            (leaving(), any::<Option<u64>>()).prop_map(|(leaving, at)| Standing::Retiring(
                leaving,
                None,
                at.map(UnixTime)
            )),
            prop::collection::vec(any::<u8>(), 0..64).prop_map(Standing::Retired),
        ]
    }

    proptest! {
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
            prop_assert_eq!(retired.retire(now, None, None, open), Err(StandingError::Retired));
            prop_assert_eq!(retired.poll(now, open), None);
            prop_assert!(!retired.takes_leases());
        }
    }
}
