//! `souk node pause`, `unpause` and `reap`: what `souk top` does at a key, for scripts.

use std::process::ExitCode;

use clap::Args;
use souk_market::units::BackendName;

use super::lease_id;
use crate::{
    commands::{DONE, NodeHere, unreached, wait},
    failure::{Failure, USAGE},
    out,
};

#[derive(Args, Debug)]
pub(crate) struct Backend {
    #[command(flatten)]
    node: NodeHere,
    /// The backend, as `souk leases --orphans` names it
    backend: String,
}

#[derive(Args, Debug)]
pub(crate) struct Reap {
    #[command(flatten)]
    backend: Backend,
    /// The instance, by the lease that it was made for, as `souk leases --orphans` shows it
    lease: String,
}

impl Backend {
    pub(crate) fn pause(self, paused: bool) -> Result<ExitCode, Failure> {
        let backend = self.named()?;
        wait(async {
            let mut node = self.node.connect().await?;
            let paused = node.pause_backend(backend.clone(), paused).await;
            paused.map_err(|error| unreached(&error))
        })?;
        out::line(match paused {
            true => format!(
                "{backend} gets no new leases; `souk node unpause {backend}` takes that back"
            ),
            false => format!("{backend} gets new leases again"),
        });
        DONE
    }

    fn named(&self) -> Result<String, Failure> {
        let name = &self.backend;
        let named: Result<BackendName, _> = name.parse();
        named.map(|backend| backend.to_string()).map_err(|why| {
            Failure::new(format_args!("{name:?} is no name of a backend: {why}")).code(USAGE)
        })
    }
}

impl Reap {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let backend = self.backend.named()?;
        let lease = lease_id(&self.lease)?;
        wait(async {
            let mut node = self.backend.node.connect().await?;
            let reaped = node.reap(backend.clone(), lease.to_string()).await;
            reaped.map_err(|error| unreached(&error))
        })?;
        out::line(format_args!(
            "the instance {lease} at {backend} is being removed"
        ));
        DONE
    }
}
