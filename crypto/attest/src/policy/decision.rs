//! A decision that explains itself: one line for each check.

use std::fmt;

use crate::{
    refusal::Refusal,
    tdx::TcbStatus,
    verified::{FactsRef, Kind, Verified},
};

/// Whether evidence is believed, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    kind: Option<Kind>,
    tcb_status: Option<TcbStatus>,
    lines: Vec<Line>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name of the check, which does not change between releases.
    pub check: &'static str,
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
    /// How it ended.
    pub verdict: Verdict,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It holds.
    Accepted,
    /// It does not hold, for the reason of this name, which does not change between releases.
    Refused(&'static str),
    /// Nobody asked.
    NotAsked,
}

impl Decision {
    pub(super) fn of(verified: &Verified) -> Self {
        Self {
            kind: Some(verified.kind()),
            tcb_status: match verified.facts() {
                FactsRef::Tdx(facts) => Some(facts.tcb_status()),
                FactsRef::Snp(_) => None,
            },
            lines: Vec::new(),
        }
    }

    /// The decision about evidence that does not verify.
    #[must_use]
    pub fn unverified(refusal: &Refusal) -> Self {
        let line = Line {
            check: "evidence",
            expected: "evidence that verifies".to_owned(),
            found: refusal.to_string(),
            verdict: Verdict::Refused(refusal.reason()),
        };
        Self {
            kind: None,
            tcb_status: None,
            lines: vec![line],
        }
    }

    /// The decision without a policy: no reference value, so no.
    #[must_use]
    pub fn without_policy(verified: &Verified) -> Self {
        let mut decision = Self::of(verified);
        decision.lines.push(Line {
            check: "measurement",
            expected: "a reference value".to_owned(),
            found: "no reference value: no policy was given".to_owned(),
            verdict: Verdict::Refused("no-reference-value"),
        });
        decision
    }

    /// Whether every check holds.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        !self.lines.is_empty() && self.reasons().next().is_none()
    }

    /// What the evidence proves; `None` if it did not verify.
    #[must_use]
    pub const fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// Intel's judgement of the machine; `None` if it did not verify or is not Intel's.
    #[must_use]
    pub const fn tcb_status(&self) -> Option<TcbStatus> {
        self.tcb_status
    }

    /// The checks in the order in which they were made.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Names of the reasons against it.
    pub fn reasons(&self) -> impl Iterator<Item = &'static str> {
        self.lines.iter().filter_map(|line| match line.verdict {
            Verdict::Refused(reason) => Some(reason),
            Verdict::Accepted | Verdict::NotAsked => None,
        })
    }

    pub(super) fn check(
        &mut self,
        check: &'static str,
        reason: &'static str,
        holds: bool,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        self.lines.push(Line {
            check,
            expected: expected.into(),
            found: found.into(),
            verdict: if holds {
                Verdict::Accepted
            } else {
                Verdict::Refused(reason)
            },
        });
    }

    pub(super) fn not_asked(&mut self, check: &'static str, found: impl Into<String>) {
        self.lines.push(Line {
            check,
            expected: "anything".to_owned(),
            found: found.into(),
            verdict: Verdict::NotAsked,
        });
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accepted => "accepted",
            Self::Refused(_) => "refused",
            Self::NotAsked => "not asked",
        })
    }
}
