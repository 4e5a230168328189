//! Archives into a staged image: plain tar or tar in gzip, read once from front to back.
//!
//! Threat: the archive is a stranger's. Sizes in it are promises only: the reader meters every byte between entries, so
//! that neither a long-name header nor a skipped entry can fill memory or run for ever.

use std::{
    cell::Cell,
    collections::HashSet,
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    os::unix::ffi::OsStrExt as _,
    path::Path,
    rc::Rc,
};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entry, EntryType};

use crate::{
    error::{ImportError, StageError},
    path::ImagePath,
    staging::Staging,
};

/// Most bytes that the archive may spend on headers of one entry: a pax or GNU header with a path of the greatest length
/// and extended attributes that are read and dropped.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Marks of deleted files in a layer of an OCI image (image-spec, layer.md).
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// How the names of an archive are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// A whole root file system.
    Rootfs,
    /// A layer on top of what is staged; names with `.wh.` delete.
    Layer,
}

/// Stages a tar file, gzipped or not.
pub(crate) fn stage_file(staging: &mut Staging, path: &Path) -> Result<(), ImportError> {
    let read_error = |source| ImportError::Read {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read_error)?;
    let mut magic = [0; 2];
    let gzipped = match file.read_exact(&mut magic) {
        Ok(()) => magic == GZIP_MAGIC,
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(e) => return Err(read_error(e)),
    };
    file.seek(SeekFrom::Start(0)).map_err(read_error)?;
    if gzipped {
        stage_gzip(staging, BufReader::new(file), Form::Rootfs, path)
    } else {
        stage(staging, BufReader::new(file), Form::Rootfs, path)
    }
}

/// Stages a gzipped tar.
pub(crate) fn stage_gzip(
    staging: &mut Staging,
    reader: impl io::BufRead,
    form: Form,
    from: &Path,
) -> Result<(), ImportError> {
    stage(staging, MultiGzDecoder::new(reader), form, from)
}

/// Stages a tar. `from` is named in errors.
pub(crate) fn stage(
    staging: &mut Staging,
    reader: impl Read,
    form: Form,
    from: &Path,
) -> Result<(), ImportError> {
    let read_error = |source| ImportError::Read {
        path: from.into(),
        source,
    };
    let budget = Rc::new(Cell::new(MAX_HEADER_BYTES));
    let mut archive = Archive::new(Metered {
        inner: reader,
        budget: Rc::clone(&budget),
    });
    let mut written = HashSet::new();
    let mut entries = archive.entries().map_err(read_error)?;
    let mut seen_any = false;
    loop {
        budget.set(MAX_HEADER_BYTES);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(read_error)?;
        seen_any = true;
        // A sparse file may be larger than its bytes in the archive; the staging counts what comes out.
        budget.set(
            staging
                .content_bytes_left()
                .saturating_add(MAX_HEADER_BYTES),
        );
        match form {
            Form::Layer => stage_layer_entry(staging, &mut entry, &mut written)?,
            Form::Rootfs => stage_entry(staging, &mut entry)?,
        }
        io::copy(&mut entry, &mut io::sink()).map_err(read_error)?;
    }
    if seen_any || form == Form::Layer {
        Ok(())
    } else {
        Err(read_error(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a tar archive, or an empty one",
        )))
    }
}

fn stage_layer_entry<R: Read>(
    staging: &mut Staging,
    entry: &mut Entry<'_, R>,
    written: &mut HashSet<ImagePath>,
) -> Result<(), StageError> {
    let path = ImagePath::new(entry.path_bytes())?;
    let Some((parent, name)) = path.split() else {
        return Ok(());
    };
    let name = name.as_bytes();
    if name == OPAQUE {
        // Only what lower layers left is hidden, whatever the order of names in this layer.
        for child in staging.names(&parent)? {
            let child = parent.join(&child)?;
            if !written.contains(&child) {
                staging.remove(&child)?;
            }
        }
        return Ok(());
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        let hidden = parent.join(OsStr::from_bytes(hidden))?;
        if !written.contains(&hidden) {
            staging.remove(&hidden)?;
        }
        return Ok(());
    }
    stage_entry(staging, entry)?;
    written.extend(path.ancestors());
    written.insert(path);
    Ok(())
}

fn stage_entry<R: Read>(staging: &mut Staging, entry: &mut Entry<'_, R>) -> Result<(), StageError> {
    let path = ImagePath::new(entry.path_bytes())?;
    let mode = entry.header().mode().unwrap_or(0o644);
    let kind = entry.header().entry_type();
    match kind {
        EntryType::Directory => staging.dir(&path, mode),
        // An old archive writes a directory as a file whose name ends in a slash.
        EntryType::Regular if entry.path_bytes().ends_with(b"/") => staging.dir(&path, mode),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            staging.file(&path, mode, entry)
        }
        EntryType::Symlink => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            staging.symlink(&path, &target)
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            staging.hard_link(&path, &target)
        }
        // Devices, pipes and what this version of tar does not know are dropped.
        _ => Ok(()),
    }
}

/// Fails once more than the budget was read.
struct Metered<R> {
    inner: R,
    budget: Rc<Cell<u64>>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let allowed = usize::try_from(self.budget.get())
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if allowed == 0 && !buf.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "a header or an entry is larger than an image may be",
            ));
        }
        let n = self.inner.read(&mut buf[..allowed])?;
        self.budget.set(self.budget.get() - n as u64);
        Ok(n)
    }
}
