//! `souk attest reference`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_attest::{
    Believed, MAX_POLICY_BYTES, ReferenceError, ReferenceSignError, ReferenceValues, Seen, date,
    files, sign_reference,
};
use souk_crypto::{ReferenceKey, ReferencePublicKey, UnixTime, Window, keyfile, with_causes};
use souk_node::unix_now;

use super::{DONE, REFUSED, instant, unread, write_new};
use crate::{
    commands::config::mistakes,
    failure::{CONFIG, Failure, USAGE},
    out,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Reference {
    /// Make a key that signs reference values, and print its public half for `[[reference]]` of policies.
    #[command(after_help = "Example:\n  souk attest reference key release.key")]
    Key(Key),
    /// Sign the `[[measurement]]` tables of a file.
    #[command(
        after_help = "Examples:\n  souk attest reference sign values.toml --key release.key --name guest --serial 7 --days 180 --out guest.ref\n  souk attest reference sign values.toml --key release.key --name guest --serial 8 --from 2026-01-01T00:00:00Z --days 365 --out guest.ref --json\n\nThe serial rises with every file of a name: whoever has seen a higher one does not go back.\nExit status: 0 signed, 1 a file failed, 64 the window or the name cannot be, 78 the values have mistakes."
    )]
    Sign(Sign),
    /// Check a signed file of reference values, and say what it vouches for.
    #[command(
        after_help = "Examples:\n  souk attest reference check guest.ref --name guest --key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29\n  souk attest reference check guest.ref --name guest --key 3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29 --seen serials --json\n\nExit status: 0 it holds, 2 it does not, 1 a file cannot be read."
    )]
    Check(Check),
}

#[derive(Args, Debug)]
pub(crate) struct Key {
    /// Where the secret key is written, with mode 0600
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Sign {
    /// The values: `[[measurement]]` tables as in a policy, and nothing else
    values: PathBuf,
    /// The key, from `souk attest reference key`
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// What they are of; serials rise by name
    #[arg(long)]
    name: String,
    /// Higher than in every file of this name before
    #[arg(long)]
    serial: u64,
    /// When they begin to hold [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    from: Option<UnixTime>,
    /// For how many days
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    days: u32,
    /// Where the signed file is written; nothing is overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The signed file
    file: PathBuf,
    /// What its values must be of
    #[arg(long)]
    name: String,
    /// Who may have signed it, as 64 hex digits; may be repeated
    #[arg(long, value_name = "HEX", required = true)]
    key: Vec<ReferencePublicKey>,
    /// The least serial
    #[arg(long, default_value_t = 0, value_name = "SERIAL")]
    min_serial: u64,
    /// Where serials are remembered: none goes back
    #[arg(long, value_name = "FILE")]
    seen: Option<PathBuf>,
    /// The instant to check at [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<UnixTime>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found, as scripts read it.
#[derive(Serialize)]
struct Told {
    /// `accepted` or `refused`.
    verdict: &'static str,
    /// The name of the reason and what was found; nothing where it holds.
    reason: Option<String>,
    /// The rest is there where its signature and serial hold.
    name: Option<String>,
    serial: Option<u64>,
    signer: Option<String>,
    from: Option<String>,
    to: Option<String>,
    values: Option<String>,
}

impl Reference {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Key(key) => key.run(),
            Self::Sign(sign) => sign.run(),
            Self::Check(check) => check.run(),
        }
    }
}

impl Key {
    fn run(self) -> Result<ExitCode, Failure> {
        let key = ReferenceKey::generate(&mut rand::rng());
        keyfile::create(&self.file, &key).map_err(|error| Failure::of(&error))?;
        out::token("reference", &key.public().to_string(), self.json);
        DONE
    }
}

impl Sign {
    fn run(self) -> Result<ExitCode, Failure> {
        let path = &self.values;
        let bytes = files::read(path, MAX_POLICY_BYTES).map_err(|error| unread(&error))?;
        let text = souk_toml::text(bytes).map_err(|(text, found)| mistakes(path, &text, &found))?;
        let key: ReferenceKey = keyfile::load(&self.key).map_err(|error| Failure::of(&error))?;
        let from = self.from.unwrap_or_else(unix_now);
        let to = from.plus_s(u64::from(self.days) * 86_400);
        let window = Window::new(from, to).expect("there is one day at least");
        let values = ReferenceValues {
            name: self.name,
            serial: self.serial,
            window,
            values: text.clone(),
        };
        let signed = sign_reference(values, &key).map_err(|error| match &error {
            ReferenceSignError::Values(found) => mistakes(path, &text, found),
            ReferenceSignError::Sign(_) => Failure::of(&error).code(USAGE),
        })?;
        write_new(&self.out, &signed, 0o644)?;
        let (from, to) = (date::format(from), date::format(to));
        if self.json {
            out::json(&serde_json::json!({
                "file": self.out,
                "signer": key.public().to_string(),
                "serial": self.serial,
                "from": from,
                "to": to,
            }));
        } else {
            out::line(format_args!(
                "{}: serial {}, signed by {}, from {from} to {to}",
                self.out.display(),
                self.serial,
                key.public()
            ));
        }
        DONE
    }
}

impl Check {
    fn run(self) -> Result<ExitCode, Failure> {
        let now = self.at.unwrap_or_else(unix_now);
        let told = match self.read() {
            Ok(values) => {
                let reason = (!values.holds(now))
                    .then(|| format!("expired: it does not hold at {}", date::format(now)));
                Told {
                    verdict: verdict(reason.is_none()),
                    reason,
                    name: Some(values.name.clone()),
                    serial: Some(values.serial),
                    signer: Some(values.signer().to_string()),
                    from: Some(date::format(values.window.from())),
                    to: Some(date::format(values.window.to())),
                    values: Some(values.values.clone()),
                }
            }
            Err(error @ (ReferenceError::File(_) | ReferenceError::Unkept { .. })) => {
                return Err(Failure::of(&error));
            }
            Err(error @ (ReferenceError::Seen { .. } | ReferenceError::Full { .. })) => {
                return Err(Failure::of(&error).code(CONFIG));
            }
            Err(error) => Told {
                verdict: verdict(false),
                reason: Some(format!("{}: {}", error.reason(), with_causes(&error))),
                name: None,
                serial: None,
                signer: None,
                from: None,
                to: None,
                values: None,
            },
        };
        let is_accepted = told.reason.is_none();
        if self.json {
            out::json(&told);
        } else {
            out::line(told.text());
        }
        Ok(ExitCode::from(if is_accepted { 0 } else { REFUSED }))
    }

    fn read(&self) -> Result<souk_crypto::Verified<ReferenceValues>, ReferenceError> {
        let believed = Believed {
            file: self.file.clone(),
            name: self.name.clone(),
            keys: self.key.clone(),
            min_serial: self.min_serial,
        };
        let seen = self.seen.as_deref();
        let mut known = seen.map_or_else(|| Ok(Seen::default()), Seen::read)?;
        let values = believed.read(Path::new(""), &mut known)?;
        if let Some(path) = seen {
            known.keep(path)?;
        }
        Ok(values)
    }
}

impl Told {
    fn text(&self) -> String {
        let mut text = String::new();
        if let (Some(name), Some(serial), Some(signer), Some(from), Some(to), Some(values)) = (
            &self.name,
            self.serial,
            &self.signer,
            &self.from,
            &self.to,
            &self.values,
        ) {
            text += &format!(
                "{name}, serial {serial}, from {from} to {to}\nsigned by {signer}\n{}\n",
                values.trim_end()
            );
        }
        if let Some(reason) = &self.reason {
            text += &format!("{reason}\n");
        }
        text + self.verdict
    }
}

const fn verdict(accepted: bool) -> &'static str {
    if accepted { "accepted" } else { "refused" }
}
