//! A provider that ends in the middle of a lease and starts again on the same data: the lease goes on.

use souk_tests::{Network, Plan, Process, eventually, needs};

#[test]
fn a_lease_outlives_a_provider_that_was_killed() {
    lease_goes_on(Process::kill);
}

#[test]
fn a_lease_outlives_a_provider_that_was_asked_to_stop() {
    lease_goes_on(|process| {
        let status = process.stop();
        assert!(status.success(), "{status}:\n{}", process.said());
    });
}

fn lease_goes_on(end: impl FnOnce(&mut Process)) {
    needs!(Leases, OpenSsh);
    let mut network = Network::start(&Plan {
        quic: true,
        ..Plan::default()
    });
    let requester = network.requester("requester", None);
    let lease = requester.rent(&[]);
    let written = requester.exec(&lease, "echo still here > note");
    assert!(written.status.success());
    let keepers = network.provider().keepers();
    assert_eq!(keepers.len(), 1, "one instance has one keeper");

    end(network.provider_mut().process());
    assert_eq!(
        network.provider().keepers(),
        keepers,
        "the instance ended with the node"
    );

    network.start_provider_again("provider-again");
    eventually("the lease is adopted", || {
        let status = network.provider().status()?;
        (status["leases"] == 1).then_some(())
    });
    let note = eventually("its holder gets in over a relay again", || {
        let output = requester
            .openssh("ssh", &lease.ssh_config())
            .args([lease.alias(), "cat note"])
            .output()
            .expect("ssh runs");
        output.status.success().then_some(output.stdout)
    });
    assert_eq!(note, b"still here\n");
    assert_eq!(
        network.provider().keepers(),
        keepers,
        "it is another instance"
    );

    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
    let log = requester.json(&["log", "verify", "--json", lease.text("provider")]);
    assert_eq!(log["verified"], true, "{log}");
    assert_eq!(log["size"], 1, "{log}");
    eventually("no instance is left", || {
        network.provider().keepers().is_empty().then_some(())
    });
}
