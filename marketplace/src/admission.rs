//! Whom a provider serves: each envelope becomes a lease or a reason why not.
//!
//! ```text
//!   envelope ─► same request id seen? ─► for us, in time, our card ─► image, size, limits, price ─► authorization
//!                 │ same bytes: Again                                                                     │
//!                 │ other bytes: Refuse(Replayed)                             Accept { lease, offer, … } ◄─┘
//! ```
//!
//! The core decides and remembers; it writes nothing. The caller journals an [`Accepted`] before it acts on it, and
//! gives back what the journal holds at the next start ([`Admission::restore`]).
//!
//! Threats: a replayed or doubled envelope that starts a second machine; a flood that fills the memory (only accepted
//! requests are remembered, at most [`MAX_SEEN`]) or the log (refusals are counted, not listed); strangers that take
//! every place (the anonymous limits); an image that was not granted.

use std::collections::{BTreeMap, VecDeque};

use souk_crypto::{MAX_SKEW_S, NetworkId, NodeId, UnixTime, Verified, sign};

use crate::{
    card::{AnonymousLimits, Card},
    envelope::{
        AUTHORIZATION_ISSUER_LINKABLE, AUTHORIZATION_NONE, Envelope, MAX_ACCEPT_AHEAD_S,
        VerifiedEnvelope, Voucher,
    },
    refusal::{Reason, RefusalTotals},
    units::{CardDigest, EnvelopeDigest, LeaseId, Money, RequestId, Resources},
    work,
};

/// Most accepted requests that are remembered, about 120 bytes each; when full, new ones are refused as
/// [`Reason::Busy`], since forgetting one would let it be played again.
pub const MAX_SEEN: usize = 32_768;

const HOUR_S: u64 = 3600;

/// What a provider can and will do at this moment.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Its current card.
    pub card: &'a Card,
    /// The digests of the cards whose offers it still honours: the current one and those that have not expired.
    pub honoured: &'a [CardDigest],
    /// What is free, for each offer of the card.
    pub free: &'a [Resources],
    /// Anonymous leases that run now.
    pub anonymous_active: u32,
    /// It takes no new leases.
    pub draining: bool,
}

/// What becomes of an envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It becomes a lease: journal this, then act.
    Accept(Accepted),
    /// It became this lease before: answer again, start nothing.
    Again(LeaseId),
    /// It becomes nothing.
    Refuse(Reason),
}

/// A lease that was promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The lease, drawn by the caller.
    pub lease: LeaseId,
    /// Whose request.
    pub request: RequestId,
    /// Its envelope.
    pub envelope: EnvelopeDigest,
    /// Which offer of the card carries it.
    pub offer: usize,
    /// First instant after the lease.
    pub valid_to: UnixTime,
    /// What the whole duration costs.
    pub price: Money,
    /// Nobody vouched for the requester.
    pub anonymous: bool,
    /// When it was accepted.
    pub accepted_at: UnixTime,
    /// When the request id may be forgotten.
    pub forget_at: UnixTime,
}

/// The memory of what was accepted, and the counts of what was not.
#[derive(Debug)]
pub struct Admission {
    network: NetworkId,
    provider: NodeId,
    seen: BTreeMap<RequestId, Seen>,
    /// When anonymous leases were accepted within the last hour; as long as the limit at most.
    anonymous_hour: VecDeque<UnixTime>,
    refused: RefusalTotals,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    envelope: EnvelopeDigest,
    lease: LeaseId,
    forget_at: UnixTime,
}

impl Admission {
    /// Begins with nothing remembered.
    #[must_use]
    pub fn new(network: NetworkId, provider: NodeId) -> Self {
        Self {
            network,
            provider,
            seen: BTreeMap::new(),
            anonymous_hour: VecDeque::new(),
            refused: RefusalTotals::default(),
        }
    }

    /// Remembers again what the journal holds of an accepted request.
    pub fn restore(&mut self, now: UnixTime, accepted: &Accepted) {
        if accepted.forget_at > now {
            self.remember(accepted);
        }
        if accepted.anonymous && now.since_s(accepted.accepted_at) < HOUR_S {
            let at = self
                .anonymous_hour
                .partition_point(|t| *t <= accepted.accepted_at);
            self.anonymous_hour.insert(at, accepted.accepted_at);
        }
    }

    /// Decides about an envelope. `lease` is a fresh random id that is used if it is accepted.
    pub fn handle_envelope(
        &mut self,
        now: UnixTime,
        situation: &Situation<'_>,
        envelope: &VerifiedEnvelope,
        lease: LeaseId,
    ) -> Decision {
        self.forget(now);
        if let Some(seen) = self.seen.get(&envelope.grant.request) {
            return if seen.envelope == envelope.digest() {
                Decision::Again(seen.lease)
            } else {
                self.refuse(Reason::Replayed)
            };
        }
        match self.judge(now, situation, envelope, lease) {
            Ok(accepted) => {
                self.remember(&accepted);
                if accepted.anonymous {
                    self.anonymous_hour.push_back(now);
                }
                Decision::Accept(accepted)
            }
            Err(reason) => self.refuse(reason),
        }
    }

    /// Takes back a promise that could not be journalled; the envelope may be sent again.
    pub fn revoke(&mut self, request: &RequestId) {
        self.seen.remove(request);
    }

    /// Counts a refusal that was decided elsewhere and says it.
    pub fn refuse(&mut self, reason: Reason) -> Decision {
        self.refused.count(reason);
        Decision::Refuse(reason)
    }

    /// Refusals since the totals were last taken.
    #[must_use]
    pub fn refused(&self) -> &RefusalTotals {
        &self.refused
    }

    /// Takes the totals for an entry of the log, and begins to count anew.
    pub fn take_refused(&mut self) -> RefusalTotals {
        std::mem::take(&mut self.refused)
    }

    /// Whether the request is remembered.
    #[must_use]
    pub fn remembers(&self, request: &RequestId) -> bool {
        self.seen.contains_key(request)
    }

    /// How many requests are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.seen.len()
    }

    fn judge(
        &self,
        now: UnixTime,
        situation: &Situation<'_>,
        envelope: &VerifiedEnvelope,
        lease: LeaseId,
    ) -> Result<Accepted, Reason> {
        let grant = &envelope.grant;
        let card = situation.card;
        if grant.provider != self.provider {
            return Err(Reason::OtherProvider);
        }
        if now >= grant.accept_by.plus_s(MAX_SKEW_S) {
            return Err(Reason::Expired);
        }
        if grant.accept_by > now.plus_s(MAX_ACCEPT_AHEAD_S + MAX_SKEW_S) {
            return Err(Reason::TooEarly);
        }
        if envelope.image != grant.image {
            return Err(Reason::ImageMismatch);
        }
        if situation.draining {
            return Err(Reason::Draining);
        }
        if !situation.honoured.contains(&grant.offer) {
            return Err(Reason::StaleOffer);
        }
        if !card.images.iter().any(|image| image.hash == grant.image) {
            return Err(Reason::UnknownImage);
        }
        let price = match &card.prices {
            None => Money(0),
            Some(prices) => prices
                .charge(&grant.resources, grant.duration)
                .ok_or(Reason::TooExpensive)?,
        };
        if price > grant.max_total {
            return Err(Reason::TooExpensive);
        }
        let anonymous = self.authorize(now, situation, envelope)?;
        let offer = place(situation, envelope)?;
        if self.seen.len() >= MAX_SEEN {
            return Err(Reason::Busy);
        }
        Ok(Accepted {
            lease,
            request: grant.request,
            envelope: envelope.digest(),
            offer,
            valid_to: now.plus_s(u64::from(grant.duration.0)),
            price,
            anonymous,
            accepted_at: now,
            forget_at: grant.accept_by.plus_s(MAX_SKEW_S),
        })
    }

    /// Whether the requester is anonymous, where it may be served at all.
    fn authorize(
        &self,
        now: UnixTime,
        situation: &Situation<'_>,
        envelope: &Envelope,
    ) -> Result<bool, Reason> {
        let policy = &situation.card.policy;
        let authorization = &envelope.grant.authorization;
        match authorization.kind {
            AUTHORIZATION_NONE => {
                let limits = policy.anonymous.as_ref().ok_or(Reason::AnonymousRefused)?;
                self.authorize_anonymous(now, situation, limits, envelope)
                    .map(|()| true)
            }
            AUTHORIZATION_ISSUER_LINKABLE => {
                let voucher: Verified<Voucher> = sign::open(&authorization.bytes, &self.network)
                    .map_err(|_| Reason::VoucherInvalid)?;
                if *voucher.signer() != voucher.issuer {
                    return Err(Reason::VoucherInvalid);
                }
                if !policy.issuers.contains(&voucher.issuer) {
                    return Err(Reason::IssuerUnknown);
                }
                if voucher.covers(now, envelope) {
                    Ok(false)
                } else {
                    Err(Reason::VoucherInvalid)
                }
            }
            _ => Err(Reason::AuthorizationUnknown),
        }
    }

    fn authorize_anonymous(
        &self,
        now: UnixTime,
        situation: &Situation<'_>,
        limits: &AnonymousLimits,
        envelope: &Envelope,
    ) -> Result<(), Reason> {
        let grant = &envelope.grant;
        if grant.duration > limits.max_duration {
            return Err(Reason::AnonymousDuration);
        }
        if !grant.resources.fits_in(&limits.max_resources) {
            return Err(Reason::AnonymousSize);
        }
        if limits.work_bits > 0 {
            let shown = grant
                .work
                .map(|nonce| work::bits(&self.network, grant.request, nonce));
            if shown.is_none_or(|bits| bits < u32::from(limits.work_bits)) {
                return Err(Reason::WorkMissing);
            }
        }
        if situation.anonymous_active >= limits.max_concurrent {
            return Err(Reason::AnonymousConcurrent);
        }
        let within = self
            .anonymous_hour
            .iter()
            .filter(|t| now.since_s(**t) < HOUR_S)
            .count();
        if within >= limits.max_per_hour as usize {
            return Err(Reason::AnonymousRate);
        }
        Ok(())
    }

    fn remember(&mut self, accepted: &Accepted) {
        let seen = Seen {
            envelope: accepted.envelope,
            lease: accepted.lease,
            forget_at: accepted.forget_at,
        };
        self.seen.insert(accepted.request, seen);
    }

    fn forget(&mut self, now: UnixTime) {
        // Walking all of them for every envelope would make a flood dear; once the set is large it is worth it, and
        // what is not forgotten yet does no harm.
        if self.seen.len() >= MAX_SEEN / 2 {
            self.seen.retain(|_, seen| seen.forget_at > now);
        }
        while self
            .anonymous_hour
            .front()
            .is_some_and(|t| now.since_s(*t) >= HOUR_S)
        {
            self.anonymous_hour.pop_front();
        }
    }
}

impl Voucher {
    /// Whether the voucher is good for this envelope at `now`.
    #[must_use]
    pub fn covers(&self, now: UnixTime, envelope: &Envelope) -> bool {
        let grant = &envelope.grant;
        self.holder == envelope.holder
            && self
                .provider
                .is_none_or(|provider| provider == grant.provider)
            && now < self.not_after.plus_s(MAX_SKEW_S)
            && grant.resources.fits_in(&self.max_resources)
            && grant.duration <= self.max_duration
    }
}

/// The offer that carries a lease: the first that has the room, enforces what is required, and is in the TEE that is asked for.
fn place(situation: &Situation<'_>, envelope: &Envelope) -> Result<usize, Reason> {
    let grant = &envelope.grant;
    let mut best = Reason::TooLarge;
    for (index, offer) in situation.card.offers.iter().enumerate() {
        if !offer
            .classes
            .iter()
            .any(|class| grant.resources.fits_in(class))
        {
            continue;
        }
        if !grant.required.missing_from(offer.enforced).is_empty() {
            if best != Reason::NoCapacity {
                best = Reason::LimitNotEnforced;
            }
            continue;
        }
        if grant.tee.is_some_and(|tee| tee != offer.tee) {
            if best != Reason::NoCapacity {
                best = Reason::TeeMissing;
            }
            continue;
        }
        if situation
            .free
            .get(index)
            .is_some_and(|free| grant.resources.fits_in(free))
        {
            return Ok(index);
        }
        best = Reason::NoCapacity;
    }
    Err(best)
}
