//! Collateral in all forms: what the canonical form holds is written as it was read; the others become it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_attest::{Collateral, SnpPieces, TdxCollateral, Tee};

fuzz_target!(|bytes: &[u8]| {
    for tee in [Tee::Tdx, Tee::SevSnp] {
        if let Ok(collateral) = Collateral::from_bytes(tee, bytes) {
            assert_eq!(collateral.to_bytes(), bytes);
        }
    }
    if let Ok(collateral) = TdxCollateral::from_json(bytes) {
        let canonical = collateral.to_bytes();
        let again = TdxCollateral::from_bytes(&canonical).expect("the canonical form is read");
        assert_eq!(again.to_bytes(), canonical);
    }
    let mut pieces = SnpPieces::default();
    let _ = pieces.add(bytes);
});
