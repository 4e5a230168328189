//! Errors of making an instance, small enough to cross a pipe from the process that is about to become it.

use std::io;

use serde::{Deserialize, Serialize};

/// What was being done when the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{stage}: {}", io::Error::from_raw_os_error(*.errno))]
pub(crate) struct StageError {
    pub(crate) stage: String,
    pub(crate) errno: i32,
}

/// Names the stage at which a call failed.
pub(crate) trait AtStage<T> {
    fn at(self, stage: &str) -> Result<T, StageError>;
}

impl<T> AtStage<T> for rustix::io::Result<T> {
    fn at(self, stage: &str) -> Result<T, StageError> {
        self.map_err(|e| StageError {
            stage: stage.to_owned(),
            errno: e.raw_os_error(),
        })
    }
}

impl<T> AtStage<T> for io::Result<T> {
    fn at(self, stage: &str) -> Result<T, StageError> {
        self.map_err(|e| StageError {
            stage: stage.to_owned(),
            errno: e.raw_os_error().unwrap_or(libc::EIO),
        })
    }
}
