//! What a command prints: text for people, JSON for scripts.

use std::io::{self, Write as _};

use serde::Serialize;

/// Prints one line on stdout. A reader that went away (`souk market | head`) is no failure.
pub(crate) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Prints one line on stderr: progress and advice, which scripts do not read.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints one JSON value on a line of its own.
pub(crate) fn json(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("what commands print has only string keys");
    line(text);
}

/// Lines up columns; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
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

#[cfg(test)]
mod tests {
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
