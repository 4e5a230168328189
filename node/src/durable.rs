//! Files that are there whole or not at all.
//!
//! Threat: a crash or a full disk in the middle of writing.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

/// Writes a file of mode 0600 in one step, replacing what was there; it is on the disk on return.
///
/// # Errors
/// What the system says; the old file or the new one is there then, whole.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, half) = beside(path, "new")?;
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&half, path)?;
    sync_folder(folder)
}

/// The same with room of its own: a full disk does not hold up the next replacement by as many bytes. For that, what was
/// there stays beside it.
///
/// # Errors
/// What the system says; the old file or the new one is there then, whole.
pub(crate) fn replace_in_kept_room(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, spare) = beside(path, "spare")?;
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&spare)?;
        // Over what is there, which takes no new room.
        file.write_all(bytes)?;
        file.set_len(u64::try_from(bytes.len()).unwrap_or(u64::MAX))?;
        file.sync_all()
    };
    write()?;
    if path.try_exists()? {
        renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE)?;
    } else {
        fs::rename(&spare, path)?;
        write()?;
    }
    sync_folder(folder)
}

/// The folder of a file, and a hidden name in it.
fn beside<'a>(path: &'a Path, what: &str) -> io::Result<(&'a Path, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok((folder, folder.join(format!(".{}.{what}", name.display()))))
}

/// Puts the names in a folder on the disk.
///
/// # Errors
/// What the system says.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_in_kept_room_is_replaced_whole_by_shorter_and_longer_ones() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("card");
        for bytes in [&b"first"[..], b"the second", b"3", b"and the last"] {
            replace_in_kept_room(&path, bytes).expect("written");
            assert_eq!(fs::read(&path).expect("there"), bytes);
        }
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 2);
    }
}
