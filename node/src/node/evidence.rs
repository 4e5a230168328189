//! Evidence that providers contradict themselves, on the disk of the node that saw it.
//!
//! ```text
//!   gossip, card sets ─► directory ─► Contradiction ─┬─► log, souk status, souk_log_contradictions
//!                            ▲                       └─► file evidence/<peer id>
//!                            └────── at the next start ──────────┘
//! ```
//!
//! Threats: a file that somebody changed (evidence proves itself whenever it is read, or does not count); a stranger who
//! makes nodes that contradict themselves, to fill disk and log, or to keep them busy: there are at most [`MAX_CONTRADICTIONS`]
//! files of [`MAX_CONTRADICTION_BYTES`], they are written at most once in a [`PAUSE`], and as often the log has a line of it; or to
//! push out the evidence against another (the directory shares its places out).

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

    /// What was kept and still proves itself, oldest first.
    pub(super) fn read(&self) -> Vec<Contradiction> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let files = entries.flatten().take(2 * MAX_CONTRADICTIONS);
        let dated =
            |file: fs::DirEntry| Some((file.metadata().ok()?.modified().ok()?, file.path()));
        let mut files: Vec<_> = files.filter_map(dated).collect();
        files.sort_unstable();
        files
            .into_iter()
            .map(|(_, path)| path)
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
        let news = cards.new_contradictions();
        let Some((first, others)) = news.split_first() else {
            continue;
        };
        tracing::warn!(
            provider = %peer_id(&first.node()),
            why = %first.how(),
            others = others.len(),
            "a provider contradicts itself; the evidence is kept"
        );
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
    use souk_crypto::{
        CardKey, LogKey, NetworkParams, NodeKey, SubKeys, UnixTime, Verified, Window, sign,
    };
    use souk_market::{
        capacity::{Capacity, LogHead},
        log::{Contradicts, LogClaim},
        shares::Source,
        units::{Digest, Sequence},
        wire::List,
    };
    use souk_sphinx::EpochClock;

    use super::*;

    const NOW: UnixTime = UnixTime(1_800_000_000);

    /// A provider, as far as its log is concerned.
    struct Provider {
        node: NodeKey,
        card: CardKey,
        list: Verified<SubKeys>,
        network: NetworkId,
    }

    impl Provider {
        fn new(network: &NetworkId) -> Self {
            let mut rng = rand::rng();
            let (node, card) = (NodeKey::generate(&mut rng), CardKey::generate(&mut rng));
            let list = SubKeys {
                serial: 1,
                window: Window::new(NOW.minus_s(60), NOW.plus_s(86_400)).expect("not empty"),
                card_key: card.public(),
                log_key: Some(LogKey::generate(&mut rng).public()),
                seal_key: None,
                mix_keys: Vec::new(),
            };
            let list = sign::sign(list, &node, network).expect("valid");
            Self {
                node,
                card,
                list,
                network: network.clone(),
            }
        }

        fn claim(&self, root: u8) -> LogClaim {
            let capacity = Capacity {
                node: self.node.public(),
                card: Sequence(1),
                at: NOW,
                levels: List::empty(),
                log: Some(LogHead {
                    size: 7,
                    root: Digest([root; 32]),
                }),
            };
            let capacity = sign::sign(capacity, &self.card, &self.network).expect("signs");
            LogClaim::of_capacity(self.list.clone(), capacity).expect("a claim")
        }

        /// Says two things, which `seen` hears from two neighbours next to each other.
        fn lie(&self, seen: &Cards, neighbour: u64) {
            for root in [1, 2] {
                seen.take(self.claim(root).as_bytes(), Source::Neighbour(neighbour));
            }
        }
    }

    fn params() -> NetworkParams {
        NetworkParams::new(50, 5000, 3600, true).expect("valid")
    }

    fn cards(network: &NetworkId) -> Cards {
        let local = NodeKey::generate(&mut rand::rng()).public();
        let clock = EpochClock::of(&params());
        Cards::new(local, network, true, clock, || NOW)
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let holds = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let holds = tokio::time::timeout(Duration::from_secs(60), holds);
        holds.await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    #[tokio::test]
    async fn a_stranger_who_makes_nodes_up_leaves_the_evidence_against_others_on_the_disk() {
        let network = NetworkId::new("test", &params()).expect("valid");
        let data = tempfile::tempdir().expect("temporary folder");
        let folder = EvidenceFolder::new(data.path(), network.clone());
        let liar = Provider::new(&network);
        let file = folder.path.join(peer_id(&liar.node.public()).to_string());
        // Over a restart, too, after which nobody knows who brought what.
        for life in 0..2 {
            let seen = Arc::new(cards(&network));
            seen.remember_evidence(folder.read());
            let stop = CancellationToken::new();
            let writer = tokio::spawn(run(seen.clone(), folder.clone(), stop.clone()));
            tokio::task::yield_now().await;
            if life == 0 {
                liar.lie(&seen, 1);
                until("it is written", || file.exists()).await;
            }
            for _ in 0..MAX_CONTRADICTIONS + 8 {
                Provider::new(&network).lie(&seen, 9);
            }
            until("the flood is written", || {
                let held = seen.contradictions();
                let name = |evidence: &Arc<Contradiction>| peer_id(&evidence.node()).to_string();
                held.len() == MAX_CONTRADICTIONS
                    && held
                        .iter()
                        .all(|evidence| folder.path.join(name(evidence)).exists())
            })
            .await;
            stop.cancel();
            writer.await.expect("ends");
            assert!(file.exists());
            let read = folder.read();
            assert_eq!(read.len(), MAX_CONTRADICTIONS);
            assert_eq!(
                read[0].node(),
                liar.node.public(),
                "the oldest is the first"
            );
        }
    }

    #[tokio::test]
    async fn a_fork_that_came_from_two_sides_is_kept_over_a_restart_unless_its_file_was_changed() {
        let network = NetworkId::new("test", &params()).expect("valid");
        let data = tempfile::tempdir().expect("temporary folder");
        let provider = Provider::new(&network);
        let folder = EvidenceFolder::new(data.path(), network.clone());

        let seen = Arc::new(cards(&network));
        let stop = CancellationToken::new();
        let writer = tokio::spawn(run(seen.clone(), folder.clone(), stop.clone()));
        tokio::task::yield_now().await;
        for (root, neighbour) in [(1, 1), (2, 2)] {
            assert!(seen.contradictions().is_empty());
            let claim = provider.claim(root);
            seen.take(claim.as_bytes(), Source::Neighbour(neighbour));
        }
        let evidence = seen.contradictions();
        let [evidence] = &evidence[..] else {
            panic!("{evidence:?} is not one");
        };
        assert_eq!(evidence.node(), provider.node.public());
        assert!(matches!(evidence.how(), Contradicts::Fork { size: 7, .. }));
        let file = folder.path.join(peer_id(&evidence.node()).to_string());
        until("it is written", || file.exists()).await;
        stop.cancel();
        writer.await.expect("ends");

        let later = cards(&network);
        later.remember_evidence(folder.read());
        assert_eq!(later.contradictions(), seen.contradictions());
        let mut bytes = fs::read(&file).expect("there");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&file, bytes).expect("written");
        assert!(folder.read().is_empty());
    }

    #[test]
    fn the_folder_holds_what_is_known_and_nothing_else() {
        let network = NetworkId::new("test", &params()).expect("valid");
        let data = tempfile::tempdir().expect("temporary folder");
        let folder = EvidenceFolder::new(data.path(), network.clone());
        let evidence: Vec<_> = (0..3)
            .map(|_| {
                let provider = Provider::new(&network);
                let (one, other) = (provider.claim(1), provider.claim(2));
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
