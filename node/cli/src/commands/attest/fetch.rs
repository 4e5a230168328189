//! `souk attest fetch`: the collateral of evidence, from a service.

use std::{
    error::Error, fs::DirBuilder, os::unix::fs::DirBuilderExt as _, path::PathBuf,
    process::ExitCode,
};

use clap::Args;
use souk_attest::{
    Policy, Trust, date,
    fetch::{self, FetchError, HttpError, Sources},
    verify,
};
use souk_crypto::UnixTime;
use souk_node::unix_now;

use super::{DONE, REFUSED, evidence, instant, read_policy, write_new};
use crate::{
    commands::{home, wait},
    failure::{Failure, UNAVAILABLE, USAGE},
    out,
};

#[derive(Args, Debug)]
pub(crate) struct Fetch {
    /// The quote or report, raw or in hex
    file: PathBuf,
    /// The file to write the collateral into
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A service with Intel's interface, for TDX
    #[arg(long, value_name = "URL")]
    pccs: Option<String>,
    /// A service with AMD's interface, for SEV-SNP
    #[arg(long, value_name = "URL")]
    kds: Option<String>,
    /// Keeps what was fetched for a day [default: collateral in the requester's folder]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Whose test roots are believed besides the vendors
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The instant to verify at [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<UnixTime>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Fetch {
    pub(super) fn run(self) -> Result<ExitCode, Failure> {
        let now = self.at.unwrap_or_else(unix_now);
        // Only what it trusts counts here.
        let policy = self.policy.as_deref();
        let policy = policy.map(|path| read_policy(path, None)).transpose()?;
        let trust = policy.as_ref().map_or_else(Trust::vendors, Policy::trust);
        let evidence = evidence(&self.file)?.map_err(|why| Failure::of(&why).code(REFUSED))?;
        let sources = Sources {
            pccs: self.pccs,
            kds: self.kds,
            folder: self.cache.unwrap_or_else(|| home().join("collateral")),
        };
        // It may be the first that there is of the requester's folder, which is nobody else's. Where it cannot be made, that is
        // told with what was fetched.
        let private = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&sources.folder);
        let fetched = wait(async {
            let fetched = fetch::collateral(&sources, &evidence, &trust, now).await;
            fetched.map_err(|error| unfetched(&error))
        })?;
        let unkept = fetched.unkept.as_ref().map(|why| why as &dyn Error);
        if let Some(why) = unkept.or(private.as_ref().err().map(|why| why as &dyn Error)) {
            let why = Failure::because("the collateral is not kept for the next time", why);
            out::note(why.in_one_line());
        }
        let collateral = fetched.collateral;
        let verified = verify(&evidence, &collateral, &trust, now)
            .map_err(|why| Failure::of(&why).code(REFUSED))?;
        let expires = date::format(verified.expires());
        write_new(&self.out, &collateral.to_bytes(), 0o644)?;
        if self.json {
            out::json(&serde_json::json!({
                "file": self.out,
                "kind": verified.kind().as_str(),
                "evidence": evidence.digest().to_string(),
                "collateral": collateral.digest().to_string(),
                "expires": expires,
            }));
            return DONE;
        }
        out::line(format_args!(
            "{}, kind {}, verifies with {} until {expires}",
            self.out.display(),
            verified.kind().as_str(),
            self.file.display()
        ));
        DONE
    }
}

fn unfetched(error: &FetchError) -> Failure {
    let failure = Failure::of(error);
    match error {
        FetchError::NoService { .. } => failure
            .hint("name one: --pccs for TDX, --kds for SEV-SNP")
            .code(USAGE),
        FetchError::Http {
            source: HttpError::Address { .. },
            ..
        } => failure
            .hint("collateral proves itself: a caching service, or a proxy that speaks TLS to the vendor, is asked over http://")
            .code(USAGE),
        FetchError::Http { .. } => failure
            .hint("try again, or name another service")
            .code(UNAVAILABLE),
        FetchError::Plan(_) | FetchError::Unverified(_) => failure.code(REFUSED),
    }
}
