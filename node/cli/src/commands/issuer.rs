//! `souk issuer`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use souk_crypto::{IssuerKey, keyfile};

use super::DONE;
use crate::{failure::Failure, out};

#[derive(Debug, Subcommand)]
pub(crate) enum Issuer {
    /// Keys of an issuer.
    #[command(subcommand, after_help = "Example:\n  souk issuer key new issuer.key")]
    Key(Key),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make a key that signs grants, and print its public half for `provider.issuers`.
    #[command(
        after_help = "Example:\n  souk issuer key new issuer.key\n\nGive the printed key to providers, and keep the file: `souk grant issue` signs with it, offline."
    )]
    New(New),
}

#[derive(Args, Debug)]
pub(crate) struct New {
    /// Where the secret key is written, with mode 0600
    file: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Issuer {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let Self::Key(Key::New(New { file, json })) = self;
        let key = IssuerKey::generate(&mut rand::rng());
        keyfile::create(&file, &key).map_err(|error| Failure::of(&error))?;
        out::token("issuer", &hex::encode(key.public().as_bytes()), json);
        DONE
    }
}
