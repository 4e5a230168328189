//! Archives: one that imports is verified on the disk, one that does not leaves nothing, and neither writes outside.
#![no_main]

use std::{fs, path::Path, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use souk_image::{Limits, Store};

static DATA: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

fuzz_target!(|bytes: &[u8]| {
    let data = DATA.path();
    let limits = Limits {
        max_entries: 64,
        max_content_bytes: 1 << 20,
    };
    let store = Store::open(data).expect("a store").with_limits(limits);
    let archive = data.join("archive");
    fs::write(&archive, bytes).expect("writable");
    if let Ok(image) = store.import_tar(&archive) {
        store
            .verify(image)
            .expect("the disk holds what the manifest says");
        store.remove(image).expect("it is there");
    }
    assert_eq!(names(data), ["archive", "images"]);
    assert_eq!(names(&data.join("images")), [".lock"]);
});

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("readable");
    let mut names: Vec<_> = entries
        .map(|e| {
            e.expect("readable")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort_unstable();
    names
}
