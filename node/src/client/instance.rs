//! Whether the instance of a lease is what it must be, by the requester's policy.
//!
//! ```text
//!  receipt ─ names ─► quote in parts, by polls ─► on the disk ─┐
//!         collateral of the card, in bulk and before ──────────┴─► examine ─► policy ─► ssh files, or the end of the lease
//!                                                                     └── again before each connection
//! ```
//!
//! Threats: a receipt whose evidence is of another lease, provider, image or host key (the binding is made from the envelope that was
//! sent and the receipt that came, never from the evidence); a provider that shows none (the lease has no ssh files before its
//! evidence is accepted, and is ended); trust that has ended since (each connection decides anew, by the policy of then).

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use souk_attest::{
    EvidenceDigest, MAX_COLLATERAL_BYTES, MAX_QUOTE_BYTES, Policy, Tee as Structure, VerifiedCache,
    binding::{Freshness, InstanceBinding, NodeBinding},
};
use souk_crypto::UnixTime;
use souk_market::{
    card::{EvidenceRef, VerifiedCard},
    reply::{Body, EvidencePart, LeaseState, Receipt},
    request::Action,
    units::{Digest, Tee},
};
use souk_sphinx::EpochClock;

use super::{
    Client, Connected, EvidencePolicy, JudgeError, Judgement, Lease, Progress, RentError,
    StateError, Watch,
    evidence::{judge_one, kept},
    lease::{COLLATERAL, POLICY, QUOTE},
    state::LeaseFolder,
    talk::{ASK_ATTEMPTS, TalkError, is_ending},
    unix_now,
};
use crate::attest::{Claim, market_tee};

/// Of which TEEs a policy accepts evidence.
pub(super) fn accepted(policy: &Policy) -> BTreeSet<Tee> {
    policy.kinds().map(market_tee).collect()
}

impl Client {
    /// What the policy says now of the instance of a lease; `None` where the lease requires no evidence. Both the policy of this
    /// client and the file by which the lease was believed first have to accept it: neither makes the other laxer.
    ///
    /// # Errors
    /// [`JudgeError`] where the policy or the folder of the lease cannot be read.
    pub fn judge_instance(
        &self,
        lease: &Lease,
        now: UnixTime,
    ) -> Result<Option<Judgement>, JudgeError> {
        let Some(tee) = lease.envelope.grant.tee else {
            return Ok(None);
        };
        let clock = EpochClock::of(&self.config.params);
        let mut policies = Vec::from_iter(self.config.evidence.clone());
        policies.extend(believed_by(&lease.folder)?);
        policies.dedup_by(|one, other| one.policy == other.policy);
        let mut judged = None;
        for policy in policies {
            let policy = policy.read(self.home())?;
            let judgement = judge(lease, tee, &policy, clock, now)?;
            let is_accepted = judgement.is_accepted();
            judged = Some(judgement);
            if !is_accepted {
                break;
            }
        }
        judged.map(Some).ok_or(JudgeError::NoPolicy)
    }
}

impl Connected {
    /// As [`prove`](Self::prove), and ends a lease that is not believed.
    pub(super) async fn prove_or_end(
        &self,
        lease: &mut Lease,
        watch: Watch<'_>,
    ) -> Result<(), RentError> {
        let mut proven = self.prove(lease, watch).await;
        if let Err(RentError::Unproven { ended, .. }) = &mut proven {
            *ended = self.give_up(lease, watch).await;
        }
        proven
    }

    /// Brings the evidence of an instance where the lease requires it, and decides.
    pub(super) async fn prove(&self, lease: &mut Lease, watch: Watch<'_>) -> Result<(), RentError> {
        let Some(tee) = lease.envelope.grant.tee else {
            return Ok(());
        };
        let client = &self.visitor.client;
        let named = lease.receipt.as_ref().and_then(|r| named(r, tee)).cloned();
        if let Some(reference) = named {
            let talk = self.bring_quote(lease, &reference, watch).await;
            talk.map_err(RentError::Talk)?;
            self.keep_collateral(lease, &reference)?;
        }
        match client.judge_instance(lease, unix_now())? {
            Some(Judgement::Refused { reason, why, .. }) => {
                let name = lease.name();
                Err(RentError::Unproven {
                    name,
                    reason,
                    why,
                    ended: false,
                })
            }
            Some(Judgement::Accepted { .. }) | None => Ok(keep_policy(client, &lease.folder)?),
        }
    }

    /// Gets the quote part by part. What the provider does not send is missing when it is judged.
    async fn bring_quote(
        &self,
        lease: &mut Lease,
        reference: &EvidenceRef,
        watch: Watch<'_>,
    ) -> Result<(), TalkError> {
        let kept = lease.folder.read_within(QUOTE, MAX_QUOTE_BYTES as u64)?;
        if kept.is_some_and(|quote| is_named(&quote, reference)) {
            return Ok(());
        }
        let mut quote = Vec::new();
        for part in 0.. {
            watch(Progress::Evidence { part });
            match self.part(lease, part, watch).await? {
                Some(got) if got.digest == reference.digest && got.part == part => {
                    quote.extend_from_slice(&got.bytes);
                    if got.part + 1 == got.parts {
                        break;
                    }
                }
                _ => return Ok(()),
            }
        }
        if quote.len() <= MAX_QUOTE_BYTES && is_named(&quote, reference) {
            lease.folder.write(QUOTE, &quote)?;
        }
        Ok(())
    }

    /// One part; `None` where the provider answers something else.
    async fn part(
        &self,
        lease: &mut Lease,
        part: u8,
        watch: Watch<'_>,
    ) -> Result<Option<EvidencePart>, TalkError> {
        let mut has_answered = false;
        for attempt in 0..ASK_ATTEMPTS {
            if attempt > 0 {
                watch(Progress::Polling { attempt });
            }
            let action = Action::Evidence { part };
            // A word about the lease may overtake the part.
            let waits = |body: &Body| matches!(body, Body::Status(_) | Body::Receipt(_));
            match self.ask(lease, action, waits, watch).await? {
                Some(Body::Evidence(part)) => return Ok(Some(part)),
                Some(Body::Status(_) | Body::Receipt(_)) => has_answered = true,
                Some(_) => return Ok(None),
                None => {}
            }
        }
        match has_answered {
            true => Ok(None),
            false => Err(TalkError::NoAnswer(ASK_ATTEMPTS)),
        }
    }

    /// Keeps the collateral that the receipt names. It is that of the card, and came with all others before this lease was asked
    /// about: a provider that could make its requester fetch something now would see who does.
    fn keep_collateral(&self, lease: &Lease, reference: &EvidenceRef) -> Result<(), StateError> {
        let Some(name) = reference.collateral else {
            return Ok(());
        };
        let is_named = |card: &VerifiedCard| {
            let mut of_card = card.evidence.iter();
            of_card.any(|evidence| evidence.collateral == Some(name))
        };
        let now = self.market().card(&lease.provider());
        if !is_named(&lease.card) && !now.is_some_and(|listed| is_named(&listed.card)) {
            return Ok(());
        }
        match kept(&self.visitor.client.home)?.get(&name) {
            Some(collateral) => lease.folder.write(COLLATERAL, &collateral),
            None => Ok(()),
        }
    }

    /// Ends a lease that is not believed; says whether the provider confirmed it.
    async fn give_up(&self, lease: &mut Lease, watch: Watch<'_>) -> bool {
        for _ in 0..ASK_ATTEMPTS {
            match self.ask(lease, Action::End, is_ending, watch).await {
                Ok(Some(Body::Statement(_))) => return true,
                Ok(Some(Body::Status(status))) => {
                    return matches!(status.state, LeaseState::Draining | LeaseState::Closed);
                }
                Ok(_) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a lease that is not believed was not ended");
                    return false;
                }
            }
        }
        false
    }
}

/// The evidence of its instance that a receipt names, of this kind.
fn named(receipt: &Receipt, tee: Tee) -> Option<&EvidenceRef> {
    receipt.evidence.iter().find(|reference| {
        reference.scope == EvidenceRef::INSTANCE
            && reference.algorithm == EvidenceRef::BLAKE3
            && reference.claimed() == Some(tee)
    })
}

/// Whether these are the bytes that a receipt names: under the domain of either structure, as `none+test` may have both.
fn is_named(quote: &[u8], reference: &EvidenceRef) -> bool {
    [Structure::Tdx, Structure::SevSnp]
        .iter()
        .any(|tee| EvidenceDigest::of(*tee, quote).0 == reference.digest.0)
}

fn judge(
    lease: &Lease,
    tee: Tee,
    policy: &Policy,
    clock: EpochClock,
    now: UnixTime,
) -> Result<Judgement, StateError> {
    let none = |why: &str| Judgement::refused(None, "no-evidence", why);
    let Some(receipt) = &lease.receipt else {
        return Ok(none("there is no receipt"));
    };
    let Some(reference) = named(receipt, tee) else {
        return Ok(none(
            "the receipt names none of the kind that was asked for",
        ));
    };
    let mut bytes = BTreeMap::new();
    let quote = lease.folder.read_within(QUOTE, MAX_QUOTE_BYTES as u64)?;
    bytes.extend(quote.map(|quote| (reference.digest, quote)));
    let most = MAX_COLLATERAL_BYTES as u64;
    let collateral = lease.folder.read_within(COLLATERAL, most)?;
    bytes.extend(reference.collateral.zip(collateral));
    let mut cache = VerifiedCache::new(policy.trust());
    // The key that the card named when it was accepted, or the one that signed the receipt: it may have turned in between.
    let keys = [Some(lease.card.sub_keys().card_key), lease.receipt_key];
    let judgements = keys.into_iter().flatten().map(|key| {
        let binding = InstanceBinding {
            provider: NodeBinding {
                network: &lease.network,
                node: &lease.card.node,
                attested_key: *key.as_bytes(),
                policy: reference.policy.0,
                freshness: Freshness::Epoch(reference.epoch.into()),
            },
            envelope: lease.envelope.digest().0,
            host_key: receipt.host_key.0,
            image: lease.envelope.grant.image.0,
        };
        let claim = Claim::of_instance(reference, &binding, clock);
        let read = |name: &Digest| bytes.get(name).cloned();
        judge_one(&claim, read, &mut cache, policy, now)
    });
    let judged = judgements.reduce(|first, next| match next.is_accepted() {
        true => next,
        false => first,
    });
    Ok(judged.expect("there is at least one key"))
}

/// Keeps the policy by which a lease was believed first.
fn keep_policy(client: &Client, folder: &LeaseFolder) -> Result<(), JudgeError> {
    if let Some(policy) = &client.config.evidence
        && believed_by(folder)?.is_none()
    {
        let digest = policy.read(client.home())?.digest();
        remember_policy(folder, policy, digest)?;
    }
    Ok(())
}

/// Keeps which policy was asked: its digest in hex, and in the rest of the file where it is.
fn remember_policy(
    folder: &LeaseFolder,
    policy: &EvidencePolicy,
    digest: [u8; 32],
) -> Result<(), StateError> {
    let digest = hex::encode(digest);
    let path = policy.policy.as_os_str().as_bytes();
    let text = [digest.as_bytes(), b"\n", path].concat();
    folder.write(POLICY, &text)
}

fn believed_by(folder: &LeaseFolder) -> Result<Option<EvidencePolicy>, StateError> {
    let Some(text) = folder.read(POLICY)? else {
        return Ok(None);
    };
    let mut parts = text.splitn(2, |byte| *byte == b'\n');
    let path = parts.nth(1).filter(|path| !path.is_empty());
    let path = path.ok_or_else(|| folder.damaged(POLICY, &"it names no file"))?;
    Ok(Some(EvidencePolicy {
        policy: PathBuf::from(OsStr::from_bytes(path)),
        attested_mixes: false,
    }))
}

#[cfg(test)]
mod tests;
