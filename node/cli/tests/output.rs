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
fn a_configuration_is_told_in_few_words_what_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let check = |content: &[u8]| {
        let file = folder.path().join("souk.toml");
        std::fs::write(&file, content).expect("written");
        let file = file.to_str().expect("text");
        let output = souk(&["config", "check", file])
            .output()
            .expect("souk starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = check("root:x:0:0:root:/root:/bin/bash\n".repeat(90).as_bytes());
    assert_eq!(code, Some(78), "EX_CONFIG: {said}");
    assert!(
        said.lines().count() < 15 && said.contains("another file"),
        "{said}"
    );
    let (code, said) = check(b"[node]\noperator = \"\xe9\"\n");
    assert_eq!(code, Some(78), "{said}");
    assert!(
        said.contains("souk.toml:2:") && said.contains("UTF-8"),
        "{said}"
    );
    let (code, said) = check(b"[node]\nlisten = [\"/ip4/10.0.0.1/tcp/4551\"]\n");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.starts_with("warning: "), "{said}");
}

#[test]
fn a_network_that_was_not_reached_is_not_remembered() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name).display().to_string();
    // Nobody is named whom to ask, so that it fails at once.
    std::fs::write(file("souk.toml"), "").expect("written");
    let market = [
        "market",
        "--config",
        &file("souk.toml"),
        "--home",
        &file("home"),
    ];
    let output = souk(&market).output().expect("souk starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("node.bootstrap"), "{said}");
    assert!(!folder.path().join("home/souk.toml").exists());
}

#[test]
fn an_image_that_is_not_there_is_not_called_damaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = folder.path().join("souk.toml").display().to_string();
    std::fs::write(&config, "").expect("written");
    let image = |args: &[&str]| {
        let output = souk(&[&["image"], args, &["--config", &config]].concat()).output();
        let output = output.expect("souk starts");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (code, said) = image(&["verify", &"0".repeat(64)]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("not in the store") && !said.contains("its name says"),
        "{said}"
    );
    let (code, said) = image(&["list"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("souk image build"), "{said}");
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
