//! Packets per second through a running mix, against peeling them with `sphinx-packet` alone on as many threads.
//!
//! `cargo bench -p souk-node --bench mix`. Everything but the network is in it: queues, replay tags on disk with
//! `fdatasync`, the delay pool. Links are memory.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use souk_crypto::{NetworkParams, UnixTime};
use souk_node::mix::{
    Arrival, FRAME_QUEUE, KeyRing, LinkRefused, Links, MixCounters, Mixer, MixerParts, NoMailboxes,
};
use souk_sphinx::{
    Epoch, EpochClock, Frame, Hop, HopAddress, MixSecret, Route, TagSource,
    delay::MixDelay,
    packet::{USABLE_LEN, build},
};
use sphinx_packet::SphinxPacket;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use x25519_dalek::StaticSecret;

#[path = "../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::measured;

const PACKETS: usize = 20_000;
const ROUNDS: usize = 3;
const NODE: HopAddress = HopAddress([1; 32]);

/// Counts what comes out.
struct Sink {
    left: AtomicUsize,
    empty: Notify,
}

impl Links for Sink {
    fn has_link(&self, _to: &HopAddress) -> bool {
        true
    }

    fn try_send(&self, _to: HopAddress, _frame: Frame) -> Result<(), LinkRefused> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.empty.notify_one();
        }
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark prints its figures")]
fn main() {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let params = NetworkParams::new(0, 1_000, 604_800, true).expect("within bounds");
    let clock = EpochClock::of(&params);
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970");
        let now = UnixTime(now.as_secs());
        let keys = KeyRing::open(folder.path(), clock, now).expect("a fresh folder");
        let epoch = clock.sending(now);
        let key = keys.epoch(epoch).expect("open").public();
        let hop = Hop { address: NODE, key };
        let packets = frames(hop, threads, epoch, PACKETS / threads);
        let raw = raw(packets.len(), threads);
        let mixed = mixed(keys, packets, threads, &params);
        let by_rate = mixed.per_second / raw.per_second;
        let by_cpu = raw.cpu.as_secs_f64() / mixed.cpu.as_secs_f64();
        println!(
            "round {round}, {threads} threads: sphinx-packet alone {:.0}/s ({:?} of processor), through a mix {:.0}/s \
             ({:?}): {:.0} % of the rate, {:.0} % by processor time",
            raw.per_second,
            raw.cpu,
            mixed.per_second,
            mixed.cpu,
            100.0 * by_rate,
            100.0 * by_cpu,
        );
        ratios.push(by_cpu);
    }
    ratios.sort_by(f64::total_cmp);
    measured("mix-alone", 100.0 * ratios[ROUNDS / 2], "%");
}

/// Packets whose first hop is `hop`, so many built on each thread.
fn frames(hop: Hop, threads: usize, epoch: Epoch, each: usize) -> Vec<Frame> {
    thread::scope(|scope| {
        let build_some = || {
            let rng = &mut rand::rng();
            let mut other = || Hop {
                address: HopAddress::random(rng),
                key: MixSecret::generate(rng).public(),
            };
            let route = Route::new(vec![hop, other(), other(), other()]).expect("four hops");
            (0..each)
                .map(|_| {
                    let packet = build(
                        &route,
                        &[7; USABLE_LEN],
                        &[Duration::ZERO; 4],
                        &mut rand::rng(),
                    );
                    Frame {
                        epoch,
                        packet: packet.expect("built"),
                    }
                })
                .collect::<Vec<_>>()
        };
        let parts: Vec<_> = (0..threads).map(|_| scope.spawn(build_some)).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().expect("no panic"))
            .collect()
    })
}

/// What peeling the same number of packets takes `sphinx-packet` alone.
fn raw(count: usize, threads: usize) -> Cost {
    let secret = [9; 32];
    let hop = Hop {
        address: NODE,
        key: MixSecret::from_bytes(&secret).public(),
    };
    let packets = frames(hop, 1, Epoch(0), 64);
    let start = Clock::start();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let secret = StaticSecret::from(secret);
                for n in 0..count / threads {
                    let bytes = packets[n % packets.len()].packet.as_bytes();
                    let packet = SphinxPacket::from_bytes(bytes).expect("one size");
                    std::hint::black_box(packet.process(&secret).expect("sound"));
                }
            });
        }
    });
    start.cost(count)
}

fn mixed(keys: KeyRing, frames: Vec<Frame>, threads: usize, params: &NetworkParams) -> Cost {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let counters = Arc::new(MixCounters::default());
    let count = frames.len();
    let cost = runtime.block_on(async {
        let stop = CancellationToken::new();
        let (queue, from_links) = mpsc::channel(FRAME_QUEUE);
        let sink = Arc::new(Sink {
            left: AtomicUsize::new(count),
            empty: Notify::new(),
        });
        let parts = MixerParts {
            keys: Arc::new(keys),
            node: NODE,
            delay: MixDelay::of(params),
            links: sink.clone(),
            mailboxes: Arc::new(NoMailboxes),
            frames: from_links,
            mailroom: None,
            counters: counters.clone(),
            peelers: threads,
        };
        let mixer = Mixer::start(parts, &stop);
        let start = Clock::start();
        let from = TagSource(0);
        for frame in frames {
            let arrival = Arrival { frame, from };
            queue.send(arrival).await.expect("running");
        }
        sink.empty.notified().await;
        let cost = start.cost(count);
        stop.cancel();
        mixer.stopped().await;
        cost
    });
    assert_eq!(
        counters.forwarded.total(),
        count as u64,
        "some packets were dropped"
    );
    cost
}

/// Packets per second, and the processor time of one packet over all threads, which a busy machine changes little.
struct Cost {
    per_second: f64,
    cpu: Duration,
}

struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn cost(&self, count: usize) -> Cost {
        let count32 = u32::try_from(count).expect("a small number");
        Cost {
            per_second: count as f64 / self.wall.elapsed().as_secs_f64(),
            cpu: (cpu_time() - self.cpu) / count32,
        }
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("processor time is not negative")
}
