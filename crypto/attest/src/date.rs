//! Dates as Intel's JSON, policies and people write them (RFC 3339), to the second.

use chrono::{DateTime, SecondsFormat};
use souk_crypto::UnixTime;

/// The instant that `text` names; `None` for other forms and for instants before 1970.
#[must_use]
pub fn parse(text: &str) -> Option<UnixTime> {
    let date = DateTime::parse_from_rfc3339(text).ok()?;
    u64::try_from(date.timestamp()).ok().map(UnixTime)
}

/// The date of an instant in UTC, such as `2026-11-20T18:00:00Z`; the number of seconds where it lies beyond the calendar.
#[must_use]
pub fn format(instant: UnixTime) -> String {
    i64::try_from(instant.0)
        .ok()
        .and_then(|seconds| DateTime::from_timestamp(seconds, 0))
        .map_or_else(
            || instant.to_string(),
            |date| date.to_rfc3339_opts(SecondsFormat::Secs, true),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_survives_both_ways() {
        for (text, instant) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2025-06-19T10:16:03Z", 1_750_328_163),
        ] {
            assert_eq!(parse(text), Some(UnixTime(instant)));
            assert_eq!(format(UnixTime(instant)), text);
        }
        assert_eq!(
            parse("2025-06-19T12:16:03+02:00"),
            Some(UnixTime(1_750_328_163))
        );
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "2025-06-19",
            "1969-12-31T23:59:59Z",
            "2025-13-01T00:00:00Z",
            "now",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(format(UnixTime(u64::MAX)), u64::MAX.to_string());
    }
}
