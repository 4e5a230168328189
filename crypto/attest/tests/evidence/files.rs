//! Evidence and collateral from files, as people have them.

use std::fs;

use souk_attest::{
    Evidence, Kind, Trust, date,
    files::{FileError, collateral, evidence_bytes},
    verify,
};

use crate::common::{at, milan, package, tdx, tdx_sample};

#[test]
fn evidence_is_read_raw_and_as_hex_with_and_without_lines() {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = tdx_sample("tdx_quote");
    let hex = hex::encode(&raw);
    let lines: String = hex
        .as_bytes()
        .chunks(64)
        .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
        .collect();
    for text in [
        raw.clone(),
        hex.clone().into_bytes(),
        format!("0x{hex}\n").into_bytes(),
        lines.into_bytes(),
    ] {
        let path = folder.path().join("quote");
        fs::write(&path, text).expect("it is written");
        assert_eq!(evidence_bytes(&path).expect("it is read"), raw);
    }
    let large = folder.path().join("large");
    fs::write(&large, vec![0; 1 << 20]).expect("it is written");
    assert!(matches!(
        evidence_bytes(&large),
        Err(FileError::TooLarge { .. })
    ));
    let gone = folder.path().join("gone");
    assert!(matches!(evidence_bytes(&gone), Err(FileError::Read { .. })));
}

#[test]
fn of_a_folder_with_collateral_of_many_machines_the_right_one_is_taken() {
    let samples = package("dcap-qvl").join("sample");
    for (name, day) in [
        ("tdx_quote", "2025-06-20T00:00:00Z"),
        ("tdx_quote_td15ex", "2026-10-09T00:00:00Z"),
    ] {
        let (quote, _) = tdx(name);
        let found = collateral(&samples, &quote, at(day))
            .expect("it is there")
            .expect("it parses");
        assert!(
            verify(&quote, &found, &Trust::vendors(), at(day)).is_ok(),
            "{name}"
        );
    }
    let certificates = package("sev").join("tests/certs_data");
    let (report, _) = milan();
    let today = date::parse("2026-11-20T00:00:00Z").expect("a date");
    let found = collateral(&certificates, &report, today)
        .expect("it is there")
        .expect("it parses");
    let verified = verify(&report, &found, &Trust::vendors(), today).expect("it verifies");
    assert_eq!(verified.kind(), Kind::SevSnp);
}

#[test]
fn the_canonical_form_is_read_from_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let day = at("2025-06-20T00:00:00Z");
    let cases = [tdx("tdx_quote"), milan()];
    for (evidence, known) in cases {
        let path = folder.path().join("collateral");
        fs::write(&path, known.to_bytes()).expect("it is written");
        let found = collateral(&path, &evidence, day)
            .expect("it is there")
            .expect("it parses");
        assert_eq!(found.digest(), known.digest());
    }
}

#[test]
fn a_folder_without_collateral_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("notes"), "nothing").expect("it is written");
    for evidence in [tdx("tdx_quote").0, milan().0] {
        let found = collateral(folder.path(), &evidence, at("2026-01-01T00:00:00Z"));
        assert!(matches!(found, Err(FileError::NoCollateral { .. })));
    }
    assert!(
        matches!(Evidence::parse(b"nothing"), Err(refusal) if refusal.reason() == "unknown-evidence")
    );
}
