//! From the start of a node, a mix with new keys, to the first answer on its control socket.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use souk_node::control::Client;

#[path = "../../../crypto/benches/measured/mod.rs"]
mod measured;

use measured::{measured, median};

/// Starts, of which the median counts.
const STARTS: usize = 11;
/// Between two tries at the socket.
const LOOK: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

const CONFIGURATION: &str = r#"[network]
name = "start"
test = true

[node]
data_dir = "data"
roles = ["mix", "entry", "relay"]
listen = ["/ip4/127.0.0.1/udp/0/quic-v1"]
mdns = false
"#;

/// Starts a node in a folder of its own, and stops it when it has answered; how long it took to answer.
async fn start() -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("souk.toml");
    fs::write(&config, CONFIGURATION).expect("written");
    let socket = folder.path().join("data/control.sock");
    let began = Instant::now();
    let mut node = Command::new(env!("CARGO_BIN_EXE_souk"))
        .args(["node", "run", "--while-stdin", "--config"])
        .arg(&config)
        .env_remove("SOUK_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("souk starts");
    let took = loop {
        if let Ok(mut control) = Client::connect(&socket).await
            && control.status().await.is_ok()
        {
            break began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "no answer");
        tokio::time::sleep(LOOK).await;
    };
    drop(node.stdin.take());
    node.wait().expect("it ends");
    took
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let took = (0..STARTS).map(|_| runtime.block_on(start())).collect();
    measured("control-socket", median(took).as_secs_f64() * 1e3, "ms");
}
