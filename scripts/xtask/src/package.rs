//! The Debian package, and whether a release can be built twice with the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    build,
    run::{cargo, cargo_home, output, root, run, target_dir},
};

/// Builds the programs as they are shipped, their manual and completions, and packs them. Needs cargo-deb.
pub(crate) fn deb() -> Result<()> {
    let programs = build::shipped()?;
    let manual = target_dir().join("release/manual");
    // Pages of commands that there are no more would be packed too.
    if manual.exists() {
        fs::remove_dir_all(&manual)
            .with_context(|| format!("cannot remove {}", manual.display()))?;
    }
    let mut write = Command::new(&programs.souk);
    write.arg("manual").arg(&manual);
    run(write)?;
    compress(&manual.join("man"))?;
    let mut pack = cargo(&["deb", "--no-build", "--no-strip", "--locked", "-p", "souk"]);
    // The dates in the package are those of the source.
    pack.env("SOURCE_DATE_EPOCH", commit_time()?);
    run(pack)
}

/// Compresses the pages of a folder, without names and dates.
fn compress(pages: &Path) -> Result<()> {
    let read = || format!("cannot read {}", pages.display());
    let mut gzip = Command::new("gzip");
    gzip.arg("-9n");
    for page in fs::read_dir(pages).with_context(read)? {
        gzip.arg(page.with_context(read)?.path());
    }
    run(gzip)
}

/// Builds the two programs as they are shipped from two checkouts, and compares them byte by byte: source, target folder and the
/// home of cargo lie elsewhere each time.
pub(crate) fn reproduce() -> Result<()> {
    let folder = target_dir().join("reproduce");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let one = folder.join("one");
    let other = folder.join("the-other/and-deeper");
    let one = checkout(&one, &one.join("source/target"), &cargo_home()?)?;
    // After the first, which has fetched what was missing.
    let home = copied_home(&other)?;
    let other = checkout(&other, &other.join("built/here"), &home)?;
    for program in ["souk", "souk-agent"] {
        let read = |built: &Path| {
            let path = built.join(program);
            fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        if read(&one)? != read(&other)? {
            bail!(
                "{program} differs between {} and {}",
                one.display(),
                other.display()
            );
        }
        println!("{program} is the same from both checkouts");
    }
    Ok(())
}

/// Builds what is committed, in a checkout of its own; says where the programs are.
fn checkout(folder: &Path, target: &Path, home: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let source = folder.join("source");
    let mut clone = Command::new("git");
    clone
        .args(["clone", "--quiet", "--local"])
        .arg(root())
        .arg(&source);
    run(clone)?;
    let mut build = cargo(&["xtask", "ship"]);
    build
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", target)
        .env("CARGO_HOME", home);
    run(build)?;
    Ok(target.join("release"))
}

/// A home of cargo with what was fetched, at another path. A link would not do: rustc looks through it.
fn copied_home(folder: &Path) -> Result<PathBuf> {
    let (from, home) = (cargo_home()?, folder.join("cargo"));
    fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    for part in ["registry", "config.toml"].map(|part| from.join(part)) {
        if part.exists() {
            let mut copy = Command::new("cp");
            copy.args(["-a", "--reflink=auto"]).arg(part).arg(&home);
            run(copy)?;
        }
    }
    Ok(home)
}

/// When the last commit was made, in Unix seconds.
fn commit_time() -> Result<String> {
    let mut log = Command::new("git");
    log.args(["log", "-1", "--format=%ct"]).current_dir(root());
    Ok(output(log)?.trim().to_owned())
}
