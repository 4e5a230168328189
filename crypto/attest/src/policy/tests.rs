use super::*;
use crate::{
    soft::{TdxRecipe, TestTdx},
    verified::{Collateral, Evidence, verify},
};

fn mistakes(text: &str) -> String {
    Policy::parse(text)
        .expect_err("it has mistakes")
        .to_string()
}

const RIGHT: &str = r#"version = 1
kinds = ["tdx"]
"#;

#[test]
fn a_small_policy_accepts_nothing_by_itself() {
    let policy = Policy::parse(RIGHT).expect("a right policy");
    assert_eq!(policy.references().count(), 0);
    assert_eq!(policy.trust(), Trust::vendors());
    assert!(!policy.tdx.allow_debug && !policy.snp.allow_debug && policy.snp.require_crl);
    assert_eq!(policy.tdx.min_tcb_status, TcbStatus::UpToDate);
}

#[test]
fn a_misspelled_key_is_told_with_its_line_and_a_suggestion() {
    let text = format!("{RIGHT}\n[tdx]\nmin_tcb_statsu = \"UpToDate\"\n");
    assert_eq!(
        mistakes(&text),
        "line 5: there is no key `min_tcb_statsu` in tdx; did you mean `min_tcb_status`?"
    );
    let text = format!("{RIGHT}max_age = 3\n");
    assert_eq!(
        mistakes(&text),
        "line 3: there is no key `max_age` in the policy; did you mean `max_age_s`?"
    );
}

#[test]
fn all_mistakes_are_told_at_once() {
    let text = "version = 2\nkinds = [\"sgx\"]\nmax_age_s = -1\n[tdx]\nallow_debug = \"no\"\nmin_tcb_status = \"uptodate\"\n";
    let told = mistakes(text);
    for part in [
        "line 1: the version is not 1; write version = 1",
        "line 2: kinds holds something else",
        "line 3: max_age_s is -1",
        "line 5: allow_debug in tdx is of type string; write true or false",
        "line 6: min_tcb_status is \"uptodate\"",
    ] {
        assert!(told.contains(part), "{part} is missing in:\n{told}");
    }
}

#[test]
fn a_reference_value_names_every_register() {
    let text =
        format!("{RIGHT}[[measurement]]\nname = \"guest\"\ntee = \"tdx\"\nmr_td = \"any\"\n");
    let told = mistakes(&text);
    for register in ["rtmr0", "rtmr1", "rtmr2", "rtmr3"] {
        assert!(
            told.contains(&format!("`measurement` has no `{register}`")),
            "{told}"
        );
    }
}

#[test]
fn a_register_of_the_other_tee_is_a_mistake() {
    let text = format!(
        "{RIGHT}[[measurement]]\nname = \"guest\"\ntee = \"sev-snp\"\nmeasurement = \"{}\"\nrtmr0 = \"any\"\n",
        "00".repeat(48)
    );
    assert_eq!(
        mistakes(&text),
        "line 7: `rtmr0` means nothing for sev-snp; take it out"
    );
}

#[test]
fn bits_of_a_guest_are_sixteen_digits_or_any_and_mean_nothing_for_sev_snp() {
    let tdx = format!(
        "{RIGHT}[[measurement]]\nname = \"guest\"\ntee = \"tdx\"\nmr_td = \"any\"\nrtmr0 = \"any\"\nrtmr1 = \"any\"\nrtmr2 = \"any\"\nrtmr3 = \"any\"\n"
    );
    for key in ["attributes", "xfam"] {
        for right in ["e700060000000000", "any"] {
            assert!(Policy::parse(&format!("{tdx}{key} = \"{right}\"\n")).is_ok());
        }
        for wrong in ["", "e7", "e70006000000000000", "e70006000000000g"] {
            let told = mistakes(&format!("{tdx}{key} = \"{wrong}\"\n"));
            assert!(told.contains("write the 16 hex digits"), "{told}");
        }
        let snp = format!(
            "{RIGHT}[[measurement]]\nname = \"guest\"\ntee = \"sev-snp\"\nmeasurement = \"any\"\n{key} = \"any\"\n"
        );
        let told = mistakes(&snp);
        assert!(told.contains("means nothing for sev-snp"), "{told}");
    }
}

/// The decision about a guest of the software TEE, under a policy of which the reference value also has `bits`.
fn decide(change: impl FnOnce(&mut TdxRecipe), bits: &str) -> Decision {
    let now = UnixTime(1_800_000_000);
    let rng = ring::rand::SystemRandom::new();
    let mut recipe = TdxRecipe::up_to_date(now);
    change(&mut recipe);
    let machine = TestTdx::new(recipe, &rng).expect("it mints");
    let quote = machine.quote(ReportData([0; 64]), &rng);
    let evidence = Evidence::parse(&quote.expect("it signs")).expect("it parses");
    let collateral = Collateral::Tdx(Box::new(machine.collateral().clone()));
    let root = machine.root();
    let trust = Trust::with_test_roots([root]);
    let verified = verify(&evidence, &collateral, &trust, now).expect("it verifies");
    let text = format!(
        "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{root}\"]\n[[measurement]]\nname = \"guest\"\ntee = \"tdx\"\nmr_td = \"any\"\nrtmr0 = \"any\"\nrtmr1 = \"any\"\nrtmr2 = \"any\"\nrtmr3 = \"any\"\n{bits}"
    );
    let policy = Policy::parse(&text).expect("a right policy");
    policy.decide(&verified, Expected::default(), now)
}

#[test]
fn a_guest_with_one_other_bit_is_refused_where_the_policy_names_its_bits() {
    const ATTRIBUTES: &str = "attributes = \"0000001000000000\"\n";
    const XFAM: &str = "xfam = \"e700060000000000\"\n";
    type Change = fn(&mut TdxRecipe);
    assert!(decide(|_| (), &[ATTRIBUTES, XFAM].concat()).is_accepted());
    let changes: [(&str, &str, Change); 4] = [
        // Supervisor protection keys, and performance counters.
        ("attributes", ATTRIBUTES, |of| of.td.attributes[3] ^= 0x40),
        ("attributes", ATTRIBUTES, |of| of.td.attributes[7] ^= 0x80),
        // AMX, and the first bit.
        ("xfam", XFAM, |of| of.td.xfam[2] ^= 2),
        ("xfam", XFAM, |of| of.td.xfam[0] ^= 1),
    ];
    for (name, bits, change) in changes {
        let decision = decide(change, bits);
        assert_eq!(decision.reasons().collect::<Vec<_>>(), ["measurement"]);
        let last = decision.lines().last().expect("checks");
        let differs = format!("differs in {name}");
        assert!(last.found.ends_with(&differs), "{}", last.found);
        assert!(decide(change, "").is_accepted(), "{name} was not named");
        let any = format!("{name} = \"any\"\n");
        assert!(decide(change, &any).is_accepted());
    }
}

#[test]
fn the_rules_of_a_policy_are_those_that_it_decides_by() {
    let decision = decide(|_| (), "");
    let root = decision
        .lines()
        .iter()
        .find(|line| line.check == "test root");
    let root = &root.expect("it is of a test").found;
    let text = format!("version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{root}\"]\n");
    let rules = Policy::parse(&text).expect("a right policy").rules();
    for line in decision.lines() {
        let by_caller = ["report data", "measurement", "test root"].contains(&line.check);
        let is_told = |rule: &Rule| rule.check == line.check && rule.expected == line.expected;
        assert!(by_caller || rules.iter().any(is_told), "{line:?}");
    }
    let real = Policy::parse(RIGHT).expect("a right policy").rules();
    assert!(real.iter().all(|rule| rule.tee != Some(Tee::SevSnp)));
}

#[test]
fn test_roots_and_their_kind_go_together() {
    assert!(mistakes("version = 1\nkinds = [\"none+test\"]\n").contains("go together"));
    let text = format!("{RIGHT}test_roots = [\"{}\"]\n", "00".repeat(32));
    assert!(mistakes(&text).contains("go together"));
}

#[test]
fn the_digest_is_over_the_text() {
    let one = Policy::parse(RIGHT).expect("a right policy");
    let two = Policy::parse(&format!("{RIGHT}# a comment\n")).expect("a right policy");
    assert_ne!(one.digest(), two.digest());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in "[ -~\n]{0,400}") {
        let _ = Policy::parse(&text);
    }
}
