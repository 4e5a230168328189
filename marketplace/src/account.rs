//! What closed leases brought and what they cost, summed over the usage log.
//!
//! Revenue is what the statements charge; cost is what the operator's own [`Costs`] make of what was reserved and used. Each lease
//! is rounded once, and sums are sums of whole units: they agree with the log to the last unit, in whatever steps it is read.
//!
//! Threats: sums that drift from the log (nothing here is kept beside it: a ledger is made by reading the log); a meter that failed
//! and would count as nothing used (the cost is marked as a lower bound).

use std::collections::BTreeMap;

use crate::{
    log::HourBucket,
    statement::{Outcome, Statement},
    units::{Meter, Money},
};

/// Hours that are kept apart: 31 days. Older ones are in the lifetime sum only.
pub const MAX_HOURS: usize = 31 * 24;

/// Of a millicore, a MiB and a second in the units that hourly prices are for: thousandths, 1024ths, 3600ths.
const RESERVED: u128 = 1000 * 1024 * 3600;
/// Bytes of a GiB.
const GIB: u128 = 1 << 30;

/// What it costs the operator to carry leases, in the smallest unit of the asset of its prices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// One core for one hour.
    pub core_hour: Money,
    /// One GiB of memory for one hour.
    pub memory_gib_hour: Money,
    /// One GiB of disk for one hour.
    pub disk_gib_hour: Money,
    /// One GiB that leaves an instance.
    pub gib_out: Money,
}

/// What one lease cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// So much, a fraction counting as a whole unit.
    pub amount: u128,
    /// Not all of it is known: it was this much or more.
    pub at_least: bool,
}

impl Costs {
    /// What the lease of a statement cost: what was reserved for as long as it lasted, and what left it.
    #[must_use]
    pub fn of(&self, statement: &Statement) -> Cost {
        let resources = &statement.resources;
        let seconds = u128::from(statement.to.since_s(statement.from));
        // 2^64 · 2^32 · 2^10, thrice, is below 2^108; a duration of more than 2^20 s may not fit beside it, and then stands at the
        // largest: no operator's prices come near.
        let hourly = u128::from(self.core_hour.0) * u128::from(resources.cpu_millicores) * 1024
            + u128::from(self.memory_gib_hour.0) * u128::from(resources.memory_mib) * 1000
            + u128::from(self.disk_gib_hour.0) * u128::from(resources.disk_mib) * 1000;
        let reserved = hourly.saturating_mul(seconds);
        let (bytes, is_known) = match statement.net_tx_bytes {
            Meter::Known(bytes) => (bytes, true),
            Meter::AtLeast(bytes) => (bytes, false),
            Meter::Unknown => (0, false),
        };
        let out = u128::from(self.gib_out.0) * u128::from(bytes);
        // Whole units apart from fractions, so that the one rounding is exact: both fractions together are below two.
        let whole = reserved / RESERVED + out / GIB;
        let fraction = (reserved % RESERVED) * GIB + (out % GIB) * RESERVED;
        let is_lost = statement.outcome == Outcome::RecordLost;
        Cost {
            amount: whole + fraction.div_ceil(RESERVED * GIB),
            at_least: is_lost || !is_known && self.gib_out.0 > 0,
        }
    }
}

/// Leases together. Sums are wider than amounts, so that no log is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// How many leases.
    pub leases: u64,
    /// What their statements charge.
    pub revenue: u128,
    /// What they cost.
    pub cost: u128,
    /// Of how many the cost is a lower bound.
    pub with_unknown: u64,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.leases += other.leases;
        self.revenue += other.revenue;
        self.cost = self.cost.saturating_add(other.cost);
        self.with_unknown += other.with_unknown;
    }
}

/// The sums of a log, as far as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    costs: Costs,
    lifetime: Sum,
    /// The latest hours in which a lease was closed.
    hours: BTreeMap<HourBucket, Sum>,
}

impl Ledger {
    /// Of an empty log.
    #[must_use]
    pub fn new(costs: Costs) -> Self {
        Self {
            costs,
            lifetime: Sum::default(),
            hours: BTreeMap::new(),
        }
    }

    /// Takes the statement of a closed lease, whose entry stands under an hour.
    pub fn take(&mut self, hour: HourBucket, statement: &Statement) {
        let cost = self.costs.of(statement);
        let lease = Sum {
            leases: 1,
            revenue: statement.charge.0.into(),
            cost: cost.amount,
            with_unknown: cost.at_least.into(),
        };
        self.lifetime.add(&lease);
        self.hours.entry(hour).or_default().add(&lease);
        if self.hours.len() > MAX_HOURS {
            self.hours.pop_first();
        }
    }

    /// All leases.
    #[must_use]
    pub fn lifetime(&self) -> &Sum {
        &self.lifetime
    }

    /// The leases of the `count` hours that end with `last`, hour by hour.
    pub fn hours(&self, last: HourBucket, count: u32) -> impl Iterator<Item = Sum> + '_ {
        (0..count).rev().map(move |back| {
            let hour = last.0.checked_sub(back).map(HourBucket);
            hour.and_then(|hour| self.hours.get(&hour))
                .copied()
                .unwrap_or_default()
        })
    }

    /// The same hours together.
    #[must_use]
    pub fn window(&self, last: HourBucket, count: u32) -> Sum {
        self.hours(last, count)
            .fold(Sum::default(), |mut sum, hour| {
                sum.add(&hour);
                sum
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng as _, rngs::StdRng};
    use souk_crypto::{NetworkId, NetworkParams, UnixTime};

    use super::*;
    use crate::{
        log::{Entry, LeaseEntry, Opening, OutcomeClass},
        units::{ImageHash, LeaseId, Resources},
    };

    const COSTS: Costs = Costs {
        core_hour: Money(7),
        memory_gib_hour: Money(3),
        disk_gib_hour: Money(1),
        gib_out: Money(11),
    };
    const HOUR: u32 = 500_000;

    fn statement(from_s: u64, lasted_s: u64, cpu: u32, tx: Meter, charge: u64) -> Statement {
        Statement {
            lease: LeaseId([1; 16]),
            image: ImageHash([0; 32]),
            resources: Resources {
                cpu_millicores: cpu,
                memory_mib: 512,
                disk_mib: 100,
                ..Resources::ZERO
            },
            from: UnixTime(from_s),
            to: UnixTime(from_s + lasted_s),
            cpu_core_ms: Meter::Known(1),
            memory_mib_s: Meter::Known(1),
            net_rx_bytes: Meter::Known(1),
            net_tx_bytes: tx,
            outcome: Outcome::Expired,
            charge: Money(charge),
            evidence: None,
        }
    }

    #[test]
    fn a_cost_is_the_sum_of_its_parts_and_is_rounded_once() {
        let gib = 1 << 30;
        let hour = Statement {
            resources: Resources {
                cpu_millicores: 2_000,
                memory_mib: 4_096,
                disk_mib: 1_024,
                ..Resources::ZERO
            },
            ..statement(0, 3_600, 0, Meter::Known(2 * gib), 0)
        };
        let whole = 2 * 7 + 4 * 3 + 1 + 2 * 11;
        assert_eq!(COSTS.of(&hour).amount, whole);
        // Half a unit reserved and half a unit sent are one.
        let halves = Costs {
            core_hour: Money(1),
            gib_out: Money(1),
            memory_gib_hour: Money(0),
            disk_gib_hour: Money(0),
        };
        let half = statement(0, 1_800, 1_000, Meter::Known(gib / 2), 0);
        assert_eq!(halves.of(&half).amount, 1);
        let more = statement(0, 1_800, 1_000, Meter::Known(gib / 2 + 1), 0);
        assert_eq!(halves.of(&more).amount, 2);
    }

    #[test]
    fn what_is_not_known_is_not_free() {
        let cost = |tx| COSTS.of(&statement(0, 60, 1_000, tx, 0));
        assert!(!cost(Meter::Known(5)).at_least);
        assert!(cost(Meter::AtLeast(5)).at_least && cost(Meter::Unknown).at_least);
        let lost = Statement {
            outcome: Outcome::RecordLost,
            ..statement(0, 0, 0, Meter::Known(0), 0)
        };
        assert!(COSTS.of(&lost).at_least);
    }

    #[test]
    fn the_largest_numbers_have_a_sum() {
        let dear = Costs {
            core_hour: Money(u64::MAX),
            memory_gib_hour: Money(u64::MAX),
            disk_gib_hour: Money(u64::MAX),
            gib_out: Money(u64::MAX),
        };
        let mut ledger = Ledger::new(dear);
        for _ in 0..3 {
            let all = statement(
                0,
                u64::from(u32::MAX),
                u32::MAX,
                Meter::Known(u64::MAX),
                u64::MAX,
            );
            ledger.take(HourBucket(HOUR), &all);
        }
        assert_eq!(ledger.lifetime().revenue, 3 * u128::from(u64::MAX));
        assert!(ledger.lifetime().cost > 0);
    }

    #[test]
    fn hours_that_are_long_past_are_in_the_lifetime_only() {
        let mut ledger = Ledger::new(COSTS);
        let hours = u32::try_from(MAX_HOURS).expect("few") + 10;
        for n in 0..hours {
            let closed = statement(0, 60, 1_000, Meter::Known(0), 5);
            ledger.take(HourBucket(HOUR + n), &closed);
        }
        assert_eq!(ledger.lifetime().leases, u64::from(hours));
        let last = HourBucket(HOUR + hours - 1);
        assert_eq!(ledger.window(last, hours).leases, MAX_HOURS as u64);
        assert_eq!(ledger.window(last, 24).revenue, 24 * 5);
        assert_eq!(ledger.window(HourBucket(HOUR - 1), 24), Sum::default());
    }

    /// A log as a provider writes it: what is public, and what opens it.
    fn log(network: &NetworkId, statements: &[Statement]) -> Vec<(Vec<u8>, Opening)> {
        let mut rng = StdRng::seed_from_u64(1);
        let entry = |statement: &Statement| {
            let opening = Opening::draw(statement.to_bytes(), &mut rng);
            let entry = Entry::Lease(LeaseEntry {
                commitment: opening.commitment(network),
                outcome: OutcomeClass::of(statement.outcome),
                hour: HourBucket::of(statement.to),
            });
            (entry.encode(), opening)
        };
        statements.iter().map(entry).collect()
    }

    proptest! {
        #[test]
        fn sums_agree_with_the_log_to_the_last_unit_in_whatever_steps_it_is_read(
            rows in prop::collection::vec(
                (0u64..200 * 3_600, 0u64..90_000, 0u32..64_000, any::<u64>(), 0u8..3, any::<u32>()),
                0..60,
            ),
            step in 1usize..10,
            window in 1u32..300,
        ) {
            let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
            let network = NetworkId::new("test", &params).expect("a name");
            let begin = u64::from(HOUR) * 3_600;
            let statements: Vec<_> = rows
                .iter()
                .map(|(from, lasted, cpu, tx, known, charge)| {
                    let tx = tx >> 20;
                    let tx = [Meter::Known(tx), Meter::AtLeast(tx), Meter::Unknown][usize::from(*known)];
                    statement(begin + from, *lasted, *cpu, tx, (*charge).into())
                })
                .collect();
            let log = log(&network, &statements);
            // Read as a node reads it: in steps, each entry opened by what was kept beside it.
            let mut ledger = Ledger::new(COSTS);
            for part in log.chunks(step) {
                for (entry, opening) in part {
                    let Ok(Entry::Lease(entry)) = Entry::decode(entry) else {
                        panic!("it is the entry of a lease");
                    };
                    prop_assert_eq!(entry.commitment, opening.commitment(&network));
                    let statement = Statement::from_bytes(&opening.statement).expect("a statement");
                    ledger.take(entry.hour, &statement);
                }
            }
            let by_hand = |wanted: &dyn Fn(&Statement) -> bool| {
                let of = || statements.iter().filter(|statement| wanted(statement));
                Sum {
                    leases: of().count() as u64,
                    revenue: of().map(|s| u128::from(s.charge.0)).sum(),
                    cost: of().map(|s| COSTS.of(s).amount).sum(),
                    with_unknown: of().filter(|s| COSTS.of(s).at_least).count() as u64,
                }
            };
            prop_assert_eq!(*ledger.lifetime(), by_hand(&|_| true));
            let last = HourBucket(HOUR + 250);
            let first = last.0 - window + 1;
            let within = |s: &Statement| (first..=last.0).contains(&HourBucket::of(s.to).0);
            prop_assert_eq!(ledger.window(last, window), by_hand(&within));
            // Windows that touch make up the whole.
            let mut parts = Sum::default();
            for hour in ledger.hours(last, 300) {
                parts.add(&hour);
            }
            prop_assert_eq!(parts, *ledger.lifetime());
        }
    }
}
