//! Taking over from the driver: the configuration and the two inherited descriptors.
//!
//! The descriptors become close-on-exec at once, so that no process of the tenant inherits them.

use std::{
    fs::File,
    io::Read as _,
    net::TcpListener,
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use rustix::io::{FdFlags, fcntl_setfd};
use souk_backend::agent::{AgentConfig, CONFIG_FD};

/// Longest configuration that is read, in bytes; a real one has about 500.
const MAX_CONFIG_BYTES: u64 = 64 * 1024;

/// What the driver left for the agent.
pub(crate) struct Handover {
    /// How to serve the lease.
    pub(crate) config: AgentConfig,
    /// Where SSH connections arrive.
    pub(crate) listener: TcpListener,
    /// Where messages to the driver go.
    pub(crate) control: UnixStream,
}

/// Why a handover failed: always the driver's mistake.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    #[error("descriptor {fd} ({role}) is not open")]
    NotOpen {
        fd: RawFd,
        role: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("descriptors of the handover overlap: {listener} and {control}")]
    Overlap { listener: RawFd, control: RawFd },
    #[error("the configuration cannot be read")]
    Read(#[source] std::io::Error),
    #[error("the configuration is longer than {MAX_CONFIG_BYTES} bytes")]
    TooLong,
    #[error("the configuration is not understood")]
    Decode(#[source] serde_json::Error),
}

impl Handover {
    /// Reads the configuration and claims the descriptors that it names.
    ///
    /// # Errors
    /// [`HandoverError`] says which part of the handover was missing or wrong.
    pub(crate) fn take() -> Result<Self, HandoverError> {
        let mut text = Vec::new();
        File::from(claim(CONFIG_FD, "configuration")?)
            .take(MAX_CONFIG_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(HandoverError::Read)?;
        if text.len() as u64 > MAX_CONFIG_BYTES {
            return Err(HandoverError::TooLong);
        }
        let config: AgentConfig = serde_json::from_slice(&text).map_err(HandoverError::Decode)?;
        let (listener, control) = (config.listener_fd, config.control_fd);
        if listener == control || listener <= 2 || control <= 2 {
            return Err(HandoverError::Overlap { listener, control });
        }
        Ok(Self {
            listener: claim(listener, "listener")?.into(),
            control: claim(control, "control")?.into(),
            config,
        })
    }
}

/// Makes an inherited descriptor ours. Each is claimed once, before anything else in this process opens one.
fn claim(fd: RawFd, role: &'static str) -> Result<OwnedFd, HandoverError> {
    let not_open = |source: std::io::Error| HandoverError::NotOpen { fd, role, source };
    // SAFETY: fcntl only looks the number up; it fails with EBADF where the descriptor is not open.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
        return Err(not_open(std::io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is open, was handed to us by the driver, and nothing else in this process owns it: the
    // three numbers are checked to differ and `take` runs once, before any thread is started.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|e| not_open(e.into()))?;
    Ok(fd)
}
