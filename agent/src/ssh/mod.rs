//! The SSH server of an instance: one user, one key, and bounds on everything a stranger can reach before login.
//!
//! ```text
//!  accepted ── id, key exchange ──► asking ── the one key ──► logged in ──► closed
//!     └──────── LOGIN_GRACE, or newer strangers ─────────────────────────────▲
//! ```
//!
//! A connection carries SSH itself, or a session that outlives it ([`resumed`]).
//!
//! Threats: strangers who reach the listener (only the lease's key passes; at most [`MAX_STRANGERS`] connections that
//! have not logged in are kept, and a newer one replaces the oldest, so holding connections open locks nobody out);
//! a client that floods ([`inbound`]); the tenant's own processes (nothing runs inside the agent).

mod connection;
mod forward;
mod inbound;
mod program;
mod pty;
mod resumed;
mod wire;

use std::{
    borrow::Cow,
    collections::VecDeque,
    io,
    net::TcpListener as StdTcpListener,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use russh::{
    MethodKind, MethodSet, Preferred, SshId, cipher, compression, kex,
    keys::{
        Algorithm, PrivateKey,
        ssh_key::{private::Ed25519Keypair, public::Ed25519PublicKey},
    },
    mac,
    server::{Config, run_stream},
};
use rustix::{
    net::{Shutdown, shutdown},
    rand::{GetRandomFlags, getrandom},
};
use souk_backend::{HostKey, agent::AgentConfig};
use souk_session::LINGER;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::pty::{PtyRequest, WindowSize};
use self::{
    connection::Connection,
    inbound::WINDOW,
    resumed::{Guest, Line, Sessions},
};
use crate::{meters::Meters, tenant::Tenant};

/// Connections that have not logged in. OpenSSH begins to drop at 10; relays add some that are slow.
const MAX_STRANGERS: usize = 16;

/// Connections that have logged in: all of the one tenant, who can open more sessions on each.
const MAX_LOGGED_IN: usize = 32;

/// How long a connection may take to log in; OpenSSH gives 120 s to a human at a password prompt, and here is none.
const LOGIN_GRACE: Duration = Duration::from_secs(30);

/// Keys that a client may try; clients offer everything their agent holds.
const MAX_AUTH_ATTEMPTS: usize = 6;

/// Time that a refused login takes.
const REJECTION_TIME: Duration = Duration::from_millis(300);

/// A silent client is asked for a sign of life this often, ...
const KEEPALIVE: Duration = Duration::from_secs(30);

/// ... and is gone after so many questions without an answer.
const KEEPALIVE_MAX: usize = 20;

/// How long a write may be stuck; answers to keepalives count as activity.
const INACTIVITY: Duration = Duration::from_secs(900);

/// How long a connection that was cut off may take to notice.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The server, before it runs.
pub(crate) struct Server {
    host_key: HostKey,
    config: Arc<Config>,
    door: Door,
    tenant: Tenant,
    listener: StdTcpListener,
}

/// Who may log in, and how many are inside.
#[derive(Clone)]
struct Door(Arc<DoorState>);

struct DoorState {
    user: String,
    key: Ed25519PublicKey,
    meters: Meters,
    guests: Mutex<Guests>,
    sessions: Sessions,
}

#[derive(Default)]
struct Guests {
    /// In order of arrival, each with its number.
    strangers: VecDeque<(u64, CancellationToken)>,
    logged_in: usize,
    arrived: u64,
}

/// A connection's place at the door, given up when dropped.
struct Place {
    door: Door,
    number: u64,
    connection: CancellationToken,
    logged_in: CancellationToken,
}

impl Server {
    /// A server with a new host key.
    pub(crate) fn new(
        config: &AgentConfig,
        tenant: Tenant,
        meters: Meters,
        listener: StdTcpListener,
    ) -> io::Result<Self> {
        let mut seed = [0u8; Ed25519PublicKey::BYTE_SIZE];
        fill_random(&mut seed)?;
        let pair = Ed25519Keypair::from_seed(&seed);
        listener.set_nonblocking(true)?;
        Ok(Self {
            host_key: HostKey(pair.public.0),
            config: Arc::new(ssh_config(PrivateKey::from(pair))),
            door: Door(Arc::new(DoorState {
                user: config.user.clone(),
                key: Ed25519PublicKey(config.authorized_key.0),
                meters,
                guests: Mutex::default(),
                sessions: Sessions::default(),
            })),
            tenant,
            listener,
        })
    }

    /// What clients will see.
    pub(crate) fn host_key(&self) -> HostKey {
        self.host_key
    }

    /// Accepts until it is aborted.
    pub(crate) async fn run(self) -> io::Result<()> {
        let listener = TcpListener::from_std(self.listener)?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let place = self.door.enter();
                    tokio::spawn(serve(
                        stream,
                        place,
                        self.config.clone(),
                        self.tenant.clone(),
                    ));
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }
}

/// Carries one connection from its first byte to its last.
async fn serve(stream: TcpStream, place: Place, config: Arc<Config>, tenant: Tenant) {
    // Without it keystrokes wait for acknowledgements; a failure costs only that.
    let _ = stream.set_nodelay(true);
    // To cut the connection off from outside of the library, whatever it waits for.
    let Ok(line) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    let (connection, logged_in) = (place.connection.clone(), place.logged_in.clone());
    // The same for a session that begins with it.
    let put_out = CancellationToken::new();
    let guest = Guest {
        connection: connection.clone(),
        logged_in: logged_in.clone(),
        put_out: put_out.clone(),
    };
    let sessions = place.door.0.sessions.clone();
    let arrival = tokio::select! {
        arrival = sessions.receive(stream, &guest) => arrival,
        () = connection.cancelled() => return,
    };
    let Ok(Some(stream)) = arrival else {
        return;
    };
    // A session has its connections for itself.
    let line = matches!(stream, Line::Left(_)).then_some(line);
    let cut = || {
        put_out.cancel();
        let _ = line.as_ref().map(|line| shutdown(line, Shutdown::Both));
    };
    // How a connection ended concerns its client only, and who that was must not be written down.
    let handler = Connection::new(place, tenant);
    let session = async move { run_stream(config, stream, handler).await?.await };
    let overdue = async {
        tokio::select! {
            () = sleep(LOGIN_GRACE) => {}
            () = logged_in.cancelled() => std::future::pending().await,
        }
    };
    tokio::pin!(session);
    let mut has_ended = tokio::select! {
        _ = &mut session => true,
        () = overdue => false,
        () = connection.cancelled() => false,
    };
    connection.cancel();
    // What a client that has logged in was told last is kept for it; a stranger leaves nothing.
    if !logged_in.is_cancelled() {
        cut();
    }
    has_ended = has_ended || timeout(LAST_WORDS, session).await.is_ok();
    if has_ended && line.is_none() {
        // The last words of a session may wait for a connection, but not longer than a session does.
        let _ = timeout(LINGER, put_out.cancelled()).await;
    }
    cut();
}

impl Door {
    fn enter(&self) -> Place {
        let connection = CancellationToken::new();
        let mut guests = self.guests();
        if guests.strangers.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = guests.strangers.pop_front()
        {
            oldest.cancel();
        }
        guests.arrived += 1;
        let number = guests.arrived;
        guests.strangers.push_back((number, connection.clone()));
        Place {
            door: self.clone(),
            number,
            connection,
            logged_in: CancellationToken::new(),
        }
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.0.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether a user with a key may pass.
    fn admits(&self, user: &str, key: &russh::keys::PublicKey) -> bool {
        user == self.door.0.user && key.key_data().ed25519() == Some(&self.door.0.key)
    }

    /// The client has proven its key. False if too many have, and this one must go. A session that waits for its client, who
    /// may never come back, goes first.
    fn log_in(&self) -> bool {
        let mut guests = self.door.guests();
        if guests.logged_in >= MAX_LOGGED_IN && !self.door.0.sessions.put_out_longest() {
            return false;
        }
        guests.logged_in += 1;
        guests.forget(self.number);
        self.logged_in.cancel();
        self.door.0.meters.login();
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.cancel();
        let mut guests = self.door.guests();
        if self.logged_in.is_cancelled() {
            guests.logged_in -= 1;
        } else {
            guests.forget(self.number);
        }
    }
}

impl Guests {
    fn forget(&mut self, number: u64) {
        self.strangers.retain(|(other, _)| *other != number);
    }
}

fn ssh_config(host_key: PrivateKey) -> Config {
    Config {
        // The version of the library is nobody's business. By the comment some clients learn that SFTP symbolic links take
        // their arguments in OpenSSH's order.
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-souk like OpenSSH")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        preferred: Preferred {
            kex: Cow::Borrowed(&[
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::EXTENSION_SUPPORT_AS_SERVER,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
            ]),
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            cipher: Cow::Borrowed(&[
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_GCM,
                cipher::AES_256_CTR,
            ]),
            mac: Cow::Borrowed(&[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM]),
            // A compressed packet can be a bomb, and what is sent over relays should not tell its content by its size.
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        window_size: WINDOW,
        max_auth_attempts: MAX_AUTH_ATTEMPTS,
        inactivity_timeout: Some(INACTIVITY),
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        ..Config::default()
    }
}

/// Fills a buffer from the kernel's generator.
fn fill_random(mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match getrandom(&mut *buffer, GetRandomFlags::empty()) {
            Ok(n) => buffer = &mut buffer[n..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
