//! Dated sub-keys: what a node works with, so that its node key can be kept away from daily use.
//!
//! One signed object lists them all, so that a card that carries it costs two signature checks and not six.

use std::str::FromStr;

use minicbor::{Decode, Encode};

use crate::{
    UnixTime, Window,
    bytes::{parse_hex_32, public_32_bytes},
    domain::{self, SignDomain},
    keys::{CardPublicKey, KeyError, LogPublicKey, Node, SealPublicKey},
    sign::{Invalid, Object},
};

/// Most mix keys in one list: the running epoch, one before it for packets under way, and six to come.
pub const MAX_MIX_KEYS: usize = 8;

/// Longest life of a list of sub-keys, in seconds (92 days). A stolen card key is of no use for longer.
pub const MAX_SUB_KEYS_LIFE_S: u64 = 92 * 86_400;

/// The sub-keys of one node for a time. Signed by the node key; the signer is the node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct SubKeys {
    /// Rises with every list of the node; the highest one counts.
    #[n(0)]
    pub serial: u64,
    /// When all of them may be used.
    #[n(1)]
    pub window: Window,
    /// Signs cards, capacity, receipts, refusals, states and statements.
    #[n(2)]
    pub card_key: CardPublicKey,
    /// Signs checkpoints of the usage log; providers have one.
    #[n(3)]
    pub log_key: Option<LogPublicKey>,
    /// Requests are sealed to it; providers have one.
    #[n(4)]
    pub seal_key: Option<SealPublicKey>,
    /// Keys of the mix by epoch, in rising order; at most [`MAX_MIX_KEYS`].
    #[n(5)]
    pub mix_keys: Vec<MixKey>,
}

/// The key of a mix for one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MixKey {
    /// Number of the epoch.
    #[n(0)]
    pub epoch: u32,
    /// Form of the packets; 1 is Sphinx over X25519.
    #[n(1)]
    pub suite: u8,
    /// The public key.
    #[n(2)]
    pub key: MixPublicKey,
    /// When packets are accepted under it.
    #[n(3)]
    pub window: Window,
}

impl SubKeys {
    /// The mix key of `epoch`.
    #[must_use]
    pub fn mix_key(&self, epoch: u32) -> Option<&MixKey> {
        self.mix_keys.iter().find(|key| key.epoch == epoch)
    }

    /// Whether the list may be used at `now`, with the accepted skew.
    #[must_use]
    pub const fn is_current(&self, now: UnixTime) -> bool {
        self.window.accepts(now)
    }
}

impl Object for SubKeys {
    type Signer = Node;
    const DOMAIN: SignDomain<Node> = domain::SUB_KEYS;

    fn validate(&self) -> Result<(), Invalid> {
        if self.window.length_s() > MAX_SUB_KEYS_LIFE_S {
            return Err(Invalid::new("window", "longer than 92 days"));
        }
        if self.mix_keys.len() > MAX_MIX_KEYS {
            return Err(Invalid::new("mix_keys", "more than 8"));
        }
        if !self.mix_keys.is_sorted_by(|a, b| a.epoch < b.epoch) {
            return Err(Invalid::new("mix_keys", "epochs do not rise"));
        }
        if !self.mix_keys.iter().all(|k| self.window.covers(&k.window)) {
            return Err(Invalid::new(
                "mix_keys",
                "a window reaches outside of the list's",
            ));
        }
        Ok(())
    }
}

/// The X25519 public key of a mix.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MixPublicKey([u8; 32]);

impl MixPublicKey {
    /// The key of these bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`] unless they are 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        let bytes = bytes.try_into().map_err(|_| KeyError::Length {
            key: "mix",
            expected: 32,
            len: bytes.len(),
        })?;
        Ok(Self(bytes))
    }
}

public_32_bytes!(MixPublicKey);

impl FromStr for MixPublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        parse_hex_32(text).map(Self).ok_or(KeyError::Text {
            key: "mix",
            form: "64 lowercase hex digits",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CardKey, keys::Secret as _};

    fn window(from: u64, to: u64) -> Window {
        Window::new(UnixTime(from), UnixTime(to)).expect("not empty")
    }

    fn list(window: Window, epochs: &[u32], key_window: Window) -> SubKeys {
        let mix_key = |epoch: &u32| MixKey {
            epoch: *epoch,
            suite: 1,
            key: MixPublicKey([9; 32]),
            window: key_window,
        };
        SubKeys {
            serial: 1,
            window,
            card_key: CardKey::from_secret_bytes(&[1; 32]).public(),
            log_key: None,
            seal_key: None,
            mix_keys: epochs.iter().map(mix_key).collect(),
        }
    }

    fn broken(list: &SubKeys) -> &'static str {
        list.validate().expect_err("breaks a rule").field
    }

    #[test]
    fn lists_that_break_a_rule_are_refused_by_field() {
        let life = window(0, MAX_SUB_KEYS_LIFE_S);
        assert_eq!(list(life, &[1, 2, 9], life).validate(), Ok(()));
        assert_eq!(
            broken(&list(window(0, MAX_SUB_KEYS_LIFE_S + 1), &[], life)),
            "window"
        );
        assert_eq!(broken(&list(life, &[1, 1], life)), "mix_keys");
        assert_eq!(broken(&list(life, &[2, 1], life)), "mix_keys");
        assert_eq!(
            broken(&list(life, &[1, 2, 3, 4, 5, 6, 7, 8, 9], life)),
            "mix_keys"
        );
        assert_eq!(
            broken(&list(window(10, 20), &[1], window(10, 21))),
            "mix_keys"
        );
        assert_eq!(
            broken(&list(window(10, 20), &[1], window(9, 20))),
            "mix_keys"
        );
    }

    #[test]
    fn a_mix_key_is_found_by_its_epoch_only() {
        let life = window(0, 100);
        let keys = list(life, &[3, 4], life);
        assert_eq!(keys.mix_key(4).map(|k| k.epoch), Some(4));
        assert!(keys.mix_key(5).is_none());
        assert!(keys.is_current(UnixTime(219)) && !keys.is_current(UnixTime(220)));
    }
}
