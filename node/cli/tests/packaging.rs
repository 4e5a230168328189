//! What the Debian package does to a machine beyond its files.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output},
};

/// Runs the script that follows a removal, on the file system below a folder.
fn postrm(root: &Path, what: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/debian/postrm");
    let mut sh = Command::new("sh");
    sh.arg(script).arg(what).env("DPKG_ROOT", root);
    sh.output().expect("there is a shell")
}

#[test]
fn a_purge_leaves_the_data_alone_while_a_lease_runs() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let data = root.path().join("var/lib/souk");
    let leases = ["00", "01"].map(|byte| data.join("leases").join(byte.repeat(16)));
    for lease in &leases {
        fs::create_dir_all(lease).expect("made");
    }
    let ended = File::create(leases[0].join("lock")).expect("made");
    let runs = File::create(leases[1].join("lock")).expect("made");
    // As the keeper of a lease holds it.
    runs.lock().expect("free");

    let refused = postrm(root.path(), "purge");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && data.exists(), "{said}");
    let lease = "01".repeat(16);
    assert!(
        said.contains(&lease) && said.contains("dpkg --purge souk"),
        "{said}"
    );

    drop((ended, runs));
    assert!(postrm(root.path(), "remove").status.success());
    assert!(data.exists(), "a removal keeps it");
    assert!(postrm(root.path(), "purge").status.success());
    assert!(!data.exists());
    assert!(
        postrm(root.path(), "purge").status.success(),
        "nothing is left"
    );
}
