//! Archives and layouts made by hand, hostile ones among them.

use std::{fs, path::Path};

use sha2::{Digest as _, Sha256};
use souk_image::Store;
use tar::{EntryType, Header};

/// One entry with exactly these bytes as its name, which the tar crate itself would refuse to write.
pub(crate) fn entry(
    archive: &mut Vec<u8>,
    kind: EntryType,
    name: &str,
    link: &str,
    mode: u32,
    content: &[u8],
) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

pub(crate) fn file(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    entry(archive, EntryType::Regular, name, "", 0o644, content);
}

pub(crate) fn symlink(archive: &mut Vec<u8>, name: &str, target: &str) {
    entry(archive, EntryType::Symlink, name, target, 0o777, b"");
}

/// The archive with its end marker, as a file.
pub(crate) fn write_tar(dir: &Path, mut archive: Vec<u8>) -> std::path::PathBuf {
    archive.extend_from_slice(&[0; 1024]);
    let path = dir.join("archive.tar");
    fs::write(&path, archive).expect("writable");
    path
}

/// Writes a blob and returns its descriptor.
pub(crate) fn blob(layout: &Path, media_type: &str, content: &[u8]) -> serde_json::Value {
    let dir = layout.join("blobs/sha256");
    fs::create_dir_all(&dir).expect("writable");
    let digest = hex::encode(Sha256::digest(content));
    fs::write(dir.join(&digest), content).expect("writable");
    serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len() })
}

/// Names in the store's directory, without its lock.
pub(crate) fn leftovers(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join("images")).expect("the store is there");
    let names = entries.map(|e| {
        e.expect("readable")
            .file_name()
            .into_string()
            .expect("plain names")
    });
    names.filter(|name| name != ".lock").collect()
}

/// A store in its own directory.
pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let data = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(data.path()).expect("a new store");
    (data, store)
}

/// Paths of an image, as text.
pub(crate) fn paths(store: &Store, image: souk_backend::ImageHash) -> Vec<String> {
    let manifest = store.manifest(image).expect("in the store");
    manifest
        .entries()
        .iter()
        .map(|e| e.path.to_string())
        .collect()
}
