//! The demo is what somebody who has just cloned the project runs: it must hold, and leave nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use souk_tests::{Process, agent, eventually, needs, souk};

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
    needs!(Leases);
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
    // `cargo xtask bench` judges the last.
    for part in ["rent", "total"] {
        assert!(object["timings_ms"][part].is_u64(), "{object}");
    }
    // Of one entry the proof would be empty.
    assert!(
        object["proof_hashes"]
            .as_u64()
            .is_some_and(|hashes| hashes > 0),
        "{object}"
    );
    let search = &object["search"];
    assert_eq!(search["found"], Value::Array(Vec::new()), "{object}");
    for some in ["needles", "files", "bytes", "found_own"] {
        assert!(search[some].as_u64().is_some_and(|n| n > 0), "{object}");
    }
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_step_that_fails_is_told_to_scripts_and_by_the_exit_status() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let missing = temporary.path().join("no-agent");
    let mut demo = demo(temporary.path());
    let output = demo.env("SOUK_AGENT_BIN", &missing).output();
    let output = output.expect("souk starts");
    assert_eq!(output.status.code(), Some(69), "EX_UNAVAILABLE");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("cargo xtask build"), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    assert_eq!(object["step"], "machine", "{object}");
    assert_eq!(object["lease"], Value::Null, "{object}");
    let failures = object["failures"].to_string();
    assert!(failures.contains("no-agent"), "{object}");
    assert_eq!(entries(temporary.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_demo_that_is_kept_says_where_and_goes_on() {
    needs!(Leases);
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let said = tempfile::tempdir().expect("a folder");
    let mut command = demo(temporary.path());
    command.arg("--keep");
    let mut demo = Process::start("demo", command, said.path());
    let output = demo.output().to_owned();
    let object: Value = demo.until("it tells scripts", || {
        let said = fs::read_to_string(&output).ok()?;
        said.lines()
            .find_map(|line| serde_json::from_str(line).ok())
    });
    assert_eq!(object["failures"], Value::Array(Vec::new()), "{object}");
    let folder = Path::new(object["folder"].as_str().expect("where it is"));
    assert!(folder.join("mix-1/ready").exists(), "{object}");
    let mut market = Command::new(souk());
    market
        .args(["market", "--json"])
        .env("SOUK_HOME", folder.join("requester"));
    let market = market.output().expect("souk starts");
    let rows: Value = serde_json::from_slice(&market.stdout).expect("rows");
    assert_eq!(rows.as_array().map(Vec::len), Some(1), "{rows}");
    demo.kill();
    eventually("all nodes have stopped", || {
        let is_ready = |name: &str| folder.join(name).join("ready").exists();
        let nodes = ["mix-1", "mix-2", "mix-3", "provider"];
        (!nodes.into_iter().any(is_ready)).then_some(())
    });
}

#[test]
fn nodes_of_a_demo_that_is_killed_stop_by_themselves() {
    needs!(Leases);
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
