//! Evidence that the software TEE mints: every status, generation and version that no real sample shows, and everything that
//! must not verify, each by name.

use std::sync::LazyLock;

use crate::common::{at, tdx};
use ring::rand::SystemRandom;
use souk_attest::{
    Blame, Collateral, Decision, Evidence, Expected, FactsRef, Kind, Measurement, Part, Policy,
    Product, Refusal, ReportData, RootId, SnpTcb, TcbStatus, TdVersion, Trust, Verified,
    soft::{SnpRecipe, TdxRecipe, TestAmd, TestSnp, TestTdx},
    verify,
};
use souk_crypto::UnixTime;

pub(crate) const DATA: ReportData = ReportData([0xda; 64]);
pub(crate) static AMD: LazyLock<TestAmd> =
    LazyLock::new(|| TestAmd::new(&SystemRandom::new()).expect("there is randomness"));

pub(crate) fn issued() -> UnixTime {
    at("2026-01-01T00:00:00Z")
}

pub(crate) fn now() -> UnixTime {
    at("2026-01-10T00:00:00Z")
}

/// Evidence, its collateral, and the trust it needs.
pub(crate) struct Minted {
    pub(crate) evidence: Evidence,
    pub(crate) collateral: Collateral,
    pub(crate) root: RootId,
}

impl Minted {
    fn verify_at(&self, now: UnixTime) -> Result<Verified, Refusal> {
        verify(
            &self.evidence,
            &self.collateral,
            &Trust::with_test_roots([self.root]),
            now,
        )
    }

    fn verify(&self) -> Result<Verified, Refusal> {
        self.verify_at(now())
    }

    fn reason(&self) -> &'static str {
        self.verify().expect_err("it must not verify").reason()
    }
}

pub(crate) fn mint_tdx(change: impl FnOnce(&mut TdxRecipe)) -> Minted {
    let mut recipe = TdxRecipe::up_to_date(issued());
    change(&mut recipe);
    let rng = SystemRandom::new();
    let machine = TestTdx::new(recipe, &rng).expect("it mints");
    let quote = machine.quote(DATA, &rng).expect("it signs");
    Minted {
        evidence: Evidence::parse(&quote).expect("it parses"),
        collateral: Collateral::Tdx(Box::new(machine.collateral().clone())),
        root: machine.root(),
    }
}

pub(crate) fn mint_snp(
    product: Product,
    version: u32,
    change: impl FnOnce(&mut SnpRecipe),
) -> Minted {
    let mut recipe = SnpRecipe::sound(product, version, issued());
    change(&mut recipe);
    let rng = SystemRandom::new();
    let machine = TestSnp::new(recipe, &AMD, &rng).expect("it mints");
    let report = machine.report(DATA, &rng).expect("it signs");
    Minted {
        evidence: Evidence::parse(&report).expect("it parses"),
        collateral: Collateral::Snp(Box::new(machine.collateral().clone())),
        root: machine.root(),
    }
}

fn status(verified: &Verified) -> TcbStatus {
    match verified.facts() {
        FactsRef::Tdx(facts) => facts.tcb_status(),
        FactsRef::Snp(_) => panic!("a quote of TDX"),
    }
}

fn policy(minted: &Minted, more: &str) -> Policy {
    let text = format!(
        r#"
version = 1
kinds = ["none+test"]
test_roots = ["{}"]
{more}

[[measurement]]
name = "test guest"
tee = "tdx"
mr_td = "{}"
rtmr0 = "{}"
rtmr1 = "{}"
rtmr2 = "any"
rtmr3 = "any"

[[measurement]]
name = "test guest"
tee = "sev-snp"
measurement = "{}"
"#,
        minted.root,
        Measurement([1; 48]),
        Measurement([2; 48]),
        Measurement([3; 48]),
        Measurement([7; 48]),
    );
    Policy::parse(&text).expect("a right policy")
}

fn decide(minted: &Minted, more: &str) -> Decision {
    let verified = minted.verify().expect("it verifies");
    policy(minted, more).decide(
        &verified,
        Expected {
            report_data: Some(DATA),
        },
        now(),
    )
}

fn reasons(decision: &Decision) -> Vec<&'static str> {
    decision.reasons().collect()
}

#[test]
fn minted_evidence_is_none_test_and_nothing_else() {
    for minted in [mint_tdx(|_| {}), mint_snp(Product::Genoa, 3, |_| {})] {
        let verified = minted.verify().expect("it verifies");
        assert_eq!(verified.kind(), Kind::NoneTest);
        assert!(matches!(&verified, Verified::Test(test) if test.root() == minted.root));

        let trust = Trust::vendors();
        let refusal = verify(&minted.evidence, &minted.collateral, &trust, now());
        assert_eq!(refusal.expect_err("no vendor").reason(), "unknown-root");
        let other = Trust::with_test_roots([RootId([0; 32])]);
        let refusal = verify(&minted.evidence, &minted.collateral, &other, now());
        assert_eq!(refusal.expect_err("another root").reason(), "unknown-root");

        let for_real = r#"version = 1
kinds = ["tdx", "sev-snp"]
"#;
        let policy = Policy::parse(for_real).expect("a right policy");
        let decision = policy.decide(&verified, Expected::default(), now());
        assert!(reasons(&decision).contains(&"kind"));
        assert!(reasons(&decision).contains(&"unknown-root"));
    }
}

#[test]
fn every_version_of_a_quote_verifies() {
    for (quote_version, td_version) in [
        (4, TdVersion::Td10),
        (5, TdVersion::Td10),
        (5, TdVersion::Td15),
        (5, TdVersion::Td15Ex),
    ] {
        let minted = mint_tdx(|recipe| {
            recipe.quote_version = quote_version;
            recipe.td_version = td_version;
        });
        let verified = minted.verify().expect("it verifies");
        let FactsRef::Tdx(facts) = verified.facts() else {
            panic!("a quote of TDX");
        };
        assert_eq!(
            (facts.quote_version(), facts.td_version()),
            (quote_version, td_version)
        );
        assert_eq!(verified.report_data(), DATA);
        assert!(decide(&minted, "").is_accepted());
    }
}

#[test]
fn every_tcb_status_is_told_in_the_spelling_of_intel_and_refused_below_the_minimum() {
    for (platform, qe, expected) in [
        ("UpToDate", "UpToDate", TcbStatus::UpToDate),
        (
            "SWHardeningNeeded",
            "UpToDate",
            TcbStatus::SWHardeningNeeded,
        ),
        (
            "ConfigurationNeeded",
            "UpToDate",
            TcbStatus::ConfigurationNeeded,
        ),
        (
            "ConfigurationAndSWHardeningNeeded",
            "UpToDate",
            TcbStatus::ConfigurationAndSWHardeningNeeded,
        ),
        ("OutOfDate", "UpToDate", TcbStatus::OutOfDate),
        (
            "OutOfDateConfigurationNeeded",
            "UpToDate",
            TcbStatus::OutOfDateConfigurationNeeded,
        ),
        ("UpToDate", "OutOfDate", TcbStatus::OutOfDate),
    ] {
        let minted = mint_tdx(|recipe| {
            recipe.platform_status = platform;
            recipe.qe_status = qe;
        });
        let verified = minted.verify().expect("it verifies");
        assert_eq!(status(&verified), expected);
        assert_eq!(status(&verified).to_string(), format!("{expected:?}"));
        let tolerant = format!("[tdx]\nmin_tcb_status = \"{expected}\"");
        assert!(decide(&minted, &tolerant).is_accepted(), "{expected}");
        if expected != TcbStatus::UpToDate {
            assert_eq!(reasons(&decide(&minted, "")), ["tcb-status"], "{expected}");
        }
    }
}

#[test]
fn a_module_updated_under_a_running_guest_advises_a_relaunch() {
    for (platform, expected) in [
        ("UpToDate", TcbStatus::TDRelaunchAdvised),
        (
            "ConfigurationNeeded",
            TcbStatus::TDRelaunchAdvisedConfigurationNeeded,
        ),
    ] {
        let minted = mint_tdx(|recipe| {
            recipe.quote_version = 5;
            recipe.td_version = TdVersion::Td15;
            recipe.td.tee_tcb_svn[0] = 4;
            recipe.platform_status = platform;
        });
        assert_eq!(status(&minted.verify().expect("it verifies")), expected);
    }
}

#[test]
fn a_revoked_tcb_level_never_verifies() {
    for (platform, qe) in [("Revoked", "UpToDate"), ("UpToDate", "Revoked")] {
        let minted = mint_tdx(|recipe| {
            recipe.platform_status = platform;
            recipe.qe_status = qe;
        });
        assert_eq!(minted.reason(), "tcb-revoked");
    }
}

#[test]
fn a_machine_below_every_tcb_level_has_none() {
    let minted = mint_tdx(|recipe| recipe.cpu_svn = 4);
    let refusal = minted.verify().expect_err("no level");
    assert_eq!(
        (refusal.reason(), refusal.blame()),
        ("no-tcb-level", Blame::Platform)
    );
}

#[test]
fn a_list_that_revokes_a_certificate_is_heard() {
    for part in [Part::Pck, Part::PckCa, Part::TcbInfoSigner] {
        let minted = mint_tdx(|recipe| recipe.revoked = Some(part));
        assert_eq!(
            minted.verify().expect_err("revoked"),
            Refusal::Revoked { part }
        );
    }
    // The list is the root's; the entry of the chip's certificate says who issued that.
    for part in [Part::Root, Part::Ask, Part::Vcek] {
        let minted = mint_snp(Product::Milan, 2, |recipe| recipe.revoked = Some(part));
        assert_eq!(
            minted.verify().expect_err("revoked"),
            Refusal::Revoked { part }
        );
    }
}

#[test]
fn a_future_and_a_past_clock_are_told_apart() {
    for minted in [mint_tdx(|_| {}), mint_snp(Product::Turin, 5, |_| {})] {
        let past = minted.verify_at(issued().minus_s(1)).expect_err("before");
        assert_eq!(
            (past.reason(), past.blame()),
            ("not-yet-valid", Blame::Clock)
        );
        let future = minted
            .verify_at(issued().plus_s(31 * 86_400))
            .expect_err("after");
        assert_eq!(
            (future.reason(), future.blame()),
            ("expired", Blame::Collateral)
        );
        assert!(minted.verify_at(issued()).is_ok());
        assert!(minted.verify_at(issued().plus_s(30 * 86_400 - 1)).is_ok());
        let end = minted
            .verify_at(issued().plus_s(30 * 86_400))
            .expect_err("at the end");
        assert_eq!(end.reason(), "expired");
    }
}

#[test]
fn expired_certificates_are_named_even_where_lists_are_fresh() {
    let minted = mint_tdx(|recipe| recipe.certificates_end = now().minus_s(1));
    assert!(matches!(
        minted.verify(),
        Err(Refusal::Expired {
            part: Part::Root,
            ..
        })
    ));
    let minted = mint_snp(Product::Milan, 3, |recipe| {
        recipe.certificates_end = now().minus_s(1);
    });
    assert!(matches!(
        minted.verify(),
        Err(Refusal::Expired {
            part: Part::Root,
            ..
        })
    ));
}

#[test]
fn collateral_of_another_machine_or_day_or_vendor_does_not_fit() {
    let minted = mint_tdx(|recipe| recipe.collateral_fmspc = [9; 6]);
    assert_eq!(minted.reason(), "other-platform");

    let (one, two) = (mint_tdx(|_| {}), mint_tdx(|_| {}));
    let swapped = Minted {
        collateral: two.collateral,
        ..one
    };
    assert_eq!(swapped.reason(), "unknown-root");

    let snp = mint_snp(Product::Milan, 3, |_| {});
    let swapped = Minted {
        collateral: snp.collateral,
        ..mint_tdx(|_| {})
    };
    assert_eq!(swapped.reason(), "other-platform");

    let (real, real_collateral) = tdx("tdx_quote");
    let (_, other_day) = tdx("tdx_quote_td15ex");
    let day = at("2025-06-20T00:00:00Z");
    assert!(verify(&real, &real_collateral, &Trust::vendors(), day).is_ok());
    let refusal = verify(&real, &other_day, &Trust::vendors(), day).expect_err("another day");
    assert_eq!(refusal.reason(), "not-yet-valid");
    let (_, other_machine) = tdx("tdx_quote_outdated");
    let day = at("2026-02-20T00:00:00Z");
    let refusal = verify(&real, &other_machine, &Trust::vendors(), day).expect_err("another");
    assert_eq!(refusal.reason(), "other-platform");
}

#[test]
fn a_quoting_enclave_that_is_not_intels_or_vouches_for_another_key_is_refused() {
    let minted = mint_tdx(|recipe| recipe.foreign_quoting_enclave = true);
    assert_eq!(minted.reason(), "quoting-enclave");
    let minted = mint_tdx(|recipe| recipe.foreign_attestation_key = true);
    assert_eq!(minted.reason(), "foreign-attestation-key");
    let minted = mint_tdx(|recipe| recipe.td.mr_signer_seam = Measurement([1; 48]));
    assert_eq!(minted.reason(), "tdx-module");
}

#[test]
fn attributes_that_undo_all_protection_never_verify() {
    // Migratable, with a reserved bit, without SEPT_VE_DISABLE.
    for attributes in [[0, 0, 0, 0x30], [2, 0, 0, 0x10], [0, 0, 0, 0]] {
        let minted = mint_tdx(|recipe| recipe.td.attributes[..4].copy_from_slice(&attributes));
        assert_eq!(minted.reason(), "attributes", "{attributes:x?}");
    }
    let minted = mint_tdx(|recipe| {
        recipe.quote_version = 5;
        recipe.td_version = TdVersion::Td15;
        recipe.td.mr_service_td = Some(Measurement([1; 48]));
    });
    assert_eq!(minted.reason(), "attributes");
}

#[test]
fn a_guest_under_debug_is_refused_unless_the_policy_says_otherwise() {
    let tdx = mint_tdx(|recipe| recipe.td.attributes[0] = 1);
    assert_eq!(reasons(&decide(&tdx, "")), ["debug"]);
    assert!(decide(&tdx, "[tdx]\nallow_debug = true").is_accepted());
    let profiled = mint_tdx(|recipe| recipe.td.attributes[0] = 0x10);
    assert_eq!(reasons(&decide(&profiled, "")), ["debug"]);
    let snp = mint_snp(Product::Milan, 2, |recipe| recipe.policy |= 1 << 19);
    assert_eq!(reasons(&decide(&snp, "")), ["debug"]);
    assert!(decide(&snp, "[snp]\nallow_debug = true").is_accepted());
}

#[test]
fn a_measurement_off_by_one_bit_is_another_measurement() {
    type Change = fn(&mut TdxRecipe);
    let changes: [Change; 4] = [
        |recipe| recipe.td.mr_td.0[47] ^= 1,
        |recipe| recipe.td.rtmr[0].0[0] ^= 0x80,
        |recipe| recipe.td.mr_config_id.0[5] ^= 1,
        |recipe| recipe.td.mr_owner.0[5] ^= 1,
    ];
    for change in changes {
        let minted = mint_tdx(change);
        assert_eq!(reasons(&decide(&minted, "")), ["measurement"]);
    }
    // The policy leaves this one unchecked, and says so.
    assert!(decide(&mint_tdx(|recipe| recipe.td.rtmr[2].0[0] ^= 1), "").is_accepted());

    let minted = mint_snp(Product::Genoa, 3, |recipe| recipe.measurement.0[47] ^= 1);
    assert_eq!(reasons(&decide(&minted, "")), ["measurement"]);
    let minted = mint_snp(Product::Genoa, 3, |recipe| recipe.id_key_digest.0[0] ^= 1);
    assert_eq!(reasons(&decide(&minted, "")), ["measurement"]);
}

#[test]
fn without_a_reference_value_the_answer_is_no() {
    let minted = mint_tdx(|_| {});
    let verified = minted.verify().expect("it verifies");
    let text = format!(
        "version = 1\nkinds = [\"none+test\"]\ntest_roots = [\"{}\"]\n",
        minted.root
    );
    let policy = Policy::parse(&text).expect("a right policy");
    let decision = policy.decide(&verified, Expected::default(), now());
    assert_eq!(reasons(&decision), ["no-reference-value"]);
    let decision = Decision::without_policy(&verified);
    assert!(!decision.is_accepted());
    assert_eq!(reasons(&decision), ["no-reference-value"]);
    assert_eq!(decision.tcb_status(), Some(TcbStatus::UpToDate));
}

#[test]
fn report_data_of_another_key_or_node_is_refused() {
    let minted = mint_tdx(|_| {});
    let verified = minted.verify().expect("it verifies");
    let mut other = DATA;
    other.0[0] ^= 1;
    let expected = Expected {
        report_data: Some(other),
    };
    let decision = policy(&minted, "").decide(&verified, expected, now());
    assert_eq!(reasons(&decision), ["report-data"]);
}

#[test]
fn an_advisory_is_tolerated_by_id_and_until_its_date() {
    let minted = mint_tdx(|recipe| {
        recipe.platform_status = "SWHardeningNeeded";
        recipe.advisories = vec!["INTEL-SA-00615".to_owned()];
    });
    let rules = |id: &str, until: &str| {
        format!(
            "[tdx]\nmin_tcb_status = \"SWHardeningNeeded\"\n[[advisory]]\nid = \"{id}\"\nuntil = \"{until}\""
        )
    };
    let later = "2026-02-01T00:00:00Z";
    assert!(decide(&minted, &rules("INTEL-SA-00615", later)).is_accepted());
    assert_eq!(
        reasons(&decide(&minted, &rules("INTEL-SA-00616", later))),
        ["advisory"]
    );
    let past = decide(&minted, &rules("INTEL-SA-00615", "2026-01-09T23:59:59Z"));
    assert_eq!(reasons(&past), ["advisory"]);
}

#[test]
fn old_collateral_is_refused_by_age() {
    let minted = mint_tdx(|_| {});
    assert!(decide(&minted, "max_age_s = 777600").is_accepted());
    assert_eq!(reasons(&decide(&minted, "max_age_s = 777599")), ["age"]);
}

#[test]
fn every_generation_and_version_of_a_report_verifies() {
    for product in Product::ALL {
        for version in 2..=5 {
            let minted = mint_snp(product, version, |_| {});
            let verified = minted.verify().expect("it verifies");
            let FactsRef::Snp(facts) = verified.facts() else {
                panic!("a report of SNP");
            };
            assert_eq!(facts.product(), product);
            assert_eq!(facts.report().version(), version);
            assert_eq!(facts.tcb().microcode, 115);
            assert!(facts.revocation_checked());
            assert!(decide(&minted, "").is_accepted(), "{product} {version}");
        }
    }
}

#[test]
fn the_certificate_of_another_chip_or_tcb_is_refused() {
    for product in Product::ALL {
        let minted = mint_snp(product, 3, |recipe| recipe.other_chip = true);
        assert!(matches!(
            minted.verify(),
            Err(Refusal::OtherChip {
                field: "chip id",
                ..
            })
        ));
        let minted = mint_snp(product, 3, |recipe| recipe.vcek_tcb.snp += 1);
        assert!(matches!(
            minted.verify(),
            Err(Refusal::OtherChip { field: "TCB", .. })
        ));
    }
}

#[test]
fn what_the_snp_rules_ask_for_is_asked() {
    let old = mint_snp(Product::Milan, 3, |_| {});
    assert_eq!(
        reasons(&decide(&old, "[snp]\nmin_microcode = 116")),
        ["tcb"]
    );
    let low = mint_snp(Product::Milan, 3, |recipe| recipe.vmpl = 1);
    assert_eq!(reasons(&decide(&low, "")), ["vmpl"]);
    let migrating = mint_snp(Product::Milan, 3, |recipe| recipe.policy |= 1 << 18);
    assert_eq!(reasons(&decide(&migrating, "")), ["migration"]);
    let smt = mint_snp(Product::Milan, 3, |_| {});
    assert_eq!(reasons(&decide(&smt, "[snp]\nallow_smt = false")), ["smt"]);
    let unlisted = mint_snp(Product::Milan, 3, |recipe| recipe.with_crl = false);
    assert_eq!(reasons(&decide(&unlisted, "")), ["revocation-unchecked"]);
    assert!(decide(&unlisted, "[snp]\nrequire_crl = false").is_accepted());
}

#[test]
fn a_report_that_the_chip_did_not_sign_is_refused() {
    let rng = SystemRandom::new();
    for (key_info, by) in [(0b10, "nothing"), (0b100, "a VLEK"), (0b1_1100, "nothing")] {
        let mut recipe = SnpRecipe::sound(Product::Genoa, 3, issued());
        recipe.key_info = key_info;
        let machine = TestSnp::new(recipe, &AMD, &rng).expect("it mints");
        let report = machine.report(DATA, &rng).expect("it signs");
        assert_eq!(
            Evidence::parse(&report).expect_err("no"),
            Refusal::NotByChip { by }
        );
    }
}

#[test]
fn tcb_versions_compare_part_by_part() {
    let base = SnpTcb {
        fmc: None,
        bootloader: 4,
        tee: 1,
        snp: 8,
        microcode: 115,
    };
    assert!(base.meets(&base));
    for older in [
        SnpTcb {
            bootloader: 3,
            microcode: 200,
            ..base
        },
        SnpTcb { tee: 0, ..base },
        SnpTcb { snp: 7, ..base },
        SnpTcb {
            microcode: 114,
            ..base
        },
    ] {
        assert!(!older.meets(&base));
        assert!(base.meets(&SnpTcb {
            microcode: 0,
            ..older
        }));
    }
}
