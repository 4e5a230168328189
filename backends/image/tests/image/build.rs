//! An image built from this machine runs, is the same each time, and holds nothing of the host.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::archives::{leftovers, paths, store};
use souk_image::{BuildError, BuildOptions, Kind};

#[test]
fn two_builds_of_the_same_machine_have_the_same_hash() {
    let (_data, one) = store();
    let (_data, other) = store();
    let options = BuildOptions::default();
    let image = one.build(&options).expect("builds");
    assert_eq!(other.build(&options).expect("builds"), image);
    one.verify(image).expect("as written");
}

#[test]
fn nothing_of_the_hosts_users_keys_or_configuration_enters_an_image() {
    let (_data, store) = store();
    let image = store.build(&BuildOptions::default()).expect("builds");
    let rootfs = store.path(image).expect("there");
    let manifest = store.manifest(image).expect("there");

    let of_etc: BTreeSet<_> = paths(&store, image)
        .into_iter()
        .filter(|p| p.starts_with("/etc/"))
        .collect();
    let made_up = [
        "/etc/group",
        "/etc/hosts",
        "/etc/mtab",
        "/etc/nsswitch.conf",
        "/etc/os-release",
        "/etc/passwd",
        "/etc/profile",
        "/etc/shells",
    ];
    assert_eq!(of_etc, made_up.map(String::from).into());
    let passwd = fs::read_to_string(rootfs.join("etc/passwd")).expect("readable");
    let users: Vec<_> = passwd.lines().filter_map(|l| l.split(':').next()).collect();
    assert_eq!(users, ["root", "souk", "nobody"]);

    for entry in manifest.entries() {
        let path = entry.path.as_path();
        match entry.kind {
            // Whatever is not made up comes from the system's own directories.
            Kind::File { mode, .. } => {
                assert!(
                    path.starts_with("usr") || path.starts_with("etc"),
                    "{}",
                    entry.path
                );
                assert!(!path.starts_with("usr/local"), "{}", entry.path);
                assert!(mode & 0o6000 == 0, "{}", entry.path);
                if path.starts_with("usr") && !path.starts_with("usr/share") {
                    let host = [
                        Path::new("/").join(path),
                        Path::new("/").join(path.strip_prefix("usr").expect("starts so")),
                    ];
                    let same =
                        |host: &Path| fs::read(host).ok() == fs::read(rootfs.join(path)).ok();
                    assert!(
                        host.iter().any(|h| same(h)),
                        "{} is no file of the system",
                        entry.path
                    );
                }
            }
            Kind::Symlink { ref target } => {
                let target = String::from_utf8_lossy(target);
                let inside = target.starts_with("/usr/")
                    || target.starts_with("usr/")
                    || target == "../proc/self/mounts";
                assert!(inside, "{} -> {target}", entry.path);
            }
            Kind::Dir { .. } => {}
        }
    }
    for empty in [
        "dev",
        "home/souk",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "var/tmp",
    ] {
        let inside = fs::read_dir(rootfs.join(empty))
            .expect("a directory")
            .count();
        assert_eq!(inside, 0, "/{empty} is not empty");
    }
}

#[test]
fn every_link_leads_to_a_file_and_every_program_finds_its_libraries() {
    let (_data, store) = store();
    let image = store.build(&BuildOptions::default()).expect("builds");
    let rootfs = store.path(image).expect("there");
    for name in ["sh", "ls", "cat", "sha256sum", "uname", "id", "nproc"] {
        let program = resolve(&rootfs, Path::new("usr/bin").join(name).as_path());
        assert!(
            rootfs.join(&program).is_file(),
            "{name} leads to {}",
            program.display()
        );
    }
    for entry in store.manifest(image).expect("there").entries() {
        if let Kind::Symlink { .. } = entry.kind
            && entry.path.as_path() != Path::new("etc/mtab")
        {
            let target = rootfs.join(resolve(&rootfs, entry.path.as_path()));
            assert!(target.exists(), "{} leads nowhere", entry.path);
        }
    }
}

#[test]
fn needs_userns_every_program_finds_all_its_libraries_inside_of_the_image() {
    let (_data, store) = store();
    let image = store.build(&BuildOptions::default()).expect("builds");
    let inside = |script: &str| in_chroot(&store.path(image).expect("there"), script);
    let hello = inside("uname && id -un");
    if no_userns(&hello) {
        eprintln!("skipped: needs user namespaces");
        return;
    }
    assert_eq!(
        String::from_utf8_lossy(&hello.stdout),
        "Linux\nroot\n",
        "{hello:?}"
    );
    // The loader lists what it would map, and says "not found" of what it cannot.
    let traced = inside("for p in /usr/bin/* /usr/sbin/*; do LD_TRACE_LOADED_OBJECTS=1 $p; done");
    let text = String::from_utf8_lossy(&traced.stdout);
    assert!(
        text.contains("libc.so.6") || text.contains("libc.musl"),
        "{text}"
    );
    assert!(!text.contains("not found"), "{text}");
}

#[test]
fn needs_userns_python_runs_with_its_standard_library() {
    let (_data, store) = store();
    let options = BuildOptions {
        python: true,
        ..BuildOptions::default()
    };
    let image = match store.build(&options) {
        Err(BuildError::Program { .. }) => {
            eprintln!("skipped: needs python3");
            return;
        }
        built => built.expect("builds"),
    };
    let rootfs = store.path(image).expect("there");
    let script = "import hashlib, json, socket, zlib; print(json.dumps(hashlib.sha256(b'').hexdigest()[:8]))";
    let ran = in_chroot(&rootfs, &format!("python3 -c \"{script}\""));
    if no_userns(&ran) || !rootfs.join("usr/bin/python3").is_symlink() {
        eprintln!("skipped: needs user namespaces and python3");
        return;
    }
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "\"e3b0c442\"\n",
        "{ran:?}"
    );
}

#[test]
fn programs_that_are_asked_for_and_missing_or_not_plain_names_are_refused() {
    let (data, store) = store();
    for asked in [
        "no-such-program",
        "../../etc/passwd",
        "/etc/passwd",
        "",
        "..",
    ] {
        let options = BuildOptions {
            programs: vec!["sh".to_owned(), asked.to_owned()],
            python: false,
        };
        match store.build(&options) {
            Err(BuildError::Program { name }) => assert_eq!(name, asked),
            other => panic!("{asked:?}: {other:?}"),
        }
    }
    assert!(
        leftovers(data.path()).is_empty(),
        "{:?}",
        leftovers(data.path())
    );
}

fn in_chroot(rootfs: &Path, script: &str) -> Output {
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--user", "--map-root-user", "chroot"])
        .arg(rootfs);
    unshare
        .args(["/bin/sh", "-c", script])
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
    unshare.output().expect("unshare is part of util-linux")
}

fn no_userns(ran: &Output) -> bool {
    !ran.status.success() && String::from_utf8_lossy(&ran.stderr).starts_with("unshare:")
}

/// Follows a link of the image inside of the image.
fn resolve(rootfs: &Path, path: &Path) -> std::path::PathBuf {
    match fs::read_link(rootfs.join(path)) {
        Ok(target) if target.is_absolute() => {
            resolve(rootfs, target.strip_prefix("/").expect("absolute"))
        }
        Ok(target) => resolve(rootfs, &path.parent().expect("not the root").join(target)),
        Err(_) => path.to_path_buf(),
    }
}
