//! What the provider's side can see of a requester: hosts with addresses of their own, everything that passes the
//! provider's interfaces recorded, and everything that it keeps, writes or tells its operator searched.
//!
//! The same check finds the requester when it rents with `--direct`, so it can fail.

use std::{fs, net::Ipv4Addr, path::Path};

use souk_tests::{
    Capture, Lan, Needle, Network, NodeUnderTest, Plan, Rented, Requester, find, needs, succeed,
};

const MIXES: usize = 6;

struct Seen {
    /// Addresses that spoke with the provider.
    addresses: Vec<String>,
    /// Where something of the requester was found.
    found: Vec<String>,
}

/// Rents, logs in and ends on a network of hosts, and looks at the provider's side.
fn observe(direct: bool) -> (Seen, String) {
    let lan = Lan::new(u8::try_from(MIXES).expect("few") + 2);
    let plan = Plan {
        mixes: MIXES,
        direct: true,
        ..Plan::default()
    };
    let network = Network::start_on(&plan, Some(&lan));
    let (provider, theirs) = (&lan.hosts()[0], lan.hosts().last().expect("the requester"));
    let address = theirs.address();
    let requester = network.requester("requester", Some(theirs));
    let capture = Capture::start(provider);
    let lease = requester.rent(if direct { &["--direct"] } else { &[] });
    // What the instance itself can see of where its user came from.
    let inside = requester.exec(
        &lease,
        "env; cat /proc/net/tcp /proc/net/tcp6 /proc/net/udp; who 2>/dev/null; cat ~/.ssh/* 2>/dev/null; true",
    );
    let told = told(network.provider(), &lease);
    let ended = requester.json(&["end", "--json", lease.lease()]);
    assert_eq!(ended["proof_verified"], true, "{ended}");
    let frames = capture.stop();
    assert!(frames.count() > 100, "the capture saw next to nothing");

    let needles = needles(&requester, &lease, address);
    let mut found = find(&[network.provider().folder()], &needles);
    for needle in &needles {
        if needle.is_in(&inside.stdout) {
            found.push(format!("in the instance: {}", needle.name()));
        }
        if needle.is_in(&told) {
            found.push(format!("told the operator: {}", needle.name()));
        }
        if needle.forms().iter().any(|form| frames.contain(form)) {
            found.push(format!("in the capture: {}", needle.name()));
        }
    }
    finds_what_is_there(network.provider().folder(), &lease, &needles);
    let addresses = frames.addresses().iter().map(ToString::to_string).collect();
    (Seen { addresses, found }, address.to_string())
}

/// What a provider with an open lease tells its operator, and whoever may watch it: metrics, and all that the dashboard shows.
fn told(provider: &NodeUnderTest, lease: &Rented) -> Vec<u8> {
    let asked = [
        &["node", "metrics"][..],
        &["status", "--json"],
        &["node", "leases", "--json"],
    ];
    let answers = asked.map(|args| succeed(&mut provider.souk(args)).stdout);
    let [metrics, status, leases] = &answers;
    assert!(Needle::text("a metric", "souk_leases").is_in(metrics));
    let id = Needle::text("the lease", lease.text("lease"));
    assert!(id.is_in(status) && id.is_in(leases), "it shows its lease");
    answers.concat()
}

/// The search reads what the provider keeps and writes: the lease stands in its store and in its usage log's folder as
/// bytes, and whatever of the requester is put beside them is found, in each of its forms.
fn finds_what_is_there(folder: &Path, lease: &Rented, needles: &[Needle]) {
    let id = hex::decode(lease.text("lease")).expect("hex");
    let (store, log) = (folder.join("data/store"), folder.join("provider.log"));
    let known = find(&[&store], &[Needle::bytes("the lease", &id)]);
    assert!(!known.is_empty(), "the store does not hold its own lease");
    let said = fs::read(&log).expect("the provider's output");
    assert!(!said.is_empty(), "the provider said nothing");
    for (needle, form) in needles
        .iter()
        .flat_map(|n| n.forms().iter().map(move |f| (n, f)))
    {
        let planted = store.join("planted");
        fs::write(&planted, [b"before", form.as_slice(), b"after"].concat()).expect("written");
        let with = [said.as_slice(), form, b"\n"].concat();
        let copy = folder.join("planted.log");
        fs::write(&copy, with).expect("written");
        let found = find(&[folder], std::slice::from_ref(needle));
        assert_eq!(found.len(), 2, "{}: {form:?}: {found:?}", needle.name());
        for file in [planted, copy] {
            fs::remove_file(file).expect("there");
        }
    }
}

/// What must not reach the provider: the address, the identity of the session, and every secret or lasting key of the
/// requester's folder. The public half of the lease's own SSH key is made for this lease and is meant for the provider.
fn needles(requester: &Requester, lease: &Rented, address: Ipv4Addr) -> Vec<Needle> {
    let mut needles = vec![
        Needle::address("the requester's address", address),
        Needle::peer_id("the session's peer id", lease.text("client_peer_id")),
    ];
    let mut open = vec![requester.home()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .expect("readable")
                    .map(|e| e.expect("readable").path()),
            );
        } else if is_secret(&path) {
            let secret = fs::read(&path).expect("readable");
            let name = path.display().to_string();
            // Whole, and the 32 bytes of the key, which end the file.
            needles.push(Needle::bytes(&name, &secret));
            needles.push(Needle::bytes(
                &name,
                &secret[secret.len().saturating_sub(32)..],
            ));
        }
    }
    assert!(
        needles.len() > 2,
        "no keys in {}",
        requester.home().display()
    );
    needles
}

fn is_secret(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "key") || path.file_name().is_some_and(|n| n == "ssh_key")
}

#[test]
fn the_provider_learns_nothing_of_who_rents_needs_root_netns() {
    needs!(Hosts, Leases, OpenSsh);
    let (seen, address) = observe(false);
    assert_eq!(seen.found, Vec::<String>::new());
    assert!(!seen.addresses.contains(&address), "{:?}", seen.addresses);
}

#[test]
fn the_check_finds_the_address_of_who_rents_directly_needs_root_netns() {
    needs!(Hosts, Leases, OpenSsh);
    let (seen, address) = observe(true);
    assert!(seen.addresses.contains(&address), "{:?}", seen.addresses);
}
