//! Text forms of keys and networks: what parses is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use souk_backend::{ImageHash, LeaseId};
use souk_crypto::{CardPublicKey, MixPublicKey, NetworkId, NodeId};

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(NodeId::from_bytes(id.as_bytes()), Ok(id));
    }
    if let Ok(key) = text.parse::<CardPublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(key) = text.parse::<MixPublicKey>() {
        assert_eq!(key.to_string(), text);
    }
    if let Ok(network) = text.parse::<NetworkId>() {
        assert_eq!(network.to_string(), text);
    }
    if let Ok(lease) = text.parse::<LeaseId>() {
        assert_eq!(lease.to_string(), text);
    }
    if let Ok(image) = text.parse::<ImageHash>() {
        assert_eq!(image.to_string(), text);
    }
});
