//! The replay tags of one epoch on disk: a file that only grows, and is removed with the epoch's key.
//!
//! ```text
//!  "souk replay tags" ‖ version u32 ‖ epoch u32 ‖ tag 8 ‖ tag 8 ‖ …       (big endian)
//! ```
//!
//! The threat is a crash between a packet that passed and its tag: [`TagLog::append`] returns when the tags are on the
//! disk, and the packets wait for it. A tail that a crash cut short belongs to packets that never passed.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use souk_sphinx::{
    Epoch, ReplayTag,
    replay::{TAG_LEN, TAGS_PER_EPOCH},
};

const MAGIC: &[u8; 16] = b"souk replay tags";
const VERSION: u32 = 1;
const HEADER_LEN: usize = MAGIC.len() + 8;

/// A file with more than this was not written by us: all tags of an epoch, twice over.
const MAX_FILE_LEN: u64 = (HEADER_LEN + 2 * TAGS_PER_EPOCH * TAG_LEN) as u64;

/// An open log.
#[derive(Debug)]
pub(super) struct TagLog {
    file: File,
    path: PathBuf,
    /// Where the tags that are on disk end.
    end: u64,
}

impl TagLog {
    /// Makes the empty log of an epoch whose key is new, readable by its owner only.
    pub(super) fn create(path: &Path, epoch: Epoch) -> Result<Self, TagLogError> {
        let io_error = |source| TagLogError::io(path, "create", source);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(io_error)?;
        file.write_all(&header(epoch)).map_err(io_error)?;
        file.sync_all().map_err(io_error)?;
        Ok(Self {
            file,
            path: path.into(),
            end: HEADER_LEN as u64,
        })
    }

    /// Opens the log of an epoch and reads its tags.
    pub(super) fn open(path: &Path, epoch: Epoch) -> Result<(Self, Vec<ReplayTag>), TagLogError> {
        let io_error = |source| TagLogError::io(path, "read", source);
        let mut file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error)?;
        let len = file.metadata().map_err(io_error)?.len();
        if len > MAX_FILE_LEN {
            return Err(TagLogError::corrupt(path, "it is too long"));
        }
        let mut bytes = Vec::new();
        (&mut file)
            .take(MAX_FILE_LEN)
            .read_to_end(&mut bytes)
            .map_err(io_error)?;
        let Some((head, tags)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(TagLogError::corrupt(path, "it has no header"));
        };
        if head != &header(epoch) {
            return Err(TagLogError::corrupt(
                path,
                "it is not the log of its epoch, or of another version",
            ));
        }
        let (whole, _cut_short) = tags.as_chunks::<TAG_LEN>();
        let tags: Vec<ReplayTag> = whole.iter().copied().map(ReplayTag::from_bytes).collect();
        let end = (HEADER_LEN + tags.len() * TAG_LEN) as u64;
        file.set_len(end).map_err(io_error)?;
        file.seek(SeekFrom::Start(end)).map_err(io_error)?;
        Ok((
            Self {
                file,
                path: path.into(),
                end,
            },
            tags,
        ))
    }

    /// Writes tags and returns when they are on the disk. After an error none of them is.
    pub(super) fn append(&mut self, tags: &[ReplayTag]) -> Result<(), TagLogError> {
        let bytes: Vec<u8> = tags.iter().flat_map(|tag| tag.to_bytes()).collect();
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a tag would shift all that follow.
            let reset = self
                .file
                .set_len(self.end)
                .and_then(|()| self.file.seek(SeekFrom::Start(self.end)));
            let source = reset.err().unwrap_or(source);
            return Err(TagLogError::io(&self.path, "write", source));
        }
        self.end += bytes.len() as u64;
        Ok(())
    }
}

fn header(epoch: Epoch) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[..16].copy_from_slice(MAGIC);
    header[16..20].copy_from_slice(&VERSION.to_be_bytes());
    header[20..].copy_from_slice(&epoch.0.to_be_bytes());
    header
}

/// Why replay tags could not be written or read. Packets whose tags are not on disk are not passed on.
#[derive(Debug, thiserror::Error)]
pub enum TagLogError {
    /// The file system said no.
    #[error("cannot {doing} replay tags {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `create`, `read` or `write`.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what this node wrote.
    #[error("replay tags {} cannot be used: {reason}; remove the file together with the key of its epoch", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl TagLogError {
    fn io(path: &Path, doing: &'static str, source: io::Error) -> Self {
        Self::Io {
            path: path.into(),
            doing,
            source,
        }
    }

    fn corrupt(path: &Path, reason: &'static str) -> Self {
        Self::Corrupt {
            path: path.into(),
            reason,
        }
    }
}

#[cfg(test)]
impl TagLog {
    /// A log on a disk without room.
    pub(super) fn on_a_full_disk() -> Self {
        let path = PathBuf::from("/dev/full");
        let file = File::options()
            .write(true)
            .open(&path)
            .expect("Linux has it");
        Self { file, path, end: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_and_names_the_file() {
        let mut log = TagLog::on_a_full_disk();
        let error = log.append(&[tag(1)]).expect_err("the disk is full");
        assert_eq!(error.to_string(), "cannot write replay tags /dev/full");
    }

    fn tag(n: u8) -> ReplayTag {
        ReplayTag::from_bytes([n; TAG_LEN])
    }

    #[test]
    fn tags_come_back_and_a_tail_cut_short_does_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("7.tags");
        let mut log = TagLog::create(&path, Epoch(7)).expect("created");
        log.append(&[tag(1), tag(2)]).expect("written");
        log.append(&[tag(3)]).expect("written");
        drop(log);
        let mut torn = File::options().append(true).open(&path).expect("there");
        torn.write_all(&[9; 5]).expect("written");

        let (mut log, tags) = TagLog::open(&path, Epoch(7)).expect("sound");
        assert_eq!(tags, [tag(1), tag(2), tag(3)]);
        log.append(&[tag(4)]).expect("written");
        let (_, tags) = TagLog::open(&path, Epoch(7)).expect("sound");
        assert_eq!(tags, [tag(1), tag(2), tag(3), tag(4)]);
    }

    #[test]
    fn the_log_of_another_epoch_and_other_files_are_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("7.tags");
        TagLog::create(&path, Epoch(7)).expect("created");
        assert!(matches!(
            TagLog::open(&path, Epoch(8)),
            Err(TagLogError::Corrupt { .. })
        ));
        std::fs::write(&path, b"short").expect("written");
        assert!(matches!(
            TagLog::open(&path, Epoch(7)),
            Err(TagLogError::Corrupt { .. })
        ));
    }
}
