//! Evidence and collateral from files, as people have them.

use std::fs;

use souk_attest::{
    Collateral, Evidence, Kind, Product, SnpPieces, TdxCollateral, Trust, date,
    files::{FileError, collateral, evidence_bytes},
    verify,
};

use souk_crypto::UnixTime;

use crate::{
    common::{at, milan, package, snp_sample, tdx, tdx_sample},
    minted::{issued, mint_snp, now},
};

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
fn of_whole_collateral_of_several_chips_that_of_the_report_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let chips: Vec<_> = [Product::Milan, Product::Genoa, Product::Turin]
        .into_iter()
        .map(|product| mint_snp(product, 5, |_| {}))
        .collect();
    for (number, chip) in chips.iter().enumerate() {
        let path = folder.path().join(format!("{number}.cbor"));
        fs::write(path, chip.collateral.to_bytes()).expect("it is written");
    }
    // What stands beside them may be of no use at all.
    fs::write(folder.path().join("0.pem"), snp_sample("cert_chain_turin")).expect("written");
    for chip in &chips {
        let found = collateral(folder.path(), &chip.evidence, now())
            .expect("it is there")
            .expect("it parses");
        assert_eq!(found.digest(), chip.collateral.digest());
    }
}

#[test]
fn of_several_revocation_lists_the_newest_of_the_day_is_taken() {
    let old = mint_snp(Product::Milan, 5, |_| {});
    let (Evidence::Snp(report), Collateral::Snp(whole)) = (&old.evidence, &old.collateral) else {
        panic!("a report of SNP");
    };
    let list_of = |issued: UnixTime| {
        let minted = mint_snp(Product::Milan, 5, |recipe| {
            recipe.issued = issued;
            recipe.next_update = issued.plus_s(30 * 86_400);
        });
        let Collateral::Snp(minted) = minted.collateral else {
            panic!("a report of SNP");
        };
        minted.crl_der().expect("a list").to_vec()
    };
    let mut pieces = SnpPieces::default();
    for der in [whole.vcek_der(), whole.ask_der(), whole.ark_der()] {
        assert_eq!(pieces.add(der), Ok(true));
    }
    let days = [0, 1, 40].map(|days| issued().plus_s(days * 86_400));
    for day in days {
        assert_eq!(pieces.add(&list_of(day)), Ok(true));
    }
    let taken = |now| {
        let found = pieces.for_report(report, now).expect("all is there");
        found.issued().expect("a list")
    };
    assert_eq!(taken(days[0]), days[0]);
    assert_eq!(taken(days[1]), days[1]);
    assert_eq!(taken(days[2].minus_s(1)), days[1]);
    assert_eq!(taken(days[2]), days[2]);
}

#[test]
fn of_several_certificates_of_a_chip_that_of_the_reported_tcb_is_taken() {
    let minted = mint_snp(Product::Genoa, 3, |_| {});
    let older = mint_snp(Product::Genoa, 3, |recipe| recipe.vcek_tcb.snp -= 1);
    let (Evidence::Snp(report), Collateral::Snp(right), Collateral::Snp(wrong)) =
        (&minted.evidence, &minted.collateral, &older.collateral)
    else {
        panic!("a report of SNP");
    };
    for order in [[right, wrong], [wrong, right]] {
        let mut pieces = SnpPieces::default();
        for whole in order {
            for der in [whole.vcek_der(), whole.ask_der(), whole.ark_der()] {
                assert_eq!(pieces.add(der), Ok(true));
            }
        }
        let found = pieces.for_report(report, now()).expect("all is there");
        assert_eq!(found.vcek_der(), right.vcek_der());
    }
}

#[test]
fn no_changed_byte_of_a_collateral_file_gives_other_collateral_that_verifies() {
    // What may change is the form: white space, the case of hex digits, the words around a PEM block, keys that nobody reads.
    for (name, day, step) in [
        ("tdx_quote", "2025-06-20T00:00:00Z", 3),
        ("tdx_quote_td15ex", "2026-10-09T00:00:00Z", 11),
    ] {
        let (quote, known) = tdx(name);
        let text = tdx_sample(&format!("{name}_collateral.json"));
        let mut same = 0;
        for at_byte in (0..text.len()).step_by(step) {
            let mut changed = text.clone();
            changed[at_byte] ^= 1 << (at_byte % 7);
            let Ok(found) = TdxCollateral::from_json(&changed) else {
                continue;
            };
            let found = Collateral::Tdx(Box::new(found));
            if verify(&quote, &found, &Trust::vendors(), at(day)).is_ok() {
                assert_eq!(found.digest(), known.digest(), "{name}: byte {at_byte}");
                same += 1;
            }
        }
        assert!(
            same < text.len() / step / 50,
            "{name}: {same} bytes are free"
        );
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
