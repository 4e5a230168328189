//! One open channel, seen from the task that serves it: bytes in, bytes out, and its end.

use std::{io, mem::discriminant, sync::Arc};

use bytes::{Bytes, BytesMut};
use russh::{
    ChannelWriteHalf, Sig,
    server::{Handle, Msg},
};
use rustix::process::{Signal, WaitStatus};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::OwnedSemaphorePermit,
};

use super::inbound::Queue;

/// Bytes that are read from a program or socket at a time.
pub(super) const CHUNK: usize = 32 << 10;

/// The stream of standard error (RFC 4254, section 5.2).
pub(super) const STDERR: u32 = 1;

/// A channel that is open.
pub(super) struct Wire {
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) handle: Handle,
    pub(super) queue: Arc<Queue>,
    /// One of the connection's channels.
    pub(super) _permit: OwnedSemaphorePermit,
}

/// The channel or its connection is gone.
pub(super) struct Closed;

impl Wire {
    /// Sends bytes within the client's window; `stream` is `None` for ordinary data.
    pub(super) async fn send(&self, stream: Option<u32>, data: Bytes) -> Result<(), Closed> {
        let _sending = self.queue.sending();
        let sent = async {
            match stream {
                None => self.write.data_bytes(data).await,
                Some(stream) => self.write.extended_data_bytes(stream, data).await,
            }
        };
        tokio::select! {
            sent = sent => sent.map_err(|_| Closed),
            () = self.queue.closed().cancelled() => Err(Closed),
        }
    }

    /// Sends all that a reader yields, to its end.
    pub(super) async fn drain(
        &self,
        mut from: impl AsyncRead + Unpin,
        stream: Option<u32>,
    ) -> Result<(), Closed> {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(()),
                Ok(_) => self.send(stream, buffer.split().freeze()).await?,
            }
        }
    }

    /// Writes all that the client sends, to its end, and then drops the writer. Where the writer takes no more, what
    /// still comes is dropped.
    pub(super) async fn feed(&self, mut to: impl AsyncWrite + Unpin) {
        while let Some(chunk) = self.queue.next().await {
            if to.write_all(&chunk).await.is_err() {
                self.queue.refuse();
                return;
            }
        }
        let _ = to.shutdown().await;
    }

    /// Waits until the client or the connection has closed the channel.
    pub(super) async fn closed(&self) {
        self.queue.closed().cancelled().await;
    }

    /// Says that nothing more follows, while the client may go on sending.
    pub(super) async fn end_of_output(&self) {
        let _sending = self.queue.sending();
        let _ = self.write.eof().await;
    }

    /// Tells how a program ended, and closes the channel.
    pub(super) async fn finish(self, status: Option<WaitStatus>) {
        let _sending = self.queue.sending();
        let id = self.write.id();
        let exited = status.and_then(WaitStatus::exit_status);
        let killed = status.and_then(WaitStatus::terminating_signal);
        if let Some(code) = exited {
            // The kernel keeps eight bits of an exit code.
            let _ = self
                .handle
                .exit_status_request(id, code.cast_unsigned())
                .await;
        } else if let Some(number) = killed {
            let name = signal_name(number);
            let _ = self
                .handle
                .exit_signal_request(id, name, false, String::new(), String::new())
                .await;
        }
        let _ = self.write.eof().await;
        let _ = self.handle.close(id).await;
    }
}

/// Signals that have a name on the wire (RFC 4254, section 6.10).
const NAMED: [(Signal, Sig); 12] = [
    (Signal::ABORT, Sig::ABRT),
    (Signal::ALARM, Sig::ALRM),
    (Signal::FPE, Sig::FPE),
    (Signal::HUP, Sig::HUP),
    (Signal::ILL, Sig::ILL),
    (Signal::INT, Sig::INT),
    (Signal::KILL, Sig::KILL),
    (Signal::PIPE, Sig::PIPE),
    (Signal::QUIT, Sig::QUIT),
    (Signal::SEGV, Sig::SEGV),
    (Signal::TERM, Sig::TERM),
    (Signal::USR1, Sig::USR1),
];

/// The signal that a client asked for, if it is one of those with a name, or USR2, which OpenSSH sends too.
pub(super) fn signal_from_wire(wanted: &Sig) -> Option<Signal> {
    if matches!(wanted, Sig::Custom(name) if name == "USR2") {
        return Some(Signal::USR2);
    }
    NAMED
        .iter()
        .find(|(_, name)| discriminant(name) == discriminant(wanted))
        .map(|(signal, _)| *signal)
}

fn signal_name(number: i32) -> Sig {
    NAMED
        .iter()
        .find(|(signal, _)| signal.as_raw() == number)
        .map_or_else(
            || Sig::Custom(format!("{number}@souk")),
            |(_, name)| name.clone(),
        )
}

/// Reads once from a descriptor that the runtime watches.
pub(super) async fn read_fd(
    fd: &tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    fd.async_io(tokio::io::Interest::READABLE, |fd| {
        Ok(rustix::io::read(fd, &mut *buffer)?)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_signal_survives_the_wire_and_others_keep_their_number() {
        for (signal, name) in NAMED {
            assert_eq!(signal_from_wire(&name), Some(signal));
            assert_eq!(
                discriminant(&signal_name(signal.as_raw())),
                discriminant(&name)
            );
        }
        assert_eq!(signal_from_wire(&Sig::Custom("STOP".into())), None);
        let other = signal_name(Signal::BUS.as_raw());
        assert!(
            matches!(other, Sig::Custom(name) if name == format!("{}@souk", Signal::BUS.as_raw()))
        );
    }
}
