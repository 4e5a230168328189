//! Every byte counts: evidence and collateral with any byte changed do not verify as they did, and nothing panics.
//!
//! Not covered, by nature: the signatures themselves, of which ECDSA has two for everything signed (`s` and `n - s`); no change
//! of one byte leads from one to the other.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use souk_attest::{Collateral, Evidence, Product, Tee, Trust, verify};
use souk_crypto::UnixTime;

use crate::{
    common::{at, milan, tdx},
    minted::{mint_snp, mint_tdx, now},
};

/// Changes each byte once, by a bit pattern drawn from `seed`, and names the bytes whose change went unnoticed.
fn unnoticed(bytes: &[u8], seed: u64, step: usize, verifies: impl Fn(&[u8]) -> bool) -> Vec<usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    assert!(verifies(bytes), "it verifies unchanged");
    let mut found = Vec::new();
    for at in (0..bytes.len()).step_by(step) {
        let mut changed = bytes.to_vec();
        changed[at] ^= rng.random_range(1..=255_u8);
        if verifies(&changed) {
            found.push(at);
        }
    }
    found
}

fn check(evidence: &Evidence, collateral: &Collateral, trust: &Trust, now: UnixTime, step: usize) {
    let tee = evidence.tee();
    let none: Vec<usize> = Vec::new();
    let of_evidence = unnoticed(evidence.as_bytes(), 1, step, |bytes| {
        Evidence::parse(bytes).is_ok_and(|changed| verify(&changed, collateral, trust, now).is_ok())
    });
    assert_eq!(
        of_evidence, none,
        "bytes of evidence ({tee}) that nothing covers"
    );
    let of_collateral = unnoticed(&collateral.to_bytes(), 2, step, |bytes| {
        Collateral::from_bytes(tee, bytes)
            .is_ok_and(|changed| verify(evidence, &changed, trust, now).is_ok())
    });
    assert_eq!(
        of_collateral, none,
        "bytes of collateral ({tee}) that nothing covers"
    );
}

#[test]
fn no_changed_byte_of_a_real_quote_or_its_collateral_verifies() {
    let (quote, collateral) = tdx("tdx_quote");
    check(
        &quote,
        &collateral,
        &Trust::vendors(),
        at("2025-06-20T00:00:00Z"),
        1,
    );
}

#[test]
fn no_changed_byte_of_a_real_td15ex_quote_verifies() {
    let (quote, collateral) = tdx("tdx_quote_td15ex");
    check(
        &quote,
        &collateral,
        &Trust::vendors(),
        at("2026-10-09T00:00:00Z"),
        7,
    );
}

#[test]
fn no_changed_byte_of_a_real_report_or_its_certificates_verifies() {
    let (report, collateral) = milan();
    check(
        &report,
        &collateral,
        &Trust::vendors(),
        at("2026-11-20T00:00:00Z"),
        1,
    );
}

#[test]
fn no_changed_byte_of_minted_evidence_verifies() {
    for minted in [mint_tdx(|_| {}), mint_snp(Product::Turin, 5, |_| {})] {
        let trust = Trust::with_test_roots([minted.root]);
        check(&minted.evidence, &minted.collateral, &trust, now(), 5);
    }
}

#[test]
fn evidence_cut_short_or_with_more_behind_it_does_not_parse() {
    let (quote, _) = tdx("tdx_quote");
    let (report, _) = milan();
    for evidence in [quote, report] {
        let bytes = evidence.as_bytes();
        for len in 0..bytes.len() {
            assert!(Evidence::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
        let longer = [bytes, &[1]].concat();
        assert!(Evidence::parse(&longer).is_err());
    }
}

#[test]
fn padding_with_zeros_is_the_same_quote() {
    let (quote, _) = tdx("tdx_quote");
    let padded = Evidence::parse(&[quote.as_bytes(), &[0; 70]].concat()).expect("padded");
    assert_eq!(padded.digest(), quote.digest());
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>, version in 0_u8..8, kind in 0_u8..4) {
        let mut bytes = bytes;
        bytes.resize(bytes.len().max(1184), 0);
        bytes[..4].copy_from_slice(&[version, 0, kind, 0]);
        let _ = Evidence::parse(&bytes);
        let _ = Collateral::from_bytes(Tee::Tdx, &bytes);
        let _ = Collateral::from_bytes(Tee::SevSnp, &bytes);
    }
}
