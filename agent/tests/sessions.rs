//! Sessions over connections that break: OpenSSH does not notice, and strangers leave nothing behind.

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Stdio,
    thread,
};

use common::{Agent, PATIENCE, eventually, noise};
use souk_session::{Ending, Hello, Session, SessionId, Status, Welcome, carry};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex, join},
    net,
    runtime::Runtime,
    sync::mpsc,
};

/// Bytes from the agent after which each connection breaks.
const CUT_AFTER: u64 = 300_000;

/// Listens for one SSH client and takes it to the agent by a session whose connections all break.
struct BreakingWire {
    port: u16,
    cuts: mpsc::UnboundedReceiver<()>,
    _runtime: Runtime,
}

impl BreakingWire {
    fn to(agent: &Agent) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime
            .block_on(net::TcpListener::bind(("127.0.0.1", 0)))
            .expect("a listener");
        let port = listener.local_addr().expect("bound").port();
        let (cut, cuts) = mpsc::unbounded_channel();
        let address = agent.address();
        runtime.spawn(async move {
            let (mut client, _) = listener.accept().await.expect("ssh comes");
            let (mut stream, near) = duplex(8_192);
            let through = tokio::io::copy_bidirectional(&mut client, &mut stream);
            let _ = tokio::join!(through, hold(address, near, cut));
        });
        Self {
            port,
            cuts,
            _runtime: runtime,
        }
    }
}

async fn hold(agent: SocketAddr, mut near: DuplexStream, cut: mpsc::UnboundedSender<()>) {
    let mut session = Session::default();
    let mut is_new = true;
    loop {
        let mut carrier = net::TcpStream::connect(agent)
            .await
            .expect("the agent listens");
        let hello = Hello {
            id: SessionId([3; 16]),
            is_new,
            received: session.received(),
        };
        is_new = false;
        carrier.write_all(&hello.encode()).await.expect("room");
        let mut answer = [0; Welcome::LENGTH];
        carrier.read_exact(&mut answer).await.expect("an answer");
        let welcome = Welcome::decode(&answer).expect("an agent");
        assert_eq!(welcome.status, Status::Ok);
        session.handle_attached(welcome.received).expect("it fits");
        let (from, to) = carrier.into_split();
        let breaking = join(from.take(CUT_AFTER), to);
        if carry(&mut session, breaking, &mut near).await != Ending::Cut {
            return;
        }
        let _ = cut.send(());
    }
}

#[test]
fn openssh_does_not_notice_that_connections_break() {
    let Some(agent) = Agent::start() else { return };
    let mut wire = BreakingWire::to(&agent);
    let mut ssh = agent
        .openssh_at("ssh", wire.port)
        .args(["souk@127.0.0.1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh runs");
    let sent = noise(3 << 20, 5);
    let mut input = ssh.stdin.take().expect("piped");
    let mut output = ssh.stdout.take().expect("piped");
    let mut heard = vec![];
    thread::scope(|scope| {
        scope.spawn(|| {
            input.write_all(&sent).expect("the session stands");
            drop(input);
        });
        output.read_to_end(&mut heard).expect("the session stands");
    });
    assert!(ssh.wait().expect("it ends").success());
    assert!(heard == sent, "{} bytes of {}", heard.len(), sent.len());
    let mut cuts = 0;
    while wire.cuts.try_recv().is_ok() {
        cuts += 1;
    }
    assert!(cuts >= 10, "{cuts} connections broke");
}

#[test]
fn a_newer_connection_takes_the_session_from_the_one_before() {
    let Some(agent) = Agent::start() else { return };
    let mut hello = Hello {
        id: SessionId([4; 16]),
        is_new: true,
        received: 0,
    };
    let (mut first, status) = greet(&agent, &hello);
    assert_eq!(status, Status::Ok);
    hello.is_new = false;
    let (mut second, status) = greet(&agent, &hello);
    assert_eq!(status, Status::Ok);
    // What the first carried until then, and its end.
    first.read_to_end(&mut vec![]).expect("it is closed");
    // What the agent has passed on, and the head of the first data.
    let mut begin = [0; 9 + 3 + 8];
    second.read_exact(&mut begin).expect("the session");
    assert!(begin.windows(8).any(|part| part == b"SSH-2.0-"));
    // A greeting that fits no state is turned away and harms nothing.
    hello.received = 1 << 40;
    let mut third = TcpStream::connect(agent.address()).expect("the listener accepts");
    third.write_all(&hello.encode()).expect("room");
    let heard = third.read_to_end(&mut vec![]);
    assert!(heard.is_err() || heard.is_ok_and(|count| count == 0));
    hello.received = 0;
    let (_, status) = greet(&agent, &hello);
    assert_eq!(status, Status::Ok, "it still stands");
}

/// Greets the agent and reads its answer.
fn greet(agent: &Agent, hello: &Hello) -> (TcpStream, Status) {
    try_greet(agent, hello).expect("an answer")
}

/// None where the connection is closed instead.
fn try_greet(agent: &Agent, hello: &Hello) -> Option<(TcpStream, Status)> {
    let mut stream = TcpStream::connect(agent.address()).expect("the listener accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&hello.encode()).expect("room");
    let mut answer = [0; Welcome::LENGTH];
    stream.read_exact(&mut answer).ok()?;
    let status = Welcome::decode(&answer).expect("an agent").status;
    Some((stream, status))
}

#[test]
fn strangers_who_begin_sessions_leave_none_and_lock_nobody_out() {
    let Some(agent) = Agent::start() else { return };
    let works = || assert_eq!(agent.exec("echo in").stdout, b"in\n");
    works();
    let hello = |n: u8, is_new| Hello {
        id: SessionId([n; 16]),
        is_new,
        received: 0,
    };
    let (_, unknown) = greet(&agent, &hello(1, false));
    assert_eq!(unknown, Status::Unknown);
    for n in 0..200 {
        let (mut stream, status) = greet(&agent, &hello(n, true));
        assert_eq!(status, Status::Ok);
        match n % 3 {
            // It breaks off at once, breaks the protocol, or speaks no SSH inside.
            0 => {}
            1 => {
                let _ = stream.write_all(&noise(4_096, n.into()));
            }
            _ => {
                let _ = stream.write_all(&[&[0, 0, 6][..], b"HELLO\n"].concat());
            }
        }
    }
    works();
    // A greeting that does not end, one that is none, and one that says it has received what was never sent.
    let half = hello(9, true).encode();
    let mut wrong = half;
    wrong[7] = b'2';
    let mut ahead = hello(201, true);
    ahead.received = 1 << 40;
    for bytes in [&half[..20], &wrong, &ahead.encode()] {
        let mut stream = TcpStream::connect(agent.address()).expect("the listener accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(bytes).expect("room");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut heard = vec![];
        let ended = stream.read_to_end(&mut heard);
        assert!(ended.is_err() || heard.is_empty(), "{heard:?}");
    }
    works();
    // What was begun and left is forgotten at once, or when its time to log in is over.
    for n in 0..200 {
        eventually("no session of a stranger is left", || {
            let answer = try_greet(&agent, &hello(n, false));
            answer.is_some_and(|(_, status)| status == Status::Unknown)
        });
    }
    eventually("what strangers began is gone", || {
        let open = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("running");
        open.count() < 40
    });
    assert!(common::resident_kib(&agent) < 64 * 1024);
}
