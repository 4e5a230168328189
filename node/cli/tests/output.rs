//! What the program leaves on stdout and stderr, and what it says of it with its exit status.

use std::{
    fs::File,
    process::{Command, Stdio},
};

fn souk(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_souk"));
    command.args(args).stdin(Stdio::null());
    command
}

#[test]
fn what_stdout_does_not_take_is_a_failure() {
    for args in [
        ["version", "--json"],
        ["config", "default"],
        ["grant", "--help"],
    ] {
        let full = File::options().write(true).open("/dev/full");
        let output = souk(&args).stdout(full.expect("there on Linux")).output();
        let output = output.expect("souk starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains("cannot write to stdout"), "{args:?}: {said}");
    }
}

#[test]
fn a_reader_that_went_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = souk(&["config", "default"]).stdout(writer).status();
    assert!(status.expect("souk starts").success());
}

#[test]
fn a_command_line_that_is_wrong_is_not_repeated_as_it_is() {
    for args in [
        ["image", "verify", "--\u{1b}[2J"],
        ["log", "verify", "\u{1b}[2J"],
        ["config", "check", "/\u{1b}[2J"],
    ] {
        let output = souk(&args).output().expect("souk starts");
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        let is_clean = |c: char| c == '\n' || !c.is_control();
        assert!(!said.is_empty() && said.chars().all(is_clean), "{said:?}");
    }
}
