//! A requester: the command line with a folder and perhaps a host of its own, and OpenSSH with the files it writes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    clock::Clock,
    hosts::Host,
    process::{Process, succeed},
    programs,
};

/// Somebody who rents.
pub struct Requester {
    folder: PathBuf,
    config: PathBuf,
    host: Option<Host>,
    clock: Option<Clock>,
}

/// What `souk rent --json` said of a lease.
pub struct Rented(Value);

impl Rented {
    /// Takes what `souk rent --json` printed.
    ///
    /// # Panics
    /// If it holds no JSON object.
    #[must_use]
    pub fn read(said: &str) -> Self {
        // Messages for people stand in lines of their own.
        let object = said
            .lines()
            .find_map(|line| serde_json::from_str(line).ok());
        Self(object.unwrap_or_else(|| panic!("no object in {said}")))
    }

    /// A field of the answer that is a text.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.0[field]
            .as_str()
            .unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    /// A field of the answer that is a number.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn number(&self, field: &str) -> u64 {
        self.0[field]
            .as_u64()
            .unwrap_or_else(|| panic!("no {field} in {}", self.0))
    }

    /// The lease id.
    #[must_use]
    pub fn lease(&self) -> &str {
        self.text("lease")
    }

    /// The name that OpenSSH knows it by.
    #[must_use]
    pub fn alias(&self) -> &str {
        self.text("ssh_alias")
    }

    /// The written configuration of OpenSSH.
    #[must_use]
    pub fn ssh_config(&self) -> PathBuf {
        self.text("ssh_config").into()
    }
}

impl Requester {
    pub(crate) fn new(
        folder: PathBuf,
        config: PathBuf,
        host: Option<Host>,
        clock: Option<Clock>,
    ) -> Self {
        Self {
            folder,
            config,
            host,
            clock,
        }
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command of the command line, such as `["rent", "--json"]`.
    #[must_use]
    pub fn souk(&self, args: &[&str]) -> Command {
        let mut command = self.program(&programs::souk());
        command
            .args(args)
            .arg("--config")
            .arg(&self.config)
            .arg("--home")
            .arg(self.home())
            .env_remove("SOUK_LOG");
        command
    }

    /// Runs a command that prints one JSON object.
    ///
    /// # Panics
    /// If it fails or prints something else.
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let output = succeed(&mut self.souk(args));
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!(
                "{args:?}: {error}: {}",
                String::from_utf8_lossy(&output.stdout)
            )
        })
    }

    /// An OpenSSH program that uses the written configuration of a lease.
    #[must_use]
    pub fn openssh(&self, program: &str, ssh_config: &Path) -> Command {
        let mut command = self.program(Path::new(program));
        command.arg("-F").arg(ssh_config);
        command
    }

    /// Where it keeps its leases and keys.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// Rents a machine that is small enough for several at once.
    ///
    /// # Panics
    /// If no lease arrives.
    #[must_use]
    pub fn rent(&self, more: &[&str]) -> Rented {
        self.rent_with_disk(64, more)
    }

    /// Rents a machine with a disk of so many MiB, and 256 MiB of memory beyond it.
    ///
    /// # Panics
    /// If no lease arrives.
    #[must_use]
    pub fn rent_with_disk(&self, disk_mib: u32, more: &[&str]) -> Rented {
        let small = Self::small(disk_mib);
        let small: Vec<&str> = small.iter().map(String::as_str).collect();
        Rented(self.json(&[&small[..], more].concat()))
    }

    /// `souk rent` in the background, for a machine that is small enough for several at once.
    #[must_use]
    pub fn start_rent(&self, name: &str) -> Process {
        let small = Self::small(64);
        let small: Vec<&str> = small.iter().map(String::as_str).collect();
        Process::start(name, self.souk(&small), &self.folder)
    }

    /// The leases that it has, as `souk leases --json` tells them.
    ///
    /// # Panics
    /// If they cannot be told.
    #[must_use]
    pub fn leases(&self) -> Vec<Value> {
        let said = self.json(&["leases", "--json"]);
        said.as_array().expect("an array").clone()
    }

    /// The command that rents such a machine for ten minutes.
    fn small(disk_mib: u32) -> Vec<String> {
        let memory_mib = 256 + disk_mib;
        format!("rent --json --duration-s 600 --cpu-millicores 500 --memory-mib {memory_mib} --disk-mib {disk_mib}")
            .split(' ')
            .map(str::to_owned)
            .collect()
    }

    /// Runs a command line in a lease.
    ///
    /// # Panics
    /// If the login fails.
    #[must_use]
    pub fn exec(&self, lease: &Rented, line: &str) -> Output {
        let output = self
            .openssh("ssh", &lease.ssh_config())
            .args([lease.alias(), line])
            .output()
            .expect("ssh runs");
        assert_ne!(
            output.status.code(),
            Some(255),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output
    }

    /// A program where this requester is.
    #[must_use]
    pub fn program(&self, program: &Path) -> Command {
        let mut command = match &self.host {
            Some(host) => host.command(program),
            None => Command::new(program),
        };
        if let Some(clock) = &self.clock {
            clock.set(&mut command);
        }
        command
    }
}
