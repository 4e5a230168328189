//! Prices and what a lease costs: integers in the smallest unit of a named asset, never a float.
//!
//! Threat: two parties that compute two amounts. One function computes, in wide integers, and its rounding is part of
//! the price.

use crate::{
    units::{Asset, DurationS, Money, Resources},
    wire::{wire_enum, wire_map},
};

/// Largest exponent of an asset; 10^18 is the finest in use.
pub const MAX_EXPONENT: u8 = 18;

wire_enum! {
    /// What happens to a fraction of the smallest unit.
    pub enum Rounding {
        /// It counts as a whole.
        Up = 0 => "up",
        /// It is forgiven.
        Down = 1 => "down",
    }
}

wire_map! {
    /// What a provider asks.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Prices {
        /// In which asset.
        0 => pub asset: Asset,
        /// How many decimal places the asset has: an amount of 150 with exponent 2 is 1.50.
        1 => pub exponent: u8,
        /// One core for one hour.
        2 => pub core_hour: Money,
        /// One GiB of memory for one hour.
        3 => pub memory_gib_hour: Money,
        /// One GiB of disk for one hour.
        4 => pub disk_gib_hour: Money,
        /// Time counts in whole increments of this length; at least one second.
        5 => pub increment: DurationS,
        /// A lease counts for at least this long.
        6 => pub minimum: DurationS,
        /// Once, over the whole sum.
        7 => pub rounding: Rounding,
    }
    check = Prices::check;
}

impl Prices {
    /// What a lease of this size costs for `duration`; `None` where no amount can hold it.
    #[must_use]
    pub fn charge(&self, resources: &Resources, duration: DurationS) -> Option<Money> {
        let increment = u128::from(self.increment.0.max(1));
        let seconds = u128::from(duration.0.max(self.minimum.0)).div_ceil(increment) * increment;
        // Everything over one denominator, so that rounding happens once: millicores are thousandths and MiB are
        // 1024ths of what an hour's price is for. 2^64 · 2^32 · 2^10 · 3 fits in 128 bits, times seconds may not.
        let hourly = u128::from(self.core_hour.0) * u128::from(resources.cpu_millicores) * 1024
            + u128::from(self.memory_gib_hour.0) * u128::from(resources.memory_mib) * 1000
            + u128::from(self.disk_gib_hour.0) * u128::from(resources.disk_mib) * 1000;
        let total = hourly.checked_mul(seconds)?;
        let denominator = 1024 * 1000 * 3600;
        let amount = match self.rounding {
            Rounding::Up => total.div_ceil(denominator),
            Rounding::Down => total / denominator,
        };
        u64::try_from(amount).ok().map(Money)
    }

    /// An amount of this asset for people: `1.50 EUR`.
    #[must_use]
    pub fn display(&self, amount: Money) -> String {
        let exponent = usize::from(self.exponent);
        let digits = format!("{:0>width$}", amount.0, width = exponent + 1);
        let (whole, fraction) = digits.split_at(digits.len() - exponent);
        let point = if fraction.is_empty() { "" } else { "." };
        format!("{whole}{point}{fraction} {}", self.asset)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.exponent > MAX_EXPONENT {
            Err("the asset has too many decimal places")
        } else if self.increment.0 == 0 {
            Err("an increment of zero")
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prices(rounding: Rounding) -> Prices {
        Prices {
            asset: "EUR".parse().expect("an asset"),
            exponent: 2,
            core_hour: Money(4),
            memory_gib_hour: Money(1),
            disk_gib_hour: Money(0),
            increment: DurationS(60),
            minimum: DurationS(300),
            rounding,
        }
    }

    fn two_cores_four_gib() -> Resources {
        Resources {
            cpu_millicores: 2000,
            memory_mib: 4096,
            ..Resources::ZERO
        }
    }

    #[test]
    fn an_hour_costs_the_sum_of_its_parts() {
        let charge = prices(Rounding::Up).charge(&two_cores_four_gib(), DurationS(3600));
        assert_eq!(charge, Some(Money(2 * 4 + 4)));
    }

    #[test]
    fn time_counts_in_increments_from_the_minimum_up() {
        let up = prices(Rounding::Up);
        let at = |s| {
            up.charge(&two_cores_four_gib(), DurationS(s))
                .expect("fits")
        };
        assert_eq!(at(1), at(300));
        assert_eq!(at(301), at(360));
        // 300 s of 12 an hour is exactly 1.
        assert_eq!(at(1), Money(1));
        assert_eq!(at(301), Money(2));
        assert_eq!(
            prices(Rounding::Down).charge(&two_cores_four_gib(), DurationS(301)),
            Some(Money(1))
        );
    }

    #[test]
    fn an_amount_that_no_integer_holds_is_no_amount() {
        let dear = Prices {
            core_hour: Money(u64::MAX),
            ..prices(Rounding::Up)
        };
        let all = Resources {
            cpu_millicores: u32::MAX,
            ..Resources::ZERO
        };
        assert_eq!(dear.charge(&all, DurationS(u32::MAX)), None);
    }

    #[test]
    fn amounts_are_shown_with_their_decimal_places() {
        let p = prices(Rounding::Up);
        assert_eq!(p.display(Money(5)), "0.05 EUR");
        assert_eq!(p.display(Money(1234)), "12.34 EUR");
        assert_eq!(Prices { exponent: 0, ..p }.display(Money(7)), "7 EUR");
    }

    proptest! {
        #[test]
        fn longer_or_larger_never_costs_less(
            a in 0u32..10_000_000, b in 0u32..10_000_000,
            cpu in 0u32..256_000, memory in 0u32..4_000_000,
        ) {
            let p = prices(Rounding::Up);
            let small = Resources { cpu_millicores: cpu, memory_mib: memory, ..Resources::ZERO };
            let large = Resources { cpu_millicores: cpu + 1, memory_mib: memory + 1, ..Resources::ZERO };
            let (short, long) = (DurationS(a.min(b)), DurationS(a.max(b)));
            prop_assert!(p.charge(&small, short) <= p.charge(&small, long));
            prop_assert!(p.charge(&small, long) <= p.charge(&large, long));
        }
    }
}
