//! Sealed replies, and the SURBs that carry them.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
};

use souk_crypto::ReplyPublicKey;
use souk_market::{
    envelope,
    reply::{Body, Expected, Reply},
    sealed::seal_reply,
    units::Counter,
};
use souk_sphinx::{Surb, message};

use super::Shared;
#[cfg(feature = "failpoints")]
use crate::failpoint::failpoint;
use crate::store::{Contract, Spent};

/// SURBs kept for one lease: those of the last request and what was left before. The oldest give way.
const MAX_KEPT: usize = 2 * envelope::MAX_SURBS;

/// To whom a reply goes.
pub(super) struct Addressee<'a> {
    pub(super) expected: Expected,
    pub(super) reply_key: &'a ReplyPublicKey,
    /// Which request is answered.
    pub(super) counter: Counter,
}

impl<'a> Addressee<'a> {
    pub(super) fn of(shared: &Shared, contract: &'a Contract, counter: Counter) -> Self {
        Self {
            expected: Expected {
                request: contract.request,
                envelope: contract.envelope,
                reply_key: contract.reply_key_hash,
                provider: shared.node,
                card: contract.offer,
            },
            reply_key: &contract.reply_key,
            counter,
        }
    }
}

/// Rows of spent SURBs, about 100 bytes each: what the rates of the gate let holders spend in the epoch and three quarters that
/// each stays. When they are full, replies are left out, and holders poll once an epoch is over.
const MAX_SPENT: u64 = 1 << 20;
/// Of those, how many answers to whoever has no lease may take: three hours of nothing but refusals at the rate of the gate.
const MAX_SPENT_BY_STRANGERS: u64 = MAX_SPENT / 2;

/// SURBs that one reply may cost: the first may meet a link whose queue has just filled.
const MAX_TRIES: usize = 2;

/// SURBs that have not been used.
#[derive(Debug, Default)]
pub(super) struct Surbs(VecDeque<Surb>);

impl Surbs {
    /// Those of a request; what is no SURB is passed over, and missed by its maker alone.
    pub(super) fn of(surbs: &[envelope::Surb]) -> Self {
        let readable = surbs
            .iter()
            .filter_map(|bytes| Surb::from_bytes(bytes).ok());
        Self(readable.collect())
    }

    /// Takes over those of a newer request.
    pub(super) fn join(&mut self, newer: Self) {
        self.0.extend(newer.0);
        let over = self.0.len().saturating_sub(MAX_KEPT);
        self.0.drain(..over);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sends a reply by the newest SURB that can still be used; says whether one could.
    ///
    /// Each is journalled as spent before it is used: a copy of an envelope brings the same ones again, and a SURB that is
    /// used twice shows two packets of one header.
    pub(super) async fn send(&mut self, shared: &Shared, to: Addressee<'_>, body: Body) -> bool {
        self.send_within(shared, to, body, MAX_TRIES, MAX_SPENT)
            .await
    }

    /// As [`Self::send`], but spends one SURB at most: for those who have no lease, since each that is spent is a row that
    /// stays until its epoch is over, and a SURB that leads nowhere costs its maker nothing.
    pub(super) async fn send_once(
        &mut self,
        shared: &Shared,
        to: Addressee<'_>,
        body: Body,
    ) -> bool {
        self.send_within(shared, to, body, 1, MAX_SPENT_BY_STRANGERS)
            .await
    }

    async fn send_within(
        &mut self,
        shared: &Shared,
        to: Addressee<'_>,
        body: Body,
        mut tries: usize,
        most_spent: u64,
    ) -> bool {
        #[cfg(feature = "failpoints")]
        let kind = Kind::of(&body);
        let Some(sealed) = seal(shared, &to, body) else {
            return false;
        };
        while tries > 0
            && let Some(surb) = self.0.pop_back()
        {
            let epoch = surb.epoch();
            let is_open = shared.epochs.accepts(epoch, shared.clock.now());
            if !is_open || !shared.replies.can_use(&surb) {
                continue;
            }
            match shared
                .store
                .spend_surb(surb.fingerprint(), u64::from(epoch.0), most_spent)
                .await
            {
                Ok(Spent::Now) => {
                    tries -= 1;
                    #[cfg(feature = "failpoints")]
                    kind.spent();
                }
                Ok(Spent::Before) => continue,
                Ok(Spent::NoRoom) => break,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a reply was not sent: its SURB could not be journalled"
                    );
                    return false;
                }
            }
            match shared.replies.reply(surb, &sealed) {
                Ok(()) => {
                    #[cfg(feature = "failpoints")]
                    kind.sent();
                    shared.counters.replies.fetch_add(1, Ordering::Relaxed);
                    return true;
                }
                Err(reason) => tracing::debug!(reason, "a reply was not sent"),
            }
        }
        shared.counters.unanswered.fetch_add(1, Ordering::Relaxed);
        false
    }
}

/// Which failpoints a reply passes.
#[cfg(feature = "failpoints")]
#[derive(Clone, Copy)]
enum Kind {
    Receipt,
    Statement,
    Other,
}

#[cfg(feature = "failpoints")]
impl Kind {
    fn of(body: &Body) -> Self {
        match body {
            Body::Receipt(_) => Self::Receipt,
            Body::Statement(_) => Self::Statement,
            _ => Self::Other,
        }
    }

    fn spent(self) {
        match self {
            Self::Receipt => failpoint!(ReceiptSurbSpent),
            Self::Statement => failpoint!(StatementSurbSpent),
            Self::Other => failpoint!(ReplySurbSpent),
        }
    }

    fn sent(self) {
        match self {
            Self::Receipt => failpoint!(ReceiptSent),
            Self::Statement => failpoint!(StatementSent),
            Self::Other => failpoint!(ReplySent),
        }
    }
}

fn seal(shared: &Shared, to: &Addressee<'_>, body: Body) -> Option<message::Reply> {
    let reply = Reply {
        notice: shared.intake.borrow().notice(),
        ..to.expected.reply(to.counter, shared.clock.now(), body)
    };
    let keys = Arc::clone(&shared.keys.borrow());
    let sealed = seal_reply(
        reply,
        &keys.card,
        to.reply_key,
        &shared.network,
        &mut shared.randomness.rng(),
    );
    match sealed {
        Ok(bytes) => message::Reply::new(bytes),
        Err(error) => {
            // The requester may have named a key that is none; everything else would be our bug.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a reply could not be sealed"
            );
            None
        }
    }
}
