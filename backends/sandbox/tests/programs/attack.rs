//! What a hostile tenant tries, with raw system calls. Every attack bounds itself in time and amount, so that a wall
//! that is missing fails a test and not the machine. Each prints what came of it, for the test to judge.

use std::{
    io::Error,
    ptr::null,
    time::{Duration, Instant},
};

unsafe extern "C" {
    fn syscall(number: i64, ...) -> i64;
    fn fork() -> i32;
    fn inotify_init1(flags: i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
    fn pause() -> i32;
    fn sendmsg(fd: i32, message: *const Message, flags: i32) -> isize;
    fn socketpair(family: i32, kind: i32, protocol: i32, ends: *mut i32) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    fn open(path: *const i8, flags: i32, ...) -> i32;
    fn ioctl(fd: i32, request: u64, ...) -> i32;
    fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    fn connect(fd: i32, address: *const u8, length: u32) -> i32;
    fn _exit(status: i32) -> !;
}

const KILL: i32 = 9;

/// Number on x86-64, number on the architectures of the generic table.
const fn number(_x86_64: i64, _generic: i64) -> i64 {
    #[cfg(target_arch = "x86_64")]
    return _x86_64;
    #[cfg(not(target_arch = "x86_64"))]
    return _generic;
}

/// Calls that must not exist. Their arguments are nonsense, so that one which does exist does nothing.
const CLOSED: &[(&str, i64)] = &[
    ("mount", number(165, 40)),
    ("umount2", number(166, 39)),
    ("pivot_root", number(155, 41)),
    ("chroot", number(161, 51)),
    ("open_tree", 428),
    ("move_mount", 429),
    ("fsopen", 430),
    ("mount_setattr", 442),
    ("unshare", number(272, 97)),
    ("setns", number(308, 268)),
    ("clone3", 435),
    ("ptrace", number(101, 117)),
    ("process_vm_readv", number(310, 270)),
    ("process_vm_writev", number(311, 271)),
    ("process_madvise", 440),
    ("kcmp", number(312, 272)),
    ("pidfd_getfd", 438),
    ("add_key", number(248, 217)),
    ("request_key", number(249, 218)),
    ("keyctl", number(250, 219)),
    ("io_uring_setup", 425),
    ("io_uring_enter", 426),
    ("io_uring_register", 427),
    ("bpf", number(321, 280)),
    ("userfaultfd", number(323, 282)),
    ("perf_event_open", number(298, 241)),
    ("kexec_load", number(246, 104)),
    ("init_module", number(175, 105)),
    ("finit_module", number(313, 273)),
    ("delete_module", number(176, 106)),
    ("open_by_handle_at", number(304, 265)),
    ("fanotify_init", number(300, 262)),
    ("memfd_secret", 447),
    ("reboot", number(169, 142)),
    ("swapon", number(167, 224)),
    ("syslog", number(103, 116)),
    ("acct", number(163, 89)),
    ("settimeofday", number(164, 170)),
    ("clock_settime", number(227, 112)),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let amount = |n: usize| {
        words
            .get(n)
            .and_then(|w| w.parse::<u64>().ok())
            .unwrap_or(0)
    };
    match words.first().map(String::as_str) {
        Some("closed-calls") => {
            for (name, call) in CLOSED {
                println!(
                    "{name} {}",
                    outcome(unsafe {
                        syscall(*call, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64)
                    })
                );
            }
        }
        Some("refused-arguments") => refused_arguments(),
        Some("refused-families") => {
            for (name, family, protocol) in [
                ("vsock", 40, 0),
                ("alg", 38, 0),
                ("packet", 17, 0),
                ("xdp", 44, 0),
                ("audit", 16, 9),
                ("sctp", 2, 132),
            ] {
                println!(
                    "{name} {}",
                    outcome(unsafe { socket(family, 1, protocol) }.into())
                );
            }
        }
        Some("foreign-call") => foreign_call(),
        Some("signals") => {
            for signal in (1..=64).cycle().take(64 * amount(1) as usize) {
                unsafe { kill(1, signal) };
            }
            println!("sent");
        }
        Some("agent-files") => {
            for name in [
                "mem", "environ", "maps", "fd", "root", "cwd", "exe", "task", "auxv",
            ] {
                let path = format!("/proc/1/{name}");
                let read = if name == "fd" || name == "task" {
                    std::fs::read_dir(&path).map(|_| ())
                } else if matches!(name, "root" | "cwd" | "exe") {
                    std::fs::read_link(&path).map(|_| ())
                } else {
                    std::fs::read(&path).map(|_| ())
                };
                println!("{name} {}", if read.is_ok() { "open" } else { "closed" });
            }
        }
        Some("forks") => forks(amount(1)),
        Some("memory") => memory(amount(1)),
        Some("files") => {
            let made =
                (0..amount(1)).take_while(|n| std::fs::write(format!("/tmp/file-{n}"), "").is_ok());
            println!("{}", made.count());
        }
        Some("inotify") => {
            // They stay open until this process ends.
            let made = (0..amount(1)).take_while(|_| unsafe { inotify_init1(0) } >= 0);
            println!("{}", made.count());
        }
        Some("park") => park(&words[1], &words[2]),
        Some("spin") => {
            let until = Instant::now() + Duration::from_millis(amount(1));
            while Instant::now() < until {}
        }
        Some("abstract") => abstract_socket(words[1].as_bytes()),
        _ => std::process::exit(2),
    }
}

/// A message of `sendmsg`, as all 64-bit Linux has it.
#[repr(C)]
struct Message {
    name: *const u8,
    name_len: u32,
    parts: *const Part,
    parts_len: usize,
    control: *const u64,
    control_len: usize,
    flags: i32,
}

#[repr(C)]
struct Part {
    base: *const u8,
    len: usize,
}

/// Sends one descriptor to itself over and over, as many times as the kernel lets it, and never takes one out. Says how often in one
/// file, and holds them until the other one is there.
fn park(said: &str, enough: &str) {
    const IN_ONE_MESSAGE: usize = 200;
    const MOST: usize = 40_000;
    let mut ends = [0; 2];
    assert_eq!(unsafe { socketpair(1, 1, 0, ends.as_mut_ptr()) }, 0);
    // Length, SOL_SOCKET and SCM_RIGHTS, then two descriptors in each word.
    let mut control = [0_u64; 2 + IN_ONE_MESSAGE / 2];
    control[0] = 16 + 4 * IN_ONE_MESSAGE as u64;
    control[1] = 1 | 1 << 32;
    control[2..].fill(ends[1] as u64 | (ends[1] as u64) << 32);
    let part = Part {
        base: b"x".as_ptr(),
        len: 1,
    };
    let message = Message {
        name: std::ptr::null(),
        name_len: 0,
        parts: &part,
        parts_len: 1,
        control: control.as_ptr(),
        control_len: std::mem::size_of_val(&control),
        flags: 0,
    };
    // MSG_DONTWAIT: a full socket ends it as well.
    let sent = (0..MOST / IN_ONE_MESSAGE)
        .take_while(|_| unsafe { sendmsg(ends[0], &message, 0x40) } == 1)
        .count();
    std::fs::write(said, (sent * IN_ONE_MESSAGE).to_string()).expect("a file");
    while !std::path::Path::new(enough).exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The number of the error, or `allowed`.
fn outcome(result: i64) -> String {
    if result >= 0 {
        return "allowed".to_owned();
    }
    Error::last_os_error()
        .raw_os_error()
        .map_or_else(|| "?".to_owned(), |e| e.to_string())
}

fn refused_arguments() {
    let namespaces = [
        ("mount", 0x0002_0000_i64),
        ("cgroup", 0x0200_0000),
        ("uts", 0x0400_0000),
        ("ipc", 0x0800_0000),
        ("user", 0x1000_0000),
        ("pid", 0x2000_0000),
        ("net", 0x4000_0000),
    ];
    for (name, flag) in namespaces {
        let child = unsafe { syscall(number(56, 220), flag | 17, 0_i64, 0_i64, 0_i64, 0_i64) };
        if child == 0 {
            unsafe { _exit(0) };
        }
        println!("clone-{name} {}", outcome(child));
    }
    let terminal = unsafe { open(c"/dev/ptmx".as_ptr().cast(), 2) };
    println!("terminal {}", if terminal >= 0 { "open" } else { "closed" });
    let byte = b'x';
    println!(
        "tiocsti {}",
        outcome(unsafe { ioctl(terminal, 0x5412, &raw const byte) }.into())
    );
    // The kernel reads the request as 32 bits; the rest must not hide it from the filter.
    println!(
        "tiocsti-wide {}",
        outcome(unsafe { ioctl(terminal, 0x1_0000_5412, &raw const byte) }.into())
    );
    println!(
        "tioclinux {}",
        outcome(unsafe { ioctl(terminal, 0x541c, &raw const byte) }.into())
    );
    let limits = [0_u64; 2];
    let none = null::<u8>();
    println!(
        "prlimit {}",
        outcome(unsafe { syscall(number(302, 261), 1_i64, 7_i64, limits.as_ptr(), none) })
    );
    println!(
        "affinity {}",
        outcome(unsafe { syscall(number(203, 122), 1_i64, 8_i64, limits.as_ptr()) })
    );
    println!(
        "priority {}",
        outcome(unsafe { syscall(number(141, 140), 0_i64, 1_i64, 19_i64) })
    );
    println!(
        "personality {}",
        outcome(unsafe { syscall(number(135, 92), 0x0004_0000_i64) })
    );
}

/// A call through the gate of 32-bit programs, which has other numbers.
fn foreign_call() {
    let child = unsafe { fork() };
    if child == 0 {
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") 20_u64 => _);
        }
        unsafe { _exit(0) };
    }
    let mut status = 0;
    unsafe { waitpid(child, &raw mut status, 0) };
    println!(
        "{}",
        if status & 0x7f == 31 {
            "killed"
        } else {
            "survived"
        }
    );
}

fn forks(most: u64) {
    let mut children = vec![];
    for _ in 0..most {
        match unsafe { fork() } {
            0 => unsafe {
                pause();
                _exit(0)
            },
            child if child > 0 => children.push(child),
            _ => break,
        }
    }
    println!("{}", children.len());
    for child in children {
        unsafe {
            kill(child, KILL);
            waitpid(child, std::ptr::null_mut(), 0);
        }
    }
}

fn memory(mib: u64) {
    let mut held: Vec<Vec<u8>> = vec![];
    for taken in 0..mib {
        let mut part = vec![];
        if part.try_reserve_exact(1 << 20).is_err() {
            println!("refused at {taken}");
            return;
        }
        part.resize(1 << 20, 1_u8);
        held.push(std::hint::black_box(part));
    }
    println!("took {}", held.len());
}

fn abstract_socket(name: &[u8]) {
    let mut address = vec![1_u8, 0, 0];
    address.extend(name);
    let fd = unsafe { socket(1, 1, 0) };
    println!(
        "{}",
        outcome(unsafe { connect(fd, address.as_ptr(), address.len() as u32) }.into())
    );
}
