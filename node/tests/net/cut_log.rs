//! A usage log that is read over a line that breaks.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use souk_node::net::{
    LogFetchError, LogPath, LogReadError, LogSource, MAX_RESUMES, Multiaddr, OpenError,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::support::{TestNode, client, config};

/// A log of three tiles, which remembers what it was asked for.
#[derive(Default)]
struct ThreeTiles(Mutex<Vec<String>>);

impl ThreeTiles {
    fn asked(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl LogSource for ThreeTiles {
    fn file(&self, path: &LogPath) -> std::io::Result<Option<Bytes>> {
        let mut asked = self.0.lock().expect("not poisoned");
        asked.push(path.to_string());
        Ok(match path {
            LogPath::Tile {
                level: 0, index, ..
            } if *index < 3 => Some(Bytes::from(vec![7; 256 * 32])),
            _ => None,
        })
    }
}

/// Carries connections to a node until it is told to break them.
struct Line {
    address: Multiaddr,
    cuts: watch::Sender<u32>,
    work: JoinSet<()>,
}

impl Line {
    async fn to(node: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let cuts = watch::Sender::new(0);
        let (mut work, cut) = (JoinSet::new(), cuts.subscribe());
        work.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                carried.spawn(async move {
                    let mut far = TcpStream::connect(node).await.expect("the node listens");
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        let address = format!("/ip4/127.0.0.1/tcp/{port}");
        let address = address.parse().expect("a multiaddress");
        Self {
            address,
            cuts,
            work,
        }
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Nobody gets through any more.
    async fn end(mut self) {
        self.work.shutdown().await;
    }
}

fn tile(index: u32) -> LogPath {
    format!("tile/0/{index:03}").parse().expect("a path")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_goes_on_where_the_line_broke_and_is_given_up_after_tries_that_are_told() {
    let log = Arc::new(ThreeTiles::default());
    let node = TestNode::start_with_log(config(), log.clone()).await;
    let address = node.address("tcp").await;
    let port = address.address().iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let line = Line::to(([127, 0, 0, 1], port.expect("tcp")).into()).await;
    let client = client();
    let reading = client.peers();
    let reading = reading.read_log(address.node(), vec![line.address.clone()]);
    let mut reading = reading.await.expect("it serves a log");
    let (mut resumed, whole) = (0, 256 * 32);
    for index in 0..3 {
        let file = reading.file(&tile(index), |_| resumed += 1).await;
        assert_eq!(file.expect("read").expect("there").len(), whole);
        line.cut();
    }
    assert!(resumed >= 2, "the line broke twice between two files");
    // What had come was not asked for again.
    let mut asked = log.asked();
    asked.dedup();
    assert_eq!(asked, ["tile/0/000", "tile/0/001", "tile/0/002"]);

    line.end().await;
    let mut tries = Vec::new();
    let error = reading.file(&tile(0), |attempt| tries.push(attempt)).await;
    assert!(matches!(error, Err(LogReadError::Connect(_))), "{error:?}");
    assert_eq!(tries, (1..=MAX_RESUMES).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_serves_no_log_is_told_at_once() {
    let other = client();
    let node = TestNode::start_without_log(config()).await;
    let address = node.address("tcp").await;
    let addresses = vec![address.address().clone()];
    let error = other.peers().read_log(address.node(), addresses).await;
    assert!(
        matches!(
            error,
            Err(LogReadError::Fetch(LogFetchError::Open(
                OpenError::Unsupported { .. }
            )))
        ),
        "{error:?}"
    );
}
