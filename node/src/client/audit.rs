//! Checking a provider's whole usage log, as anybody can.
//!
//! The log is read in bulk from its beginning and recomputed, one bundle in memory at a time, and has to lead to everything
//! that its provider is known to have signed: the checkpoint that was believed last, those of final statements, and what
//! rides on its capacity messages ([`super::logs`]). Where the stream breaks, what was recomputed stays, and the rest is asked for again.
//!
//! Threat: a provider that rewrites its log, shows a shorter one, or different ones to different readers, or begins a new
//! one under another key. To read one
//! provider's log tells that provider that somebody is interested in it; so it is read under a network identity of its
//! own, and nothing else is done with that one.

use souk_crypto::NodeId;
use souk_market::log::{
    self, AuditError, Audited, BundleSource, Checkpoint, CheckpointError, Contradiction, LogClaim,
    NoteError, NoteVerifier, TILE_WIDTH, TilePath,
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, mpsc},
};

use super::{
    Progress, StateError, Visitor, Watch,
    logs::{ClaimFailure, KnownLog},
    market,
};
use crate::net::{
    Client as NetClient, ConnectError as PeerError, LogFetchError, LogPath, LogReadError,
    LogReading,
};

/// Steps that wait to be shown; one that finds no place is not.
const STEPS: usize = 16;

/// A log that was recomputed.
#[derive(Clone, Debug)]
pub struct VerifiedLog {
    /// What the provider signed.
    pub checkpoint: Checkpoint,
    /// What the log holds.
    pub audited: Audited,
    /// The size of the log when it was last verified here; the older one is a part of it.
    pub known_size: Option<u64>,
}

/// Why a log was not verified.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No usable card of this node, or one without a log key.
    #[error("{0} has no usable card with a log key")]
    NoLog(NodeId),
    /// The name of the log is not one.
    #[error("the log has no name")]
    Origin(#[source] NoteError),
    /// The provider publishes no address.
    #[error(
        "the provider publishes no address, so nobody can read its log as a whole; proofs of leases come with their statements"
    )]
    NoAddress,
    /// The provider was not reached.
    #[error("the provider was not reached")]
    Connect(#[source] PeerError),
    /// Its log could not be read.
    #[error("the log could not be read")]
    Fetch(#[source] LogFetchError),
    /// A part of it came. That is no word against the log.
    #[error("the log broke off at bundle {bundle} of {of}, and the rest did not come")]
    CutOff {
        /// The bundle that did not come, from 0.
        bundle: u64,
        /// How many there are.
        of: u64,
        /// What went wrong last.
        #[source]
        source: LogReadError,
    },
    /// There is no checkpoint yet.
    #[error("the log has no checkpoint yet: ask again after its next period")]
    NoCheckpoint,
    /// The checkpoint is not the provider's.
    #[error("the checkpoint does not verify")]
    Checkpoint(#[source] CheckpointError),
    /// The log does not fit its checkpoint, or lacks what was believed before.
    #[error("the log does not hold")]
    Audit(#[source] Box<AuditError<BundleError>>),
    /// What the provider says contradicts what it signed before.
    #[error("the log is not believed")]
    Claim(#[from] ClaimFailure),
    /// The folder of the client.
    #[error("the checkpoint could not be kept")]
    State(#[from] StateError),
}

/// Why a bundle could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The provider could not be read.
    #[error("the bundle could not be read")]
    Fetch(#[source] LogReadError),
    /// The log lacks a bundle that its checkpoint speaks of.
    #[error("the log lacks the bundle")]
    Missing,
}

impl Visitor {
    /// Reads the whole log of a provider, verifies it, and remembers its checkpoint for the next time. `watch` sees how far it has come.
    ///
    /// # Errors
    /// [`LogError`]; where [`LogError::Claim`] has evidence against the provider, it is kept, and the checkpoint that was
    /// believed before is not replaced.
    pub async fn verify_log(
        &self,
        provider: NodeId,
        watch: Watch<'_>,
    ) -> Result<VerifiedLog, LogError> {
        let listed = self
            .market
            .card(&provider)
            .ok_or(LogError::NoLog(provider))?;
        let list = listed.card.key_list();
        let key = list.log_key.ok_or(LogError::NoLog(provider))?;
        let network = &self.client.config.network;
        let home = &self.client.home;
        let origin = log::origin(network, provider).map_err(LogError::Origin)?;
        let verifier = NoteVerifier::new(origin.clone(), key);
        self.hear_capacity(provider)?;

        let addresses = market::addresses(&listed.card);
        if addresses.is_empty() {
            return Err(LogError::NoAddress);
        }
        let net = NetClient::start(&self.client.net_config());
        let mut reading = net.peers().read_log(provider, addresses).await?;
        let note = reading.file(&LogPath::Checkpoint, |_| ()).await?;
        let note = note.ok_or(LogError::NoCheckpoint)?;
        let checkpoint =
            Checkpoint::open(&note, &origin, &verifier).map_err(LogError::Checkpoint)?;
        let text = std::str::from_utf8(&note).expect("a note that opened is a text");
        let claim = LogClaim::of_checkpoint(list.clone(), network, text)
            .expect("a checkpoint that opened with the key of the list is a claim");
        let before = home.known_log(network, provider)?;
        home.hear(network, &claim)?;

        let of = claim.size().div_ceil(TILE_WIDTH);
        let (steps, mut seen) = mpsc::channel(STEPS);
        let source = Bundles {
            runtime: Handle::current(),
            reading: Mutex::new(reading),
            of,
            steps,
        };
        let (shown, known) = (claim.clone(), before.clone());
        let mut audit =
            tokio::task::spawn_blocking(move || recompute(&source, &checkpoint, &shown, &known));
        let audit = loop {
            tokio::select! {
                audit = &mut audit => break audit.expect("an audit does not panic"),
                Some(step) = seen.recv() => watch(step),
            }
        };
        let audited = match audit {
            Ok(audited) => audited,
            Err(Recomputed::Audit(error)) => return Err(LogError::of_audit(*error, of)),
            Err(Recomputed::Fork(proof)) => {
                let kept = home.keep(network, &proof)?;
                return Err(ClaimFailure::Contradiction(Box::new(kept)).into());
            }
        };
        home.verified(&claim, &before)?;
        Ok(VerifiedLog {
            checkpoint: Checkpoint::new(origin, claim.size(), claim.root()),
            audited,
            known_size: before.verified.as_ref().map(LogClaim::size),
        })
    }

    /// Compares what a provider's capacity message says of its log with what is known.
    pub(super) fn hear_capacity(&self, provider: NodeId) -> Result<(), ClaimFailure> {
        let Some(listed) = self.market.card(&provider) else {
            return Ok(());
        };
        let Some(capacity) = &listed.capacity else {
            return Ok(());
        };
        // A message without a word of a log is no claim.
        match LogClaim::of_capacity(listed.card.key_list().clone(), (**capacity).clone()) {
            Ok(claim) => self.client.home.hear(&self.client.config.network, &claim),
            Err(_) => Ok(()),
        }
    }
}

/// Why a log does not lead to what is known of it.
#[derive(Debug)]
pub(super) enum Recomputed<E: std::error::Error + 'static> {
    /// It does not hold.
    Audit(Box<AuditError<E>>),
    /// It is another log than before, and this proves it.
    Fork(Box<Contradiction>),
}

/// Recomputes a log from its entries and holds it to its checkpoint and to all that is known; what contradicts becomes
/// evidence.
pub(super) fn recompute<S: BundleSource>(
    source: &S,
    checkpoint: &Checkpoint,
    shown: &LogClaim,
    known: &KnownLog,
) -> Result<Audited, Recomputed<S::Error>> {
    let origin = checkpoint.origin();
    let known: Vec<&LogClaim> = known.claims().collect();
    let checkpoints: Vec<_> = known
        .iter()
        .map(|claim| Checkpoint::new(origin.clone(), claim.size(), claim.root()))
        .collect();
    let boxed = |error| Recomputed::Audit(Box::new(error));
    let error = match log::audit_against(source, checkpoint, &checkpoints) {
        Ok(audited) => return Ok(audited),
        Err(error) => error,
    };
    let AuditError::Fork {
        size, known: root, ..
    } = &error
    else {
        return Err(boxed(error));
    };
    let forked = known
        .iter()
        .find(|c| c.size() == *size && c.root() == *root);
    let Some(forked) = forked else {
        return Err(boxed(error));
    };
    let (prefix, proof) = log::prove_prefix(source, checkpoint, *size).map_err(boxed)?;
    match Contradiction::by_prefix((*forked).clone(), shown.clone(), prefix, proof) {
        Ok(proof) => Err(Recomputed::Fork(Box::new(proof))),
        Err(_) => Err(boxed(error)),
    }
}

impl LogError {
    /// What did not come is no word against the log.
    fn of_audit(error: AuditError<BundleError>, of: u64) -> Self {
        match error {
            AuditError::Source {
                path,
                source: BundleError::Fetch(source),
            } => Self::CutOff {
                bundle: path.index(),
                of,
                source,
            },
            error => Self::Audit(Box::new(error)),
        }
    }
}

impl From<LogReadError> for LogError {
    fn from(error: LogReadError) -> Self {
        match error {
            LogReadError::Connect(source) => Self::Connect(source),
            LogReadError::Fetch(source) => Self::Fetch(source),
        }
    }
}

/// Bundles over the network, for an audit that runs on a blocking thread.
struct Bundles {
    runtime: Handle,
    reading: Mutex<LogReading>,
    /// How many there are.
    of: u64,
    steps: mpsc::Sender<Progress>,
}

impl BundleSource for Bundles {
    type Error = BundleError;

    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, BundleError> {
        let (bundle, of) = (path.index(), self.of);
        let path: LogPath = path
            .to_string()
            .parse()
            .expect("both follow C2SP tlog-tiles");
        // Who shows them is behind: the next one says as much.
        let tell = |step| drop(self.steps.try_send(step));
        tell(Progress::ReadingLog { bundle, of });
        let resumes = |attempt| {
            tell(Progress::ResumingLog {
                bundle,
                of,
                attempt,
            });
        };
        let file = self
            .runtime
            .block_on(async { self.reading.lock().await.file(&path, resumes).await });
        let bundle = file
            .map_err(BundleError::Fetch)?
            .ok_or(BundleError::Missing)?;
        Ok(bundle.to_vec())
    }
}
