//! A lease as its holder knows it: what was sent, what was answered, and how to get in.
//!
//! ```text
//!  requested ─┬─ receipt ──► active ─┬─ told so ─► draining ─┬─► ended ─ statement ─► closed
//!             │                      └─ valid_to, told so ───┘
//!             ├─ refusal ──► refused
//!             └─ too late ─► unanswered ─ nothing of it can run any more ─► lapsed
//! ```
//!
//! Threats: a process that is killed at any point, so where a lease stands is what the signed answers in its folder say; an answer
//! that was not meant for this request, so its binding is checked again when it is read.

use std::{fmt, net::SocketAddr, path::PathBuf};

use souk_crypto::{
    CardPublicKey, HolderKey, MAX_SKEW_S, NetworkId, NodeId, ReplyKey, UnixTime, Verified, keyfile,
    sign::{self, OpenError},
};
use souk_market::{
    card::{VerifiedCard, is_public},
    envelope::VerifiedEnvelope,
    refusal::Reason,
    reply::{Body, Endpoint, LeaseState, Notice, Receipt, Reply, Status},
    units::{Counter, Digest, LeaseId, RelayToken, Tee},
};

use super::{
    proof::{ProvenStatement, StatementError, check_terms, verify_statement},
    state::{LeaseFolder, StateError},
};
use crate::net::NodeAddress;

pub(super) const CARD: &str = "card";
pub(super) const ENVELOPE: &str = "envelope";
pub(super) const COUNTER: &str = "counter";
pub(super) const RECEIPT: &str = "receipt";
pub(super) const REFUSAL: &str = "refusal";
pub(super) const STATEMENT: &str = "statement";
/// The last answer that says where the lease stands.
pub(super) const STATUS: &str = "status";
/// Digest of the statement of which the provider has the holder's agreement.
pub(super) const ACKNOWLEDGED: &str = "acknowledged";
/// The evidence of the instance.
pub(super) const QUOTE: &str = "quote";
/// What it was checked with.
pub(super) const COLLATERAL: &str = "collateral";
/// By which policy it was believed first.
pub(super) const POLICY: &str = "policy";
pub(super) const DISPUTED: &str = "disputed";
/// The last answer in which the provider had something to say to all of its holders.
pub(super) const NOTICE: &str = "notice";
pub(super) const RELAYS: &str = "relays";
pub(super) const HOLDER_KEY: &str = "holder.key";
pub(super) const REPLY_KEY: &str = "reply.key";
pub(super) const SSH_KEY: &str = "ssh_key";
pub(super) const KNOWN_HOSTS: &str = "known_hosts";
pub(super) const SSH_CONFIG: &str = "ssh_config";
/// Tells the way that was chosen.
pub(super) const WAY: &str = "way";
/// What stands in it where that is the direct one.
pub(super) const DIRECT: &str = "direct";

/// Where a lease stands, as far as its holder knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The request is stored and may have left; no receipt came yet. Resume it: nothing can start twice.
    Requested,
    /// The request was not answered, and by now it cannot be accepted any more. It may have been, so a machine may run.
    Unanswered,
    /// The request was not answered, and by now nothing of it can run.
    Lapsed,
    /// The provider said no.
    Refused(Reason),
    /// There is a receipt, and its time is not over.
    Active,
    /// The provider said that it is being ended.
    Draining,
    /// Its time is over, or the provider said that it has ended; the final statement has not come yet.
    Ended,
    /// The final statement is here and proven.
    Closed,
}

impl Stage {
    /// The word that people and `--json` see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Unanswered => "unanswered",
            Self::Lapsed => "lapsed",
            Self::Refused(_) => "refused",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::Closed => "closed",
        }
    }
}

/// A lease.
#[derive(Clone, Debug)]
pub struct Lease {
    pub(super) folder: LeaseFolder,
    pub(super) network: NetworkId,
    pub(super) card: VerifiedCard,
    pub(super) envelope: VerifiedEnvelope,
    pub(super) is_direct: bool,
    pub(super) receipt: Option<Receipt>,
    /// The key that signed the receipt: a card key of the provider.
    pub(super) receipt_key: Option<CardPublicKey>,
    pub(super) refusal: Option<Reason>,
    pub(super) statement: Option<ProvenStatement>,
    /// Where the provider said last that it stands, and in answer to which request.
    pub(super) status: Option<(Counter, Status)>,
    /// What the provider said last beside its answers, and when.
    pub(super) notice: Option<(UnixTime, Notice)>,
    /// Messages in a row, by this process, of which nothing was acknowledged.
    pub(super) unheard: u32,
}

/// How to reach an instance.
#[derive(Clone, Debug)]
pub enum Way {
    /// Over a relay.
    Relay(RelayWay),
    /// At a port of the provider, who sees the requester's address.
    Direct(SocketAddr),
}

/// How to reach an instance over a relay.
#[derive(Clone)]
pub struct RelayWay {
    /// The relay.
    pub relay: NodeAddress,
    /// The provider behind it.
    pub provider: NodeId,
    /// What the relay asks for.
    pub token: RelayToken,
}

impl fmt::Debug for RelayWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayWay")
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// Reads a lease, and verifies everything in it again.
    pub(super) fn load(folder: LeaseFolder, network: &NetworkId) -> Result<Self, StateError> {
        let required = |name: &str| {
            folder
                .read(name)?
                .ok_or_else(|| folder.damaged(name, &"there is no such file"))
        };
        let card = VerifiedCard::open(&required(CARD)?, network, |_| None)
            .map_err(|e| folder.damaged(CARD, &e))?;
        let envelope = VerifiedEnvelope::open(&required(ENVELOPE)?, network)
            .map_err(|e| folder.damaged(ENVELOPE, &e))?;
        if envelope.grant.offer != card.digest() || envelope.grant.provider != card.node {
            return Err(folder.damaged(CARD, &"not the card that the envelope accepts"));
        }
        let is_direct = folder
            .parse::<String>(WAY)?
            .is_some_and(|way| way == DIRECT);
        let mut lease = Self {
            is_direct,
            folder,
            network: network.clone(),
            card,
            envelope,
            receipt: None,
            receipt_key: None,
            refusal: None,
            statement: None,
            status: None,
            notice: None,
            unheard: 0,
        };
        if let Some(bytes) = lease.folder.read(NOTICE)? {
            let reply = lease.open_stored(&bytes);
            let reply = reply.map_err(|e| lease.folder.damaged(NOTICE, &e))?;
            lease.notice = reply.notice.map(|notice| (reply.at, notice));
        }
        for name in [RECEIPT, REFUSAL, STATEMENT, STATUS] {
            if let Some(bytes) = lease.folder.read(name)? {
                let damaged = |e: &dyn fmt::Display| lease.folder.damaged(name, &e.to_string());
                let reply = lease.open_stored(&bytes).map_err(|e| damaged(&e))?;
                lease
                    .take(&reply)
                    .map_err(|e| lease.folder.damaged(name, &e))?;
            }
        }
        Ok(lease)
    }

    /// The name of the lease in the client's folder, known before the provider has named it.
    #[must_use]
    pub fn name(&self) -> String {
        self.folder.name()
    }

    /// The provider's name for the lease, once there is a receipt.
    #[must_use]
    pub fn id(&self) -> Option<LeaseId> {
        self.receipt.as_ref().map(|receipt| receipt.lease)
    }

    /// The name for `ssh`.
    #[must_use]
    pub fn ssh_alias(&self) -> Option<String> {
        self.id().map(|id| format!("souk-{}", &id.to_string()[..8]))
    }

    /// The fragment for `ssh -F`.
    #[must_use]
    pub fn ssh_config(&self) -> PathBuf {
        self.folder.file(SSH_CONFIG)
    }

    /// Whether everything is there that `ssh` needs; a client that was killed may have left it out, and resuming writes it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ssh_config().exists()
    }

    /// The private key for `ssh -i`, in OpenSSH's format.
    #[must_use]
    pub fn ssh_key(&self) -> PathBuf {
        self.folder.file(SSH_KEY)
    }

    /// Whether the instance is reached straight at the provider, who then sees the requester's address.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Who carries it.
    #[must_use]
    pub fn provider(&self) -> NodeId {
        self.card.node
    }

    /// The card whose offer was accepted.
    #[must_use]
    pub fn card(&self) -> &VerifiedCard {
        &self.card
    }

    /// What was asked for.
    #[must_use]
    pub fn envelope(&self) -> &VerifiedEnvelope {
        &self.envelope
    }

    /// The TEE of which the instance has to bring evidence; `None` where none was required.
    #[must_use]
    pub fn required_tee(&self) -> Option<Tee> {
        self.envelope.grant.tee
    }

    /// What was promised.
    #[must_use]
    pub fn receipt(&self) -> Option<&Receipt> {
        self.receipt.as_ref()
    }

    /// The final account, proven to be in the provider's log.
    #[must_use]
    pub fn statement(&self) -> Option<&ProvenStatement> {
        self.statement.as_ref()
    }

    /// Where the provider said last that it stands, if it said so.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        self.status.map(|(_, status)| status)
    }

    /// What the provider has to say to all of its holders, if it said something last: that it leaves, most often.
    #[must_use]
    pub fn notice(&self) -> Option<Notice> {
        self.notice.map(|(_, notice)| notice)
    }

    /// Where the lease stands at `now`.
    #[must_use]
    pub fn stage(&self, now: UnixTime) -> Stage {
        if self.statement.is_some() {
            return Stage::Closed;
        }
        if let Some(reason) = self.refusal {
            return Stage::Refused(reason);
        }
        let state = self.status().map(|status| status.state);
        let is_over = now >= self.may_run_until();
        match (&self.receipt, state) {
            (_, Some(LeaseState::Closed)) => Stage::Ended,
            (None, None) if is_over => Stage::Lapsed,
            _ if is_over => Stage::Ended,
            (_, Some(LeaseState::Draining)) => Stage::Draining,
            (Some(_), _) => Stage::Active,
            (None, None) if now >= self.accept_until() => Stage::Unanswered,
            (None, _) => Stage::Requested,
        }
    }

    /// First instant at which nothing of it can run: as promised, or, where nothing was, after its duration from when the request
    /// could be accepted at the latest.
    #[must_use]
    pub fn may_run_until(&self) -> UnixTime {
        let promised = self.receipt.as_ref().map(|receipt| receipt.valid_to);
        let told = self.status().map(|status| status.valid_to);
        let duration_s = self.envelope.grant.duration.0.into();
        promised
            .or(told)
            .unwrap_or_else(|| self.accept_until().plus_s(duration_s))
    }

    /// Whether the envelope may be sent again at `now`: its receipt has not come, and the provider would still take it.
    pub(super) fn may_be_sent(&self, now: UnixTime) -> bool {
        self.stage(now) == Stage::Requested && now < self.accept_until()
    }

    /// First instant at which the request is accepted by no clock.
    fn accept_until(&self) -> UnixTime {
        self.envelope.grant.accept_by.plus_s(MAX_SKEW_S)
    }

    /// Digest of the final statement, where the provider is not known to have the holder's agreement to it.
    ///
    /// # Errors
    /// [`StateError`] where the record of the agreement cannot be read.
    pub fn unacknowledged(&self) -> Result<Option<Digest>, StateError> {
        let Some(proven) = &self.statement else {
            return Ok(None);
        };
        let bytes = proven.statement.to_bytes();
        let statement = Digest(*blake3::hash(&bytes).as_bytes());
        let kept = self.folder.read(ACKNOWLEDGED)?;
        let is_known = kept.is_some_and(|kept| kept == statement.to_string().as_bytes());
        Ok((!is_known).then_some(statement))
    }

    /// Keeps that the provider has the holder's agreement to this statement.
    pub(super) fn keep_acknowledged(&self, statement: Digest) -> Result<(), StateError> {
        let text = statement.to_string();
        self.folder.write(ACKNOWLEDGED, text.as_bytes())
    }

    /// The ways to the instance, in the order in which they are tried: of a direct lease the one to its provider, of any other those
    /// over relays: none that goes over the first of `entries`, and those over the others last. A test network's lead to private
    /// addresses, too.
    ///
    /// # Errors
    /// [`StateError`] where the relays on record cannot be read.
    pub fn ways(&self, entries: &[NodeId], is_test: bool) -> Result<Vec<Way>, StateError> {
        if self.is_direct {
            let direct = self.endpoints().find_map(|endpoint| match endpoint {
                Endpoint::Direct(at) if is_test || is_public(at.ip()) => Some(*at),
                _ => None,
            });
            return Ok(direct.map(Way::Direct).into_iter().collect());
        }
        let text = self.folder.read(RELAYS)?.unwrap_or_default();
        let text = String::from_utf8(text).map_err(|e| self.folder.damaged(RELAYS, &e))?;
        let mut ways = Vec::new();
        for line in text.lines() {
            let relay: NodeAddress = line.parse().map_err(|e| self.folder.damaged(RELAYS, &e))?;
            let token = self.endpoints().find_map(|endpoint| match endpoint {
                Endpoint::Relay { relay: node, token } if *node == relay.node() => {
                    Some(token.clone())
                }
                _ => None,
            });
            if let Some(token) = token
                && Some(&relay.node()) != entries.first()
                && relay.node() != self.provider()
            {
                ways.push(Way::Relay(RelayWay {
                    relay,
                    provider: self.provider(),
                    token,
                }));
            }
        }
        ways.sort_by_key(
            |way| matches!(way, Way::Relay(way) if entries.contains(&way.relay.node())),
        );
        Ok(ways)
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.receipt
            .iter()
            .flat_map(|receipt| receipt.endpoints.iter())
    }

    pub(super) fn holder_key(&self) -> Result<HolderKey, StateError> {
        Ok(keyfile::load(&self.folder.file(HOLDER_KEY))?)
    }

    pub(super) fn reply_key(&self) -> Result<ReplyKey, StateError> {
        Ok(keyfile::load(&self.folder.file(REPLY_KEY))?)
    }

    /// The next counter; it is on the disk before it is returned, so none is ever used twice.
    pub(super) fn next_counter(&self) -> Result<Counter, StateError> {
        let last: u64 = self.folder.parse(COUNTER)?.unwrap_or(0);
        let next = last + 1;
        self.folder.write(COUNTER, next.to_string().as_bytes())?;
        Ok(Counter(next))
    }

    /// Stores an answer and takes it up; where the answer changes nothing, nothing is written.
    pub(super) fn record(&mut self, reply: &Verified<Reply>) -> Result<(), RecordError> {
        self.take_notice(reply)?;
        let name = match &reply.body {
            Body::Receipt(_) => RECEIPT,
            Body::Refusal(refusal)
                if self.receipt.is_none() && !refusal.reason.is_about_a_later_request() =>
            {
                REFUSAL
            }
            Body::Statement(_) => STATEMENT,
            Body::Status(status) if self.is_news(reply.counter, *status) => STATUS,
            Body::Refusal(_) | Body::Status(_) | Body::Evidence(_) => return Ok(()),
        };
        if let Err(error) = self.take(reply) {
            // It is signed all the same: the holder keeps it to show it.
            self.folder.write(DISPUTED, reply.signed().as_bytes())?;
            return Err(RecordError::Disputed(error));
        }
        self.folder.write(name, reply.signed().as_bytes())?;
        Ok(())
    }

    /// Keeps what the provider says beside its answer, and forgets what a later answer does not repeat.
    fn take_notice(&mut self, reply: &Verified<Reply>) -> Result<(), StateError> {
        if self.notice.is_some_and(|(at, _)| reply.at < at) {
            return Ok(());
        }
        let said = reply.notice.map(|notice| (reply.at, notice));
        if said.is_some() {
            self.folder.write(NOTICE, reply.signed().as_bytes())?;
        } else if self.notice.is_some() {
            self.folder.remove(NOTICE)?;
        }
        self.notice = said;
        Ok(())
    }

    /// Whether this says something else than the status that is kept, and is no older. Answers overtake each other; of those to one
    /// request the lease only goes on.
    fn is_news(&self, counter: Counter, status: Status) -> bool {
        self.status.is_none_or(|(kept_counter, kept)| {
            status != kept && (counter, status.state) >= (kept_counter, kept.state)
        })
    }

    fn open_stored(&self, bytes: &[u8]) -> Result<Verified<Reply>, StoredError> {
        let reply: Verified<Reply> = sign::open(bytes, &self.network).map_err(StoredError::Open)?;
        self.envelope
            .expected_reply()
            .check(&reply)
            .map_err(StoredError::Binding)?;
        Ok(reply)
    }

    fn take(&mut self, reply: &Verified<Reply>) -> Result<(), Dispute> {
        match &reply.body {
            Body::Receipt(receipt) => {
                if let Some(relay) = self.envelope.unnamed_relay(receipt) {
                    return Err(Dispute::OtherRelay(relay));
                }
                self.receipt = Some(receipt.clone());
                self.receipt_key = Some(*reply.signer());
            }
            Body::Refusal(refusal) => self.refusal = Some(refusal.reason),
            Body::Status(status) => self.status = Some((reply.counter, *status)),
            Body::Evidence(_) => {}
            Body::Statement(claimed) => {
                let lease = self.id().unwrap_or(claimed.lease);
                let log_key = self.card.sub_keys().log_key.as_ref();
                let provider = self.provider();
                let proven = verify_statement(&self.network, &provider, log_key, lease, claimed)?;
                check_terms(
                    &proven.statement,
                    &self.envelope.grant,
                    self.receipt.as_ref(),
                )?;
                self.statement = Some(proven);
            }
        }
        Ok(())
    }
}

/// Why an answer could not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be stored.
    #[error("the answer could not be stored")]
    State(#[from] StateError),
    /// It is signed, and yet not what it must be; it is kept.
    #[error("the signed answer breaks what was agreed")]
    Disputed(#[from] Dispute),
}

/// What is wrong with a signed answer; all of it is the provider's fault.
#[derive(Debug, thiserror::Error)]
pub enum Dispute {
    /// A final statement that is not proven.
    #[error("the final statement does not hold")]
    Statement(#[from] StatementError),
    /// A receipt with a relay that the request did not name: the provider wants to choose who sees the requester.
    #[error(
        "the receipt names relay {0}, which this client did not draw and will not use: end the lease and rent elsewhere"
    )]
    OtherRelay(NodeId),
}

#[derive(Debug, thiserror::Error)]
enum StoredError {
    #[error("the reply does not open: {0}")]
    Open(OpenError),
    #[error("the reply is bound to another {0}")]
    Binding(&'static str),
}
