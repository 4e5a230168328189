//! The published log as a [`LogSource`] of the network.

use std::{io, path::PathBuf};

use bytes::Bytes;

use crate::net::{LogPath, LogSource};

/// The files of a published log, for whoever fetches them over the network.
#[derive(Clone, Debug)]
pub struct PublishedLog(
    /// The directory of the publisher.
    pub PathBuf,
);

impl LogSource for PublishedLog {
    fn file(&self, path: &LogPath) -> io::Result<Option<Bytes>> {
        // A path that parsed has neither dots nor roots in it.
        match std::fs::read(self.0.join(path.to_string())) {
            Ok(file) => Ok(Some(file.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
