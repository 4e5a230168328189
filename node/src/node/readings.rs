//! The metrics of a node that are read when they are asked for, and whether it is ready.
//!
//! Threat: as of all metrics, a series that shows single leases or peers. Labels are reasons, backends' verdicts and names of
//! this program only, never an id, so that their number is bounded too.

use std::sync::{Arc, Mutex, PoisonError, atomic::Ordering};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use souk_crypto::UnixTime;
use souk_market::{
    account::Ledger, card::VerifiedCard, log::HourBucket, price::Prices, reconcile::Totals,
    standing::Standing,
};
use tokio::sync::watch;

use super::{directory::Cards, rivals::Rivals};
use crate::{
    attest::Verifier, control::REVISION, mix::MixCounters, process::Usage, provider::Provider,
    unix_now,
};

/// What is asked of a node that is to be called ready.
#[derive(Clone)]
pub(super) struct Readiness {
    /// It was told to sell.
    pub(super) sells: bool,
    pub(super) own: watch::Receiver<Option<Arc<VerifiedCard>>>,
    pub(super) cards: Arc<Cards>,
    /// The provider, once it works.
    pub(super) provider: watch::Receiver<Option<Provider>>,
    pub(super) standing: watch::Receiver<Standing>,
    /// Why nothing is signed of the usage log, while that is so.
    pub(super) refusal: watch::Receiver<Option<String>>,
}

impl Readiness {
    /// Why the node is not ready to do all that it was told to do; nothing where it is.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let standing = self.standing.borrow().as_str();
        if standing != Standing::Open.as_str() {
            missing.push(format!("this node is {standing}"));
        }
        let own = self.own.borrow().as_ref().map(|card| card.node);
        if own.is_none() {
            missing.push("this node has no card yet".to_owned());
        }
        let knows = |node| Some(node) != own;
        if !self.cards.all().iter().any(|(card, _)| knows(card.node)) {
            missing.push("no other node's card is known yet".to_owned());
        }
        if self.sells && self.provider.borrow().is_none() {
            missing.push("the provider does not take leases yet".to_owned());
        }
        if self.refusal.borrow().is_some() {
            missing.push("no checkpoints of the usage log are signed".to_owned());
        }
        missing
    }
}

/// Totals and levels that are read when they are asked for.
pub(super) struct Readings {
    pub(super) started: UnixTime,
    pub(super) mix: Arc<MixCounters>,
    pub(super) verifier: Verifier,
    pub(super) readiness: Readiness,
    /// Whether another node makes cards of this one.
    pub(super) rivals: watch::Receiver<Rivals>,
    /// What closed leases brought and cost, and in which asset.
    pub(super) account: watch::Receiver<Option<Arc<Ledger>>>,
    pub(super) prices: Prices,
    /// The sums as they were when they were first asked for in this hour.
    pub(super) hourly: Mutex<Option<(HourBucket, Arc<Ledger>)>>,
}

impl std::fmt::Debug for Readings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.of_node(&mut encoder)?;
        of_process(self.started, &mut encoder)?;
        let provider = self.readiness.provider.borrow().clone();
        match provider {
            Some(provider) => self.of_provider(&provider, &mut encoder),
            None => Ok(()),
        }
    }
}

impl Readings {
    fn of_node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let version = env!("CARGO_PKG_VERSION");
        let revision = REVISION.unwrap_or("unknown");
        let help = "1, labelled with the version of the program and the commit it was built from";
        let mut family =
            encoder.encode_descriptor("souk_build_info", help, None, MetricType::Gauge)?;
        let labels = [("version", version), ("revision", revision)];
        ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        let readiness = &self.readiness;
        gauge(
            encoder,
            "souk_ready",
            "1 while the node does all that it was told to do, as /readyz says",
            usize::from(readiness.missing().is_empty()),
        )?;
        gauge(
            encoder,
            "souk_open",
            "1 while the node takes new leases",
            usize::from(*readiness.standing.borrow() == Standing::Open),
        )?;
        let cards = &readiness.cards;
        for (name, help, total) in self.mix.all() {
            counter(encoder, &format!("souk_mix_{name}"), help, total)?;
        }
        gauge(encoder, "souk_cards", "Valid cards", cards.all().len())?;
        gauge(
            encoder,
            "souk_clock_suspect",
            "1 while the cards of the others are not of the time of this machine",
            usize::from(cards.clock_warning().is_some()),
        )?;
        gauge(
            encoder,
            "souk_keys_elsewhere",
            "1 while another node makes cards with the keys of this one",
            usize::from(self.rivals.borrow().are_suspected(unix_now())),
        )?;
        gauge(
            encoder,
            "souk_log_contradictions",
            "Providers against whose usage log there is evidence",
            cards.contradictions().len(),
        )?;
        let (verified, refused) = self.verifier.totals();
        let help = "Evidence of nodes that verified and binds what the card says";
        counter(encoder, "souk_evidence_verified", help, verified)?;
        let mut family = encoder.encode_descriptor(
            "souk_evidence_refused",
            "Evidence of nodes that does not hold, by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, total) in refused {
            ConstCounter::new(total).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        Ok(())
    }

    fn of_provider(
        &self,
        provider: &Provider,
        encoder: &mut DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        gauge(
            encoder,
            "souk_leases",
            "Leases that are not closed",
            provider.leases().len(),
        )?;
        gauge(
            encoder,
            "souk_leases_max",
            "Leases that there may be at once",
            provider.max_leases(),
        )?;
        if let Some(ledger) = self.hourly() {
            let closed = ledger.lifetime();
            let help = "Closed leases in the usage log, told once an hour";
            counter(encoder, "souk_leases_closed", help, closed.leases)?;
            let help =
                "What closed leases charged, in the smallest unit of the asset, told once an hour";
            self.money(encoder, "souk_revenue", help, closed.revenue)?;
            let help = "What closed leases cost by the table of costs, in the smallest unit of the asset, told once an hour";
            self.money(encoder, "souk_cost", help, closed.cost)?;
        }
        let findings = provider.findings();
        gauge(
            encoder,
            "souk_orphans",
            "Instances at the backends that no lease owns",
            findings
                .values()
                .map(|found| found.orphans.len())
                .sum::<usize>(),
        )?;
        gauge(
            encoder,
            "souk_backends_unlisted",
            "Backends whose last list failed, or that were not listed yet",
            findings
                .values()
                .filter(|found| found.failures > 0 || found.listed.is_none())
                .count(),
        )?;
        let sum = |total: fn(&Totals) -> u64| {
            findings
                .values()
                .map(|found| total(&found.totals))
                .sum::<u64>()
        };
        for (name, help, total) in [
            (
                "souk_orphans_found",
                "Instances that were found without an owner",
                sum(|totals| totals.found),
            ),
            (
                "souk_orphans_removed",
                "Instances without an owner that were removed",
                sum(|totals| totals.removed),
            ),
            (
                "souk_backend_lists_failed",
                "Lists of a backend that failed",
                sum(|totals| totals.failed_lists),
            ),
        ] {
            counter(encoder, name, help, total)?;
        }
        gauge(
            encoder,
            "souk_log_refused",
            "1 while no checkpoint is signed, because the network remembers more of the usage log than the store has",
            usize::from(self.readiness.refusal.borrow().is_some()),
        )?;
        let refusals = provider.refusals();
        let metric = "souk_refusals";
        let mut family = encoder.encode_descriptor(
            metric,
            "Refused requests by reason",
            None,
            MetricType::Counter,
        )?;
        for (reason, total) in refusals.iter() {
            ConstCounter::new(total)
                .encode(family.encode_family(&[("reason", reason.as_str())])?)?;
        }
        let counters = provider.counters();
        for (name, help, total) in [
            (
                "souk_provider_replies",
                "Replies that went out",
                &counters.replies,
            ),
            (
                "souk_provider_unanswered",
                "Replies without a SURB that could be used",
                &counters.unanswered,
            ),
            (
                "souk_provider_unreadable",
                "Messages that are no requests",
                &counters.unreadable,
            ),
            (
                "souk_provider_strays",
                "Requests about unknown leases",
                &counters.strays,
            ),
            (
                "souk_provider_dropped",
                "Messages dropped because too much was waiting",
                &counters.dropped,
            ),
        ] {
            counter(encoder, name, help, total.load(Ordering::Relaxed))?;
        }
        Ok(())
    }

    /// What closed leases brought and cost, a copy an hour: from finer steps the charge and the end of single leases could be read, and
    /// the public log has no finer grain either.
    fn hourly(&self) -> Option<Arc<Ledger>> {
        let hour = HourBucket::of(unix_now());
        let mut kept = self.hourly.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((at, ledger)) if *at == hour => Some(Arc::clone(ledger)),
            _ => {
                let ledger = self.account.borrow().clone()?;
                *kept = Some((hour, Arc::clone(&ledger)));
                Some(ledger)
            }
        }
    }

    /// An amount of the asset that is sold for. A double holds it to 15 digits; the control API gives all of them.
    fn money(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        name: &str,
        help: &str,
        amount: u128,
    ) -> Result<(), std::fmt::Error> {
        let labels = [
            ("asset", self.prices.asset.to_string()),
            ("exponent", self.prices.exponent.to_string()),
        ];
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        #[expect(clippy::cast_precision_loss, reason = "said in the documentation")]
        ConstCounter::new(amount as f64).encode(family.encode_family(&labels)?)
    }
}

/// Under the names that all programs use for them.
fn of_process(
    started: UnixTime,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let usage = Usage::now();
    let cpu = ConstCounter::new(usage.cpu_s);
    let help = "Processor time of the process in seconds";
    let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?;
    cpu.encode(metric)?;
    for (name, help, value) in [
        (
            "process_start_time_seconds",
            "When the node started, in seconds since 1970",
            Some(started.0),
        ),
        (
            "process_resident_memory_bytes",
            "Memory of the process in bytes",
            usage.resident_bytes,
        ),
        (
            "process_open_fds",
            "File descriptors that are open",
            usage.open_files,
        ),
        (
            "process_max_fds",
            "File descriptors that may be open",
            usage.max_files,
        ),
    ] {
        if let Some(value) = value {
            gauge(encoder, name, help, value)?;
        }
    }
    Ok(())
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    total: u64,
) -> Result<(), std::fmt::Error> {
    let counter = ConstCounter::new(total);
    // The format of the registry ends each help text with a dot of its own.
    let help = help.trim_end_matches('.');
    let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
    counter.encode(metric)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl TryInto<i64>,
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(value.try_into().unwrap_or(i64::MAX));
    let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
    gauge.encode(metric)
}
