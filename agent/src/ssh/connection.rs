//! The callbacks of one connection: login, channels and their requests.
//!
//! The library calls these from the loop that also writes, so nothing here waits for a program or a socket, except
//! [`Inbound::push`], which bounds how long.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt as _,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, Disconnect, Pty, Sig,
    keys::PublicKey,
    server::{
        Auth, ChannelOpenHandle, Handle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
    },
};
use tokio::{
    io::unix::AsyncFd,
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{
    Place, forward,
    inbound::{Inbound, Overrun},
    program,
    pty::{PtyRequest, WindowSize},
    wire::{STDERR, Wire, signal_from_wire},
};
use crate::{
    children::Group,
    tenant::{Task, Tenant, set_window_size},
};

/// Channels of one connection: OpenSSH stops at 10 sessions, and each forwarded connection takes one too.
const MAX_CHANNELS: usize = 64;

/// Ports of the instance that one connection may listen on.
const MAX_LISTENERS: usize = 16;

/// Variables that a client may set on one channel.
const MAX_ENV: usize = 32;

/// Longest value of such a variable, in bytes.
const MAX_ENV_BYTES: usize = 512;

/// Longest command line, in bytes: what Linux takes as one argument.
const MAX_COMMAND_BYTES: usize = 128 << 10;

/// Exit status of a command that was found and could not be run (POSIX, shell command language).
const CANNOT_EXECUTE: u32 = 126;

/// One connection; dropped when the library is done with it, which ends everything that it started.
pub(super) struct Connection {
    place: Place,
    tenant: Tenant,
    channels: Arc<Channels>,
    sessions: HashMap<ChannelId, Stage>,
    listeners: HashMap<(String, u32), CancellationToken>,
}

/// What the tasks of a connection share.
pub(super) struct Channels {
    pub(super) inbound: Inbound<ChannelId>,
    pub(super) free: Arc<Semaphore>,
}

/// Why a connection is cut off; it concerns nobody but its client.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    #[error(transparent)]
    Overrun(#[from] Overrun),
}

/// Where a session channel stands (RFC 4254, section 6.5: it runs one program in its life).
enum Stage {
    Preparing(Box<Preparing>),
    Running(Running),
}

struct Preparing {
    channel: Channel<Msg>,
    permit: OwnedSemaphorePermit,
    env: Vec<(String, String)>,
    pty: Option<PtyRequest>,
}

struct Running {
    group: Group,
    terminal: Weak<AsyncFd<std::os::fd::OwnedFd>>,
}

/// What a client can ask a session channel to run.
enum Wanted<'a> {
    Task(Task<'a>),
    Sftp,
}

impl Channels {
    /// The channel for the task that serves it.
    pub(super) fn wire(
        &self,
        channel: Channel<Msg>,
        handle: Handle,
        permit: OwnedSemaphorePermit,
    ) -> Wire {
        let queue = self.inbound.queue(channel.id());
        // Data arrives in the callbacks below; nobody reads the library's own queue, and dropping it keeps it empty.
        let (_, write) = channel.split();
        Wire {
            write,
            handle,
            queue,
            _permit: permit,
        }
    }
}

impl Connection {
    /// A connection that has not logged in.
    pub(super) fn new(place: Place, tenant: Tenant) -> Self {
        Self {
            channels: Arc::new(Channels {
                inbound: Inbound::new(&place.connection),
                free: Arc::new(Semaphore::new(MAX_CHANNELS)),
            }),
            place,
            tenant,
            sessions: HashMap::new(),
            listeners: HashMap::new(),
        }
    }

    fn admit(&self, user: &str, key: &PublicKey) -> Auth {
        if self.place.admits(user, key) {
            Auth::Accept
        } else {
            Auth::reject()
        }
    }

    fn preparing(&mut self, id: ChannelId) -> Option<&mut Preparing> {
        match self.sessions.get_mut(&id) {
            Some(Stage::Preparing(preparing)) => Some(preparing),
            _ => None,
        }
    }

    fn running(&self, id: ChannelId) -> Option<&Running> {
        match self.sessions.get(&id) {
            Some(Stage::Running(running)) => Some(running),
            _ => None,
        }
    }

    /// Starts the program of a session channel and answers the request.
    fn start(
        &mut self,
        id: ChannelId,
        wanted: &Wanted<'_>,
        session: &mut Session,
    ) -> Result<(), ConnectionError> {
        let preparing = match self.sessions.remove(&id) {
            Some(Stage::Preparing(preparing)) => *preparing,
            Some(running) => {
                self.sessions.insert(id, running);
                return Ok(session.channel_failure(id)?);
            }
            None => return Ok(session.channel_failure(id)?),
        };
        match self.launch(wanted, preparing, session.handle()) {
            Ok(running) => {
                self.sessions.insert(id, Stage::Running(running));
                Ok(session.channel_success(id)?)
            }
            Err(error) => Ok(report_failure(id, &error, session)?),
        }
    }

    fn launch(
        &self,
        wanted: &Wanted<'_>,
        preparing: Preparing,
        handle: Handle,
    ) -> io::Result<Running> {
        let Preparing {
            channel,
            permit,
            env,
            pty,
        } = preparing;
        let wire = |channel| self.channels.wire(channel, handle, permit);
        match (wanted, pty) {
            (Wanted::Sftp, _) => {
                let (child, stream) = self.tenant.sftp()?;
                let group = child.group();
                tokio::spawn(program::run_on_socket(child, stream, wire(channel)));
                Ok(Running {
                    group,
                    terminal: Weak::new(),
                })
            }
            (Wanted::Task(task), None) => {
                let piped = self.tenant.pipe(task, &env)?;
                let group = piped.child.group();
                tokio::spawn(program::run_piped(piped, wire(channel)));
                Ok(Running {
                    group,
                    terminal: Weak::new(),
                })
            }
            (Wanted::Task(task), Some(pty)) => {
                let started = self.tenant.terminal(task, &env, &pty)?;
                let group = started.child.group();
                rustix::io::ioctl_fionbio(&started.master, true)?;
                // SAFETY: an `OwnedFd` is open and stays the same descriptor until it is dropped, which is after the
                // registration: only shared references to it are ever handed out.
                let master = Arc::new(unsafe { AsyncFd::register(started.master) }?);
                let terminal = Arc::downgrade(&master);
                tokio::spawn(program::run_on_terminal(
                    started.child,
                    master,
                    wire(channel),
                ));
                Ok(Running { group, terminal })
            }
        }
    }
}

impl Handler for Connection {
    type Error = ConnectionError;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.admit(user, offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.admit(user, key.public_key))
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), Self::Error> {
        if !self.place.log_in() {
            session.disconnect(Disconnect::TooManyConnections, "too many connections", "")?;
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Ok(permit) = Semaphore::try_acquire_owned(self.channels.free.clone()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        let id = channel.id();
        self.channels.inbound.queue(id);
        let preparing = Box::new(Preparing {
            channel,
            permit,
            env: Vec::new(),
            pty: None,
        });
        self.sessions.insert(id, Stage::Preparing(preparing));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let targets = forward::targets(host_to_connect, port_to_connect);
        if targets.is_empty() {
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        }
        let Ok(permit) = Semaphore::try_acquire_owned(self.channels.free.clone()) else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        self.channels.inbound.queue(channel.id());
        tokio::spawn(forward::connect(
            targets,
            channel,
            reply,
            session.handle(),
            self.channels.clone(),
            permit,
        ));
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.sessions.remove(&channel);
        self.channels.inbound.close(channel);
        Ok(())
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.inbound.end(channel);
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window_size: u32,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Of a connection that was passed on to the client: its data may follow at once.
        self.channels.inbound.queue(id);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let data = Bytes::copy_from_slice(data);
        Ok(self.channels.inbound.push(channel, data).await?)
    }

    fn adjust_window(&mut self, channel: ChannelId, _current: u32) -> u32 {
        self.channels.inbound.window(channel)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        col_width: u32,
        row_height: u32,
        pix_width: u32,
        pix_height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = WindowSize::new(col_width, row_height, pix_width, pix_height);
        match (PtyRequest::new(term, size, modes), self.preparing(channel)) {
            (Some(request), Some(preparing)) => {
                preparing.pty = Some(request);
                session.channel_success(channel)?;
            }
            _ => session.channel_failure(channel)?,
        }
        Ok(())
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        variable_name: &str,
        variable_value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        match self.preparing(channel) {
            Some(preparing)
                if preparing.env.len() < MAX_ENV && env_allowed(variable_name, variable_value) =>
            {
                preparing
                    .env
                    .push((variable_name.to_owned(), variable_value.to_owned()));
                session.channel_success(channel)?;
            }
            _ => session.channel_failure(channel)?,
        }
        Ok(())
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(channel, &Wanted::Task(Task::Shell), session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if data.len() > MAX_COMMAND_BYTES || data.contains(&0) {
            return Ok(session.channel_failure(channel)?);
        }
        let task = Task::Command(OsStr::from_bytes(data));
        self.start(channel, &Wanted::Task(task), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if name == "sftp" {
            self.start(channel, &Wanted::Sftp, session)
        } else {
            Ok(session.channel_failure(channel)?)
        }
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _x11_auth_protocol: &str,
        _x11_auth_cookie: &str,
        _x11_screen_number: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        Ok(session.channel_failure(channel)?)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        col_width: u32,
        row_height: u32,
        pix_width: u32,
        pix_height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = WindowSize::new(col_width, row_height, pix_width, pix_height);
        let resized = self
            .running(channel)
            .and_then(|running| running.terminal.upgrade())
            .is_some_and(|master| set_window_size(master.get_ref(), size).is_ok());
        if resized {
            session.channel_success(channel)?;
        } else {
            session.channel_failure(channel)?;
        }
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let (Some(running), Some(signal)) = (self.running(channel), signal_from_wire(&signal)) {
            running.group.signal(signal);
        }
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let (Some(ip), Ok(wanted)) = (forward::listen_address(address), u16::try_from(*port))
        else {
            return Ok(false);
        };
        if self.listeners.len() >= MAX_LISTENERS {
            return Ok(false);
        }
        let Ok(listener) = TcpListener::bind((ip, wanted)).await else {
            return Ok(false);
        };
        let Ok(bound) = listener.local_addr() else {
            return Ok(false);
        };
        *port = bound.port().into();
        let cancelled = self.place.connection.child_token();
        self.listeners
            .insert((address.to_owned(), *port), cancelled.clone());
        tokio::spawn(forward::listen(
            listener,
            address.to_owned(),
            session.handle(),
            self.channels.clone(),
            cancelled,
        ));
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, Self::Error> {
        let listener = self.listeners.remove(&(address.to_owned(), port));
        Ok(listener.is_some_and(|cancelled| {
            cancelled.cancel();
            true
        }))
    }
}

/// Says why a program could not be started, in the way in which a shell would.
fn report_failure(
    id: ChannelId,
    error: &io::Error,
    session: &mut Session,
) -> Result<(), russh::Error> {
    session.channel_success(id)?;
    let text = format!("souk-agent: cannot start it: {error}\n");
    session.extended_data(id, STDERR, text)?;
    session.exit_status_request(id, CANNOT_EXECUTE)?;
    session.eof(id)?;
    session.close(id)
}

/// Locale, colours and time zone; what else a program needs its user can set in the command.
fn env_allowed(name: &str, value: &str) -> bool {
    let known = matches!(name, "LANG" | "LANGUAGE" | "TZ" | "COLORTERM" | "NO_COLOR")
        || name.strip_prefix("LC_").is_some_and(|rest| {
            (1..=32).contains(&rest.len())
                && rest.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        });
    known && value.len() <= MAX_ENV_BYTES && !value.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_takes_locales_and_no_loader_tricks() {
        for name in ["LANG", "LC_ALL", "LC_CTYPE", "TZ", "NO_COLOR"] {
            assert!(env_allowed(name, "de_DE.UTF-8"), "{name}");
        }
        for name in [
            "LD_PRELOAD",
            "PATH",
            "LC_",
            "LC_A=B",
            "lc_all",
            "BASH_ENV",
            "",
        ] {
            assert!(!env_allowed(name, "x"), "{name}");
        }
        assert!(!env_allowed("LANG", "a\0b"));
        assert!(!env_allowed("LANG", &"x".repeat(MAX_ENV_BYTES + 1)));
    }
}
