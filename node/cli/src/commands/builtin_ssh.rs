//! An SSH client for machines without one.
//!
//! It does less than OpenSSH (one command or one shell, no forwarding) and trusts less: one host key, the one of the
//! receipt, and one key to log in with.

use std::{
    io::{self, IsTerminal as _},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use russh::{
    ChannelMsg, Disconnect,
    client::{self, Handle},
    keys::{HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate, ssh_key::public::KeyData},
};
use rustix::termios::{self, OptionalActions, Termios};
use souk_market::units::HostKey;
use souk_node::client::{Client, Lease};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    signal::unix::{SignalKind, signal},
};

use super::ssh::{INTERRUPTED, say, told_to_end, unreached};
use crate::{
    failure::{Failure, UNAVAILABLE},
    stdio,
};

/// Bytes read from the terminal at once.
const INPUT_BYTES: usize = 16 * 1024;

/// A silent session is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// So many questions without an answer, and it is over: as long as a session is kept.
const KEEPALIVE_MAX: usize = 10;

/// Runs a command, or a shell where `command` is empty; its exit status becomes ours.
pub(super) async fn session(
    lease_client: &Client,
    lease: &Lease,
    command: &str,
) -> Result<ExitCode, Failure> {
    let told = told_to_end().map_err(|error| Failure::because("cannot hear signals", &error))?;
    tokio::pin!(told);
    let stream = tokio::select! {
        stream = lease_client.session(lease, say) => stream.map_err(|error| unreached(&error))?,
        () = &mut told => return Ok(INTERRUPTED.into()),
    };
    let (stream, farewell) = stream.into_parts();
    let code = tokio::select! {
        code = ssh(stream, lease, command) => code,
        () = told => Ok(INTERRUPTED.into()),
    };
    farewell.say().await;
    code
}

/// Speaks SSH over a stream to the instance.
async fn ssh(stream: DuplexStream, lease: &Lease, command: &str) -> Result<ExitCode, Failure> {
    let receipt = lease
        .receipt()
        .ok_or_else(|| Failure::new("the lease has no receipt"))?;
    let config = Arc::new(client::Config {
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        channel_buffer_size: 16_384,
        ..client::Config::default()
    });
    let pinned = Pinned(receipt.host_key);
    let broken =
        |error: russh::Error| Failure::because("the SSH session broke", &error).code(UNAVAILABLE);
    let mut session = client::connect_stream(config, stream, pinned)
        .await
        .map_err(broken)?;
    let key = russh::keys::load_secret_key(lease.ssh_key(), None)
        .map_err(|error| Failure::because("the SSH key of the lease cannot be used", &error))?;
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None::<HashAlg>);
    let login = session
        .authenticate_publickey(receipt.user.as_str(), key)
        .await
        .map_err(broken)?;
    if !login.success() {
        return Err(Failure::new(
            "the instance does not take the key of the lease",
        ));
    }
    let code = talk(&session, command).await.map_err(broken)?;
    // The session is over either way.
    let _ = session
        .disconnect(Disconnect::ByApplication, "", "en")
        .await;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Accepts the host key of the receipt and no other.
struct Pinned(HostKey);

impl client::Handler for Pinned {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        offered: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = offered else {
            return Ok(false);
        };
        Ok(matches!(key.key_data(), KeyData::Ed25519(key) if key.0 == self.0.0))
    }
}

async fn talk(session: &Handle<Pinned>, command: &str) -> Result<u32, russh::Error> {
    let mut channel = session.channel_open_session().await?;
    let interactive = command.is_empty() && io::stdin().is_terminal();
    let _raw = if interactive {
        RawTerminal::enter()
    } else {
        None
    };
    if interactive {
        let (columns, rows) = size();
        let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        channel
            .request_pty(false, &terminal, columns, rows, 0, 0, &[])
            .await?;
    }
    if command.is_empty() {
        channel.request_shell(true).await?;
    } else {
        channel.exec(true, command).await?;
    }
    let mut resized = signal(SignalKind::window_change()).map_err(russh::Error::IO)?;
    let mut input = stdio::input().map_err(russh::Error::IO)?;
    let mut output = stdio::output().map_err(russh::Error::IO)?;
    let mut errors = stdio::errors().map_err(russh::Error::IO)?;
    let mut buffer = vec![0; INPUT_BYTES];
    let mut open = true;
    let mut code = 255;
    loop {
        tokio::select! {
            read = input.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => {
                    open = false;
                    channel.eof().await?;
                }
                Ok(n) => channel.data(&buffer[..n]).await?,
            },
            _ = resized.recv(), if interactive => {
                let (columns, rows) = size();
                channel.window_change(columns, rows, 0, 0).await?;
            }
            message = channel.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    output.write_all(&data).await.map_err(russh::Error::IO)?;
                    output.flush().await.map_err(russh::Error::IO)?;
                }
                Some(ChannelMsg::ExtendedData { data, .. }) => {
                    errors.write_all(&data).await.map_err(russh::Error::IO)?;
                    errors.flush().await.map_err(russh::Error::IO)?;
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => code = exit_status,
                Some(_) => {}
                None => return Ok(code),
            },
        }
    }
}

/// Columns and rows of the terminal.
fn size() -> (u32, u32) {
    termios::tcgetwinsize(io::stdin())
        .map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}

/// The terminal in raw mode, until it is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Option<Self> {
        let before = termios::tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}
