//! Full verification of a real TDX quote with its collateral in memory, against the bare ECDSA operations that it must do; and an
//! answer that is kept, by digest.
//!
//! The operations: PCK, PCK CA and the signer's certificate (3), TCB info and identity (2), two revocation lists (2), the report of the
//! quoting enclave and the TD report (2).

use std::{hint::black_box, path::PathBuf, process::Command};

use criterion::{Criterion, criterion_group, criterion_main};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use souk_attest::{Collateral, Evidence, TdxCollateral, Trust, VerifiedCache, date, verify};

const OPERATIONS: usize = 9;
/// About what is signed on average: TCB info is longer, reports are shorter.
const SIGNED_BYTES: usize = 1_024;

fn sample(name: &str) -> Vec<u8> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .expect("cargo runs");
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages
        .iter()
        .find(|package| package["name"] == "dcap-qvl");
    let manifest = package.expect("a dependency")["manifest_path"]
        .as_str()
        .expect("a path");
    let folder = PathBuf::from(manifest)
        .parent()
        .expect("a folder")
        .join("sample");
    std::fs::read(folder.join(name)).expect("a sample")
}

fn verification(c: &mut Criterion) {
    let evidence = Evidence::parse(&sample("tdx_quote")).expect("it parses");
    let collateral = TdxCollateral::from_json(&sample("tdx_quote_collateral.json"));
    let collateral = Collateral::Tdx(Box::new(collateral.expect("it parses")));
    let now = date::parse("2025-06-20T00:00:00Z").expect("a date");
    let trust = Trust::vendors();
    c.bench_function("tdx/verify", |b| {
        b.iter(|| verify(black_box(&evidence), &collateral, &trust, now).expect("it verifies"));
    });

    let rng = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).expect("randomness");
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).expect("a key");
    let message = [7; SIGNED_BYTES];
    let signature = key.sign(&rng, &message).expect("it signs");
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key());
    c.bench_function("tdx/bare ECDSA", |b| {
        b.iter(|| {
            for _ in 0..OPERATIONS {
                public
                    .verify(black_box(&message), signature.as_ref())
                    .expect("it verifies");
            }
        });
    });

    let mut cache = VerifiedCache::new(Trust::vendors());
    let (of_evidence, of_collateral) = (evidence.digest(), collateral.digest());
    assert!(cache.verify(&evidence, &collateral, now).is_ok());
    c.bench_function("cache/hit by digest", |b| {
        b.iter(|| {
            cache
                .get(black_box(of_evidence), of_collateral, now)
                .expect("it is kept")
        });
    });
}

criterion_group!(benches, verification);
criterion_main!(benches);
