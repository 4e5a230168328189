//! Quotes and reports: what parses is its own only form, and bundles hold it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_attest::{Bundle, Evidence};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(evidence) = Evidence::parse(bytes) {
        let again = Evidence::parse(evidence.as_bytes()).expect("its own form parses");
        assert_eq!(again.as_bytes(), evidence.as_bytes());
        assert_eq!(again.digest(), evidence.digest());
        // What follows a quote is padding.
        let padding = bytes.strip_prefix(evidence.as_bytes()).expect("a prefix");
        assert!(padding.iter().all(|byte| *byte == 0));
    }
    if let Ok(bundle) = Bundle::from_bytes(bytes) {
        assert_eq!(bundle.to_bytes(), bytes);
    }
});
