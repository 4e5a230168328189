//! What the user is told when a command did not do its work: what failed, why, and what to do.

use std::{error::Error, fmt, process::ExitCode};

use souk_crypto::causes;

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
    causes: Vec<String>,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    /// Says what failed, with nothing to add.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self {
            what: what.to_string(),
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

    /// Adds what the user can do.
    pub(crate) fn hint(self, hint: impl fmt::Display) -> Self {
        let hint = Some(hint.to_string());
        Self { hint, ..self }
    }

    /// Sets the exit status.
    pub(crate) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// Prints it on stderr and gives the exit status.
    pub(crate) fn show(&self) -> ExitCode {
        use std::io::Write as _;
        // Where stderr is closed there is nobody to tell.
        let _ = write!(std::io::stderr().lock(), "{self}");
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", self.what)?;
        for cause in &self.causes {
            writeln!(f, "  because {cause}")?;
        }
        match &self.hint {
            Some(hint) => writeln!(f, "  try: {hint}"),
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
}
