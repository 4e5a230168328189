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
fn a_damaged_image_harms_no_other_and_is_removed_and_imported_again() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(name);
    let config = file("souk.toml").display().to_string();
    std::fs::write(&config, "").expect("written");
    let image = |args: &[&str]| {
        let output = souk(&[&["image"], args, &["--config", &config]].concat()).output();
        let output = output.expect("souk starts");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success(), said)
    };
    let import = |content: &str| {
        let mut header = tar::Header::new_ustar();
        header.set_path("a").expect("short");
        header.set_mode(0o644);
        header.set_size(1);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive
            .append(&header, content.as_bytes())
            .expect("in memory");
        let archive = archive.into_inner().expect("in memory");
        std::fs::write(file("rootfs.tar"), archive).expect("written");
        image(&["import", &file("rootfs.tar").display().to_string()])
    };
    let imported = |content: &str| {
        let (is_done, said) = import(content);
        assert!(is_done, "{said}");
        said.split(' ').next().expect("its name").to_owned()
    };
    // The damaged one is the first that is looked at.
    let mut both = ["1", "2"].map(|content| (imported(content), content));
    both.sort();
    let [(bad, content), (good, _)] = both;
    let at = file("data/images").join(&bad);
    let told = format!("souk image remove {bad}");

    std::fs::write(at.join("rootfs/a"), "3").expect("written");
    let (is_done, said) = import(content);
    assert!(!is_done && said.contains(&told), "{said}");
    std::fs::write(at.join("manifest"), "").expect("written");
    let (is_done, said) = image(&["verify"]);
    assert!(!is_done && said.contains(&told), "{said}");
    assert!(said.contains(&format!("{good} is intact")), "{said}");
    let (is_done, said) = image(&["list"]);
    assert!(is_done && said.contains(&good), "{said}");
    let warning = format!("warning: image {bad} is damaged");
    assert!(said.contains(&warning), "{said}");

    // As the driver keeps one of each lease.
    let lease = file("data/leases").join("0".repeat(32));
    std::fs::create_dir_all(&lease).expect("made");
    let (is_done, said) = image(&["remove", &bad]);
    assert!(!is_done && said.contains("1 lease of"), "{said}");
    std::fs::remove_dir(&lease).expect("there");
    let (is_done, said) = image(&["remove", "--json", &bad, &bad]);
    let removed = format!("[\"{bad}\"]\n");
    assert!(is_done && said.starts_with(&removed), "{said}");
    assert_eq!(imported(content), bad);
    let (is_done, said) = image(&["verify"]);
    assert!(is_done, "{said}");

    std::fs::create_dir(&lease).expect("made");
    let (is_done, said) = image(&["remove", "--force", &good]);
    assert!(is_done, "{said}");
    let (is_done, said) = image(&["remove", "--force", &bad, &good]);
    assert!(!is_done && said.contains("not in the store"), "{said}");
    let (is_done, said) = image(&["verify", &bad]);
    assert!(is_done, "it is removed with one that is not there: {said}");
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

#[test]
fn whoever_may_watch_a_node_needs_its_socket_and_no_configuration() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("monitor.sock").display().to_string();
    for command in [
        &["status"][..],
        &["node", "metrics"],
        &["node", "leases"],
        &["leases", "--orphans"],
    ] {
        let args = [command, &["--socket", &socket]].concat();
        let output = souk(&args).current_dir(&folder).output();
        let output = output.expect("souk starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(69), "{args:?}: {said}");
        let told = format!("no node is running at {socket}");
        assert!(said.contains(&told), "{args:?}: {said}");
    }
}

#[test]
fn the_program_tells_its_version_and_the_commit_where_the_build_was_told() {
    let output = souk(&["version", "--json"]).output().expect("souk starts");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(said["souk"], version);
    assert!(said.get("revision").is_some(), "{said}");
    let told = match said["revision"].as_str() {
        Some(revision) => format!("souk {version}+{revision}, "),
        None => format!("souk {version}, "),
    };
    let output = souk(&["version"]).output().expect("souk starts");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.starts_with(&told), "{shown}");
}
