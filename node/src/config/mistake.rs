//! What is wrong with a configuration, with the place and a way out.

use std::{fmt, ops::Range};

/// One mistake in a configuration file.
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

/// All mistakes of one configuration, in the order of their lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    pub(super) fn check(mut all: Vec<Mistake>) -> Result<(), Self> {
        if all.is_empty() {
            return Ok(());
        }
        all.sort_by_key(|mistake| (mistake.span.start, mistake.what.clone()));
        Err(Self(all))
    }

    /// The mistakes, by line.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
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
