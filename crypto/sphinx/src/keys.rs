//! The X25519 keys of a hop: one pair per key epoch at a node, one per session at a client.

use std::fmt;

use rand_core::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

/// Length of a key in bytes.
pub const KEY_LEN: usize = 32;

/// The secret half of a hop's key; zeroized when dropped.
#[derive(Clone)]
pub struct MixSecret(StaticSecret);

impl MixSecret {
    /// Draws a new key.
    pub fn generate(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Self(StaticSecret::random_from_rng(rng))
    }

    /// Takes a key that was stored.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        Self(StaticSecret::from(*bytes))
    }

    /// The bytes to store, in a file that nobody else can read.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; KEY_LEN]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, which goes into the card or into a SURB's route.
    #[must_use]
    pub fn public(&self) -> MixPublic {
        MixPublic(PublicKey::from(&self.0))
    }

    pub(crate) fn inner(&self) -> &StaticSecret {
        &self.0
    }
}

impl fmt::Debug for MixSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MixSecret(…)")
    }
}

impl souk_crypto::keys::Secret for MixSecret {
    const USE: &'static str = "mix";

    fn secret_bytes(&self) -> Zeroizing<[u8; KEY_LEN]> {
        self.to_bytes()
    }

    fn from_secret_bytes(bytes: &[u8; KEY_LEN]) -> Self {
        Self::from_bytes(bytes)
    }
}

/// The public half of a hop's key.
///
/// A point of small order is refused: the secret that is shared with it would be known to everybody.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MixPublic(PublicKey);

impl MixPublic {
    /// Takes a key from outside.
    ///
    /// # Errors
    /// [`WeakKey`] if the point has a small order (RFC 7748 §6.1).
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Result<Self, WeakKey> {
        let key = PublicKey::from(bytes);
        // Any clamped scalar does: a point of small order gives zero with all of them.
        let probe = StaticSecret::from([1; KEY_LEN]);
        if probe.diffie_hellman(&key).was_contributory() {
            Ok(Self(key))
        } else {
            Err(WeakKey)
        }
    }

    /// The bytes of the key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; KEY_LEN] {
        self.0.to_bytes()
    }

    pub(crate) fn inner(self) -> PublicKey {
        self.0
    }
}

impl fmt::Debug for MixPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MixPublic(")?;
        for byte in &self.0.as_bytes()[..4] {
            write!(f, "{byte:02x}")?;
        }
        f.write_str("…)")
    }
}

/// The key is a point of small order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mix key is a point of small order")]
pub struct WeakKey;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_small_order_are_refused() {
        let mut one = [0; KEY_LEN];
        one[0] = 1;
        for weak in [[0; KEY_LEN], one] {
            assert_eq!(MixPublic::from_bytes(weak), Err(WeakKey));
        }
    }

    #[test]
    fn secrets_survive_storage_and_do_not_print() {
        let secret = MixSecret::generate(&mut rand::rng());
        let back = MixSecret::from_bytes(&secret.to_bytes());
        assert_eq!(back.public(), secret.public());
        assert_eq!(format!("{secret:?}"), "MixSecret(…)");
    }
}
