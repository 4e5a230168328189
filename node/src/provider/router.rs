//! Reads messages, decides who is served, and hands each lease what is for it.
//!
//! Nothing here waits for a backend, a disk or a reply: a slow lease holds up nobody, and a flood of requests costs one
//! unsealing each. Replies to refused requests are made beside it, at most [`MAX_REFUSING`] at a time; what is above that
//! is counted and gets no answer.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use rand::RngExt as _;
use souk_backend::Backend;
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    admission::{Accepted, Admission, Decision, Situation},
    envelope::{AUTHORIZATION_NONE, VerifiedEnvelope},
    lifecycle::{Lease, Phase, Requested, Terms},
    log::{Entry, HourBucket, RefusalEntry},
    moment::{ClockWatch, SteadyTime},
    refusal::{Reason, RefusalTotals},
    reply::{Body, Refusal},
    request::Action,
    sealed::{Request, open_request},
    units::{BackendName, Counter, LeaseId, Money, RelayToken, RequestId, Resources},
};
use souk_sphinx::message::{Class, Message};
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{self, JoinSet},
    time::{MissedTickBehavior, interval},
};

use super::{
    Offering, Requests, Shared,
    answer::{Addressee, Surbs},
    lease::{Ended, LeaseTask, ToLease, Wish},
};
use crate::{
    failpoint::failpoint,
    store::{self, Contract, Found, LeaseRecord, LogRecord},
};

/// Tasks of leases at one time, the open ones and those that answer for closed ones. Each takes about 50 KiB.
pub(super) const MAX_TASKS: usize = 512;
/// Leases that can be asked about, open and closed; 100 bytes each. When full, new requests are refused as busy.
const MAX_REMEMBERED: usize = 131_072;
/// Of those, the ones that leases without a voucher may take: 136 an hour over the 30 days that each is remembered, more than the
/// default of `anonymous_per_hour`. The rest is for vouched leases, since nobody has to pay for the others.
const MAX_REMEMBERED_ANONYMOUS: usize = MAX_REMEMBERED / 4 * 3;
/// Refusals being sealed and sent at one time.
const MAX_REFUSING: usize = 64;
/// Messages of one lease that wait. A holder that sends more loses them, and polls again.
const LEASE_QUEUE: usize = 16;
/// Closed leases that one round forgets, in one transaction that messages wait for: fourteen for each second between two rounds.
const FORGOTTEN_AT_ONCE: usize = 8_192;

/// What the operator asks for.
pub(super) enum Order {
    /// End a lease; answers whether there is one that can be ended.
    Withdraw(LeaseId, oneshot::Sender<bool>),
    /// Have a lease tell its holder where it stands; the other end is dropped when that is done.
    Tell(LeaseId, Option<mpsc::Sender<()>>),
}

pub(super) struct Router {
    shared: Arc<Shared>,
    offering: watch::Receiver<Arc<Offering>>,
    backends: BTreeMap<BackendName, (Arc<dyn Backend>, Resources)>,
    admission: Admission,
    /// Totals that were taken and could not be appended yet.
    unwritten: Option<RefusalTotals>,
    requests: Requests,
    /// Closed leases, and when their statement may be forgotten.
    closed: BTreeMap<LeaseId, (UnixTime, RequestId)>,
    slots: HashMap<LeaseId, mpsc::Sender<ToLease>>,
    /// Messages for leases whose task was just ending.
    late: HashMap<LeaseId, ToLease>,
    tasks: JoinSet<Ended>,
    /// Whose task is which.
    running: HashMap<task::Id, (LeaseId, RequestId)>,
    refusing: Arc<Semaphore>,
    clock_watch: ClockWatch,
    /// Nothing is forgotten before: the process has just begun, or the clock was set.
    doubts_until: SteadyTime,
    /// Forgets spent SURBs, at most one task.
    sweeping: JoinSet<()>,
}

impl Router {
    pub(super) fn new(
        shared: Arc<Shared>,
        offering: watch::Receiver<Arc<Offering>>,
        backends: BTreeMap<BackendName, (Arc<dyn Backend>, Resources)>,
        requests: Requests,
    ) -> Self {
        let clock_watch = ClockWatch::new(shared.clock.boot(), shared.clock.moment());
        let doubts_until = shared.clock.moment().steady.plus(shared.settings.doubt);
        let admission = Admission::new(shared.network.clone(), shared.node);
        Self {
            shared,
            offering,
            backends,
            admission,
            unwritten: None,
            requests,
            closed: BTreeMap::new(),
            slots: HashMap::new(),
            late: HashMap::new(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
            refusing: Arc::new(Semaphore::new(MAX_REFUSING)),
            clock_watch,
            doubts_until,
            sweeping: JoinSet::new(),
        }
    }

    /// Takes up every lease where the journal left it.
    pub(super) fn recover(&mut self, found: Found) {
        let now = self.shared.clock.now();
        for (request, accepted) in found.requests {
            self.requests.insert(request, accepted.lease);
            self.requests.close(&request);
            self.admission
                .restore(now, &accepted_and_lost(request, &accepted));
            // Of a lease whose own row is there, the row says when; it comes below.
            self.closed
                .insert(accepted.lease, (accepted.forget_at, request));
        }
        for record in found.leases {
            let contract = &record.contract;
            self.requests.insert(contract.request, record.row.lease());
            self.admission.restore(now, &accepted_again(&record));
            match record.row.phase() {
                Phase::Closed { at, .. } => {
                    self.requests.close(&contract.request);
                    self.shared.board.closed(at, self.shared.clock.moment());
                    let until = at.plus_s(self.shared.settings.retention_s);
                    self.closed
                        .insert(record.row.lease(), (until, contract.request));
                }
                _ => {
                    self.closed.remove(&record.row.lease());
                    let now = self.shared.clock.moment();
                    self.shared.board.show(&record, now);
                    self.go_on(record);
                }
            }
        }
    }

    /// Runs until the node shuts down, then waits for the tasks to come to rest.
    pub(super) async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut totals = interval(self.shared.settings.totals_period);
        let mut taking_up = interval(self.shared.settings.reap_period);
        let mut forgetting = interval(self.shared.settings.forget_period);
        for beats in [&mut totals, &mut taking_up, &mut forgetting] {
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        totals.reset();
        let shutdown = self.shared.shutdown.clone();
        loop {
            tokio::select! {
                // What strangers send comes last, so that no flood of it holds up the rest.
                biased;
                () = shutdown.cancelled() => break,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                Some(order) = orders.recv() => self.obey(order),
                _ = totals.tick() => self.write_totals().await,
                _ = taking_up.tick() => self.take_up(),
                _ = forgetting.tick() => self.forget().await,
                message = messages.recv() => match message {
                    Some(message) => self.read(&message),
                    None => break,
                },
            }
        }
        self.write_totals().await;
        while self.tasks.join_next().await.is_some() {}
    }

    fn read(&mut self, message: &Message) {
        let keys = Arc::clone(&self.shared.keys.borrow());
        match open_request(&message.bytes, &keys.seal, &self.shared.network) {
            Ok(Request::Envelope(envelope)) => self.envelope(&envelope),
            // What a holder asks fits one packet, and only for those the gate has rates by lease.
            Ok(Request::Holder(_)) if message.class != Class::Small => {
                self.shared
                    .counters
                    .unreadable
                    .fetch_add(1, Ordering::Relaxed);
            }
            Ok(Request::Holder(request)) => {
                let surbs = Surbs::of(&request.surbs);
                let wish = match request.action {
                    Action::End => Wish::End,
                    Action::Poll => Wish::Poll,
                    Action::TopUp { .. } => Wish::TopUp,
                    Action::Acknowledge { statement } => {
                        Wish::Acknowledge(statement, request.signed().as_bytes().to_vec())
                    }
                    Action::Evidence { part } => Wish::Evidence(part),
                };
                let message = ToLease::Holder {
                    counter: request.counter,
                    wish,
                    surbs,
                };
                match self.requests.lease(&request.request) {
                    Some(lease) if request.provider == self.shared.node => {
                        self.tell(lease, message);
                    }
                    // Its reply key stands in an envelope that was never accepted, or is forgotten: nobody to answer.
                    _ => {
                        self.shared.counters.strays.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a message is no request"
                );
                self.shared
                    .counters
                    .unreadable
                    .fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn envelope(&mut self, envelope: &VerifiedEnvelope) {
        let now = self.shared.clock.now();
        let surbs = Surbs::of(&envelope.surbs);
        let offering = Arc::clone(&self.offering.borrow());
        let free: Vec<_> = offering
            .card
            .offers
            .iter()
            .map(|offer| self.free(&offer.backend))
            .collect();
        let situation = Situation {
            card: &offering.card,
            honoured: &offering.honoured,
            free: &free,
            anonymous_active: self.shared.board.anonymous(),
            draining: !self.shared.intake.borrow().is_open(),
        };
        let request = &envelope.grant.request;
        let is_anonymous = envelope.grant.authorization.kind == AUTHORIZATION_NONE;
        let is_full =
            self.tasks.len() >= MAX_TASKS || !remembers_one_more(self.requests.len(), is_anonymous);
        let is_new = self.requests.lease(request).is_none();
        let decision = if is_full && is_new {
            self.admission.refuse(Reason::Busy)
        } else if !is_new && !self.admission.remembers(request) {
            // Its first envelope has expired, its lease is still known. The id hangs on the holder key, and so do a
            // voucher and the proof of work: neither pays for a second lease.
            self.admission.refuse(Reason::Replayed)
        } else if is_new && let Some(reason) = self.no_way_in(&envelope.relays) {
            self.admission.refuse(reason)
        } else {
            let lease = LeaseId(self.shared.randomness.rng().random());
            self.admission
                .handle_envelope(now, &situation, envelope, lease)
        };
        match decision {
            Decision::Accept(accepted) => self.accept(&offering, envelope, &accepted, surbs),
            Decision::Again(lease) => self.tell(lease, ToLease::Repeated(surbs)),
            Decision::Refuse(reason) => {
                self.shared
                    .refused
                    .send_modify(|totals| totals.count(reason));
                self.refuse(envelope, reason, surbs);
            }
        }
    }

    /// Why a requester who names these relays could not get in, as far as that is known without dialing anybody.
    fn no_way_in(&self, relays: &[NodeId]) -> Option<Reason> {
        if relays.is_empty() {
            let is_direct = self.shared.settings.direct.is_some();
            (!is_direct).then_some(Reason::NoDirect)
        } else {
            let is_known = relays.iter().any(|relay| self.shared.relays.knows(relay));
            (!is_known).then_some(Reason::RelayUnknown)
        }
    }

    fn free(&self, backend: &BackendName) -> Resources {
        if self.shared.is_paused(backend) {
            return Resources::ZERO;
        }
        self.backends
            .get(backend)
            .map_or(Resources::ZERO, |(_, total)| {
                self.shared.board.free(backend, total)
            })
    }

    fn accept(
        &mut self,
        offering: &Offering,
        envelope: &VerifiedEnvelope,
        accepted: &Accepted,
        surbs: Surbs,
    ) {
        let grant = &envelope.grant;
        let patience_s = self.shared.settings.provision_s.max(1);
        let up_by = accepted.accepted_at.plus_s(patience_s);
        let terms = Terms::new(accepted.accepted_at, up_by, accepted.valid_to)
            .expect("a grant without a duration does not decode");
        let core = Requested { terms }.reserve(accepted.lease);
        let contract = Contract {
            request: grant.request,
            envelope: envelope.digest(),
            holder: envelope.holder,
            reply_key: envelope.reply_key,
            reply_key_hash: envelope.reply_key_hash(),
            offer: grant.offer,
            ssh_key: envelope.ssh_key,
            image: grant.image,
            resources: grant.resources,
            required: grant.required,
            duration: grant.duration,
            prices: offering.card.prices.clone(),
            price: accepted.price,
            relay_token: RelayToken(self.shared.randomness.rng().random()),
            anonymous: accepted.anonymous,
            forget_at: accepted.forget_at,
            backend: offering.card.offers[accepted.offer].backend.clone(),
            relays: envelope.relays.clone(),
            tee: grant.tee,
        };
        let record = LeaseRecord {
            row: *core.row(),
            contract,
            instance: None,
            refusal: None,
            log_index: None,
            clock: None,
            opening: None,
            evidence: None,
            direct_port: None,
        };
        failpoint!(EnvelopeAccepted);
        let now = self.shared.clock.moment();
        self.shared.board.show(&record, now);
        self.requests.insert(grant.request, accepted.lease);
        self.spawn(core, record, surbs);
    }

    /// Continues a lease from its record, by the clock as it is now.
    fn go_on(&mut self, mut record: LeaseRecord) {
        let (boot, now) = (self.shared.clock.boot(), self.shared.clock.moment());
        let step = ClockWatch::resume(record.clock, boot, now).observe(now);
        if let Some(step) = step {
            record.follow(step);
        }
        let core = Lease::recover_after(step, record.row, now.wall);
        self.spawn(core, record, Surbs::default());
    }

    fn spawn(&mut self, core: Lease, record: LeaseRecord, surbs: Surbs) {
        let (lease, request) = (record.row.lease(), record.contract.request);
        let backend = self
            .backends
            .get(&record.contract.backend)
            .map(|(b, _)| Arc::clone(b));
        let (commands, waiting) = mpsc::channel(LEASE_QUEUE);
        let task = LeaseTask::new(
            Arc::clone(&self.shared),
            core,
            record,
            backend,
            waiting,
            surbs,
        );
        self.slots.insert(lease, commands);
        let handle = self.tasks.spawn(task.run());
        self.running.insert(handle.id(), (lease, request));
    }

    /// Hands a message to the task of a lease, and wakes one for a lease that rests.
    fn tell(&mut self, lease: LeaseId, message: ToLease) {
        use mpsc::error::TrySendError;
        if !self.slots.contains_key(&lease) {
            self.wake(lease);
        }
        let Some(slot) = self.slots.get(&lease) else {
            return;
        };
        match slot.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            }
            // The task is ending; its end wakes another one.
            Err(TrySendError::Closed(message)) => {
                self.late.insert(lease, message);
            }
        }
    }

    /// Starts a task for a lease from its record.
    fn wake(&mut self, lease: LeaseId) {
        if self.tasks.len() >= MAX_TASKS {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        match self.shared.store.lease(lease) {
            Ok(Some(record)) => {
                self.go_on(record);
            }
            Ok(None) => {
                self.shared.counters.strays.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::error!(%lease, error = &error as &dyn std::error::Error, "a lease cannot be read");
            }
        }
    }

    async fn ended(&mut self, ended: Result<(task::Id, Ended), task::JoinError>) {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(error) => {
                // The next round takes the lease up again from its record.
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the task of a lease panicked"
                );
                (error.id(), Ended::Rests)
            }
        };
        let Some((lease, request)) = self.running.remove(&id) else {
            return;
        };
        self.slots.remove(&lease);
        match ended {
            Ended::NeverBegan => {
                // Its holder gets no answer: that needs the store as well. The same envelope may come again.
                self.admission.revoke(&request);
                self.requests.remove(&request);
                self.shared.board.remove(lease);
            }
            Ended::Rests if !self.shared.board.has(lease) => {
                let until = self
                    .shared
                    .clock
                    .now()
                    .plus_s(self.shared.settings.retention_s);
                self.requests.close(&request);
                self.closed.entry(lease).or_insert((until, request));
            }
            Ended::Rests => {}
        }
        if let Some(message) = self.late.remove(&lease) {
            self.tell(lease, message);
        }
    }

    fn refuse(&self, envelope: &VerifiedEnvelope, reason: Reason, mut surbs: Surbs) {
        let Ok(permit) = Arc::clone(&self.refusing).try_acquire_owned() else {
            self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let shared = Arc::clone(&self.shared);
        let (expected, reply_key) = (envelope.expected_reply(), envelope.reply_key);
        tokio::spawn(async move {
            let to = Addressee {
                expected,
                reply_key: &reply_key,
                counter: Counter(0),
            };
            surbs
                .send_once(&shared, to, Body::Refusal(Refusal { reason }))
                .await;
            drop(permit);
        });
    }

    /// Appends the totals of refusals of the period that ends now.
    async fn write_totals(&mut self) {
        let totals = self
            .unwritten
            .take()
            .unwrap_or_else(|| self.admission.take_refused());
        let hour = HourBucket::of(self.shared.clock.now());
        let Some(entry) = RefusalEntry::of(hour, &totals) else {
            return;
        };
        let record = LogRecord {
            entry: Entry::Refusals(entry).encode(),
            opening: None,
        };
        if let Err(error) = self.shared.store.append(vec![record], None).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "totals of refusals were not appended; they are tried again"
            );
            self.unwritten = Some(totals);
        }
    }

    /// Takes up open leases that have no task: theirs panicked.
    fn take_up(&mut self) {
        for view in self.shared.board.views() {
            if !self.slots.contains_key(&view.lease) {
                self.wake(view.lease);
            }
        }
    }

    async fn forget(&mut self) {
        let moment = self.shared.clock.moment();
        if let Some(step) = self.clock_watch.observe(moment) {
            tracing::warn!(
                seconds = step.0,
                "the clock of this machine was set; leases keep the time they have left"
            );
            self.doubts_until = moment.steady.plus(self.shared.settings.doubt);
        }
        if moment.steady < self.doubts_until {
            return;
        }
        let now = moment.wall;
        let over: Vec<_> = self
            .closed
            .iter()
            .filter(|(lease, (until, _))| *until <= now && !self.slots.contains_key(*lease))
            .map(|(lease, (_, request))| (*lease, *request))
            .take(FORGOTTEN_AT_ONCE)
            .collect();
        if !over.is_empty() {
            failpoint!(BeforeForget);
            if let Err(error) = self.shared.store.forget_leases(&over).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "closed leases were not forgotten"
                );
                return;
            }
            failpoint!(Forgotten);
        }
        for (lease, request) in over {
            self.closed.remove(&lease);
            self.requests.remove(&request);
        }
        self.sweep(u64::from(self.shared.epochs.oldest(now).0));
    }

    /// Forgets the SURBs of earlier epochs beside the messages: there may be very many.
    fn sweep(&mut self, epoch: u64) {
        while self.sweeping.try_join_next().is_some() {}
        if !self.sweeping.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        self.sweeping.spawn(async move {
            if let Err(error) = shared.store.forget_spent(epoch).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "spent SURBs were not forgotten"
                );
            }
        });
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Withdraw(lease, done) => {
                let is_open = self.shared.board.has(lease);
                if is_open {
                    self.tell(lease, ToLease::Withdraw);
                }
                // An operator that went away does not need the answer.
                let _ = done.send(is_open);
            }
            // Only who has a task can have SURBs.
            Order::Tell(lease, done) if self.slots.contains_key(&lease) => {
                self.tell(lease, ToLease::Tell(done));
            }
            Order::Tell(..) => {}
        }
    }
}

/// Whether there is room for another lease beside so many that can be asked about.
fn remembers_one_more(remembered: usize, is_anonymous: bool) -> bool {
    let places = match is_anonymous {
        true => MAX_REMEMBERED_ANONYMOUS,
        false => MAX_REMEMBERED,
    };
    remembered < places
}

/// What admission has to remember of a lease that was accepted in an earlier life.
fn accepted_again(record: &LeaseRecord) -> Accepted {
    let (contract, terms) = (&record.contract, record.row.terms());
    Accepted {
        lease: record.row.lease(),
        request: contract.request,
        envelope: contract.envelope,
        offer: 0,
        valid_to: terms.valid_to(),
        price: contract.price,
        anonymous: contract.anonymous,
        accepted_at: terms.accepted_at(),
        forget_at: contract.forget_at,
    }
}

/// What admission has to remember of a request whose lease was lost: that it must not become another one.
fn accepted_and_lost(request: RequestId, accepted: &store::Accepted) -> Accepted {
    Accepted {
        lease: accepted.lease,
        request,
        envelope: accepted.envelope,
        offer: 0,
        valid_to: UnixTime(0),
        price: Money(0),
        anonymous: false,
        accepted_at: UnixTime(0),
        forget_at: accepted.forget_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_without_a_voucher_leave_room_for_those_with_one() {
        assert!(remembers_one_more(MAX_REMEMBERED_ANONYMOUS - 1, true));
        assert!(!remembers_one_more(MAX_REMEMBERED_ANONYMOUS, true));
        assert!(remembers_one_more(MAX_REMEMBERED_ANONYMOUS, false));
        assert!(!remembers_one_more(MAX_REMEMBERED, false));
    }
}
