//! `souk market`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use souk_market::{
    card::{Role, VerifiedCard},
    quorum::MarketCard,
    units::Tee,
};
use souk_node::{
    client::{Judgement, Judgements},
    net::peer_id,
};

use super::{
    DONE,
    requester::{self, Requester},
    wait,
};
use crate::{failure::Failure, out, progress::Progress};

/// Show what can be rented.
///
/// The whole set of cards is taken from several nodes and compared, so that nobody learns what you look at, and no node
/// can show you a market of your own.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  souk market --json")]
pub(crate) struct Market {
    #[command(flatten)]
    requester: Requester,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row {
    provider: String,
    arch: String,
    cpu_millicores: u32,
    memory_mib: u32,
    disk_mib: u32,
    price_core_hour: Option<String>,
    price_memory_gib_hour: Option<String>,
    capacity: Option<String>,
    /// Entries of the provider's usage log, as far as it told the network.
    log_entries: Option<u64>,
    shared_kernel: bool,
    egress: bool,
    evidence: Evidence,
    anonymous: bool,
    max_duration_s: Option<u32>,
    work_bits: Option<u8>,
    enforced: Vec<String>,
    images: Vec<Image>,
}

#[derive(Serialize)]
struct Image {
    name: String,
    hash: String,
}

impl Market {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let client = self.requester.open()?;
        requester::check_policy(&client)?;
        let (rows, unanimous) = wait(async {
            let progress = Progress::start("asking for cards");
            let visitor = client.visit(&progress).await?;
            let market = visitor.market();
            let judgements = visitor.judgements().await;
            let judgements =
                judgements.map_err(|error| requester::unjudged(Failure::of(&error), &error))?;
            let of = |listed| rows(listed, judgements);
            let rows: Vec<_> = market.cards.iter().flat_map(of).collect();
            Ok((rows, market.is_unanimous()))
        })?;
        if self.json {
            out::json(&rows);
            return DONE;
        }
        if rows.is_empty() {
            out::note("nobody sells now");
        } else {
            out::line(text(&rows));
        }
        if !unanimous {
            out::note(
                "the nodes did not show the same cards; what is shown is what a quorum of them agrees on",
            );
        }
        DONE
    }
}

/// What evidence proves, and whether the policy accepts it.
#[derive(Clone, Serialize)]
struct Evidence {
    /// What the card claims; `null` where it names none.
    claimed: Option<&'static str>,
    /// What it proves; `null` where it does not hold, or nobody looked.
    kind: Option<&'static str>,
    /// `accepted`, `refused`, or `null` without a policy.
    verdict: Option<&'static str>,
    /// The name of the first reason against it.
    reason: Option<&'static str>,
    /// What was found.
    why: Option<String>,
}

fn evidence(card: &VerifiedCard, judgements: Option<&Judgements>) -> Evidence {
    let claimed = card.evidence.first();
    let mut told = Evidence {
        claimed: claimed.map(|named| named.claimed().map_or("unknown", Tee::as_str)),
        kind: None,
        verdict: None,
        reason: None,
        why: None,
    };
    let Some(judgements) = judgements else {
        return told;
    };
    match judgements.of(&card.node) {
        None => {
            told.verdict = Some("refused");
            told.reason = Some("no-evidence");
        }
        Some(Judgement::Accepted { kind }) => {
            told.kind = Some(kind.as_str());
            told.verdict = Some("accepted");
        }
        Some(Judgement::Refused { kind, reason, why }) => {
            told.kind = kind.map(Tee::as_str);
            told.verdict = Some("refused");
            told.reason = Some(reason);
            told.why = Some(why.clone());
        }
    }
    told
}

impl Evidence {
    fn text(&self) -> String {
        let kind = self.kind.or(self.claimed).unwrap_or("none");
        match (self.verdict, self.reason) {
            // Nobody has looked at it.
            (None, _) if self.claimed.is_some() => format!("{kind}, unchecked"),
            (Some("refused"), Some(reason)) => format!("{kind}, refused: {reason}"),
            (Some(verdict), _) => format!("{kind}, {verdict}"),
            (None, _) => kind.to_owned(),
        }
    }
}

fn rows<'m>(
    listed: &'m MarketCard,
    judgements: Option<&Judgements>,
) -> impl Iterator<Item = Row> + use<'m> {
    let card = &listed.card;
    let evidence = evidence(card, judgements);
    let offers = card
        .offers
        .iter()
        .enumerate()
        .filter(|_| card.has_role(Role::Provider));
    offers.map(move |(at, offer)| {
        let largest = offer.classes.last();
        let anonymous = card.policy.anonymous;
        let price = |amount: fn(&souk_market::price::Prices) -> souk_market::units::Money| {
            card.prices
                .as_ref()
                .map(|prices| prices.display(amount(prices)))
        };
        Row {
            provider: peer_id(&card.node).to_string(),
            arch: offer.arch.to_string(),
            cpu_millicores: largest.map_or(0, |class| class.cpu_millicores),
            memory_mib: largest.map_or(0, |class| class.memory_mib),
            disk_mib: largest.map_or(0, |class| class.disk_mib),
            price_core_hour: price(|prices| prices.core_hour),
            price_memory_gib_hour: price(|prices| prices.memory_gib_hour),
            capacity: listed.level(at, 0).map(|level| level.as_str().to_owned()),
            log_entries: listed
                .capacity
                .as_ref()
                .and_then(|capacity| capacity.log)
                .map(|log| log.size),
            shared_kernel: offer.shared_kernel,
            egress: offer.egress,
            evidence: evidence.clone(),
            anonymous: anonymous.is_some(),
            max_duration_s: anonymous.map(|limits| limits.max_duration.0),
            work_bits: anonymous.map(|limits| limits.work_bits),
            enforced: offer
                .enforced
                .iter()
                .map(|limit| limit.as_str().to_owned())
                .collect(),
            images: card
                .images
                .iter()
                .map(|image| Image {
                    name: image.name.to_string(),
                    hash: image.hash.to_string(),
                })
                .collect(),
        }
    })
}

fn text(rows: &[Row]) -> String {
    let head = [
        "ARCH",
        "CORES",
        "MIB",
        "A CORE AND HOUR",
        "ROOM",
        "KERNEL",
        "EGRESS",
    ];
    let body = rows.iter().map(|row| {
        let cells = vec![
            row.arch.clone(),
            format!("{:.1}", f64::from(row.cpu_millicores) / 1000.0),
            row.memory_mib.to_string(),
            row.price_core_hour
                .clone()
                .unwrap_or_else(|| "free".to_owned()),
            row.capacity.clone().unwrap_or_else(|| "?".to_owned()),
            if row.shared_kernel { "shared" } else { "own" }.to_owned(),
            if row.egress { "open" } else { "none" }.to_owned(),
        ];
        let enforced = match row.enforced.as_slice() {
            [] => "no limit".to_owned(),
            some => some.join(", "),
        };
        let below = [
            format!("provider  {}", row.provider),
            format!("enforces  {enforced}"),
            format!("evidence  {}", row.evidence.text()),
        ];
        (cells, below.to_vec())
    });
    out::records(&head, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_fits_a_narrow_terminal() {
        let row = Row {
            provider: "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA".to_owned(),
            arch: "aarch64".to_owned(),
            cpu_millicores: 128_000,
            memory_mib: 1_048_576,
            disk_mib: 1_048_576,
            price_core_hour: Some("1000.000000 TEST".to_owned()),
            price_memory_gib_hour: None,
            capacity: Some("plenty".to_owned()),
            log_entries: None,
            shared_kernel: true,
            egress: false,
            evidence: Evidence {
                claimed: Some("none+test"),
                kind: Some("none+test"),
                verdict: Some("refused"),
                reason: Some("measurement-not-accepted"),
                why: None,
            },
            anonymous: true,
            max_duration_s: Some(3600),
            work_bits: Some(0),
            enforced: ["cpu", "memory", "processes", "disk"]
                .map(str::to_owned)
                .to_vec(),
            images: Vec::new(),
        };
        let text = text(&[row]);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
        insta::assert_snapshot!(text);
    }
}
