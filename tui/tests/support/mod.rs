//! Nodes as the control API shows them: one that has just begun, one that is busy, one that is in trouble.
#![allow(
    dead_code,
    reason = "each test and the benchmark use what they need of it"
)]

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use souk_control::v1;
use souk_tui::{Event, State, Theme, render};

/// When all of it is, in milliseconds since 1970.
pub(crate) const NOW_MS: u64 = 1_800_000_000_000;
const NOW_S: u64 = NOW_MS / 1000;

pub(crate) const NODE: &str = "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust";

fn counter(name: &str, value: u64) -> v1::Counter {
    v1::Counter {
        name: name.to_owned(),
        value,
    }
}

/// A mix that has just begun.
pub(crate) fn empty() -> v1::Snapshot {
    v1::Snapshot {
        at_unix_ms: NOW_MS,
        program: "0.1.0".to_owned(),
        status: Some(v1::StatusReply {
            node_id: NODE.to_owned(),
            network_id: "souk.0f3a91c2".to_owned(),
            started_unix_s: NOW_S - 4,
            roles: vec!["mix".to_owned()],
            standing: "open".to_owned(),
            warnings: vec!["no other node is connected; check node.bootstrap".to_owned()],
            ..Default::default()
        }),
        standing: Some(v1::StandingReply {
            standing: "open".to_owned(),
            ..Default::default()
        }),
        mix: Some(v1::Mix {
            mean_delay_ms: 50,
            queue_max: 65_536,
            packet_bytes: 2_396,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn lease(n: u32) -> v1::Lease {
    let meter = |value| {
        Some(v1::Meter {
            value,
            at_least: n % 7 == 3,
        })
    };
    v1::Lease {
        lease: format!(
            "{:032x}",
            u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        ),
        state: ["active", "active", "active", "provisioning", "draining"][n as usize % 5]
            .to_owned(),
        cpu_millicores: 500 * (1 + n % 4),
        memory_mib: 512 * (1 + n % 8),
        valid_to_unix_s: NOW_S + 60 * u64::from(1 + n % 200),
        anonymous: !n.is_multiple_of(3),
        backend: "sandbox".to_owned(),
        accepted_unix_s: NOW_S - 37 * u64::from(1 + n % 500),
        usage: Some(v1::Usage {
            cpu_core_ms: meter(u64::from(n) * 7_919),
            memory_mib_s: meter(u64::from(n) * 104_729),
            net_rx_bytes: meter(u64::from(n) * 1_299_709),
            net_tx_bytes: if n.is_multiple_of(5) {
                None
            } else {
                meter(u64::from(n) * 15_485_863)
            },
        }),
    }
}

fn offer(n: u32) -> v1::Offer {
    v1::Offer {
        node_id: if n == 2 {
            NODE.to_owned()
        } else {
            format!("12D3KooW{n:044}")
        },
        arch: "x86_64".to_owned(),
        cpu_millicores: 4_000 * (1 + n % 4),
        memory_mib: 16_384,
        price: format!("0.{:06} TEST a core and hour", 9_000 + 250 * n),
        capacity: ["plenty", "some", "none", ""][n as usize % 4].to_owned(),
        shared_kernel: n.is_multiple_of(2),
        anonymous: n % 3 != 1,
        expires_unix_s: NOW_S + 600 + u64::from(n),
        warning: (n == 5).then(|| "two checkpoints of one size differ".to_owned()),
        ..Default::default()
    }
}

fn resources(cpu_millicores: u32, memory_mib: u32, disk_mib: u32) -> Option<v1::Resources> {
    Some(v1::Resources {
        cpu_millicores,
        memory_mib,
        disk_mib,
        max_processes: 4_096,
    })
}

/// A provider with so many leases.
pub(crate) fn busy(leases: u32) -> v1::Snapshot {
    let offers: Vec<_> = (0..40).map(offer).collect();
    v1::Snapshot {
        status: Some(v1::StatusReply {
            started_unix_s: NOW_S - 40 * 3_600,
            roles: ["mix", "entry", "provider"].map(str::to_owned).to_vec(),
            addresses: vec![format!("/ip4/192.0.2.7/udp/4551/quic-v1/p2p/{NODE}")],
            peers: 18,
            cards: 57,
            mix: vec![
                counter("frames_in", 1_204_332),
                counter("forwarded", 1_100_230),
                counter("deposited", 60_120),
                counter("final_packets", 43_982),
                counter("wrong_epoch", 0),
                counter("bad_header", 3),
                counter("replays", 12),
                counter("pool_full", 0),
                counter("link_refused", 41),
                counter("messages", 9_210),
                counter("acks_sent", 43_001),
                counter("replies_sent", 9_100),
                counter("replies_dropped", 0),
            ],
            leases,
            refusals: vec![counter("no-capacity", 112), counter("expired", 4)],
            log: Some(v1::LogStatus {
                size: 10_482,
                root: "9f".repeat(32),
            }),
            warnings: Vec::new(),
            ..empty().status.expect("there")
        }),
        card: Some(v1::OwnCard {
            sequence: 1_799_998_800,
            expires_unix_s: NOW_S + 1_500,
            digest: "5c".repeat(32),
            bytes: 1_182,
            offers: vec![offer(2)],
            keys_elsewhere: false,
        }),
        evidence: Some(v1::Evidence {
            tee: "none".to_owned(),
            ..Default::default()
        }),
        leases: (0..leases).map(lease).collect(),
        max_leases: 512,
        max_anonymous: 300,
        backends: vec![v1::Backend {
            state: Some(v1::BackendState {
                backend: "sandbox".to_owned(),
                instances: Some(leases.into()),
                listed_ago_s: Some(12),
                ..Default::default()
            }),
            total: resources(64_000, 262_144, 1_048_576),
            used: resources(42_500, 180_224, 204_800),
            leases,
            ..Default::default()
        }],
        mix: Some(v1::Mix {
            queue: 96,
            packets_sent: 1_250_000,
            packets_received: 1_204_332,
            packets_dropped: 41,
            links_up: 17,
            ..empty().mix.expect("there")
        }),
        market: Some(v1::Market {
            cards: 57,
            providers: 40,
            mixes: 21,
            relays: 9,
            entries: 12,
            offers,
        }),
        network: Some(v1::Network {
            connections: 22,
            routable: 49,
            subscribers: 18,
            mesh: 8,
            reachable: true,
            dialled_in: 3,
            listening: vec!["/ip4/0.0.0.0/udp/4551/quic-v1".to_owned()],
            peers: (0..18)
                .map(|n| v1::Peer {
                    node_id: format!("12D3KooW{n:044}"),
                    transport: if n % 3 == 0 { "tcp" } else { "quic" }.to_owned(),
                    score_milli: 12_340 - 1_111 * i64::from(n),
                    topics: 2,
                    in_mesh: n < 8,
                    dialled_us: n < 3,
                })
                .collect(),
            offences: 2,
            mailbox_packets: 14,
            relay_sessions: 3,
            relayed_bytes: 9_182_736_455,
        }),
        log: Some(v1::Log {
            checkpoint_unix_s: Some(NOW_S - 6),
            entries: (0..20)
                .map(|n| v1::LogEntry {
                    index: 10_481 - n,
                    kind: ["completed", "completed", "refusals", "failed", "withdrawn"]
                        [n as usize % 5]
                        .to_owned(),
                    hour_unix_s: NOW_S / 3_600 * 3_600 - 3_600 * (n / 4),
                    refused: if n % 5 == 2 { 31 + n } else { 0 },
                })
                .collect(),
        }),
        account: Some(v1::Account {
            asset: "TEST".to_owned(),
            exponent: 6,
            lifetime: Some(v1::Sum {
                leases: 10_301,
                revenue: "84120334901".to_owned(),
                cost: "31002118400".to_owned(),
                with_unknown: 2,
            }),
            window: Some(v1::Sum {
                leases: 212,
                revenue: "1830221400".to_owned(),
                cost: "701002113".to_owned(),
                with_unknown: 0,
            }),
            window_s: 86_400,
            revenue_by_hour: (0..24).map(|n| (n * n) % 17).collect(),
        }),
        ..empty()
    }
}

/// A provider in trouble.
pub(crate) fn failing() -> v1::Snapshot {
    let mut snapshot = busy(3);
    let status = snapshot.status.as_mut().expect("there");
    status.standing = "draining".to_owned();
    status.warnings = vec![
        "the clock of this machine is 312 s behind the cards of 9 nodes".to_owned(),
        "no checkpoints are signed, and leases go on without their proofs: the network remembers 10,490 entries".to_owned(),
    ];
    status.mix[7].value = 908;
    snapshot.standing = Some(v1::StandingReply {
        standing: "draining".to_owned(),
        deadline_unix_s: Some(NOW_S + 7_200),
        open_leases: 3,
        ..Default::default()
    });
    snapshot.card = None;
    let network = snapshot.network.as_mut().expect("there");
    network.reachable = false;
    let backend = &mut snapshot.backends[0];
    backend.paused = true;
    let state = backend.state.as_mut().expect("there");
    state.failures = 4;
    state.error = "the cgroup /sys/fs/cgroup/souk cannot be read: Permission denied".to_owned();
    snapshot.orphans = (0..3)
        .map(|n| v1::Orphan {
            lease: lease(90 + n).lease,
            backend: "sandbox".to_owned(),
            reason: ["unknown-lease", "closed-lease", "record-lost"][n as usize].to_owned(),
            state: ["waiting", "removing", "failing"][n as usize].to_owned(),
            age_s: 61 * u64::from(n + 1),
            failed: 2 * n,
        })
        .collect();
    let account = snapshot.account.as_mut().expect("there");
    account.window.as_mut().expect("there").cost = "2000000000".to_owned();
    snapshot
}

pub(crate) fn happenings() -> v1::Happenings {
    use v1::happening::What;
    let whats = [
        What::Started(v1::Started {}),
        What::Card(v1::CardMade {
            sequence: 1_799_998_800,
        }),
        What::Peers(v1::PeersChanged { peers: 18 }),
        What::Backend(v1::BackendListed {
            backend: "sandbox".to_owned(),
            listed: true,
        }),
        What::Lease(v1::LeaseChanged {
            lease: lease(1).lease,
            state: "active".to_owned(),
            backend: "sandbox".to_owned(),
        }),
        What::Refused(v1::Refused {
            reason: "no-capacity".to_owned(),
            count: 3,
        }),
        What::Checkpoint(v1::CheckpointMade { size: 10_482 }),
        What::Standing(v1::StandingChanged {
            standing: "draining".to_owned(),
        }),
        What::Paused(v1::BackendPaused {
            backend: "sandbox".to_owned(),
            paused: true,
        }),
        What::Orphans(v1::OrphansChanged {
            backend: "sandbox".to_owned(),
            orphans: 3,
        }),
    ];
    let happenings = (0..).zip(whats).map(|(sequence, what)| v1::Happening {
        sequence,
        at_unix_ms: NOW_MS - 90_000 + 8_000 * sequence,
        what: Some(what),
    });
    v1::Happenings {
        happenings: happenings.collect(),
        missed: 0,
    }
}

/// A session that has come to this.
pub(crate) fn session(width: u16, height: u16, snapshot: v1::Snapshot) -> State {
    let mut state = State::new(width, height);
    let mut before = snapshot.clone();
    before.at_unix_ms -= 1_000;
    if let Some(mix) = &mut before.mix {
        mix.packets_received = mix.packets_received.saturating_sub(250);
        mix.packets_sent = mix.packets_sent.saturating_sub(261);
    }
    for event in [
        Event::Tick(NOW_MS),
        Event::Connected,
        Event::Snapshot(Box::new(before)),
        Event::Snapshot(Box::new(snapshot)),
    ] {
        assert_eq!(state.handle(event), None);
    }
    state
}

/// The cells of a state.
pub(crate) fn cells(state: &State, width: u16, height: u16, theme: Theme) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
    render(state, theme, &mut buffer);
    buffer
}

/// The text of a state, a line each, without spaces at the ends.
pub(crate) fn text(state: &State, width: u16, height: u16) -> String {
    let buffer = cells(state, width, height, Theme::colourful());
    let mut text = String::new();
    for y in 0..height {
        let line: String = (0..width).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
