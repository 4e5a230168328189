//! One module a command.

pub(crate) mod attest;
pub(crate) mod bench;
mod builtin_ssh;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod end;
pub(crate) mod grant;
pub(crate) mod image;
pub(crate) mod issuer;
pub(crate) mod leases;
pub(crate) mod log;
pub(crate) mod manual;
pub(crate) mod market;
pub(crate) mod node;
mod orphans;
pub(crate) mod rent;
mod requester;
pub(crate) mod ssh;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod version;

use std::{future::Future, path::PathBuf, process::ExitCode};

use clap::Args;
use souk_node::{config::Config, control};

use crate::failure::{CONFIG, Failure, UNAVAILABLE};

/// Runs a command that waits for things, on a runtime of its own.
pub(crate) fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because("cannot start threads", &error))?;
    let result = runtime.block_on(work);
    // What still runs is cancelled; a blocking task must not keep the user waiting.
    runtime.shutdown_background();
    result
}

/// Which configuration holds.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigFile {
    /// The configuration [default: souk.toml here, or else the one in $SOUK_HOME, $XDG_DATA_HOME/souk or
    /// ~/.local/share/souk, the first that is set]
    #[arg(short, long, value_name = "FILE", env = "SOUK_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads it.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        let path = match &self.config {
            Some(path) => path.clone(),
            None => {
                let here = PathBuf::from("souk.toml");
                let home = home().join("souk.toml");
                if !here.exists() && home.exists() {
                    home
                } else {
                    here
                }
            }
        };
        Config::load(&path).map_err(|error| config::explain(&error))
    }

    /// The configuration that was named on the command line, if one was.
    pub(crate) fn given(&self) -> Result<Option<Config>, Failure> {
        let load = |path: &PathBuf| Config::load(path).map_err(|error| config::explain(&error));
        self.config.as_ref().map(load).transpose()
    }

    /// Connects to the node that runs with it.
    pub(crate) async fn connect(&self) -> Result<control::Client, Failure> {
        let socket = self.load()?.control_socket;
        control::Client::connect(&socket)
            .await
            .map_err(|error| unreached(&error))
    }
}

/// Where a requester keeps what is its own: `$SOUK_HOME`, or `$XDG_DATA_HOME/souk`, or `~/.local/share/souk`.
pub(crate) fn home() -> PathBuf {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    set("SOUK_HOME")
        .or_else(|| set("XDG_DATA_HOME").map(|data| data.join("souk")))
        .or_else(|| set("HOME").map(|home| home.join(".local/share/souk")))
        .unwrap_or_else(|| PathBuf::from(".souk"))
}

/// What a control call that failed means for the user.
pub(crate) fn unreached(error: &control::ClientError) -> Failure {
    use control::ClientError as E;
    let failure = Failure::of(error);
    match error {
        E::NotRunning { .. } => failure
            .hint("start it with `souk node run`")
            .code(UNAVAILABLE),
        E::NotPermitted { .. } | E::ReadOnly(_) => {
            failure.hint("run this command as the user that runs the node")
        }
        E::NotNow(_) => failure.code(UNAVAILABLE),
        E::OtherVersion(_) => failure.code(CONFIG),
        E::NotFound(_) | E::Refused(_) | E::Io { .. } | E::Failed { .. } => failure,
    }
}

/// The work is done.
pub(crate) const DONE: Result<ExitCode, Failure> = Ok(ExitCode::SUCCESS);
