//! Nodes that know one neighbour, or nobody: they find each other, and each has all cards.

use souk_tests::{Discovery, Lan, Network, Plan, needs};

#[test]
fn nodes_in_a_line_that_know_one_neighbour_each_find_all_others_and_their_cards() {
    needs!(Leases);
    // The provider is the first of six. Starting waits until every node has every card: the last one those of four nodes that it was
    // never told of.
    let network = Network::start(&Plan {
        mixes: 5,
        discovery: Discovery::Line,
        ..Plan::default()
    });
    // Who knows the two at the far end only, which is a quorum, finds the provider in the market.
    let requester = network.requester_at("requester", &network.mixes()[3..]);
    let market = requester.json(&["market", "--json"]);
    assert_eq!(market[0]["provider"], network.provider().id(), "{market}");
}

#[test]
fn nodes_on_a_lan_find_each_other_without_any_address_needs_root_netns() {
    needs!(Hosts);
    let lan = Lan::new(3);
    let plan = Plan {
        mixes: 2,
        sells: false,
        discovery: Discovery::Mdns,
        ..Plan::default()
    };
    let network = Network::start_on(&plan, Some(&lan));
    assert_eq!(network.mixes().len(), 2);
}
