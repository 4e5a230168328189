//! Checkpoints: size and root of a log, signed (<https://c2sp.org/tlog-checkpoint>).
//!
//! Threat: a checkpoint of another log, provider or network that passes for this one's: the origin line names both, and is the
//! name of the key.

use std::fmt::Display;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use souk_crypto::LogKey;

use super::{Hash, KeyName, NoteError, NoteVerifier, SignedNote};

/// Largest checkpoint that is read: body and sixteen signatures fit.
pub const MAX_CHECKPOINT_BYTES: usize = 8 * 1024;

/// Origin line and key name of a provider's usage log.
///
/// # Errors
/// [`NoteError::Name`] where network or provider have characters that cannot stand in it.
pub fn origin(network: impl Display, provider: impl Display) -> Result<KeyName, NoteError> {
    KeyName::new(format!("souk/usage-log/v1/{network}/{provider}"))
}

/// Why a checkpoint was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// It is larger than any checkpoint, or not UTF-8.
    #[error("checkpoint is above {MAX_CHECKPOINT_BYTES} bytes or is not UTF-8")]
    Bytes,
    /// The note around it is malformed or not signed by the key of the log.
    #[error("checkpoint is not a note signed by the log")]
    Note(#[source] NoteError),
    /// The signed text is not a checkpoint.
    #[error("signed text is not a checkpoint: {0}")]
    Body(&'static str),
    /// It belongs to another log.
    #[error("checkpoint is of another log")]
    Origin,
}

/// Size and root of a log at an instant, as its provider signed it (<https://c2sp.org/tlog-checkpoint>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    origin: KeyName,
    size: u64,
    root: Hash,
}

impl Checkpoint {
    /// The checkpoint of a log that the caller keeps itself.
    #[must_use]
    pub fn new(origin: KeyName, size: u64, root: Hash) -> Self {
        Self { origin, size, root }
    }

    /// Reads a signed checkpoint of the log `verifier` belongs to; extension lines are signed with it and ignored.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn open(
        note: &[u8],
        origin: &KeyName,
        verifier: &NoteVerifier,
    ) -> Result<Self, CheckpointError> {
        if note.len() > MAX_CHECKPOINT_BYTES {
            return Err(CheckpointError::Bytes);
        }
        let note = std::str::from_utf8(note).map_err(|_| CheckpointError::Bytes)?;
        let note = SignedNote::parse(note).map_err(CheckpointError::Note)?;
        let checkpoint = Self::parse(note.verify(verifier).map_err(CheckpointError::Note)?)?;
        if checkpoint.origin == *origin {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Origin)
        }
    }

    /// Signs it with the key of the log, under the origin as the name of the key.
    #[must_use]
    pub fn sign(&self, key: &LogKey) -> SignedNote {
        SignedNote::sign(self.body(), &self.origin, key)
            .expect("a checkpoint is three lines of plain text")
    }

    /// The log it belongs to.
    #[must_use]
    pub fn origin(&self) -> &KeyName {
        &self.origin
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Root of the tree over them.
    #[must_use]
    pub fn root(&self) -> &Hash {
        &self.root
    }

    fn body(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            BASE64.encode(self.root.0)
        )
    }

    fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        let mut line = |what| lines.next().ok_or(CheckpointError::Body(what));
        let origin = KeyName::new(line("no origin")?).map_err(CheckpointError::Note)?;
        let size_text = line("no size")?;
        let size: u64 = size_text
            .parse()
            .map_err(|_| CheckpointError::Body("size is not a number"))?;
        if size.to_string() != size_text {
            return Err(CheckpointError::Body("size is not in its one decimal form"));
        }
        let root = BASE64
            .decode(line("no root")?)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(CheckpointError::Body("root is not a hash in base64"))?;
        if lines.any(str::is_empty) {
            return Err(CheckpointError::Body("empty extension line"));
        }
        Ok(Self::new(origin, size, Hash(root)))
    }
}
