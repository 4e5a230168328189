//! Sealed messages: any plaintext comes back, and any change, or any bytes of a stranger, do not open.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rand::{SeedableRng as _, rngs::StdRng};
use souk_crypto::{NetworkId, ReplyKey, SealKey, domain, keys::Secret as _, seal};
use souk_market::sealed::open_request;

fuzz_target!(|bytes: &[u8]| {
    let network: NetworkId = "fuzz.00000000".parse().expect("a network id");
    let provider = SealKey::from_secret_bytes(&[1; 32]);
    let holder = ReplyKey::from_secret_bytes(&[2; 32]);
    assert!(seal::open(&domain::TO_PROVIDER, &network, &provider, b"", bytes).is_err());
    assert!(seal::open(&domain::TO_HOLDER, &network, &holder, b"", bytes).is_err());
    assert!(open_request(bytes, &[provider], &network).is_err());

    let mut rng = StdRng::from_seed([3; 32]);
    let sealed = seal::seal(
        &domain::TO_HOLDER,
        &network,
        &holder.public(),
        b"aad",
        bytes,
        &mut rng,
    );
    let Ok(mut sealed) = sealed else { return };
    let opened = seal::open(&domain::TO_HOLDER, &network, &holder, b"aad", &sealed);
    assert_eq!(&**opened.expect("it was sealed to this key"), bytes);
    let at = bytes.len() % sealed.len();
    sealed[at] ^= 1;
    assert!(seal::open(&domain::TO_HOLDER, &network, &holder, b"aad", &sealed).is_err());
});
