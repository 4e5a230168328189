//! Which providers of a market can carry a lease, and in which order they are worth asking.
//!
//! Threat: a choice that everybody makes the same way can be bought by one provider that is a little cheaper and
//! watches who comes. So the order is by price, and who rents may draw among the first few.
//!
//! Amounts of different assets cannot be held against each other: what is free comes first, then what is asked in the asset that most
//! candidates ask for.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use souk_crypto::{IssuerPublicKey, NodeId};

use crate::{
    capacity::Level,
    card::{Policy, Role, VerifiedCard},
    price::MAX_EXPONENT,
    quorum::{Market, MarketCard},
    units::{Arch, Asset, DurationS, ImageHash, Limits, Money, Resources, Tee},
};

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What is to run.
    pub image: ImageHash,
    /// How much of a machine.
    pub resources: Resources,
    /// How long.
    pub duration: DurationS,
    /// Limits that must be enforced.
    pub required: Limits,
    /// On which architecture; any where absent.
    pub arch: Option<Arch>,
    /// Whether a kernel that is shared with others will do.
    pub shared_kernel: bool,
    /// The most that it may cost, and in which asset; a free lease fits any.
    pub max_total: Option<(Asset, Money)>,
    /// Who vouches for the requester; nobody where absent.
    pub issuer: Option<IssuerPublicKey>,
    /// Only this provider.
    pub provider: Option<NodeId>,
    /// Only one of these, whose evidence was accepted; any where absent.
    pub attested: Option<BTreeSet<NodeId>>,
    /// The instance has to bring evidence of one of these; of none where absent.
    pub tees: Option<BTreeSet<Tee>>,
}

/// A provider that can carry it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Its card.
    pub card: Arc<VerifiedCard>,
    /// Which offer of the card.
    pub offer: usize,
    /// Which size class of the offer: the smallest that holds the lease.
    pub class: usize,
    /// How much room it says it has; `None` where it has not said.
    pub level: Option<Level>,
    /// What it costs.
    pub price: Money,
    /// Bits of work that it asks for.
    pub work_bits: u8,
}

/// Why a provider is none, so that somebody who finds no match learns what to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mismatch {
    /// Its evidence was not accepted, or it has none.
    Evidence,
    /// It does not have the image.
    Image,
    /// No offer of it is of this architecture.
    Arch,
    /// It is too large for every offer.
    Size,
    /// No fitting offer enforces the limits.
    Limits,
    /// The instances of the fitting offers bring no evidence that is accepted.
    Tee,
    /// The fitting offers share the kernel of the host.
    SharedKernel,
    /// It says that it has no room.
    Full,
    /// It costs more, or is priced in another asset.
    Price,
    /// It serves nobody but the holders of a voucher from an issuer that it lists, and this is none.
    Policy,
    /// It is larger or longer than what it gives to somebody without a voucher.
    Anonymous,
}

impl Mismatch {
    /// What is wrong with such a provider, for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evidence => "without evidence that the policy accepts",
            Self::Image => "without the image",
            Self::Arch => "of another architecture",
            Self::Size => "too small",
            Self::Limits => "that do not enforce a required limit",
            Self::Tee => "whose instances bring no evidence of an accepted kind",
            Self::SharedKernel => "with a shared kernel",
            Self::Full => "full",
            Self::Price => "too expensive",
            Self::Policy => "that serve holders of a grant from a listed issuer only",
            Self::Anonymous => {
                "that lease less, or for a shorter time, to somebody without a grant"
            }
        }
    }
}

impl Candidate {
    /// In which asset it costs anything.
    fn asset(&self) -> Option<&Asset> {
        let prices = self.card.prices.as_ref();
        prices.filter(|_| self.price.0 > 0).map(|p| &p.asset)
    }

    /// What it costs in the finest unit that an asset can have.
    fn amount(&self) -> u128 {
        let exponent = self.card.prices.as_ref().map_or(0, |p| p.exponent);
        let finest = u32::from(MAX_EXPONENT.saturating_sub(exponent));
        u128::from(self.price.0).saturating_mul(10_u128.pow(finest))
    }

    /// Whether both cost the same.
    #[must_use]
    pub fn costs_as_much_as(&self, other: &Self) -> bool {
        (self.asset(), self.amount()) == (other.asset(), other.amount())
    }
}

/// The candidates of a market, the cheapest and emptiest first; and why the other providers are none.
#[must_use]
pub fn candidates(market: &Market, wanted: &Wanted) -> (Vec<Candidate>, Vec<(NodeId, Mismatch)>) {
    let mut found = Vec::new();
    let mut others = Vec::new();
    for listed in &market.cards {
        let named = wanted
            .provider
            .is_none_or(|provider| provider == listed.card.node);
        if !named || !listed.card.has_role(Role::Provider) {
            continue;
        }
        match candidate(listed, wanted) {
            Ok(candidate) => found.push(candidate),
            Err(why) => others.push((listed.card.node, why)),
        }
    }
    let mut asking = BTreeMap::<_, usize>::new();
    for candidate in &found {
        *asking.entry(candidate.asset().cloned()).or_default() += 1;
    }
    found.sort_by_cached_key(|c| {
        let asset = c.asset().cloned();
        let asked = Reverse(asking[&asset]);
        (
            asset.is_some(),
            asked,
            asset,
            c.amount(),
            Reverse(c.level),
            c.card.node,
        )
    });
    (found, others)
}

fn candidate(listed: &MarketCard, wanted: &Wanted) -> Result<Candidate, Mismatch> {
    let card = &listed.card;
    let attested = |nodes: &BTreeSet<NodeId>| nodes.contains(&card.node);
    if !wanted.attested.as_ref().is_none_or(attested) {
        return Err(Mismatch::Evidence);
    }
    if !card.images.iter().any(|image| image.hash == wanted.image) {
        return Err(Mismatch::Image);
    }
    let price = price(card, wanted)?;
    let work_bits = admits(&card.policy, wanted);
    let mut closest = Mismatch::Arch;
    for (index, offer) in card.offers.iter().enumerate() {
        let fitting = offer
            .classes
            .iter()
            .position(|class| wanted.resources.fits_in(class));
        let level = fitting.and_then(|class| listed.level(index, class));
        let mismatch = if wanted.arch.as_ref().is_some_and(|arch| *arch != offer.arch) {
            Mismatch::Arch
        } else if fitting.is_none() {
            Mismatch::Size
        } else if !wanted.required.missing_from(offer.enforced).is_empty() {
            Mismatch::Limits
        } else if !wanted
            .tees
            .as_ref()
            .is_none_or(|tees| proves(tees, offer.tee))
        {
            Mismatch::Tee
        } else if offer.shared_kernel && !wanted.shared_kernel {
            Mismatch::SharedKernel
        } else if let Err(why) = work_bits {
            why
        } else if level == Some(Level::None) {
            Mismatch::Full
        } else {
            let (class, work_bits) = (fitting.expect("checked above"), work_bits?);
            let card = Arc::clone(card);
            return Ok(Candidate {
                card,
                offer: index,
                class,
                level,
                price,
                work_bits,
            });
        };
        closest = closest.max(mismatch);
    }
    Err(closest)
}

fn proves(tees: &BTreeSet<Tee>, tee: Tee) -> bool {
    tee != Tee::None && tees.contains(&tee)
}

fn price(card: &VerifiedCard, wanted: &Wanted) -> Result<Money, Mismatch> {
    let Some(prices) = &card.prices else {
        return Ok(Money(0));
    };
    let price = prices
        .charge(&wanted.resources, wanted.duration)
        .ok_or(Mismatch::Price)?;
    let allowed = match &wanted.max_total {
        None => true,
        Some((asset, most)) => price.0 == 0 || (*asset == prices.asset && price <= *most),
    };
    if allowed {
        Ok(price)
    } else {
        Err(Mismatch::Price)
    }
}

/// Bits of work that the requester has to do.
fn admits(policy: &Policy, wanted: &Wanted) -> Result<u8, Mismatch> {
    if let Some(issuer) = &wanted.issuer {
        let listed = policy.issuers.contains(issuer);
        return listed.then_some(0).ok_or(Mismatch::Policy);
    }
    let limits = policy
        .anonymous
        .filter(|limits| limits.max_concurrent > 0 && limits.max_per_hour > 0)
        .ok_or(Mismatch::Policy)?;
    let fits =
        wanted.duration <= limits.max_duration && wanted.resources.fits_in(&limits.max_resources);
    fits.then_some(limits.work_bits).ok_or(Mismatch::Anonymous)
}
