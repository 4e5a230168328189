//! Responses of collateral services, and tables in firmware files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_attest::fetch::{Response, plan};
use souk_attest::measure;

fuzz_target!(|input: (Vec<Vec<u8>>, String)| {
    let (bodies, header) = input;
    let responses: Vec<Response> = bodies
        .into_iter()
        .take(4)
        .map(|body| Response {
            header: Some(header.clone()),
            body,
        })
        .collect();
    if let Ok(collateral) = plan::tdx(&responses) {
        assert!(!collateral.to_bytes().is_empty());
    }
    for response in &responses {
        let _ = measure::check_firmware(&response.body);
    }
});
