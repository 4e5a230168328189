//! Bytes that pass as canonical are what their own tokens encode to: there is no second form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use minicbor::{Decoder, Encoder, data::Token};
use souk_crypto::cbor::check_canonical;

fuzz_target!(|bytes: &[u8]| {
    if check_canonical(bytes, 4_096).is_err() {
        return;
    }
    let tokens: Result<Vec<Token<'_>>, _> = Decoder::new(bytes).tokens().collect();
    let tokens = tokens.expect("canonical CBOR is CBOR");
    let mut encoder = Encoder::new(Vec::new());
    encoder.tokens(&tokens).expect("writing to a Vec");
    assert_eq!(encoder.into_writer(), bytes);
});
