//! Known answers: evidence that real machines made, with the clock of their day.

use crate::common::{at, milan, snp_sample, tdx, tdx_sample};
use souk_attest::{
    Evidence, FactsRef, Kind, Part, Product, Refusal, SnpPieces, TcbStatus, TdVersion, Trust,
    Verified, verify,
};

const TODAY: &str = "2026-11-20T18:00:00Z";

fn status(verified: &Verified) -> TcbStatus {
    match verified.facts() {
        FactsRef::Tdx(facts) => facts.tcb_status(),
        FactsRef::Snp(_) => panic!("a quote of TDX"),
    }
}

#[test]
fn tdx_quotes_are_up_to_date_at_their_day_and_expired_today() {
    for (name, day, version, td) in [
        ("tdx_quote", "2025-06-20T00:00:00Z", 4, TdVersion::Td10),
        (
            "tdx_quote_td15ex",
            "2026-10-09T00:00:00Z",
            5,
            TdVersion::Td15Ex,
        ),
    ] {
        let (quote, collateral) = tdx(name);
        let verified = verify(&quote, &collateral, &Trust::vendors(), at(day)).expect(name);
        assert_eq!(verified.kind(), Kind::Tdx);
        assert_eq!(status(&verified).to_string(), "UpToDate");
        let FactsRef::Tdx(facts) = verified.facts() else {
            panic!("a quote of TDX");
        };
        assert_eq!((facts.quote_version(), facts.td_version()), (version, td));
        assert!(!facts.td().is_debug());
        assert!(facts.expires() > at(day) && facts.issued() < at(day));

        let today = verify(&quote, &collateral, &Trust::vendors(), at(TODAY));
        let refusal = today.expect_err("it expired");
        assert_eq!(refusal.reason(), "expired", "{refusal}");
    }
}

#[test]
fn an_outdated_tdx_quote_meets_no_tcb_level() {
    let (quote, collateral) = tdx("tdx_quote_outdated");
    let day = at("2026-02-20T00:00:00Z");
    let refusal = verify(&quote, &collateral, &Trust::vendors(), day).expect_err("outdated");
    assert_eq!(refusal.reason(), "no-tcb-level", "{refusal}");
}

#[test]
fn a_quote_of_sgx_is_refused_as_not_tdx() {
    let refusal = Evidence::parse(&tdx_sample("sgx_quote")).expect_err("SGX");
    assert_eq!(refusal, Refusal::NotTdx { found: "SGX" });
}

#[test]
fn a_report_of_a_milan_verifies_within_the_dates_of_its_certificates() {
    let (report, collateral) = milan();
    let verified = verify(&report, &collateral, &Trust::vendors(), at(TODAY)).expect("it verifies");
    assert_eq!(verified.kind(), Kind::SevSnp);
    let FactsRef::Snp(facts) = verified.facts() else {
        panic!("a report of SNP");
    };
    assert_eq!(facts.product(), Product::Milan);
    assert_eq!(facts.report().version(), 2);
    assert_eq!((facts.tcb().snp, facts.tcb().microcode), (8, 115));
    assert!(!facts.revocation_checked());

    for (date, reason) in [
        ("2023-04-03T19:23:42Z", "not-yet-valid"),
        ("2030-04-03T19:23:44Z", "expired"),
    ] {
        let refusal = verify(&report, &collateral, &Trust::vendors(), at(date)).expect_err(date);
        assert_eq!(refusal.reason(), reason, "{refusal}");
        assert!(refusal.to_string().contains(Part::Vcek.as_str()));
    }
}

#[test]
fn a_chip_has_its_own_certificate() {
    let (report, _) = milan();
    let Evidence::Snp(report) = report else {
        panic!("a report of SNP");
    };
    let mut pieces = SnpPieces::default();
    assert_eq!(pieces.add(&snp_sample("vcek_turin.der")), Ok(true));
    assert_eq!(pieces.add(&snp_sample("cert_chain_turin")), Ok(true));
    let collateral = pieces
        .for_report(&report, at(TODAY))
        .expect("certificates of another chip");
    let collateral = souk_attest::Collateral::Snp(Box::new(collateral));
    let evidence = Evidence::Snp(report);
    let refusal = verify(&evidence, &collateral, &Trust::vendors(), at(TODAY));
    assert_eq!(refusal.expect_err("another chip").reason(), "other-chip");
}

#[test]
fn every_root_that_is_built_in_is_a_root_of_amd() {
    let (Evidence::Snp(report), _) = milan() else {
        panic!("a report of SNP");
    };
    let missing = SnpPieces::default().for_report(&report, at(TODAY));
    assert_eq!(
        missing.expect_err("no piece"),
        Refusal::Missing { part: Part::Vcek }
    );
}
