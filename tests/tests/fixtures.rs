//! The fixtures themselves: a check that cannot fail would prove nothing.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use souk_tests::{Capture, Host, Lan, needs, succeed};

fn connect(from: &Host, to: &Host, port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from((to.address(), port));
    from.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)))
}

fn listen(host: &Host) -> (TcpListener, u16) {
    let listener = host.run(|| TcpListener::bind((host.address(), 0)).expect("a listener"));
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

#[test]
fn hosts_reach_each_other_until_one_is_cut_off_needs_root_netns() {
    needs!(Hosts);
    let lan = Lan::new(3);
    assert_eq!(lan.ports(), 3);
    let [a, b, c] = lan.hosts() else {
        panic!("three hosts")
    };
    let (_listener, port) = listen(b);
    connect(a, b, port).expect("reachable");
    b.cut_off();
    assert!(connect(a, b, port).is_err());
    let (_other, other) = listen(c);
    connect(a, c, other).expect("the others are not cut off");
    b.reconnect();
    souk_tests::eventually("the host is back", || connect(a, b, port).ok());
}

#[test]
fn a_capture_sees_addresses_and_contents_of_its_host_only_needs_root_netns() {
    needs!(Hosts);
    let lan = Lan::new(3);
    let [a, b, c] = lan.hosts() else {
        panic!("three hosts")
    };
    let (listener, port) = listen(b);
    let (at_b, at_c) = (Capture::start(b), Capture::start(c));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("read");
        said
    });
    let mut stream = connect(a, b, port).expect("reachable");
    stream
        .write_all(b"a word that is not encrypted")
        .expect("sent");
    drop(stream);
    assert_eq!(
        server.join().expect("served"),
        b"a word that is not encrypted"
    );
    let (at_b, at_c) = (at_b.stop(), at_c.stop());
    assert!(at_b.count() > 0);
    assert!(at_b.addresses().contains(&a.address()));
    assert!(at_b.contain(b"a word that is not encrypted"));
    assert!(!at_c.contain(b"a word that is not encrypted"));
}

#[test]
fn a_machine_that_lacks_what_a_test_needs_skips_it_and_says_so() {
    let mut again = Command::new(env::current_exe().expect("a path"));
    again
        .args([
            "--exact",
            "--nocapture",
            "hosts_reach_each_other_until_one_is_cut_off_needs_root_netns",
        ])
        .env("PATH", "/nonexistent");
    let output = succeed(&mut again);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("skipped: needs root and iproute2"), "{said}");
}
