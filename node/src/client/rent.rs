//! Renting: choose, store, send, and wait for the receipt.
//!
//! Threats: a crash between sending and storing that pays twice or loses a machine, so everything is on the disk before the
//! envelope leaves, and the same envelope is the same lease; a provider that draws all requesters by being cheapest, so one of the
//! cheapest is taken at random.

use std::collections::HashSet;

use rand::{RngExt as _, seq::SliceRandom as _};
use souk_crypto::{HolderKey, IssuerPublicKey, NodeId, ReplyKey, Verified, keyfile, sign};
use souk_market::{
    card::{Role, VerifiedCard},
    envelope::{
        Envelope, EnvelopeError, Grant, MAX_SURBS, NamedRelays, Typed, VerifiedEnvelope, Voucher,
        accept_by,
    },
    matching::{Candidate, Mismatch, Wanted, candidates},
    refusal::Reason,
    reply::{Body, Endpoint, Receipt, Refusal},
    request::Action,
    sealed::{SealRequestError, seal_envelope},
    units::{Money, RequestId},
    wire::List,
    work,
};

use super::{
    Connected, JudgeError, Lease, Progress, Stage, StateError, Watch, instance,
    lease::{
        CARD, DIRECT, ENVELOPE, HOLDER_KEY, KNOWN_HOSTS, RELAYS, REPLY_KEY, SSH_CONFIG, SSH_KEY,
        WAY,
    },
    market, relays, ssh,
    state::LeaseFolder,
    talk::{TalkError, is_starting},
    unix_now,
};
use crate::{mix::Replies, net::NodeAddress};

/// SURBs in an envelope: the receipt, a status before it, and one of each to be lost.
const ENVELOPE_SURBS: usize = 4;
/// Envelopes and polls that are sent before a receipt is given up for now.
const RECEIPT_ATTEMPTS: u32 = 16;
/// Requests in a row of which nothing was acknowledged before a provider counts as away: its card outlives it by hours.
const SILENT_ATTEMPTS: u32 = 3;
/// Providers that are asked one after the other when they have no room.
const PROVIDER_ATTEMPTS: usize = 3;
/// How long a request may take to arrive, at least.
const PATIENCE_S: u64 = 600;

const _: () = assert!(ENVELOPE_SURBS <= MAX_SURBS);
const _: () = assert!(souk_sphinx::surb::SURB_LEN == souk_market::envelope::SURB_LEN);

/// What is to be rented.
#[derive(Debug)]
pub struct RentRequest {
    /// The machine, the time and the price.
    pub wanted: Wanted,
    /// A voucher, where somebody vouches for the requester.
    pub voucher: Option<VoucherFile>,
    /// Reach the instance straight at the provider, who then sees the requester's address.
    pub direct: bool,
    /// The instance has to prove what it runs on, as the policy wants it; else the lease is ended.
    pub require_evidence: bool,
}

/// A voucher with the key it was issued for.
#[derive(Clone, Debug)]
pub struct VoucherFile {
    holder: HolderKey,
    voucher: Verified<Voucher>,
}

/// Why nothing was rented.
#[derive(Debug, thiserror::Error)]
pub enum RentError {
    /// No provider of the market fits.
    #[error("no provider fits{}", why_not(.others))]
    NoMatch {
        /// Why each provider does not.
        others: Vec<(NodeId, Mismatch)>,
    },
    /// The provider said no.
    #[error("the provider refused: {}", .reason.advice())]
    Refused {
        /// Why.
        reason: Reason,
        /// The lease that was refused.
        lease: Box<Lease>,
    },
    /// Every relay is barred.
    #[error(
        "none of the {relays} relays can be used: each is the entry of this client or the provider itself; --direct goes without, and shows the provider your address"
    )]
    NoRelay {
        /// Relays of the market.
        relays: usize,
    },
    /// The voucher does not open, or was issued for another key.
    #[error("the voucher is not good for this key")]
    Voucher,
    /// The voucher was used for a lease before; its key is good for one.
    #[error("the voucher was used at this provider before: resume lease {name}")]
    VoucherUsed {
        /// The lease.
        name: String,
    },
    /// It is not known which providers are believed.
    #[error("the providers cannot be judged")]
    Judge(#[from] JudgeError),
    /// The lease could not be stored, so nothing was sent.
    #[error("the lease could not be stored")]
    State(#[from] StateError),
    /// The envelope could not be made.
    #[error("the envelope could not be made")]
    Envelope(#[source] EnvelopeError),
    /// The envelope could not be sealed.
    #[error("the request could not be sealed")]
    Seal(#[source] SealRequestError),
    /// The provider could not be talked to. The lease may run all the same: resume it.
    #[error("the provider could not be asked")]
    Talk(#[source] TalkError),
    /// The provider seems to be away.
    #[error(
        "provider {provider} does not answer: none of {SILENT_ATTEMPTS} requests in a row was acknowledged; should one have arrived, lease {name} runs: resume it"
    )]
    Silent {
        /// The lease.
        name: String,
        /// The provider.
        provider: NodeId,
    },
    /// No receipt came. The lease may run all the same: resume it.
    #[error("no receipt came for {name}; it may run all the same: resume it")]
    NoReceipt {
        /// The lease.
        name: String,
    },
    /// No answer came, and it is too late to send the request again.
    #[error(
        "no answer came for {name}, and it is too old to be sent again: if it never arrived, nothing runs and nothing is owed; if it did, it may run until its time is over: resume it later, or end it"
    )]
    Lapsed {
        /// The lease.
        name: String,
    },
    /// Its time is over, or it is being ended.
    #[error(
        "lease {name} is over or being ended, and its account has not come: end it to ask again"
    )]
    Over {
        /// The lease.
        name: String,
    },
    /// The instance does not prove what it must.
    #[error(
        "the instance of lease {name} is not believed ({reason}: {why}); {}",
        if *.ended { "the lease was ended" } else { "the provider has not confirmed its end" }
    )]
    Unproven {
        /// The lease.
        name: String,
        /// The name of the first reason.
        reason: &'static str,
        /// What was found.
        why: String,
        /// Whether the provider has ended it.
        ended: bool,
    },
    /// The lease runs, but there is no way to it.
    #[error(
        "lease {name} runs, but its receipt has no {}: end it and rent again",
        if *.direct { "address" } else { "relay besides the entry of this client" }
    )]
    Unreachable {
        /// The lease.
        name: String,
        /// Whether the direct way was asked for.
        direct: bool,
    },
}

impl VoucherFile {
    /// Takes a signed voucher and the key it was issued for.
    ///
    /// # Errors
    /// [`RentError::Voucher`] where they do not belong together.
    pub fn new(
        holder: HolderKey,
        signed: &[u8],
        network: &souk_crypto::NetworkId,
    ) -> Result<Self, RentError> {
        let voucher: Verified<Voucher> =
            sign::open(signed, network).map_err(|_| RentError::Voucher)?;
        if voucher.holder == holder.public() && *voucher.signer() == voucher.issuer {
            Ok(Self { holder, voucher })
        } else {
            Err(RentError::Voucher)
        }
    }

    /// Who vouches.
    #[must_use]
    pub fn issuer(&self) -> IssuerPublicKey {
        self.voucher.issuer
    }

    /// The one provider that it is good at, where it names one.
    #[must_use]
    pub fn provider(&self) -> Option<NodeId> {
        self.voucher.provider
    }
}

impl Connected {
    /// Rents a machine. Where a provider has no room after all, the next one is asked.
    ///
    /// Everything that a lease needs is on the disk before its envelope leaves: whoever is killed here resumes with
    /// [`Connected::resume`].
    ///
    /// # Errors
    /// [`RentError`].
    pub async fn rent(&self, request: &RentRequest, watch: Watch<'_>) -> Result<Lease, RentError> {
        let mut wanted = request.wanted.clone();
        if let Some(voucher) = &request.voucher {
            wanted.issuer = Some(voucher.issuer());
            wanted.provider = wanted.provider.or(voucher.voucher.provider);
        }
        if request.require_evidence {
            let policy = self.visitor.client.evidence_policy();
            let policy = policy.ok_or(JudgeError::NoPolicy)?;
            let policy = policy.read(self.visitor.client.home());
            wanted.tees = Some(instance::accepted(&policy.map_err(JudgeError::Policy)?));
        }
        let judgements = self.visitor.judgements().await?;
        wanted.attested = judgements.map(|judged| judged.accepted().collect());
        let (mut found, others) = candidates(&self.visitor.market, &wanted);
        // A route cannot end where it begins.
        found.retain(|candidate| candidate.card.node != self.entry());
        self.pass_over_silent(&mut found)?;
        let mut refused = None;
        for _ in 0..PROVIDER_ATTEMPTS {
            let Some(candidate) = draw(&mut found) else {
                break;
            };
            watch(Progress::Provider {
                node: candidate.card.node,
                others: found.len(),
            });
            let (lease, replies) = self.prepare(request, &wanted, &candidate, watch).await?;
            let _lock = lease.folder.lock()?;
            match self.wait_for_receipt(lease, Some(replies), watch).await {
                Err(RentError::Refused { reason, lease }) if is_local(reason) => {
                    watch(Progress::Refused { reason });
                    refused = Some(RentError::Refused { reason, lease });
                }
                outcome => return outcome,
            }
            // The key of a voucher is bound to what was sent with it.
            if request.voucher.is_some() {
                break;
            }
        }
        Err(refused.unwrap_or(RentError::NoMatch { others }))
    }

    /// Leaves out the providers that still owe this requester an answer, where others cost no more.
    fn pass_over_silent(&self, found: &mut Vec<Candidate>) -> Result<(), StateError> {
        let now = unix_now();
        let asked = self.visitor.client.leases()?.into_iter().flatten();
        let silent: HashSet<_> = asked
            .filter(|lease| matches!(lease.stage(now), Stage::Requested | Stage::Unanswered))
            .filter(|lease| lease.status().is_none())
            .map(|lease| lease.provider())
            .collect();
        let is_silent = |candidate: &Candidate| silent.contains(&candidate.card.node);
        let Some(first) = found.first() else {
            return Ok(());
        };
        let mut alike = found.iter().take_while(|c| c.costs_as_much_as(first));
        if !alike.all(is_silent) {
            found.retain(|candidate| !is_silent(candidate));
        }
        Ok(())
    }

    /// Draws the keys, does the work, makes the envelope, and puts all of it on the disk.
    async fn prepare(
        &self,
        request: &RentRequest,
        wanted: &Wanted,
        candidate: &Candidate,
        watch: Watch<'_>,
    ) -> Result<(Lease, Replies), RentError> {
        let network = &self.visitor.client.config.network;
        let provider = candidate.card.node;
        let (holder, authorization) = match &request.voucher {
            Some(file) => {
                let typed = Typed::voucher(file.voucher.signed().as_bytes());
                (file.holder.clone(), typed.ok_or(RentError::Voucher)?)
            }
            None => (HolderKey::generate(&mut rand::rng()), Typed::anonymous()),
        };
        let id = RequestId::of(network, &provider, &holder.public());
        if let Some(known) = self.visitor.client.home.lease(&LeaseFolder::name_of(id)) {
            return Err(RentError::VoucherUsed { name: known.name() });
        }
        let work = match candidate.work_bits {
            0 => None,
            bits => {
                watch(Progress::Working { bits });
                let network = network.clone();
                let found = tokio::task::spawn_blocking(move || work::find(&network, id, bits));
                Some(found.await.expect("hashing does not panic"))
            }
        };
        let relays = if request.direct {
            List::empty()
        } else {
            self.draw_relays(&candidate.card)?
        };
        let reply = ReplyKey::generate(&mut rand::rng());
        let (ssh_key, ssh_private) = ssh::draw_key();
        let (surbs, replies) = self
            .surbs(ENVELOPE_SURBS, provider)
            .await
            .map_err(RentError::Talk)?;
        let envelope = Envelope {
            holder: holder.public(),
            grant: Grant {
                request: id,
                provider,
                image: wanted.image,
                resources: wanted.resources,
                required: wanted.required,
                duration: wanted.duration,
                accept_by: accept_by(unix_now(), PATIENCE_S),
                max_total: most(wanted, candidate),
                offer: candidate.card.digest(),
                authorization,
                refund: None,
                work,
                tee: wanted
                    .tees
                    .as_ref()
                    .map(|_| candidate.card.offers[candidate.offer].tee),
            },
            reply_key: reply.public(),
            ssh_key,
            image: wanted.image,
            surbs,
            relays,
        };
        let envelope =
            VerifiedEnvelope::sign(envelope, &holder, network).map_err(RentError::Envelope)?;

        let fill = |folder: &LeaseFolder| -> Result<(), StateError> {
            keyfile::create(&folder.file(HOLDER_KEY), &holder)?;
            keyfile::create(&folder.file(REPLY_KEY), &reply)?;
            folder.write(SSH_KEY, ssh_private.as_bytes())?;
            folder.write(CARD, candidate.card.as_bytes())?;
            folder.write(ENVELOPE, envelope.as_bytes())?;
            folder.write(
                WAY,
                if request.direct { DIRECT } else { "relay" }.as_bytes(),
            )
        };
        let folder = self.visitor.client.home.create_lease(id, fill)?;
        watch(Progress::Stored {
            name: folder.name(),
        });
        Ok((Lease::load(folder, network)?, replies))
    }

    /// The relays over which a lease at `provider` will be reached.
    fn draw_relays(&self, provider: &VerifiedCard) -> Result<NamedRelays, RentError> {
        let mut entries = vec![self.entry()];
        entries.extend(self.visitor.client.entries()?);
        let drawn = relays::draw(&self.visitor.market, &entries, provider, &mut rand::rng());
        if drawn.is_empty() {
            let cards = self.visitor.market.cards.iter();
            let relays = cards.filter(|l| l.card.has_role(Role::Relay)).count();
            return Err(RentError::NoRelay { relays });
        }
        Ok(drawn)
    }

    /// Sends the stored envelope, which may be a second time: the same envelope is the same lease.
    pub(super) async fn send_envelope(
        &self,
        lease: &mut Lease,
        replies: &mut Replies,
        watch: Watch<'_>,
    ) -> Result<Option<Body>, RentError> {
        let to = self.seal_key(lease).map_err(RentError::Talk)?;
        let network = &self.visitor.client.config.network;
        let frame = seal_envelope(&lease.envelope, &to, network, &mut rand::rng())
            .map_err(RentError::Seal)?;
        watch(Progress::Sending { bytes: frame.len() });
        let body = self
            .exchange(lease, frame, replies, is_starting, watch)
            .await;
        body.map_err(RentError::Talk)
    }

    /// Takes up a lease where it was left: asks how it stands, sends the stored envelope where the provider never saw
    /// it, and stores the receipt. Nothing can start twice.
    ///
    /// # Errors
    /// [`RentError`]; a lease that was refused is [`RentError::Refused`].
    pub async fn resume(&self, mut lease: Lease, watch: Watch<'_>) -> Result<Lease, RentError> {
        let _lock = lease.folder.lock()?;
        if lease.stage(unix_now()) == Stage::Active {
            if lease.required_tee().is_some() {
                // As before a rent: what a policy needs is fetched before the provider hears of this.
                self.visitor.judgements().await?;
            }
            // What runs in it may be worth more than a policy that was named by mistake, or a clock that is wrong.
            self.prove(&mut lease, watch).await?;
            self.write_ssh_files(&lease)?;
            return Ok(lease);
        }
        self.wait_for_receipt(lease, None, watch).await
    }

    async fn wait_for_receipt(
        &self,
        mut lease: Lease,
        mut first: Option<Replies>,
        watch: Watch<'_>,
    ) -> Result<Lease, RentError> {
        let mut step = match first {
            Some(_) => Step::Envelope,
            None => Step::Poll,
        };
        for attempt in 0..RECEIPT_ATTEMPTS {
            let body = match step {
                Step::Envelope => {
                    let mut replies = match first.take() {
                        Some(replies) => replies,
                        // The envelope's own SURBs may be dead; these only keep the wait going until a poll.
                        None => self.spare_replies(&lease).await?,
                    };
                    let body = self.send_envelope(&mut lease, &mut replies, watch).await?;
                    first = Some(replies);
                    body
                }
                Step::Poll => {
                    watch(Progress::Polling { attempt });
                    self.ask(&mut lease, Action::Poll, is_starting, watch)
                        .await
                        .map_err(RentError::Talk)?
                }
            };
            step = step.after(body.as_ref(), lease.may_be_sent(unix_now()));
            match body {
                Some(Body::Receipt(_)) => {
                    self.prove_or_end(&mut lease, watch).await?;
                    self.write_ssh_files(&lease)?;
                    return Ok(lease);
                }
                // It has ended meanwhile; the receipt was lost, and is of no use any more.
                Some(Body::Statement(_)) => return Ok(lease),
                Some(Body::Refusal(Refusal { reason })) => {
                    let lease = Box::new(lease);
                    return Err(RentError::Refused { reason, lease });
                }
                Some(Body::Status(_) | Body::Evidence(_)) | None => {}
            }
            if lease.unheard >= SILENT_ATTEMPTS {
                break;
            }
        }
        let name = lease.name();
        Err(match lease.stage(unix_now()) {
            Stage::Unanswered | Stage::Lapsed => RentError::Lapsed { name },
            Stage::Draining | Stage::Ended => RentError::Over { name },
            _ if lease.unheard >= SILENT_ATTEMPTS => RentError::Silent {
                name,
                provider: lease.provider(),
            },
            _ => RentError::NoReceipt { name },
        })
    }

    async fn spare_replies(&self, lease: &Lease) -> Result<Replies, RentError> {
        let made = self.surbs(1, lease.provider()).await;
        made.map(|(_, replies)| replies).map_err(RentError::Talk)
    }

    /// Writes what `ssh` needs.
    fn write_ssh_files(&self, lease: &Lease) -> Result<(), RentError> {
        let (Some(receipt), Some(alias)) = (lease.receipt(), lease.ssh_alias()) else {
            return Ok(());
        };
        let folder = &lease.folder;
        let relays = self.relays(receipt, lease.provider());
        let lines: String = relays.iter().map(|relay| format!("{relay}\n")).collect();
        folder.write(RELAYS, lines.as_bytes())?;
        folder.write(
            KNOWN_HOSTS,
            ssh::known_hosts(&alias, &receipt.host_key).as_bytes(),
        )?;
        let config = &self.visitor.client.config;
        let entries = self.visitor.client.entries()?;
        let ways = lease.ways(&entries, config.params.is_test())?;
        if ways.is_empty() {
            return Err(RentError::Unreachable {
                name: lease.name(),
                direct: lease.is_direct,
            });
        }
        let fragment = ssh::config(&ssh::Fragment {
            alias: &alias,
            home: self.visitor.client.home.path(),
            folder: folder.path(),
            lease: &lease.name(),
            user: &receipt.user,
            souk: &config.souk,
        });
        folder.write(SSH_CONFIG, fragment.as_bytes())?;
        let all = format!(
            "Include {}/leases/*/ssh_config\n",
            self.visitor.client.home.path().display()
        );
        self.visitor.client.home.write_text(SSH_CONFIG, &all)?;
        Ok(())
    }

    /// The relays of a receipt that are neither the entry nor the provider, in random order.
    fn relays(&self, receipt: &Receipt, provider: NodeId) -> Vec<NodeAddress> {
        let address = |endpoint: &Endpoint| match endpoint {
            Endpoint::Relay { relay, .. } if *relay != provider && *relay != self.entry() => {
                let card = &self.visitor.market.card(relay)?.card;
                let mut addresses = market::addresses(card).into_iter();
                addresses.find_map(|address| NodeAddress::new(*relay, address).ok())
            }
            _ => None,
        };
        let mut relays: Vec<_> = receipt.endpoints.iter().filter_map(address).collect();
        relays.shuffle(&mut rand::rng());
        relays
    }
}

/// What is sent to a provider that owes a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The stored envelope, always the same.
    Envelope,
    /// A poll, with fresh SURBs.
    Poll,
}

impl Step {
    /// What follows, given what was answered and whether the provider would still take the envelope.
    ///
    /// A provider cannot answer about a request that it never saw, so silence brings both by turns. An envelope that
    /// arrives twice is the same lease.
    pub(super) fn after(self, answer: Option<&Body>, is_in_time: bool) -> Self {
        let may_be_unseen = answer.is_none() && self == Self::Poll;
        if may_be_unseen && is_in_time {
            Self::Envelope
        } else {
            Self::Poll
        }
    }
}

/// The most that the provider may charge: what was allowed, and else what its card asks.
fn most(wanted: &Wanted, candidate: &Candidate) -> Money {
    wanted
        .max_total
        .as_ref()
        .map_or(candidate.price, |(_, most)| *most)
}

/// One of the cheapest candidates at random, so that nobody can buy all who come by being the very first. Of these first such as have
/// said within minutes how much room they have: the card of one that is away lasts for hours.
pub(super) fn draw(found: &mut Vec<Candidate>) -> Option<Candidate> {
    let first = found.first()?;
    let of = |is_heard: bool| {
        let alike = found.iter().enumerate();
        let alike =
            alike.filter(|(_, c)| c.costs_as_much_as(first) && c.level.is_some() == is_heard);
        alike.map(|(at, _)| at).collect::<Vec<_>>()
    };
    let heard = of(true);
    let drawn = if heard.is_empty() { of(false) } else { heard };
    Some(found.remove(drawn[rand::rng().random_range(0..drawn.len())]))
}

/// Whether another provider may well say yes.
const fn is_local(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoCapacity
            | Reason::Busy
            | Reason::Draining
            | Reason::StaleOffer
            | Reason::AnonymousConcurrent
            | Reason::AnonymousRate
            | Reason::ProvisionFailed
            | Reason::RelayUnknown
            | Reason::NoRelay
            | Reason::NoDirect
            | Reason::TeeMissing
    )
}

fn why_not(others: &[(NodeId, Mismatch)]) -> String {
    let mut counts = std::collections::BTreeMap::<Mismatch, usize>::new();
    for (_, why) in others {
        *counts.entry(*why).or_default() += 1;
    }
    if counts.is_empty() {
        return ": no provider is in the market".to_owned();
    }
    let parts: Vec<_> = counts
        .iter()
        .map(|(why, n)| format!("{n} {}", why.as_str()))
        .collect();
    format!(": {}", parts.join(", "))
}
