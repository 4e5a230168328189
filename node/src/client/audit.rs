//! Checking a provider's whole usage log, as anybody can.
//!
//! The log is read in bulk from its beginning and recomputed, one bundle in memory at a time, and compared with the
//! checkpoint that was believed last, which is kept in the client's folder.
//!
//! Threat: a provider that rewrites its log, shows a shorter one, or different ones to different readers. To read one
//! provider's log tells that provider that somebody is interested in it; so it is read under a network identity of its
//! own, and nothing else is done with that one.

use souk_crypto::{NetworkId, NodeId};
use souk_market::log::{
    self, AuditError, Audited, BundleSource, Checkpoint, CheckpointError, NoteError, NoteVerifier,
    TilePath,
};
use tokio::{runtime::Handle, sync::Mutex};

use super::{Connected, StateError, market};
use crate::net::{
    Client as NetClient, ConnectError as PeerError, LogFetchError, LogPath, LogReader,
};

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
    /// The provider was not reached.
    #[error("the provider was not reached")]
    Connect(#[source] PeerError),
    /// Its log could not be read.
    #[error("the log could not be read")]
    Fetch(#[source] LogFetchError),
    /// There is no checkpoint yet.
    #[error("the log has no checkpoint yet: ask again after its next period")]
    NoCheckpoint,
    /// The checkpoint is not the provider's.
    #[error("the checkpoint does not verify")]
    Checkpoint(#[source] CheckpointError),
    /// The log does not fit its checkpoint, or contradicts what was believed before.
    #[error("the log does not hold")]
    Audit(#[source] Box<AuditError<BundleError>>),
    /// The folder of the client.
    #[error("the checkpoint could not be kept")]
    State(#[from] StateError),
}

/// Why a bundle could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The provider could not be read.
    #[error("the bundle could not be read")]
    Fetch(#[source] LogFetchError),
    /// The log lacks a bundle that its checkpoint speaks of.
    #[error("the log lacks the bundle")]
    Missing,
}

impl Connected {
    /// Reads the whole log of a provider, verifies it, and remembers its checkpoint for the next time.
    ///
    /// # Errors
    /// [`LogError`]; [`LogError::Audit`] is evidence against the provider, which is kept: the checkpoint that was
    /// believed before is not replaced.
    pub async fn verify_log(&self, provider: NodeId) -> Result<VerifiedLog, LogError> {
        let listed = self
            .market
            .card(&provider)
            .ok_or(LogError::NoLog(provider))?;
        let key = listed
            .card
            .sub_keys()
            .log_key
            .ok_or(LogError::NoLog(provider))?;
        let network = &self.client.config.network;
        let origin = log::origin(network, provider).map_err(LogError::Origin)?;
        let verifier = NoteVerifier::new(origin.clone(), key);

        let net = NetClient::start(&self.client.net_config());
        let peers = net.peers();
        let addresses = market::addresses(&listed.card);
        peers
            .connect(provider, &addresses)
            .await
            .map_err(LogError::Connect)?;
        let mut reader = peers.open_log(provider).await.map_err(LogError::Fetch)?;
        let note = reader
            .file(&LogPath::Checkpoint)
            .await
            .map_err(LogError::Fetch)?;
        let note = note.ok_or(LogError::NoCheckpoint)?;
        let checkpoint =
            Checkpoint::open(&note, &origin, &verifier).map_err(LogError::Checkpoint)?;

        let name = known_name(network, &provider);
        let known = self.client.home.read_text(&name)?;
        // A file of ours that does not read believes nothing.
        let known = known.and_then(|k| Checkpoint::open(k.as_bytes(), &origin, &verifier).ok());
        let known_size = known.as_ref().map(Checkpoint::size);

        let source = Bundles {
            runtime: Handle::current(),
            reader: Mutex::new(reader),
        };
        let shown = checkpoint.clone();
        let audit =
            tokio::task::spawn_blocking(move || log::audit(&source, &shown, known.as_ref()));
        let audited = audit.await.expect("an audit does not panic");
        let audited = audited.map_err(|error| LogError::Audit(Box::new(error)))?;
        self.client
            .home
            .write_text(&name, &String::from_utf8_lossy(&note))?;
        Ok(VerifiedLog {
            checkpoint,
            audited,
            known_size,
        })
    }
}

/// The file of the checkpoint that was believed last.
fn known_name(network: &NetworkId, provider: &NodeId) -> String {
    format!("checkpoint.{network}.{provider}")
}

/// Bundles over the network, for an audit that runs on a blocking thread.
struct Bundles {
    runtime: Handle,
    reader: Mutex<LogReader>,
}

impl BundleSource for Bundles {
    type Error = BundleError;

    fn bundle(&self, path: &TilePath) -> Result<Vec<u8>, BundleError> {
        let path: LogPath = path
            .to_string()
            .parse()
            .expect("both follow C2SP tlog-tiles");
        let file = self
            .runtime
            .block_on(async { self.reader.lock().await.file(&path).await });
        let bundle = file
            .map_err(BundleError::Fetch)?
            .ok_or(BundleError::Missing)?;
        Ok(bundle.to_vec())
    }
}
