//! What the user is told when a command did not do its work: what failed, why, and what to do.

use std::{error::Error, fmt, process::ExitCode};

use souk_crypto::causes;

use crate::{
    clean::{Line, Text},
    out,
};

/// The command line makes no sense (`EX_USAGE` of sysexits.h).
pub(crate) const USAGE: u8 = 64;
/// Something that is needed is not there now (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// The configuration has mistakes (`EX_CONFIG`).
pub(crate) const CONFIG: u8 = 78;
/// Everything else.
pub(crate) const FAILED: u8 = 1;

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    what: String,
    detail: Option<String>,
    causes: Vec<String>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// Says what failed, with nothing to add.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            detail: None,
            causes: Vec::new(),
            hint: None,
            code: FAILED,
        }
    }

    /// Says what failed; the error and its sources say why.
    pub(crate) fn because(what: impl fmt::Display, why: &(dyn Error + 'static)) -> Self {
        Self {
            causes: causes(why).map(ToString::to_string).collect(),
            ..Self::new(what)
        }
    }

    /// The error says what failed, and its sources say why.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        match error.source() {
            Some(source) => Self::because(error, source),
            None => Self::new(error),
        }
    }

    /// Adds lines that show what is wrong.
    pub(crate) fn detail(self, detail: impl fmt::Display) -> Self {
        let detail = Some(detail.to_string());
        Self { detail, ..self }
    }

    /// Adds what the user can do.
    pub(crate) fn hint(self, hint: impl fmt::Display) -> Self {
        let hint = Some(hint.to_string());
        Self { hint, ..self }
    }

    /// Sets the exit status.
    pub(crate) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// What failed and why, for a list of failures.
    pub(crate) fn in_one_line(&self) -> String {
        let parts = std::iter::once(&self.what).chain(&self.causes);
        parts.cloned().collect::<Vec<_>>().join(": ")
    }

    /// What the user can do.
    pub(crate) fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The exit status.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    /// Prints it on stderr and gives the exit status.
    pub(crate) fn show(&self) -> ExitCode {
        out::note(self.to_string().trim_end());
        self.exit_code()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", Line(&self.what))?;
        if let Some(detail) = &self.detail {
            writeln!(f, "{}", Text(detail))?;
        }
        for cause in &self.causes {
            // A cause of several lines stays one cause.
            let lines: Vec<_> = cause.lines().map(|line| Line(line).to_string()).collect();
            writeln!(f, "  because {}", lines.join("\n    "))?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  try: {}", Line(hint)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_why_and_what_to_do() {
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let failure = Failure::because("cannot read the key", &refused)
            .hint("run it as the user of the node");
        insta::assert_snapshot!(failure, @r"
        error: cannot read the key
          because permission denied
          try: run it as the user of the node
        ");
    }

    #[test]
    fn no_part_of_a_failure_pretends_to_be_another() {
        let why = std::io::Error::other("b\u{1b}[2J\n  try: c");
        let failure = Failure::because("a\n  try: d", &why)
            .detail("e\u{9b}2J\nf")
            .hint("g\nh");
        insta::assert_snapshot!(failure, @r"
        error: a\u000a  try: d
        e\u009b2J
        f
          because b\u001b[2J
              try: c
          try: g\u000ah
        ");
    }
}
