//! The two programs: `souk`, and the static agent that enters every sandbox.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, cargo_home, output, root, run, target_dir};

/// Where the programs are.
pub(crate) struct Programs {
    pub(crate) souk: PathBuf,
    pub(crate) agent: PathBuf,
}

/// Needs no shared library, so that it runs in an image that has none.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// Builds both programs into `target/release/`.
pub(crate) fn all() -> Result<Programs> {
    let agent = agent(&target_dir(), Vec::new())?;
    run(cargo(&["build", "--release", "--locked", "-p", "souk"]))?;
    let souk = target_dir().join("release/souk");
    Ok(Programs { souk, agent })
}

/// Builds both programs as they are packaged, into `target/release/`: they tell of which commit they are, and nothing in them
/// where they were built.
///
/// `souk` is no static program: it asks the C library for addresses by name, which asks plugins of the very machine.
pub(crate) fn shipped() -> Result<Programs> {
    // Cargo does not tell builds with other paths apart, so each program has a folder of its own: with one for both, each would
    // build everything again after the other.
    let folder = target_dir().join("shipped");
    let remaps = remaps(root(), &target_dir(), &cargo_home()?);
    let agent = agent(&folder.join("souk-agent"), remaps.clone())?;
    let built = for_target("souk", &folder.join("souk"), &remaps)?;
    let souk = target_dir().join("release/souk");
    install(&built, &souk)?;
    Ok(Programs { souk, agent })
}

/// What stands in a program instead of the paths of this machine. Of those that fit, rustc takes the last: the target folder lies
/// in the root, and the home of cargo may.
fn remaps(root: &Path, target: &Path, home: &Path) -> Vec<String> {
    [(root, "souk"), (target, "target"), (home, "cargo")]
        .map(|(path, name)| format!("--remap-path-prefix={}={name}", path.display()))
        .to_vec()
}

/// Builds the agent without any shared library.
fn agent(folder: &Path, mut flags: Vec<String>) -> Result<PathBuf> {
    flags.push(STATIC.to_owned());
    let built = for_target("souk-agent", folder, &flags)?;
    ensure_static(&built)?;
    let agent = target_dir().join("release/souk-agent");
    install(&built, &agent)?;
    Ok(agent)
}

/// Builds a program with flags of its own for rustc, below a target folder; says where it is.
///
/// The target is named, so that the flags do not reach build scripts and procedural macros, which must be shared libraries.
fn for_target(program: &str, folder: &Path, flags: &[String]) -> Result<PathBuf> {
    let host = host_triple()?;
    let mut build = cargo(&["build", "--release", "--locked", "-p", program]);
    build
        .args(["--target", host.as_str(), "--target-dir"])
        .arg(folder)
        // It wins over all other settings of flags, and a path in it may hold spaces.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .envs(revision().map(|revision| ("SOUK_REVISION", revision)));
    run(build)?;
    Ok(folder.join(host).join("release").join(program))
}

/// The commit that is built, and whether files were changed since. Without git, or outside of a repository, nothing is known.
fn revision() -> Option<String> {
    let mut describe = Command::new("git");
    // No tag is taken, so that the commit itself is named.
    describe
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .arg("--exclude=*")
        .current_dir(root());
    let said = describe.output().ok()?;
    let revision = String::from_utf8(said.stdout).ok()?.trim().to_owned();
    (said.status.success() && !revision.is_empty()).then_some(revision)
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
    rustc.args(["-vV"]).current_dir(root());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_of_two_paths_is_remapped_after_the_wider() {
        let (root, target, home) = ("/a/souk", "/a/souk/target", "/a/souk/target/home");
        let remaps = remaps(Path::new(root), Path::new(target), Path::new(home));
        // As rustc does it: the last that fits wins.
        let mapped = |path: &str| {
            remaps.iter().rev().find_map(|flag| {
                let (from, to) = flag.strip_prefix("--remap-path-prefix=")?.split_once('=')?;
                Some(format!("{to}{}", path.strip_prefix(from)?))
            })
        };
        let built = mapped("/a/souk/target/x/out/v1.rs");
        assert_eq!(built.as_deref(), Some("target/x/out/v1.rs"));
        let crates = mapped("/a/souk/target/home/registry/src/lib.rs");
        assert_eq!(crates.as_deref(), Some("cargo/registry/src/lib.rs"));
        let own = mapped("/a/souk/node/src/lib.rs");
        assert_eq!(own.as_deref(), Some("souk/node/src/lib.rs"));
    }
}
