//! Archives become images, and hostile archives leave nothing behind.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use crate::archives::{blob, entry, file, leftovers, paths, store, symlink, write_tar};
use flate2::{Compression, write::GzEncoder};
use souk_image::{ImportError, Kind, Limits, StageError, Store, StoreError, VerifyError};
use tar::EntryType;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("writing to a Vec");
    encoder.finish().expect("writing to a Vec")
}

/// Imports an archive that must be refused; nothing may be left, inside the store or beside it.
fn refused(archive: Vec<u8>) -> ImportError {
    let (data, store) = store();
    fs::write(data.path().join("outside"), "before").expect("writable");
    let error = store
        .import_tar(&write_tar(data.path(), archive))
        .expect_err("hostile");
    assert!(
        leftovers(data.path()).is_empty(),
        "left: {:?}",
        leftovers(data.path())
    );
    assert_eq!(
        fs::read(data.path().join("outside")).expect("still there"),
        b"before"
    );
    error
}

#[test]
fn a_plain_and_a_gzipped_archive_give_the_same_image() {
    let mut archive = Vec::new();
    entry(&mut archive, EntryType::Directory, "./usr/", "", 0o755, b"");
    entry(
        &mut archive,
        EntryType::Regular,
        "./usr/tool",
        "",
        0o755,
        b"#!/bin/sh\n",
    );
    symlink(&mut archive, "bin", "usr");
    file(&mut archive, "bin/through-a-link", b"x");
    let (data, store) = store();
    let plain = store
        .import_tar(&write_tar(data.path(), archive.clone()))
        .expect("imports");
    archive.extend_from_slice(&[0; 1024]);
    let gz = data.path().join("archive.tgz");
    fs::write(&gz, gzip(&archive)).expect("writable");
    assert_eq!(store.import_tar(&gz).expect("imports"), plain);

    assert_eq!(store.list().expect("lists"), [plain]);
    assert_eq!(
        paths(&store, plain),
        ["/bin", "/usr", "/usr/through-a-link", "/usr/tool"]
    );
    let rootfs = store.path(plain).expect("there");
    assert_eq!(
        fs::read(rootfs.join("usr/tool")).expect("readable"),
        b"#!/bin/sh\n"
    );
    store.verify(plain).expect("as written");
}

#[test]
fn owners_devices_and_setuid_do_not_enter_an_image() {
    let mut archive = Vec::new();
    entry(&mut archive, EntryType::Regular, "suid", "", 0o6755, b"x");
    entry(&mut archive, EntryType::Regular, "secret", "", 0o000, b"x");
    entry(&mut archive, EntryType::Directory, "closed", "", 0o000, b"");
    entry(&mut archive, EntryType::Char, "null", "", 0o666, b"");
    entry(&mut archive, EntryType::Block, "disk", "", 0o666, b"");
    entry(&mut archive, EntryType::Fifo, "pipe", "", 0o666, b"");
    file(&mut archive, "closed/inside", b"y");
    let (data, store) = store();
    let image = store
        .import_tar(&write_tar(data.path(), archive))
        .expect("imports");
    assert_eq!(
        paths(&store, image),
        ["/closed", "/closed/inside", "/secret", "/suid"]
    );
    let manifest = store.manifest(image).expect("there");
    for entry in manifest.entries() {
        match entry.kind {
            Kind::Dir { mode } => assert_eq!(mode, 0o700),
            Kind::File { mode, .. } => assert!(matches!(mode, 0o400 | 0o644 | 0o755), "{mode:o}"),
            Kind::Symlink { .. } => {}
        }
    }
    store
        .verify(image)
        .expect("an ordinary user can read all of it");
}

#[test]
fn names_that_leave_the_root_are_refused() {
    for name in ["../outside", "/outside", "usr/../../outside", "a/.."] {
        let mut archive = Vec::new();
        file(&mut archive, "first", b"x");
        file(&mut archive, name, b"after");
        let error = refused(archive);
        assert!(
            matches!(error, ImportError::Content(StageError::Path(_))),
            "{name}: {error:?}"
        );
    }
}

#[test]
fn a_link_is_never_a_way_out() {
    for target in ["..", "../..", "/tmp", "/"] {
        let mut archive = Vec::new();
        symlink(&mut archive, "door", target);
        file(&mut archive, "door/outside", b"after");
        let error = refused(archive);
        assert!(
            matches!(error, ImportError::Content(StageError::Escape { .. })),
            "{target}: {error:?}"
        );
    }
    // One link leads to another that leads out.
    let mut archive = Vec::new();
    entry(&mut archive, EntryType::Directory, "a", "", 0o755, b"");
    symlink(&mut archive, "a/up", "..");
    symlink(&mut archive, "door", "a/up/..");
    file(&mut archive, "door/outside", b"after");
    assert!(matches!(
        refused(archive),
        ImportError::Content(StageError::Escape { .. })
    ));
}

#[test]
fn a_file_over_a_link_replaces_the_link_and_not_its_target() {
    let mut archive = Vec::new();
    symlink(&mut archive, "name", "../../outside");
    file(&mut archive, "name", b"after");
    let (data, store) = store();
    fs::write(data.path().join("outside"), "before").expect("writable");
    let image = store
        .import_tar(&write_tar(data.path(), archive))
        .expect("imports");
    let rootfs = store.path(image).expect("there");
    assert_eq!(fs::read(rootfs.join("name")).expect("a file now"), b"after");
    assert_eq!(
        fs::read(data.path().join("outside")).expect("there"),
        b"before"
    );
}

#[test]
fn a_hard_link_names_a_file_of_the_archive_or_is_refused() {
    let mut archive = Vec::new();
    symlink(&mut archive, "link", "/etc/hostname");
    entry(&mut archive, EntryType::Directory, "dir", "", 0o755, b"");
    for target in [
        "missing",
        "../outside",
        "/etc/hostname",
        "link",
        "dir",
        "copy",
        "",
    ] {
        let mut archive = archive.clone();
        entry(&mut archive, EntryType::Link, "copy", target, 0o644, b"");
        let error = refused(archive);
        assert!(
            matches!(
                error,
                ImportError::Content(StageError::HardLink { .. } | StageError::Path(_))
            ),
            "{target}: {error:?}"
        );
    }
    let mut archive = Vec::new();
    file(&mut archive, "original", b"same");
    entry(
        &mut archive,
        EntryType::Link,
        "copy",
        "original",
        0o644,
        b"",
    );
    let (data, store) = store();
    let image = store
        .import_tar(&write_tar(data.path(), archive))
        .expect("imports");
    let rootfs = store.path(image).expect("there");
    assert_eq!(fs::read(rootfs.join("copy")).expect("linked"), b"same");
}

#[test]
fn bombs_end_at_the_limits() {
    let limits = Limits {
        max_entries: 8,
        max_content_bytes: 1 << 20,
    };
    let import = |archive: &[u8]| {
        let (data, store) = store();
        let path = data.path().join("bomb.tgz");
        fs::write(&path, gzip(archive)).expect("writable");
        let error = store
            .with_limits(limits)
            .import_tar(&path)
            .expect_err("too much");
        assert!(leftovers(data.path()).is_empty());
        error
    };

    let mut content = Vec::new();
    file(&mut content, "zeros", &vec![0; 2 << 20]);
    let error = import(&content);
    assert!(
        matches!(
            error,
            ImportError::Content(StageError::Limit {
                what: "bytes of content",
                ..
            })
        ),
        "{error:?}"
    );

    let mut names = Vec::new();
    for i in 0..9 {
        file(&mut names, &format!("f{i}"), b"");
    }
    let error = import(&names);
    assert!(
        matches!(
            error,
            ImportError::Content(StageError::Limit { what: "paths", .. })
        ),
        "{error:?}"
    );

    let mut links = Vec::new();
    file(&mut links, "big", &vec![0; 600 << 10]);
    entry(&mut links, EntryType::Link, "again", "big", 0o644, b"");
    let error = import(&links);
    assert!(
        matches!(error, ImportError::Content(StageError::Limit { .. })),
        "{error:?}"
    );

    // A path of 64 MiB, which a careless reader would keep in memory.
    let mut header = Vec::new();
    entry(
        &mut header,
        EntryType::GNULongName,
        "././@LongLink",
        "",
        0o644,
        &vec![b'a'; 64 << 20],
    );
    file(&mut header, "short", b"x");
    let error = import(&header);
    assert!(matches!(error, ImportError::Read { .. }), "{error:?}");
}

#[test]
fn damaged_archives_are_refused() {
    let mut archive = Vec::new();
    file(&mut archive, "file", &[1; 4096]);
    let (data, store) = store();
    let path = data.path().join("damaged");
    let cut_gzip = {
        let mut bytes = gzip(&archive);
        bytes.truncate(bytes.len() - 9);
        bytes
    };
    for bytes in [
        archive[..2048].to_vec(),
        cut_gzip,
        b"not an archive at all".repeat(100),
        Vec::new(),
    ] {
        fs::write(&path, bytes).expect("writable");
        let error = store.import_tar(&path).expect_err("damaged");
        assert!(
            matches!(
                error,
                ImportError::Read { .. } | ImportError::Content(StageError::Io { .. })
            ),
            "{error:?}"
        );
        assert!(leftovers(data.path()).is_empty());
    }
    let error = store
        .import_tar(Path::new("/nonexistent/archive"))
        .expect_err("missing");
    assert!(matches!(error, ImportError::Read { .. }));
}

fn layout(dir: &Path, layers: &[(&str, Vec<u8>)]) {
    let layers: Vec<_> = layers
        .iter()
        .map(|(kind, bytes)| blob(dir, kind, bytes))
        .collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "layers": layers }).to_string();
    let mut other = blob(dir, "application/vnd.oci.image.manifest.v1+json", b"{}");
    other["platform"] = serde_json::json!({ "architecture": "mips", "os": "linux" });
    let mine = blob(
        dir,
        "application/vnd.oci.image.manifest.v1+json",
        manifest.as_bytes(),
    );
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [other, mine] });
    fs::write(dir.join("index.json"), index.to_string()).expect("writable");
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

#[test]
fn layers_of_an_oci_layout_add_replace_and_hide() {
    let mut base = Vec::new();
    for name in [
        "etc/kept",
        "etc/hidden",
        "opt/a",
        "opt/b",
        "tree/deep/file",
        "was-file",
    ] {
        file(&mut base, name, b"base");
    }
    let mut top = Vec::new();
    file(&mut top, "etc/.wh.hidden", b"");
    file(&mut top, "opt/new", b"top");
    file(&mut top, "opt/.wh..wh..opq", b"");
    file(&mut top, ".wh.tree", b"");
    file(&mut top, ".wh.never-was", b"");
    file(&mut top, "was-file/now-dir", b"top");
    for archive in [&mut base, &mut top] {
        archive.extend_from_slice(&[0; 1024]);
    }
    let (data, store) = store();
    let dir = tempfile::tempdir().expect("a temporary directory");
    layout(dir.path(), &[(TAR, base), (TAR_GZIP, gzip(&top))]);
    let image = store.import_oci_layout(dir.path()).expect("imports");
    assert_eq!(
        paths(&store, image),
        [
            "/etc",
            "/etc/kept",
            "/opt",
            "/opt/new",
            "/was-file",
            "/was-file/now-dir"
        ]
    );
    assert_eq!(leftovers(data.path()), [image.to_string()]);
}

#[test]
fn a_layout_that_lies_is_refused() {
    let mut layer = Vec::new();
    file(&mut layer, "file", b"x");
    layer.extend_from_slice(&[0; 1024]);
    let (data, store) = store();
    let refused = |dir: &Path, expected: &str| {
        let error = store.import_oci_layout(dir).expect_err(expected);
        let text = format!("{error} {error:?}");
        assert!(text.contains(expected), "{text}");
        assert!(leftovers(data.path()).is_empty());
    };

    let dir = tempfile::tempdir().expect("a temporary directory");
    refused(dir.path(), "index.json");

    layout(dir.path(), &[(TAR, layer.clone())]);
    for blob in fs::read_dir(dir.path().join("blobs/sha256")).expect("there") {
        let path = blob.expect("readable").path();
        let mut bytes = fs::read(&path).expect("readable");
        if bytes.len() > 1024 {
            let end = bytes.len() - 1;
            bytes[end] ^= 1;
            fs::write(&path, bytes).expect("writable");
        }
    }
    refused(dir.path(), "has the content of");

    let dir = tempfile::tempdir().expect("a temporary directory");
    layout(
        dir.path(),
        &[("application/vnd.oci.image.layer.v1.tar+zstd", layer)],
    );
    refused(dir.path(), "only tar and tar in gzip");

    let dir = tempfile::tempdir().expect("a temporary directory");
    let index = r#"{"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd"}]}"#;
    fs::write(dir.path().join("index.json"), index).expect("writable");
    refused(dir.path(), "64 hex digits");
}

#[test]
fn verification_names_what_changed_on_the_disk() {
    let mut archive = Vec::new();
    file(&mut archive, "a", b"1");
    file(&mut archive, "b", b"2");
    let (data, store) = store();
    let image = store
        .import_tar(&write_tar(data.path(), archive))
        .expect("imports");
    let rootfs = store.path(image).expect("there");
    let differs = |expected: &str| match store.verify(image) {
        Err(VerifyError::Differs { path, .. }) => assert_eq!(path.to_string(), expected),
        other => panic!("expected a difference at {expected}, got {other:?}"),
    };
    fs::write(rootfs.join("b"), "3").expect("writable");
    differs("/b");
    fs::write(rootfs.join("b"), "2").expect("writable");
    store.verify(image).expect("as it was");
    fs::set_permissions(rootfs.join("a"), fs::Permissions::from_mode(0o755)).expect("ours");
    differs("/a");
    fs::set_permissions(rootfs.join("a"), fs::Permissions::from_mode(0o644)).expect("ours");
    fs::write(rootfs.join("c"), "").expect("writable");
    differs("/c");
    fs::remove_file(rootfs.join("c")).expect("ours");
    fs::remove_file(rootfs.join("a")).expect("ours");
    differs("/a");

    let manifest = rootfs.with_file_name("manifest");
    fs::write(&manifest, "souk image manifest v1\n").expect("writable");
    assert!(matches!(
        store.manifest(image),
        Err(StoreError::Damaged { .. })
    ));
}

#[test]
fn an_image_that_is_damaged_is_not_taken_for_the_one_that_is_imported_again() {
    let mut archive = Vec::new();
    file(&mut archive, "a", b"1");
    let (data, store) = store();
    let tar = write_tar(data.path(), archive);
    let import = || store.import_tar(&tar);
    let image = import().expect("imports");
    let rootfs = store.path(image).expect("there");
    let manifest = rootfs.with_file_name("manifest");
    let damages: [&dyn Fn(); 4] = [
        &|| fs::write(rootfs.join("a"), "2").expect("writable"),
        &|| fs::remove_dir_all(&rootfs).expect("ours"),
        &|| fs::write(&manifest, "souk image manifest v1\n").expect("writable"),
        &|| fs::remove_file(&manifest).expect("ours"),
    ];
    for (n, damage) in damages.iter().enumerate() {
        damage();
        match import() {
            Err(ImportError::Store(StoreError::Occupied {
                image: told,
                source,
            })) => {
                assert_eq!(told, image, "{n}");
                assert!(
                    !matches!(*source, VerifyError::Store(StoreError::Missing { .. })),
                    "{n}: {source}"
                );
            }
            other => panic!("{n}: {other:?}"),
        }
        assert_eq!(leftovers(data.path()), [image.to_string()], "{n}");
        store.remove(image).expect("there");
        assert_eq!(import().expect("imports"), image, "{n}");
        store.verify(image).expect("as written");
    }
}

#[test]
fn a_removed_image_is_gone_and_a_crash_is_swept_up() {
    let mut archive = Vec::new();
    file(&mut archive, "a", b"1");
    let (data, store) = store();
    let image = store
        .import_tar(&write_tar(data.path(), archive))
        .expect("imports");
    store.remove(image).expect("there");
    assert!(matches!(store.path(image), Err(StoreError::Missing { .. })));
    assert!(matches!(
        store.remove(image),
        Err(StoreError::Missing { .. })
    ));
    assert!(store.list().expect("lists").is_empty());

    fs::create_dir_all(data.path().join("images/.tmp-crashed/rootfs")).expect("writable");
    let _again = Store::open(data.path()).expect("opens");
    assert!(leftovers(data.path()).is_empty());
}
