//! Evidence of nodes over separate processes: made by the software TEE, carried in bulk, judged by the requester's policy.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;
use souk_tests::{Clock, Network, Plan, Requester, eventually, needs, skipped, souk, succeed};
use tempfile::TempDir;

/// How long the nodes use card and seal keys, in seconds.
const KEY_PERIOD_S: u64 = 30 * 86_400;

/// A test root and a policy that names it.
fn mint(folder: &Path) -> String {
    mint_at(folder, None)
}

fn mint_at(folder: &Path, clock: Option<&Clock>) -> String {
    let mut command = Command::new(souk());
    command.args(["attest", "mint"]).arg(folder);
    if let Some(clock) = clock {
        clock.set(&mut command);
    }
    succeed(&mut command);
    folder.join("policy.toml").display().to_string()
}

/// A network in which every node has evidence under the root in `minted`.
fn attested(minted: &Path, policy: &str) -> Network {
    attested_at(minted, policy, None)
}

fn attested_at(minted: &Path, policy: &str, clock: Option<Clock>) -> Network {
    let root = minted.join("root.key");
    let more = format!("[evidence]\nsource = \"test\"\ntest_root = {root:?}\npolicy = {policy:?}");
    Network::start(&Plan {
        mixes: 3,
        more,
        clock,
        ..Plan::default()
    })
}

/// What a card of a node with evidence holds, and no other: it names the policy of its maker beside the evidence only.
fn mark(policy: &str) -> Vec<u8> {
    let checked =
        succeed(Command::new(souk()).args(["attest", "policy", "check", "--json", policy]));
    let checked: Value = serde_json::from_slice(&checked.stdout).expect("one JSON object");
    hex::decode(checked["digest"].as_str().expect("a digest")).expect("hex")
}

/// Looks at the card that a provider has now and at all those before it.
fn all_name_evidence(data: &Path, mark: &[u8]) {
    let last = fs::read(data.join("card")).expect("the provider has a card");
    // Those before it, each behind its length.
    let replaced = fs::read(data.join("replaced-cards")).unwrap_or_default();
    let mut cards = vec![&last[..]];
    let mut rest = &replaced[..];
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::try_from(u32::from_be_bytes(*length)).expect("it fits");
        let (card, after) = after.split_at(length);
        cards.push(card);
        rest = after;
    }
    for card in cards {
        let names = card.windows(mark.len()).any(|part| part == mark);
        assert!(names, "a card of {} bytes names no evidence", card.len());
    }
}

/// The market as this requester sees it, once every card names evidence and it has come to all.
fn judged(requester: &Requester, policy: &str, verdict: &str) -> Value {
    eventually("the evidence of the provider is judged", || {
        let rows = requester.json(&["market", "--json", "--policy", policy]);
        let evidence = rows[0]["evidence"].clone();
        (evidence["claimed"] == "none+test" && evidence["reason"] != "evidence-missing")
            .then(|| assert_eq!(evidence["verdict"], verdict, "{evidence}"))?;
        Some(evidence)
    })
}

fn fails(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    said
}

#[test]
fn a_lease_under_a_policy_that_names_the_test_root_and_none_under_one_that_does_not() {
    needs!(Leases, OpenSsh);
    let folder = TempDir::new().expect("a folder");
    let (minted, other) = (folder.path().join("minted"), folder.path().join("other"));
    let (policy, foreign) = (mint(&minted), mint(&other));
    let network = attested(&minted, &policy);
    let requester = network.requester("requester", None);

    let accepted = judged(&requester, &policy, "accepted");
    assert_eq!(accepted["kind"], "none+test", "it is told by its name");
    let refused = judged(&requester, &foreign, "refused");
    assert_eq!(refused["reason"], "unknown-root");
    assert_eq!(
        refused["kind"],
        Value::Null,
        "what does not verify proves nothing"
    );
    let screen = succeed(&mut requester.souk(&["market", "--policy", &policy]));
    let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
    assert!(screen.contains("none+test, accepted"), "{screen}");

    let said = fails(&mut requester.souk(&["rent", "--json", "--policy", &foreign]));
    assert!(
        said.contains("1 without evidence that the policy accepts"),
        "{said}"
    );
    assert!(requester.leases().is_empty(), "nothing was rented");
    let other = network.requester("careless", None);
    let said = fails(&mut other.souk(&["rent", "--require-evidence"]));
    assert!(
        said.contains("no policy says which evidence is accepted"),
        "{said}"
    );

    let lease = requester.rent(&[
        "--require-evidence",
        "--policy",
        &policy,
        "--attested-mixes",
    ]);
    assert_eq!(lease.text("provider"), network.provider().id());
    assert_eq!(lease.text("evidence"), "none+test");
    let said = requester.exec(&lease, "echo up");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "up\n");
    let ended = requester.json(&["end", "--json", lease.lease()]);
    let digest = ended["usage"]["evidence"].as_str();
    assert_eq!(digest.map(str::len), Some(64), "{ended}");
}

#[test]
fn an_instance_that_the_policy_accepts_no_more_is_not_connected_to() {
    needs!(Leases, OpenSsh);
    let folder = TempDir::new().expect("a folder");
    let minted = folder.path().join("minted");
    let policy = mint(&minted);
    let network = attested(&minted, &policy);
    let requester = network.requester("requester", None);
    let _ = judged(&requester, &policy, "accepted");
    // The nodes have their own copy of it; the requester asks another file.
    let own = folder.path().join("own.toml");
    let text = fs::read_to_string(&policy).expect("minted");
    fs::write(&own, &text).expect("written");
    let policy = own.display().to_string();
    let lease = requester.rent(&["--require-evidence", "--policy", &policy]);
    let ssh = |way: &[&str]| {
        let mut command = requester.program(&souk());
        command.arg("ssh").args(way).arg("--home");
        command.arg(requester.home());
        command.args([lease.alias(), "--", "echo", "up"]);
        command
    };
    let openssh = || {
        let mut command = requester.openssh("ssh", &lease.ssh_config());
        command.args([lease.alias(), "echo up"]);
        command
    };
    for mut way in [ssh(&[]), ssh(&["--builtin"]), openssh()] {
        let said = succeed(&mut way);
        assert_eq!(String::from_utf8_lossy(&said.stdout), "up\n");
    }

    fs::write(&own, text.replace("mr_td = \"01", "mr_td = \"02")).expect("written");
    for mut way in [ssh(&[]), ssh(&["--builtin"]), openssh()] {
        let said = fails(&mut way);
        assert!(
            said.contains("the instance is not believed any more (measurement"),
            "{said}"
        );
    }
    fs::remove_file(&own).expect("removed");
    for mut way in [ssh(&[]), openssh()] {
        let said = fails(&mut way);
        assert!(said.contains(&format!("cannot read {policy}")), "{said}");
    }
    let _ = requester.json(&["end", "--json", lease.lease()]);
}

#[test]
fn a_provider_without_a_source_is_asked_for_no_evidence_of_instances() {
    needs!(Leases);
    let folder = TempDir::new().expect("a folder");
    let policy = mint(&folder.path().join("minted"));
    let network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    let said = fails(&mut requester.souk(&["rent", "--require-evidence", "--policy", &policy]));
    assert!(
        said.contains("1 without evidence that the policy accepts"),
        "{said}"
    );
    assert!(requester.leases().is_empty(), "nothing was rented");
}

#[test]
fn a_policy_that_is_gone_fails_only_what_asks_it() {
    needs!(Leases, OpenSsh);
    let folder = TempDir::new().expect("a folder");
    let minted = folder.path().join("minted");
    let policy = mint(&minted);
    let network = attested(&minted, &policy);
    let requester = network.requester("requester", None);
    let _ = judged(&requester, &policy, "accepted");
    let lease = requester.rent(&["--policy", &policy]);

    let own = requester.home().join("souk.toml");
    let config = fs::read_to_string(&own).expect("the folder remembers its network");
    let line = config.lines().find(|line| line.starts_with("policy = "));
    let config = config.replace(line.expect("a template"), &format!("policy = {policy:?}"));
    fs::write(&own, config).expect("written");
    fs::rename(&policy, minted.join("away")).expect("renamed");
    for command in [&["market"][..], &["rent"]] {
        let output = requester.souk(command).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(&format!("cannot read {policy}")), "{said}");
    }
    assert_eq!(requester.leases().len(), 1, "nothing was rented");
    let said = requester.exec(&lease, "echo up");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "up\n");
    let _ = requester.json(&["end", "--json", lease.lease()]);
}

#[test]
fn no_card_of_a_node_with_a_source_goes_out_without_evidence() {
    needs!(Leases);
    let folder = TempDir::new().expect("a folder");
    let minted = folder.path().join("minted");
    let policy = mint(&minted);
    let network = attested(&minted, &policy);
    let data = network.provider().folder().join("data");
    all_name_evidence(&data, &mark(&policy));
}

#[test]
fn keys_that_turn_while_a_provider_sells_cost_no_lease_and_no_evidence() {
    needs!(Leases, OpenSsh);
    let folder = TempDir::new().expect("a folder");
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    // A period ends in so many seconds for all of them: by then the network stands, also on a machine with other work, and before
    // patience ends.
    let left_s = 220;
    let starts = now + KEY_PERIOD_S - (now + left_s) % KEY_PERIOD_S;
    let ahead_s = i64::try_from(starts - now).expect("a month");
    let Some(clock) = Clock::ahead_by(ahead_s, folder.path()) else {
        return skipped("needs a C compiler");
    };
    let minted = folder.path().join("minted");
    let policy = mint_at(&minted, Some(&clock));
    let network = attested_at(&minted, &policy, Some(clock));
    let requester = network.requester("requester", None);
    let strict = ["--require-evidence", "--policy", &policy];
    let data = network.provider().folder().join("data");
    let (mark, period) = (mark(&policy), (starts + left_s) / KEY_PERIOD_S);
    let card_key = |period: u64| data.join(format!("keys/card-{period}.key"));
    let _ = judged(&requester, &policy, "accepted");
    let first = requester.rent(&strict);
    assert!(
        card_key(period - 1).exists() && !card_key(period).exists(),
        "the network took longer to start than the period lasted"
    );

    // The file of a key goes when a card announces the next one.
    eventually("the keys turn", || {
        all_name_evidence(&data, &mark);
        (card_key(period).exists() && !card_key(period - 1).exists()).then_some(())
    });
    all_name_evidence(&data, &mark);
    let said = requester.exec(&first, "echo up");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "up\n");
    let _ = judged(&requester, &policy, "accepted");
    let second = requester.rent(&strict);
    let said = requester.exec(&second, "echo up");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "up\n");
    for lease in [first, second] {
        let ended = requester.json(&["end", "--json", lease.lease()]);
        assert_eq!(ended["proof_verified"], true, "{ended}");
    }
}

#[test]
fn routes_over_attested_mixes_need_enough_of_them_and_say_how_many_there_are() {
    needs!(Leases);
    let folder = TempDir::new().expect("a folder");
    let (minted, other) = (folder.path().join("minted"), folder.path().join("other"));
    let (policy, foreign) = (mint(&minted), mint(&other));
    let network = attested(&minted, &policy);
    let requester = network.requester("requester", None);
    let _ = judged(&requester, &policy, "accepted");
    let said = fails(&mut requester.souk(&["rent", "--attested-mixes", "--policy", &foreign]));
    assert!(
        said.contains("0 of 3 mixes have evidence that the policy accepts"),
        "{said}"
    );
    let said = fails(&mut requester.souk(&["market", "--attested-mixes"]));
    assert!(
        said.contains("which mixes are believed, a policy says"),
        "{said}"
    );
}

#[test]
fn every_node_has_all_evidence_verified_and_warns_of_none() {
    needs!(Leases);
    let folder = TempDir::new().expect("a folder");
    let minted = folder.path().join("minted");
    let policy = mint(&minted);
    let network = attested(&minted, &policy);
    for node in network.mixes() {
        eventually("all evidence is verified", || {
            let metrics = succeed(&mut node.souk(&["node", "metrics"]));
            let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
            let line = metrics
                .lines()
                .find(|l| l.starts_with("souk_evidence_verified"))?;
            let verified: u64 = line.split(' ').next_back()?.parse().ok()?;
            (verified >= 4).then_some(())
        });
        let status = node.status().expect("it answers");
        let told = |w: &&Value| w.as_str().is_some_and(|w| w.contains("evidence"));
        for list in ["warnings", "others"] {
            let words = status[list].as_array().expect("a list");
            assert_eq!(words.iter().find(told), None);
        }
    }
    // The provider was not asked above: it looks at the others' in its own time.
    let kept = network.provider().folder().join("data/attestation");
    eventually("evidence and collateral of four nodes are kept", || {
        (fs::read_dir(&kept).ok()?.count() >= 8).then_some(())
    });
}
