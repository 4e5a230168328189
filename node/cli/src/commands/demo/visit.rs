//! What the requester of the demo does, each step a process of its own.

use std::{
    io,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::{
    commands::{end::Account, log::Verified, rent::Rented},
    failure::Failure,
};

/// What runs in the lease: who and where, and a job whose right answer is known.
const COMMAND: &str = "uname -a; id; nproc; head -c 67108864 /dev/zero | sha256sum";

/// SHA-256 of 64 MiB of zeros.
const RIGHT_ANSWER: &str = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351";

/// A step that takes longer is stuck.
const STEP_WITHIN: Duration = Duration::from_secs(60);

/// A session in the lease.
pub(super) struct Session {
    /// `ssh`, or the client that is built in.
    pub(super) client: &'static str,
    pub(super) exit_code: i32,
    pub(super) output: String,
    /// What it said on stderr.
    pub(super) complaint: String,
    /// The job gave the right answer.
    pub(super) job_right: bool,
}

/// Rents for five minutes.
pub(super) async fn rent(home: &Path, cpu_millicores: u32) -> Result<Rented, Failure> {
    let cpu = cpu_millicores.to_string();
    let machine = [
        "--cpu-millicores",
        &cpu,
        "--memory-mib",
        "256",
        "--disk-mib",
        "64",
    ];
    let args = [
        ["rent", "--json", "--duration-s", "300"].as_slice(),
        &machine,
    ]
    .concat();
    souk(home, &args).await
}

/// Runs the command over the system's `ssh`, or over our own client where there is none.
pub(super) async fn ssh(home: &Path, rented: &Rented) -> Result<Session, Failure> {
    let mut command = Command::new("ssh");
    command
        .arg("-F")
        .arg(&rented.ssh_config)
        .arg(&rented.ssh_alias)
        .arg(COMMAND);
    match run(&mut command, home).await {
        Ok(output) => Ok(Session::of("ssh", &output)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut builtin = program()?;
            builtin.args(["ssh", "--builtin", &rented.name, COMMAND]);
            let output = run(&mut builtin, home).await;
            let output = output
                .map_err(|error| Failure::because("the built-in SSH client failed", &error))?;
            Ok(Session::of("the built-in SSH client", &output))
        }
        Err(error) => Err(Failure::because("ssh did not run", &error)),
    }
}

/// Ends the lease and waits for its account.
pub(super) async fn end(home: &Path, rented: &Rented) -> Result<Account, Failure> {
    souk(home, &["end", "--json", &rented.name]).await
}

/// Ends the lease without waiting for its account.
pub(super) async fn end_only(home: &Path, rented: &Rented) -> Result<Account, Failure> {
    souk(home, &["end", "--json", "--wait-s", "0", &rented.name]).await
}

/// Verifies the whole log of the provider, as anybody can.
pub(super) async fn verify_log(home: &Path, rented: &Rented) -> Result<Verified, Failure> {
    souk(home, &["log", "verify", "--json", &rented.provider]).await
}

impl Session {
    fn of(client: &'static str, output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Self {
            client,
            exit_code: output.status.code().unwrap_or(-1),
            job_right: text.contains(RIGHT_ANSWER),
            output: text,
            complaint: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn program() -> Result<Command, Failure> {
    std::env::current_exe()
        .map(Command::new)
        .map_err(|error| Failure::because("cannot find this program", &error))
}

/// Runs one of our own commands as the requester, and reads the JSON that it prints.
async fn souk<T: DeserializeOwned>(home: &Path, args: &[&str]) -> Result<T, Failure> {
    let name = args[0];
    let output = run(program()?.args(args), home)
        .await
        .map_err(|error| Failure::because(format_args!("`souk {name}` did not run"), &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let what = format_args!("`souk {name}` failed");
        return Err(Failure::new(what).detail(said.trim_end()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::because(
            format_args!("`souk {name}` printed something else than JSON"),
            &error,
        )
    })
}

async fn run(command: &mut Command, home: &Path) -> io::Result<Output> {
    command
        .env("SOUK_HOME", home)
        .env_remove("SOUK_CONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    tokio::time::timeout(STEP_WITHIN, command.output())
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
