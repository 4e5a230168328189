//! Child processes, the places of things, and how long each part took.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("xtask lies two folders below the root")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where cargo keeps what it fetched.
///
/// # Errors
/// If neither `CARGO_HOME` nor `HOME` is set.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Ok(root().join(home)),
        None => {
            let home = env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
            Ok(Path::new(&home).join(".cargo"))
        }
    }
}

/// The cargo that runs this tool, started in the root of the workspace.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = shown(&command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed: {status}");
    }
    Ok(())
}

/// What a command prints on stdout.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let shown = shown(&command);
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{shown}` printed no UTF-8"))
}

fn shown(command: &Command) -> String {
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    std::iter::once(name)
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Names and durations of the parts of one command; it prints them when it is finished.
pub(crate) struct Parts {
    title: &'static str,
    done: Vec<(String, f64, bool)>,
}

impl Parts {
    pub(crate) fn new(title: &'static str) -> Self {
        Self {
            title,
            done: Vec::new(),
        }
    }

    /// Runs one part and remembers how long it took and whether it passed.
    pub(crate) fn time<T>(&mut self, name: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("── {name}");
        let start = Instant::now();
        let result = part();
        self.done.push((
            name.to_owned(),
            start.elapsed().as_secs_f64(),
            result.is_ok(),
        ));
        if let Err(error) = &result {
            eprintln!("── {name}: {error:#}");
        }
        result
    }

    /// Prints the table.
    ///
    /// # Errors
    /// Names every part that failed.
    pub(crate) fn finish(self) -> Result<()> {
        eprintln!("\n{}:", self.title);
        for (name, seconds, passed) in &self.done {
            let mark = if *passed { "ok" } else { "FAILED" };
            eprintln!("  {name:<28} {seconds:>8.1} s  {mark}");
        }
        let failed: Vec<_> = self
            .done
            .iter()
            .filter(|part| !part.2)
            .map(|part| part.0.as_str())
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}
