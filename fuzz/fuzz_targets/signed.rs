//! Whole signed objects: bytes that open are the only bytes for their content, and open as one kind only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_crypto::{NetworkId, Object, SubKeys, sign};
use souk_market::{
    capacity::Capacity, card::Card, envelope::Envelope, reply::Reply, request::HolderRequest,
};

/// The networks of the seeds.
const NETWORKS: [&str; 2] = ["souk.cdeb7dc2", "test.96e9495a"];

fuzz_target!(|bytes: &[u8]| {
    for network in NETWORKS {
        let network = network.parse().expect("a network id");
        let kinds = [
            opens::<SubKeys>(bytes, &network),
            opens::<Card>(bytes, &network),
            opens::<Capacity>(bytes, &network),
            opens::<Envelope>(bytes, &network),
            opens::<HolderRequest>(bytes, &network),
            opens::<Reply>(bytes, &network),
        ];
        assert!(kinds.iter().filter(|opened| **opened).count() <= 1);
    }
});

fn opens<T: Object>(bytes: &[u8], network: &NetworkId) -> bool {
    let Ok(opened) = sign::open::<T>(bytes, network) else {
        return false;
    };
    assert_eq!(opened.signed().as_bytes(), bytes);
    let again = opened.signed().open(network).expect("it opened before");
    assert_eq!(again.digest(), opened.digest());
    true
}
