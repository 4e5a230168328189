//! `souk attest`: what evidence says, whether it is believed, and why.

mod collect;
mod fetch;
mod measure;
mod mint;
mod reference;
mod show;

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_attest::{
    Decision, Evidence, Expected, MAX_POLICY_BYTES, Part, Policy, ReferenceError, Refusal,
    ReportData, Tee, Trust, Verdict, Verified, date,
    files::{self, FileError},
    verify, with_references,
};
use souk_crypto::UnixTime;
use souk_node::unix_now;

use super::{DONE, config::mistakes};
use crate::{
    failure::{CONFIG, Failure},
    out,
};

/// Evidence was read and is not believed.
const REFUSED: u8 = 2;

#[derive(Debug, Subcommand)]
pub(crate) enum Attest {
    /// Verify a TDX quote or SEV-SNP report and decide about it.
    #[command(
        after_help = "Examples:\n  souk attest verify quote.bin --collateral collateral.json --policy policy.toml\n  souk attest verify report.hex --collateral certificates/ --at 2026-01-01T00:00:00Z --json\n\nExit status: 0 accepted, 2 refused, 1 a file cannot be read, 78 the policy has mistakes.\nWithout a policy there is no reference value, so the answer is no."
    )]
    Verify(Verify),
    /// Print what evidence claims, without verifying anything.
    #[command(after_help = "Example:\n  souk attest show quote.bin")]
    Show(show::Show),
    /// Take evidence of the guest that this runs in.
    #[command(
        after_help = "Examples:\n  souk attest collect quote.bin\n  souk attest collect quote.bin --report-data $(openssl rand -hex 64) --json\n\nExit status: 0 taken, 1 the kernel or the file failed, 69 this machine is no guest of a TEE."
    )]
    Collect(collect::Collect),
    /// Fetch the collateral of evidence, and keep what verifies.
    #[command(
        after_help = "Examples:\n  souk attest fetch quote.bin --pccs http://pccs.example:8081 --out collateral.cbor\n  souk attest fetch report.bin --kds http://kds.example:8080 --out collateral.cbor --json\n\nExit status: 0 it verifies, 1 a file failed, 2 it does not verify, 64 no service was named, 69 the service did not answer, 78 the policy has mistakes."
    )]
    Fetch(fetch::Fetch),
    /// Look after policies.
    #[command(
        subcommand,
        after_help = "Example:\n  souk attest policy check policy.toml"
    )]
    Policy(PolicyCommand),
    /// Sign reference values, and check those that somebody else has signed.
    #[command(
        subcommand,
        after_help = "Examples:\n  souk attest reference key release.key\n  souk attest reference sign values.toml --key release.key --name guest --serial 7 --days 180 --out guest.ref\n  souk attest reference check guest.ref --name guest --key 3b6a… --seen serials"
    )]
    Reference(reference::Reference),
    /// Compute the launch digest of an SEV-SNP guest from its files.
    #[command(
        after_help = "Example:\n  souk attest measure --ovmf OVMF.fd --kernel vmlinuz --append 'console=ttyS0' --vcpus 4 --vcpu-type EPYC-Milan"
    )]
    Measure(measure::Measure),
    /// Mint evidence under a test root, which proves nothing.
    #[command(after_help = "Example:\n  souk attest mint /tmp/minted --tee sev-snp")]
    Mint(mint::Mint),
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The quote or report, raw or in hex
    file: PathBuf,
    /// What Intel or AMD published: a file, or a folder of files
    #[arg(long, value_name = "FILE|DIR")]
    collateral: Option<PathBuf>,
    /// What is accepted
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Where the serials of signed reference values are remembered: none goes back
    #[arg(long, value_name = "FILE", requires = "policy")]
    seen: Option<PathBuf>,
    /// The instant to verify at [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<UnixTime>,
    /// What the evidence has to bind, as 128 hex digits
    #[arg(long, value_name = "HEX")]
    report_data: Option<ReportData>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Explain every mistake of a policy, or say what it accepts.
    #[command(
        after_help = "Examples:\n  souk attest policy check policy.toml\n  souk attest policy check policy.toml --at 2027-01-01T00:00:00Z --json\n\nExit status: 0 right, with warnings or without, 1 a file cannot be read, 78 the policy has mistakes."
    )]
    Check(Check),
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The policy
    #[arg(default_value = "policy.toml")]
    file: PathBuf,
    /// Where the serials of signed reference values are remembered: none goes back
    #[arg(long, value_name = "FILE")]
    seen: Option<PathBuf>,
    /// The instant at which its dates are looked at [default: now]
    #[arg(long, value_name = "RFC3339", value_parser = instant)]
    at: Option<UnixTime>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Attest {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Verify(verify) => verify.run(),
            Self::Show(show) => show.run(),
            Self::Collect(collect) => collect.run(),
            Self::Fetch(fetch) => fetch.run(),
            Self::Policy(PolicyCommand::Check(check)) => check.run(),
            Self::Reference(reference) => reference.run(),
            Self::Measure(measure) => measure.run(),
            Self::Mint(mint) => mint.run(),
        }
    }
}

impl Verify {
    fn run(self) -> Result<ExitCode, Failure> {
        let now = self.at.unwrap_or_else(unix_now);
        let policy = self.policy.as_deref();
        let policy = policy.map(|path| read_policy(path, self.seen.as_deref()));
        let policy = policy.transpose()?;
        let trust = policy.as_ref().map_or_else(Trust::vendors, Policy::trust);
        let evidence = evidence(&self.file)?;
        let verified = match &evidence {
            Ok(evidence) => self.verified(evidence, &trust, now)?,
            Err(why) => Err(why.clone()),
        };
        let expected = Expected {
            report_data: self.report_data,
        };
        let decision = match (&verified, &policy) {
            (Err(refusal), _) => Decision::unverified(refusal),
            (Ok(verified), None) => Decision::without_policy(verified),
            (Ok(verified), Some(policy)) => policy.decide(verified, expected, now),
        };
        let told = Told::of(&decision, evidence.ok().as_ref(), now);
        if self.json {
            out::json(&told);
        } else {
            out::line(told.text());
        }
        Ok(ExitCode::from(if decision.is_accepted() {
            0
        } else {
            REFUSED
        }))
    }

    fn verified(
        &self,
        evidence: &Evidence,
        trust: &Trust,
        now: UnixTime,
    ) -> Result<Result<Verified, Refusal>, Failure> {
        let Some(path) = &self.collateral else {
            return Ok(Err(files::no_collateral()));
        };
        let collateral = files::collateral(path, evidence, now).map_err(|error| unread(&error))?;
        Ok(collateral.and_then(|collateral| verify(evidence, &collateral, trust, now)))
    }
}

impl Check {
    fn run(self) -> Result<ExitCode, Failure> {
        let policy = read_policy(&self.file, self.seen.as_deref())?;
        let told = PolicyTold::of(&policy, self.at.unwrap_or_else(unix_now));
        if self.json {
            out::json(&told);
        } else {
            out::line(told.text(&self.file));
        }
        DONE
    }
}

/// What a policy accepts, as scripts read it.
#[derive(Serialize)]
struct PolicyTold {
    digest: String,
    /// The instant that the warnings are of.
    at: String,
    rules: Vec<RuleTold>,
    measurements: Vec<ReferenceTold>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct RuleTold {
    /// `tdx` or `sev-snp`; nothing where it is asked of all evidence.
    tee: Option<&'static str>,
    check: &'static str,
    expected: String,
}

#[derive(Serialize)]
struct ReferenceTold {
    name: String,
    tee: &'static str,
    not_before: Option<String>,
    not_after: Option<String>,
}

impl PolicyTold {
    fn of(policy: &Policy, now: UnixTime) -> Self {
        let rules = policy.rules().into_iter().map(|rule| RuleTold {
            tee: rule.tee.map(Tee::as_str),
            check: rule.check,
            expected: rule.expected,
        });
        let measurements = policy.references();
        let measurements = measurements.map(|(name, tee, from, to)| ReferenceTold {
            name: name.to_owned(),
            tee: tee.as_str(),
            not_before: from.map(date::format),
            not_after: to.map(date::format),
        });
        Self {
            digest: hex::encode(policy.digest()),
            at: date::format(now),
            rules: rules.collect(),
            measurements: measurements.collect(),
            warnings: policy.warnings(now),
        }
    }

    fn text(&self, path: &Path) -> String {
        let mut text = format!("{} is right, digest {}", path.display(), self.digest);
        for rule in &self.rules {
            let tee = rule.tee.map_or(String::new(), |tee| format!("{tee}, "));
            text += &format!("\n  {tee}{}: {}", rule.check, rule.expected);
        }
        for value in &self.measurements {
            let from = value.not_before.as_ref();
            let from = from.map_or(String::new(), |date| format!(", from {date}"));
            let to = value.not_after.as_ref();
            let to = to.map_or(String::new(), |date| format!(", to {date}"));
            text += &format!("\n  {}, measurement: {}{from}{to}", value.tee, value.name);
        }
        if self.measurements.is_empty() {
            text += "\nit has no reference value, so it accepts nothing";
        }
        for warning in &self.warnings {
            text += &format!("\nwarning, at {}: {warning}", self.at);
        }
        text
    }
}

/// A decision, as scripts read it.
#[derive(Serialize)]
struct Told {
    /// `accepted` or `refused`.
    verdict: &'static str,
    /// `tdx`, `sev-snp` or `none+test`; nothing where it did not verify.
    kind: Option<&'static str>,
    /// Each is the name of a reason and what was found.
    reasons: Vec<String>,
    /// In Intel's spelling; nothing where it did not verify or is not Intel's.
    tcb_status: Option<String>,
    /// Digest of the evidence.
    evidence: Option<String>,
    /// The instant of the verification.
    at: String,
    checks: Vec<CheckTold>,
}

#[derive(Serialize)]
struct CheckTold {
    check: &'static str,
    expected: String,
    found: String,
    verdict: String,
}

impl Told {
    fn of(decision: &Decision, evidence: Option<&Evidence>, now: UnixTime) -> Self {
        let reasons = decision
            .lines()
            .iter()
            .filter_map(|line| match line.verdict {
                Verdict::Refused(reason) => Some(format!("{reason}: {}", line.found)),
                Verdict::Accepted | Verdict::NotAsked => None,
            });
        Self {
            verdict: if decision.is_accepted() {
                "accepted"
            } else {
                "refused"
            },
            kind: decision.kind().map(souk_attest::Kind::as_str),
            reasons: reasons.collect(),
            tcb_status: decision.tcb_status().map(|status| status.to_string()),
            evidence: evidence.map(|evidence| evidence.digest().to_string()),
            at: date::format(now),
            checks: decision
                .lines()
                .iter()
                .map(|line| CheckTold {
                    check: line.check,
                    expected: line.expected.clone(),
                    found: line.found.clone(),
                    verdict: line.verdict.to_string(),
                })
                .collect(),
        }
    }

    fn text(&self) -> String {
        let mut text = match self.kind {
            Some("none+test") => {
                "kind: none+test: a test made this evidence; it proves nothing\n".to_owned()
            }
            Some(kind) => format!("kind: {kind}\n"),
            None => String::new(),
        };
        if let Some(status) = &self.tcb_status {
            text += &format!("TCB status: {status}\n");
        }
        for check in &self.checks {
            text += &format!(
                "{:<9} {}\n          expected {}\n          found    {}\n",
                check.verdict, check.check, check.expected, check.found
            );
        }
        text + self.verdict
    }
}

fn read_policy(path: &Path, seen: Option<&Path>) -> Result<Policy, Failure> {
    let bytes = files::read(path, MAX_POLICY_BYTES).map_err(|error| match &error {
        FileError::TooLarge { .. } => unread(&error).code(CONFIG),
        _ => unread(&error),
    })?;
    let text = souk_toml::text(bytes).map_err(|(text, found)| mistakes(path, &text, &found))?;
    let policy = Policy::parse(&text).map_err(|found| mistakes(path, &text, &found))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    with_references(policy, folder, seen).map_err(|error| match &error {
        ReferenceError::File(_) | ReferenceError::Unkept { .. } => Failure::of(&error),
        _ => Failure::of(&error).code(CONFIG),
    })
}

/// The evidence of a file, or why what is there is not believed.
fn evidence(path: &Path) -> Result<Result<Evidence, Refusal>, Failure> {
    let bytes = files::evidence_bytes(path).map_err(|error| unread(&error))?;
    match Evidence::parse(&bytes) {
        Err(why) if is_unreadable(&why) => {
            let what = format_args!("{} holds no evidence", path.display());
            Err(Failure::because(what, &why)
                .hint("give a TDX quote or an SEV-SNP report, raw or in hex"))
        }
        parsed => Ok(parsed),
    }
}

/// Writes a file that is not there yet.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    let written = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| unwritten(path, &error))
}

fn unwritten(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::because(format_args!("cannot write {}", path.display()), error);
    if error.kind() == io::ErrorKind::AlreadyExists {
        return failure.hint("name what does not exist yet: nothing is overwritten");
    }
    failure
}

/// Whether there is nothing to decide about: these bytes are no evidence at all, or only a part of some.
fn is_unreadable(why: &Refusal) -> bool {
    matches!(
        why,
        Refusal::UnknownEvidence
            | Refusal::TooLarge { .. }
            | Refusal::Malformed {
                part: Part::Evidence,
                ..
            }
    )
}

fn unread(error: &FileError) -> Failure {
    let failure = Failure::of(error);
    match error {
        FileError::NoCollateral { .. } => failure.hint(
            "for TDX give the JSON of dcap-qvl, for SEV-SNP the certificate of the chip (VCEK) and a revocation list, as PEM or DER",
        ),
        FileError::Read { .. } | FileError::TooLarge { .. } | FileError::TooMany { .. } => failure,
    }
}

fn instant(text: &str) -> Result<UnixTime, String> {
    date::parse(text).ok_or_else(|| "write a date such as 2026-01-01T00:00:00Z".to_owned())
}
