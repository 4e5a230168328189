//! What the control API shows of a running node, and its metrics: one reading for both.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use libp2p::PeerId;
use souk_backend::LeaseId;
use souk_crypto::{NetworkId, NodeId, Signed, UnixTime, with_causes};
use souk_market::{
    account::Ledger,
    card::{Role, VerifiedCard},
    price::{MAX_EXPONENT, Prices},
    retirement::Succession,
    standing::Standing,
    units::{self, BackendName, Meter},
};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    directory::{Cards, Listed},
    rivals::Rivals,
    snapshot,
    standing::{ChangeError, Desk},
};
use crate::{
    attest::{Finding, Verifier},
    clock::unix_ms,
    control::{
        ChangeRefused, EndError, Happening, Happenings, Operations, PauseError, ReapError, v1,
    },
    mix::MixCounters,
    net::{self, NodeAddress, Peers, node_id, peer_id},
    provider::{Findings, LeaseView, OrphanView, PauseRefused, Provider},
    unix_now,
};

/// A card is made and written within this time, or not at all for now.
const REFRESH_PATIENCE: Duration = Duration::from_secs(5);

/// The running node, as its operator sees it.
pub(super) struct Running {
    pub(super) network: NetworkId,
    pub(super) roles: Vec<Role>,
    pub(super) started: UnixTime,
    pub(super) peers: Peers,
    pub(super) net: net::Node,
    pub(super) cards: Arc<Cards>,
    pub(super) own: watch::Receiver<Option<Arc<VerifiedCard>>>,
    /// Whether another node makes cards of this one.
    pub(super) rivals: watch::Receiver<Rivals>,
    pub(super) mix: Arc<MixCounters>,
    /// The provider, once it works.
    pub(super) provider: watch::Receiver<Option<Provider>>,
    /// Why nothing is signed of the usage log, while that is so.
    pub(super) refusal: watch::Receiver<Option<String>>,
    /// Why there is no new evidence of this node, while that is so.
    pub(super) unattested: watch::Receiver<Option<String>>,
    pub(super) verifier: Verifier,
    pub(super) metrics: Arc<prometheus_client::registry::Registry>,
    /// How the node stands to new leases.
    pub(super) desk: Arc<Desk>,
    /// What each hop adds on average.
    pub(super) mean_delay: Duration,
    /// What closed leases brought and cost.
    pub(super) account: watch::Receiver<Option<Arc<Ledger>>>,
    /// What the provider asks.
    pub(super) prices: Prices,
    /// What happened last.
    pub(super) happenings: Arc<Happenings>,
    /// Tells the publisher to make a new card.
    pub(super) refresh: Arc<Notify>,
    /// Somebody asked the node to stop.
    pub(super) asked: CancellationToken,
}

impl Running {
    /// Where others reach this node, as its card says.
    pub(super) fn addresses(&self) -> Vec<NodeAddress> {
        let own = self.own.borrow();
        let card = own.iter();
        card.flat_map(|card| {
            card.addresses
                .iter()
                .map(|address| (card.node, super::directory::multiaddr(address)))
        })
        .filter_map(|(node, address)| NodeAddress::new(node, address).ok())
        .collect()
    }

    pub(super) fn open_leases(&self) -> Vec<LeaseView> {
        let provider = self.provider.borrow().clone();
        provider.as_ref().map(Provider::leases).unwrap_or_default()
    }

    /// The offers of these cards, with what is known against their nodes.
    pub(super) fn offers_of<'a>(&self, cards: impl Iterator<Item = &'a Listed>) -> Vec<v1::Offer> {
        let contradictions = self.cards.contradictions();
        cards
            .flat_map(|(card, capacity)| {
                let capacity = capacity.as_deref().map(|verified| &**verified);
                let against = contradictions.iter().find(|c| c.node() == card.node);
                let warning = against.map(|evidence| evidence.how().to_string());
                offers(card, capacity, warning)
            })
            .collect()
    }

    /// What the operator should look at: of this node alone, as whoever brings a node about could write it full otherwise.
    fn warnings(&self, peers: u32, evidence: Option<String>) -> Vec<String> {
        let mut warnings: Vec<_> = self.cards.clock_warning().into_iter().collect();
        warnings.extend(self.rivals.borrow().warning(unix_now()));
        warnings.extend(self.cards.log_warning());
        warnings.extend(evidence);
        let refusal = self.refusal.borrow();
        warnings.extend(refusal.iter().map(|why| {
            format!("no checkpoints are signed, and leases go on without their proofs: {why}")
        }));
        let unattested = self.unattested.borrow();
        warnings.extend(unattested.iter().map(|why| {
            format!("this node has no new evidence, and its card will name none once what it names is over: {why}")
        }));
        let standing = self.desk.standing().borrow().clone();
        match &standing {
            Standing::Open => {}
            Standing::Draining(_) => warnings.push(
                "this node takes no new leases: it was told to drain; `souk node resume` takes them again"
                    .to_owned(),
            ),
            Standing::Retiring(..) => warnings.push(
                "this node takes no new leases and retires when the last has ended; `souk node resume` takes that back"
                    .to_owned(),
            ),
            Standing::Retired(_) => warnings.push(
                "this node has retired: it runs only to tell so, and can be stopped in a few days"
                    .to_owned(),
            ),
        }
        let own = self.own.borrow().clone();
        match own.map(|card| card.addresses.is_empty()) {
            None if !matches!(standing, Standing::Retired(_)) => warnings.push(
                "this node has no address that others can dial; set node.listen or node.external"
                    .to_owned(),
            ),
            Some(true) => warnings.push(
                "this node has no address that others can dial: it sells over the links that it dials itself, nobody can read its usage log as a whole, and it has no other role; node.external names an address"
                    .to_owned(),
            ),
            _ => {}
        }
        if peers == 0 {
            warnings.push("no other node is connected; check node.bootstrap".to_owned());
        }
        warnings
    }
}

#[async_trait]
impl Operations for Running {
    async fn status(&self) -> v1::StatusReply {
        let info = self.peers.info().await;
        let peers = u32::try_from(info.peers).unwrap_or(u32::MAX);
        let provider = self.provider.borrow().clone();
        let mix = self.mix.all().map(|(name, _, value)| counter(name, value));
        let found = self.verifier.found();
        let (own_evidence, evidence_of_others) = evidence_words(self.peers.local(), found);
        let mut others = self.cards.unreliable();
        others.extend(evidence_of_others);
        v1::StatusReply {
            node_id: peer_id(&self.peers.local()).to_string(),
            network_id: self.network.to_string(),
            started_unix_s: self.started.0,
            roles: self
                .roles
                .iter()
                .map(|role| role.as_str().to_owned())
                .collect(),
            addresses: self.addresses().iter().map(ToString::to_string).collect(),
            peers,
            cards: u32::try_from(self.cards.all().len()).unwrap_or(u32::MAX),
            mix: mix.collect(),
            leases: u32::try_from(self.open_leases().len()).unwrap_or(u32::MAX),
            refusals: provider.as_ref().map(refusals).unwrap_or_default(),
            log: provider.as_ref().map(log_status),
            warnings: self.warnings(peers, own_evidence),
            standing: self.desk.standing().borrow().as_str().to_owned(),
            others,
            provider: provider.as_ref().map(counters).unwrap_or_default(),
        }
    }

    async fn offers(&self) -> Vec<v1::Offer> {
        self.offers_of(self.cards.all().iter())
    }

    async fn leases(&self) -> Vec<v1::Lease> {
        self.open_leases().into_iter().map(lease).collect()
    }

    async fn orphans(&self) -> Option<v1::OrphansReply> {
        let provider = self.provider.borrow().clone()?;
        let mut reply = v1::OrphansReply::default();
        for (backend, found) in provider.findings() {
            reply
                .orphans
                .extend(found.orphans.iter().map(|o| orphan(&backend, o)));
            reply.backends.push(backend_state(&backend, &found));
        }
        Some(reply)
    }

    async fn end(&self, lease: LeaseId) -> Result<(), EndError> {
        let provider = self.provider.borrow().clone().ok_or(EndError::NotNow)?;
        match provider.withdraw(units::LeaseId(lease.0)).await {
            true => Ok(()),
            false => Err(EndError::NoSuchLease(lease)),
        }
    }

    fn standing(&self) -> v1::StandingReply {
        let standing = self.desk.standing().borrow().clone();
        let leases = self.open_leases();
        let provider = self.provider.borrow().clone();
        let last_closed = provider.as_ref().and_then(Provider::last_closed);
        v1::StandingReply {
            standing: standing.as_str().to_owned(),
            since_unix_s: standing.leaving().map(|leaving| leaving.since.0),
            deadline_unix_s: standing.deadline().map(|deadline| deadline.0),
            open_leases: u32::try_from(leases.len()).unwrap_or(u32::MAX),
            last_valid_to_unix_s: leases.iter().map(|lease| lease.valid_to.0).max(),
            last_closed_unix_s: last_closed.map(|at| at.0),
        }
    }

    async fn drain(&self, request: v1::DrainRequest) -> Result<(), ChangeRefused> {
        if !self.roles.contains(&Role::Provider) {
            return Err(ChangeRefused::NoProvider);
        }
        let deadline = request.deadline_unix_s.map(UnixTime);
        self.desk.drain(deadline).await.map_err(refused)
    }

    async fn resume(&self) -> Result<(), ChangeRefused> {
        self.desk.resume().await.map_err(refused)
    }

    async fn retire(&self, request: v1::RetireRequest) -> Result<(), ChangeRefused> {
        let deadline = request.deadline_unix_s.map(UnixTime);
        let successor = request.successor.map(successor).transpose()?;
        let waits = self.roles.contains(&Role::Provider) && self.provider.borrow().is_none();
        if waits {
            return Err(ChangeRefused::NotYet);
        }
        let retired = self.desk.retire(deadline, successor).await;
        retired.map_err(refused)
    }

    fn agree(&self, request: v1::AgreeRequest) -> Result<v1::AgreeReply, ChangeRefused> {
        let old = named(&request.node_id)?;
        if old == self.peers.local() {
            return Err(ChangeRefused::OwnSuccessor);
        }
        let agreement = self.desk.agree(old).map_err(refused)?;
        Ok(v1::AgreeReply {
            agreement: agreement.as_bytes().to_vec(),
        })
    }

    async fn snapshot(&self) -> v1::Snapshot {
        snapshot::snapshot(self).await
    }

    fn happenings(&self) -> &Happenings {
        &self.happenings
    }

    async fn refresh_card(&self) -> Result<(), ChangeRefused> {
        if matches!(*self.desk.standing().borrow(), Standing::Retired(_)) {
            return Err(ChangeRefused::Retired);
        }
        let mut own = self.own.clone();
        own.mark_unchanged();
        self.refresh.notify_one();
        match timeout(REFRESH_PATIENCE, own.changed()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(ChangeRefused::NoCard),
        }
    }

    async fn pause_backend(&self, backend: BackendName, paused: bool) -> Result<(), PauseError> {
        let provider = self.provider.borrow().clone().ok_or(PauseError::NotNow)?;
        let was = provider.is_paused(&backend);
        let done = provider.pause(&backend, paused).await;
        done.map_err(|error| match error {
            PauseRefused::NoSuchBackend(backend) => PauseError::NoSuchBackend(backend),
            PauseRefused::Store(error) => PauseError::NotWritten(with_causes(&error)),
        })?;
        if was != paused {
            self.happenings
                .note(unix_ms(), Happening::Paused { backend, paused });
        }
        Ok(())
    }

    async fn reap(&self, backend: BackendName, lease: LeaseId) -> Result<(), ReapError> {
        let provider = self.provider.borrow().clone().ok_or(ReapError::NotNow)?;
        match provider.reap(&backend, units::LeaseId(lease.0)) {
            true => Ok(()),
            false => Err(ReapError::NoSuchOrphan { backend, lease }),
        }
    }

    fn metrics(&self) -> String {
        crate::metrics::text(&self.metrics)
    }

    fn shutdown(&self) {
        self.asked.cancel();
    }
}

/// So many other nodes with bad evidence are told of; the metric counts the rest.
const MAX_WITH_BAD_EVIDENCE: usize = 8;

/// What is to be said about evidence that does not hold by the fault of its node: about that of this one, and about others.
fn evidence_words(local: NodeId, found: Vec<(NodeId, Finding)>) -> (Option<String>, Vec<String>) {
    let (own, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(node, _)| *node == local);
    let why = |finding: &Finding| {
        finding.flaw.as_ref().map_or_else(
            || "it held the last time".to_owned(),
            |flaw| format!("{}: {flaw}", flaw.reason()),
        )
    };
    // Evidence that only others accept is no fault of a neighbour. Of one's own it is worth knowing.
    let own = own
        .iter()
        .find(|(_, finding)| finding.bad > 0 || finding.flaw.is_some())
        .map(|(_, finding)| {
            let why = why(finding);
            format!("the evidence of this node does not hold: {why}")
        });
    let bad = others.iter().filter(|(_, finding)| finding.bad > 0);
    let told = bad.take(MAX_WITH_BAD_EVIDENCE).map(|(node, finding)| {
        format!(
            "provider {} published evidence that does not hold ({} times): {}",
            peer_id(node),
            finding.bad,
            why(finding)
        )
    });
    (own, told.collect())
}

fn successor(successor: v1::Successor) -> Result<(NodeId, Signed<Succession>), ChangeRefused> {
    let agreement = Signed::from_bytes(&successor.agreement).map_err(ChangeRefused::Agreement)?;
    Ok((named(&successor.node_id)?, agreement))
}

/// The node of a peer id that was typed.
fn named(text: &str) -> Result<NodeId, ChangeRefused> {
    let peer: Option<PeerId> = text.parse().ok();
    peer.and_then(|peer| node_id(&peer))
        .ok_or_else(|| ChangeRefused::NoPeerId(text.to_owned()))
}

fn refused(error: ChangeError) -> ChangeRefused {
    ChangeRefused::Change(Box::new(error))
}

pub(super) fn lease(view: LeaseView) -> v1::Lease {
    v1::Lease {
        lease: view.lease.to_string(),
        state: view.state.as_str().to_owned(),
        cpu_millicores: view.resources.cpu_millicores,
        memory_mib: view.resources.memory_mib,
        valid_to_unix_s: view.valid_to.0,
        anonymous: view.anonymous,
        backend: view.backend.to_string(),
        accepted_unix_s: view.accepted_at.0,
        usage: Some(v1::Usage {
            cpu_core_ms: meter(view.usage.cpu_core_ms),
            memory_mib_s: meter(view.usage.memory_mib_s),
            net_rx_bytes: meter(view.usage.net_rx_bytes),
            net_tx_bytes: meter(view.usage.net_tx_bytes),
        }),
    }
}

fn meter(meter: Meter) -> Option<v1::Meter> {
    let (value, at_least) = match meter {
        Meter::Known(value) => (value, false),
        Meter::AtLeast(value) => (value, true),
        Meter::Unknown => return None,
    };
    Some(v1::Meter { value, at_least })
}

pub(super) fn backend_state(backend: &BackendName, found: &Findings) -> v1::BackendState {
    let (instances, listed_ago_s) = found
        .listed
        .map(|(count, age)| (u64::try_from(count).unwrap_or(u64::MAX), age.as_secs()))
        .unzip();
    v1::BackendState {
        backend: backend.to_string(),
        instances,
        listed_ago_s,
        failures: found.failures,
        error: found.error.clone().unwrap_or_default(),
    }
}

fn orphan(backend: &BackendName, orphan: &OrphanView) -> v1::Orphan {
    v1::Orphan {
        lease: orphan.lease.to_string(),
        backend: backend.to_string(),
        reason: orphan.reason.as_str().to_owned(),
        state: orphan.state.to_owned(),
        age_s: orphan.age.as_secs(),
        failed: orphan.failed,
    }
}

fn counter(name: &str, value: u64) -> v1::Counter {
    v1::Counter {
        name: name.to_owned(),
        value,
    }
}

fn refusals(provider: &Provider) -> Vec<v1::Counter> {
    let totals = provider.refusals();
    totals
        .iter()
        .map(|(reason, value)| counter(reason.as_str(), value))
        .collect()
}

fn counters(provider: &Provider) -> Vec<v1::Counter> {
    let counters = provider.counters();
    [
        ("replies", &counters.replies),
        ("unanswered", &counters.unanswered),
        ("unreadable", &counters.unreadable),
        ("strays", &counters.strays),
        ("dropped", &counters.dropped),
    ]
    .map(|(name, total)| counter(name, total.load(Ordering::Relaxed)))
    .into()
}

fn log_status(provider: &Provider) -> v1::LogStatus {
    let head = *provider.head().borrow();
    v1::LogStatus {
        size: head.size,
        root: head.root.to_string(),
    }
}

/// The offers of a card, one for each backend.
pub(super) fn offers<'a>(
    card: &'a VerifiedCard,
    capacity: Option<&'a souk_market::capacity::Capacity>,
    warning: Option<String>,
) -> impl Iterator<Item = v1::Offer> + 'a {
    card.offers.iter().enumerate().map(move |(at, offer)| {
        let largest = offer.classes.last();
        let level = capacity.and_then(|capacity| capacity.level(at, 0));
        let prices = card.prices.as_ref();
        let price = prices.map_or_else(
            || "free".to_owned(),
            |prices| format!("{} a core and hour", prices.display(prices.core_hour)),
        );
        v1::Offer {
            node_id: peer_id(&card.node).to_string(),
            arch: offer.arch.to_string(),
            cpu_millicores: largest.map_or(0, |class| class.cpu_millicores),
            memory_mib: largest.map_or(0, |class| class.memory_mib),
            price,
            capacity: level.map_or_else(String::new, |level| level.as_str().to_owned()),
            shared_kernel: offer.shared_kernel,
            anonymous: card.policy.anonymous.is_some(),
            enforced: offer
                .enforced
                .iter()
                .map(|limit| limit.as_str().to_owned())
                .collect(),
            images: card
                .images
                .iter()
                .map(|image| image.hash.to_string())
                .collect(),
            expires_unix_s: card.to.0,
            warning: warning.clone(),
            asset: prices.map_or_else(String::new, |prices| prices.asset.to_string()),
            core_hour: core_hour(prices).to_string(),
        }
    })
}

/// The price of a core and hour in the finest unit that an asset can have: cards may give one asset different decimal places.
pub(super) fn core_hour(prices: Option<&Prices>) -> u128 {
    prices.map_or(0, |prices| {
        let finer = MAX_EXPONENT.saturating_sub(prices.exponent);
        // 2^64 · 10^18 is below 2^128.
        u128::from(prices.core_hour.0) * 10_u128.pow(finer.into())
    })
}

#[cfg(test)]
mod tests {
    use souk_crypto::NodeKey;
    use souk_market::{
        price::Rounding,
        units::{DurationS, Money},
    };

    use super::*;

    #[test]
    fn bad_evidence_of_strangers_is_told_apart_from_that_of_this_node_and_does_not_push_it_out() {
        let finding = |bad| Finding {
            names: None,
            flaw: None,
            bad,
            at: UnixTime(0),
        };
        let node = || NodeKey::generate(&mut rand::rng()).public();
        let local = node();
        let mut found: Vec<_> = (0..20).map(|_| (node(), finding(3))).collect();
        let (own, others) = evidence_words(local, found.clone());
        assert_eq!((own, others.len()), (None, MAX_WITH_BAD_EVIDENCE));
        found.push((local, finding(1)));
        let (own, told) = evidence_words(local, found);
        let own = own.expect("it is told");
        assert!(own.contains("the evidence of this node"), "{own}");
        assert_eq!(told, others);
        assert_eq!(
            evidence_words(local, vec![(node(), finding(0))]),
            (None, Vec::new())
        );
    }

    #[test]
    fn one_price_is_the_same_with_whatever_decimal_places_it_is_told() {
        let of = |exponent, amount| Prices {
            asset: "EUR".parse().expect("an asset"),
            exponent,
            core_hour: Money(amount),
            memory_gib_hour: Money(0),
            disk_gib_hour: Money(0),
            increment: DurationS(1),
            minimum: DurationS(1),
            rounding: Rounding::Up,
        };
        let price = |exponent, amount| core_hour(Some(&of(exponent, amount)));
        assert_eq!(price(2, 150), price(6, 1_500_000));
        assert!(price(6, 9_000) < price(2, 1));
        assert!(price(0, u64::MAX) > price(1, u64::MAX), "it fits");
        assert_eq!(core_hour(None), 0);
    }
}
