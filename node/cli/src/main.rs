//! `souk`: rent and sell machines anonymously.
//!
//! ```text
//! souk node run ……………… a node, until it is told to stop
//! souk status, node … …… what a running node says over its control socket
//! souk rent, ssh, end …… a requester, whose client runs in this process
//! ```

mod args;
mod clean;
mod commands;
mod failure;
mod logging;
mod out;
mod progress;
mod stdio;

use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use failure::{Failure, USAGE};

fn main() -> ExitCode {
    // The sandbox driver runs this program again as the keeper of a lease, which must come before any thread.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == souk_sandbox::KEEPER_ARG)
    {
        return ExitCode::from(u8::try_from(souk_sandbox::keeper_main()).unwrap_or(1));
    }
    match Cli::try_parse() {
        Ok(cli) => cli
            .run()
            .and_then(|code| out::arrived().map(|()| code))
            .unwrap_or_else(|failure: Failure| failure.show()),
        // It repeats what it was given, which may have come from anywhere.
        Err(error) if error.use_stderr() => {
            out::note(error.render().to_string().trim_end());
            ExitCode::from(USAGE)
        }
        // Help and version are no mistakes.
        Err(help) => match help.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => out::unwritten(&error).show(),
        },
    }
}
