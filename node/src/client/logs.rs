//! What this requester knows of the usage logs of providers, and what it holds against them.
//!
//! ```text
//!  whole log recomputed ──────► verified ─┐
//!  final statements ─┐                    ├─ compared with every new claim ─► evidence, kept for good
//!  capacity messages ┴────────► heard ────┘
//! ```
//!
//! What was heard says nothing of the entries before it; the next whole log has to lead to it.
//!
//! Threats: a provider that shows one log to the holder of a lease and another one to everybody, or that changes the key of
//! its log to begin anew. A claim carries the list in which the node named the key, so claims under two keys contradict
//! each other like any others; and a log has one key for as long as this requester knows it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use souk_crypto::{LogPublicKey, NetworkId, NodeId};
use souk_market::log::{Contradiction, Contradicts, LogClaim};

use super::{
    Client, StateError,
    state::{Home, read, replace},
};
use crate::net::peer_id;

/// Folder of what is known, with one folder for each provider.
const LOGS: &str = "logs";
/// Folder of evidence.
const EVIDENCE: &str = "evidence";
/// The claim to which the whole log was recomputed last.
const VERIFIED: &str = "verified";
/// Begins the names of the others.
const HEARD: &str = "heard-";
/// Claims of one provider that wait for the next whole log: one comes with each lease, and with each look at the log.
/// When full, a new one is compared with them and not kept.
const MAX_HEARD: usize = 64;
/// Contradictions that are kept; each proves the same of its provider.
const MAX_EVIDENCE: usize = 1_000;

/// Two claims of a provider that cannot both be true, as they are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptEvidence {
    /// The file; whoever has it can check it.
    pub file: PathBuf,
    /// Who contradicts itself.
    pub provider: NodeId,
    /// How.
    pub how: Contradicts,
}

/// Why a claim of a provider about its log is not believed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimFailure {
    /// It cannot be true together with what the provider signed before.
    #[error("the provider signed two logs: {}; the proof is kept in {}", .0.how, .0.file.display())]
    Contradiction(Box<KeptEvidence>),
    /// It is signed with another key than what was known before.
    #[error("{0}")]
    OtherKey(Box<OtherKey>),
    /// The folder of the client.
    #[error("what is known of the log cannot be used")]
    State(#[from] StateError),
}

/// A log whose key has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherKey {
    /// Whose log it is.
    pub provider: NodeId,
    /// Entries that are known.
    pub known_size: u64,
    /// The key that signed them.
    pub known: LogPublicKey,
    /// The key that is claimed now.
    pub claimed: LogPublicKey,
    /// Where the known claims lie.
    pub folder: PathBuf,
}

impl fmt::Display for OtherKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the log of {} was signed with key {} up to {} entries, and is signed with key {} now; a log keeps its key, so this is another log: rent elsewhere, and if its operator can say why, remove {} to begin anew",
            peer_id(&self.provider),
            self.known,
            self.known_size,
            self.claimed,
            self.folder.display()
        )
    }
}

/// What is known of one log.
#[derive(Clone, Debug, Default)]
pub(super) struct KnownLog {
    pub(super) verified: Option<LogClaim>,
    pub(super) heard: Vec<LogClaim>,
}

impl KnownLog {
    pub(super) fn claims(&self) -> impl Iterator<Item = &LogClaim> {
        self.verified.iter().chain(&self.heard)
    }
}

impl Client {
    /// Evidence against this provider that was found so far.
    ///
    /// # Errors
    /// [`StateError`] where it cannot be read.
    pub fn evidence(&self, provider: NodeId) -> Result<Vec<KeptEvidence>, StateError> {
        let network = &self.config.network;
        let mut found = Vec::new();
        for file in self.home.files(&[EVIDENCE])? {
            let bytes = read(&file)?.unwrap_or_default();
            let proof = Contradiction::open(&bytes, network).map_err(|e| damaged(&file, &e))?;
            if proof.node() == provider {
                let how = proof.how();
                found.push(KeptEvidence {
                    file,
                    provider,
                    how,
                });
            }
        }
        Ok(found)
    }
}

impl Home {
    /// What is known of a provider's log.
    pub(super) fn known_log(
        &self,
        network: &NetworkId,
        provider: NodeId,
    ) -> Result<KnownLog, StateError> {
        let mut known = KnownLog::default();
        for file in self.files(&[LOGS, &folder_of(provider)])? {
            // A file of ours that does not read is no reason to believe nothing: the provider would gain by it.
            let bytes = read(&file)?.unwrap_or_default();
            let claim = LogClaim::open(&bytes, network).map_err(|e| damaged(&file, &e))?;
            if claim.node() != provider {
                return Err(damaged(&file, &"a claim of another node"));
            }
            if file.ends_with(VERIFIED) {
                known.verified = Some(claim);
            } else {
                known.heard.push(claim);
            }
        }
        known.heard.sort_by_key(LogClaim::size);
        Ok(known)
    }

    /// Compares a claim that was not checked against the whole log with all that is known, and keeps it.
    pub(super) fn hear(&self, network: &NetworkId, claim: &LogClaim) -> Result<(), ClaimFailure> {
        let provider = claim.node();
        let known = self.known_log(network, provider)?;
        for other in known.claims() {
            if let Some(proof) = Contradiction::between(other, claim) {
                let kept = self.keep(network, &proof)?;
                return Err(ClaimFailure::Contradiction(Box::new(kept)));
            }
        }
        // Both are there: a claim that lists no such key has no log.
        let other = known
            .claims()
            .find(|other| other.log_key() != claim.log_key());
        if let Some(other) = other
            && let (Some(known), Some(claimed)) = (other.log_key(), claim.log_key())
        {
            return Err(ClaimFailure::OtherKey(Box::new(OtherKey {
                provider,
                known_size: other.size(),
                known: *known,
                claimed: *claimed,
                folder: self.path().join(LOGS).join(folder_of(provider)),
            })));
        }
        // Only what was not refused is held against the claims to come.
        let is_news = !known.claims().any(|other| {
            (other.size(), other.root(), other.log_key())
                == (claim.size(), claim.root(), claim.log_key())
        });
        if is_news && known.heard.len() < MAX_HEARD {
            let folder = self.folder(&[LOGS, &folder_of(provider)])?;
            replace(&folder.join(heard_name(claim)), claim.as_bytes())?;
        }
        Ok(())
    }

    /// Remembers a claim whose whole log was recomputed and led to all of `known`; of these, what was heard is forgotten.
    /// What another process heard meanwhile stays.
    pub(super) fn verified(&self, claim: &LogClaim, known: &KnownLog) -> Result<(), StateError> {
        let folder = self.folder(&[LOGS, &folder_of(claim.node())])?;
        replace(&folder.join(VERIFIED), claim.as_bytes())?;
        for heard in known.heard.iter().chain([claim]) {
            let file = folder.join(heard_name(heard));
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(super::state::io_error("remove", &file)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Keeps evidence for good.
    pub(super) fn keep(
        &self,
        network: &NetworkId,
        proof: &Contradiction,
    ) -> Result<KeptEvidence, StateError> {
        let folder = self.folder(&[EVIDENCE])?;
        let digest = proof.digest(network).to_string();
        let file = folder.join(&digest[..16]);
        if !file.exists() && self.files(&[EVIDENCE])?.len() >= MAX_EVIDENCE {
            return Err(StateError::Full {
                what: "files of evidence",
                most: MAX_EVIDENCE,
                path: folder,
            });
        }
        replace(&file, &proof.to_bytes())?;
        Ok(KeptEvidence {
            file,
            provider: proof.node(),
            how: proof.how(),
        })
    }
}

fn heard_name(claim: &LogClaim) -> String {
    let hash = blake3::hash(claim.as_bytes()).to_hex();
    format!("{HEARD}{}-{}", claim.size(), &hash[..16])
}

fn folder_of(provider: NodeId) -> String {
    peer_id(&provider).to_string()
}

fn damaged(file: &Path, what: &dyn fmt::Display) -> StateError {
    StateError::Damaged {
        path: file.into(),
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests;
