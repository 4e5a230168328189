//! A running node for the tests of the doctor, which then break it.

use souk_node::control::{self, v1};

use super::node::LIMITS;

pub(super) const NOW: u64 = 1_800_000_000;

/// A provider with nothing to mend, which has been up for an hour.
pub(super) fn healthy() -> v1::Snapshot {
    let offer = v1::Offer {
        node_id: "us".to_owned(),
        price: "1.00 EUR a core and hour".to_owned(),
        asset: "EUR".to_owned(),
        core_hour: "1000000000000000000".to_owned(),
        anonymous: true,
        enforced: LIMITS.map(str::to_owned).to_vec(),
        images: vec!["image".to_owned()],
        ..v1::Offer::default()
    };
    let backend = v1::Backend {
        state: Some(v1::BackendState {
            backend: "sandbox".to_owned(),
            ..v1::BackendState::default()
        }),
        total: Some(v1::Resources {
            cpu_millicores: 4_000,
            memory_mib: 4_096,
            disk_mib: 8_192,
            max_processes: 4_096,
        }),
        used: Some(v1::Resources::default()),
        ..v1::Backend::default()
    };
    v1::Snapshot {
        program: control::program(),
        status: Some(v1::StatusReply {
            started_unix_s: NOW - 3_600,
            roles: vec!["provider".to_owned()],
            peers: 3,
            cards: 4,
            standing: "open".to_owned(),
            ..v1::StatusReply::default()
        }),
        card: Some(v1::OwnCard {
            expires_unix_s: NOW + 3_600,
            offers: vec![offer.clone()],
            ..v1::OwnCard::default()
        }),
        max_leases: 8,
        max_anonymous: 4,
        backends: vec![backend],
        leases: vec![v1::Lease::default()],
        market: Some(v1::Market {
            offers: vec![offer],
            ..v1::Market::default()
        }),
        network: Some(v1::Network {
            subscribers: 3,
            reachable: true,
            dialled_in: 3,
            ..v1::Network::default()
        }),
        account: Some(v1::Account {
            window_s: 86_400,
            ..v1::Account::default()
        }),
        ..v1::Snapshot::default()
    }
}
