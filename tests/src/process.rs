//! A process under test: what it says is kept in a file, and it does not outlive its fixture.

use std::{
    fmt::Display,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long anything may take before a test gives up; nothing passes by waiting.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a process gets between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(10);

/// A process in the background.
pub struct Process {
    child: Child,
    name: String,
    output: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts a program; what it prints goes to `NAME.log` in the folder.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(name: &str, mut command: Command, folder: &Path) -> Self {
        let output = folder.join(format!("{name}.log"));
        let file = File::create(&output).expect("the folder takes files");
        command
            .stdin(Stdio::null())
            .stderr(file.try_clone().expect("a descriptor"))
            .stdout(file)
            .process_group(0);
        // SAFETY: prctl takes no pointers here and is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // If the test is killed its processes must not stay behind.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self {
            child,
            name: name.to_owned(),
            output,
            ended: None,
        }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that holds what it printed.
    #[must_use]
    pub fn output(&self) -> &Path {
        &self.output
    }

    /// What it has printed so far.
    #[must_use]
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("our own child");
        }
        self.ended
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it has not within [`PATIENCE`].
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} does not end:\n{}",
                self.name,
                self.said()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until a condition holds while the process runs.
    ///
    /// # Panics
    /// If it does not within [`PATIENCE`], or the process ends before.
    pub fn until<T>(&mut self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = condition() {
                return value;
            }
            if let Some(status) = self.ended() {
                panic!(
                    "{} ended ({status}) before {what}:\n{}",
                    self.name,
                    self.said()
                );
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{}: never {what}:\n{}",
                self.name,
                self.said()
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Asks it to end as an operator does, and waits.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait()
    }

    /// Ends it as a power failure does.
    pub fn kill(&mut self) {
        self.signal(libc::SIGKILL);
        self.wait();
    }

    /// Memory that it has in use, in KiB.
    ///
    /// # Panics
    /// If it is gone.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|line| line.trim().strip_suffix(" kB"))
            .and_then(|kib| kib.parse().ok())
            .expect("Linux says how much")
    }

    fn signal(&mut self, signal: i32) {
        if self.ended().is_none() {
            let pid = i32::try_from(self.child.id()).expect("a process id");
            // SAFETY: kill takes no pointers; the process is our child and has not been waited for.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
        let start = Instant::now();
        while self.ended().is_none() {
            if start.elapsed() > GRACE {
                self.signal(libc::SIGKILL);
            }
            thread::sleep(LOOK_AGAIN);
        }
        if thread::panicking() {
            show(&self.name, &self.said());
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a failed test shows what its processes said"
)]
fn show(name: &str, said: &str) {
    eprintln!("---- {name} said ----\n{said}");
}

/// Looks until a condition gives a value.
///
/// # Panics
/// If it does not within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    eventually_or_why(what, || condition().ok_or(""))
}

/// The same for a condition that says why it does not hold yet.
///
/// # Panics
/// With what it said last, when it does not hold within [`PATIENCE`].
pub fn eventually_or_why<T, W: Display>(
    what: &str,
    mut condition: impl FnMut() -> Result<T, W>,
) -> T {
    let start = Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(why) => assert!(start.elapsed() < PATIENCE, "never: {what} {why}"),
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started or fails; the message holds what it said.
pub fn succeed(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
