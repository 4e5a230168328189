//! The requester's side over separate processes: a `souk rent` that is killed anywhere, vouchers, and proof of work.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;
use souk_tests::{Network, Plan, Requester, eventually, needs, souk, succeed};

/// The folder of the only lease that is not yet closed.
fn open_folder(requester: &Requester, closed: &[PathBuf]) -> Option<PathBuf> {
    let entries = fs::read_dir(requester.home().join("leases")).ok()?;
    let mut folders = entries.flatten().map(|entry| entry.path());
    folders.find(|path| {
        let name = path.file_name().unwrap_or_default();
        !name.as_encoded_bytes().starts_with(b".") && !closed.contains(path)
    })
}

fn row(requester: &Requester, name: &str) -> Value {
    let rows = requester.leases();
    let found = rows.iter().find(|row| row["name"] == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {rows:?}"))
        .clone()
}

#[test]
fn a_rent_that_is_killed_anywhere_resumes_to_one_lease_and_one_entry() {
    needs!(Leases, OpenSsh);
    let network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    let provider_has = |leases: u64| {
        let status = network.provider().status()?;
        (status["leases"] == leases).then_some(())
    };
    let mut closed: Vec<PathBuf> = Vec::new();
    let moments = [
        "the request is stored",
        "the provider has it",
        "the receipt is stored",
    ];
    for (round, moment) in moments.into_iter().enumerate() {
        let mut rent = requester.start_rent(&format!("rent{round}"));
        let folder = rent.until("the request is stored", || open_folder(&requester, &closed));
        match round {
            0 => {}
            1 => rent.until(moment, || provider_has(1)),
            // What follows the receipt takes a moment; what is left is made to be as after a crash before it.
            _ => rent.until(moment, || folder.join("receipt").exists().then_some(())),
        }
        rent.kill();
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if round == 2 {
            for file in ["relays", "known_hosts", "ssh_config"] {
                // It may not have come that far.
                let _ = fs::remove_file(folder.join(file));
            }
        }
        let told = row(&requester, &name);
        let has_receipt = folder.join("receipt").exists();
        let expected = if has_receipt { "active" } else { "requested" };
        assert_eq!(told["stage"], expected, "{moment}: {told}");
        if round == 2 {
            assert_eq!(told["ready"], false, "{told}");
        }

        let resumed = requester.json(&["rent", "--json", "--resume", &name]);
        let again = requester.json(&["rent", "--json", "--resume", &name]);
        assert_eq!(resumed["lease"], again["lease"], "{moment}");
        let told = row(&requester, &name);
        assert_eq!(
            (&told["stage"], &told["ready"]),
            (&"active".into(), &true.into())
        );
        assert_eq!(provider_has(1), Some(()), "{moment}: not one lease");
        assert_eq!(
            network.provider().keepers().len(),
            1,
            "{moment}: not one machine"
        );

        let config = resumed["ssh_config"].as_str().expect("a path");
        let alias = resumed["ssh_alias"].as_str().expect("an alias");
        let said = succeed(
            requester
                .openssh("ssh", config.as_ref())
                .args([alias, "echo up"]),
        );
        assert_eq!(said.stdout, b"up\n", "{moment}");

        let lease = resumed["lease"].as_str().expect("a lease");
        let ended = requester.json(&["end", "--json", lease]);
        assert_eq!(ended["proof_verified"], true, "{ended}");
        assert_eq!(row(&requester, &name)["stage"], "closed");
        if round == 0 {
            // As after a crash between the account and the agreement to it: the next end sends it.
            let acknowledged = folder.join("acknowledged");
            let _ = fs::remove_file(&acknowledged);
            eventually("the provider has the agreement", || {
                let again = requester.json(&["end", "--json", lease]);
                assert_eq!(again["usage"], ended["usage"], "{again}");
                acknowledged.exists().then_some(())
            });
        }
        let provider = network.provider().id();
        let log = requester.json(&["log", "verify", "--json", provider]);
        assert_eq!(log["size"], round + 1, "{moment}: {log}");
        closed.push(folder);
    }
    assert_eq!(requester.leases().len(), moments.len());
    eventually("nothing is left", || provider_has(0));
}

/// A command of `souk` that needs no network, and what it printed.
fn offline(args: &[&str]) -> String {
    let output = succeed(Command::new(souk()).args(args));
    String::from_utf8(output.stdout)
        .expect("a text")
        .trim()
        .to_owned()
}

#[test]
fn a_provider_that_serves_an_issuer_alone_leases_to_the_holder_of_its_grant_once() {
    needs!(Leases, OpenSsh);
    let keys = tempfile::tempdir().expect("a folder");
    let path = |name: &str| keys.path().join(name).to_string_lossy().into_owned();
    let issuer = offline(&["issuer", "key", "new", &path("issuer.key")]);
    let network = Network::start(&Plan {
        policy: format!("anonymous = false\nissuers = [{issuer:?}]"),
        ..Plan::default()
    });
    let requester = network.requester("requester", None);
    let nobody = requester
        .souk(&["rent", "--json"])
        .output()
        .expect("it runs");
    assert!(!nobody.status.success(), "nobody vouched");

    let holder = offline(&["grant", "holder", &path("lease.key")]);
    let issue = [
        "grant",
        "issue",
        "--key",
        &path("issuer.key"),
        "--holder",
        &holder,
    ];
    // `grant issue` has no folder of a requester: it is told the configuration alone.
    let grant = succeed(
        Command::new(souk())
            .args(issue)
            .arg("--config")
            .arg(requester.folder().join("souk.toml")),
    );
    fs::write(path("lease.grant"), grant.stdout).expect("written");
    let vouched = [
        "--grant",
        &path("lease.grant"),
        "--holder-key",
        &path("lease.key"),
    ];
    let lease = requester.rent(&vouched);
    assert!(requester.exec(&lease, "true").status.success());
    // A key that was vouched for is good for one lease.
    let again = requester
        .souk(&[&["rent", "--json"][..], &vouched].concat())
        .output();
    let again = again.expect("it runs");
    assert!(!again.status.success());
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(said.contains("used at this provider before"), "{said}");
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
}

#[test]
fn a_provider_that_asks_for_work_leases_to_whoever_does_it() {
    needs!(Leases, OpenSsh);
    let network = Network::start(&Plan {
        policy: "work_bits = 12".to_owned(),
        ..Plan::default()
    });
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    assert!(requester.exec(&lease, "true").status.success());
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
}
