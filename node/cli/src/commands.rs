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

/// The configuration of the node that the system runs, as the Debian package has it.
const OF_THE_SYSTEM: &str = "/etc/souk/souk.toml";

/// Which configuration holds.
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigFile {
    /// The configuration [default: souk.toml here, or else the one in $SOUK_HOME, $XDG_DATA_HOME/souk or
    /// ~/.local/share/souk, the first that is set, or else /etc/souk/souk.toml]
    #[arg(short, long, value_name = "FILE", env = "SOUK_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads it.
    pub(crate) fn load(&self) -> Result<Config, Failure> {
        let path = match &self.config {
            Some(path) => path.clone(),
            None => first_of([
                PathBuf::from("souk.toml"),
                home().join("souk.toml"),
                PathBuf::from(OF_THE_SYSTEM),
            ]),
        };
        Config::load(&path).map_err(|error| config::explain(&error))
    }

    /// The configuration that was named on the command line, if one was.
    pub(crate) fn given(&self) -> Result<Option<Config>, Failure> {
        let load = |path: &PathBuf| Config::load(path).map_err(|error| config::explain(&error));
        self.config.as_ref().map(load).transpose()
    }
}

/// The first file that exists; where none does, the first, so that what is said of it is true of the nearest.
fn first_of(places: [PathBuf; 3]) -> PathBuf {
    let at = places.iter().position(|place| place.exists());
    let [here, home, system] = places;
    match at {
        Some(1) => home,
        Some(2) => system,
        _ => here,
    }
}

/// Which node of this machine is asked.
#[derive(Args, Clone, Debug)]
pub(crate) struct NodeHere {
    #[command(flatten)]
    config: ConfigFile,
    /// The control socket of the node, in place of the configuration's; the one for monitoring too, which changes nothing
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl NodeHere {
    /// Where it answers. A configuration is read only where no socket is named: who may watch a node need not see its files.
    pub(crate) fn socket(&self) -> Result<PathBuf, Failure> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.config.load()?.control_socket),
        }
    }

    /// Connects to it.
    pub(crate) async fn connect(&self) -> Result<control::Client, Failure> {
        control::Client::connect(&self.socket()?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_configuration_holds_and_that_of_the_system_last() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let places = ["here", "home", "system"].map(|name| folder.path().join(name));
        assert_eq!(first_of(places.clone()), places[0]);
        for nearer in places.iter().rev() {
            std::fs::write(nearer, "").expect("written");
            assert_eq!(first_of(places.clone()), *nearer);
        }
    }
}
