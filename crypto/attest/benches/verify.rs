//! Full verification of a real TDX quote with its collateral in memory, against the bare ECDSA operations that it must do; and an
//! answer that is kept, by digest.
//!
//! The operations: PCK, PCK CA and the signer's certificate (3), TCB info and identity (2), two revocation lists (2), the report of the
//! quoting enclave and the TD report (2).
#![expect(
    clippy::print_stderr,
    reason = "what stands beside a figure is for people"
)]

#[path = "../../benches/measured/mod.rs"]
mod measured;

use std::{hint::black_box, path::PathBuf, process::Command, time::Duration};

use measured::{measured, median, timed};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        UnparsedPublicKey,
    },
};
use souk_attest::{Collateral, Evidence, TdxCollateral, Trust, VerifiedCache, date, verify};

/// Turns, of which the median counts.
const TURNS: usize = 401;
/// Answers that are asked for in one turn: one alone is as short as a look at the clock.
const ASKED: u32 = 1_000;
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

fn main() {
    let evidence = Evidence::parse(&sample("tdx_quote")).expect("it parses");
    let collateral = TdxCollateral::from_json(&sample("tdx_quote_collateral.json"));
    let collateral = Collateral::Tdx(Box::new(collateral.expect("it parses")));
    let now = date::parse("2025-06-20T00:00:00Z").expect("a date");
    let trust = Trust::vendors();

    let rng = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &rng).expect("randomness");
    let key = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &rng).expect("a key");
    let message = [7; SIGNED_BYTES];
    let signature = key.sign(&rng, &message).expect("it signs");
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public_key());

    let (mut whole, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        whole.push(timed(|| {
            black_box(verify(black_box(&evidence), &collateral, &trust, now).is_ok());
        }));
        bare.push(timed(|| {
            for _ in 0..OPERATIONS {
                let verified = public.verify(black_box(&message), signature.as_ref());
                verified.expect("it verifies");
            }
        }));
    }
    let (whole, bare) = (median(whole), median(bare));
    eprintln!("verification {whole:?}, {OPERATIONS} bare operations {bare:?}");
    let ratio = whole.as_secs_f64() / bare.as_secs_f64();
    measured("tdx-verification", ratio, "times");

    let mut cache = VerifiedCache::new(Trust::vendors());
    let (of_evidence, of_collateral) = (evidence.digest(), collateral.digest());
    assert!(cache.verify(&evidence, &collateral, now).is_ok());
    let asked = (0..TURNS).map(|_| {
        timed(|| {
            for _ in 0..ASKED {
                let kept = cache.get(black_box(of_evidence), of_collateral, now);
                black_box(kept.expect("it is kept"));
            }
        })
    });
    let one: Duration = median(asked.collect()) / ASKED;
    measured("evidence-kept", one.as_secs_f64() * 1e6, "µs");
}
