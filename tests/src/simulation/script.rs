//! What chance decides in a run, and what was seen: drawn from a seed, or read back from a file.
//!
//! ```text
//!   seed ──► decisions ──► run ──► steps ──► file
//!   file ──► decisions ──► run ──► steps, each compared with the one in the file
//! ```
//!
//! A step is a decision or something that was seen. A replay takes the decisions from the file, so it does not hang on the
//! generator of random numbers, and stops at the first step that differs.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, BufRead, Write},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};

/// Version of the file; another one is refused.
const VERSION: u64 = 1;

/// One step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// One of `of` ways was taken.
    Chose {
        /// What was decided.
        what: String,
        /// How many ways there were.
        of: u32,
        /// The one that was taken, from 0.
        way: u32,
    },
    /// Something was seen.
    Saw(String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chose { what, of, way } => write!(f, "chose {way} of {of} for {what}"),
            Self::Saw(what) => f.write_str(what),
        }
    }
}

/// A step and its virtual time, in milliseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    /// When.
    pub at_ms: u64,
    /// What.
    pub step: Step,
}

/// The steps of one run, as they stand in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// What ids and keys were drawn from.
    pub seed: u64,
    /// The bug that was planted.
    pub bug: Option<String>,
    /// In the order in which they happened.
    pub steps: Vec<Timed>,
}

/// Why a file is no script.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be read.
    #[error("the script cannot be read")]
    Read(#[from] io::Error),
    /// A line is not what it should be.
    #[error("line {0} of the script is no step of version {VERSION}")]
    Line(usize),
}

impl Script {
    /// Writes one JSON object a line, the head first.
    ///
    /// # Errors
    /// Of the writer.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let head = json!({"souk_simulation": VERSION, "seed": self.seed, "bug": self.bug});
        writeln!(out, "{head}")?;
        for Timed { at_ms, step } in &self.steps {
            let line = match step {
                Step::Chose { what, of, way } => {
                    json!({"at_ms": at_ms, "chose": what, "of": of, "way": way})
                }
                Step::Saw(what) => json!({"at_ms": at_ms, "saw": what}),
            };
            writeln!(out, "{line}")?;
        }
        Ok(())
    }

    /// Reads what [`Script::write`] wrote.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub fn read(input: impl BufRead) -> Result<Self, ScriptError> {
        let mut script = Self::default();
        for (index, line) in input.lines().enumerate() {
            let line: Value =
                serde_json::from_str(&line?).map_err(|_| ScriptError::Line(index + 1))?;
            let read = if index == 0 {
                script.read_head(&line)
            } else {
                timed(&line).map(|step| script.steps.push(step))
            };
            read.ok_or(ScriptError::Line(index + 1))?;
        }
        Ok(script)
    }

    fn read_head(&mut self, line: &Value) -> Option<()> {
        (line["souk_simulation"].as_u64()? == VERSION).then_some(())?;
        self.seed = line["seed"].as_u64()?;
        self.bug = line["bug"].as_str().map(str::to_owned);
        Some(())
    }
}

fn timed(line: &Value) -> Option<Timed> {
    let number = |name: &str| u32::try_from(line[name].as_u64()?).ok();
    let step = match (line["chose"].as_str(), line["saw"].as_str()) {
        (Some(what), None) => Step::Chose {
            what: what.to_owned(),
            of: number("of")?,
            way: number("way")?,
        },
        (None, Some(what)) => Step::Saw(what.to_owned()),
        _ => return None,
    };
    Some(Timed {
        at_ms: line["at_ms"].as_u64()?,
        step,
    })
}

/// A replay that did not go as the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Number of the step, from 1.
    pub step: usize,
    /// What the file says; nothing where it has ended.
    pub expected: Option<Timed>,
    /// What happened.
    pub found: Timed,
}

/// Decides, and keeps what was decided and seen.
pub(super) struct Steps {
    rng: StdRng,
    /// Of a replay: what is still to come.
    expected: Option<VecDeque<Timed>>,
    /// Kept only where somebody wants to read them: they are most of the time of a run.
    kept: Option<Vec<Timed>>,
    count: usize,
    divergence: Option<Divergence>,
    pub(super) at_ms: u64,
}

impl Steps {
    pub(super) fn drawn(seed: u64, keep: bool) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            expected: None,
            kept: keep.then(Vec::new),
            count: 0,
            divergence: None,
            at_ms: 0,
        }
    }

    pub(super) fn replayed(script: &Script) -> Self {
        Self {
            expected: Some(script.steps.iter().cloned().collect()),
            ..Self::drawn(script.seed, true)
        }
    }

    /// Takes one of `of` ways.
    pub(super) fn choose(&mut self, what: &str, of: u32) -> u32 {
        let drawn = self.rng.random_range(0..of);
        let way = match self.expected.as_ref().and_then(VecDeque::front) {
            Some(Timed {
                step: Step::Chose { way, .. },
                ..
            }) => (*way).min(of - 1),
            _ => drawn,
        };
        if self.kept.is_some() {
            let what = what.to_owned();
            self.take(Step::Chose { what, of, way });
        }
        way
    }

    /// Whether something with a chance of `percent` in 100 happens.
    pub(super) fn happens(&mut self, what: &str, percent: u32) -> bool {
        self.choose(what, 100) < percent
    }

    /// A time between two bounds, in milliseconds.
    pub(super) fn delay_ms(&mut self, what: &str, from: u32, to: u32) -> u64 {
        u64::from(from + self.choose(what, to - from))
    }

    /// Takes note of something that was seen.
    pub(super) fn saw(&mut self, what: impl FnOnce() -> String) {
        if self.kept.is_some() {
            self.take(Step::Saw(what()));
        }
    }

    pub(super) fn divergence(&self) -> Option<&Divergence> {
        self.divergence.as_ref()
    }

    pub(super) fn into_kept(self) -> Vec<Timed> {
        self.kept.unwrap_or_default()
    }

    fn take(&mut self, step: Step) {
        let found = Timed {
            at_ms: self.at_ms,
            step,
        };
        self.count += 1;
        if let Some(expected) = &mut self.expected {
            let next = expected.pop_front();
            if self.divergence.is_none() && next.as_ref() != Some(&found) {
                self.divergence = Some(Divergence {
                    step: self.count,
                    expected: next,
                    found: found.clone(),
                });
            }
        }
        if let Some(kept) = &mut self.kept {
            kept.push(found);
        }
    }
}
