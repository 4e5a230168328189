//! The two programs: `souk`, and the static agent that enters every sandbox.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, output, run, target_dir};

/// Where the programs are.
pub(crate) struct Programs {
    pub(crate) souk: PathBuf,
    pub(crate) agent: PathBuf,
}

/// Builds both programs into `target/release/`.
pub(crate) fn all() -> Result<Programs> {
    let agent = agent()?;
    run(cargo(&["build", "--release", "--locked", "-p", "souk"]))?;
    let souk = target_dir().join("release/souk");
    Ok(Programs { souk, agent })
}

/// Builds the agent without any shared library, so that it runs in an image that has none.
///
/// The target is named, so that `crt-static` does not reach build scripts and procedural macros, which must be
/// shared libraries.
fn agent() -> Result<PathBuf> {
    let host = host_triple()?;
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        host.to_uppercase().replace(['-', '.'], "_")
    );
    let mut build = cargo(&[
        "build",
        "--release",
        "--locked",
        "-p",
        "souk-agent",
        "--target",
        &host,
    ]);
    build
        .env(flags, "-C target-feature=+crt-static")
        .env_remove("RUSTFLAGS");
    run(build)?;
    let built = target_dir().join(&host).join("release/souk-agent");
    ensure_static(&built)?;
    let agent = target_dir().join("release/souk-agent");
    install(&built, &agent)?;
    Ok(agent)
}

/// Runs the demo of a fresh build; its exit status becomes ours.
pub(crate) fn demo(args: &[String]) -> Result<ExitCode> {
    let programs = all()?;
    let status = Command::new(&programs.souk)
        .arg("demo")
        .args(args)
        .env("SOUK_AGENT_BIN", &programs.agent)
        .status()
        .with_context(|| format!("cannot start {}", programs.souk.display()))?;
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
        (None, None) => 1,
    };
    Ok(ExitCode::from(code))
}

fn host_triple() -> Result<String> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["-vV"]).current_dir(crate::run::root());
    output(rustc)?
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host")
}

/// Replaces `to` in one step, so that a program that runs from there is not disturbed; leaves it alone when nothing changed.
fn install(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("no folder to install into")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let fresh = to.with_extension("fresh");
    fs::copy(from, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, to).with_context(|| format!("cannot replace {}", to.display()))
}

/// An ELF program is static when no program header asks for an interpreter.
fn ensure_static(program: &Path) -> Result<()> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let field = |at: usize, len: usize| -> Result<u64> {
        let raw = bytes.get(at..at + len).context("ELF file cut short")?;
        Ok(raw
            .iter()
            .rev()
            .fold(0, |n, byte| n << 8 | u64::from(*byte)))
    };
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!(
            "{} is not a little-endian 64-bit ELF program",
            program.display()
        );
    }
    let table = usize::try_from(field(32, 8)?)?;
    let (size, count) = (
        usize::try_from(field(54, 2)?)?,
        usize::try_from(field(56, 2)?)?,
    );
    for index in 0..count {
        if field(table + index * size, 4)? == u64::from(PT_INTERP) {
            bail!(
                "{} is not static: it asks for an interpreter",
                program.display()
            );
        }
    }
    Ok(())
}
