//! What the driver and a keeper say to each other, over Unix sockets that keep message boundaries.
//!
//! The driver's first message to a new keeper carries the descriptors that the lease needs; later ones go over the
//! socket in the lease's folder, which only the provider's own user can reach. No tenant is on either.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use souk_backend::{HostKey, LeaseSpec, UsageSample};

use crate::{cgroup::LeaseCgroup, probe::Report, stage::StageError};

/// Largest message, with room for the paths of a lease's control groups.
const MAX_PACKET_BYTES: usize = 64 << 10;

/// Descriptors of one message.
const MAX_DESCRIPTORS: usize = 4;

/// What a new keeper has to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Carry a lease. Descriptors: lock, listener, agent program, folder of the lease.
    Launch(Box<Launch>),
    /// Try what a lease would need, and tell. No descriptors.
    Probe(Folders),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) spec: LeaseSpec,
    /// Which pair of ids it has, below [`crate::uids::MAX_LEASES`].
    pub(crate) slot: u32,
    pub(crate) port: u16,
    pub(crate) ids: Ids,
    pub(crate) cgroup: LeaseCgroup,
    pub(crate) folders: Folders,
    pub(crate) memory_is_enforced: bool,
    pub(crate) overlay: bool,
}

/// Folders of the host that an instance is mounted from. They go by path and not by descriptor, because a mount
/// namespace takes only mounts of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Folders {
    /// Root file system of the image.
    pub(crate) image: PathBuf,
    /// An empty folder to mount on.
    pub(crate) scaffold: PathBuf,
}

/// How users of the instance map to users of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ids {
    /// Agent and tenant are both the user who runs the node.
    One {
        /// That user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
    /// The agent is this host uid and gid, and the tenant the one after it. Needs root.
    Two {
        /// First of both.
        base: u32,
    },
}

/// What a keeper answers to its order, once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Up(HostKey),
    Failed { why: Failure, log: String },
    Probed(Report),
}

#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Stage(#[from] StageError),
    #[error("the agent exited before it was ready")]
    Exited,
    #[error("the agent was not ready in time")]
    Late,
}

/// What the driver asks a running keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Sample,
    /// End the instance; the answer comes after its last process is gone.
    Terminate,
}

/// A keeper's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer(pub(crate) UsageSample);

pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    descriptors: &[impl AsFd],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags)
    })?;
    if sent == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((
        serde_json::from_slice(&bytes[..received.bytes])?,
        descriptors,
    ))
}
