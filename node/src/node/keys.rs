//! The keys of a node, in files of mode 0600 in `keys/` of its data folder.
//!
//! | file | use | life |
//! |---|---|---|
//! | `node.key` | the identity; signs the list of sub-keys | the node's |
//! | `log.key` | signs checkpoints | the log's |
//! | `card-N.key` | signs cards, capacity and replies | a period of 30 days |
//! | `seal-N.key` | requests are sealed to it | until the next is drawn, and readable for a period after that |
//!
//! Mix keys are the mix driver's own. A node draws its card and seal keys when it starts in a new period; until then
//! the old ones hold, for at most the life of the list that names them. Files of keys that are over are removed at the
//! start and whenever a new card is made.
//!
//! Threat: who takes the machine later reads old requests with old seal keys, and signs old replies with old card keys.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use souk_crypto::{
    CardKey, LogKey, MAX_SKEW_S, MixKey, NetworkId, NodeKey, SealKey, SignError, Signed, SubKeys,
    UnixTime, Window,
    keyfile::{self, KeyFileError},
    sign,
};

/// How long card and seal keys are used, in seconds (30 days).
const PERIOD_S: u64 = 30 * 86_400;

/// How long a list of sub-keys holds, in seconds (60 days); shorter than the 92 days that others accept.
const LIST_LIFE_S: u64 = 60 * 86_400;

/// The keys of one node.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) node: NodeKey,
    pub(super) card: CardKey,
    pub(super) log: LogKey,
    /// The one that is announced, then the one before it.
    pub(super) seal: Vec<SealKey>,
    folder: PathBuf,
    /// When the card key and the announced seal key were drawn.
    period: u64,
    /// When the oldest of the seal keys was drawn.
    oldest_seal: u64,
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
        let period = now.0 / PERIOD_S;
        let seal = |period: u64| folder.join(format!("seal-{period}.key"));
        let current = keyfile::load_or_create(&seal(period), || SealKey::generate(&mut rng))?;
        // A node that ran for long used a key beyond its period, so the one before is not always that of the last period.
        let before = periods(&folder, "seal")
            .filter(|drawn| *drawn < period)
            .max();
        let oldest_seal = before.unwrap_or(period);
        let before = before
            .map(|drawn| keyfile::load(&seal(drawn)))
            .transpose()?;
        let keys = Self {
            node: keyfile::load_or_create(&folder.join("node.key"), || {
                NodeKey::generate(&mut rng)
            })?,
            log: keyfile::load_or_create(&folder.join("log.key"), || LogKey::generate(&mut rng))?,
            card: keyfile::load_or_create(&folder.join(format!("card-{period}.key")), || {
                CardKey::generate(&mut rng)
            })?,
            seal: std::iter::once(current).chain(before).collect(),
            folder,
            period,
            oldest_seal,
        };
        keys.remove_old(now);
        Ok(keys)
    }

    /// Removes the files of keys that nothing is signed with and nothing is sealed to any more. What cannot be removed is
    /// tried again the next time; a clock that is wrong costs at most the key before the one in use.
    pub(super) fn remove_old(&self, now: UnixTime) {
        let oldest_seal = match now.0 / PERIOD_S > self.period {
            // The next start takes the announced one as the one before.
            true => self.period,
            false => self.oldest_seal,
        };
        for (of, oldest) in [("card", self.period), ("seal", oldest_seal)] {
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
            card_key: self.card.public(),
            log_key: provider.then(|| self.log.public()),
            seal_key: provider.then(|| self.seal[0].public()),
            mix_keys,
        };
        sign::sign(list, &self.node, network).map(|verified| verified.signed().clone())
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
    use souk_crypto::NetworkParams;

    use super::*;

    #[test]
    fn keys_stay_the_same_until_their_period_is_over() {
        let data = tempfile::tempdir().expect("temporary folder");
        let now = UnixTime(60 * PERIOD_S + 5);
        let first = Keys::open(data.path(), now).expect("makes keys");
        let again = Keys::open(data.path(), now.plus_s(60)).expect("reads keys");
        assert_eq!(first.node.public(), again.node.public());
        assert_eq!(first.card.public(), again.card.public());
        let later = Keys::open(data.path(), now.plus_s(PERIOD_S)).expect("makes new keys");
        assert_eq!(first.node.public(), later.node.public());
        assert_eq!(first.log.public(), later.log.public());
        assert_ne!(first.card.public(), later.card.public());
        assert_eq!(
            later.seal.len(),
            2,
            "requests under the last key can still be read"
        );
        assert_eq!(
            first.seal[0].public().as_bytes(),
            later.seal[1].public().as_bytes()
        );
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
        // Requests under the key before may come until the period is over.
        running.remove_old(period(62).minus_s(1));
        assert_eq!(files(data.path()).len(), 4);
        running.remove_old(period(65));
        assert_eq!(
            files(data.path()),
            ["card-61.key", "seal-07.key", "seal-61.key"]
        );

        // It ran on, and announced that key until now.
        let later = open(65);
        let bytes = |keys: &Keys, at: usize| keys.seal[at].public().as_bytes().to_vec();
        assert_eq!(bytes(&later, 1), bytes(&running, 0));
        assert_eq!(
            files(data.path()),
            ["card-65.key", "seal-07.key", "seal-61.key", "seal-65.key"]
        );
    }

    #[test]
    fn a_clock_that_was_wrong_once_does_not_cost_the_key_in_use() {
        let data = tempfile::tempdir().expect("temporary folder");
        let open = |n| Keys::open(data.path(), UnixTime(n * PERIOD_S)).expect("opens");
        let seal = |keys: &Keys| keys.seal[0].public().as_bytes().to_vec();
        let used = open(60);
        open(90);
        open(0);
        assert_eq!(seal(&used), seal(&open(60)));
    }

    #[test]
    fn the_list_names_the_keys_and_opens_for_others() {
        let data = tempfile::tempdir().expect("temporary folder");
        let params = NetworkParams::new(50, 5000, 3600, true).expect("valid");
        let network = NetworkId::new("test", &params).expect("valid");
        let now = UnixTime(60 * PERIOD_S);
        let keys = Keys::open(data.path(), now).expect("makes keys");
        let list = keys
            .list(&network, true, Vec::new(), 1, now)
            .expect("signs");
        let opened = list.open(&network).expect("opens");
        assert_eq!(*opened.signer(), keys.node.public());
        assert_eq!(opened.card_key, keys.card.public());
        assert!(opened.is_current(now));
    }
}
