//! The keys of a node, in files of mode 0600 in `keys/` of its data folder.
//!
//! | file | use | life |
//! |---|---|---|
//! | `node.key` | the identity; signs the list of sub-keys | the node's |
//! | `log.key` | signs checkpoints | the log's |
//! | `card-N.key` | signs cards, capacity and replies | a period of 30 days |
//! | `seal-N.key` | requests are sealed to it | until the next is drawn, and readable for a period after that |
//!
//! Mix keys are the mix driver's own. Card and seal keys are drawn when a period begins. They are on the disk before a card is
//! signed, and in use from when the first card that names them is. Where the node has a source of evidence that card waits for
//! evidence of its key, and the keys before stay in use. Files of keys that are over are removed at the start and whenever a new
//! card is made.
//!
//! ```text
//! due(now): keys, drawn if a period began ─┬─► Attester ── evidence for them ──┐
//!                                          └─► Publisher ◄─────────────────────┘ ── card, written ─► adopt ─► provider
//! ```
//!
//! Threat: who takes the machine later reads old requests with old seal keys, and signs old replies with old card keys.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_crypto::{
    CardKey, LogKey, MAX_SKEW_S, MixKey, NetworkId, NodeKey, SealKey, SignError, Signed, SubKeys,
    UnixTime, Window,
    keyfile::{self, KeyFileError},
    sign,
};
use tokio::sync::watch;

use crate::provider::ProviderKeys;

/// How long card and seal keys are used, in seconds (30 days).
const PERIOD_S: u64 = 30 * 86_400;

/// How long a list of sub-keys holds, in seconds (60 days); shorter than the 92 days that others accept.
const LIST_LIFE_S: u64 = 60 * 86_400;

/// How often it is told that new keys cannot be drawn: a full disk lasts, and it is tried at every look.
const TELL_EVERY_S: u64 = 3600;

/// The keys of one node.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) node: NodeKey,
    pub(super) log: LogKey,
    folder: PathBuf,
    /// Those that change with time.
    turning: Mutex<Turning>,
    /// The same for who works with them.
    announced: watch::Sender<Arc<ProviderKeys>>,
}

/// The keys that change with time, on their way from one period into the next.
#[derive(Debug)]
struct Turning {
    /// As the card announces them.
    used: Arc<Dated>,
    /// Drawn, and not yet announced.
    next: Option<Arc<Dated>>,
    /// When it was told last that none could be drawn.
    told_at: Option<UnixTime>,
}

/// Keys that change with time, and when they were drawn.
#[derive(Debug)]
pub(super) struct Dated {
    pub(super) keys: Arc<ProviderKeys>,
    drawn: Drawn,
}

/// In which periods the keys in use were drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drawn {
    /// The card key and the announced seal key.
    period: u64,
    /// The seal key before that; the same where there is none.
    before: u64,
}

impl Drawn {
    /// What follows in the period of `now`; none while that is the same. A clock that goes back changes nothing.
    fn next(self, now: UnixTime) -> Option<Self> {
        let period = now.0 / PERIOD_S;
        (period > self.period).then_some(Self {
            period,
            before: self.period,
        })
    }
}

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The folder could not be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A key file is missing, open to others or damaged.
    #[error(transparent)]
    File(#[from] KeyFileError),
}

impl Keys {
    /// Reads the keys in `data`, and makes those that are missing.
    pub(super) fn open(data: &Path, now: UnixTime) -> Result<Self, KeysError> {
        let folder = data.join("keys");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(|source| KeysError::Folder {
                path: folder.clone(),
                source,
            })?;
        let mut rng = rand::rng();
        let of_now = now.0 / PERIOD_S;
        // Where the clock was set back over the turn, the keys that the card announces are those of the next period.
        let period = periods(&folder, "card")
            .filter(|drawn| *drawn == of_now + 1)
            .max()
            .unwrap_or(of_now);
        // Where the node did not run in the period before this, the key before is that of an earlier one.
        let before = periods(&folder, "seal")
            .filter(|drawn| *drawn < period)
            .max();
        let drawn = Drawn {
            period,
            before: before.unwrap_or(period),
        };
        let dated = Arc::new(Dated::open(&folder, drawn)?);
        let keys = Self {
            node: keyfile::load_or_create(&folder.join("node.key"), || {
                NodeKey::generate(&mut rng)
            })?,
            log: keyfile::load_or_create(&folder.join("log.key"), || LogKey::generate(&mut rng))?,
            announced: watch::Sender::new(Arc::clone(&dated.keys)),
            turning: Mutex::new(Turning {
                used: dated,
                next: None,
                told_at: None,
            }),
            folder,
        };
        keys.remove_old();
        Ok(keys)
    }

    /// The keys in use.
    pub(super) fn dated(&self) -> Arc<Dated> {
        Arc::clone(&self.turning().used)
    }

    fn turning(&self) -> MutexGuard<'_, Turning> {
        self.turning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys in use, and a sign when others are.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<ProviderKeys>> {
        self.announced.subscribe()
    }

    /// The keys of this time: those in use, or in a new period new ones, which are on the disk by then. Where these cannot be
    /// drawn, those in use stay: a card under an older key is better than none.
    pub(super) fn due(&self, now: UnixTime) -> Arc<Dated> {
        let mut turning = self.turning();
        let Some(next) = turning.used.drawn.next(now) else {
            return Arc::clone(&turning.used);
        };
        if let Some(drawn) = turning.next.as_ref().filter(|drawn| drawn.drawn == next) {
            return Arc::clone(drawn);
        }
        match Dated::open(&self.folder, next) {
            Ok(drawn) => {
                let drawn = Arc::new(drawn);
                turning.next = Some(Arc::clone(&drawn));
                turning.told_at = None;
                drawn
            }
            Err(error) => {
                let is_quiet = |told: UnixTime| told <= now && now.since_s(told) < TELL_EVERY_S;
                if !turning.told_at.is_some_and(is_quiet) {
                    turning.told_at = Some(now);
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "no new keys: the card goes on under those before");
                }
                Arc::clone(&turning.used)
            }
        }
    }

    /// Takes into use what a card announces, and removes what is over.
    pub(super) fn adopt(&self, announced: Arc<Dated>) {
        let mut turning = self.turning();
        if announced.drawn != turning.used.drawn {
            tracing::info!("the card announces new keys");
            self.announced.send_replace(Arc::clone(&announced.keys));
            turning.used = announced;
            turning.next = None;
        }
        drop(turning);
        self.remove_old();
    }

    /// Removes the files of keys that nothing is signed with and nothing is sealed to any more. What cannot be removed is
    /// tried again the next time; a clock that is wrong costs at most the key before the one in use.
    fn remove_old(&self) {
        let drawn = self.dated().drawn;
        for (of, oldest) in [("card", drawn.period), ("seal", drawn.before)] {
            for drawn in periods(&self.folder, of).filter(|drawn| *drawn < oldest) {
                let path = self.folder.join(format!("{of}-{drawn}.key"));
                match fs::remove_file(&path) {
                    Ok(()) => tracing::info!(path = %path.display(), "an old key was removed"),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "an old key is still there");
                    }
                }
            }
        }
    }

    /// The list that the node key signs. Its serial is the sequence of the card that it stands in: the next one is higher, also
    /// where the clock was set back.
    pub(super) fn list(
        &self,
        network: &NetworkId,
        dated: &Dated,
        provider: bool,
        mix_keys: Vec<MixKey>,
        serial: u64,
        now: UnixTime,
    ) -> Result<Signed<SubKeys>, SignError> {
        let from = mix_keys
            .iter()
            .map(|key| key.window.from())
            .fold(now.minus_s(MAX_SKEW_S), UnixTime::min);
        let to = mix_keys
            .iter()
            .map(|key| key.window.to())
            .fold(now.plus_s(LIST_LIFE_S), UnixTime::max);
        let list = SubKeys {
            serial,
            window: Window::new(from, to).expect("it holds now"),
            card_key: dated.keys.card.public(),
            log_key: provider.then(|| self.log.public()),
            seal_key: provider.then(|| dated.keys.seal[0].public()),
            mix_keys,
        };
        sign::sign(list, &self.node, network).map(|verified| verified.signed().clone())
    }
}

impl Dated {
    /// Reads the keys of those periods, and makes those of the newer one that are missing.
    fn open(folder: &Path, drawn: Drawn) -> Result<Self, KeysError> {
        let mut rng = rand::rng();
        let path = |of: &str, period: u64| folder.join(format!("{of}-{period}.key"));
        let card =
            keyfile::load_or_create(&path("card", drawn.period), || CardKey::generate(&mut rng))?;
        let announced =
            keyfile::load_or_create(&path("seal", drawn.period), || SealKey::generate(&mut rng))?;
        let before = (drawn.before != drawn.period)
            .then(|| keyfile::load(&path("seal", drawn.before)))
            .transpose()?;
        let seal = std::iter::once(announced).chain(before).collect();
        Ok(Self {
            keys: Arc::new(ProviderKeys { card, seal }),
            drawn,
        })
    }
}

/// The periods of which `folder` has a key for this use.
fn periods(folder: &Path, of: &str) -> impl Iterator<Item = u64> {
    let period = move |name: &str| {
        let drawn = name.strip_prefix(of)?.strip_prefix('-')?;
        let drawn = drawn.strip_suffix(".key")?;
        let period: u64 = drawn.parse().ok()?;
        // Only names as they are written here.
        (period.to_string() == drawn).then_some(period)
    };
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(move |entry| period(entry.file_name().to_str()?))
}

#[cfg(test)]
mod tests {
    use souk_crypto::{CardPublicKey, NetworkParams};

    use super::*;

    #[test]
    fn keys_stay_the_same_until_their_period_is_over() {
        let data = tempfile::tempdir().expect("temporary folder");
        let now = UnixTime(60 * PERIOD_S + 5);
        let first = Keys::open(data.path(), now).expect("makes keys");
        let again = Keys::open(data.path(), now.plus_s(60)).expect("reads keys");
        assert_eq!(first.node.public(), again.node.public());
        assert_eq!(card(&first), card(&again));
        let later = Keys::open(data.path(), now.plus_s(PERIOD_S)).expect("makes new keys");
        assert_eq!(first.node.public(), later.node.public());
        assert_eq!(first.log.public(), later.log.public());
        assert_ne!(card(&first), card(&later));
        // Requests under the last key can still be read.
        assert_eq!(seals(&later).len(), 2);
        assert_eq!(seals(&first)[0], seals(&later)[1]);
    }

    #[test]
    fn a_node_that_runs_into_a_new_period_draws_keys_once_and_uses_them_when_they_are_announced() {
        let data = tempfile::tempdir().expect("temporary folder");
        let at = |n| UnixTime(n * PERIOD_S);
        let keys = Keys::open(data.path(), at(60)).expect("opens");
        let (card_of_60, seal_of_60) = (card(&keys), seals(&keys)[0].clone());
        let mut told = keys.subscribe();
        told.mark_unchanged();
        keys.adopt(keys.due(at(61).minus_s(1)));
        assert!(!told.has_changed().expect("there") && card(&keys) == card_of_60);

        let due = keys.due(at(61));
        // Nothing was announced yet, however long that takes; a process that dies here finds the same keys again.
        assert_eq!(card(&keys), card_of_60);
        let again = keys.due(at(62).minus_s(1));
        assert_eq!(due.keys.card.public(), again.keys.card.public());
        let restarted = Keys::open(data.path(), at(61)).expect("opens");
        assert_eq!(due.keys.card.public(), card(&restarted));
        keys.adopt(due);
        assert!(told.has_changed().expect("there"));
        assert_ne!(card(&keys), card_of_60);
        assert_eq!(seals(&keys)[1], seal_of_60);
        assert_eq!(
            files(data.path()),
            ["card-61.key", "seal-60.key", "seal-61.key"]
        );

        let set_back = Keys::open(data.path(), at(61).minus_s(1)).expect("opens");
        assert_eq!(card(&set_back), card(&keys), "as the card announces");
        assert_eq!(seals(&set_back), seals(&keys));

        // A clock that is set back draws nothing, and one more period lets the oldest go.
        let used = card(&keys);
        keys.adopt(keys.due(at(10)));
        assert_eq!(card(&keys), used);
        keys.adopt(keys.due(at(65)));
        assert_eq!(
            files(data.path()),
            ["card-65.key", "seal-61.key", "seal-65.key"]
        );
        let restarted = Keys::open(data.path(), at(65)).expect("opens");
        assert_eq!(card(&restarted), card(&keys));
        assert_eq!(seals(&restarted), seals(&keys));
    }

    #[test]
    fn keys_that_cannot_be_drawn_leave_those_before_in_use_until_they_can() {
        let data = tempfile::tempdir().expect("temporary folder");
        let at = |n| UnixTime(n * PERIOD_S);
        let keys = Keys::open(data.path(), at(60)).expect("opens");
        let card_of_60 = card(&keys);
        // A folder in the place of the key: root may write wherever it likes, but not there.
        let in_the_way = data.path().join("keys/seal-61.key");
        fs::create_dir(&in_the_way).expect("a folder");
        keys.adopt(keys.due(at(61)));
        keys.adopt(keys.due(at(61).plus_s(15)));
        assert_eq!(card(&keys), card_of_60);
        fs::remove_dir(&in_the_way).expect("removed");
        keys.adopt(keys.due(at(61).plus_s(30)));
        assert_ne!(card(&keys), card_of_60);
        assert_eq!(seals(&keys).len(), 2);
    }

    fn card(keys: &Keys) -> CardPublicKey {
        keys.dated().keys.card.public()
    }

    fn seals(keys: &Keys) -> Vec<Vec<u8>> {
        let dated = keys.dated();
        let bytes = |key: &SealKey| key.public().as_bytes().to_vec();
        dated.keys.seal.iter().map(bytes).collect()
    }

    fn files(data: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(data.join("keys"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("a name"))
            .filter(|name| name.contains('-'))
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn keys_that_are_over_are_removed_and_no_others() {
        let data = tempfile::tempdir().expect("temporary folder");
        let period = |n| UnixTime(n * PERIOD_S);
        let open = |n| Keys::open(data.path(), period(n)).expect("opens");
        open(60);
        let kept = data.path().join("keys/seal-07.key");
        fs::write(&kept, "somebody's").expect("written");
        let running = open(61);
        assert_eq!(
            files(data.path()),
            ["card-61.key", "seal-07.key", "seal-60.key", "seal-61.key"]
        );
        // It did not run for a while, and announced that key until then.
        let later = open(65);
        assert_eq!(seals(&later)[1], seals(&running)[0]);
        assert_eq!(
            files(data.path()),
            ["card-65.key", "seal-07.key", "seal-61.key", "seal-65.key"]
        );
    }

    #[test]
    fn a_clock_that_was_wrong_once_does_not_cost_the_key_in_use() {
        let data = tempfile::tempdir().expect("temporary folder");
        let open = |n| Keys::open(data.path(), UnixTime(n * PERIOD_S)).expect("opens");
        let used = open(60);
        open(90);
        open(0);
        assert_eq!(seals(&used)[0], seals(&open(60))[0]);
    }

    #[test]
    fn the_list_names_the_keys_and_opens_for_others() {
        let data = tempfile::tempdir().expect("temporary folder");
        let params = NetworkParams::new(50, 5000, 3600, true).expect("valid");
        let network = NetworkId::new("test", &params).expect("valid");
        let now = UnixTime(60 * PERIOD_S);
        let keys = Keys::open(data.path(), now).expect("makes keys");
        let list = keys
            .list(&network, &keys.dated(), true, Vec::new(), 1, now)
            .expect("signs");
        let opened = list.open(&network).expect("opens");
        assert_eq!(*opened.signer(), keys.node.public());
        assert_eq!(opened.card_key, card(&keys));
        assert!(opened.is_current(now));
    }
}
