//! Packets through a running mix process over real links, against peeling them with `sphinx-packet` alone.
//!
//! `cargo bench -p souk-node --bench mix_links` starts the mix as a child: libp2p, queues, replay tags on disk, the delay pool
//! and a link on either side. Processor time is compared, because sender, mix and sink share the cores of one machine; the
//! rate is what all three reach together.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::registry::Registry;
use souk_crypto::{NetworkId, NetworkParams, NodeId, NodeKey, UnixTime};
use souk_node::{
    mix::{Arrival, FRAME_QUEUE, KeyRing, Links as _, MixCounters, Mixer, MixerParts, NoMailboxes},
    net::{
        CardValidator, Node, NodeAddress, NodeConfig, Origin, Services, Snapshot, SnapshotSource,
        Topic, Verdict,
    },
};
use souk_sphinx::{
    Epoch, EpochClock, Frame, Hop, HopAddress, MixPublic, MixSecret, Route,
    delay::MixDelay,
    packet::{USABLE_LEN, build},
};
use sphinx_packet::SphinxPacket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use x25519_dalek::StaticSecret;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::measured;

const PACKETS: usize = 20_000;
const ROUNDS: usize = 3;

/// Packets on their way at once: half of what the queue of one link holds, so that none is dropped.
const IN_FLIGHT: usize = 128;

/// No gossip and no snapshots here.
struct Silent;

impl CardValidator for Silent {
    fn validate(&self, _: Topic, _: &[u8], _: Origin) -> Verdict {
        Verdict::Ignore
    }
}

impl SnapshotSource for Silent {
    fn snapshot(&self) -> Snapshot {
        Snapshot::default()
    }
}

fn params() -> NetworkParams {
    NetworkParams::new(0, 1_000, 604_800, true).expect("within bounds")
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.expect("after 1970").as_secs())
}

/// A node on loopback, what arrives over its links, and where it listens.
async fn start() -> (Node, mpsc::Receiver<Arrival>, NodeAddress) {
    let network = NetworkId::new("mix-links", &params()).expect("a valid name");
    let mut config = NodeConfig::new(network, NodeKey::generate(&mut rand::rng()));
    config.allow_private_addresses = true;
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("an address")];
    let (frames, arriving) = mpsc::channel(FRAME_QUEUE);
    let (relayed, _) = mpsc::channel(1);
    let services = Services {
        validator: Arc::new(Silent),
        snapshot: Arc::new(Silent),
        pieces: None,
        log: None,
        frames,
        relayed,
    };
    let node = Node::start(config, services, &mut Registry::default()).expect("a free port");
    let listening = loop {
        if let Some(listening) = node.peers().info().await.listening.pop() {
            break listening;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let address = NodeAddress::new(node.peers().local(), listening).expect("of the form");
    (node, arriving, address)
}

fn link(addresses: &[&NodeAddress]) -> Vec<(NodeId, Vec<souk_node::net::Multiaddr>)> {
    let one = |address: &&NodeAddress| (address.node(), vec![address.address().clone()]);
    addresses.iter().map(one).collect()
}

fn hop_of(address: &NodeAddress) -> HopAddress {
    HopAddress(*address.node().as_bytes())
}

/// The mix: links to the nodes that it is told of, and mixes until its standard input ends.
async fn child(neighbours: &[NodeAddress]) {
    let (node, frames, address) = start().await;
    node.links()
        .set_links(link(&neighbours.iter().collect::<Vec<_>>()));
    let folder = tempfile::tempdir().expect("a folder");
    let clock = EpochClock::of(&params());
    let keys = KeyRing::open(folder.path(), clock, now()).expect("a fresh folder");
    let epoch = clock.sending(now());
    let key = keys.epoch(epoch).expect("open").public();
    let stop = CancellationToken::new();
    let mixer = Mixer::start(
        MixerParts {
            keys: Arc::new(keys),
            node: hop_of(&address),
            delay: MixDelay::of(&params()),
            links: Arc::new(node.links().clone()),
            mailboxes: Arc::new(NoMailboxes),
            frames,
            mailroom: None,
            counters: Arc::new(MixCounters::default()),
            peelers: std::thread::available_parallelism().map_or(1, usize::from),
        },
        &stop,
    );
    {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{address}\n{}\n{}",
            hex::encode(key.to_bytes()),
            epoch.0
        )
        .and_then(|()| out.flush())
        .expect("the parent listens");
    }
    let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    let _ = ended.await;
    stop.cancel();
    mixer.stopped().await;
}

async fn parent() {
    let (sender, _from, at_sender) = start().await;
    let (sink, mut arriving, at_sink) = start().await;
    let mut mix = Command::new(env::current_exe().expect("this program"))
        .args(["child", &at_sender.to_string(), &at_sink.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut output = BufReader::new(mix.stdout.take().expect("piped")).lines();
    let mut next = || output.next().expect("the child speaks").expect("in text");
    let at_mix: NodeAddress = next().parse().expect("an address");
    let key: [u8; 32] = hex::decode(next()).expect("hex").try_into().expect("a key");
    let epoch = Epoch(next().parse().expect("a number"));
    sender.links().set_links(link(&[&at_mix]));
    sink.links().set_links(link(&[&at_mix]));

    let first = Hop {
        address: hop_of(&at_mix),
        key: MixPublic::from_bytes(key).expect("a key of the mix"),
    };
    let arrived = Arc::new(AtomicUsize::new(0));
    let counting = arrived.clone();
    tokio::spawn(async move {
        while arriving.recv().await.is_some() {
            counting.fetch_add(1, Ordering::Relaxed);
        }
    });
    // The links are up once a packet has come through.
    let mut sent = 0;
    while arrived.load(Ordering::Relaxed) == 0 {
        let packets = packets(first, hop_of(&at_sink), epoch, 1);
        for frame in packets {
            // A link that is not up yet takes it and sends it later.
            sent += usize::from(sender.links().try_send(first.address, frame).is_ok());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    while arrived.load(Ordering::Relaxed) < sent {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let packets = packets(first, hop_of(&at_sink), epoch, PACKETS);
        let raw = raw();
        let goal = arrived.load(Ordering::Relaxed) + PACKETS;
        let (wall, cpu) = (Instant::now(), cpu_time(mix.id()));
        for (n, frame) in packets.into_iter().enumerate() {
            while goal - PACKETS + n >= arrived.load(Ordering::Relaxed) + IN_FLIGHT {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            let taken = sender.links().try_send(first.address, frame);
            taken.expect("the queue has room for what may be on its way");
        }
        while arrived.load(Ordering::Relaxed) < goal {
            assert!(
                wall.elapsed() < Duration::from_secs(120),
                "packets were lost"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (wall, cpu) = (wall.elapsed(), cpu_time(mix.id()) - cpu);
        let count = u32::try_from(PACKETS).expect("a small number");
        let ratio = raw.as_secs_f64() / (cpu / count).as_secs_f64();
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "round {round}: sphinx-packet alone {raw:?}, a mix process {:?} of processor for each packet: {:.0} %; \
             {:.0} packets/s with sender, mix and sink on this machine",
            cpu / count,
            100.0 * ratio,
            PACKETS as f64 / wall.as_secs_f64(),
        )
        .expect("standard output is there");
        ratios.push(ratio);
    }
    drop(mix.stdin.take());
    mix.wait().expect("the child ends");
    ratios.sort_by(f64::total_cmp);
    measured("mix-process", 100.0 * ratios[ROUNDS / 2], "%");
}

/// Packets that go over `first` to `sink`, which need not open them.
fn packets(first: Hop, sink: HopAddress, epoch: Epoch, count: usize) -> Vec<Frame> {
    let rng = &mut rand::rng();
    let mut other = |address| Hop {
        address,
        key: MixSecret::generate(rng).public(),
    };
    let hops = vec![first, other(sink), other(HopAddress([3; 32]))];
    let route = Route::new(hops).expect("three hops");
    let mut frame = || {
        let delays = [Duration::ZERO; 3];
        let packet = build(&route, &[7; USABLE_LEN], &delays, rng).expect("built");
        Frame { epoch, packet }
    };
    (0..count).map(|_| frame()).collect()
}

/// The processor time that `sphinx-packet` alone needs for a packet.
fn raw() -> Duration {
    let secret = [9; 32];
    let hop = Hop {
        address: HopAddress([1; 32]),
        key: MixSecret::from_bytes(&secret).public(),
    };
    let packets = packets(hop, HopAddress([2; 32]), Epoch(0), 64);
    let secret = StaticSecret::from(secret);
    let start = cpu_time(std::process::id());
    for n in 0..PACKETS {
        let bytes = packets[n % packets.len()].packet.as_bytes();
        let packet = SphinxPacket::from_bytes(bytes).expect("one size");
        std::hint::black_box(packet.process(&secret).expect("sound"));
    }
    (cpu_time(std::process::id()) - start) / u32::try_from(PACKETS).expect("a small number")
}

/// Processor time of a process so far, in the kernel's ticks of 10 ms (proc(5), fields 14 and 15 of `stat`).
fn cpu_time(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("it runs");
    let after_name = stat.rsplit(')').next().expect("it has a name");
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().expect("a number"))
        .sum();
    Duration::from_millis(10 * ticks)
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let args: Vec<String> = env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("child") => {
            let neighbours = args[1..].iter().map(|text| text.parse());
            let neighbours: Vec<_> = neighbours.collect::<Result<_, _>>().expect("addresses");
            runtime.block_on(child(&neighbours));
        }
        _ => runtime.block_on(parent()),
    }
}
