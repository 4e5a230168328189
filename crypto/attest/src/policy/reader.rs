//! Reads typed values out of a policy and collects every mistake, with its line and what to write instead.

use std::{fmt::Display, ops::Range, str::FromStr};

use souk_toml::{Document, Mistakes, suggestion, whole_number};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// The text and the mistakes found so far.
pub(super) struct Reader<'a>(Document<'a>);

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
        let (document, table) = Document::parse(text, "see https://toml.io for the syntax");
        (Self(document), table)
    }

    /// Ends the reading.
    pub(super) fn finish<T>(self, value: T) -> Result<T, Mistakes> {
        self.0.finish().map(|()| value)
    }

    /// The whole text, which goes by `name`.
    pub(super) fn root<'t>(
        &mut self,
        name: &'t str,
        table: &'t DeTable<'a>,
        known: &[&str],
    ) -> Section<'t, 'a> {
        let section = Section {
            name,
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
        match root.table.and_then(|table| table.get(key)) {
            Some(value) => {
                let hint = format!("write [{key}] on a line of its own and its keys below");
                self.table(key, value, known, "is a section", &hint)
            }
            None => Section {
                name: key,
                table: None,
                span: 0..0,
            },
        }
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
        let what = "is a list of sections";
        let hint = format!("write [[{key}]] on a line of its own and its keys below");
        let Some(items) = value.get_ref().as_array() else {
            self.mistake(value.span(), format!("`{key}` {what}"), hint);
            return Vec::new();
        };
        if items.len() > max {
            let what = format!("{} times [[{key}]]", items.len());
            self.mistake(value.span(), what, format!("write at most {max}"));
        }
        let items = items.iter().take(max);
        items
            .map(|item| self.table(key, item, known, what, &hint))
            .collect()
    }

    /// A value that has to be a table, by name; empty where it is none.
    fn table<'t>(
        &mut self,
        name: &'t str,
        value: &'t Spanned<DeValue<'a>>,
        known: &[&str],
        what: &str,
        hint: &str,
    ) -> Section<'t, 'a> {
        let section = Section {
            name,
            table: value.get_ref().as_table(),
            span: value.span(),
        };
        if section.table.is_none() {
            self.mistake(value.span(), format!("`{name}` {what}"), hint);
        }
        self.find_unknown(&section, known);
        section
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
        match whole_number(value) {
            Some(number) if number <= max => Some(number),
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
                let known = known.iter().copied();
                self.mistake(key.span(), what, suggestion(wrong, known, "keys"));
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
        self.0.mistake(span, what, hint);
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
