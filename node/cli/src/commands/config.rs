//! `souk config`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use miette::{Diagnostic, LabeledSpan, NamedSource, Severity};
use souk_node::config::{self, ConfigError};
use souk_toml::{Mistake, Mistakes};

use super::DONE;
use crate::{
    failure::{CONFIG, Failure},
    out,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Explain every mistake of a configuration.
    #[command(after_help = "Example:\n  souk config check /etc/souk/souk.toml")]
    Check(Check),
    /// Print all keys with their defaults and what they mean.
    #[command(after_help = "Example:\n  souk config default > souk.toml")]
    Default,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The file to check
    #[arg(default_value = "souk.toml")]
    file: PathBuf,
}

impl Config {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Check(Check { file }) => {
                let config = config::Config::load(&file).map_err(|error| unchecked(&error))?;
                let roles: Vec<_> = config.node.roles.iter().map(|role| role.as_str()).collect();
                out::line(format_args!(
                    "{} is right: network {}, {}",
                    file.display(),
                    config.network.id,
                    if roles.is_empty() {
                        "no role".to_owned()
                    } else {
                        roles.join(", ")
                    },
                ));
                for warning in config.warnings() {
                    out::note(format_args!("warning: {warning}"));
                }
                DONE
            }
            Self::Default => {
                out::line(config::DEFAULT.trim_end());
                DONE
            }
        }
    }
}

/// As [`explain`], for the command whose file is an argument.
fn unchecked(error: &ConfigError) -> Failure {
    match error {
        ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            explain(error)
                .hint("make one with `souk node init`, or name another: souk config check FILE")
        }
        _ => explain(error),
    }
}

/// What is wrong with a configuration file, for people.
pub(crate) fn explain(error: &ConfigError) -> Failure {
    match error {
        ConfigError::Mistakes {
            path,
            text,
            mistakes,
        } => self::mistakes(path, text, mistakes),
        ConfigError::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::of(error).hint("make one with `souk node init`, or name another with --config")
        }
        ConfigError::Read { .. } | ConfigError::TooLarge { .. } => Failure::of(error),
    }
    .code(CONFIG)
}

/// What is wrong with a file that has mistakes, for people.
pub(super) fn mistakes(path: &Path, text: &str, mistakes: &Mistakes) -> Failure {
    let name = path.display().to_string();
    let shown: Vec<_> = mistakes
        .iter()
        .map(|mistake| rendered(&name, text, mistake))
        .collect();
    let count = shown.len();
    let noun = if count == 1 { "mistake" } else { "mistakes" };
    Failure::new(format_args!("{name} has {count} {noun}"))
        .detail(format_args!(
            "\n{}",
            shown.join("\n").trim_end_matches('\n')
        ))
        .code(CONFIG)
}

fn rendered(name: &str, text: &str, mistake: &Mistake) -> String {
    let shown = Shown {
        mistake,
        source: NamedSource::new(name, text.to_owned()),
    };
    let handler =
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
            .with_width(100)
            .with_context_lines(1);
    let mut out = String::new();
    match handler.render_report(&mut out, &shown) {
        Ok(()) => out,
        Err(_) => format!(
            "line {}: {}; {}\n",
            mistake.line, mistake.what, mistake.hint
        ),
    }
}

/// One mistake as miette draws it.
#[derive(Debug)]
struct Shown<'a> {
    mistake: &'a Mistake,
    source: NamedSource<String>,
}

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.mistake.what)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn severity(&self) -> Option<Severity> {
        Some(Severity::Error)
    }

    fn help<'b>(&'b self) -> Option<Box<dyn std::fmt::Display + 'b>> {
        Some(Box::new(&self.mistake.hint))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = LabeledSpan::new_with_span(Some("here".to_owned()), self.mistake.span.clone());
        Some(Box::new(std::iter::once(span)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn explained(text: &str) -> String {
        let mistakes = config::Config::parse(text, Path::new("/")).expect_err("has mistakes");
        let path = "souk.toml".into();
        let text = text.to_owned();
        explain(&ConfigError::Mistakes {
            path,
            text,
            mistakes,
        })
        .to_string()
    }

    #[test]
    fn mistakes_are_drawn_with_their_lines_and_hints() {
        insta::assert_snapshot!(explained(
            "[network]\nmean_delay_ms = 60000\n\n[node]\nmdsn = true\nlisten = [\"tcp:80\"]\n"
        ));
    }

    #[test]
    fn a_provider_without_consent_is_told_the_line_to_write() {
        insta::assert_snapshot!(explained("[node]\nroles = [\"provider\"]\n"));
    }

    #[test]
    fn a_missing_file_says_how_to_make_one() {
        let error =
            config::Config::load(Path::new("/nonexistent/souk.toml")).expect_err("is not there");
        insta::assert_snapshot!(explain(&error));
        let checked = unchecked(&error).to_string();
        assert!(
            checked.contains("souk config check FILE") && !checked.contains("--config"),
            "{checked}"
        );
    }
}
