//! A requester: the command line with a folder and perhaps a host of its own, and OpenSSH with the files it writes.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

use crate::{hosts::Host, process::succeed, programs};

/// Somebody who rents.
pub struct Requester {
    folder: PathBuf,
    config: PathBuf,
    host: Option<Host>,
}

impl Requester {
    pub(crate) fn new(folder: PathBuf, config: PathBuf, host: Option<Host>) -> Self {
        Self {
            folder,
            config,
            host,
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
            .env("SOUK_HOME", self.folder.join("home"))
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
        command
            .arg("-F")
            .arg(ssh_config)
            .env("SOUK_HOME", self.folder.join("home"));
        command
    }

    /// Runs a command line in a lease.
    ///
    /// # Panics
    /// If the login fails.
    #[must_use]
    pub fn exec(&self, ssh_config: &Path, alias: &str, line: &str) -> Output {
        let output = self
            .openssh("ssh", ssh_config)
            .args([alias, line])
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
        match &self.host {
            Some(host) => host.command(program),
            None => Command::new(program),
        }
    }
}
