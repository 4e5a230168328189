//! Signed notes (<https://c2sp.org/signed-note>).
//!
//! Threat: a note of a stranger with endless signature lines, or with one line that is read in two ways. Characters
//! and the number of lines are checked before any signature is verified; the size is for the caller to bound.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use sha2::{Digest, Sha256};
use souk_crypto::{LogKey, LogPublicKey};

/// Starts each signature line: an em dash and a space.
const SIGNATURE_PREFIX: &str = "\u{2014} ";
/// Signatures a note can carry: the log's own and those of a few witnesses. More is not parsed.
const MAX_SIGNATURES: usize = 16;
/// Signature type of Ed25519 over the text of the note (signed-note, "Signature types").
const ED25519: u8 = 0x01;

/// Name of a key in a note: no spaces, no plus sign, not empty, at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyName(String);

impl KeyName {
    /// A name, where it is one.
    ///
    /// # Errors
    /// [`NoteError::Name`] where it is empty, too long, or has a space, a plus sign or a control character.
    pub fn new(name: impl Into<String>) -> Result<Self, NoteError> {
        let name = name.into();
        let allowed = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        if (1..=255).contains(&name.len()) && name.chars().all(allowed) {
            Ok(Self(name))
        } else {
            Err(NoteError::Name)
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a note is not one, or is not signed by the key that should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// A key name with characters that cannot stand in a signature line.
    #[error("key name is empty, too long, or has a space, a plus sign or a control character")]
    Name,
    /// The text is not text that can be signed.
    #[error("note text is empty, does not end in a line feed, or has control characters")]
    Text,
    /// The note has no well-formed signature block.
    #[error("note has no well-formed signature lines")]
    Signatures,
    /// More signatures than are looked at.
    #[error("note has more than {MAX_SIGNATURES} signatures")]
    TooMany,
    /// The key that had to sign did not.
    #[error("note is not signed by {0:08x}")]
    NotSigned(u32),
    /// There is a signature of that key, and it is wrong.
    #[error("signature of {0:08x} does not verify")]
    BadSignature(u32),
}

/// Short id of a key under a name: the first four bytes of SHA-256 over name, line feed, type and key.
#[must_use]
pub fn key_id(name: &KeyName, key: &[u8; 32]) -> u32 {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(name.as_str())
        .chain_update([b'\n', ED25519])
        .chain_update(key)
        .finalize()
        .into();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The key that must have signed a note.
#[derive(Clone, Debug)]
pub struct NoteVerifier {
    name: KeyName,
    key: LogPublicKey,
    id: u32,
}

impl NoteVerifier {
    /// A verifier for a key under a name.
    #[must_use]
    pub fn new(name: KeyName, key: LogPublicKey) -> Self {
        let id = key_id(&name, key.as_bytes());
        Self { name, key, id }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Signature {
    name: KeyName,
    /// Key id and signature, as they stand in the line.
    blob: Vec<u8>,
}

/// A text with signatures under it. Those of unknown keys, a witness's for instance, are kept as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<Signature>,
}

impl SignedNote {
    /// Signs a text.
    ///
    /// # Errors
    /// [`NoteError::Text`] where the text cannot be signed.
    pub fn sign(text: impl Into<String>, name: &KeyName, key: &LogKey) -> Result<Self, NoteError> {
        let text = text.into();
        if !is_text(&text) {
            return Err(NoteError::Text);
        }
        let mut blob = key_id(name, key.public().as_bytes()).to_be_bytes().to_vec();
        blob.extend_from_slice(&key.sign_note(text.as_bytes()));
        Ok(Self {
            text,
            signatures: vec![Signature {
                name: name.clone(),
                blob,
            }],
        })
    }

    /// Reads a note. No signature is checked; see [`SignedNote::verify`].
    ///
    /// # Errors
    /// [`NoteError`] where it is not one. The caller bounds its size.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        let (text, lines) = note.rsplit_once("\n\n").ok_or(NoteError::Signatures)?;
        let text = format!("{text}\n");
        if !is_text(&text) {
            return Err(NoteError::Text);
        }
        let lines = lines.strip_suffix('\n').ok_or(NoteError::Signatures)?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(NoteError::TooMany);
            }
            let (name, blob) = line
                .strip_prefix(SIGNATURE_PREFIX)
                .and_then(|rest| rest.split_once(' '))
                .ok_or(NoteError::Signatures)?;
            let blob = BASE64.decode(blob).map_err(|_| NoteError::Signatures)?;
            if blob.len() < 5 {
                return Err(NoteError::Signatures);
            }
            signatures.push(Signature {
                name: KeyName::new(name)?,
                blob,
            });
        }
        Ok(Self { text, signatures })
    }

    /// Adds a signature line that somebody else made, a witness for instance.
    ///
    /// # Errors
    /// [`NoteError::TooMany`] where the note is full, [`NoteError::Signatures`] where the blob cannot be one.
    pub fn add_signature(&mut self, name: KeyName, blob: Vec<u8>) -> Result<(), NoteError> {
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(NoteError::TooMany);
        }
        if blob.len() < 5 {
            return Err(NoteError::Signatures);
        }
        self.signatures.push(Signature { name, blob });
        Ok(())
    }

    /// The text, once the given key is known to have signed it.
    ///
    /// # Errors
    /// [`NoteError::NotSigned`] or [`NoteError::BadSignature`].
    pub fn verify(&self, verifier: &NoteVerifier) -> Result<&str, NoteError> {
        let mut found = false;
        for signature in &self.signatures {
            let Some((id, bytes)) = signature.blob.split_first_chunk::<4>() else {
                continue;
            };
            if signature.name != verifier.name || u32::from_be_bytes(*id) != verifier.id {
                continue;
            }
            // A second line of the same key is as suspicious as a wrong one.
            let bytes = <[u8; 64]>::try_from(bytes).ok().filter(|_| !found);
            match bytes {
                Some(bytes) if verifier.key.verifies_note(self.text.as_bytes(), &bytes) => {
                    found = true;
                }
                _ => return Err(NoteError::BadSignature(verifier.id)),
            }
        }
        if found {
            Ok(&self.text)
        } else {
            Err(NoteError::NotSigned(verifier.id))
        }
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for Signature { name, blob } in &self.signatures {
            writeln!(f, "{SIGNATURE_PREFIX}{name} {}", BASE64.encode(blob))?;
        }
        Ok(())
    }
}

fn is_text(text: &str) -> bool {
    text.ends_with('\n') && !text.chars().any(|c| c != '\n' && c.is_control())
}
