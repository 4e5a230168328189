//! What is wrong with a TOML file that a person wrote: every mistake, with its line and what to write instead.
//!
//! ```text
//! text ─ Document::parse ─► table, to be read ─┐
//!             └─ mistake, mistake, … ◄─────────┘ ─ finish ─► Ok, or Mistakes
//! ```
//!
//! Which keys there are and what they mean is for the reader of each file: a node's configuration and a policy for evidence
//! have readers of their own.

use std::{
    fmt::{self, Display},
    ops::Range,
};

use toml::de::{DeTable, DeValue};

/// A name that is further than this from every known one is no misspelling of it.
const MAX_TYPO_DISTANCE: usize = 3;

/// Of the errors of syntax in one file so many are told: more of them say only that it is no TOML.
const MAX_SYNTAX_MISTAKES: usize = 5;

/// The text of a file.
///
/// # Errors
/// The mistake, and the text with a sign where it is not UTF-8.
pub fn text(bytes: Vec<u8>) -> Result<String, (String, Mistakes)> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
        let mut document = Document::new(&text);
        let sign = at..at + char::REPLACEMENT_CHARACTER.len_utf8();
        document.mistake(sign, "this is not UTF-8", "save the file as UTF-8");
        let mistakes = Mistakes(document.mistakes);
        (text, mistakes)
    })
}

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it is, in bytes of the text.
    pub span: Range<usize>,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub hint: String,
}

/// All mistakes of one file, in the order of their lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// The mistakes, by line.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(
                f,
                "{newline}line {}: {}; {}",
                mistake.line, mistake.what, mistake.hint
            )?;
        }
        Ok(())
    }
}

/// A text that is being read, and the mistakes found so far.
pub struct Document<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
    /// What is read of a broken text may stand where nobody put it, so nothing more is said of it.
    is_broken: bool,
}

impl<'a> Document<'a> {
    const fn new(text: &'a str) -> Self {
        Self {
            text,
            mistakes: Vec::new(),
            is_broken: false,
        }
    }

    /// Parses the text as far as it goes; errors of syntax become mistakes with `hint`. Where there are any, no mistake
    /// is added any more: it would be one of a text that nobody wrote.
    #[must_use]
    pub fn parse(text: &'a str, hint: &str) -> (Self, DeTable<'a>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut document = Self::new(text);
        let is_toml = errors.len() <= MAX_SYNTAX_MISTAKES;
        let count = if is_toml { errors.len() } else { 1 };
        for error in errors.iter().take(count) {
            let hint = match is_toml {
                true => hint.to_owned(),
                false => format!(
                    "more is wrong in {} places, so perhaps this is another file; {hint}",
                    errors.len() - 1
                ),
            };
            document.mistake(error.span().unwrap_or(0..0), error.message(), hint);
        }
        document.is_broken = !errors.is_empty();
        (document, table.into_inner())
    }

    /// Adds a mistake at a place of the text.
    pub fn mistake(&mut self, span: Range<usize>, what: impl Display, hint: impl Display) {
        if self.is_broken {
            return;
        }
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        self.mistakes.push(Mistake {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            span,
            what: what.to_string(),
            hint: hint.to_string(),
        });
    }

    /// How many mistakes were found so far.
    #[must_use]
    pub const fn mistakes(&self) -> usize {
        self.mistakes.len()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All mistakes.
    pub fn finish(mut self) -> Result<(), Mistakes> {
        if self.mistakes.is_empty() {
            return Ok(());
        }
        self.mistakes
            .sort_by_key(|mistake| (mistake.span.start, mistake.what.clone()));
        Err(Mistakes(self.mistakes))
    }
}

/// A whole number that is not negative, in any notation of TOML.
#[must_use]
pub fn whole_number(value: &DeValue<'_>) -> Option<u64> {
    let digits = value.as_integer()?;
    u64::from_str_radix(digits.as_str(), digits.radix()).ok()
}

/// What to write instead of an unknown name: the known one that it is near to, or all of them; `kind` is their word.
#[must_use]
pub fn suggestion<'n>(wrong: &str, names: impl Iterator<Item = &'n str>, kind: &str) -> String {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    let nearest = names
        .iter()
        .map(|name| (distance(wrong, name), *name))
        .min();
    match nearest {
        Some((far, name)) if far <= MAX_TYPO_DISTANCE.min(name.len() / 2) => {
            format!("did you mean `{name}`?")
        }
        _ => format!("its {kind} are {}", names.join(", ")),
    }
}

/// Levenshtein's distance of two short names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let swap = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = swap.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_told_by_line_and_not_in_the_order_of_finding() {
        let (mut document, _) = Document::parse("a = 1\nb = 2\n", "");
        document.mistake(6..7, "`b` is wrong", "take it out");
        document.mistake(0..1, "`a` is wrong", "take it out");
        assert_eq!(document.mistakes(), 2);
        let told = document.finish().expect_err("two mistakes").to_string();
        assert_eq!(
            told,
            "line 1: `a` is wrong; take it out\nline 2: `b` is wrong; take it out"
        );
    }

    #[test]
    fn a_text_that_is_no_toml_has_a_mistake_and_what_is_right_is_read() {
        let (document, table) = Document::parse("a = 1\nb = = 2\n", "see the manual");
        assert_eq!(
            table.get("a").and_then(|a| whole_number(a.get_ref())),
            Some(1)
        );
        let told = document.finish().expect_err("a mistake").to_string();
        assert!(
            told.starts_with("line 2: ") && told.ends_with("; see the manual"),
            "{told}"
        );
    }

    #[test]
    fn a_broken_text_has_its_errors_of_syntax_alone_and_another_file_has_one() {
        let (mut document, _) = Document::parse("[network\nname = 1\n", "");
        let broken = document.mistakes();
        assert!(broken > 0);
        document.mistake(9..13, "there is no section `name`", "");
        assert_eq!(document.mistakes(), broken);
        let passwd = "root:x:0:0:root:/root:/bin/bash\n".repeat(90);
        let (document, _) = Document::parse(&passwd, "see the manual");
        let told = document.finish().expect_err("no TOML").to_string();
        assert!(
            told.starts_with("line 1: ") && told.contains("another file"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
    }

    #[test]
    fn bytes_that_are_no_text_have_a_line() {
        let (shown, mistakes) = text(b"a = 1\nb = \"\xff\xfe\"\n".to_vec()).expect_err("not UTF-8");
        let told = mistakes.to_string();
        assert_eq!(told, "line 2: this is not UTF-8; save the file as UTF-8");
        let mistake = mistakes.iter().next().expect("one");
        assert_eq!(&shown[mistake.span.clone()], "\u{fffd}");
        assert_eq!(text(b"a = 1".to_vec()).ok().as_deref(), Some("a = 1"));
    }

    #[test]
    fn a_near_name_is_suggested_and_a_far_one_gets_the_list() {
        let names = || ["kinds", "version"].into_iter();
        assert_eq!(
            suggestion("knids", names(), "keys"),
            "did you mean `kinds`?"
        );
        assert_eq!(
            suggestion("x", names(), "keys"),
            "its keys are kinds, version"
        );
        // Of a short name, half its letters may be wrong.
        assert_eq!(
            suggestion("xy", ["id"].into_iter(), "keys"),
            "its keys are id"
        );
    }

    #[test]
    fn numbers_are_read_in_every_notation() {
        for (text, number) in [
            ("10", Some(10)),
            ("0x10", Some(16)),
            ("1_0", Some(10)),
            ("-1", None),
            ("true", None),
        ] {
            let text = format!("n = {text}");
            let (_, table) = Document::parse(&text, "");
            let found = table.get("n").and_then(|n| whole_number(n.get_ref()));
            assert_eq!(found, number, "{text}");
        }
    }
}
