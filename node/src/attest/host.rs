//! The TEE that this node runs in, as far as its instances have to do with it.
//!
//! ```text
//!  grant: tee ─► order (envelope, provider, epoch) ─► backend ─► instance, quote
//!                  └──────────────── verify ◄───────────────────────┘
//!                                      └─► reference in the receipt, quote in the row of the lease
//! ```
//!
//! Instances that share the kernel of this node are inside of the same TEE as it: what was measured is the node that starts them,
//! and the node binds their host keys. Collateral is that of the card: it is of the same machine, and every requester has it.
//!
//! Threats: a quote of another lease, instance or node (everything that the order names is bound, and compared before a receipt
//! names it); a card that has no evidence any more (nothing is ordered then).

use std::sync::Arc;

use souk_attest::{
    Evidence, Policy, Refusal, ReportData, VerifiedCache,
    binding::{Freshness, InstanceBinding, NodeBinding},
};
use souk_backend::{EvidenceOrder, HostKey, ImageHash, Instance};
use souk_crypto::{NetworkId, NodeId, UnixTime};
use souk_market::{
    card::{EvidenceRef, VerifiedCard},
    units::{Digest, EnvelopeDigest, Tee},
};
use souk_sphinx::EpochClock;
use tokio::sync::watch;

use super::{
    Claim, Outcome, Pieces, Source, SourceError,
    examine::{Flaw, examine},
};
use crate::store::InstanceEvidence;

/// The TEE that this node runs in.
pub struct HostTee {
    pub(crate) network: NetworkId,
    pub(crate) node: NodeId,
    /// What this node stands against.
    pub(crate) policy: Option<Arc<Policy>>,
    pub(crate) clock: EpochClock,
    pub(crate) source: Source,
    /// The card of this node: the evidence that it names, and the key that signs it and receipts.
    pub(crate) card: watch::Receiver<Option<Arc<VerifiedCard>>>,
    pub(crate) pieces: Arc<Pieces>,
    pub(crate) now: fn() -> UnixTime,
}

/// Why there is no quote of an instance.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QuoteError {
    /// It was ordered in the name of another.
    #[error("the evidence is ordered in the name of another node or network")]
    OtherNode,
    /// The TEE.
    #[error("the TEE gives no quote")]
    Source(#[from] SourceError),
}

/// Why the evidence of an instance is not named in a receipt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceFlaw {
    /// There is none.
    #[error("the instance brought no evidence")]
    None,
    /// It cannot be checked.
    #[error("the card of this node names no collateral now")]
    NoCollateral,
    /// It is of no form.
    #[error("what the instance brought is no evidence")]
    Form(#[source] Refusal),
    /// It does not hold.
    #[error("it is not what was ordered")]
    Flawed(#[source] Flaw),
}

impl HostTee {
    /// What the evidence on the card proves; nothing where it names none.
    pub(crate) fn kind(&self) -> Option<souk_backend::Tee> {
        self.current()?.claimed().and_then(backend_tee)
    }

    /// What an instance has to bind that is provisioned now; nothing before this node has a card.
    pub(crate) fn order(
        &self,
        tee: souk_backend::Tee,
        envelope: EnvelopeDigest,
    ) -> Option<EvidenceOrder> {
        let key = self.card.borrow().as_ref()?.sub_keys().card_key;
        Some(EvidenceOrder {
            tee,
            network: self.network.to_string(),
            provider: *self.node.as_bytes(),
            attested_key: *key.as_bytes(),
            policy: self
                .policy
                .as_ref()
                .map_or([0; 32], |policy| policy.digest()),
            epoch: self.clock.at((self.now)()).0,
            envelope: envelope.0,
        })
    }

    /// A quote of this TEE, for an instance inside of it.
    pub(crate) async fn quote(
        &self,
        order: &EvidenceOrder,
        host_key: HostKey,
        image: ImageHash,
    ) -> Result<Vec<u8>, QuoteError> {
        if order.network != self.network.as_str() || order.provider != *self.node.as_bytes() {
            return Err(QuoteError::OtherNode);
        }
        let data = self.report_data(order, host_key, image);
        let evidence = self.source.evidence(data, (self.now)()).await?;
        Ok(evidence.as_bytes().to_vec())
    }

    /// Holds the quote of an instance against what was ordered.
    pub(crate) async fn verify(
        &self,
        order: &EvidenceOrder,
        instance: &Instance,
        image: ImageHash,
    ) -> Result<InstanceEvidence, InstanceFlaw> {
        let quote = instance.quote.clone().ok_or(InstanceFlaw::None)?;
        let of_card = self.current().and_then(|of_card| of_card.collateral);
        let collateral = of_card.ok_or(InstanceFlaw::NoCollateral)?;
        let evidence = Evidence::parse(&quote).map_err(InstanceFlaw::Form)?;
        let mut reference = EvidenceRef {
            kind: u16::try_from(market_tee(order.tee).code()).expect("a small number"),
            scope: EvidenceRef::INSTANCE,
            algorithm: EvidenceRef::BLAKE3,
            digest: Digest(evidence.digest().0),
            collateral: Some(collateral),
            not_after: UnixTime(u64::MAX),
            policy: Digest(order.policy),
            epoch: order.epoch,
        };
        let binding = self.binding(order, instance.host_key, image);
        let claim = Claim::of_instance(&reference, &binding, self.clock);
        let (pieces, now) = (Arc::clone(&self.pieces), (self.now)());
        let mut cache = VerifiedCache::new(self.source.trust());
        let (bytes, name) = (quote.clone(), reference.digest);
        let examining = tokio::task::spawn_blocking(move || {
            let read = |wanted: &Digest| match *wanted == name {
                true => Some(bytes.clone()),
                false => pieces.get(wanted),
            };
            examine(&claim, read, &mut cache, now)
        });
        let answer = match examining.await.expect("verification does not panic") {
            Outcome::Sound(answer) => answer,
            Outcome::Absent => return Err(InstanceFlaw::NoCollateral),
            Outcome::Flawed(flaw) => return Err(InstanceFlaw::Flawed(flaw)),
        };
        let verified = answer.as_ref().as_ref();
        reference.not_after = verified.expect("what is sound has verified").expires();
        Ok(InstanceEvidence { reference, quote })
    }

    fn current(&self) -> Option<EvidenceRef> {
        let card = self.card.borrow();
        let reference = card.as_ref()?.evidence.first()?;
        ((self.now)() < reference.not_after).then(|| reference.clone())
    }

    fn binding(
        &self,
        order: &EvidenceOrder,
        host_key: HostKey,
        image: ImageHash,
    ) -> InstanceBinding<'_> {
        InstanceBinding {
            provider: NodeBinding {
                network: &self.network,
                node: &self.node,
                attested_key: order.attested_key,
                policy: order.policy,
                freshness: Freshness::Epoch(order.epoch.into()),
            },
            envelope: order.envelope,
            host_key: host_key.0,
            image: image.0,
        }
    }

    fn report_data(
        &self,
        order: &EvidenceOrder,
        host_key: HostKey,
        image: ImageHash,
    ) -> ReportData {
        self.binding(order, host_key, image).report_data()
    }
}

/// A TEE of the market in the words of a backend; `None` for none.
pub(crate) const fn backend_tee(tee: Tee) -> Option<souk_backend::Tee> {
    match tee {
        Tee::None => None,
        Tee::Tdx => Some(souk_backend::Tee::Tdx),
        Tee::SevSnp => Some(souk_backend::Tee::SevSnp),
        Tee::NoneTest => Some(souk_backend::Tee::NoneTest),
    }
}

const fn market_tee(tee: souk_backend::Tee) -> Tee {
    match tee {
        souk_backend::Tee::Tdx => Tee::Tdx,
        souk_backend::Tee::SevSnp => Tee::SevSnp,
        souk_backend::Tee::NoneTest => Tee::NoneTest,
    }
}
