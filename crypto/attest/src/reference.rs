//! Reference values that somebody else vouches for: a signed file, and what is remembered of those seen before.
//!
//! ```text
//!  [[measurement]] … ─ sign(serial, window) ─► file ─► open: one of the policy's keys, serial, not rolled back ─► Policy
//!                                                            │
//!                                                       Seen: highest serial of each key and name
//! ```
//!
//! Whoever measures a release signs what it measures as, once for all networks; a policy names the file and the keys that it
//! believes. The values hold within the window of the file and their own dates, which are compared when evidence is decided about.
//!
//! Threats: values of somebody else (the key is one that the policy names); a signature made for anything else (the key has a use of
//! its own, and the domain says what was signed); an older file put in the place of a newer one, which may accept what is known to
//! be broken (serials are remembered, and none goes back); a file of another release line, which has serials of its own (the policy
//! says which it wants); two files under one serial (refused, and said).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use minicbor::{Decode, Encode};
use souk_crypto::{
    ObjectDigest, OpenError, ReferenceKey, ReferencePublicKey, SignError, UnixTime, Verified,
    Window,
    domain::{self, SignDomain},
    keys::Reference as ReferenceUse,
    sign::{self, Anywhere, Invalid, Object},
};
use souk_toml::Mistakes;

use crate::{
    files::{self, FileError},
    policy::{Policy, check_values},
};

/// A signed file of reference values is no larger, in bytes.
pub const MAX_REFERENCE_BYTES: usize = domain::REFERENCE_VALUES.max_bytes();
/// Longest window of such a file, in seconds (two years): whoever vouches looks at it again.
const MAX_WINDOW_S: u64 = 2 * 366 * 86_400;
/// Keys and names whose serials are remembered: those of all policies of a machine.
const MAX_SEEN: usize = 256;
/// A line has a key, a serial, a digest and a name.
const MAX_SEEN_BYTES: usize = MAX_SEEN * 256;
/// A name is no longer, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Reference values, as they are signed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct ReferenceValues {
    /// What they are of, such as the name of a release line. Serials of one key and name rise.
    #[n(0)]
    pub name: String,
    /// Rises with every file of this name.
    #[n(1)]
    pub serial: u64,
    /// When they hold.
    #[n(2)]
    pub window: Window,
    /// The `[[measurement]]` tables of a policy, and nothing else.
    #[n(3)]
    pub values: String,
}

impl ReferenceValues {
    /// Whether they hold at `now`, with the accepted skew.
    #[must_use]
    pub const fn holds(&self, now: UnixTime) -> bool {
        self.window.accepts(now)
    }
}

impl Object for ReferenceValues {
    type Signer = ReferenceUse;
    const DOMAIN: SignDomain<ReferenceUse> = domain::REFERENCE_VALUES;

    fn validate(&self) -> Result<(), Invalid> {
        if !is_name(&self.name) {
            return Err(Invalid::new("name", "not 1 to 64 letters, digits and .-_"));
        }
        if self.window.length_s() > MAX_WINDOW_S {
            return Err(Invalid::new("window", "longer than two years"));
        }
        Ok(())
    }
}

impl Anywhere for ReferenceValues {}

/// Why reference values were not signed.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceSignError {
    /// They have mistakes.
    #[error("the reference values have mistakes")]
    Values(#[from] Mistakes),
    /// They cannot be signed.
    #[error("the reference values cannot be signed")]
    Sign(#[from] SignError),
}

/// Why the reference values of a file are not used.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its values are of something else.
    #[error("{path} holds reference values of {found}, and those of {wanted} are asked for")]
    Name {
        /// The file.
        path: PathBuf,
        /// What they are of.
        found: String,
        /// What they should be of.
        wanted: String,
    },
    /// It is no signed file of reference values.
    #[error("{path} holds no signed reference values")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// None of the keys that are believed has signed it.
    #[error("{path} is signed by {signer}, whom the policy does not name")]
    Signer {
        /// The file.
        path: PathBuf,
        /// Who signed it.
        signer: ReferencePublicKey,
    },
    /// It is older than it may be.
    #[error("{path} has serial {serial}, and {least} was asked for")]
    Serial {
        /// The file.
        path: PathBuf,
        /// Its serial.
        serial: u64,
        /// The least.
        least: u64,
    },
    /// A newer one was seen before.
    #[error("{path} has serial {serial}, and {seen} was seen before: it was rolled back")]
    Rollback {
        /// The file.
        path: PathBuf,
        /// Its serial.
        serial: u64,
        /// The highest that was seen.
        seen: u64,
    },
    /// Another one of this serial was seen before.
    #[error("{path} is another file of serial {serial} than the one that was seen before")]
    Twice {
        /// The file.
        path: PathBuf,
        /// Its serial.
        serial: u64,
    },
    /// What was signed has mistakes.
    #[error("the values in {path} have mistakes")]
    Values {
        /// The file.
        path: PathBuf,
        /// Which.
        #[source]
        source: Mistakes,
    },
    /// What was seen before cannot be read.
    #[error("{path} does not hold what was seen before; move it away to begin anew")]
    Seen {
        /// The file.
        path: PathBuf,
    },
    /// What was seen cannot be kept.
    #[error("cannot write {path}")]
    Unkept {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Too much was seen.
    #[error("{path} remembers {MAX_SEEN} files of reference values; move it away to begin anew")]
    Full {
        /// The file.
        path: PathBuf,
    },
}

impl ReferenceError {
    /// Its name, which does not change between releases.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::File(_) | Self::Unkept { .. } => "file",
            Self::Open { .. } => "unsigned",
            Self::Signer { .. } => "unknown-signer",
            Self::Name { .. } => "name",
            Self::Serial { .. } => "serial",
            Self::Rollback { .. } => "rollback",
            Self::Twice { .. } => "two-of-one-serial",
            Self::Values { .. } => "malformed",
            Self::Seen { .. } | Self::Full { .. } => "seen",
        }
    }
}

/// Signs reference values.
///
/// # Errors
/// [`ReferenceSignError`] where they have mistakes, or break a rule of [`ReferenceValues`].
pub fn sign_reference(
    values: ReferenceValues,
    key: &ReferenceKey,
) -> Result<Vec<u8>, ReferenceSignError> {
    check_values(&values.values)?;
    let signed = sign::sign_anywhere(values, key)?;
    Ok(signed.signed().as_bytes().to_vec())
}

/// Whom to believe about reference values, as a policy says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Believed {
    /// The file, beside the policy where it is not absolute.
    pub file: PathBuf,
    /// What its values must be of: one key may sign for several release lines, whose serials are apart.
    pub name: String,
    /// Who may have signed it.
    pub keys: Vec<ReferencePublicKey>,
    /// The least serial.
    pub min_serial: u64,
}

impl Believed {
    /// Reads the file, and holds it against this and what was seen before. Whether its window is open, the one who uses it decides.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn read(
        &self,
        folder: &Path,
        seen: &mut Seen,
    ) -> Result<Verified<ReferenceValues>, ReferenceError> {
        let path = folder.join(&self.file);
        let bytes = files::read(&path, MAX_REFERENCE_BYTES)?;
        let opened: Result<Verified<ReferenceValues>, _> = sign::open_anywhere(&bytes);
        let values = match opened {
            Ok(values) => values,
            Err(source) => return Err(ReferenceError::Open { path, source }),
        };
        let (serial, signer) = (values.serial, *values.signer());
        if !self.keys.contains(&signer) {
            return Err(ReferenceError::Signer { path, signer });
        }
        if values.name != self.name {
            let (found, wanted) = (values.name.clone(), self.name.clone());
            return Err(ReferenceError::Name {
                path,
                found,
                wanted,
            });
        }
        if serial < self.min_serial {
            let least = self.min_serial;
            return Err(ReferenceError::Serial {
                path,
                serial,
                least,
            });
        }
        if let Err(source) = check_values(&values.values) {
            return Err(ReferenceError::Values { path, source });
        }
        match seen.look(&values) {
            Look::New => Ok(values),
            Look::Older(seen) => Err(ReferenceError::Rollback { path, serial, seen }),
            Look::Twice => Err(ReferenceError::Twice { path, serial }),
        }
    }
}

/// Resolves the files that a policy names. The highest serials are kept in `seen`, where it is given.
///
/// # Errors
/// [`ReferenceError`]: a policy of which one file cannot be used is not used at all.
pub fn with_references(
    policy: Policy,
    folder: &Path,
    seen: Option<&Path>,
) -> Result<Policy, ReferenceError> {
    if policy.believed().is_empty() {
        return Ok(policy);
    }
    let mut known = seen.map_or_else(|| Ok(Seen::default()), Seen::read)?;
    let mut all = Vec::new();
    for believed in policy.believed() {
        let values = believed.read(folder, &mut known)?;
        all.push(values);
    }
    if let Some(path) = seen {
        known.keep(path)?;
    }
    let vouched = all.iter().map(|values| (&values.values[..], values.window));
    Ok(policy.with_values(vouched))
}

/// The highest serial of each key and name, with the digest of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    highest: BTreeMap<(ReferencePublicKey, String), (u64, ObjectDigest)>,
    changed: bool,
}

enum Look {
    New,
    Older(u64),
    Twice,
}

impl Seen {
    /// Reads what was seen; nothing where there is no such file.
    ///
    /// # Errors
    /// [`ReferenceError::File`], and [`ReferenceError::Seen`] where the file holds anything else.
    pub fn read(path: &Path) -> Result<Self, ReferenceError> {
        let bytes = match files::read(path, MAX_SEEN_BYTES) {
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            read => read?,
        };
        let parsed = std::str::from_utf8(&bytes).ok().and_then(Self::parse);
        parsed.ok_or_else(|| ReferenceError::Seen { path: path.into() })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut highest = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.split(' ');
            let key = words.next()?.parse().ok()?;
            let serial = words.next()?.parse().ok()?;
            let digest = hex::decode(words.next()?).ok()?.try_into().ok()?;
            let digest = ObjectDigest::from_bytes(digest);
            let name = words.next().filter(|name| is_name(name))?;
            if words.next().is_some() || highest.len() >= MAX_SEEN {
                return None;
            }
            highest.insert((key, name.to_owned()), (serial, digest));
        }
        Some(Self {
            highest,
            changed: false,
        })
    }

    /// Compares a file with what was seen of its key and name, and remembers it where it is newer.
    fn look(&mut self, values: &Verified<ReferenceValues>) -> Look {
        let (serial, digest) = (values.serial, values.digest());
        let of = (*values.signer(), values.name.clone());
        match self.highest.get(&of) {
            Some((seen, _)) if serial < *seen => return Look::Older(*seen),
            Some((seen, other)) if serial == *seen => {
                return match *other == digest {
                    true => Look::New,
                    false => Look::Twice,
                };
            }
            _ => {}
        }
        self.highest.insert(of, (serial, digest));
        self.changed = true;
        Look::New
    }

    /// Writes it down, whole or not at all, where it has changed since it was read.
    ///
    /// # Errors
    /// [`ReferenceError::Unkept`], [`ReferenceError::Full`].
    pub fn keep(&self, path: &Path) -> Result<(), ReferenceError> {
        if !self.changed {
            return Ok(());
        }
        if self.highest.len() > MAX_SEEN {
            return Err(ReferenceError::Full { path: path.into() });
        }
        let mut text = String::new();
        for ((key, name), (serial, digest)) in &self.highest {
            writeln!(text, "{key} {serial} {digest} {name}").expect("strings take all");
        }
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path).map_err(|error| error.error)?;
            std::fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| ReferenceError::Unkept {
            path: path.into(),
            source,
        })
    }
}

pub(crate) fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests;
