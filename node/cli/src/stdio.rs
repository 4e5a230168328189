//! Stdin, stdout and stderr for tasks that must not block: reads and writes happen on threads of their own.

use std::{fs, io, os::fd::AsFd};

use tokio::fs::File;

/// Stdin.
pub(crate) fn input() -> io::Result<File> {
    of(&io::stdin())
}

/// Stdout. What is written must be flushed.
pub(crate) fn output() -> io::Result<File> {
    of(&io::stdout())
}

/// Stderr. What is written must be flushed.
pub(crate) fn errors() -> io::Result<File> {
    of(&io::stderr())
}

fn of(stream: &impl AsFd) -> io::Result<File> {
    let own = stream.as_fd().try_clone_to_owned()?;
    Ok(File::from_std(fs::File::from(own)))
}
