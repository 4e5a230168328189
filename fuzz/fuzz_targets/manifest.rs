//! A manifest that reads is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_image::Manifest;

fuzz_target!(|text: &str| {
    if let Ok(manifest) = Manifest::from_text(text) {
        assert_eq!(manifest.to_text(), text);
    }
});
