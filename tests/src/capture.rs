//! What passes a host's network interfaces, as anybody who sits there could record it.

use std::{
    collections::BTreeSet,
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use crate::hosts::Host;

/// Most that is kept, in bytes; more fails the test rather than the machine.
const MAX_BYTES: usize = 512 << 20;

/// Longest frame, in bytes: what segmentation offload hands around inside of one machine.
const MAX_FRAME: usize = 128 << 10;

/// Kernel buffer of the capture, in bytes, so that bursts are not lost.
const KERNEL_BUFFER: libc::c_int = 32 << 20;

/// A running capture.
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Frames>,
}

/// What was captured, from the network layer up.
pub struct Frames(Vec<Vec<u8>>);

impl Capture {
    /// Records everything on all interfaces of a host, from the moment that this returns.
    ///
    /// # Panics
    /// Without root.
    #[must_use]
    pub fn start(host: &Host) -> Self {
        let socket = host.run(|| open().expect("root may capture"));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = stop.clone();
            move || record(&socket, &stop)
        });
        Self { stop, thread }
    }

    /// Ends the capture.
    ///
    /// # Panics
    /// If recording failed.
    #[must_use]
    pub fn stop(self) -> Frames {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("recording works")
    }
}

impl Frames {
    /// Every IPv4 address that a packet came from or went to.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let at = |frame: &[u8], start: usize| {
            let bytes: [u8; 4] = frame[start..start + 4].try_into().expect("four bytes");
            Ipv4Addr::from(bytes)
        };
        self.0
            .iter()
            .filter(|frame| frame.len() >= 20 && frame[0] >> 4 == 4)
            .flat_map(|frame| [at(frame, 12), at(frame, 16)])
            .collect()
    }

    /// Whether a frame contains some bytes.
    #[must_use]
    pub fn contain(&self, bytes: &[u8]) -> bool {
        self.0
            .iter()
            .any(|frame| frame.windows(bytes.len()).any(|window| window == bytes))
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// A socket that sees every frame of the namespace it is opened in (packet(7)).
fn open() -> io::Result<OwnedFd> {
    let all = libc::c_int::from(u16::try_from(libc::ETH_P_ALL).expect("16 bits").to_be());
    // SAFETY: socket takes no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, all) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    set(&socket, libc::SO_RCVBUFFORCE, &KERNEL_BUFFER)?;
    let timeout = libc::timeval {
        tv_sec: 0,
        tv_usec: 50_000,
    };
    set(&socket, libc::SO_RCVTIMEO, &timeout)?;
    Ok(socket)
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).expect("small");
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            len,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn record(socket: &OwnedFd, stop: &AtomicBool) -> Frames {
    let mut frames = Vec::new();
    let mut total = 0;
    let mut buffer = vec![0u8; MAX_FRAME];
    loop {
        // SAFETY: the pointer and the length describe `buffer`.
        let read = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        match usize::try_from(read) {
            Ok(n) => {
                total += n;
                assert!(total <= MAX_BYTES, "more than {MAX_BYTES} bytes");
                frames.push(buffer[..n].to_vec());
            }
            // Nothing came for a while: everything before the stop has been read.
            Err(_) if stop.load(Ordering::SeqCst) => return Frames(frames),
            Err(_) => {
                let error = io::Error::last_os_error();
                assert!(
                    matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) || error.raw_os_error() == Some(libc::ENETDOWN),
                    "{error}"
                );
            }
        }
    }
}
