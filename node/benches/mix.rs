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
    time::{Duration, Instant},
};

use souk_crypto::{NetworkParams, UnixTime};
use souk_node::mix::{
    FRAME_QUEUE, KeyRing, LinkRefused, Links, MixCounters, Mixer, MixerParts, NoMailboxes,
};
use souk_sphinx::{
    EpochClock, Frame, Hop, HopAddress, MixSecret, Route,
    delay::MixDelay,
    packet::{USABLE_LEN, build},
};
use sphinx_packet::SphinxPacket;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use x25519_dalek::StaticSecret;

const PACKETS: usize = 20_000;
const ROUNDS: usize = 3;
const NODE: HopAddress = HopAddress([1; 32]);

/// Counts what comes out.
struct Sink {
    left: AtomicUsize,
    empty: Notify,
}

impl Links for Sink {
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
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970");
        let keys =
            KeyRing::open(folder.path(), clock, UnixTime(now.as_secs())).expect("a fresh folder");
        let epoch = clock.sending(UnixTime(now.as_secs()));
        let key = keys.epoch(epoch).expect("open").public();
        let packets = frames(Hop { address: NODE, key }, threads, epoch);
        let raw = raw_rate(&packets, threads);
        let mixed = mixed_rate(keys, packets, threads, &params);
        println!(
            "round {round}: sphinx-packet alone {raw:.0}/s, through a mix {mixed:.0}/s on {threads} threads: {:.0} %",
            100.0 * mixed / raw
        );
        ratios.push(mixed / raw);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median {:.0} %", 100.0 * ratios[ROUNDS / 2]);
}

/// Packets whose first hop is `hop`.
fn frames(hop: Hop, threads: usize, epoch: souk_sphinx::Epoch) -> Vec<Frame> {
    thread::scope(|scope| {
        let build_some = || {
            let rng = &mut rand::rng();
            let mut other = || Hop {
                address: HopAddress::random(rng),
                key: MixSecret::generate(rng).public(),
            };
            let route = Route::new(vec![hop, other(), other(), other()]).expect("four hops");
            (0..PACKETS / threads)
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

/// Peels with the wrong key would stop at the MAC, so the secret is replaced by one that makes the same work: a packet
/// built for it.
fn raw_rate(frames: &[Frame], threads: usize) -> f64 {
    let secret = [9; 32];
    let hop = Hop {
        address: NODE,
        key: MixSecret::from_bytes(&secret).public(),
    };
    let own = frames_for_raw(hop, frames[0].epoch);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let secret = StaticSecret::from(secret);
                for n in 0..frames.len() / threads {
                    let packet = SphinxPacket::from_bytes(own[n % own.len()].packet.as_bytes())
                        .expect("one size");
                    std::hint::black_box(packet.process(&secret).expect("sound"));
                }
            });
        }
    });
    rate(frames.len(), start)
}

fn frames_for_raw(hop: Hop, epoch: souk_sphinx::Epoch) -> Vec<Frame> {
    let rng = &mut rand::rng();
    let mut other = || Hop {
        address: HopAddress::random(rng),
        key: MixSecret::generate(rng).public(),
    };
    let route = Route::new(vec![hop, other(), other(), other()]).expect("four hops");
    (0..64)
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
        .collect()
}

fn mixed_rate(keys: KeyRing, frames: Vec<Frame>, threads: usize, params: &NetworkParams) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let counters = Arc::new(MixCounters::default());
    let count = frames.len();
    let rate = runtime.block_on(async {
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
        let start = Instant::now();
        for frame in frames {
            queue.send(frame).await.expect("running");
        }
        sink.empty.notified().await;
        let rate = rate(count, start);
        stop.cancel();
        mixer.stopped().await;
        rate
    });
    assert_eq!(
        counters.forwarded.total(),
        count as u64,
        "some packets were dropped"
    );
    rate
}

fn rate(count: usize, start: Instant) -> f64 {
    count as f64 / start.elapsed().as_secs_f64()
}
