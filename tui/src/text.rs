//! Numbers and times for people.

use souk_control::v1;

/// Most decimal places of an asset.
const MAX_EXPONENT: u32 = 18;

/// Seconds, as the two largest units: `3h12m`.
#[must_use]
pub(crate) fn duration(s: u64) -> String {
    let (days, hours, minutes) = (s / 86_400, s / 3_600 % 24, s / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", s % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// Bytes in binary units, with three digits at most.
#[must_use]
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let unit = usize::try_from(bytes.ilog2() / 10 - 1).unwrap_or_default();
    let hundredths = (u128::from(bytes) * 100) >> (10 * (unit + 1));
    let (whole, unit) = (hundredths / 100, UNITS[unit]);
    if hundredths < 1_000 {
        format!("{whole}.{:02} {unit}", hundredths % 100)
    } else if hundredths < 10_000 {
        format!("{whole}.{} {unit}", hundredths / 10 % 10)
    } else {
        format!("{whole} {unit}")
    }
}

/// MiB, in the unit that fits.
#[must_use]
pub(crate) fn mib(mib: u64) -> String {
    bytes(mib.saturating_mul(1024 * 1024))
}

/// Thousandths of cores.
#[must_use]
pub(crate) fn cores(millicores: u64) -> String {
    format!("{}.{}", millicores / 1000, millicores / 100 % 10)
}

/// A count with spaces between thousands.
#[must_use]
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A count of things, with an s where there is not one.
#[must_use]
pub(crate) fn many(n: u64, of: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {of}{plural}", count(n))
}

/// An amount, given as the digits of its smallest unit, with its decimal places: `1.50`.
#[must_use]
pub(crate) fn amount(digits: &str, exponent: u32) -> String {
    // No asset has more (`souk-market` takes none), and a node that says otherwise shall not fill the memory.
    let exponent = exponent.min(MAX_EXPONENT) as usize;
    let digits = format!("{digits:0>width$}", width = exponent + 1);
    let (whole, fraction) = match digits.len().checked_sub(exponent) {
        Some(at) if digits.is_char_boundary(at) => digits.split_at(at),
        _ => (digits.as_str(), ""),
    };
    match fraction {
        "" => whole.to_owned(),
        _ => format!("{whole}.{fraction}"),
    }
}

/// What a meter shows: `≥` where something was lost, `?` where it failed.
#[must_use]
pub(crate) fn meter(meter: Option<v1::Meter>, show: impl Fn(u64) -> String) -> String {
    match meter {
        None => "?".to_owned(),
        Some(v1::Meter {
            value,
            at_least: true,
        }) => format!("≥{}", show(value)),
        Some(meter) => show(meter.value),
    }
}

/// The last values as a line of bars, the newest at the right.
#[must_use]
pub(crate) fn spark(values: &[u64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let most = shown.iter().copied().max().unwrap_or_default().max(1);
    shown
        .iter()
        .map(|value| {
            let height = u128::from(*value) * 7 / u128::from(most);
            BARS[usize::try_from(height).unwrap_or_default()]
        })
        .collect()
}

/// A share as a bar of `width` cells.
#[must_use]
pub(crate) fn bar(part: u64, whole: u64, width: usize) -> String {
    let full = match whole {
        0 => 0,
        _ => u128::from(part.min(whole)) * width as u128 / u128::from(whole),
    };
    let full = usize::try_from(full).unwrap_or_default();
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_few_digits() {
        let shown = [0, 59, 60, 3_599, 3_600, 86_399, 86_400, 900_000].map(duration);
        assert_eq!(
            shown,
            [
                "0s", "59s", "1m00s", "59m59s", "1h00m", "23h59m", "1d00h", "10d10h"
            ]
        );
        let shown = [0, 1023, 1024, 1536, 20 << 20, 300 << 30, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.00 KiB", "1.50 KiB", "20.0 MiB", "300 GiB", "15.9 EiB"
            ]
        );
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(count),
            ["0", "999", "1 000", "1 234 567"]
        );
        assert_eq!(cores(1_250), "1.2");
        assert_eq!(
            [0, 1, 2].map(|n| many(n, "lease")),
            ["0 leases", "1 lease", "2 leases"]
        );
    }

    #[test]
    fn amounts_are_exact() {
        assert_eq!(amount("5", 2), "0.05");
        assert_eq!(amount("18446744073709551616", 18), "18.446744073709551616");
        assert_eq!(amount("7", 0), "7");
        assert_eq!(amount("", 0), "0");
        // What no node says is shown as it is.
        assert_eq!(amount("é", 1), "0é");
    }

    #[test]
    fn what_is_not_known_is_not_shown_as_zero() {
        assert_eq!(meter(None, count), "?");
        let known = |at_least| Some(v1::Meter { value: 3, at_least });
        assert_eq!(meter(known(false), count), "3");
        assert_eq!(meter(known(true), count), "≥3");
    }

    #[test]
    fn lines_and_bars_fit_their_width() {
        assert_eq!(spark(&[0, 7, 14], 8), "▁▄█");
        assert_eq!(spark(&[9, 0, 0], 2), "▁▁");
        assert_eq!(spark(&[], 8), "");
        assert_eq!(bar(1, 2, 4), "██░░");
        assert_eq!(bar(9, 2, 4), "████");
        assert_eq!(bar(0, 0, 4), "░░░░");
        assert_eq!(bar(u64::MAX, u64::MAX, 3), "███");
    }
}
