use super::*;

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
