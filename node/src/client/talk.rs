//! Talking with a provider about a lease: requests over the mix, answers by SURB.
//!
//! A request is acknowledged by the mix layer when all of it has arrived; its answer comes apart and may be lost, so
//! whoever waits asks again with fresh SURBs and a higher counter.
//!
//! Threat: answers that are not the provider's, or not to this. They are dropped without a word, and waiting goes on.

use std::time::Duration;

use souk_crypto::{CardPublicKey, NodeId, SealPublicKey, Verified};
use souk_market::{
    envelope::{MAX_SURBS, Surb},
    log::LogClaim,
    refusal::Reason,
    reply::{Body, LeaseState, Refusal, Reply},
    request::{Action, HolderRequest},
    sealed::{ReplyError, SealRequestError, open_reply, seal_holder_request},
    wire::{Blob, List},
    work::{MessageTo, MessageWork},
};
use souk_sphinx::message::{Admission, Class, MessageId, Outgoing};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    ClaimFailure, Connected, Lease, Progress, ProvenStatement, RecordError, StateError, Watch,
    connect::hop, unix_now,
};
use crate::{
    mix::{Replies, SendError},
    provider::work_bits,
};

/// SURBs of a poll: with two of them the request still fits one packet.
const REQUEST_SURBS: usize = 2;
/// An answer takes this long beyond the mixing delays: the provider starts an instance meanwhile.
const ANSWER_ALLOWANCE: Duration = Duration::from_secs(3);
/// Mean delays of an answer's way back that are waited for: three hops take longer once in two thousand times, and a poll costs a packet.
const ANSWER_MEANS: u32 = 12;
/// A request is repeated at most so often before the provider counts as away.
pub(super) const ASK_ATTEMPTS: u32 = 4;
/// The acknowledgement of a statement is a courtesy; it is not waited for longer than this.
const COURTESY: Duration = Duration::from_secs(3);

/// Why a provider could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum TalkError {
    /// The folder of the lease.
    #[error("the lease could not be stored")]
    State(#[from] StateError),
    /// The provider sent something that does not hold.
    #[error("the provider's answer is not taken")]
    Record(#[from] RecordError),
    /// The request could not be made.
    #[error("the request could not be made")]
    Seal(#[source] SealRequestError),
    /// The request is larger than the largest message; a bug.
    #[error("the request has {0} bytes, more than a message holds")]
    TooLarge(usize),
    /// The mix could not carry it.
    #[error("the request could not be sent")]
    Send(#[source] SendError),
    /// The provider has no seal key.
    #[error("the card of the provider names no key to seal to")]
    NoSealKey,
    /// The session with the mix is over.
    #[error("the session with the mix has ended")]
    SessionOver,
    /// No answer came.
    #[error("the provider did not answer {0} requests")]
    NoAnswer(u32),
    /// The provider said no.
    #[error("the provider refused: {}", .0.advice())]
    Refused(Reason),
    /// The final statement is proven, but to be in another log than the one that is known. It is kept, and not agreed to.
    #[error("the final statement stands in a log that is not believed")]
    Log(#[from] ClaimFailure),
}

/// How an end came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The lease is over, and its account is proven.
    Proven(Box<ProvenStatement>),
    /// The lease is over or about to be; its statement comes with the next checkpoint of the provider.
    Pending(LeaseState),
}

impl Connected {
    /// Asks how a lease stands, and takes up what comes: a receipt that was lost, a final statement.
    ///
    /// # Errors
    /// [`TalkError`]; [`TalkError::NoAnswer`] where the provider is away.
    pub async fn poll(&self, lease: &mut Lease, watch: Watch<'_>) -> Result<Body, TalkError> {
        let _lock = lease.folder.lock()?;
        for attempt in 0..ASK_ATTEMPTS {
            if attempt > 0 {
                watch(Progress::Polling { attempt });
            }
            if let Some(body) = self.ask(lease, Action::Poll, |_| false, watch).await? {
                return Ok(body);
            }
        }
        Err(TalkError::NoAnswer(ASK_ATTEMPTS))
    }

    /// Ends a lease, and waits up to `wait` for its final statement, which comes once a checkpoint of the provider
    /// covers it. An end that the provider has not confirmed is asked for a few times, however long that takes.
    ///
    /// # Errors
    /// [`TalkError`]; [`TalkError::Record`] where the statement is not proven.
    pub async fn end(
        &self,
        lease: &mut Lease,
        wait: Duration,
        watch: Watch<'_>,
    ) -> Result<Ended, TalkError> {
        let _lock = lease.folder.lock()?;
        let deadline = Instant::now() + wait;
        let mut action = Action::End;
        let mut state = None;
        for attempt in 0.. {
            if attempt > 0 {
                watch(Progress::Polling { attempt });
            }
            match self.ask(lease, action, is_ending, watch).await? {
                Some(Body::Statement(_)) => break,
                Some(Body::Status(status)) => state = Some(status.state),
                Some(Body::Refusal(Refusal { reason })) => return Err(TalkError::Refused(reason)),
                // A receipt crossed the end on its way; the lease is as active as it was.
                Some(Body::Receipt(_) | Body::Evidence(_)) => {}
                None if state.is_none() && attempt + 1 >= ASK_ATTEMPTS => {
                    return Err(TalkError::NoAnswer(ASK_ATTEMPTS));
                }
                None => {}
            }
            if matches!(state, Some(LeaseState::Draining | LeaseState::Closed)) {
                action = Action::Poll;
            }
            // An end that nobody confirmed may never have arrived, so all its attempts are made.
            if let (Some(state), true) = (state, Instant::now() >= deadline) {
                return Ok(Ended::Pending(state));
            }
        }
        let proven = lease
            .statement
            .clone()
            .expect("a statement was just recorded");
        Ok(Ended::Proven(Box::new(proven)))
    }

    /// Sends the holder's agreement to the final statement again, where it is not known to have arrived: whoever was killed
    /// between the two has not sent it. What is known of the log may say otherwise by now, and is asked first.
    ///
    /// # Errors
    /// [`TalkError`]; [`TalkError::Log`] where the statement is not agreed to.
    pub async fn acknowledge(&self, lease: &Lease) -> Result<(), TalkError> {
        let _lock = lease.folder.lock()?;
        self.compare_log(lease)?;
        self.agree(lease).await
    }

    /// Signs that the statement was received, unless that is known to have arrived. The provider keeps it beside its log; nothing
    /// depends on its arrival.
    async fn agree(&self, lease: &Lease) -> Result<(), TalkError> {
        let Some(statement) = lease.unacknowledged()? else {
            return Ok(());
        };
        let frame = self.request(lease, Action::Acknowledge { statement }, List::empty())?;
        let message = self.outgoing(lease, frame, &mut |_| ()).await?;
        match timeout(COURTESY, self.messenger.send(message)).await {
            Ok(Ok(())) => lease.keep_acknowledged(statement)?,
            _ => {
                tracing::debug!("the acknowledgement of a statement is not known to have arrived");
            }
        }
        Ok(())
    }

    /// Sends one request and waits for one answer, as [`Self::exchange`].
    pub(super) async fn ask(
        &self,
        lease: &mut Lease,
        action: Action,
        is_interim: fn(&Body) -> bool,
        watch: Watch<'_>,
    ) -> Result<Option<Body>, TalkError> {
        let (surbs, mut replies) = self.surbs(REQUEST_SURBS, lease.provider()).await?;
        let frame = self.request(lease, action, surbs)?;
        self.exchange(lease, frame, &mut replies, is_interim, watch)
            .await
    }

    /// A sealed request about a lease, under a counter that was never used.
    fn request(
        &self,
        lease: &Lease,
        action: Action,
        surbs: List<Surb, MAX_SURBS>,
    ) -> Result<Vec<u8>, TalkError> {
        let request = HolderRequest {
            holder: lease.envelope.holder,
            provider: lease.provider(),
            request: lease.envelope.grant.request,
            counter: lease.next_counter()?,
            action,
            surbs,
        };
        let (key, to) = (lease.holder_key()?, self.seal_key(lease)?);
        let network = &self.visitor.client.config.network;
        seal_holder_request(request, &key, &to, network, &mut rand::rng()).map_err(TalkError::Seal)
    }

    /// Fresh SURBs for `provider`, and where their replies come out.
    pub(super) async fn surbs(
        &self,
        count: usize,
        provider: NodeId,
    ) -> Result<(List<Surb, MAX_SURBS>, Replies), TalkError> {
        let made = self.messenger.reply_surbs(count, hop(&provider)).await;
        let (surbs, replies) = made.map_err(TalkError::Send)?;
        let surbs = surbs
            .iter()
            .map(|surb| Blob::new(surb.to_bytes().to_vec()).expect("both sides pin the size"))
            .collect();
        Ok((List::new(surbs).expect("no caller asks for more"), replies))
    }

    /// To which key requests about a lease are sealed now: the provider's current one, where its card is at hand.
    pub(super) fn seal_key(&self, lease: &Lease) -> Result<SealPublicKey, TalkError> {
        let current = self
            .market()
            .card(&lease.provider())
            .and_then(|l| l.card.seal_key());
        current
            .or(lease.card.seal_key())
            .copied()
            .ok_or(TalkError::NoSealKey)
    }

    /// Sends a sealed request and waits for an answer that counts, which is then recorded; a final statement is agreed to.
    /// After an answer that `is_interim` waiting goes on, since a better one comes by another SURB of the same request; where
    /// none does, the interim one is what came. `None` where nothing came.
    pub(super) async fn exchange(
        &self,
        lease: &mut Lease,
        frame: Vec<u8>,
        replies: &mut Replies,
        is_interim: fn(&Body) -> bool,
        watch: Watch<'_>,
    ) -> Result<Option<Body>, TalkError> {
        let sending = self
            .messenger
            .send(self.outgoing(lease, frame, watch).await?);
        tokio::pin!(sending);
        let mean = Duration::from_millis(self.visitor.client.config.params.mean_delay_ms().into());
        let patience = ANSWER_ALLOWANCE + ANSWER_MEANS * mean;
        let mut give_up = None;
        let mut interim = None;
        loop {
            let late = async {
                match give_up {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                sent = &mut sending, if give_up.is_none() => {
                    match sent {
                        Ok(()) => {
                            lease.unheard = 0;
                            watch(Progress::Delivered);
                        }
                        // It may have arrived all the same.
                        Err(SendError::NotAcknowledged) => lease.unheard += 1,
                        Err(error) => return Err(TalkError::Send(error)),
                    }
                    give_up = Some(Instant::now() + patience);
                }
                reply = replies.next() => {
                    let Some(reply) = reply else { return Ok(interim) };
                    let bytes = reply.into_bytes();
                    let Some(reply) = self.open(lease, &bytes)? else { continue };
                    lease.unheard = 0;
                    lease.record(&reply)?;
                    if matches!(reply.body, Body::Statement(_)) {
                        self.compare_log(lease)?;
                        self.agree(lease).await?;
                    }
                    if !is_interim(&reply.body) {
                        watch(Progress::Answered { bytes: bytes.len() });
                        return Ok(Some(reply.body.clone()));
                    }
                    interim = Some(reply.body.clone());
                }
                () = late => return Ok(interim),
            }
        }
    }

    /// Compares the checkpoint of a final statement with what is known of the provider's log: this holder might have been
    /// shown another one than everybody.
    fn compare_log(&self, lease: &Lease) -> Result<(), ClaimFailure> {
        let Some(proven) = &lease.statement else {
            return Ok(());
        };
        let (home, network) = (
            &self.visitor.client.home,
            &self.visitor.client.config.network,
        );
        let list = lease.card.key_list().clone();
        let claim = LogClaim::of_checkpoint(list, network, &proven.checkpoint)
            .expect("the statement was verified with the key of this list");
        home.hear(network, &claim)?;
        self.visitor.hear_capacity(lease.provider())
    }

    /// A message to the provider of a lease, with the work that its card asks for where it takes several packets.
    async fn outgoing(
        &self,
        lease: &Lease,
        bytes: Vec<u8>,
        watch: Watch<'_>,
    ) -> Result<Outgoing, TalkError> {
        let class = Class::fitting(bytes.len()).ok_or(TalkError::TooLarge(bytes.len()))?;
        let provider = lease.provider();
        let id = MessageId::random(&mut rand::rng());
        let current = self.visitor.market.card(&provider).map(|l| &*l.card);
        let wanted = work_bits(&current.unwrap_or(&lease.card).policy);
        let admission = if class == Class::Small || wanted == 0 {
            Admission::NONE
        } else {
            watch(Progress::Working { bits: wanted });
            let to = MessageTo {
                network: self.visitor.client.config.network.clone(),
                provider,
                message: id.to_bytes(),
            };
            let work =
                spawn_blocking(move || MessageWork::find(&to, unix_now(), wanted).to_bytes());
            let work = work.await.expect("hashing does not panic");
            Admission::new(MessageWork::ADMISSION, work.to_vec()).expect("it fits an admission")
        };
        Ok(Outgoing {
            id,
            destination: hop(&provider),
            class,
            admission,
            bytes,
        })
    }

    /// Opens an answer; `None` for one that does not count.
    fn open(&self, lease: &Lease, sealed: &[u8]) -> Result<Option<Verified<Reply>>, StateError> {
        let expected = lease.envelope.expected_reply();
        let key = lease.reply_key()?;
        let open = |signer: &CardPublicKey| {
            open_reply(
                sealed,
                &key,
                signer,
                &expected,
                &self.visitor.client.config.network,
            )
        };
        // The provider may have renewed its card key since.
        let newer = self
            .market()
            .card(&lease.provider())
            .map(|l| l.card.sub_keys().card_key);
        let opened = match (open(&lease.card.sub_keys().card_key), newer) {
            (Err(ReplyError::OtherSigner), Some(newer)) => open(&newer),
            (opened, _) => opened,
        };
        Ok(opened
            .inspect_err(|error| tracing::debug!(%error, "an answer is dropped"))
            .ok())
    }
}

/// A receipt or a refusal follows.
pub(super) fn is_starting(body: &Body) -> bool {
    matches!(body, Body::Status(status) if status.state == LeaseState::Provisioning)
}

/// A statement follows.
pub(super) fn is_ending(body: &Body) -> bool {
    let ending = [LeaseState::Draining, LeaseState::Closed];
    matches!(body, Body::Status(status) if ending.contains(&status.state))
}
