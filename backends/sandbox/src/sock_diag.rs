//! TCP bytes of one port of the host's loopback, told by the kernel's socket diagnostics (sock_diag(7)).
//!
//! Open sockets are listed on demand. Of each that is destroyed the kernel sends a last report to those who joined
//! `SKNLGRP_INET_TCP_DESTROY`, so that a connection which came and went between two listings is counted too. Neither
//! needs a privilege. A filter on the subscription lets only reports of our port into its buffer.
//!
//! `bytes_received` and `bytes_acked` count each byte of a stream once, whatever was sent again (RFC 4898), and leave
//! out headers. The handshake's sequence numbers may add one byte a connection.

use std::{
    io,
    mem::size_of_val,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink,
    netlink::SocketAddrNetlink, recv, send, socket_with,
};

use crate::meter::SocketBytes;

/// `SKNLGRP_INET_TCP_DESTROY` is group 1 (linux/sock_diag.h).
const TCP_DESTROY: u32 = 1 << 0;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
/// Attribute that carries `struct tcp_info`, and its bit in a request (linux/inet_diag.h).
const INET_DIAG_INFO: u16 = 2;
const WANT_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
/// All states but TIME_WAIT, LISTEN and NEW_SYN_RECV, which hold no counted socket (net/tcp_states.h).
const COUNTED_STATES: u32 = 0xfff & !(1 << 6) & !(1 << 10) & !(1 << 12);
const LISTEN: u8 = 10;

/// Bytes of `struct nlmsghdr`, and of `struct inet_diag_msg`, which follows it.
const HEADER: usize = 16;
const MESSAGE: usize = 72;
/// Offsets in `struct inet_diag_msg`.
const STATE: usize = 1;
const SOURCE_PORT: usize = 4;
const SOURCE: usize = 8;
const COOKIE: usize = 44;
/// Offsets in `struct tcp_info`; Linux 4.1 and later.
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// Answers to a listing come in parts of at most this many bytes (Documentation/userspace-api/netlink/intro.rst).
const PART_BYTES: usize = 32 << 10;

/// A watch over one port of 127.0.0.1.
pub(crate) struct PortWatch {
    port: u16,
    news: OwnedFd,
}

/// What a [`PortWatch`] saw.
pub(crate) enum News {
    /// A socket is gone; its cookie and final count.
    Destroyed(u64, SocketBytes),
    /// There were more reports than the buffer holds.
    Missed,
}

impl PortWatch {
    /// Joins the reports; connections made from now on are counted.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let news = diag_socket(SocketFlags::NONBLOCK)?;
        keep_only(&news, port)?;
        bind(&news, &SocketAddrNetlink::new(0, TCP_DESTROY))?;
        Ok(Self { port, news })
    }

    /// All reports that have arrived.
    pub(crate) fn news(&self) -> Vec<News> {
        let mut news = vec![];
        let mut part = vec![0; PART_BYTES];
        loop {
            match recv(&self.news, &mut part[..], RecvFlags::empty()) {
                Ok((_, length)) => {
                    for body in messages(&part[..length]).filter_map(Result::ok) {
                        let gone = self.counted(body).map(|(c, b)| News::Destroyed(c, b));
                        news.extend(gone);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return news,
                // ENOBUFS, and whatever else leaves a gap.
                Err(e) => {
                    news.push(News::Missed);
                    if e != rustix::io::Errno::NOBUFS {
                        return news;
                    }
                }
            }
        }
    }

    /// Sockets that are open now, by cookie.
    pub(crate) fn list(&self) -> io::Result<Vec<(u64, SocketBytes)>> {
        let socket = diag_socket(SocketFlags::empty())?;
        send(&socket, &self.request(), SendFlags::empty())?;
        let mut open = vec![];
        let mut part = vec![0; PART_BYTES];
        loop {
            let (_, length) =
                rustix::io::retry_on_intr(|| recv(&socket, &mut part[..], RecvFlags::empty()))?;
            for message in messages(&part[..length]) {
                match message {
                    Ok(body) => open.extend(self.counted(body)),
                    Err(End::Done) => return Ok(open),
                    Err(End::Failed) => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
        }
    }

    /// A listing request: `struct nlmsghdr` and `struct inet_diag_req_v2`.
    fn request(&self) -> Vec<u8> {
        const LENGTH: u32 = 72;
        let tcp = [
            2_u8, /* AF_INET */
            6,    /* IPPROTO_TCP */
            WANT_INFO, 0,
        ];
        let mut request = vec![];
        request.extend(LENGTH.to_ne_bytes());
        request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
        request.extend([0; 8]); // sequence number and port id: the socket has one request
        request.extend(tcp);
        request.extend(COUNTED_STATES.to_ne_bytes());
        request.extend(self.port.to_be_bytes());
        request.resize(LENGTH as usize, 0);
        request
    }

    /// Cookie and bytes, where the message is of a connection of our port.
    fn counted(&self, body: &[u8]) -> Option<(u64, SocketBytes)> {
        let id = body.get(..MESSAGE)?;
        let port = u16::from_be_bytes(id[SOURCE_PORT..][..2].try_into().ok()?);
        let ours = port == self.port && id[SOURCE..][..4] == [127, 0, 0, 1] && id[STATE] != LISTEN;
        if !ours {
            return None;
        }
        let cookie = u64::from_ne_bytes(id[COOKIE..][..8].try_into().ok()?);
        let info = attribute(&body[MESSAGE..], INET_DIAG_INFO)?;
        let number = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
        let bytes = SocketBytes {
            received: number(BYTES_RECEIVED)?,
            acknowledged: number(BYTES_ACKED)?,
        };
        Some((cookie, bytes))
    }
}

impl AsFd for PortWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.news.as_fd()
    }
}

fn diag_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | flags,
        Some(netlink::SOCK_DIAG),
    )?;
    Ok(socket)
}

/// Lets only messages through whose source port is `port`; the kernel applies it before it queues them.
fn keep_only(socket: &OwnedFd, port: u16) -> io::Result<()> {
    let at = u32::try_from(HEADER + SOURCE_PORT).expect("small");
    // A classic BPF instruction: code, jump if true, jump if false, operand (linux/filter.h).
    let op = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).expect("codes are small"),
        jt,
        jf,
        k,
    };
    let mut program = [
        op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at),
        op(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            port.into(),
        ),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("four"),
        filter: program.as_mut_ptr(),
    };
    let length = libc::socklen_t::try_from(size_of_val(&filter)).expect("small");
    // SAFETY: the option takes a sock_fprog of this length, which points to a live program of the length it states.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

enum End {
    Done,
    Failed,
}

/// The bodies of the diagnostics in a datagram; anything else ends it.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Result<&[u8], End>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(datagram.get(4..6)?.try_into().ok()?);
        let body = datagram.get(HEADER..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        match kind {
            SOCK_DIAG_BY_FAMILY => Some(Ok(body)),
            NLMSG_DONE => Some(Err(End::Done)),
            NLMSG_ERROR => Some(Err(End::Failed)),
            _ => Some(Ok(&[])),
        }
    })
}

/// The payload of an attribute: length with its header, kind, payload, each padded to four bytes.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(list.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?);
        let payload = list.get(4..length)?;
        if kind == wanted {
            return Some(payload);
        }
        list = list.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        time::{Duration, Instant},
    };

    use super::*;
    use crate::meter::Meters;

    #[test]
    fn bytes_of_open_and_closed_connections_are_counted() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let watch = PortWatch::open(port).unwrap();
        let mut meters = Meters::default();
        let talk = |up: usize, down: usize| {
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(&vec![1; up]).unwrap();
            server.read_exact(&mut vec![0; up]).unwrap();
            server.write_all(&vec![1; down]).unwrap();
            client.read_exact(&mut vec![0; down]).unwrap();
            (client, server)
        };
        drop(talk(1_000, 20_000));
        let open = talk(300, 4_000);
        let until = Instant::now() + Duration::from_secs(5);
        let mut destroyed = 0;
        while destroyed == 0 && Instant::now() < until {
            for news in watch.news() {
                if let News::Destroyed(cookie, bytes) = news {
                    destroyed += 1;
                    meters.sockets.destroyed(cookie, bytes);
                }
            }
            std::thread::yield_now();
        }
        meters.sockets.listed(Some(watch.list().unwrap()));
        let usage = meters.usage();
        let (rx, tx) = (usage.net_rx_bytes.known(), usage.net_tx_bytes.known());
        assert!((1_300..=1_304).contains(&rx.unwrap()), "{usage:?}");
        assert!((24_000..=24_004).contains(&tx.unwrap()), "{usage:?}");
        drop(open);
    }
}
