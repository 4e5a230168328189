//! Reads typed values out of a TOML document and collects every mistake instead of stopping at the first.
//!
//! The document with the defaults says which keys exist: whatever the user's document has beside those is a mistake.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr};

use souk_toml::{Document, Mistakes, suggestion, whole_number};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Two documents, of which the user's wins, and the mistakes found so far.
pub(super) struct Reader<'a> {
    document: Document<'a>,
    user: DeTable<'a>,
    defaults: DeTable<'a>,
}

impl<'a> Reader<'a> {
    /// Parses both; syntax errors and unknown names become mistakes.
    pub(super) fn new(text: &'a str, defaults: &'a str) -> Self {
        let hint =
            "see https://toml.io for the syntax; `souk config default` prints a file that is right";
        let (document, user) = Document::parse(text, hint);
        let defaults = DeTable::parse(defaults).expect("the built-in defaults are TOML");
        let mut reader = Self {
            document,
            user,
            defaults: defaults.into_inner(),
        };
        reader.find_unknown();
        reader
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All mistakes.
    pub(super) fn finish(self) -> Result<(), Mistakes> {
        self.document.finish()
    }

    /// How many mistakes were found so far.
    pub(super) fn mistakes(&self) -> usize {
        self.document.mistakes()
    }

    /// The default stands in where the value was wrong, so that one mistake is told once.
    pub(super) fn bool(&mut self, section: &str, key: &str) -> bool {
        let (value, span) = self.value(section, key);
        if let Some(taken) = value.as_bool() {
            return taken;
        }
        self.wrong_type(section, key, "true or false", &value, span);
        self.default(section, key).as_bool().unwrap_or_default()
    }

    /// An integer within `range`; the default stands in where the value was wrong.
    pub(super) fn integer(&mut self, section: &str, key: &str, range: RangeInclusive<u64>) -> u64 {
        let (value, span) = self.value(section, key);
        let (low, high) = (*range.start(), *range.end());
        match (whole_number(&value), value.as_integer()) {
            (Some(number), _) if range.contains(&number) => return number,
            (_, Some(digits)) => {
                let what = format!("{section}.{key} is {}", digits.as_str());
                self.document
                    .mistake(span, what, format!("it goes from {low} to {high}"));
            }
            (_, None) => {
                let wanted = format!("a whole number from {low} to {high}");
                self.wrong_type(section, key, &wanted, &value, span);
            }
        }
        whole_number(self.default(section, key)).unwrap_or(high)
    }

    /// The same for a type of 32 bits.
    pub(super) fn integer32(
        &mut self,
        section: &str,
        key: &str,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let wide = self.integer(
            section,
            key,
            u64::from(*range.start())..=u64::from(*range.end()),
        );
        u32::try_from(wide).unwrap_or(*range.end())
    }

    pub(super) fn string(&mut self, section: &str, key: &str) -> String {
        let (value, span) = self.value(section, key);
        let taken = value.as_str().map(str::to_owned);
        if taken.is_none() {
            self.wrong_type(section, key, "a string in quotes", &value, span);
        }
        taken.unwrap_or_default()
    }

    /// A string that `take` understands, or says why not.
    pub(super) fn parsed<T>(
        &mut self,
        section: &str,
        key: &str,
        take: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let (value, span) = self.value(section, key);
        let Some(text) = value.as_str() else {
            self.wrong_type(section, key, "a string in quotes", &value, span);
            return None;
        };
        self.take(section, key, text, span, take)
    }

    /// The same, where an empty string means none.
    pub(super) fn optional<T>(
        &mut self,
        section: &str,
        key: &str,
        take: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.parsed(section, key, |text| match text {
            "" => Ok(None),
            text => take(text).map(Some),
        })
        .flatten()
    }

    /// A list of strings, each of which `take` understands.
    pub(super) fn list<T>(
        &mut self,
        section: &str,
        key: &str,
        take: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<T> {
        let (value, span) = self.value(section, key);
        let Some(items) = value.as_array() else {
            self.wrong_type(section, key, "a list of strings in [ ]", &value, span);
            return Vec::new();
        };
        let mut taken = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => taken.extend(self.take(section, key, text, item.span(), &take)),
                None => self.wrong_type(
                    section,
                    key,
                    "a list of strings in [ ]",
                    item.get_ref(),
                    item.span(),
                ),
            }
        }
        taken
    }

    /// Adds a mistake about a key whose value has the right form but does not fit the others.
    pub(super) fn misfit(&mut self, section: &str, key: &str, what: &str, hint: &str) {
        let (_, span) = self.value(section, key);
        self.document
            .mistake(span, what.to_owned(), hint.to_owned());
    }

    fn take<T>(
        &mut self,
        section: &str,
        key: &str,
        text: &str,
        span: std::ops::Range<usize>,
        take: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        match take(text) {
            Ok(value) => Some(value),
            Err(Wrong { why, hint }) => {
                self.document
                    .mistake(span, format!("{section}.{key} is {text:?}: {why}"), hint);
                None
            }
        }
    }

    /// The value that holds, and where the user's text speaks of it.
    fn value(&self, section: &str, key: &str) -> (DeValue<'a>, std::ops::Range<usize>) {
        let users = self
            .user
            .get(section)
            .and_then(|table| table.get_ref().as_table());
        if let Some(value) = users.and_then(|table| table.get(key)) {
            return (value.get_ref().clone(), value.span());
        }
        let value = self.default(section, key).clone();
        let span = self.user.get(section).map_or(0..0, Spanned::span);
        (value, span)
    }

    fn default(&self, section: &str, key: &str) -> &DeValue<'a> {
        self.defaults
            .get(section)
            .and_then(|table| table.get_ref().as_table())
            .and_then(|table| table.get(key))
            .expect("every key that is read has a default")
            .get_ref()
    }

    fn find_unknown(&mut self) {
        let mut found = Vec::new();
        for (section, body) in &self.user {
            let name = section.get_ref().as_ref();
            let Some(known) = self.defaults.get(name) else {
                let names = self.defaults.keys().map(|name| name.get_ref().as_ref());
                let known_as_key = self.section_of(name);
                let hint = match known_as_key {
                    Some(section) => format!("`{name}` belongs under [{section}]"),
                    None => suggestion(name, names, "sections"),
                };
                found.push((
                    section.span(),
                    format!("there is no section `{name}`"),
                    hint,
                ));
                continue;
            };
            let (Some(table), Some(known)) =
                (body.get_ref().as_table(), known.get_ref().as_table())
            else {
                let hint = format!("write [{name}] on a line of its own and its keys below");
                found.push((section.span(), format!("`{name}` is a section"), hint));
                continue;
            };
            for key in table.keys() {
                let wrong = key.get_ref().as_ref();
                if known.contains_key(wrong) {
                    continue;
                }
                let names = known.keys().map(|name| name.get_ref().as_ref());
                let hint = match self.section_of(wrong) {
                    Some(section) => format!("`{wrong}` belongs under [{section}]"),
                    None => suggestion(wrong, names, "keys"),
                };
                found.push((
                    key.span(),
                    format!("there is no key `{wrong}` in [{name}]"),
                    hint,
                ));
            }
        }
        for (span, what, hint) in found {
            self.document.mistake(span, what, hint);
        }
    }

    /// The section that knows `key`.
    fn section_of(&self, key: &str) -> Option<&str> {
        self.defaults.iter().find_map(|(section, body)| {
            let table = body.get_ref().as_table()?;
            table.contains_key(key).then(|| section.get_ref().as_ref())
        })
    }

    fn wrong_type(
        &mut self,
        section: &str,
        key: &str,
        wanted: &str,
        found: &DeValue<'_>,
        span: std::ops::Range<usize>,
    ) {
        let what = format!("{section}.{key} is of type {}", found.type_str());
        self.document.mistake(span, what, format!("write {wanted}"));
    }
}

/// Why a string was not understood.
pub(super) struct Wrong {
    pub(super) why: String,
    pub(super) hint: String,
}

impl Wrong {
    pub(super) fn new(why: impl Display, hint: impl Display) -> Self {
        Self {
            why: why.to_string(),
            hint: hint.to_string(),
        }
    }
}

/// Understands a string by its `FromStr`.
pub(super) fn from_str<T: FromStr<Err: Display>>(hint: &str) -> impl Fn(&str) -> Result<T, Wrong> {
    move |text| text.parse().map_err(|why| Wrong::new(why, hint))
}
