//! Text of strangers on its way to a terminal: files, cards, receipts and what a provider or a program said.
//!
//! Threat: a name in an archive or a word in a file that clears the screen, sets its title, answers for the user, writes
//! over what stands above, or pretends to be a line of our own. Everything that a command prints goes through here; what
//! is not shown is written as `\u001b`, which is the same character in JSON.

use std::fmt::{self, Display, Write};

/// A text of one or more lines.
pub(crate) struct Text<T>(pub(crate) T);

/// A text that stays on its line.
pub(crate) struct Line<T>(pub(crate) T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_shown = |c| matches!(c, '\n' | '\t') || is_harmless(c);
        write!(Cleaner { out: f, is_shown }, "{}", self.0)
    }
}

impl<T: Display> Display for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_shown = is_harmless;
        write!(Cleaner { out: f, is_shown }, "{}", self.0)
    }
}

/// Whether a character moves, hides and reorders nothing.
fn is_harmless(c: char) -> bool {
    // Line separators and marks of direction, with which one text looks like another.
    let is_format = matches!(
        c,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !c.is_control() && !is_format
}

struct Cleaner<'a, 'f, F> {
    out: &'a mut fmt::Formatter<'f>,
    is_shown: F,
}

impl<F: Fn(char) -> bool> Write for Cleaner<'_, '_, F> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(|c| !(self.is_shown)(c)) {
            let Some(last) = part.chars().next_back().filter(|c| !(self.is_shown)(*c)) else {
                self.out.write_str(part)?;
                continue;
            };
            self.out.write_str(&part[..part.len() - last.len_utf8()])?;
            // None of them is outside of the first plane, where JSON would need two.
            write!(self.out, "\\u{:04x}", u32::from(last))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_controls_no_terminal() {
        let hostile = "a\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}b\u{7f}\n\tc";
        assert_eq!(
            Text(hostile).to_string(),
            "a\\u001b]0;owned\\u0007\\u000d\\u009b2J\\u202eb\\u007f\n\tc"
        );
        assert_eq!(
            Line("a\nerror: b\tc").to_string(),
            "a\\u000aerror: b\\u0009c"
        );
        assert_eq!(Line("Größe → 中文 │").to_string(), "Größe → 中文 │");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "name": "\u{1b}\u{9b}\u{202e}\n" });
        let told = Text(value.to_string()).to_string();
        assert!(told.chars().all(|c| c.is_ascii_graphic()), "{told}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&told).ok(),
            Some(value)
        );
    }
}
