//! Every object: what decodes encodes to what decodes to the same, and what may be signed opens again.
//!
//! The first byte chooses the kind, so that one corpus serves all; the rest is the payload that would be signed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_crypto::{
    NetworkId, Object, SubKeys, cbor,
    keys::{Secret as _, SecretKey},
    sign,
};
use souk_market::{
    capacity::Capacity,
    card::Card,
    envelope::{Envelope, Voucher},
    reply::Reply,
    request::HolderRequest,
    retirement::{Retirement, Succession},
    statement::Statement,
};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, payload)) = bytes.split_first() else {
        return;
    };
    match kind {
        b'0' => object::<SubKeys>(payload),
        b'1' => object::<Card>(payload),
        b'2' => object::<Capacity>(payload),
        b'3' => object::<Envelope>(payload),
        b'4' => object::<Voucher>(payload),
        b'5' => object::<HolderRequest>(payload),
        b'6' => object::<Reply>(payload),
        b'7' => object::<Retirement>(payload),
        b'8' => object::<Succession>(payload),
        b'9' => statement(payload),
        _ => {}
    }
});

fn object<T: Object>(payload: &[u8]) {
    let max = T::DOMAIN.max_bytes();
    let Ok(first) = cbor::decode::<T>(payload, max) else {
        return;
    };
    let written = cbor::encode(&first);
    cbor::check_canonical(&written, max).expect("what is written is canonical");
    let again: T = cbor::decode(&written, max).expect("what is written decodes");
    assert_eq!(cbor::encode(&again), written);

    let network: NetworkId = "fuzz.00000000".parse().expect("a network id");
    let key = SecretKey::<T::Signer>::from_secret_bytes(&[7; 32]);
    if let Ok(made) = sign::sign(again, &key, &network) {
        let opened = made.signed().open(&network).expect("what was signed opens");
        assert_eq!(cbor::encode(&*opened), written);
        assert_eq!(opened.signer(), &key.public());
    }
}

fn statement(bytes: &[u8]) {
    if let Ok(first) = Statement::from_bytes(bytes) {
        let again = Statement::from_bytes(&first.to_bytes()).expect("what is written decodes");
        assert_eq!(again.to_bytes(), first.to_bytes());
    }
}
