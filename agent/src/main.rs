//! The entry process of an instance: init, SSH server and the end of the lease.
//!
//! ```text
//!  start ── configuration, host key ──► serving ── valid_to ──► ending ── grace ──► exit
//!    └────── cannot start ──────────────────────────────────────────────────────────► exit
//! ```
//!
//! The agent is the only process of an instance that its tenant does not own, though both may have the same uid.
//! Threats: the tenant attacks the agent (it is not dumpable, handles no signal that ends it, and runs everything that
//! the tenant asks for, file transfer included, in processes of the tenant); strangers reach the listener (only one
//! key may log in, and everything before that is bounded); the node is gone (the end of the lease does not need it).

mod children;
mod control;
mod end;
mod handover;
mod meters;
mod sftp;
mod ssh;
mod tenant;

use std::{io::Write as _, process::ExitCode};

use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{CapabilitySet, capabilities, set_capabilities},
};
use souk_backend::agent::{AGENT_ARG, ExitReason};

use crate::{
    children::Children, control::Control, end::LeaseEnd, handover::Handover, meters::Meters,
    tenant::Tenant,
};

/// Threads of the runtime; they count against the processes of the lease.
const WORKER_THREADS: usize = 2;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let outcome = match (args.next().as_deref(), args.next()) {
        (Some(AGENT_ARG), None) => run(),
        (Some(sftp::SFTP_ARG), None) => sftp::serve(),
        _ => Err(StartError::Usage),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The descriptor may be missing or its reader gone; neither may turn into a panic.
            let _ = writeln!(std::io::stderr(), "souk-agent: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("run by a driver as `souk-agent {AGENT_ARG}`; it is no command for people")]
    Usage,
    #[error("cannot take over from the driver")]
    Handover(#[from] handover::HandoverError),
    #[error("cannot {what}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Adds what was being done to an error of the system.
fn doing<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::System {
        what,
        source: source.into(),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn run() -> Result<(), StartError> {
    // Before anything else: from here on nobody of the same uid can trace this process or read its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(doing("hide from tracers"))?;
    forget_inheritable().map_err(doing("give up inheritable capabilities"))?;
    forget_fault_handlers().map_err(doing("reset signal handlers"))?;
    let handover = Handover::take()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(WORKER_THREADS)
        .enable_all()
        .build()
        .map_err(doing("start the runtime"))?
        .block_on(serve(handover))
}

/// What the driver let the agent inherit must not be inherited further.
fn forget_inheritable() -> rustix::io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)
}

/// Takes back the handlers that Rust installs for overflowing stacks. A tenant of the same uid may send these signals,
/// and the alternate stack has room for one frame: two at once overflow it, which ends even the first process of a
/// namespace. Without handlers the kernel drops them, as it does all others.
fn forget_fault_handlers() -> std::io::Result<()> {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default action needs no handler; the process has one thread.
        if unsafe { libc::signal(signal, libc::SIG_DFL) } == libc::SIG_ERR {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Serves until the lease ends. This runs in the first thread, which does nothing but wait once it is ready: a thread
/// blocks all signals while it starts a thread or a program, and to a first process of which the first thread blocks a
/// signal, the kernel delivers it, even one whose default action is to end the process, through another thread.
async fn serve(handover: Handover) -> Result<(), StartError> {
    let Handover {
        config,
        listener,
        control,
    } = handover;
    let control = Control::start(control).map_err(doing("use the control descriptor"))?;
    let end = LeaseEnd::from_now(config.valid_to_unix_s);
    let children = Children::start().map_err(doing("watch for children"))?;
    let meters = Meters::default();
    let tenant = Tenant::new(&config, children.clone(), meters.clone())
        .map_err(doing("prepare the tenant's processes"))?;
    let server = ssh::Server::new(&config, tenant, meters.clone(), listener)
        .map_err(doing("make a host key"))?;
    control.ready(server.host_key()).await;
    let reporting = tokio::spawn(meters::report(meters, control.clone()));
    let accepting = tokio::spawn(server.run());

    end.reached().await;

    accepting.abort();
    reporting.abort();
    children.end_all(end::GRACE).await;
    control.exiting(ExitReason::ValidTo).await;
    Ok(())
}
