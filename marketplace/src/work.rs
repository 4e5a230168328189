//! Proof of work: a price for strangers that costs no name.
//!
//! ```text
//!  message of several packets ─► MessageWork, before memory is given ─► unsealed ─► work for the request ─► a place
//! ```
//!
//! The work for a *request* is a nonce whose hash together with the request id begins with enough zero bits. The request
//! id binds network, provider and holder key, so work cannot be saved up for another provider or sold to another
//! requester. The work for a *message* binds network, provider, message id and time.
//!
//! Threat: a flood of requests that fill the anonymous places of a provider, or of messages that fill its memory before
//! they are complete. Checking costs one hash.

use souk_crypto::{NetworkId, NodeId, UnixTime, domain};

use crate::{card::MAX_WORK_BITS, units::RequestId};

/// Work that was done for a request.
pub type Nonce = u64;

/// Leading zero bits that `nonce` shows for `request`.
#[must_use]
pub fn bits(network: &NetworkId, request: RequestId, nonce: Nonce) -> u32 {
    leading_zeros(domain::WORK.hash(network, &[&request.0, &nonce.to_be_bytes()]))
}

/// Finds work of `wanted` bits, at most [`MAX_WORK_BITS`]; takes 2^`wanted` hashes on average.
#[must_use]
pub fn find(network: &NetworkId, request: RequestId, wanted: u8) -> Nonce {
    first_nonce(wanted, |nonce| bits(network, request, nonce))
}

/// The length of the windows that work for messages is dated by, in seconds. Whoever looks at a message learns the
/// sender's clock no better than that.
const WINDOW_S: u64 = 120;

/// Work is good for so many seconds from the start of its window: the window, the accepted skew, and two minutes for the
/// work itself and the resends. Its message id can be used again in that time, once an incomplete message is forgotten.
const GOOD_FOR_S: u64 = 360;

/// What one clock may be ahead of another, in seconds.
const SKEW_S: u64 = 120;

/// A message that work is done for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageTo {
    /// The network.
    pub network: NetworkId,
    /// The provider that it is for.
    pub provider: NodeId,
    /// Its id.
    pub message: [u8; 16],
}

/// Work that lets one message of several packets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageWork {
    window: UnixTime,
    nonce: Nonce,
}

impl MessageWork {
    /// The type of admission that it is in a message.
    pub const ADMISSION: u8 = 1;

    /// Length in bytes.
    pub const LEN: usize = 16;

    /// Finds work of `wanted` bits, at most [`MAX_WORK_BITS`]; takes 2^`wanted` hashes on average.
    #[must_use]
    pub fn find(to: &MessageTo, now: UnixTime, wanted: u8) -> Self {
        let window = now.bucket(WINDOW_S);
        let nonce = first_nonce(wanted, |nonce| Self { window, nonce }.bits(to));
        Self { window, nonce }
    }

    /// Whether it is worth `wanted` bits for this message now.
    #[must_use]
    pub fn is_good(&self, to: &MessageTo, now: UnixTime, wanted: u8) -> bool {
        let is_dated = self.window.bucket(WINDOW_S) == self.window
            && self.window <= now.plus_s(SKEW_S)
            && now.since_s(self.window) < GOOD_FOR_S;
        is_dated && self.bits(to) >= u32::from(wanted)
    }

    /// As it goes into an admission: window and nonce, `u64` big endian each.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.window.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// Reads what an admission holds; `None` unless it has exactly [`Self::LEN`] bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (window, nonce) = bytes.split_first_chunk()?;
        Some(Self {
            window: UnixTime(u64::from_be_bytes(*window)),
            nonce: u64::from_be_bytes(nonce.try_into().ok()?),
        })
    }

    fn bits(&self, to: &MessageTo) -> u32 {
        let parts: [&[u8]; 4] = [
            to.provider.as_bytes(),
            &to.message,
            &self.window.0.to_be_bytes(),
            &self.nonce.to_be_bytes(),
        ];
        leading_zeros(domain::MESSAGE_WORK.hash(&to.network, &parts))
    }
}

fn leading_zeros(hash: [u8; 32]) -> u32 {
    let head: [u8; 8] = hash[..8].try_into().expect("a hash has 32 bytes");
    u64::from_be_bytes(head).leading_zeros()
}

fn first_nonce(wanted: u8, bits: impl Fn(Nonce) -> u32) -> Nonce {
    let wanted = u32::from(wanted.min(MAX_WORK_BITS));
    (0..=Nonce::MAX)
        .find(|nonce| bits(*nonce) >= wanted)
        .expect("2^64 nonces hold 24 zero bits")
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use souk_crypto::{NetworkParams, NodeKey};

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_030);
    const BITS: u8 = 12;

    fn message(id: u8) -> MessageTo {
        let params = NetworkParams::new(50, 10_000, 3_600, true).expect("in bounds");
        MessageTo {
            network: NetworkId::new("test", &params).expect("a name"),
            provider: NodeKey::generate(&mut StdRng::seed_from_u64(1)).public(),
            message: [id; 16],
        }
    }

    #[test]
    fn work_is_good_for_one_message_at_one_provider() {
        let to = message(1);
        let work = MessageWork::find(&to, NOW, BITS);
        assert!(work.is_good(&to, NOW, BITS));
        assert!(!work.is_good(&message(2), NOW, BITS));
        let provider = NodeKey::generate(&mut StdRng::seed_from_u64(2)).public();
        assert!(!work.is_good(&MessageTo { provider, ..to }, NOW, BITS));
    }

    #[test]
    fn work_cannot_be_saved_up_or_dated_ahead() {
        let to = message(1);
        let work = MessageWork::find(&to, NOW, BITS);
        let window = NOW.bucket(WINDOW_S);
        assert!(work.is_good(&to, window.plus_s(GOOD_FOR_S - 1), BITS));
        assert!(!work.is_good(&to, window.plus_s(GOOD_FOR_S), BITS));
        assert!(work.is_good(&to, window.minus_s(SKEW_S), BITS));
        assert!(!work.is_good(&to, window.minus_s(SKEW_S + 1), BITS));
        let within = MessageWork {
            window: window.plus_s(1),
            nonce: 0,
        };
        assert!(
            !within.is_good(&to, NOW, 0),
            "a time to the second tells the sender's clock"
        );
    }

    #[test]
    fn work_is_read_as_it_was_written_and_nothing_else_is() {
        let work = MessageWork::find(&message(1), NOW, BITS);
        let bytes = work.to_bytes();
        assert_eq!(MessageWork::from_bytes(&bytes), Some(work));
        assert_eq!(MessageWork::from_bytes(&bytes[..15]), None);
        assert_eq!(
            MessageWork::from_bytes(&[bytes.as_slice(), &[0]].concat()),
            None
        );
    }
}
