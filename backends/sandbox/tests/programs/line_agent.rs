//! An agent that keeps its side of `souk_backend::agent` without SSH: each connection carries one shell script, up to
//! the end of the client's stream, and gets back its output and a last line with the exit status. It is built by rustc
//! alone, so that the tests of the driver need no other crate of the workspace.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::{
        fd::FromRawFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, SystemTime},
};

unsafe extern "C" {
    fn prctl(option: i32, ...) -> i32;
    fn setgroups(count: usize, groups: *const u32) -> i32;
    fn close_range(first: u32, last: u32, flags: i32) -> i32;
    fn signal(signal: i32, handler: usize) -> usize;
    fn syscall(number: i64, ...) -> i64;
    fn waitid(kind: i32, id: u32, info: *mut i32, options: i32) -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
}
const PR_SET_DUMPABLE: i32 = 4;

fn main() {
    unsafe { prctl(PR_SET_DUMPABLE, 0_u64) };
    // Rust's handlers for these share a stack that two signals at once overflow.
    unsafe {
        signal(7, 0);
        signal(11, 0);
    }
    clear_inheritable();
    let mut config = String::new();
    unsafe { File::from_raw_fd(3) }
        .read_to_string(&mut config)
        .expect("a configuration");
    let number = |key: &str| -> Option<u64> {
        let (_, rest) = config.split_once(&format!("\"{key}\":"))?;
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    let listener = unsafe { TcpListener::from_raw_fd(number("listener_fd").expect("fd") as i32) };
    let mut control = unsafe { File::from_raw_fd(number("control_fd").expect("fd") as i32) };
    let tenant = number("uid").map(|uid| uid as u32);
    let valid_to = number("valid_to_unix_s").expect("an end");
    std::thread::spawn(move || {
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(valid_to);
        while let Ok(left) = until.duration_since(SystemTime::now()) {
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
        std::process::exit(0);
    });
    std::thread::spawn(reap_orphans);
    let key = "42".repeat(32);
    writeln!(control, "{{\"kind\":\"ready\",\"host_key\":\"{key}\"}}").expect("a driver");
    // While the first thread blocks signals, as it does when it starts another, the kernel takes those that are ignored
    // otherwise for fatal ones: it starts none any more, as in the real agent.
    let accepting = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, tenant));
        }
    });
    let _ = accepting.join();
}

/// Processes that `serve` waits for itself; held while one is started.
static SERVED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// Orphans of the tenant become children of process 1.
fn reap_orphans() {
    const WNOWAIT_EXITED: i32 = 0x0100_0000 | 4;
    loop {
        // A siginfo_t has 128 bytes; the process is in its fifth word.
        let mut info = [0_i32; 32];
        unsafe { waitid(0, 0, info.as_mut_ptr(), WNOWAIT_EXITED) };
        let served = SERVED.lock().expect("not poisoned");
        if info[4] > 0 && !served.contains(&info[4]) {
            unsafe { waitpid(info[4], std::ptr::null_mut(), 0) };
        } else {
            drop(served);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Programs of the tenant would keep these sets, though nothing comes of them.
fn clear_inheritable() {
    let capset = if cfg!(target_arch = "x86_64") {
        126
    } else {
        91
    };
    let capget = capset - 1;
    let header: [u32; 2] = [0x2008_0522, 0];
    let mut sets = [[0_u32; 3]; 2];
    unsafe {
        syscall(capget, header.as_ptr(), sets.as_mut_ptr());
        sets.iter_mut()
            .for_each(|[_, _, inheritable]| *inheritable = 0);
        syscall(capset, header.as_ptr(), sets.as_ptr());
    }
}

fn serve(mut stream: TcpStream, tenant: Option<u32>) {
    let mut script = String::new();
    if stream.read_to_string(&mut script).is_err() {
        return;
    }
    let mut command = Command::new("/bin/bash");
    command
        .arg("-c")
        .arg(format!("exec 2>&1\n{script}"))
        .current_dir("/home/souk");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(id) = tenant {
        unsafe {
            command.pre_exec(|| {
                setgroups(0, std::ptr::null());
                Ok(())
            });
        }
        command.uid(id).gid(id);
    }
    unsafe {
        command.pre_exec(|| {
            close_range(3, u32::MAX, 4 /* CLOSE_RANGE_CLOEXEC */);
            Ok(())
        });
    }
    let mut served = SERVED.lock().expect("not poisoned");
    let spawned = command.spawn();
    served.extend(spawned.as_ref().map(|child| child.id() as i32));
    drop(served);
    let status = match spawned {
        Ok(mut child) => {
            let mut output = child.stdout.take().expect("piped");
            let copied = std::io::copy(&mut output, &mut stream);
            let waited = child.wait();
            SERVED
                .lock()
                .expect("not poisoned")
                .remove(&(child.id() as i32));
            match (waited, copied) {
                (Ok(status), Ok(_)) => status
                    .code()
                    .or(status.signal().map(|s| 128 + s))
                    .unwrap_or(255),
                _ => 254,
            }
        }
        Err(e) => {
            let _ = writeln!(stream, "cannot start: {e}");
            253
        }
    };
    let _ = write!(stream, "\nexit {status}");
    let _ = stream.shutdown(Shutdown::Both);
}
