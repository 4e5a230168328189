//! Real samples of Intel and AMD, found in the packages of `dcap-qvl` and `sev`.

use std::{path::PathBuf, process::Command, sync::LazyLock};

use souk_attest::{Collateral, Evidence, SnpPieces, TdxCollateral, date};
use souk_crypto::UnixTime;

/// The folder of a dependency, as cargo has it.
pub(crate) fn package(name: &str) -> PathBuf {
    static METADATA: LazyLock<serde_json::Value> = LazyLock::new(|| {
        let output = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--locked"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "cargo metadata failed");
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON")
    });
    let packages = METADATA["packages"].as_array().expect("packages");
    let found = packages
        .iter()
        .find(|package| package["name"] == name)
        .unwrap_or_else(|| panic!("{name} is a dependency"));
    PathBuf::from(found["manifest_path"].as_str().expect("a path"))
        .parent()
        .expect("a folder")
        .to_owned()
}

/// A sample of `dcap-qvl`.
pub(crate) fn tdx_sample(name: &str) -> Vec<u8> {
    let path = package("dcap-qvl").join("sample").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A sample of `sev`.
pub(crate) fn snp_sample(name: &str) -> Vec<u8> {
    let path = package("sev").join("tests/certs_data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A quote and its collateral.
pub(crate) fn tdx(name: &str) -> (Evidence, Collateral) {
    let quote = Evidence::parse(&tdx_sample(name)).expect("a real quote parses");
    let collateral = TdxCollateral::from_json(&tdx_sample(&format!("{name}_collateral.json")))
        .expect("real collateral parses");
    (quote, Collateral::Tdx(Box::new(collateral)))
}

/// The report of a Milan and its certificates, without a revocation list: none was published with it.
pub(crate) fn milan() -> (Evidence, Collateral) {
    let report = hex::decode(snp_sample("report_milan.hex").trim_ascii()).expect("hex");
    let Evidence::Snp(report) = Evidence::parse(&report).expect("a real report parses") else {
        panic!("a report of SNP");
    };
    let mut pieces = SnpPieces::default();
    assert_eq!(pieces.add(&snp_sample("vcek_milan.der")), Ok(true));
    let collateral = pieces
        .for_report(&report, at("2026-11-20T00:00:00Z"))
        .expect("AMD's roots are built in");
    (Evidence::Snp(report), Collateral::Snp(Box::new(collateral)))
}

/// The instant of a date.
pub(crate) fn at(date: &str) -> UnixTime {
    date::parse(date).expect("a date")
}
