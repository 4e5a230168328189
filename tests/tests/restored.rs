//! A provider whose data folder was restored from an old backup, over processes.

use std::process::Command;

use souk_tests::{Network, Plan, eventually, needs, succeed};

#[test]
fn a_provider_restored_from_an_old_backup_signs_no_fork_and_goes_on_serving() {
    needs!(Leases, OpenSsh);
    let mut network = Network::start(&Plan::default());
    let requester = network.requester("requester", None);
    let size = |network: &Network| network.provider().status()?["log"]["size"].as_u64();
    let first = requester.rent(&[]);
    let end = |lease: &str| {
        let ended = requester.json(&["end", "--json", lease]);
        assert_eq!(ended["proof_verified"], true, "{ended}");
    };
    end(first.lease());
    assert_eq!(size(&network), Some(1));

    network.provider_mut().process().stop();
    let data = network.provider().folder().join("data");
    let backup = network.folder().join("backup");
    succeed(Command::new("cp").arg("-a").arg(&data).arg(&backup));
    network.start_provider_again("provider-second");
    eventually("the provider is linked to the mixes again", || {
        let status = network.provider().status()?;
        (status["overview"]["mix"]["links_up"].as_u64()? > 0).then_some(())
    });
    let second = requester.rent(&[]);
    end(second.lease());
    assert_eq!(size(&network), Some(2));

    // The head of the log travels with the room of the provider, which is told after a start. Until the market shows the new
    // life it shows what the one before said.
    network.provider_mut().process().stop();
    network.start_provider_again("provider-third");
    eventually("the others have heard of the second entry", || {
        let market = requester.json(&["market", "--json"]);
        let mut offers = market.as_array()?.iter();
        offers.any(|offer| offer["log_entries"] == 2).then_some(())
    });
    network.provider_mut().process().stop();
    std::fs::remove_dir_all(&data).expect("removed");
    succeed(Command::new("cp").arg("-a").arg(&backup).arg(&data));
    network.start_provider_again("provider-restored");
    eventually("it is told that the store is old", || {
        let status = network.provider().status()?;
        let told = status["warnings"].as_array()?.iter().any(|warning| {
            warning
                .as_str()
                .is_some_and(|text| text.contains("restored from an old backup"))
        });
        told.then_some(())
    });

    // It says nothing of its log any more, and its last life did.
    eventually("the market shows its new card", || {
        let market = requester.json(&["market", "--json"]);
        let offer = market.as_array()?.first()?;
        (offer["log_entries"].is_null() && !offer["capacity"].is_null()).then_some(())
    });
    let third = requester.rent(&[]);
    let output = requester.exec(&third, "true");
    assert_eq!(output.status.code(), Some(0), "leases go on");
    assert_eq!(size(&network), Some(1), "nothing new was signed");
    for mix in network.mixes() {
        let status = mix.status().expect("it answers");
        let accused = status["others"].as_array().expect("a list");
        assert!(accused.is_empty(), "{status}");
    }
}
