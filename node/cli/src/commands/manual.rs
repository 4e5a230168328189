//! `souk manual`: what the command line says of itself, for `man` and for shells.

use std::{fs, io, path::PathBuf, process::ExitCode};

use clap::{Args, Command};
use clap_complete::{Shell, generate_to};

use super::DONE;
use crate::{failure::Failure, out};

/// Shells that are written for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Write manual pages and the completions of bash, zsh and fish.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  souk manual ~/.local/share/souk-manual && man ~/.local/share/souk-manual/man/souk-rent.1\n\nThe Debian package brings all of them along."
)]
pub(crate) struct Manual {
    /// Where to write `man/` and `completions/`; made if it is missing
    folder: PathBuf,
}

impl Manual {
    /// Writes what is to be known of `command`.
    pub(crate) fn run(self, command: &Command) -> Result<ExitCode, Failure> {
        self.write(command).map_err(|error| {
            let folder = self.folder.display();
            Failure::because(format_args!("cannot write to {folder}"), &error)
        })?;
        out::line(self.folder.display());
        DONE
    }

    fn write(&self, command: &Command) -> io::Result<()> {
        let (pages, completions) = (self.folder.join("man"), self.folder.join("completions"));
        fs::create_dir_all(&pages)?;
        fs::create_dir_all(&completions)?;
        clap_mangen::generate_to(command.clone(), &pages)?;
        for shell in SHELLS {
            generate_to(shell, &mut command.clone(), "souk", &completions)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use tempfile::TempDir;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn every_command_has_a_page_with_its_examples_and_every_shell_knows_the_commands() {
        let folder = TempDir::new().expect("a folder");
        let manual = Manual {
            folder: folder.path().join("manual"),
        };
        manual.write(&Cli::command()).expect("written");
        let read = |file: &str| fs::read_to_string(manual.folder.join(file)).expect(file);
        for page in ["souk", "souk-rent", "souk-node-run", "souk-attest-verify"] {
            let page = read(&format!("man/{page}.1"));
            assert!(
                page.contains(".SH NAME") && page.contains("Example"),
                "{page}"
            );
        }
        // What is called by programs only has none.
        assert!(!manual.folder.join("man/souk-ssh-proxy.1").exists());
        for file in ["souk.bash", "_souk", "souk.fish"] {
            assert!(
                read(&format!("completions/{file}")).contains("doctor"),
                "{file}"
            );
        }
    }
}
