//! Evidence of the guest that this program runs in.
//!
//! ```text
//! mkdir report/souk-… ─► write inblob (report data) ─► read outblob, auxblob ─► generation as expected? ─► rmdir
//!        ▲                                                                             │ no
//!        └──────────────── again, at most three times ◄────────────────────────────────┘
//! ```
//!
//! Linux gives quotes and reports through configfs (`/sys/kernel/config/tsm/report`, from 6.7), alike for TDX and SEV-SNP. The
//! devices below it are in [`device`], for kernels without it.
//!
//! Threat: another process of the guest that writes into the same entry, so that our key gets no quote or another's report data
//! gets ours. The generation counts writes, and what comes out has to hold the report data that went in.
//!
//! Source: Linux, `Documentation/ABI/testing/configfs-tsm-report`.

pub mod device;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    digest::ReportData, refusal::Refusal, snp::SnpPieces, tdx::MAX_QUOTE_BYTES, verified::Evidence,
};

/// Where Linux has it.
pub const CONFIGFS_TSM: &str = "/sys/kernel/config/tsm/report";

/// What comes beside a report is no larger, in bytes: AMD's table of certificates.
const MAX_AUX_BYTES: usize = 64 * 1024;
/// Numbers and names.
const MAX_TEXT_BYTES: usize = 256;
/// Another writer in an entry of our own is a fault or an attack; after this many it is told.
const MAX_TRIES: u32 = 3;

/// One folder of entries, as configfs has it: attributes are there as soon as the entry is.
pub trait TsmRoot {
    /// Makes an entry.
    ///
    /// # Errors
    /// Those of the system; `AlreadyExists` where there is one of this name.
    fn create(&self, entry: &str) -> io::Result<()>;

    /// Writes an attribute at once.
    ///
    /// # Errors
    /// Those of the system.
    fn write(&self, entry: &str, attribute: &str, value: &[u8]) -> io::Result<()>;

    /// Reads an attribute of at most `max` bytes.
    ///
    /// # Errors
    /// Those of the system; `FileTooLarge` where there is more.
    fn read(&self, entry: &str, attribute: &str, max: usize) -> io::Result<Vec<u8>>;

    /// Removes an entry.
    ///
    /// # Errors
    /// Those of the system.
    fn remove(&self, entry: &str) -> io::Result<()>;
}

/// A folder of the file system.
#[derive(Clone, Debug)]
pub struct Configfs(PathBuf);

impl Configfs {
    /// The folder of the kernel.
    #[must_use]
    pub fn of_kernel() -> Self {
        Self::at(CONFIGFS_TSM)
    }

    /// Another folder.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl TsmRoot for Configfs {
    fn create(&self, entry: &str) -> io::Result<()> {
        fs::create_dir(self.0.join(entry))
    }

    fn write(&self, entry: &str, attribute: &str, value: &[u8]) -> io::Result<()> {
        let path = self.0.join(entry).join(attribute);
        // The kernel takes a binary attribute when the file is closed, a text with each write.
        OpenOptions::new().write(true).open(path)?.write_all(value)
    }

    fn read(&self, entry: &str, attribute: &str, max: usize) -> io::Result<Vec<u8>> {
        let mut value = Vec::new();
        let path = self.0.join(entry).join(attribute);
        File::open(path)?
            .take(max as u64 + 1)
            .read_to_end(&mut value)?;
        if value.len() > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(value)
    }

    fn remove(&self, entry: &str) -> io::Result<()> {
        fs::remove_dir(self.0.join(entry))
    }
}

/// Evidence that the kernel gave, and what came beside it.
#[derive(Clone, Debug)]
pub struct Collected {
    /// The quote or report; it holds the report data that was asked for.
    pub evidence: Evidence,
    /// Which driver made it, such as `tdx_guest`.
    pub provider: String,
    /// Certificates that the host gave along, believed by nobody; empty for TDX.
    pub pieces: SnpPieces,
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// This machine is no guest of a TEE, or its kernel is older than 6.7.
    #[error("the kernel offers no evidence here")]
    NoTee {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("the kernel failed at {attribute}")]
    Kernel {
        /// The attribute, or `entry` for the entry itself.
        attribute: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another process wrote into our entry, each time.
    #[error("another process interfered with the entry")]
    Interfered,
    /// What the kernel gave is no evidence.
    #[error("the kernel gave something that is no evidence")]
    Malformed(#[source] Refusal),
}

/// Asks the kernel for evidence over `report_data`; takes up to seconds, so call it where waiting is allowed.
///
/// # Errors
/// [`CollectError`].
pub fn collect(root: &impl TsmRoot, report_data: ReportData) -> Result<Collected, CollectError> {
    for _ in 0..MAX_TRIES {
        let entry = Entry::create(root)?;
        if let Some(collected) = entry.collect(report_data)? {
            return Ok(collected);
        }
    }
    Err(CollectError::Interfered)
}

/// An entry of our own, removed when it is dropped.
struct Entry<'a, R: TsmRoot> {
    root: &'a R,
    name: String,
}

impl<'a, R: TsmRoot> Entry<'a, R> {
    fn create(root: &'a R) -> Result<Self, CollectError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // Entries of a process of the same id that was killed are passed over.
        for _ in 0..64 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("souk-{}-{number}", std::process::id());
            match root.create(&name) {
                Ok(()) => return Ok(Self { root, name }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    return Err(CollectError::NoTee { source });
                }
                Err(source) => return Err(kernel("entry")(source)),
            }
        }
        Err(CollectError::Interfered)
    }

    /// One round; `None` where somebody else wrote meanwhile.
    fn collect(&self, report_data: ReportData) -> Result<Option<Collected>, CollectError> {
        let before = self.generation()?;
        self.root
            .write(&self.name, "inblob", &report_data.0)
            .map_err(kernel("inblob"))?;
        let blob = match self.root.read(&self.name, "outblob", MAX_QUOTE_BYTES) {
            // The kernel found that an attribute changed while it asked.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            read => read.map_err(kernel("outblob"))?,
        };
        let aux = match self.root.read(&self.name, "auxblob", MAX_AUX_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            // Only SEV-SNP has one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(kernel("auxblob"))?,
        };
        let provider = self.text("provider")?;
        if self.generation()? != before.wrapping_add(1) {
            return Ok(None);
        }
        let evidence = Evidence::parse(&blob).map_err(CollectError::Malformed)?;
        if evidence.claimed_report_data() != report_data {
            return Ok(None);
        }
        Ok(Some(Collected {
            evidence,
            provider,
            pieces: certificates(&aux),
        }))
    }

    fn generation(&self) -> Result<u64, CollectError> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| CollectError::Kernel {
            attribute: "generation",
            source: io::ErrorKind::InvalidData.into(),
        })
    }

    fn text(&self, attribute: &'static str) -> Result<String, CollectError> {
        let bytes = self
            .root
            .read(&self.name, attribute, MAX_TEXT_BYTES)
            .map_err(kernel(attribute))?;
        Ok(String::from_utf8_lossy(bytes.trim_ascii()).into_owned())
    }
}

impl<R: TsmRoot> Drop for Entry<'_, R> {
    fn drop(&mut self) {
        // An entry that stays costs the kernel a few bytes, and its name is not used again.
        let _ = self.root.remove(&self.name);
    }
}

fn kernel(attribute: &'static str) -> impl Fn(io::Error) -> CollectError {
    move |source| CollectError::Kernel { attribute, source }
}

/// Takes what is in a table of certificates: entries of GUID, offset and length, ended by a zero GUID, and what they point at.
///
/// Source: AMD, "Guest Hypervisor Communication Block" (56421), table 9.
fn certificates(table: &[u8]) -> SnpPieces {
    const ENTRY: usize = 24;
    let mut pieces = SnpPieces::default();
    for entry in table.chunks_exact(ENTRY) {
        if entry[..16] == [0; 16] {
            break;
        }
        let number = |at: usize| {
            let bytes = entry[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        let (at, len) = (number(16), number(20));
        let piece = at.checked_add(len).and_then(|end| table.get(at..end));
        // A table with more pieces than are taken is no reason to go without a report.
        if piece.is_some_and(|piece| pieces.add(piece).is_err()) {
            break;
        }
    }
    pieces
}
