//! Evidence held against what a card claims.
//!
//! A claim is made from a verified card alone: who the node is, with which key it signs, what it names. Evidence is of use only if it
//! binds exactly that.

use souk_attest::{
    Answer, Blame, Bundle, Collateral, CollateralDigest, Evidence, EvidenceDigest, Kind, Refusal,
    ReportData, VerifiedCache,
    binding::{Freshness, InstanceBinding, NodeBinding},
};
use souk_crypto::{MAX_SKEW_S, NetworkId, NodeId, UnixTime};
use souk_market::{
    card::{EvidenceRef, VerifiedCard},
    units::{Digest, Tee},
};
use souk_sphinx::{Epoch, EpochClock};

/// Evidence counts from the start of its epoch until this long after the end of it, in seconds (a day): long enough that a node
/// makes it anew in peace, short enough that a machine that is no longer one is found out.
pub(crate) const LIFE_AFTER_EPOCH_S: u64 = 86_400;

/// What a card, or a receipt, claims that evidence proves.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Whose card it is, and whose fault evidence is that does not hold.
    pub(crate) node: NodeId,
    pub(crate) reference: EvidenceRef,
    /// What the evidence has to bind.
    pub(crate) report_data: ReportData,
    /// When the epoch in it begins, and until when it counts.
    window: (UnixTime, UnixTime),
}

/// What became of a claim.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Evidence or collateral is not here yet.
    Absent,
    /// It does not hold.
    Flawed(Flaw),
    /// The evidence verified and binds what the card claims.
    Sound(Answer),
}

/// Why a claim does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    /// A kind of evidence that is not known here.
    #[error("evidence of kind {0} is not known here")]
    UnknownKind(u16),
    /// The card names no collateral.
    #[error("the card names no collateral")]
    NoCollateral,
    /// The bytes have the digest that the card names, and are not the one form of what they hold.
    #[error("the evidence is not in its one form")]
    Form,
    /// The epoch in it has not begun.
    #[error("the evidence is of an epoch that begins later")]
    Early,
    /// It is too old, or past the date that the card names.
    #[error("the evidence has ended")]
    Over,
    /// It proves something else than the card says.
    #[error("the card says {claimed}, and the evidence is of kind {found}")]
    OtherKind {
        /// What the card says.
        claimed: Tee,
        /// What it is.
        found: Kind,
    },
    /// It binds another node, key, network, policy or epoch.
    #[error("the evidence binds another node, key, policy or epoch")]
    OtherBinding,
    /// It does not verify.
    #[error(transparent)]
    Refused(Refusal),
}

impl Flaw {
    /// Its name, which does not change between releases.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::UnknownKind(_) => "unknown-kind",
            Self::NoCollateral => "missing-collateral",
            Self::Form => "malformed",
            Self::Early => "not-yet-valid",
            Self::Over => "expired",
            Self::OtherKind { .. } => "kind",
            Self::OtherBinding => "report-data",
            Self::Refused(refusal) => refusal.reason(),
        }
    }

    /// Whose fault it is.
    pub(crate) const fn blame(&self) -> Blame {
        match self {
            // A later version may know it.
            Self::UnknownKind(_) => Blame::Platform,
            Self::NoCollateral | Self::Form | Self::OtherKind { .. } | Self::OtherBinding => {
                Blame::Publisher
            }
            Self::Early => Blame::Clock,
            Self::Over => Blame::Collateral,
            Self::Refused(refusal) => refusal.blame(),
        }
    }
}

/// The kind as it stands on cards.
pub(crate) const fn market_tee(kind: Kind) -> Tee {
    match kind {
        Kind::Tdx => Tee::Tdx,
        Kind::SevSnp => Tee::SevSnp,
        Kind::NoneTest => Tee::NoneTest,
    }
}

impl Claim {
    /// What a card claims of its node.
    pub fn of_card<'c>(
        card: &'c VerifiedCard,
        network: &'c NetworkId,
        clock: EpochClock,
    ) -> impl Iterator<Item = Self> + 'c {
        let key = *card.sub_keys().card_key.as_bytes();
        let of_node = |reference: &&EvidenceRef| {
            reference.scope == EvidenceRef::NODE && reference.algorithm == EvidenceRef::BLAKE3
        };
        card.evidence.iter().filter(of_node).map(move |reference| {
            let (binding, window) = bound(network, &card.node, key, reference, clock);
            Self {
                node: card.node,
                reference: reference.clone(),
                report_data: binding.report_data(),
                window,
            }
        })
    }

    /// What a receipt claims of its instance, whose evidence has to bind this. It counts from its epoch on, and ends with
    /// its certificates: the envelope in it says that it is of this lease.
    pub(crate) fn of_instance(
        reference: &EvidenceRef,
        binding: &InstanceBinding<'_>,
        clock: EpochClock,
    ) -> Self {
        Self {
            node: *binding.provider.node,
            reference: reference.clone(),
            report_data: binding.report_data(),
            window: (clock.start(Epoch(reference.epoch)), UnixTime(u64::MAX)),
        }
    }

    /// Evidence and collateral that it names, where it names both.
    pub(crate) fn names(&self) -> Option<(Digest, Digest)> {
        Some((self.reference.digest, self.reference.collateral?))
    }

    fn dated(&self, now: UnixTime) -> Result<(), Flaw> {
        let (from, to) = self.window;
        if now.plus_s(MAX_SKEW_S) < from {
            return Err(Flaw::Early);
        }
        let to = to.min(self.reference.not_after).plus_s(MAX_SKEW_S);
        if now >= to { Err(Flaw::Over) } else { Ok(()) }
    }
}

/// What a node binds into evidence, and when evidence of that epoch counts.
pub(crate) fn bound<'a>(
    network: &'a NetworkId,
    node: &'a NodeId,
    attested_key: [u8; 32],
    reference: &EvidenceRef,
    clock: EpochClock,
) -> (NodeBinding<'a>, (UnixTime, UnixTime)) {
    let binding = NodeBinding {
        network,
        node,
        attested_key,
        policy: reference.policy.0,
        freshness: Freshness::Epoch(reference.epoch.into()),
    };
    let epoch = Epoch(reference.epoch);
    let end = clock.start(epoch.next()).plus_s(LIFE_AFTER_EPOCH_S);
    (binding, (clock.start(epoch), end))
}

/// Holds a claim against its evidence at `now`. `read` gives a piece by its digest; `cache` trusts what the caller trusts.
pub(crate) fn examine(
    claim: &Claim,
    read: impl Fn(&Digest) -> Option<Vec<u8>>,
    cache: &mut VerifiedCache,
    now: UnixTime,
) -> Outcome {
    match sound(claim, read, cache, now) {
        Ok(Some(answer)) => Outcome::Sound(answer),
        Ok(None) => Outcome::Absent,
        Err(flaw) => Outcome::Flawed(flaw),
    }
}

fn sound(
    claim: &Claim,
    read: impl Fn(&Digest) -> Option<Vec<u8>>,
    cache: &mut VerifiedCache,
    now: UnixTime,
) -> Result<Option<Answer>, Flaw> {
    let reference = &claim.reference;
    let claimed = reference
        .claimed()
        .ok_or(Flaw::UnknownKind(reference.kind))?;
    let (evidence, collateral) = claim.names().ok_or(Flaw::NoCollateral)?;
    claim.dated(now)?;
    let names = (EvidenceDigest(evidence.0), CollateralDigest(collateral.0));
    let answer = match cache.get(names.0, names.1, now) {
        Some(answer) => answer,
        None => {
            let (Some(evidence), Some(collateral)) = (read(&evidence), read(&collateral)) else {
                return Ok(None);
            };
            let bundle = parse(&evidence, &collateral)?;
            // The bytes have these digests already; what was parsed must be all of them.
            if (bundle.evidence.digest(), bundle.collateral.digest()) != names {
                return Err(Flaw::Form);
            }
            cache.verify(&bundle.evidence, &bundle.collateral, now)
        }
    };
    let verified = answer
        .as_ref()
        .as_ref()
        .map_err(|r| Flaw::Refused(r.clone()))?;
    let found = verified.kind();
    if market_tee(found) != claimed {
        return Err(Flaw::OtherKind { claimed, found });
    }
    if verified.report_data() != claim.report_data {
        return Err(Flaw::OtherBinding);
    }
    Ok(Some(answer))
}

fn parse(evidence: &[u8], collateral: &[u8]) -> Result<Bundle, Flaw> {
    let evidence = Evidence::parse(evidence).map_err(Flaw::Refused)?;
    let collateral = Collateral::from_bytes(evidence.tee(), collateral).map_err(Flaw::Refused)?;
    Ok(Bundle {
        evidence,
        collateral,
    })
}

#[cfg(test)]
mod tests;
