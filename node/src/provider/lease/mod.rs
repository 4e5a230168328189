//! One task for one lease: it does what the lifecycle says, in that order, and brings back what happens.
//!
//! ```text
//!   router ──commands──┐
//!   backend calls ─────┼──► lifecycle core ──► store ──► backend, reply
//!   clock, meters ─────┘
//! ```
//!
//! A backend that hangs holds up its own lease and no other. At most one call to provision or terminate runs at a time.

mod closing;
mod replies;

use std::{sync::Arc, time::Duration};

use souk_backend::{Backend, BackendError, Instance, InstanceState, UsageSample};
use souk_crypto::UnixTime;
use souk_market::{
    lifecycle::{Action, Command, Event, Lease, Phase, Reply, Row},
    moment::ClockWatch,
    refusal::Reason,
    reply::LeaseState,
    units::{Counter, Digest, LeaseId},
};
use tokio::{
    sync::{Mutex, mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Shared,
    answer::Surbs,
    backend::{lease_id, proven, reason, spec, usage},
    books::Head,
    carry::DirectPort,
};
use crate::{
    attest::{InstanceFlaw, backend_tee},
    failpoint::{failpoint, planted},
    store::{InstanceEvidence, LeaseRecord, StoreError},
};

/// How long a call to provision may still take once its lease drains; it is given up then.
const PROVISION_GRACE: Duration = Duration::from_secs(30);
/// How long one call to terminate may take before it is given up and made again: it is idempotent, and its answer may be lost.
const TERMINATE_PATIENCE: Duration = Duration::from_secs(60);
/// How much longer than its round a call to watch may take.
const WATCH_GRACE: Duration = Duration::from_secs(30);
/// Between two looks at the clocks, at most: so late a clock that was set is noticed where nothing else happens to the lease.
const CLOCK_LOOK: Duration = Duration::from_secs(10);
/// How long one reading of the meters may take.
const SAMPLE_PATIENCE: Duration = Duration::from_secs(5);
/// How long one call to watch lasts.
const WATCH_ROUND: Duration = Duration::from_secs(60);
/// Pause before a backend that cannot be watched is asked again.
const WATCH_PAUSE: Duration = Duration::from_secs(5);
/// First and longest pause before a row that could not be written is written again.
const STORE_PAUSE: Duration = Duration::from_millis(250);
const MAX_STORE_PAUSE: Duration = Duration::from_secs(30);

/// What a lease is told.
#[derive(Debug)]
pub(super) enum ToLease {
    /// Its envelope came again.
    Repeated(Surbs),
    /// Its holder wants something.
    Holder {
        counter: Counter,
        wish: Wish,
        surbs: Surbs,
    },
    /// Its holder is to be told where it stands, if a SURB is at hand. The other end is dropped when that is done.
    Tell(Option<mpsc::Sender<()>>),
    /// The operator ends it.
    Withdraw,
}

/// What a holder wants.
#[derive(Debug)]
pub(super) enum Wish {
    End,
    Poll,
    TopUp,
    /// The digest of the statement that is agreed to, and the signed request itself.
    Acknowledge(Digest, Vec<u8>),
    /// A part of its evidence.
    Evidence(u8),
}

/// What is sent in place of the next reply of the core.
#[derive(Clone, Copy, Debug)]
enum Instead {
    Refuse(Reason),
    Evidence(u8),
}

/// How a task ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Its first row could not be written: it never was.
    NeverBegan,
    /// It is closed, or the node shuts down.
    Rests,
}

/// What a call to the backend brought.
enum Done {
    Provisioned(Box<Provisioned>),
    Terminated(Result<UsageSample, BackendError>),
    Sampled(Option<UsageSample>),
    Exited,
}

/// What a call to provision brought.
struct Provisioned {
    instance: Result<Instance, BackendError>,
    /// There is a way to it.
    is_reachable: bool,
    evidence: Result<Option<InstanceEvidence>, InstanceFlaw>,
}

pub(super) struct LeaseTask {
    shared: Arc<Shared>,
    core: Lease,
    record: LeaseRecord,
    clock_watch: ClockWatch,
    /// None where the backend that carries the lease is no more configured.
    backend: Option<Arc<dyn Backend>>,
    commands: mpsc::Receiver<ToLease>,
    surbs: Surbs,
    /// Which request the next reply answers.
    answering: Counter,
    instead: Option<Instead>,
    /// The statement is owed, and waits for a checkpoint.
    owed: bool,
    calls: JoinSet<Done>,
    /// Held during a call to provision, so that a call to terminate comes after it.
    provision_turn: Arc<Mutex<()>>,
    provisioning: Option<AbortHandle>,
    sampling: bool,
    samples: Interval,
    head: watch::Receiver<Head>,
    direct: Option<DirectPort>,
}

impl LeaseTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        core: Lease,
        record: LeaseRecord,
        backend: Option<Arc<dyn Backend>>,
        commands: mpsc::Receiver<ToLease>,
        surbs: Surbs,
    ) -> Self {
        let mut samples = interval(shared.settings.sample_period);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let head = shared.head.subscribe();
        let clock_watch = ClockWatch::new(shared.clock.boot(), shared.clock.moment());
        Self {
            shared,
            core,
            record,
            clock_watch,
            backend,
            commands,
            surbs,
            answering: Counter(0),
            instead: None,
            owed: false,
            calls: JoinSet::new(),
            provision_turn: Arc::default(),
            provisioning: None,
            sampling: false,
            samples,
            head,
            direct: None,
        }
    }

    /// Runs until the lease is closed and nothing is owed, or the node shuts down.
    pub(super) async fn run(mut self) -> Ended {
        let shutdown = self.shared.shutdown.clone();
        loop {
            tokio::select! {
                biased;
                // Whatever has been written is where the next start goes on.
                () = shutdown.cancelled() => return Ended::Rests,
                done = self.act() => {
                    if let Err(ended) = done {
                        return ended;
                    }
                }
            }
            if self.is_finished() {
                self.commands.close();
                match self.commands.recv().await {
                    Some(message) => self.take(message).await,
                    None => return Ended::Rests,
                }
                continue;
            }
            let (clock, deadline) = (Arc::clone(&self.shared.clock), self.core.next_deadline());
            let is_active = self.core.row().phase() == Phase::Active;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ended::Rests,
                Some(done) = self.calls.join_next() => self.done(done).await,
                _ = timeout(CLOCK_LOOK, clock.sleep_until(deadline.unwrap_or_default())), if deadline.is_some() => {
                    self.handle(Event::Tick);
                }
                _ = self.samples.tick(), if is_active && !self.sampling => self.sample(),
                () = new_head(&self.shared, &self.head), if self.owed => self.send_statement().await,
                Some(message) = self.commands.recv() => self.take(message).await,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = self.look();
        self.core.handle(now, event);
    }

    /// The time, after the lease was told if the clock was set.
    fn look(&mut self) -> UnixTime {
        let now = self.shared.clock.moment();
        if let Some(step) = self.clock_watch.observe(now) {
            self.record.follow(step);
            self.core.handle_clock_step(step);
        }
        now.wall
    }

    async fn take(&mut self, message: ToLease) {
        match message {
            ToLease::Repeated(surbs) => {
                self.surbs.join(surbs);
                self.answering = Counter(0);
                self.core.handle_repeated();
            }
            ToLease::Tell(_done) => {
                if !self.surbs.is_empty() {
                    self.tell_status().await;
                }
            }
            ToLease::Withdraw => self.handle(Event::Withdraw),
            ToLease::Holder {
                counter,
                wish,
                surbs,
            } => {
                self.surbs.join(surbs);
                let command = match wish {
                    Wish::End => Command::End,
                    Wish::Poll | Wish::TopUp | Wish::Acknowledge(..) | Wish::Evidence(_) => {
                        Command::Poll
                    }
                };
                let now = self.look();
                let before = self.answering;
                self.answering = counter;
                if self.core.handle_command(now, counter, command).is_err() {
                    self.refuse(Reason::StaleCounter).await;
                    self.answering = before;
                    return;
                }
                match wish {
                    Wish::TopUp => self.instead = Some(Instead::Refuse(Reason::NoTopUp)),
                    Wish::Evidence(part) => self.instead = Some(Instead::Evidence(part)),
                    Wish::Acknowledge(statement, signed) => {
                        self.acknowledge(statement, signed).await;
                    }
                    Wish::End | Wish::Poll => {}
                }
            }
        }
    }

    async fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Provisioned(provisioned)) => self.provisioned(*provisioned).await,
            Ok(Done::Terminated(Ok(sample))) => {
                self.handle(Event::Terminated(usage(&sample.usage)));
            }
            Ok(Done::Terminated(Err(error))) => {
                tracing::error!(lease = %self.lease(), error = &error as &dyn std::error::Error, "the instance could not be removed; it is tried again");
                self.handle(Event::TerminateFailed);
            }
            Ok(Done::Sampled(sample)) => {
                self.sampling = false;
                let totals =
                    sample.map_or(souk_market::lifecycle::Usage::UNKNOWN, |s| usage(&s.usage));
                self.handle(Event::Sampled(totals));
            }
            Ok(Done::Exited) => self.handle(Event::Exited),
            Err(error) if error.is_cancelled() => {}
            // A driver that panicked has done nobody knows what: the lease goes on as after a failure.
            Err(error) => {
                tracing::error!(lease = %self.lease(), %error, "the backend panicked");
                self.sampling = false;
                match self.core.row().phase() {
                    Phase::Active => self.watch(),
                    Phase::Draining { .. } => self.handle(Event::TerminateFailed),
                    _ => self.handle(Event::ProvisionFailed),
                }
            }
        }
    }

    async fn provisioned(&mut self, provisioned: Provisioned) {
        self.provisioning = None;
        let instance = match provisioned.instance {
            Ok(_) if self.core.row().phase() != Phase::Provisioning => return,
            Ok(instance) => instance,
            Err(error) => {
                tracing::warn!(lease = %self.lease(), error = &error as &dyn std::error::Error, "no instance");
                return self.not_provisioned(reason(&error));
            }
        };
        if !provisioned.is_reachable {
            tracing::warn!(lease = %self.lease(), "none of the relays that the request names was reached");
            return self.not_provisioned(Reason::NoRelay);
        }
        match provisioned.evidence {
            Ok(evidence) => self.record.evidence = evidence,
            Err(flaw) => {
                tracing::error!(lease = %self.lease(), error = &flaw as &dyn std::error::Error, "the evidence of the instance does not hold");
                return self.not_provisioned(Reason::ProvisionFailed);
            }
        }
        let doors = Arc::clone(&self.shared.doors);
        let Some(record) = proven(&*doors, &instance, self.shared.clock.now()).await else {
            tracing::warn!(lease = %self.lease(), "the instance does not answer over SSH");
            return self.not_provisioned(Reason::ProvisionFailed);
        };
        self.record.instance = Some(record);
        self.open_port();
        if planted!(ReceiptBeforeJournal) {
            self.reply(Reply::Receipt).await;
        }
        self.handle(Event::Provisioned);
    }

    fn not_provisioned(&mut self, reason: Reason) {
        self.record.refusal = Some(reason);
        self.handle(Event::ProvisionFailed);
    }

    /// Does all that the core wants done.
    async fn act(&mut self) -> Result<(), Ended> {
        loop {
            let Some(action) = self.core.poll_action() else {
                if self.core.row().phase() == Phase::Reserved {
                    let event = match self.has_tee().await {
                        true => Event::Start,
                        false => Event::ProvisionFailed,
                    };
                    self.handle(event);
                    continue;
                }
                return Ok(());
            };
            match action {
                Action::Persist(row) => self.persist(row).await?,
                Action::Close(row) => self.close(row).await,
                Action::Provision => self.provision(),
                Action::Watch => self.watch(),
                Action::Terminate => self.terminate(),
                Action::Reply(reply) => self.reply(reply).await,
            }
        }
    }

    /// Whether the backend can bring the evidence that is asked for. It is asked before the intent is written: its card was made
    /// earlier, and nothing that must be in a TEE starts outside of one.
    async fn has_tee(&mut self) -> bool {
        let (Some(tee), Some(backend)) = (self.record.contract.tee, &self.backend) else {
            return true;
        };
        let asked = timeout(SAMPLE_PATIENCE, backend.capabilities()).await;
        let found = asked.ok().and_then(Result::ok).and_then(|able| able.tee);
        let has = self.shared.tee.is_some() && found.is_some() && found == backend_tee(tee);
        if !has {
            tracing::warn!(lease = %self.lease(), %tee, "the backend cannot bring the evidence that the lease asks for");
            self.record.refusal = Some(Reason::TeeMissing);
            self.shared
                .refused
                .send_modify(|totals| totals.count(Reason::TeeMissing));
        }
        has
    }

    async fn persist(&mut self, row: Row) -> Result<(), Ended> {
        #[cfg(feature = "failpoints")]
        let step = Step::between(&self.record.row, &row);
        self.record.row = row;
        self.record.clock = Some(self.clock_watch.mark());
        if planted!(ActBeforeIntent) && row.version() == 1 {
            self.provision();
        }
        if planted!(LostDraining) && matches!(row.phase(), Phase::Draining { .. }) {
            self.core.persisted(row.version());
            return Ok(());
        }
        #[cfg(feature = "failpoints")]
        step.before();
        let mut pause = STORE_PAUSE;
        loop {
            let record = self.record.clone();
            let written = if row.version() == 1 {
                self.shared.store.accept(record).await
            } else {
                self.shared.store.save(record).await
            };
            match written {
                Ok(()) => break,
                Err(error) => {
                    tracing::error!(lease = %row.lease(), error = &error as &dyn std::error::Error, "a row was not written");
                    if row.version() == 1 {
                        if self.is_on_disk().await {
                            break;
                        }
                        return Err(Ended::NeverBegan);
                    }
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_STORE_PAUSE);
        }
        #[cfg(feature = "failpoints")]
        step.after();
        let now = self.shared.clock.moment();
        self.shared.board.show(&self.record, now);
        self.core.persisted(row.version());
        Ok(())
    }

    /// Whether there is a row of this lease though it could not be written: a disk may fail after it has kept it, and whoever took the
    /// lease for one that never was would give its request another one.
    async fn is_on_disk(&self) -> bool {
        let mut pause = STORE_PAUSE;
        loop {
            match self.shared.store.lease(self.lease()) {
                Ok(found) => return found.is_some(),
                Err(StoreError::Row(_)) => return true,
                Err(error) => {
                    tracing::error!(lease = %self.lease(), error = &error as &dyn std::error::Error, "it is not known whether a row was written");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_STORE_PAUSE);
        }
    }

    fn provision(&mut self) {
        let Some(backend) = self.backend.clone() else {
            tracing::error!(lease = %self.lease(), "its backend is no more configured");
            self.handle(Event::ProvisionFailed);
            return;
        };
        let (contract, host) = (&self.record.contract, self.shared.tee.clone());
        let tee = contract.tee.and_then(backend_tee);
        let order = tee
            .zip(host.as_ref())
            .and_then(|(tee, host)| host.order(tee, contract.envelope));
        if contract.tee.is_some() && order.is_none() {
            return self.not_provisioned(Reason::TeeMissing);
        }
        let valid_to = self.record.row.terms().valid_to();
        let spec = spec(self.lease(), contract, valid_to, order);
        let turn = Arc::clone(&self.provision_turn);
        // The relays are dialed while the instance starts: whoever waits for the receipt waits for the longer of the two.
        let door = self.open_door();
        self.provisioning = Some(self.calls.spawn(async move {
            let _turn = turn.lock().await;
            failpoint!(BeforeProvision);
            let instance = backend.provision(&spec).await;
            failpoint!(AfterProvision);
            let evidence = match (&instance, &spec.evidence, host) {
                (Ok(instance), Some(order), Some(host)) => {
                    host.verify(order, instance, spec.image).await.map(Some)
                }
                _ => Ok(None),
            };
            let is_reachable = instance.is_ok() && door.await;
            Done::Provisioned(Box::new(Provisioned {
                instance,
                is_reachable,
                evidence,
            }))
        }));
    }

    fn terminate(&mut self) {
        let Some(backend) = self.backend.clone() else {
            tracing::error!(lease = %self.lease(), "its backend is no more configured; the instance cannot be removed");
            self.handle(Event::TerminateFailed);
            return;
        };
        let lease = lease_id(self.lease());
        let (turn, provisioning) = (Arc::clone(&self.provision_turn), self.provisioning.take());
        self.calls.spawn(async move {
            if timeout(PROVISION_GRACE, turn.lock()).await.is_err()
                && let Some(provisioning) = provisioning
            {
                provisioning.abort();
            }
            failpoint!(BeforeTerminate);
            let last = timeout(TERMINATE_PATIENCE, backend.terminate(lease)).await;
            failpoint!(AfterTerminate);
            Done::Terminated(last.unwrap_or_else(|_| {
                Err(BackendError::Unknown {
                    lease,
                    what: format!("no answer within {} s", TERMINATE_PATIENCE.as_secs()),
                })
            }))
        });
    }

    fn watch(&mut self) {
        let lease = self.lease();
        // After a restart nobody has let the holder in yet.
        if self.record.contract.relays.is_empty() {
            self.open_port();
        } else {
            drop(self.open_door());
        }
        let Some(backend) = self.backend.clone() else {
            return;
        };
        self.calls.spawn(async move {
            loop {
                let round = backend.watch(lease_id(lease), WATCH_ROUND);
                match timeout(WATCH_ROUND + WATCH_GRACE, round).await {
                    Ok(Ok(InstanceState::Running)) => {}
                    Ok(Ok(InstanceState::Exited | InstanceState::Gone)) => return Done::Exited,
                    Err(_) => tracing::warn!(%lease, "a call to watch the instance was not answered; it is made again"),
                    Ok(Err(error)) => {
                        tracing::warn!(%lease, error = &error as &dyn std::error::Error, "the instance cannot be watched");
                        sleep(WATCH_PAUSE).await;
                    }
                }
            }
        });
    }

    /// Opens the port of this host that leads to a direct lease, where it is not open.
    fn open_port(&mut self) {
        let is_wanted = self.record.contract.relays.is_empty() && self.direct.is_none();
        if let (true, Some(ip), Some(instance)) = (
            is_wanted,
            self.shared.settings.direct,
            &self.record.instance,
        ) {
            self.direct = DirectPort::open(ip, self.record.direct_port, instance.ssh);
            let opened = self.direct.as_ref().map(|port| port.address().port());
            self.record.direct_port = opened.or(self.record.direct_port);
        }
    }

    /// Has the relays let the holder in, from now on; the outcome says whether one of them does, or none is needed.
    fn open_door(&self) -> impl Future<Output = bool> + Send + use<> {
        let contract = &self.record.contract;
        let (relays, token) = (
            Arc::clone(&self.shared.relays),
            contract.relay_token.clone(),
        );
        let (named, lifetime) = (contract.relays.clone(), self.time_left());
        let admitting = tokio::spawn(async move {
            named.is_empty() || !relays.admit(&token, lifetime, &named).await.is_empty()
        });
        async move { admitting.await.unwrap_or(false) }
    }

    /// What is left of the lease's time.
    fn time_left(&self) -> Duration {
        let valid_to = self.record.row.terms().valid_to();
        Duration::from_secs(valid_to.since_s(self.shared.clock.now()))
    }

    fn sample(&mut self) {
        let Some(backend) = self.backend.clone() else {
            return;
        };
        let lease = lease_id(self.lease());
        self.sampling = true;
        self.calls.spawn(async move {
            let sample = timeout(SAMPLE_PATIENCE, backend.sample(lease)).await;
            Done::Sampled(sample.ok().and_then(Result::ok))
        });
    }

    fn is_finished(&self) -> bool {
        matches!(self.core.row().phase(), Phase::Closed { .. }) && !self.owed
    }

    fn lease(&self) -> LeaseId {
        self.record.row.lease()
    }
}

/// Waits for a head of the log that `seen` has not seen.
async fn new_head(shared: &Shared, seen: &watch::Receiver<Head>) {
    let changed = shared.head_changed.notified();
    tokio::pin!(changed);
    // Before the look, so that none is missed between the two.
    changed.as_mut().enable();
    if !seen.has_changed().unwrap_or(false) {
        changed.await;
    }
}

/// What a row changes, for its failpoints.
#[cfg(feature = "failpoints")]
#[derive(Clone, Copy)]
enum Step {
    Accept,
    Intent,
    Instance,
    Update,
    Drain,
}

#[cfg(feature = "failpoints")]
impl Step {
    fn between(before: &Row, after: &Row) -> Self {
        match (before.phase(), after.phase()) {
            _ if after.version() == 1 => Self::Accept,
            (Phase::Reserved, Phase::Provisioning) => Self::Intent,
            (Phase::Provisioning, Phase::Active) => Self::Instance,
            (Phase::Reserved | Phase::Provisioning | Phase::Active, Phase::Draining { .. }) => {
                Self::Drain
            }
            _ => Self::Update,
        }
    }

    fn before(self) {
        match self {
            Self::Accept => failpoint!(BeforeAcceptRow),
            Self::Intent => failpoint!(BeforeIntentRow),
            Self::Instance => failpoint!(BeforeInstanceRow),
            Self::Update => failpoint!(BeforeUpdateRow),
            Self::Drain => failpoint!(BeforeDrainRow),
        }
    }

    fn after(self) {
        match self {
            Self::Accept => failpoint!(AcceptRowWritten),
            Self::Intent => failpoint!(IntentRowWritten),
            Self::Instance => failpoint!(InstanceRowWritten),
            Self::Update => failpoint!(UpdateRowWritten),
            Self::Drain => failpoint!(DrainRowWritten),
        }
    }
}

/// Where a lease stands, for its holder and its operator.
pub(super) fn state_of(row: &Row) -> LeaseState {
    match row.phase() {
        Phase::Reserved | Phase::Provisioning => LeaseState::Provisioning,
        Phase::Active => LeaseState::Active,
        Phase::Draining { .. } => LeaseState::Draining,
        Phase::Closed { .. } => LeaseState::Closed,
    }
}
