//! Says on the network what this node is: its card, and the room that a provider has.
//!
//! ```text
//!  mix keys, addresses, offers ─► card (sequence rises) ─► file ─► directory ─► gossip
//!  provider's room ──── on a period with jitter ─────────────────► directory ─► gossip
//! ```
//!
//! A node that takes no leases has nothing on offer, and says so by a card at once: its operator decided that, no lease did. One
//! that has retired sends no card any more but its retirement, again and again, for whoever has not heard it.
//!
//! A node whose data folder was restored does not know its last cards, and what it publishes may be older than they are, or made in
//! the same second. So a sequence is a time with some chance in it, and a node that hears of a card of its own above its last goes
//! above that one.
//!
//! Threats: two cards under one sequence are evidence against this node, so a card is on the disk before anybody sees it,
//! also over a crash; two nodes that run with the same keys and answer each other with new cards for ever, so such an answer has
//! its pace, and is told ([`Rivals`]); a capacity message that goes out when a lease changes would publish the lease.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use rand::RngExt as _;
use souk_crypto::{MAX_SKEW_S, MixKey, NetworkId, SignError, UnixTime, sign};
use souk_market::{
    capacity::{CAPACITY_JITTER_S, CAPACITY_PERIOD_S, Capacity, LogHead},
    card::{
        Address, Card, CardError, EvidenceRef, Image, MAX_ADDRESSES, MAX_OFFERS, Offer, Policy,
        Role, VerifiedCard,
    },
    directory::Newest,
    price::Prices,
    shares::Source,
    standing::Standing,
    units::{Digest, OperatorId, Sequence},
    wire::List,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    attesting::{Proven, References},
    directory::{Cards, card_address},
    keys::{Dated, Keys},
    replaced::Replaced,
    rivals::Rivals,
};
use crate::{
    durable,
    net::{NetInfo, Peers, PublishError, Topic, is_public},
    provider::Provider,
    store::Seen,
};

/// A card lives this long, in seconds: twelve hours, half of what others accept.
const CARD_LIFE_S: u64 = 12 * 3600;

/// A card is renewed when this much of its life is left, in seconds.
const RENEW_BEFORE_S: u64 = CARD_LIFE_S / 2;

/// How often it is looked whether the card still says what is true: addresses come and go.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// How long a provider looks for an address that others can dial before it publishes a card without one: sockets open one after the
/// other.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(3);

/// While the node has no address or no neighbours yet, it looks so soon again, and ever more rarely.
const LOOK_SOON: Duration = Duration::from_millis(50);

/// The longest of those pauses: a first node may be without neighbours for days.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often a card above one that this node does not remember is made: the others take no more of one node over time.
const ANSWER_EVERY: Duration = Duration::from_secs(60);

/// Low bits of a sequence that are drawn, above which stands the time in seconds: a node that was restored within the second of its
/// last card draws the same ones once in a million times.
const DRAWN_BITS: u32 = 20;

/// How often a retirement is told again: nodes that were away forget nobody by themselves.
const RETELL_EVERY: Duration = Duration::from_secs(900);

/// What goes on the card and does not change while the node runs.
#[derive(Debug)]
pub(super) struct Profile {
    pub(super) network: NetworkId,
    pub(super) roles: Vec<Role>,
    pub(super) operator: Option<OperatorId>,
    /// Loopback and private addresses go on the card.
    pub(super) test_network: bool,
    /// What a provider sells; `None` for other nodes.
    pub(super) sales: Option<Sales>,
}

/// What a provider says on its card.
#[derive(Clone, Debug)]
pub(super) struct Sales {
    pub(super) offers: List<Offer, MAX_OFFERS>,
    pub(super) images: Vec<Image>,
    pub(super) prices: Prices,
    pub(super) policy: Policy,
}

/// Why the last card could not be read or the new one not be written.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// The file of the last card.
    #[error("cannot {doing} the card file {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The card breaks a rule or does not fit.
    #[error("the card of this node cannot be made")]
    Card(#[from] CardError),
    /// The list of sub-keys breaks a rule.
    #[error("the list of sub-keys cannot be made")]
    List(#[from] SignError),
}

/// The task that publishes.
pub(super) struct Publisher {
    pub(super) profile: Profile,
    pub(super) keys: Arc<Keys>,
    pub(super) cards: Arc<Cards>,
    pub(super) peers: Peers,
    pub(super) mix_keys: watch::Receiver<Vec<MixKey>>,
    /// The provider, once it works; `None` for ever on other nodes.
    pub(super) provider: watch::Receiver<Option<Provider>>,
    /// What the network remembers of the usage log.
    pub(super) seen: watch::Receiver<Seen>,
    /// Why nothing is signed of the usage log, while that is so.
    pub(super) refusal: watch::Receiver<Option<String>>,
    /// How the node stands to new leases.
    pub(super) standing: watch::Receiver<Standing>,
    /// What proves what this node runs on; `None` while it is not known yet, and there is no card before it is.
    pub(super) evidence: watch::Receiver<Option<Proven>>,
    /// The card that holds now.
    pub(super) own: watch::Sender<Option<Arc<VerifiedCard>>>,
    /// Where the last card is kept.
    pub(super) file: PathBuf,
    /// Where a provider keeps those before it.
    pub(super) replaced: Replaced,
    pub(super) now: fn() -> UnixTime,
    /// When the last capacity message was signed, by its own word.
    pub(super) said_at: UnixTime,
    /// The operator wants a new card.
    pub(super) refresh: Arc<Notify>,
    /// The newest card of this node that the network knows.
    pub(super) heard: watch::Receiver<Option<Newest>>,
    /// When a card was made above one that this node does not remember.
    pub(super) answered_at: Option<tokio::time::Instant>,
    /// How often that was.
    pub(super) rivals: watch::Sender<Rivals>,
    /// Since when the node has looked for an address that others can dial.
    pub(super) began: tokio::time::Instant,
}

impl Publisher {
    /// Publishes until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut unsent: Vec<(Topic, Bytes)> = Vec::new();
        let mut capacity_due = tokio::time::Instant::now();
        let mut soon = LOOK_SOON;
        let mut wanted = false;
        loop {
            let standing = self.standing.borrow_and_update().clone();
            if let Standing::Retired(tombstone) = standing {
                return self.mourn(&tombstone, &stop).await;
            }
            let renewed = self.renew(wanted).await;
            wanted = wanted && renewed.is_err();
            let failed = renewed.is_err();
            match renewed {
                Ok(true) => {
                    let card = self.own.borrow().clone();
                    unsent.retain(|(topic, _)| *topic != Topic::Cards);
                    unsent.extend(
                        card.map(|card| (Topic::Cards, Bytes::copy_from_slice(card.as_bytes()))),
                    );
                    // The directory forgets the capacity of the card before.
                    capacity_due = tokio::time::Instant::now();
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "no new card");
                }
            }
            if tokio::time::Instant::now() >= capacity_due
                && let Some(message) = self.capacity()
            {
                unsent.retain(|(topic, _)| *topic != Topic::Capacity);
                unsent.push((Topic::Capacity, message));
                let jitter = rand::rng().random_range(0..=2 * CAPACITY_JITTER_S);
                capacity_due += Duration::from_secs(CAPACITY_PERIOD_S - CAPACITY_JITTER_S + jitter);
            }
            self.send(&mut unsent).await;
            let ready = failed || self.own.borrow().is_some() && unsent.is_empty();
            let pause = if ready { LOOK_EVERY } else { soon };
            soon = match ready {
                true => LOOK_SOON,
                false => (2 * soon).min(LOOK_AGAIN),
            };
            let look = tokio::time::Instant::now() + pause;
            let selling = self.provider.borrow().is_some();
            let wake = if selling {
                look.min(capacity_due)
            } else {
                look
            };
            tokio::select! {
                () = tokio::time::sleep_until(wake.max(tokio::time::Instant::now() + LOOK_SOON)) => {}
                () = begins(&mut self.provider), if !selling => {}
                () = self.refresh.notified() => wanted = true,
                Ok(()) = self.standing.changed() => {}
                Ok(()) = self.evidence.changed() => {}
                Ok(()) = self.heard.changed() => {}
                changed = self.mix_keys.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }

    /// Tells that the node has ended, for as long as it runs.
    async fn mourn(self, tombstone: &[u8], stop: &CancellationToken) {
        self.cards.take(tombstone, Source::Own);
        let mut unsent = Vec::new();
        loop {
            unsent.push((Topic::Cards, Bytes::copy_from_slice(tombstone)));
            while !unsent.is_empty() && !stop.is_cancelled() {
                self.send(&mut unsent).await;
                if !unsent.is_empty() {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETELL_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Makes a new card if one is wanted or the last one no longer says what is true; says whether it did.
    async fn renew(&mut self, wanted: bool) -> Result<bool, PublisherError> {
        let info = self.peers.info().await;
        let addresses = self.addresses(&info);
        let now = (self.now)();
        let old = self.own.borrow().clone();
        if addresses.is_empty() && !self.does_without_address(now, old.as_deref()) {
            return Ok(false);
        }
        let mix_keys = self.mix_keys.borrow_and_update().clone();
        let Some(proven) = self.evidence.borrow_and_update().clone() else {
            return Ok(false);
        };
        let dated = self.keys_for_card(now, &proven);
        let card_key = dated.keys.card.public();
        let evidence = proven.of(card_key, now);
        let sales = self
            .profile
            .sales
            .clone()
            .filter(|_| self.standing.borrow().takes_leases());
        let heard = *self.heard.borrow_and_update();
        let answers = old.as_deref().is_some_and(|card| self.answers(card, heard));
        let sells = sales.as_ref().is_some_and(|sales| !sales.offers.is_empty());
        let holds = |card: &VerifiedCard| {
            !wanted
                && !answers
                && !is_over(card, now, self.said_at)
                && card.sub_keys().card_key == card_key
                && card.addresses[..] == addresses[..]
                && card.sub_keys().mix_keys == mix_keys
                && card.evidence == evidence
                && card.offers.is_empty() != sells
        };
        if old.as_deref().is_some_and(holds) {
            return Ok(false);
        }
        let last = match old {
            Some(card) => Some(card.sequence),
            None => self.last_sequence()?,
        };
        // The serial of a list is the sequence of its card, and nobody but this node signs one.
        let last = last.max(heard.map(|newest| Sequence(newest.serial)));
        if answers {
            tracing::warn!(
                "the network knows a card of this node that it does not remember: its data folder was restored, or another node has its keys"
            );
        }
        if addresses.is_empty() {
            tracing::warn!(
                "this node has no address that others can dial: it sells over the links that it dials itself, and does nothing else; see node.external"
            );
        }
        let card = self.card(now, last, addresses, (&dated, mix_keys, evidence), sales)?;
        self.keep_last(now);
        self.write(&card)?;
        if answers {
            self.answered_at = Some(tokio::time::Instant::now());
            self.rivals.send_modify(|rivals| rivals.note(now));
        }
        // Before anybody sees it: what is sealed to its keys can be read from the first moment.
        self.keys.adopt(dated);
        self.cards.take(card.as_bytes(), Source::Own);
        self.said_at = UnixTime(0);
        self.own.send_replace(Some(Arc::new(card)));
        Ok(true)
    }

    /// The keys of this time, once there is evidence for them or none is to be had for those in use either.
    fn keys_for_card(&self, now: UnixTime, proven: &Proven) -> Arc<Dated> {
        let (used, due) = (self.keys.dated(), self.keys.due(now));
        match proven.allows_turn(used.keys.card.public(), due.keys.card.public(), now) {
            true => due,
            false => used,
        }
    }

    fn card(
        &self,
        now: UnixTime,
        last: Option<Sequence>,
        addresses: List<Address, MAX_ADDRESSES>,
        (dated, mix_keys, evidence): (&Dated, Vec<MixKey>, References),
        sales: Option<Sales>,
    ) -> Result<VerifiedCard, PublisherError> {
        let profile = &self.profile;
        let provider = profile.sales.is_some();
        // Whoever cannot be dialed is of no use as a mix, an entry or a relay; a provider dials those itself.
        let roles = profile.roles.iter().copied();
        let roles = roles
            .filter(|role| !addresses.is_empty() || *role == Role::Provider)
            .collect();
        let sequence = next_sequence(last, now, rand::rng().random());
        let list = self
            .keys
            .list(&profile.network, dated, provider, mix_keys, sequence.0, now)?;
        let card = Card {
            node: self.keys.node.public(),
            sequence,
            from: now.minus_s(MAX_SKEW_S),
            to: now.plus_s(CARD_LIFE_S),
            roles: List::new(roles).expect("there are four roles"),
            addresses,
            sub_keys: list,
            operator: profile.operator,
            offers: sales
                .as_ref()
                .map_or_else(List::empty, |sales| proven(&sales.offers, &evidence)),
            images: sales.as_ref().map_or_else(List::empty, |sales| {
                let fitting = sales
                    .images
                    .iter()
                    .take(souk_market::card::MAX_IMAGES)
                    .cloned()
                    .collect();
                List::new(fitting).expect("cut to what fits")
            }),
            // They hold for who comes back, and say how much work a message has to show.
            prices: profile.sales.as_ref().map(|sales| sales.prices.clone()),
            policy: profile
                .sales
                .as_ref()
                .map(|sales| sales.policy.clone())
                .unwrap_or_default(),
            evidence,
            succeeds: None,
        };
        Ok(VerifiedCard::sign(
            card,
            &dated.keys.card,
            &profile.network,
        )?)
    }

    /// Whether a card without an address is of use: that of a provider, which links itself to the mixes and the relays. A card that
    /// still holds stays as it is, for a line that is down comes back.
    fn does_without_address(&self, now: UnixTime, old: Option<&VerifiedCard>) -> bool {
        if self.began.elapsed() < ADDRESS_PATIENCE {
            return false;
        }
        let holds =
            |card: &VerifiedCard| !card.addresses.is_empty() && !is_over(card, now, self.said_at);
        self.profile.sales.is_some() && !old.is_some_and(holds)
    }

    /// Addresses that others can dial: those the operator named, or else those that the node listens on.
    fn addresses(&self, info: &NetInfo) -> List<Address, MAX_ADDRESSES> {
        let named = if info.external.is_empty() {
            &info.listening
        } else {
            &info.external
        };
        let mut addresses: Vec<_> = named
            .iter()
            .filter(|address| self.profile.test_network || is_public(address))
            .filter_map(card_address)
            .filter(|address| !address.ip.is_unspecified())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        List::new(addresses).expect("cut to what fits")
    }

    fn capacity(&mut self) -> Option<Bytes> {
        let provider = self.provider.borrow().clone()?;
        let card = self.own.borrow().clone()?;
        let levels = provider
            .levels(&card)
            .into_iter()
            .map(|classes| List::new(classes).expect("as the card has"));
        let log = self.log_head(&provider)?;
        let at = (self.now)();
        if at < self.said_at {
            return None;
        }
        self.said_at = at;
        let capacity = Capacity {
            node: card.node,
            card: card.sequence,
            at,
            levels: List::new(levels.collect()).expect("as the card has"),
            log,
        };
        match sign::sign(
            capacity,
            &self.keys.dated().keys.card,
            &self.profile.network,
        ) {
            Ok(signed) => {
                let bytes = Bytes::copy_from_slice(signed.signed().as_bytes());
                self.cards.take(&bytes, Source::Own);
                Some(bytes)
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "no capacity message"
                );
                None
            }
        }
    }

    /// What may be said of the usage log. Nothing can be said yet, where this is `None`; what contradicts the memory of the
    /// network is not said, because it would be signed.
    fn log_head(&self, provider: &Provider) -> Option<Option<LogHead>> {
        let head = *provider.head().borrow();
        if head.size == 0 {
            return Some(None);
        }
        let head = LogHead {
            size: head.size,
            root: Digest(head.root.0),
        };
        let seen = *self.seen.borrow();
        let refused = self.refusal.borrow().is_some();
        seen.is_asked()
            .then(|| (!refused && seen.allows(&head)).then_some(head))
    }

    /// Whether the network knows a card that this node has to go above, and it is time to.
    fn answers(&self, card: &VerifiedCard, heard: Option<Newest>) -> bool {
        heard.is_some_and(|newest| is_overtaken(card.sub_keys().serial, newest))
            && self
                .answered_at
                .is_none_or(|before| before.elapsed() >= ANSWER_EVERY)
    }

    /// Sends what has not been sent; what finds no neighbours stays for the next time.
    async fn send(&self, unsent: &mut Vec<(Topic, Bytes)>) {
        let mut kept = Vec::new();
        for (topic, message) in unsent.drain(..) {
            match self.peers.publish(topic, message.clone()).await {
                Ok(()) => {}
                Err(PublishError::NoNeighbours | PublishError::QueuesFull) => {
                    kept.push((topic, message));
                }
                Err(
                    error @ (PublishError::TooLarge
                    | PublishError::NotANode
                    | PublishError::Stopped),
                ) => {
                    tracing::debug!(%error, "not published");
                }
            }
        }
        *unsent = kept;
    }

    /// The sequence of the card that this node published last, before it was restarted.
    fn last_sequence(&self) -> Result<Option<Sequence>, PublisherError> {
        let failed = |source| PublisherError::File {
            doing: "read",
            path: self.file.clone(),
            source,
        };
        match fs::read(&self.file) {
            Ok(bytes) => match VerifiedCard::open(&bytes, &self.profile.network, |_| None) {
                Ok(card) => Ok(Some(card.sequence)),
                // A card of another network, or one that was damaged: sequences are times, so the next is higher.
                Err(_) => Ok(None),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Keeps the last card, whose offers hold on. Without room for it those who rent by it have to look at the market again.
    fn keep_last(&self, now: UnixTime) {
        if self.profile.sales.is_none() {
            return;
        }
        let kept = match fs::read(&self.file) {
            Ok(last) => self.replaced.add(&last, now),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = kept {
            tracing::warn!(%error, "the offers of the last card are not honoured after a restart");
        }
    }

    fn write(&self, card: &VerifiedCard) -> Result<(), PublisherError> {
        // A node that starts on a full disk has other addresses perhaps, and nobody would find it without a card.
        durable::replace_in_kept_room(&self.file, card.as_bytes()).map_err(|source| {
            PublisherError::File {
                doing: "write",
                path: self.file.clone(),
                source,
            }
        })
    }
}

/// The offers with what protects their instances: what the evidence of the node says of those that share its kernel.
fn proven(offers: &List<Offer, MAX_OFFERS>, evidence: &References) -> List<Offer, MAX_OFFERS> {
    let of_node = evidence.first().and_then(EvidenceRef::claimed);
    let proven = offers.iter().cloned().map(|offer| Offer {
        tee: of_node.filter(|_| offer.shared_kernel).unwrap_or(offer.tee),
        ..offer
    });
    List::new(proven.collect()).expect("as many as before")
}

/// Whether it is time for the next card, also where this one still says what is true: its life ends soon, or the clock was
/// set back behind what was `said_at` last under it. Times rise under one card: else a log that has grown since would look
/// rolled back.
fn is_over(card: &Card, now: UnixTime, said_at: UnixTime) -> bool {
    card.to <= now.plus_s(RENEW_BEFORE_S) || now < said_at
}

/// Whether a card with this serial of its list of keys is not what the others use of this node.
///
/// Threat: a stolen card key, with which any sequence can be signed under the list that names it. Whoever followed that would be led to
/// the end of all sequences; a card with a new list is above it in any case.
fn is_overtaken(serial: u64, newest: Newest) -> bool {
    newest.is_equivocal || serial < newest.serial
}

/// Above the last one, also where the clock was set back.
fn next_sequence(last: Option<Sequence>, now: UnixTime, drawn: u32) -> Sequence {
    let drawn = u64::from(drawn >> (u32::BITS - DRAWN_BITS));
    let by_time = now.0 << DRAWN_BITS | drawn;
    Sequence(last.map_or(by_time, |last| by_time.max(last.0.saturating_add(1))))
}

/// Waits until the provider works. On a node that sells nothing the channel has no sender, and this waits for ever.
async fn begins<T>(provider: &mut watch::Receiver<T>) {
    if provider.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use souk_crypto::NetworkParams;

    use super::*;

    #[test]
    fn a_clock_that_was_set_back_under_a_card_makes_a_new_one_first() {
        let data = tempfile::tempdir().expect("temporary folder");
        let params = NetworkParams::new(50, 5000, 3600, true).expect("valid");
        let network = NetworkId::new("test", &params).expect("valid");
        let made = UnixTime(1_800_000_000);
        let keys = Keys::open(data.path(), made).expect("makes keys");
        let card = Card {
            node: keys.node.public(),
            sequence: Sequence(made.0),
            from: made.minus_s(MAX_SKEW_S),
            to: made.plus_s(CARD_LIFE_S),
            roles: List::empty(),
            addresses: List::empty(),
            sub_keys: keys
                .list(&network, &keys.dated(), false, Vec::new(), made.0, made)
                .expect("signs"),
            operator: None,
            offers: List::empty(),
            images: List::empty(),
            prices: None,
            policy: Policy::default(),
            evidence: List::empty(),
            succeeds: None,
        };
        let said_at = made.plus_s(600);
        assert!(!is_over(&card, said_at, said_at));
        assert!(!is_over(&card, said_at.plus_s(1), said_at));
        assert!(is_over(&card, said_at.minus_s(1), said_at));
        assert!(is_over(&card, made.minus_s(86_400), said_at));
        // Nothing was said under it: a clock that goes back harms nobody.
        assert!(!is_over(&card, made.minus_s(60), UnixTime(0)));
        let renewed = card.to.minus_s(RENEW_BEFORE_S);
        assert!(!is_over(&card, renewed.minus_s(1), said_at));
        assert!(is_over(&card, renewed, said_at));
    }

    #[test]
    fn a_card_goes_above_what_the_network_knows_and_two_lives_of_one_second_differ() {
        let now = UnixTime(1_800_000_000);
        let first = next_sequence(None, now, u32::MAX);
        assert!(next_sequence(None, now, 0) < first);
        assert_eq!(next_sequence(Some(first), now, 0), Sequence(first.0 + 1));
        assert!(first < next_sequence(None, now.plus_s(1), 0));
        let newest = |serial, is_equivocal| Newest {
            serial,
            is_equivocal,
        };
        assert!(!is_overtaken(first.0, newest(first.0, false)));
        assert!(!is_overtaken(first.0, newest(first.0 - 1, false)));
        assert!(is_overtaken(first.0, newest(first.0, true)));
        assert!(is_overtaken(first.0, newest(first.0 + 1, false)));
    }

    #[test]
    fn a_node_that_sells_nothing_is_not_woken_by_its_provider() {
        let (working, mut provider) = watch::channel(0);
        assert_eq!(begins(&mut provider).now_or_never(), None);
        working.send_replace(1);
        assert_eq!(begins(&mut provider).now_or_never(), Some(()));
        drop(working);
        assert_eq!(begins(&mut provider).now_or_never(), None);
    }
}
