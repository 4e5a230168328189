//! How a benchmark says what it measured, so that `cargo xtask bench` can hold it against the aims in `docs/benchmarks.md`.
//!
//! Used by the benchmarks of all crates; no benchmark knows an aim.
#![expect(clippy::print_stdout, reason = "figures are what a benchmark is for")]

use std::{
    fs,
    hint::black_box,
    time::{Duration, Instant},
};

/// Turns for each ratio; the median of each side counts, so that a busy machine does not.
const TURNS: usize = 401;

/// Says one figure, in the unit of its aim.
pub(crate) fn measured(name: &str, value: f64, unit: &str) {
    println!("measured: {name} {value:.3} {unit}");
}

/// Says the speed of `ours` as a part of that of `peer`, measured turn by turn.
#[allow(dead_code, reason = "some measure in another way")]
pub(crate) fn ratio<A, B>(name: &str, mut ours: impl FnMut() -> A, mut peer: impl FnMut() -> B) {
    let mut of_ours = Vec::with_capacity(TURNS);
    let mut of_peer = Vec::with_capacity(TURNS);
    for _ in 0..TURNS {
        of_ours.push(timed(|| drop(black_box(ours()))));
        of_peer.push(timed(|| drop(black_box(peer()))));
    }
    let (ours, peer) = (median(of_ours), median(of_peer));
    println!("{name}: {ours:?}, its peer {peer:?}");
    let ratio = peer.as_secs_f64() / ours.as_secs_f64();
    measured(name, 100.0 * ratio, "%");
}

/// How long some work takes.
#[allow(dead_code, reason = "some measure in another way")]
pub(crate) fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// The one in the middle.
#[allow(dead_code, reason = "some measure in another way")]
pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Resident and anonymous memory of a process in MiB.
#[allow(dead_code, reason = "some measure in another way")]
pub(crate) fn memory(process: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib: f64 = line
            .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .expect("the kernel tells");
        kib / 1024.0
    };
    (field("VmRSS:"), field("RssAnon:"))
}
