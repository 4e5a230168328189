//! Eight hosts: a provider, six mixes and a requester. A mix on the route is cut off in the middle of a rent; the lease
//! still arrives, and it can be ended while that mix stays away.

use std::{collections::BTreeSet, fs};

use serde_json::Value;
use souk_tests::{Lan, Needle, Network, NodeUnderTest, Plan, Process, Rented, eventually, needs};

const MIXES: usize = 6;

/// Mixes that have forwarded something since `before`.
fn busy(network: &Network, before: &[u64]) -> BTreeSet<usize> {
    forwarded(network)
        .iter()
        .zip(before)
        .enumerate()
        .filter(|(_, (now, before))| now > before)
        .map(|(n, _)| n)
        .collect()
}

fn forwarded(network: &Network) -> Vec<u64> {
    network
        .mixes()
        .iter()
        .map(|mix: &NodeUnderTest| mix.mix_counter("forwarded"))
        .collect()
}

#[test]
fn a_lease_arrives_though_a_mix_on_its_route_is_cut_off_needs_root_netns() {
    needs!(Hosts, Leases);
    let lan = Lan::new(u8::try_from(MIXES).expect("few") + 2);
    let network = Network::start_on(
        &Plan {
            mixes: MIXES,
            // Slow enough that the rent is still on its way when the cable is pulled, and no slower: the patience of a
            // sender grows with it.
            mean_delay_ms: 400,
            ..Plan::default()
        },
        Some(&lan),
    );
    let requester = network.requester("requester", lan.hosts().last());
    let before = forwarded(&network);
    let command = requester.souk(&[
        "rent",
        "--json",
        "--duration-s",
        "600",
        "--memory-mib",
        "256",
    ]);
    let mut rent = Process::start("rent", command, requester.folder());
    // Nothing else travels over this network: what forwards is on the route of this rent.
    let entry = rent.until("an entry is chosen", || {
        let record = fs::read(requester.home().join("entry")).ok()?;
        let mixes = network.mixes().iter();
        mixes
            .map(|mix| Needle::peer_id("entry", mix.id()))
            .position(|needle| needle.is_in(&record))
    });
    let cut = rent.until("the request is behind its entry", || {
        busy(&network, &before).into_iter().find(|n| *n != entry)
    });
    network.mixes()[cut]
        .host()
        .expect("a host of its own")
        .cut_off();
    assert!(
        rent.ended().is_none(),
        "the rent was over before a mix was cut off"
    );
    let said = eventually("the lease arrives", || {
        rent.ended().map(|status| {
            assert!(status.success(), "{}", rent.said());
            rent.said()
        })
    });
    let lease = Rented::read(&said);
    // Whoever ends it is a new session, which knows nothing of the mix that is away and may have to ask again.
    eventually("the lease ends", || {
        let output = requester.souk(&["end", "--json", lease.lease()]).output();
        let ended: Value = serde_json::from_slice(&output.ok()?.stdout).ok()?;
        (ended["proof_verified"] == true).then_some(())
    });
}
