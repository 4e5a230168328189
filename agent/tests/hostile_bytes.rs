//! Strangers on the listener: whatever they send, the owner of the key still gets in and the agent stays small.

mod common;

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use common::{Agent, PATIENCE, eventually, noise};

fn connect(agent: &Agent) -> TcpStream {
    let stream = TcpStream::connect(agent.address()).expect("the listener accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Reads until the agent has closed the connection; resets count as closed.
fn closed_by_agent(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => {
                return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            }
        }
    }
}

fn works(agent: &Agent) {
    assert_eq!(agent.exec("echo in").stdout, b"in\n");
}

/// A binary packet before encryption (RFC 4253, section 6).
fn packet(payload: &[u8]) -> Vec<u8> {
    let padding = 8 - (5 + payload.len()) % 8 + 8;
    let mut out = u32::try_from(1 + payload.len() + padding)
        .expect("short")
        .to_be_bytes()
        .to_vec();
    out.push(u8::try_from(padding).expect("short"));
    out.extend(payload);
    out.resize(out.len() + padding, 0);
    out
}

#[test]
fn garbage_truncation_and_oversize_end_the_connection_and_nothing_else() {
    let Some(agent) = Agent::start() else { return };
    let hello = b"SSH-2.0-stranger\r\n".to_vec();
    let after_hello = |bytes: &[u8]| [hello.as_slice(), bytes].concat();
    let mut kexinit = vec![20];
    kexinit.extend(noise(16, 1));
    for _ in 0..10 {
        kexinit.extend(u32::MAX.to_be_bytes());
    }
    let cases: Vec<Vec<u8>> = vec![
        noise(4096, 2),
        vec![b'A'; 1 << 20],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"SSH-1.5-old\r\n".to_vec(),
        after_hello(&noise(4096, 3)),
        after_hello(&u32::MAX.to_be_bytes()),
        after_hello(&[0; 64]),
        after_hello(&packet(&[])),
        after_hello(&packet(&kexinit)),
        after_hello(&packet(&kexinit)[..20]),
        // Service and login requests before any key exchange.
        after_hello(&packet(&[&[5, 0, 0, 0, 12][..], b"ssh-userauth"].concat())),
        after_hello(&packet(&[&[50][..], &noise(200, 4)].concat())),
        after_hello(&packet(&[90; 300])),
    ];
    for (n, bytes) in cases.iter().enumerate() {
        let mut stream = connect(&agent);
        // The agent may have closed before everything is sent.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(closed_by_agent(&mut stream), "case {n} is still connected");
    }
    for seed in 10..60 {
        let mut stream = connect(&agent);
        let _ = stream.write_all(&after_hello(&packet(&noise(seed as usize * 7, seed))));
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(
            closed_by_agent(&mut stream),
            "seed {seed} is still connected"
        );
    }
    works(&agent);
}

#[test]
fn strangers_who_hold_connections_open_lock_nobody_out() {
    let Some(agent) = Agent::start() else { return };
    let mut silent: Vec<TcpStream> = (0..200).map(|_| connect(&agent)).collect();
    works(&agent);
    assert!(
        closed_by_agent(&mut silent[0]),
        "the oldest stranger is still there"
    );
    let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .expect("running")
        .count();
    assert!(descriptors < 100, "{descriptors} descriptors");
}

#[test]
fn a_flood_before_login_leaves_the_agent_small() {
    let Some(agent) = Agent::start() else { return };
    works(&agent);
    let before = common::resident_kib(&agent);
    let flooding = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (agent, flooding) = (&agent, &flooding);
            scope.spawn(move || {
                let mut stream = connect(agent);
                let _ = stream.write_all(b"SSH-2.0-stranger\r\n");
                // Ignored messages are the most that a stranger may send without breaking a rule.
                let ignore = packet(&[&[2, 0, 0, 64, 0][..], &noise(16 << 10, seed)].concat());
                let mut sent = (0..1000).map(|_| stream.write_all(&ignore));
                let began = sent.next().is_some_and(|first| first.is_ok());
                flooding.fetch_add(1, Ordering::Relaxed);
                if began {
                    let _ = sent.find(Result::is_err);
                }
            });
        }
        eventually("all of them flood", || {
            flooding.load(Ordering::Relaxed) == 8
        });
        works(&agent);
    });
    let after = common::resident_kib(&agent);
    assert!(
        after < before + 32 * 1024,
        "{before} KiB before, {after} KiB after"
    );
    works(&agent);
}
