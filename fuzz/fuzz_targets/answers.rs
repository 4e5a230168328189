//! Answers of collateral services, and tables in firmware files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_attest::fetch::{Answer, plan};
use souk_attest::measure;

fuzz_target!(|input: (Vec<Vec<u8>>, String)| {
    let (bodies, header) = input;
    let answers: Vec<Answer> = bodies
        .into_iter()
        .take(4)
        .map(|body| Answer {
            header: header.clone(),
            body,
        })
        .collect();
    if let Ok(collateral) = plan::tdx(&answers) {
        assert!(!collateral.to_bytes().is_empty());
    }
    for answer in &answers {
        let _ = measure::check_firmware(&answer.body);
    }
});
