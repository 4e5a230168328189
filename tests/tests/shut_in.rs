//! Six hosts of a network with public addresses: four mixes, a requester, and a provider behind a firewall that lets no new
//! connection in. It sells over the links that it dials itself.

use std::{
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;
use souk_tests::{Lan, Network, Plan, needs};

const MIXES: usize = 4;

/// A way that leads nowhere is not answered at all; on a switch of this machine an answer takes far less.
const NO_ANSWER: Duration = Duration::from_secs(2);

#[test]
fn a_provider_whom_nobody_can_dial_sells_over_its_own_links_needs_root_netns() {
    needs!(Hosts, Nftables, Leases, OpenSsh);
    let lan = Lan::public(u8::try_from(MIXES).expect("few") + 2);
    let wall = &lan.hosts()[0];
    wall.let_nobody_in();
    let network = Network::start_on(
        &Plan {
            mixes: MIXES,
            shut_in: true,
            ..Plan::default()
        },
        Some(&lan),
    );
    let status = network.provider().status().expect("it answers");
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("no address that others can dial"),
        "{status}"
    );
    assert!(network.provider().addresses().is_empty());
    let said = network.provider().souk(&["doctor", "--json"]).output();
    let report: Value = serde_json::from_slice(&said.expect("it runs").stdout).expect("a report");
    let found = report["findings"].as_array().expect("findings");
    let is_it = |finding: &&Value| finding["check"] == "reachable";
    let reachable = found.iter().find(is_it).expect("it was looked at");
    assert_ne!(reachable["state"], "fine", "{report}");

    // The firewall works: not even a port with a listener behind it answers.
    let listener = wall.run(|| std::net::TcpListener::bind((wall.address(), 0)).expect("a port"));
    let closed = listener.local_addr().expect("bound");
    let open: SocketAddr = {
        let other = lan.hosts()[1].clone();
        let heard =
            other.run(|| std::net::TcpListener::bind((other.address(), 0)).expect("a port"));
        let address = heard.local_addr().expect("bound");
        let reached = lan.hosts()[2].run(|| TcpStream::connect_timeout(&address, NO_ANSWER));
        reached.expect("where there is no firewall, a connection comes in");
        address
    };
    assert_ne!(open.ip(), closed.ip());
    let refused = lan.hosts()[2].run(|| TcpStream::connect_timeout(&closed, NO_ANSWER));
    assert!(refused.is_err(), "the firewall lets a connection in");

    let requester = network.requester("requester", lan.hosts().last());
    let lease = requester.rent(&[]);
    let output = requester.exec(&lease, "echo inside");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "inside");
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");

    // What cannot be had is told: nobody reaches the log.
    let output = requester
        .souk(&["log", "verify", "--json", network.provider().id()])
        .output()
        .expect("it runs");
    assert!(!output.status.success());
    let said: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let error = said["error"].as_str().unwrap_or_default();
    assert!(error.contains("publishes no address"), "{said}");
}
