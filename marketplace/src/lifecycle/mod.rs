//! The life of a lease at its provider, without I/O.
//!
//! ```text
//!                    Start            Provisioned           End, Withdraw, Exited,       Terminated
//! Requested ─► Reserved ─► Provisioning ─────────► Active ───────────────────► Draining ──────────► Closed
//!  (no row)       │             │                             valid_to            ▲
//!                 └─────────────┴─────────────────────────────────────────────────┘
//!                   End, Withdraw, up_by; ProvisionFailed
//! ```
//!
//! A [`Lease`] takes an [`Event`] with `now` and gives [`Action`]s in the order in which they must be done. An action
//! that others can see (a call to the backend, a reply) comes after the row that announces it, and
//! [`Lease::poll_action`] gives nothing more until that row [was written](Lease::persisted). Whoever crashes in between
//! continues with [`Lease::recover`] from the last row that was written.
//!
//! Promises, each of them a named function in this module's tests, over random orders of events and crashes:
//! one confirmed termination and one log entry for each lease; no reply before its row; no provisioning once a lease
//! drains; a counter is never accepted twice.
//!
//! Deadlines are times of the wall clock, because they have to mean something to the next process and to the holder. A clock that
//! is set moves them ([`Lease::handle_clock_step`]); [`crate::moment`] tells a clock that was set from time that passed.
//!
//! Threats: a provider that dies at the worst moment and leaves an orphan or a double bill; a holder's message replayed
//! by whoever saw it; an instance that ends itself.

#[cfg(test)]
mod clocks;
mod row;
#[cfg(test)]
mod world;

use std::collections::VecDeque;

pub use row::{Phase, Row, Terms, Usage};
use souk_crypto::UnixTime;

use crate::{
    moment::ClockStep,
    statement::Outcome,
    units::{Counter, LeaseId},
};

/// First pause after a termination that failed, in seconds; it doubles up to [`MAX_TERMINATE_PAUSE_S`].
const FIRST_TERMINATE_PAUSE_S: u64 = 1;
/// Longest pause between two attempts to terminate: an instance that cannot be removed is tried once a minute.
const MAX_TERMINATE_PAUSE_S: u64 = 60;

/// A request that was accepted and has no row yet.
#[derive(Clone, Copy, Debug)]
pub struct Requested {
    /// Its deadlines.
    pub terms: Terms,
}

impl Requested {
    /// Holds capacity for it under a fresh id.
    #[must_use]
    pub fn reserve(self, lease: LeaseId) -> Lease {
        let mut lease = Lease::at_rest(Row {
            lease,
            version: 0,
            terms: self.terms,
            counter: Counter(0),
            usage: Usage::NONE,
            phase: Phase::Reserved,
        });
        lease.persist();
        lease
    }
}

/// What happened to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A backend is chosen and ready; the instance may be asked for.
    Start,
    /// The instance accepts SSH.
    Provisioned,
    /// There is no instance, or it cannot be known whether there is one.
    ProvisionFailed,
    /// Totals were measured while the instance runs.
    Sampled(Usage),
    /// The instance ended by itself.
    Exited,
    /// The operator of the provider ends the lease.
    Withdraw,
    /// The instance is gone; final totals.
    Terminated(Usage),
    /// The instance could not be removed, or it is not known.
    TerminateFailed,
    /// Nothing but the time that has passed.
    Tick,
}

/// What the holder asked for, once its signature was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// End the lease.
    End,
    /// Tell where it stands.
    Poll,
}

/// A counter that is not above the highest one its holder has used: an old message, or a replayed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("counter {used} is not above {highest}")]
pub struct StaleCounter {
    /// The one in the message.
    pub used: Counter,
    /// The highest before.
    pub highest: Counter,
}

/// What must be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the row, durably, then say so with [`Lease::persisted`].
    Persist(Row),
    /// Write the row and append the entry of the lease to the usage log, in one transaction, then say so with
    /// [`Lease::persisted`].
    Close(Row),
    /// Ask the backend for the instance.
    Provision,
    /// Watch the instance, and measure it.
    Watch,
    /// Let an attempt to provision that is under way come to its end, then remove the instance.
    Terminate,
    /// Tell the holder.
    Reply(Reply),
}

/// What the holder is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// How to log in.
    Receipt,
    /// No instance came up.
    Refusal,
    /// The phase it is in.
    Status,
    /// The final account, with its place in the log as soon as a checkpoint covers it.
    Statement,
}

/// One lease.
#[derive(Clone, Debug)]
pub struct Lease {
    row: Row,
    /// Bounded: an event adds at most three, and the driver does them all before it brings the next event.
    actions: VecDeque<Action>,
    /// When to try again to remove the instance.
    retry: Option<UnixTime>,
    /// The pause before the attempt after that.
    pause_s: u64,
}

impl Lease {
    /// Continues a lease from the last row that was written.
    #[must_use]
    pub fn recover(row: Row, now: UnixTime) -> Self {
        Self::recover_after(None, row, now)
    }

    /// Continues a lease from the last row that was written, where the clock was set since.
    #[must_use]
    pub fn recover_after(step: Option<ClockStep>, row: Row, now: UnixTime) -> Self {
        let mut lease = Self::at_rest(row);
        if let Some(step) = step {
            lease.handle_clock_step(step);
        }
        match row.phase {
            // Both calls are idempotent by lease id, so it does not matter whether they were made before.
            Phase::Provisioning if now < row.terms.up_by() => lease.push(Action::Provision),
            Phase::Draining { .. } => lease.push(Action::Terminate),
            Phase::Active => lease.push(Action::Watch),
            Phase::Reserved | Phase::Provisioning | Phase::Closed { .. } => {}
        }
        lease.handle(now, Event::Tick);
        lease
    }

    /// Takes an event. What does not fit the phase changes nothing: an answer may come late, or twice.
    pub fn handle(&mut self, now: UnixTime, event: Event) {
        match (self.row.phase, event) {
            (Phase::Reserved, Event::Start) if now < self.row.terms.up_by() => {
                self.row.phase = Phase::Provisioning;
                self.row.usage = Usage::UNKNOWN;
                self.persist();
                self.push(Action::Provision);
            }
            (Phase::Provisioning, Event::Provisioned) => {
                self.row.phase = Phase::Active;
                self.persist();
                self.push(Action::Watch);
                self.push(Action::Reply(Reply::Receipt));
            }
            // Of a reserved lease nothing was asked of the backend: it was found not to have what is demanded.
            (Phase::Reserved | Phase::Provisioning, Event::ProvisionFailed) => self.fail(),
            (Phase::Active, Event::Sampled(usage)) => {
                self.row.usage = self.row.usage.then(&usage);
                self.persist();
            }
            (Phase::Active, Event::Exited) => self.drain(Outcome::InstanceExited),
            (Phase::Reserved | Phase::Provisioning | Phase::Active, Event::Withdraw) => {
                self.drain(Outcome::EndedByProvider);
            }
            (
                Phase::Draining {
                    outcome,
                    provisioned,
                },
                Event::Terminated(last),
            ) => {
                if provisioned {
                    self.row.usage = self.row.usage.then(&last);
                }
                // By a clock that was behind at a boot in between, it would end before it began.
                let at = now.max(self.row.terms.accepted_at());
                self.row.phase = Phase::Closed { outcome, at };
                self.retry = None;
                self.row.version += 1;
                self.push(Action::Close(self.row));
                self.push(Action::Reply(Reply::Statement));
            }
            (Phase::Draining { .. }, Event::TerminateFailed) if self.retry.is_none() => {
                self.retry = Some(now.plus_s(self.pause_s));
                self.pause_s = (self.pause_s * 2).min(MAX_TERMINATE_PAUSE_S);
            }
            _ => {}
        }
        self.check_deadlines(now);
    }

    /// Takes a command of the holder. Its signature was checked by the caller, its counter is checked here.
    ///
    /// # Errors
    /// [`StaleCounter`]; nothing has changed then.
    pub fn handle_command(
        &mut self,
        now: UnixTime,
        counter: Counter,
        command: Command,
    ) -> Result<(), StaleCounter> {
        if counter <= self.row.counter {
            return Err(StaleCounter {
                used: counter,
                highest: self.row.counter,
            });
        }
        self.row.counter = counter;
        match (command, self.row.phase) {
            (Command::End, Phase::Reserved | Phase::Provisioning | Phase::Active) => {
                self.drain(Outcome::EndedByHolder);
            }
            _ => {
                self.persist();
                self.push(Action::Reply(self.reply()));
            }
        }
        self.check_deadlines(now);
        Ok(())
    }

    /// The clock of the wall was set: every deadline moves with it, so that as much time is left as before. Nothing ends and
    /// nothing is billed because of time that did not pass, and nothing runs on because time was taken back.
    pub fn handle_clock_step(&mut self, step: ClockStep) {
        if matches!(self.row.phase, Phase::Closed { .. }) {
            return;
        }
        self.row.terms = self.row.terms.shifted(step);
        self.retry = self.retry.map(|at| step.shift(at));
        self.persist();
    }

    /// The same envelope came again: its holder may not have got the reply.
    pub fn handle_repeated(&mut self) {
        self.push(Action::Reply(self.reply()));
    }

    /// The next thing to do, if any. A row to be written is given again until it [was](Self::persisted).
    pub fn poll_action(&mut self) -> Option<Action> {
        match self.actions.front() {
            Some(Action::Persist(_) | Action::Close(_)) => self.actions.front().copied(),
            _ => self.actions.pop_front(),
        }
    }

    /// The row of that version is durable.
    pub fn persisted(&mut self, version: u64) {
        if let Some(Action::Persist(row) | Action::Close(row)) = self.actions.front()
            && row.version == version
        {
            self.actions.pop_front();
        }
    }

    /// When [`Event::Tick`] will do something by itself.
    #[must_use]
    pub fn next_deadline(&self) -> Option<UnixTime> {
        match self.row.phase {
            Phase::Reserved | Phase::Provisioning => Some(self.row.terms.up_by()),
            Phase::Active => Some(self.row.terms.valid_to()),
            Phase::Draining { .. } => self.retry,
            Phase::Closed { .. } => None,
        }
    }

    /// The row as it stands in memory, which may be ahead of the one that was written.
    #[must_use]
    pub fn row(&self) -> &Row {
        &self.row
    }

    fn at_rest(row: Row) -> Self {
        Self {
            row,
            actions: VecDeque::new(),
            retry: None,
            pause_s: FIRST_TERMINATE_PAUSE_S,
        }
    }

    fn check_deadlines(&mut self, now: UnixTime) {
        let terms = self.row.terms;
        match self.row.phase {
            Phase::Reserved | Phase::Provisioning if now >= terms.up_by() => self.fail(),
            Phase::Active if now >= terms.valid_to() => self.drain(Outcome::Expired),
            Phase::Draining { .. } if self.retry.is_some_and(|at| now >= at) => {
                self.retry = None;
                self.push(Action::Terminate);
            }
            _ => {}
        }
    }

    fn fail(&mut self) {
        self.drain(Outcome::ProvisionFailed);
        self.push(Action::Reply(Reply::Refusal));
    }

    fn drain(&mut self, outcome: Outcome) {
        self.row.phase = Phase::Draining {
            outcome,
            provisioned: self.row.phase != Phase::Reserved,
        };
        self.persist();
        self.push(Action::Terminate);
    }

    /// What the holder is told when it asks.
    fn reply(&self) -> Reply {
        match self.row.phase {
            Phase::Active => Reply::Receipt,
            Phase::Draining {
                outcome: Outcome::ProvisionFailed,
                ..
            } => Reply::Refusal,
            Phase::Reserved | Phase::Provisioning | Phase::Draining { .. } => Reply::Status,
            Phase::Closed { .. } => Reply::Statement,
        }
    }

    fn persist(&mut self) {
        self.row.version += 1;
        self.push(Action::Persist(self.row));
    }

    fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }
}
