//! Policies: reading never panics, and mistakes lie inside of the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_attest::Policy;

fuzz_target!(|text: &str| {
    match Policy::parse(text) {
        Ok(policy) => {
            let again = Policy::parse(text).expect("it was right before");
            assert_eq!(again, policy);
        }
        Err(mistakes) => {
            assert!(mistakes.iter().count() > 0);
            for mistake in mistakes.iter() {
                assert!(mistake.line >= 1 && mistake.span.start <= text.len());
            }
        }
    }
});
