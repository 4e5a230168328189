//! The demo is what somebody who has just cloned the project runs: it must hold, and leave nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use souk_tests::{agent, eventually, souk};

fn demo(temporary: &Path) -> Command {
    let mut command = Command::new(souk());
    command
        .args(["demo", "--json"])
        .env("SOUK_AGENT_BIN", agent())
        .env("TMPDIR", temporary)
        .stdin(Stdio::null());
    command
}

/// What lies in a folder.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("can be listed");
    entries
        .map(|entry| entry.expect("can be read").path())
        .collect()
}

#[test]
fn the_demo_holds_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let output = demo(temporary.path()).output().expect("souk starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["ssh_exit_code"], 0, "{object}");
    assert_eq!(object["proof_verified"], true, "{object}");
    assert_eq!(object["failures"], Value::Array(Vec::new()), "{object}");
    assert_eq!(object["lease"].as_str().map(str::len), Some(32), "{object}");
    assert!(
        object["receipt_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{object}"
    );
    assert!(
        object["usage"]["cpu_core_ms"]
            .as_u64()
            .is_some_and(|cpu| cpu > 0),
        "{object}"
    );
    assert!(
        object["checkpoint"]
            .as_str()
            .is_some_and(|note| note.contains("souk/usage-log")),
        "{object}"
    );
    assert!(object["timings_ms"]["rent"].is_u64(), "{object}");
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn nodes_of_a_demo_that_is_killed_stop_by_themselves() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let mut demo = demo(temporary.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("souk starts");
    let ready = || {
        entries(temporary.path())
            .pop()
            .map(|folder| folder.join("mix-1/ready"))
    };
    eventually("the first mix is ready", || {
        ready().filter(|file| file.exists())
    });
    demo.kill().expect("it runs");
    demo.wait().expect("it is ours");
    eventually("the first mix has stopped", || {
        ready().filter(|file| !file.exists())
    });
}
