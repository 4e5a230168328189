//! What a policy asks for, in the words of the decisions that it leads to, and what is odd about it.

use souk_crypto::UnixTime;

use super::{Policy, Tolerated};
use crate::{
    date,
    verified::{Kind, Tee},
};

/// One thing that a policy asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Of which evidence; `None` for all.
    pub tee: Option<Tee>,
    /// The name of the check, as in a decision.
    pub check: &'static str,
    /// What is expected, as in a decision.
    pub expected: String,
}

impl Policy {
    /// What it asks for, in the order of a decision; reference values aside, which are [`Policy::references`].
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let rule = |tee, check, expected| Rule {
            tee,
            check,
            expected,
        };
        let mut all = vec![rule(None, "kind", self.kinds_expected())];
        let roots = self.test_roots.iter();
        all.extend(roots.map(|root| rule(None, "test root", root.to_string())));
        if self.may_accept(Tee::Tdx) {
            let rules = &self.tdx;
            let evaluation = rules.min_tcb_evaluation;
            let evaluation =
                evaluation.map_or("any".to_owned(), |least| format!("{least} or later"));
            let mut tdx = |check, expected| all.push(rule(Some(Tee::Tdx), check, expected));
            tdx("debug", debug_expected(rules.allow_debug).to_owned());
            tdx("TCB status", format!("{} or better", rules.min_tcb_status));
            tdx("TCB evaluation", evaluation);
            tdx("advisory", advisory_expected(None));
            for advisory in &self.advisories {
                let expected = advisory_expected(Some(advisory.until));
                tdx("advisory", format!("{} {expected}", advisory.id));
            }
        }
        if self.may_accept(Tee::SevSnp) {
            let rules = &self.snp;
            for (check, expected) in [
                ("debug", debug_expected(rules.allow_debug).to_owned()),
                (
                    "migration",
                    migration_expected(rules.allow_migration).to_owned(),
                ),
                ("SMT", smt_expected(rules.allow_smt).to_owned()),
                ("VMPL", format!("at most {}", rules.max_vmpl)),
                ("TCB", format!("at least {}", rules.min_tcb)),
                (
                    "revocation list",
                    crl_expected(rules.require_crl).to_owned(),
                ),
            ] {
                all.push(rule(Some(Tee::SevSnp), check, expected));
            }
        }
        let age = self.max_age_s;
        let age = age.map_or("any".to_owned(), |most| format!("at most {most} s"));
        all.push(rule(None, "age of the collateral", age));
        all
    }

    /// What whoever wrote it may not have meant, or not any more at `now`.
    #[must_use]
    pub fn warnings(&self, now: UnixTime) -> Vec<String> {
        let mut all = Vec::new();
        if self.kinds.contains(&Kind::NoneTest) {
            all.push("evidence that a test made is accepted: it proves nothing".to_owned());
        }
        let debug = [
            (Tee::Tdx, self.tdx.allow_debug),
            (Tee::SevSnp, self.snp.allow_debug),
        ];
        let allowed = debug
            .iter()
            .filter(|(tee, allowed)| *allowed && self.may_accept(*tee));
        all.extend(allowed.map(|(tee, _)| {
            format!("a guest of {tee} under debug is accepted: its host can look into it")
        }));
        let lapsed = self.advisories.iter().filter(|found| !found.holds(now));
        all.extend(lapsed.map(|Tolerated { id, until }| {
            format!(
                "{id} was tolerated until {} and is refused now",
                date::format(*until)
            )
        }));
        for reference in &self.measurements {
            let name = &reference.name;
            if let Some(from) = reference.not_before.filter(|from| now < *from) {
                let from = date::format(from);
                all.push(format!(
                    "the reference value {name:?} holds from {from} only"
                ));
            }
            if let Some(to) = reference.not_after.filter(|to| *to < now) {
                let to = date::format(to);
                all.push(format!("the reference value {name:?} held until {to} only"));
            }
        }
        all
    }

    /// Whether evidence with the structures of `tee` may be accepted, of a test or of a machine.
    fn may_accept(&self, tee: Tee) -> bool {
        let kind = match tee {
            Tee::Tdx => Kind::Tdx,
            Tee::SevSnp => Kind::SevSnp,
        };
        self.kinds.contains(&kind) || self.kinds.contains(&Kind::NoneTest)
    }

    pub(super) fn kinds_expected(&self) -> String {
        let names: Vec<_> = self.kinds.iter().map(ToString::to_string).collect();
        names.join(" or ")
    }
}

pub(super) const fn debug_expected(allowed: bool) -> &'static str {
    if allowed { "on or off" } else { "off" }
}

pub(super) fn advisory_expected(until: Option<UnixTime>) -> String {
    match until {
        Some(until) => format!("tolerated until {}", date::format(until)),
        None => "none but those that the policy tolerates".to_owned(),
    }
}

pub(super) const fn migration_expected(allowed: bool) -> &'static str {
    if allowed {
        "allowed or not"
    } else {
        "no migration agent"
    }
}

pub(super) const fn smt_expected(allowed: bool) -> &'static str {
    if allowed {
        "allowed or not"
    } else {
        "not allowed"
    }
}

pub(super) const fn crl_expected(required: bool) -> &'static str {
    if required {
        "checked"
    } else {
        "checked or not"
    }
}
