//! Evidence that providers contradict themselves, on the disk of the node that saw it.
//!
//! ```text
//!   gossip, card sets ─► directory ─► Contradiction ─┬─► log, souk status, souk_log_contradictions
//!                            ▲                       └─► file evidence/<peer id>
//!                            └────── at the next start ──────────┘
//! ```
//!
//! Threats: a file that somebody changed (evidence proves itself whenever it is read, or does not count); a stranger who
//! makes nodes that contradict themselves, to fill the disk or to keep it busy: there are at most [`MAX_CONTRADICTIONS`]
//! files of [`MAX_CONTRADICTION_BYTES`], and they are written at most once in a [`PAUSE`].

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use souk_crypto::NetworkId;
use souk_market::{
    directory::MAX_CONTRADICTIONS,
    log::{Contradiction, MAX_CONTRADICTION_BYTES},
};
use tokio_util::sync::CancellationToken;

use super::directory::Cards;
use crate::{durable, net::peer_id};

/// Shortest time from one writing to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// Where evidence is kept.
#[derive(Clone, Debug)]
pub(super) struct EvidenceFolder {
    path: PathBuf,
    network: NetworkId,
}

impl EvidenceFolder {
    pub(super) fn new(data: &Path, network: NetworkId) -> Self {
        let path = data.join("evidence");
        Self { path, network }
    }

    /// What was kept and still proves itself.
    pub(super) fn read(&self) -> Vec<Contradiction> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .take(2 * MAX_CONTRADICTIONS)
            .filter_map(|path| match self.open(&path) {
                Ok(evidence) => Some(evidence),
                Err(why) => {
                    tracing::warn!(file = %path.display(), %why, "a file is no evidence, and is passed over");
                    None
                }
            })
            .take(MAX_CONTRADICTIONS)
            .collect()
    }

    /// Makes the folder hold exactly this.
    fn write(&self, all: &[Arc<Contradiction>]) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)?;
        let mut wanted: BTreeMap<_, _> = all
            .iter()
            .map(|evidence| {
                (
                    self.path.join(peer_id(&evidence.node()).to_string()),
                    evidence,
                )
            })
            .collect();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            match wanted.get(&path) {
                Some(evidence) if fs::read(&path)? == evidence.to_bytes() => {
                    wanted.remove(&path);
                }
                Some(_) => {}
                None => fs::remove_file(&path)?,
            }
        }
        wanted
            .into_iter()
            .try_for_each(|(path, evidence)| durable::replace(&path, &evidence.to_bytes()))
    }

    fn open(&self, path: &Path) -> Result<Contradiction, String> {
        let size = fs::metadata(path).map_err(|e| e.to_string())?.len();
        if size > MAX_CONTRADICTION_BYTES as u64 {
            return Err(format!("it has {size} bytes"));
        }
        let bytes = fs::read(path).map_err(|e| e.to_string())?;
        Contradiction::open(&bytes, &self.network).map_err(|e| e.to_string())
    }
}

/// Writes evidence as it comes, until `stop` is cancelled.
pub(super) async fn run(cards: Arc<Cards>, folder: EvidenceFolder, stop: CancellationToken) {
    let mut contradicted = cards.contradicted();
    loop {
        tokio::select! {
            changed = contradicted.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
        }
        let (all, to) = (cards.contradictions(), folder.clone());
        let written = tokio::task::spawn_blocking(move || to.write(&all)).await;
        if let Ok(Err(error)) = written {
            tracing::error!(folder = %folder.path.display(), %error, "evidence cannot be kept");
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use souk_crypto::{NetworkParams, NodeKey, UnixTime, sign};
    use souk_market::{
        capacity::{Capacity, LogHead},
        log::{Contradicts, LogClaim},
        shares::Source,
        units::{Digest, Sequence},
        wire::List,
    };
    use souk_sphinx::EpochClock;

    use super::{super::keys::Keys, *};

    const NOW: UnixTime = UnixTime(1_800_000_000);

    fn claim(keys: &Keys, network: &NetworkId, root: u8) -> LogClaim {
        let capacity = Capacity {
            node: keys.node.public(),
            card: Sequence(1),
            at: NOW,
            levels: List::empty(),
            log: Some(LogHead {
                size: 7,
                root: Digest([root; 32]),
            }),
        };
        let capacity = sign::sign(capacity, &keys.dated().keys.card, network).expect("signs");
        let list = keys
            .list(network, &keys.dated(), true, Vec::new(), 1, NOW)
            .expect("signs");
        LogClaim::of_capacity(list.open(network).expect("opens"), capacity).expect("a claim")
    }

    #[tokio::test]
    async fn a_fork_that_came_from_two_sides_is_kept_over_a_restart_unless_its_file_was_changed() {
        let params = NetworkParams::new(50, 5000, 3600, true).expect("valid");
        let network = NetworkId::new("test", &params).expect("valid");
        let local = NodeKey::generate(&mut rand::rng()).public();
        let data = tempfile::tempdir().expect("temporary folder");
        let keys = Keys::open(&data.path().join("provider"), NOW).expect("makes keys");
        let folder = EvidenceFolder::new(data.path(), network.clone());
        let cards = || {
            let clock = EpochClock::of(&params);
            Cards::new(local, &network, true, clock, || NOW)
        };

        let seen = Arc::new(cards());
        let stop = CancellationToken::new();
        let writer = tokio::spawn(run(seen.clone(), folder.clone(), stop.clone()));
        tokio::task::yield_now().await;
        for (root, neighbour) in [(1, 1), (2, 2)] {
            assert!(seen.contradictions().is_empty());
            let claim = claim(&keys, &network, root);
            seen.take(claim.as_bytes(), Source::Neighbour(neighbour));
        }
        let evidence = seen.contradictions();
        let [evidence] = &evidence[..] else {
            panic!("{evidence:?} is not one");
        };
        assert_eq!(evidence.node(), keys.node.public());
        assert!(matches!(evidence.how(), Contradicts::Fork { size: 7, .. }));
        let file = folder.path.join(peer_id(&evidence.node()).to_string());
        let kept = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), kept)
            .await
            .expect("written");
        stop.cancel();
        writer.await.expect("ends");

        let later = cards();
        later.remember_evidence(folder.read());
        assert_eq!(later.contradictions(), seen.contradictions());
        let mut bytes = fs::read(&file).expect("there");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&file, bytes).expect("written");
        assert!(folder.read().is_empty());
    }

    #[test]
    fn the_folder_holds_what_is_known_and_nothing_else() {
        let params = NetworkParams::new(50, 5000, 3600, true).expect("valid");
        let network = NetworkId::new("test", &params).expect("valid");
        let data = tempfile::tempdir().expect("temporary folder");
        let folder = EvidenceFolder::new(data.path(), network.clone());
        let evidence: Vec<_> = (0..3)
            .map(|n| {
                let keys = Keys::open(&data.path().join(n.to_string()), NOW).expect("makes keys");
                let (one, other) = (claim(&keys, &network, 1), claim(&keys, &network, 2));
                Arc::new(Contradiction::between(&one, &other).expect("a fork"))
            })
            .collect();
        folder.write(&evidence[..2]).expect("written");
        folder.write(&evidence[1..]).expect("written");
        let mut read: Vec<_> = folder.read().iter().map(Contradiction::node).collect();
        let mut wanted: Vec<_> = evidence[1..].iter().map(|e| e.node()).collect();
        read.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(read, wanted);
    }
}
