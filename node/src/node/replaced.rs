//! The cards of a provider that were replaced and have not ended, over restarts.
//!
//! A node makes a new card at every start, and the others take only so many of one node
//! ([`souk_market::directory::UPDATE_BURST`]): a provider that was started often is still known by an earlier one, and whoever
//! rents names that. Its offers hold until it ends.
//!
//! Threat: terms that the operator has changed: a card counts only where it says of them what the current one says.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use souk_crypto::{NetworkId, UnixTime};
use souk_market::{
    card::{Card, VerifiedCard},
    units::CardDigest,
};

use crate::durable;

/// Cards that are kept, the newest; with the current one they are as many as are honoured.
const MAX_KEPT: usize = super::selling::MAX_HONOURED - 1;

/// Bytes that tell the length of the card after them.
const LENGTH: usize = 4;

/// The file of those cards.
#[derive(Debug)]
pub(super) struct Replaced {
    file: PathBuf,
    network: NetworkId,
}

impl Replaced {
    pub(super) fn new(data: &Path, network: NetworkId) -> Self {
        let file = data.join("replaced-cards");
        Self { file, network }
    }

    /// Adds a card that is about to be replaced, and forgets those that have ended.
    ///
    /// # Errors
    /// Where the file cannot be read or written.
    pub(super) fn add(&self, card: &[u8], now: UnixTime) -> io::Result<()> {
        let mut kept = self.read(now)?;
        // A card of another network, or one that was damaged, is honoured by nobody.
        kept.extend(self.open(card).filter(|card| now < card.to));
        kept.sort_by_key(|card| card.sequence);
        kept.dedup_by_key(|card| card.digest());
        let surplus = kept.len().saturating_sub(MAX_KEPT);
        let mut bytes = Vec::new();
        for card in &kept[surplus..] {
            let length = u32::try_from(card.as_bytes().len()).map_err(io::Error::other)?;
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(card.as_bytes());
        }
        durable::replace(&self.file, &bytes)
    }

    /// Which of them are honoured together with `current`, oldest first, and until when.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub(super) fn honoured(
        &self,
        current: &VerifiedCard,
        now: UnixTime,
    ) -> io::Result<Vec<(UnixTime, CardDigest)>> {
        let kept = self.read(now)?;
        let honoured = kept
            .iter()
            .filter(|card| has_terms_of(card, current) && card.digest() != current.digest());
        Ok(honoured.map(|card| (card.to, card.digest())).collect())
    }

    /// Those that have not ended; what follows after damage is passed over.
    fn read(&self, now: UnixTime) -> io::Result<Vec<VerifiedCard>> {
        let bytes = match fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut rest = &bytes[..];
        let next = || {
            let (length, after) = rest.split_first_chunk::<LENGTH>()?;
            let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
            let (card, after) = after.split_at_checked(length)?;
            rest = after;
            self.open(card)
        };
        Ok(std::iter::from_fn(next)
            .take(MAX_KEPT)
            .filter(|card| now < card.to)
            .collect())
    }

    fn open(&self, bytes: &[u8]) -> Option<VerifiedCard> {
        VerifiedCard::open(bytes, &self.network, |_| None).ok()
    }
}

/// Whether two cards offer the same on the same terms.
fn has_terms_of(card: &Card, other: &Card) -> bool {
    card.offers == other.offers
        && card.images == other.images
        && card.prices == other.prices
        && card.policy == other.policy
}

#[cfg(test)]
mod tests {
    use souk_crypto::{MAX_SKEW_S, NetworkParams};
    use souk_market::{
        card::{AnonymousLimits, Policy, Role},
        units::{DurationS, Resources, Sequence},
        wire::List,
    };

    use super::{super::keys::Keys, *};

    const NOW: UnixTime = UnixTime(1_800_000_000);
    const LIFE_S: u64 = 3_600;

    struct Provider {
        data: tempfile::TempDir,
        network: NetworkId,
        keys: Keys,
    }

    impl Provider {
        fn new() -> Self {
            let params = NetworkParams::new(50, 5_000, 3_600, true).expect("valid");
            let network = NetworkId::new("test", &params).expect("valid");
            let data = tempfile::tempdir().expect("temporary folder");
            let keys = Keys::open(data.path(), NOW).expect("makes keys");
            Self {
                data,
                network,
                keys,
            }
        }

        fn replaced(&self) -> Replaced {
            Replaced::new(self.data.path(), self.network.clone())
        }

        fn card(&self, at: UnixTime, policy: Policy) -> VerifiedCard {
            let sub_keys = self.keys.list(
                &self.network,
                &self.keys.dated(),
                false,
                Vec::new(),
                at.0,
                NOW,
            );
            let card = Card {
                node: self.keys.node.public(),
                sequence: Sequence(at.0),
                from: at.minus_s(MAX_SKEW_S),
                to: at.plus_s(LIFE_S),
                roles: List::new(vec![Role::Relay]).expect("few"),
                addresses: List::empty(),
                sub_keys: sub_keys.expect("signs"),
                operator: None,
                offers: List::empty(),
                images: List::empty(),
                prices: None,
                policy,
                evidence: List::empty(),
                succeeds: None,
            };
            VerifiedCard::sign(card, &self.keys.dated().keys.card, &self.network).expect("signs")
        }
    }

    #[test]
    fn what_was_offered_holds_over_restarts_until_it_ends_or_the_terms_change() {
        let provider = Provider::new();
        let at = |n: u64| NOW.plus_s(n);
        let cards: Vec<_> = (0..3)
            .map(|n| provider.card(at(n), Policy::default()))
            .collect();
        for card in &cards[..2] {
            provider
                .replaced()
                .add(card.as_bytes(), at(2))
                .expect("kept");
        }
        let honoured = |current: &VerifiedCard, now| {
            let all = provider.replaced().honoured(current, now).expect("read");
            all.into_iter()
                .map(|(_, digest)| digest)
                .collect::<Vec<_>>()
        };
        let both = [cards[0].digest(), cards[1].digest()];
        assert_eq!(honoured(&cards[2], at(2)), both);
        assert_eq!(honoured(&cards[1], at(2)), both[..1]);
        assert_eq!(honoured(&cards[2], at(LIFE_S)), both[1..]);
        assert!(honoured(&cards[2], at(LIFE_S + 1)).is_empty());
        let limits = AnonymousLimits {
            max_concurrent: 1,
            max_duration: DurationS(60),
            max_resources: Resources::ZERO,
            max_per_hour: 1,
            work_bits: 20,
        };
        let other = Policy {
            anonymous: Some(limits),
            ..Policy::default()
        };
        assert!(honoured(&provider.card(at(2), other), at(2)).is_empty());
    }

    #[test]
    fn only_the_newest_are_kept_and_damage_takes_nothing_but_what_follows_it() {
        let provider = Provider::new();
        let all = 2 * MAX_KEPT as u64;
        for n in 0..all {
            let card = provider.card(NOW.plus_s(n), Policy::default());
            provider.replaced().add(card.as_bytes(), NOW).expect("kept");
        }
        let current = provider.card(NOW.plus_s(all), Policy::default());
        let honoured = || provider.replaced().honoured(&current, NOW).expect("read");
        let kept = honoured();
        assert_eq!(kept.len(), MAX_KEPT);
        let newest = provider.card(NOW.plus_s(all - 1), Policy::default());
        assert_eq!(kept.last().map(|(to, _)| *to), Some(newest.to));

        let file = provider.replaced().file;
        let mut bytes = fs::read(&file).expect("there");
        bytes.pop();
        fs::write(&file, bytes).expect("written");
        assert_eq!(honoured(), kept[..MAX_KEPT - 1]);
        fs::write(&file, [0xff; 3]).expect("written");
        assert!(honoured().is_empty());
    }
}
