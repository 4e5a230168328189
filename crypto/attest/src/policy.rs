//! What a verifier accepts: `policy.toml`, and the decision about evidence that verified.
//!
//! A policy that was read is valid. Unknown keys are mistakes, told with line and hint: a misspelled rule must not be a rule
//! that does not hold.
//!
//! Threat: acceptance by omission. Whatever a policy does not name is refused: kinds, measurements, advisories, debug. A
//! register is left unchecked only where the policy says `"any"`.

mod decision;
mod parse;
mod reader;
mod rules;

use souk_crypto::{UnixTime, Window};

pub use decision::{Decision, Line, Verdict};
pub(crate) use parse::check_values;
pub use rules::Rule;
use rules::{advisory_expected, crl_expected, debug_expected, migration_expected, smt_expected};

use crate::{
    digest::{Measurement, ReportData, RootId},
    reference::Believed,
    snp::{SnpFacts, SnpTcb},
    tdx::{TcbStatus, TdxFacts},
    verified::{FactsRef, Kind, Tee, Trust, Verified},
};

/// A policy is no larger, in bytes.
pub const MAX_POLICY_BYTES: usize = 256 * 1024;

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
    believed: Vec<Believed>,
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
    Tdx {
        registers: Vec<(&'static str, Register)>,
        /// Bits of the guest by name; `None` leaves them unchecked.
        bits: Vec<(&'static str, Option<[u8; 8]>)>,
    },
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

impl Policy {
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

    /// Kinds of evidence that it may accept.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().copied()
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

    /// The signed files of reference values that it names. Until they are read ([`crate::with_references`]), they give none.
    #[must_use]
    pub fn believed(&self) -> &[Believed] {
        &self.believed
    }

    /// Adds the values of files that were verified, each within its window.
    pub(crate) fn with_values<'v>(
        mut self,
        vouched: impl IntoIterator<Item = (&'v str, Window)>,
    ) -> Self {
        for (text, window) in vouched {
            let values = parse::values(text).expect("they were checked when the file was read");
            self.measurements
                .extend(values.into_iter().map(|reference| reference.within(window)));
        }
        self
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
        let kind = verified.kind();
        decision.check(
            "kind",
            "kind",
            self.kinds.contains(&kind),
            self.kinds_expected(),
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
            decision.check(
                "advisory",
                "advisory",
                tolerated.is_some_and(|found| found.holds(now)),
                advisory_expected(tolerated.map(|found| found.until)),
                advisory.clone(),
            );
        }
        self.check_age(decision, Some(facts.issued()), now);
        self.check_measurement(decision, Tee::Tdx, now, |values| match values {
            Values::Tdx { registers, bits } => {
                let mut wrong = differing(registers, |name| tdx_register(facts, name));
                let differs = |(name, wanted): &&(&str, Option<[u8; 8]>)| {
                    wanted.is_some_and(|wanted| wanted != tdx_bits(facts, name))
                };
                wrong.extend(bits.iter().filter(differs).map(|(name, _)| *name));
                wrong
            }
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
            migration_expected(rules.allow_migration),
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
            smt_expected(rules.allow_smt),
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
            crl_expected(rules.require_crl),
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
            Values::Tdx { .. } => vec!["tee"],
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

impl Tolerated {
    fn holds(&self, now: UnixTime) -> bool {
        now <= self.until
    }
}

impl Reference {
    const fn tee(&self) -> Tee {
        match self.values {
            Values::Tdx { .. } => Tee::Tdx,
            Values::Snp { .. } => Tee::SevSnp,
        }
    }

    /// The same, where it holds within `window` only.
    fn within(self, window: Window) -> Self {
        let (from, to) = (window.from(), window.to().minus_s(1));
        Self {
            not_before: Some(self.not_before.map_or(from, |own| own.max(from))),
            not_after: Some(self.not_after.map_or(to, |own| own.min(to))),
            ..self
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

fn tdx_bits(facts: &TdxFacts, name: &str) -> [u8; 8] {
    match name {
        "attributes" => facts.td().attributes,
        _ => facts.td().xfam,
    }
}

#[cfg(test)]
mod tests;
