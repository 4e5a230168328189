//! Reads typed values out of a policy and collects every mistake, with its line and what to write instead.

use std::{fmt, fmt::Display, ops::Range, str::FromStr};

use toml::de::{DeTable, DeValue};

/// A name that is further than this from every known one is no misspelling of it.
const MAX_TYPO_DISTANCE: usize = 3;

/// One mistake in a policy.
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

/// All mistakes of one policy, in the order of their lines; never empty.
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

/// The text and the mistakes found so far.
pub(super) struct Reader<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

/// A table of the text, the name it goes by, and where it stands.
#[derive(Clone)]
pub(super) struct Section<'t, 'a> {
    name: &'t str,
    table: Option<&'t DeTable<'a>>,
    span: Range<usize>,
}

impl<'a> Reader<'a> {
    /// Parses the text; errors of syntax become mistakes.
    pub(super) fn new(text: &'a str) -> (Self, DeTable<'a>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut reader = Self {
            text,
            mistakes: Vec::new(),
        };
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            reader.mistake(span, error.message(), "see https://toml.io for the syntax");
        }
        (reader, table.into_inner())
    }

    /// Ends the reading.
    pub(super) fn finish<T>(mut self, value: T) -> Result<T, Mistakes> {
        if self.mistakes.is_empty() {
            return Ok(value);
        }
        self.mistakes
            .sort_by_key(|mistake| (mistake.span.start, mistake.what.clone()));
        Err(Mistakes(self.mistakes))
    }

    pub(super) fn root<'t>(&mut self, table: &'t DeTable<'a>, known: &[&str]) -> Section<'t, 'a> {
        let section = Section {
            name: "the policy",
            table: Some(table),
            span: 0..0,
        };
        self.find_unknown(&section, known);
        section
    }

    /// The table under `key`; empty where there is none.
    pub(super) fn section<'t>(
        &mut self,
        root: &Section<'t, 'a>,
        key: &'t str,
        known: &[&str],
    ) -> Section<'t, 'a> {
        let mut section = Section {
            name: key,
            table: None,
            span: 0..0,
        };
        if let Some(value) = root.table.and_then(|table| table.get(key)) {
            section.span = value.span();
            section.table = value.get_ref().as_table();
            if section.table.is_none() {
                let hint = format!("write [{key}] on a line of its own and its keys below");
                self.mistake(value.span(), format!("`{key}` is a section"), hint);
            }
        }
        self.find_unknown(&section, known);
        section
    }

    /// The tables under `[[key]]`, at most `max`.
    pub(super) fn sections<'t>(
        &mut self,
        root: &Section<'t, 'a>,
        key: &'t str,
        known: &[&str],
        max: usize,
    ) -> Vec<Section<'t, 'a>> {
        let Some(value) = root.table.and_then(|table| table.get(key)) else {
            return Vec::new();
        };
        let Some(items) = value.get_ref().as_array() else {
            let hint = format!("write [[{key}]] on a line of its own and its keys below");
            self.mistake(value.span(), format!("`{key}` is a list of sections"), hint);
            return Vec::new();
        };
        if items.len() > max {
            let what = format!("{} times [[{key}]]", items.len());
            self.mistake(value.span(), what, format!("write at most {max}"));
        }
        let mut sections = Vec::new();
        for item in items.iter().take(max) {
            let section = Section {
                name: key,
                table: item.get_ref().as_table(),
                span: item.span(),
            };
            if section.table.is_none() {
                let hint = format!("write [[{key}]] on a line of its own and its keys below");
                self.mistake(item.span(), format!("`{key}` is a list of sections"), hint);
            }
            self.find_unknown(&section, known);
            sections.push(section);
        }
        sections
    }

    pub(super) fn bool(&mut self, section: &Section<'_, 'a>, key: &str, default: bool) -> bool {
        let Some((value, span)) = section.value(key) else {
            return default;
        };
        value.as_bool().unwrap_or_else(|| {
            self.wrong_type(section, key, "true or false", value, span);
            default
        })
    }

    /// A whole number of at most `max`.
    pub(super) fn integer(
        &mut self,
        section: &Section<'_, 'a>,
        key: &str,
        max: u64,
    ) -> Option<u64> {
        let (value, span) = section.value(key)?;
        let Some(digits) = value.as_integer() else {
            let wanted = format!("a whole number from 0 to {max}");
            self.wrong_type(section, key, &wanted, value, span);
            return None;
        };
        match u64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) if number <= max => Some(number),
            _ => {
                let what = format!("{key} is {}", digits.as_str());
                self.mistake(span, what, format!("it goes from 0 to {max}"));
                None
            }
        }
    }

    /// A string that `take` understands; `hint` says what it should be.
    pub(super) fn parsed<T>(
        &mut self,
        section: &Section<'_, 'a>,
        key: &str,
        hint: &str,
        take: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let (value, span) = section.value(key)?;
        let Some(text) = value.as_str() else {
            self.wrong_type(section, key, hint, value, span);
            return None;
        };
        let taken = take(text);
        if taken.is_none() {
            self.mistake(span, format!("{key} is {text:?}"), hint);
        }
        taken
    }

    /// The same, where something must stand.
    pub(super) fn required<T>(
        &mut self,
        section: &Section<'_, 'a>,
        key: &str,
        hint: &str,
        take: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        if section.value(key).is_none() {
            let what = format!("`{}` has no `{key}`", section.name);
            self.mistake(section.span.clone(), what, hint);
        }
        self.parsed(section, key, hint, take)
    }

    /// A list of strings, each of which `take` understands.
    pub(super) fn list<T>(
        &mut self,
        section: &Section<'_, 'a>,
        key: &str,
        hint: &str,
        take: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let (value, span) = section.value(key)?;
        let Some(items) = value.as_array() else {
            self.wrong_type(section, key, "a list of strings in [ ]", value, span);
            return None;
        };
        let mut taken = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_str().map(&take) {
                Some(Some(value)) => taken.push(value),
                _ => self.mistake(item.span(), format!("{key} holds something else"), hint),
            }
        }
        Some(taken)
    }

    /// Adds a mistake about a key, or about its section where there is none.
    pub(super) fn misfit(&mut self, section: &Section<'_, 'a>, key: &str, what: &str, hint: &str) {
        let span = section
            .value(key)
            .map_or_else(|| section.span.clone(), |(_, span)| span);
        self.mistake(span, what, hint);
    }

    fn find_unknown(&mut self, section: &Section<'_, 'a>, known: &[&str]) {
        let Some(table) = section.table else {
            return;
        };
        for key in table.keys() {
            let wrong = key.get_ref().as_ref();
            if !known.contains(&wrong) {
                let what = format!("there is no key `{wrong}` in {}", section.name);
                self.mistake(key.span(), what, suggestion(wrong, known));
            }
        }
    }

    fn wrong_type(
        &mut self,
        section: &Section<'_, 'a>,
        key: &str,
        wanted: &str,
        found: &DeValue<'_>,
        span: Range<usize>,
    ) {
        let what = format!("{key} in {} is of type {}", section.name, found.type_str());
        self.mistake(span, what, format!("write {wanted}"));
    }

    fn mistake(&mut self, span: Range<usize>, what: impl Display, hint: impl Display) {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        self.mistakes.push(Mistake {
            line: 1 + before.iter().filter(|byte| **byte == b'\n').count(),
            span,
            what: what.to_string(),
            hint: hint.to_string(),
        });
    }
}

impl<'a> Section<'_, 'a> {
    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    fn value(&self, key: &str) -> Option<(&DeValue<'a>, Range<usize>)> {
        let value = self.table?.get(key)?;
        Some((value.get_ref(), value.span()))
    }
}

/// Takes what `FromStr` understands.
pub(super) fn from_str<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn suggestion(wrong: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (distance(wrong, name), name)).min();
    match nearest {
        Some((far, name)) if far <= MAX_TYPO_DISTANCE.min(name.len() / 2) => {
            format!("did you mean `{name}`?")
        }
        _ => format!("its keys are {}", known.join(", ")),
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
