//! What a command prints: text for people, JSON for scripts.

use std::{
    io::{self, Write as _},
    sync::OnceLock,
};

use serde::Serialize;
use souk_crypto::UnixTime;
use time::{OffsetDateTime, macros::format_description};

use crate::{
    clean::{Line, Text},
    failure::Failure,
};

/// The first thing that stdout did not take.
static LOST: OnceLock<io::Error> = OnceLock::new();

/// Prints one line on stdout. A reader that went away (`souk market | head`) is no failure; for any other, see
/// [`arrived`].
pub(crate) fn line(text: impl std::fmt::Display) {
    if let Err(error) = writeln!(io::stdout().lock(), "{}", Text(text))
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        // Of several, the first is told.
        let _ = LOST.set(error);
    }
}

/// Whether everything that was printed on stdout got there.
pub(crate) fn arrived() -> Result<(), Failure> {
    LOST.get().map_or(Ok(()), |error| Err(unwritten(error)))
}

/// Why what was asked for is not on stdout.
pub(crate) fn unwritten(error: &io::Error) -> Failure {
    Failure::because("cannot write to stdout", error)
}

/// Prints one line on stderr: progress and advice, which scripts do not read.
pub(crate) fn note(text: impl std::fmt::Display) {
    // Where stderr is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{}", Text(text));
}

/// Prints one text that other commands take, plain or as the only field of an object.
pub(crate) fn token(name: &str, text: &str, is_json: bool) {
    if is_json {
        json(&std::collections::BTreeMap::from([(name, text)]));
    } else {
        line(text);
    }
}

/// Prints one JSON value on a line of its own.
pub(crate) fn json(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("what commands print has only string keys");
    line(text);
}

/// Lines up columns; the first row is the heading. No cell leaves its row.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let clean = |row: &Vec<String>| row.iter().map(|cell| Line(cell).to_string()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Lines up columns under a heading, each row with lines of its own below it: for what is wider than a terminal.
pub(crate) fn records(
    head: &[&str],
    rows: impl Iterator<Item = (Vec<String>, Vec<String>)>,
) -> String {
    let (cells, below): (Vec<_>, Vec<_>) = rows.unzip();
    let head = head.iter().map(|name| (*name).to_owned()).collect();
    let table = table(&[vec![head], cells].concat());
    let below = std::iter::once(Vec::new()).chain(below);
    let mut lines = Vec::new();
    for (row, below) in table.lines().zip(below) {
        lines.push(row.to_owned());
        lines.extend(below.iter().map(|line| format!("  {}", Line(line))));
    }
    lines.join("\n")
}

/// A number of things, by their word for one and for more.
pub(crate) fn count(number: impl TryInto<u64>, one: &str, more: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {one}"),
        number => format!("{number} {more}"),
    }
}

/// An instant for people: the date in UTC, and how far away it is.
pub(crate) fn time(at: UnixTime, now: UnixTime) -> String {
    let date = i64::try_from(at.0)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| {
            date.format(format_description!(
                "[year]-[month]-[day] [hour]:[minute]:[second] UTC"
            ))
            .ok()
        });
    let Some(date) = date else {
        return format!("{} (Unix seconds)", at.0);
    };
    match (at.0.checked_sub(now.0), now.0.saturating_sub(at.0)) {
        (Some(left), _) => format!("{date}, in {}", span(left)),
        (None, past) => format!("{date}, {} ago", span(past)),
    }
}

/// A span in the unit that says enough of it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use souk_crypto::UnixTime;

    #[test]
    fn times_are_dates_with_a_distance() {
        let at = |seconds| super::time(UnixTime(seconds), UnixTime(1_795_200_000));
        insta::assert_snapshot!(at(1_795_203_543), @"2026-11-20 19:39:03 UTC, in 59 min");
        insta::assert_snapshot!(at(1_795_100_000), @"2026-11-19 14:53:20 UTC, 27 h ago");
        insta::assert_snapshot!(at(u64::MAX), @"18446744073709551615 (Unix seconds)");
    }

    #[test]
    fn columns_line_up_by_characters() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = super::table(&[row(["NAME", "N"]), row(["é", "10"]), row(["longer", "2"])]);
        insta::assert_snapshot!(text, @r"
        NAME    N
        é       10
        longer  2
        ");
    }
}
