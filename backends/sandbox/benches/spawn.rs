//! From the call to an instance that answers, as whoever runs it.
//!
//! `spawn/agent ready`: the driver's part, up to the first message of an agent that does nothing but listen.
//! `spawn/ssh banner`: with the real agent, up to the first byte of its SSH server; needs `SOUK_AGENT_BIN`.
//! `spawn/empty process`: a program that exits at once, for comparison.

#[path = "../tests/sandbox/common.rs"]
#[expect(
    dead_code,
    unused_imports,
    unused_macros,
    clippy::print_stderr,
    reason = "the tests use all of it"
)]
mod common;

use std::{
    io::Read,
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use common::Fixture;
use criterion::{Criterion, criterion_group, criterion_main};
use souk_backend::Backend;

fn spawn(c: &mut Criterion) {
    let mut group = c.benchmark_group("spawn");
    group.sample_size(50);
    group.bench_function("empty process", |b| {
        b.iter(|| {
            Command::new("/bin/true")
                .status()
                .expect("a program of every system")
        });
    });
    let plain = Fixture::new();
    group.bench_function("agent ready", |b| {
        b.iter_custom(|n| starts(&plain, n, false));
    });
    if let Some(agent) = std::env::var_os("SOUK_AGENT_BIN") {
        let real = Fixture::with(PathBuf::from(agent), true);
        group.bench_function("ssh banner", |b| b.iter_custom(|n| starts(&real, n, true)));
    }
    group.finish();
}

fn starts(fixture: &Fixture, times: u64, banner: bool) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        let spec = fixture.spec();
        let began = Instant::now();
        let instance = fixture.provision(&spec).expect("provisioned");
        if banner {
            let mut stream = TcpStream::connect(instance.ssh).expect("listens");
            stream.read_exact(&mut [0; 4]).expect("a banner");
        }
        spent += began.elapsed();
        let end = fixture.sandbox.terminate(spec.lease);
        fixture.runtime.block_on(end).expect("terminated");
    }
    spent
}

criterion_group!(benches, spawn);
criterion_main!(benches);
