//! A wall clock of another time, for programs that cannot tell it from that of the machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A clock that is off by a fixed time.
#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    offset_s: i64,
}

impl Clock {
    /// One that is ahead by so many seconds; its library lies in `folder`. `None` without a C compiler.
    #[must_use]
    pub fn ahead_by(offset_s: i64, folder: &Path) -> Option<Self> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/clock.c");
        let library = folder.join("clock.so");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(source)
            .status();
        built
            .is_ok_and(|status| status.success())
            .then_some(Self { library, offset_s })
    }

    /// Gives it to a program and to those that it starts.
    pub fn set(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("CLOCK_OFFSET_S", self.offset_s.to_string());
    }
}
