//! What a verifier accepts: `policy.toml`, and the decision about evidence that verified.
//!
//! A policy that was read is valid. Unknown keys are mistakes, told with line and hint: a misspelled rule must not be a rule
//! that does not hold.
//!
//! Threat: acceptance by omission. Whatever a policy does not name is refused: kinds, measurements, advisories, debug. A
//! register is left unchecked only where the policy says `"any"`.

mod decision;
mod reader;

use souk_crypto::{UnixTime, domain};

pub use decision::{Decision, Line, Verdict};
pub use reader::{Mistake, Mistakes};
use reader::{Reader, Section, from_str};

use crate::{
    date,
    digest::{Measurement, ReportData, RootId},
    snp::{SnpFacts, SnpTcb},
    tdx::{TcbStatus, TdxFacts},
    verified::{FactsRef, Kind, Tee, Trust, Verified},
};

/// A policy is no larger, in bytes.
pub const MAX_POLICY_BYTES: usize = 256 * 1024;

/// Reference values of one policy; releases of a few years.
const MAX_MEASUREMENTS: usize = 512;
/// Advisories that one policy tolerates; Intel has published about fifty that touch TDX and SGX.
const MAX_ADVISORIES: usize = 256;
/// A name is no longer, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// What a verifier accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    digest: [u8; 32],
    kinds: Vec<Kind>,
    test_roots: Vec<RootId>,
    max_age_s: Option<u64>,
    tdx: TdxRules,
    snp: SnpRules,
    advisories: Vec<Tolerated>,
    measurements: Vec<Reference>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct TdxRules {
    min_tcb_status: TcbStatus,
    min_tcb_evaluation: Option<u32>,
    allow_debug: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SnpRules {
    min_tcb: SnpTcb,
    max_vmpl: u32,
    allow_debug: bool,
    allow_migration: bool,
    allow_smt: bool,
    require_crl: bool,
}

/// An advisory that is lived with until a date.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Tolerated {
    id: String,
    until: UnixTime,
}

/// Reference values of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reference {
    name: String,
    not_before: Option<UnixTime>,
    not_after: Option<UnixTime>,
    values: Values,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Values {
    Tdx(Vec<(&'static str, Register)>),
    Snp {
        digests: Vec<(&'static str, Register)>,
        host_data: Option<[u8; 32]>,
        min_guest_svn: u32,
    },
}

/// What a register has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Any,
    Exactly(Measurement),
}

/// What a caller knows that evidence must bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The report data, made by [`crate::binding`]; `None` asks for nothing.
    pub report_data: Option<ReportData>,
}

/// Registers of TDX in a policy: what must be named, and what must be zero where it is not named.
const TDX_REQUIRED: [&str; 5] = ["mr_td", "rtmr0", "rtmr1", "rtmr2", "rtmr3"];
const TDX_ZERO: [&str; 3] = ["mr_config_id", "mr_owner", "mr_owner_config"];
const SNP_ZERO: [&str; 2] = ["id_key_digest", "author_key_digest"];

const ROOT_KEYS: &[&str] = &[
    "version",
    "kinds",
    "test_roots",
    "max_age_s",
    "tdx",
    "snp",
    "advisory",
    "measurement",
];
const TDX_KEYS: &[&str] = &["min_tcb_status", "min_tcb_evaluation", "allow_debug"];
const SNP_KEYS: &[&str] = &[
    "min_fmc",
    "min_bootloader",
    "min_tee",
    "min_snp",
    "min_microcode",
    "max_vmpl",
    "allow_debug",
    "allow_migration",
    "allow_smt",
    "require_crl",
];
const ADVISORY_KEYS: &[&str] = &["id", "until"];
const MEASUREMENT_KEYS: &[&str] = &[
    "name",
    "tee",
    "not_before",
    "not_after",
    "mr_td",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "mr_seam",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "measurement",
    "id_key_digest",
    "author_key_digest",
    "host_data",
    "min_guest_svn",
];

const REGISTER_HINT: &str = r#"write 96 hex digits, or "any" to leave it unchecked"#;
const DATE_HINT: &str = "write a date such as \"2027-01-01T00:00:00Z\"";

impl Policy {
    /// Understands the text of a policy.
    ///
    /// # Errors
    /// All mistakes of the text.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let (mut reader, table) = Reader::new(text);
        let root = reader.root(&table, ROOT_KEYS);
        match reader.integer(&root, "version", u64::MAX) {
            Some(1) => {}
            _ => reader.misfit(
                &root,
                "version",
                "the version is not 1",
                "write version = 1",
            ),
        }
        if text.len() > MAX_POLICY_BYTES {
            let hint = format!("write at most {MAX_POLICY_BYTES} bytes");
            reader.misfit(&root, "version", "the policy is too large", &hint);
        }
        let policy = Self {
            digest: domain::EVIDENCE_POLICY.hash_unbound(&[text.as_bytes()]),
            kinds: kinds(&mut reader, &root),
            test_roots: reader
                .list(
                    &root,
                    "test_roots",
                    "write the 64 hex digits of a root's SHA-256",
                    from_str,
                )
                .unwrap_or_default(),
            max_age_s: reader.integer(&root, "max_age_s", 315_360_000),
            tdx: tdx_rules(&mut reader, &root),
            snp: snp_rules(&mut reader, &root),
            advisories: advisories(&mut reader, &root),
            measurements: measurements(&mut reader, &root),
        };
        if policy.kinds.contains(&Kind::NoneTest) == policy.test_roots.is_empty() {
            reader.misfit(
                &root,
                "test_roots",
                "the kind \"none+test\" and test_roots go together",
                "name the roots of your tests and the kind, or neither",
            );
        }
        reader.finish(policy)
    }

    /// Digest of the text, which evidence of a node binds.
    #[must_use]
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// What has to be trusted for the evidence that it may accept.
    #[must_use]
    pub fn trust(&self) -> Trust {
        Trust::with_test_roots(self.test_roots.iter().copied())
    }

    /// The names of its reference values, with the TEE and the dates between which they hold.
    pub fn references(
        &self,
    ) -> impl Iterator<Item = (&str, Tee, Option<UnixTime>, Option<UnixTime>)> {
        self.measurements.iter().map(|reference| {
            (
                reference.name.as_str(),
                reference.tee(),
                reference.not_before,
                reference.not_after,
            )
        })
    }

    /// Decides about verified evidence at `now`.
    #[must_use]
    pub fn decide(&self, verified: &Verified, expected: Expected, now: UnixTime) -> Decision {
        let mut decision = Decision::of(verified);
        self.check_kind(&mut decision, verified);
        check_report_data(&mut decision, verified, expected);
        match verified.facts() {
            FactsRef::Tdx(facts) => self.check_tdx(&mut decision, facts, now),
            FactsRef::Snp(facts) => self.check_snp(&mut decision, facts, now),
        }
        decision
    }

    fn check_kind(&self, decision: &mut Decision, verified: &Verified) {
        let names: Vec<_> = self.kinds.iter().map(ToString::to_string).collect();
        let kind = verified.kind();
        decision.check(
            "kind",
            "kind",
            self.kinds.contains(&kind),
            names.join(" or "),
            kind.as_str(),
        );
        if let Verified::Test(test) = verified {
            decision.check(
                "test root",
                "unknown-root",
                self.test_roots.contains(&test.root()),
                "a test root that the policy names",
                test.root().to_string(),
            );
        }
    }

    fn check_tdx(&self, decision: &mut Decision, facts: &TdxFacts, now: UnixTime) {
        let rules = &self.tdx;
        decision.check(
            "debug",
            "debug",
            rules.allow_debug || !facts.td().is_debug(),
            debug_expected(rules.allow_debug),
            debug_found(facts.td().is_debug()),
        );
        decision.check(
            "TCB status",
            "tcb-status",
            facts.tcb_status() <= rules.min_tcb_status,
            format!("{} or better", rules.min_tcb_status),
            facts.tcb_status().to_string(),
        );
        if let Some(minimum) = rules.min_tcb_evaluation {
            decision.check(
                "TCB evaluation",
                "tcb-evaluation",
                facts.tcb_evaluation() >= minimum,
                format!("{minimum} or later"),
                facts.tcb_evaluation().to_string(),
            );
        }
        for advisory in facts.advisories() {
            let tolerated = self.advisories.iter().find(|found| &found.id == advisory);
            let until = tolerated.map(|found| found.until);
            decision.check(
                "advisory",
                "advisory",
                until.is_some_and(|until| now <= until),
                match until {
                    Some(until) => format!("tolerated until {}", date::format(until)),
                    None => "none but those that the policy tolerates".to_owned(),
                },
                advisory.clone(),
            );
        }
        self.check_age(decision, Some(facts.issued()), now);
        self.check_measurement(decision, Tee::Tdx, now, |values| match values {
            Values::Tdx(registers) => differing(registers, |name| tdx_register(facts, name)),
            Values::Snp { .. } => vec!["tee"],
        });
    }

    fn check_snp(&self, decision: &mut Decision, facts: &SnpFacts, now: UnixTime) {
        let rules = &self.snp;
        let report = facts.report();
        let guest = report.policy();
        decision.check(
            "debug",
            "debug",
            rules.allow_debug || !guest.debug(),
            debug_expected(rules.allow_debug),
            debug_found(guest.debug()),
        );
        decision.check(
            "migration",
            "migration",
            rules.allow_migration || !guest.migration(),
            if rules.allow_migration {
                "allowed or not"
            } else {
                "no migration agent"
            },
            if guest.migration() {
                "a migration agent is allowed"
            } else {
                "no migration agent"
            },
        );
        decision.check(
            "SMT",
            "smt",
            rules.allow_smt || !guest.smt(),
            if rules.allow_smt {
                "allowed or not"
            } else {
                "not allowed"
            },
            if guest.smt() {
                "allowed"
            } else {
                "not allowed"
            },
        );
        decision.check(
            "VMPL",
            "vmpl",
            report.vmpl() <= rules.max_vmpl,
            format!("at most {}", rules.max_vmpl),
            report.vmpl().to_string(),
        );
        decision.check(
            "TCB",
            "tcb",
            facts.tcb().meets(&rules.min_tcb),
            format!("at least {}", rules.min_tcb),
            facts.tcb().to_string(),
        );
        decision.check(
            "revocation list",
            "revocation-unchecked",
            facts.revocation_checked() || !rules.require_crl,
            if rules.require_crl {
                "checked"
            } else {
                "checked or not"
            },
            if facts.revocation_checked() {
                "checked"
            } else {
                "there is none in the collateral"
            },
        );
        self.check_age(decision, facts.issued(), now);
        self.check_measurement(decision, Tee::SevSnp, now, |values| match values {
            Values::Snp {
                digests,
                host_data,
                min_guest_svn,
            } => {
                let mut wrong = differing(digests, |name| match name {
                    "measurement" => report.measurement(),
                    "id_key_digest" => report.id_key_digest(),
                    _ => report.author_key_digest(),
                });
                if host_data.is_some_and(|expected| expected != report.host_data()) {
                    wrong.push("host_data");
                }
                if report.guest_svn() < *min_guest_svn {
                    wrong.push("min_guest_svn");
                }
                wrong
            }
            Values::Tdx(_) => vec!["tee"],
        });
    }

    fn check_age(&self, decision: &mut Decision, issued: Option<UnixTime>, now: UnixTime) {
        let Some(max_s) = self.max_age_s else {
            return;
        };
        let age_s = issued.map(|issued| now.since_s(issued));
        decision.check(
            "age of the collateral",
            "age",
            age_s.is_some_and(|age| age <= max_s),
            format!("at most {max_s} s"),
            age_s.map_or("unknown".to_owned(), |age| format!("{age} s")),
        );
    }

    /// Looks for a reference value that holds now; `wrong` names the registers in which one differs.
    fn check_measurement(
        &self,
        decision: &mut Decision,
        tee: Tee,
        now: UnixTime,
        wrong: impl Fn(&Values) -> Vec<&'static str>,
    ) {
        const CHECK: &str = "measurement";
        let expected = "one of the policy's reference values";
        let candidates: Vec<_> = self
            .measurements
            .iter()
            .filter(|reference| reference.tee() == tee)
            .map(|reference| (reference, wrong(&reference.values)))
            .collect();
        let matching = |(reference, wrong): &&(&Reference, Vec<&str>)| {
            wrong.is_empty() && reference.holds(now)
        };
        if let Some((reference, _)) = candidates.iter().find(matching) {
            decision.check(CHECK, CHECK, true, expected, reference.name.clone());
            return;
        }
        if candidates.is_empty() {
            let found = format!("the policy has no reference value for {tee}");
            decision.check(CHECK, "no-reference-value", false, expected, found);
            return;
        }
        if let Some((reference, _)) = candidates.iter().find(|(_, wrong)| wrong.is_empty()) {
            let found = format!("{}, which does not hold at this date", reference.name);
            decision.check(CHECK, "reference-out-of-date", false, expected, found);
            return;
        }
        let (nearest, registers) = candidates
            .iter()
            .min_by_key(|(_, wrong)| wrong.len())
            .expect("there is a candidate");
        let found = format!(
            "none; the nearest, {}, differs in {}",
            nearest.name,
            registers.join(", ")
        );
        decision.check(CHECK, CHECK, false, expected, found);
    }
}

impl Reference {
    const fn tee(&self) -> Tee {
        match self.values {
            Values::Tdx(_) => Tee::Tdx,
            Values::Snp { .. } => Tee::SevSnp,
        }
    }

    fn holds(&self, now: UnixTime) -> bool {
        self.not_before.is_none_or(|from| from <= now) && self.not_after.is_none_or(|to| now <= to)
    }
}

fn check_report_data(decision: &mut Decision, verified: &Verified, expected: Expected) {
    let found = verified.report_data();
    match expected.report_data {
        Some(expected) => decision.check(
            "report data",
            "report-data",
            expected == found,
            expected.to_string(),
            found.to_string(),
        ),
        None => decision.not_asked("report data", found.to_string()),
    }
}

const fn debug_expected(allowed: bool) -> &'static str {
    if allowed { "on or off" } else { "off" }
}

const fn debug_found(on: bool) -> &'static str {
    if on {
        "on: the host can look into the guest"
    } else {
        "off"
    }
}

/// The names of the registers that hold something else.
fn differing(
    expected: &[(&'static str, Register)],
    found: impl Fn(&str) -> Measurement,
) -> Vec<&'static str> {
    expected
        .iter()
        .filter(|(name, register)| match register {
            Register::Any => false,
            Register::Exactly(value) => *value != found(name),
        })
        .map(|(name, _)| *name)
        .collect()
}

fn tdx_register(facts: &TdxFacts, name: &str) -> Measurement {
    let td = facts.td();
    match name {
        "mr_td" => td.mr_td,
        "rtmr0" => td.rtmr[0],
        "rtmr1" => td.rtmr[1],
        "rtmr2" => td.rtmr[2],
        "rtmr3" => td.rtmr[3],
        "mr_seam" => td.mr_seam,
        "mr_config_id" => td.mr_config_id,
        "mr_owner" => td.mr_owner,
        _ => td.mr_owner_config,
    }
}

fn kinds<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Kind> {
    let hint = r#"the kinds are "tdx", "sev-snp" and "none+test""#;
    let of = |name: &str| Kind::ALL.into_iter().find(|kind| kind.as_str() == name);
    let kinds = reader.list(root, "kinds", hint, of).unwrap_or_default();
    if kinds.is_empty() {
        reader.misfit(
            root,
            "kinds",
            "the policy accepts no kind of evidence",
            hint,
        );
    }
    kinds
}

fn tdx_rules<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> TdxRules {
    let section = reader.section(root, "tdx", TDX_KEYS);
    let hint = "write a TCB status in Intel's spelling, such as \"UpToDate\"";
    TdxRules {
        min_tcb_status: reader
            .parsed(&section, "min_tcb_status", hint, from_str)
            .unwrap_or(TcbStatus::UpToDate),
        min_tcb_evaluation: reader
            .integer(&section, "min_tcb_evaluation", u64::from(u32::MAX))
            .and_then(|number| u32::try_from(number).ok()),
        allow_debug: reader.bool(&section, "allow_debug", false),
    }
}

fn snp_rules<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> SnpRules {
    let section = reader.section(root, "snp", SNP_KEYS);
    let mut version = |key| {
        let number = reader.integer(&section, key, u64::from(u8::MAX));
        number.and_then(|number| u8::try_from(number).ok())
    };
    SnpRules {
        min_tcb: SnpTcb {
            fmc: version("min_fmc"),
            bootloader: version("min_bootloader").unwrap_or(0),
            tee: version("min_tee").unwrap_or(0),
            snp: version("min_snp").unwrap_or(0),
            microcode: version("min_microcode").unwrap_or(0),
        },
        max_vmpl: reader
            .integer(&section, "max_vmpl", 3)
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(0),
        allow_debug: reader.bool(&section, "allow_debug", false),
        allow_migration: reader.bool(&section, "allow_migration", false),
        allow_smt: reader.bool(&section, "allow_smt", true),
        require_crl: reader.bool(&section, "require_crl", true),
    }
}

fn advisories<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Tolerated> {
    let sections = reader.sections(root, "advisory", ADVISORY_KEYS, MAX_ADVISORIES);
    let mut all = Vec::new();
    for section in &sections {
        let id = reader.required(
            section,
            "id",
            "write an id such as \"INTEL-SA-00615\"",
            name,
        );
        let until = reader.required(section, "until", DATE_HINT, date::parse);
        if let (Some(id), Some(until)) = (id, until) {
            all.push(Tolerated { id, until });
        }
    }
    all
}

fn measurements<'a>(reader: &mut Reader<'a>, root: &Section<'_, 'a>) -> Vec<Reference> {
    let sections = reader.sections(root, "measurement", MEASUREMENT_KEYS, MAX_MEASUREMENTS);
    let mut all = Vec::new();
    for section in sections.iter().filter(|section| section.is_there()) {
        let tee = |text: &str| {
            [Tee::Tdx, Tee::SevSnp]
                .into_iter()
                .find(|tee| tee.to_string() == text)
        };
        let name_hint = "write 1 to 64 printable characters";
        let name = reader.required(section, "name", name_hint, name);
        let tee = reader.required(section, "tee", r#"write "tdx" or "sev-snp""#, tee);
        let not_before = reader.parsed(section, "not_before", DATE_HINT, date::parse);
        let not_after = reader.parsed(section, "not_after", DATE_HINT, date::parse);
        let values = match tee {
            Some(Tee::Tdx) => tdx_values(reader, section),
            Some(Tee::SevSnp) => snp_values(reader, section),
            None => continue,
        };
        if let (Some(name), Some(values)) = (name, values) {
            all.push(Reference {
                name,
                not_before,
                not_after,
                values,
            });
        }
    }
    all
}

fn tdx_values<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>) -> Option<Values> {
    let mut registers = Vec::new();
    for key in TDX_REQUIRED {
        registers.push((key, reader.required(section, key, REGISTER_HINT, register)));
    }
    for key in TDX_ZERO {
        registers.push((key, or_zero(reader, section, key)));
    }
    registers.push((
        "mr_seam",
        Some(
            reader
                .parsed(section, "mr_seam", REGISTER_HINT, register)
                .unwrap_or(Register::Any),
        ),
    ));
    foreign(
        reader,
        section,
        Tee::Tdx,
        &[
            "measurement",
            "id_key_digest",
            "author_key_digest",
            "host_data",
            "min_guest_svn",
        ],
    );
    complete(registers).map(Values::Tdx)
}

fn snp_values<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>) -> Option<Values> {
    let mut digests = vec![(
        "measurement",
        reader.required(section, "measurement", REGISTER_HINT, register),
    )];
    for key in SNP_ZERO {
        digests.push((key, or_zero(reader, section, key)));
    }
    let host_hint = r#"write 64 hex digits, or "any" to leave it unchecked"#;
    let host = |text: &str| match text {
        "any" => Some(None),
        text => text.parse::<RootId>().ok().map(|bytes| Some(bytes.0)),
    };
    let host_data = reader
        .parsed(section, "host_data", host_hint, host)
        .unwrap_or(Some([0; 32]));
    let min_guest_svn = reader
        .integer(section, "min_guest_svn", u64::from(u32::MAX))
        .unwrap_or(0);
    foreign(
        reader,
        section,
        Tee::SevSnp,
        &[&TDX_REQUIRED[..], &TDX_ZERO[..], &["mr_seam"]].concat(),
    );
    Some(Values::Snp {
        digests: complete(digests)?,
        host_data,
        min_guest_svn: u32::try_from(min_guest_svn).unwrap_or(u32::MAX),
    })
}

fn complete(
    registers: Vec<(&'static str, Option<Register>)>,
) -> Option<Vec<(&'static str, Register)>> {
    registers
        .into_iter()
        .map(|(name, register)| register.map(|register| (name, register)))
        .collect()
}

/// A register that has to be zero where the policy does not name it.
fn or_zero<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>, key: &str) -> Option<Register> {
    let found = reader.parsed(section, key, REGISTER_HINT, register);
    Some(found.unwrap_or(Register::Exactly(Measurement::ZERO)))
}

/// Tells of keys that the other TEE has.
fn foreign<'a>(reader: &mut Reader<'a>, section: &Section<'_, 'a>, tee: Tee, keys: &[&str]) {
    for key in keys.iter().filter(|key| section.has(key)) {
        let what = format!("`{key}` means nothing for {tee}");
        reader.misfit(section, key, &what, "take it out");
    }
}

fn register(text: &str) -> Option<Register> {
    match text {
        "any" => Some(Register::Any),
        text => text.parse().ok().map(Register::Exactly),
    }
}

fn name(text: &str) -> Option<String> {
    let printable = text.chars().all(|c| !c.is_control());
    ((1..=MAX_NAME_BYTES).contains(&text.len()) && printable).then(|| text.to_owned())
}

#[cfg(test)]
mod tests;
