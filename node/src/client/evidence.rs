//! Whether nodes are what their cards claim, by the requester's policy.
//!
//! ```text
//!  cards of the market ─► wanted ─► all here? ── no ──► everything that one entry has, then the next
//!                                      │ yes                    │ by digest, on the disk
//!                                      └──► examine ─► policy ─► Judgement of each node
//! ```
//!
//! Threats: an entry that learns whom this client looks at (it takes all evidence of the market or none, and what it has already
//! decides only whether it asks at all); an entry that keeps evidence back (the next one is asked, and what is missing is refused
//! by name); evidence that fills the disk (bounded, and shared out by the part of the network that a card claims).

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::seq::SliceRandom as _;
use souk_attest::{Expected, Policy, Verdict, VerifiedCache};
use souk_crypto::{NodeId, UnixTime};
use souk_market::{
    card::VerifiedCard,
    quorum::Market,
    shares::Source,
    units::{Digest, Tee},
};
use souk_sphinx::EpochClock;
use tokio::time::timeout;

use super::{ClientConfig, StateError, state::Home};
use crate::{
    attest::{
        Claim, Outcome, Pieces, PolicyError, Wanted, examine, fetch, market_tee, read_policy,
    },
    net::Client as NetClient,
};

/// The folder of pieces in that of the client.
const PIECES: &str = "pieces";

/// Entries that are asked for evidence.
const ASKED: usize = 3;

/// An entry that has not sent everything within this time is done without.
const WITHIN: Duration = Duration::from_secs(60);

/// What a requester asks of providers and mixes.
#[derive(Clone, Debug)]
pub struct EvidencePolicy {
    /// The file that says what is accepted. It is read when it is needed: what does without it works also where it is gone.
    pub policy: PathBuf,
    /// Routes lead over nodes only that it accepts.
    pub attested_mixes: bool,
}

impl EvidencePolicy {
    /// Reads what is accepted. The folder `home` of the client remembers the serials of signed reference values.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn read(&self, home: &Path) -> Result<Policy, PolicyError> {
        read_policy(&self.policy, home)
    }
}

/// Why nodes could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// No policy is named.
    #[error("no policy says which evidence is accepted")]
    NoPolicy,
    /// The folder for evidence.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a policy says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is what its card claims.
    Accepted {
        /// What its evidence proves.
        kind: Tee,
    },
    /// It is not believed.
    Refused {
        /// What its evidence proves; `None` where it does not hold at all.
        kind: Option<Tee>,
        /// The name of the first reason.
        reason: &'static str,
        /// What was found.
        why: String,
    },
}

impl Judgement {
    /// Whether the node is believed.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Accepted { .. })
    }

    pub(super) fn refused(kind: Option<Tee>, reason: &'static str, why: impl Into<String>) -> Self {
        let why = why.into();
        Self::Refused { kind, reason, why }
    }
}

/// What a policy says of the nodes of a market. Who names no evidence is not in it, and not believed.
#[derive(Clone, Debug, Default)]
pub struct Judgements(BTreeMap<NodeId, Judgement>);

impl Judgements {
    /// What is said of a node; `None` where its card names no evidence.
    #[must_use]
    pub fn of(&self, node: &NodeId) -> Option<&Judgement> {
        self.0.get(node)
    }

    /// Nodes that are believed.
    pub fn accepted(&self) -> impl Iterator<Item = NodeId> + '_ {
        let accepted = self
            .0
            .iter()
            .filter(|(_, judgement)| judgement.is_accepted());
        accepted.map(|(node, _)| *node)
    }
}

/// Gets the evidence of a market; what no entry has is missing in the end.
async fn gather(
    net: &NetClient,
    config: &ClientConfig,
    home: &Home,
    market: &Market,
) -> Result<Arc<Pieces>, StateError> {
    let clock = EpochClock::of(&config.params);
    let mut wanted = Wanted::new();
    for card in market.cards.iter().map(|listed| &listed.card) {
        let names = Claim::of_card(card, &config.network, clock).filter_map(|claim| claim.names());
        let source = Source::Neighbour(claimed_part(card));
        wanted.extend(names.flat_map(|(e, c)| [e, c]).map(|name| (name, source)));
    }
    let pieces = Arc::new(kept(home)?);
    pieces.keep(&wanted);
    let wanted = Arc::new(wanted);
    let mut entries = config.entries.clone();
    entries.shuffle(&mut rand::rng());
    for entry in entries.iter().take(ASKED) {
        if pieces.missing(&wanted, 1).is_empty() {
            break;
        }
        let address = [entry.address().clone()];
        let taken = timeout(WITHIN, async {
            net.peers().connect(entry.node(), &address).await.ok()?;
            fetch(net.peers(), entry.node(), None, (&pieces, &wanted))
                .await
                .ok()
        });
        if !matches!(taken.await, Ok(Some(_))) {
            tracing::debug!("an entry did not send all evidence");
        }
    }
    Ok(pieces)
}

/// The evidence that was fetched before.
pub(super) fn kept(home: &Home) -> Result<Pieces, StateError> {
    let folder = home.folder(&[PIECES])?;
    Pieces::open(&folder).map_err(|source| StateError::Io {
        doing: "open",
        path: folder,
        source,
    })
}

/// Gets the evidence of a market, and judges each node by `policy`.
pub(super) async fn judge(
    net: &NetClient,
    config: &ClientConfig,
    home: &Home,
    market: &Market,
    policy: Policy,
    now: UnixTime,
) -> Result<Judgements, StateError> {
    let pieces = gather(net, config, home, market).await?;
    let clock = EpochClock::of(&config.params);
    let cards: Vec<_> = market
        .cards
        .iter()
        .map(|listed| Arc::clone(&listed.card))
        .collect();
    let network = config.network.clone();
    let judged = tokio::task::spawn_blocking(move || {
        let mut cache = VerifiedCache::new(policy.trust());
        let mut all = BTreeMap::new();
        for card in cards {
            let best = Claim::of_card(&card, &network, clock)
                .map(|claim| judge_one(&claim, |name| pieces.get(name), &mut cache, &policy, now))
                // Of several, one that is accepted counts, and else the first.
                .reduce(|first, next| {
                    if first.is_accepted() || !next.is_accepted() {
                        first
                    } else {
                        next
                    }
                });
            if let Some(judgement) = best {
                all.insert(card.node, judgement);
            }
        }
        Judgements(all)
    });
    Ok(judged.await.expect("verification does not panic"))
}

pub(super) fn judge_one(
    claim: &Claim,
    read: impl Fn(&Digest) -> Option<Vec<u8>>,
    cache: &mut VerifiedCache,
    policy: &Policy,
    now: UnixTime,
) -> Judgement {
    let answer = match examine(claim, read, cache, now) {
        Outcome::Absent => {
            return Judgement::refused(None, "evidence-missing", "nobody has sent the evidence");
        }
        Outcome::Flawed(flaw) => {
            return Judgement::refused(None, flaw.reason(), flaw.to_string());
        }
        Outcome::Sound(answer) => answer,
    };
    let Ok(verified) = answer.as_ref() else {
        unreachable!("what is sound has verified");
    };
    let expected = Expected {
        report_data: Some(claim.report_data),
    };
    let kind = market_tee(verified.kind());
    let decision = policy.decide(verified, expected, now);
    let first = decision.lines().iter().find_map(|line| match line.verdict {
        Verdict::Refused(reason) => Some((reason, format!("{}: {}", line.check, line.found))),
        Verdict::Accepted | Verdict::NotAsked => None,
    });
    match first {
        None if decision.is_accepted() => Judgement::Accepted { kind },
        None => Judgement::refused(Some(kind), "nothing-checked", "the policy checks nothing"),
        Some((reason, why)) => Judgement::refused(Some(kind), reason, why),
    }
}

/// The part of the network that a card claims to be in: /16 of IPv4, /32 of IPv6.
fn claimed_part(card: &VerifiedCard) -> u64 {
    match card.addresses.first().map(|address| address.ip) {
        None => 0,
        Some(IpAddr::V4(ip)) => u64::from(ip.to_bits() >> 16) + 1,
        Some(IpAddr::V6(ip)) => u64::try_from(ip.to_bits() >> 96).unwrap_or(0) | 1 << 40,
    }
}

#[cfg(test)]
mod tests;
