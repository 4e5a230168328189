//! OCI image layouts (image-spec v1): the directory that `skopeo copy … oci:` and `podman save --format oci-dir` write.
//!
//! Threat: every file in the layout is a stranger's. Documents are small and capped, blobs are named by their SHA-256 and
//! checked against it, and a name is 64 hex digits before it becomes a path.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::{
    error::ImportError,
    staging::Staging,
    tarball::{self, Form},
};

/// Largest document (index, manifest); the OCI distribution spec suggests the same.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most layers of one image; container engines stop at 127.
const MAX_LAYERS: usize = 127;

/// An index may point to an index; real ones do it once.
const MAX_INDEX_DEPTH: usize = 3;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct ImageManifest {
    layers: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// Stages all layers of the image for this machine's architecture.
pub(crate) fn stage_layout(staging: &mut Staging, layout: &Path) -> Result<(), ImportError> {
    let index: Index = parse(&read_document(&layout.join("index.json"))?, "index.json")?;
    let manifest = find_manifest(layout, index, MAX_INDEX_DEPTH)?;
    let document = read_blob_document(layout, &manifest)?;
    let ImageManifest { layers } = parse(&document, &manifest.digest)?;
    if layers.len() > MAX_LAYERS {
        return Err(refused(format!(
            "{} layers, at most {MAX_LAYERS} are allowed",
            layers.len()
        )));
    }
    layers
        .iter()
        .try_for_each(|layer| stage_layer(staging, layout, layer))
}

fn find_manifest(layout: &Path, index: Index, depth: usize) -> Result<Descriptor, ImportError> {
    let suits = |d: &&Descriptor| {
        d.platform
            .as_ref()
            .is_none_or(|p| p.os == "linux" && p.architecture == architecture())
    };
    let found = index.manifests.iter().find(suits).cloned();
    let found =
        found.ok_or_else(|| refused(format!("holds no image for linux/{}", architecture())))?;
    if !found.media_type.contains("index") && !found.media_type.contains("manifest.list") {
        return Ok(found);
    }
    if depth == 0 {
        return Err(refused("indexes are nested too deep".into()));
    }
    let nested = parse(&read_blob_document(layout, &found)?, &found.digest)?;
    find_manifest(layout, nested, depth - 1)
}

fn stage_layer(
    staging: &mut Staging,
    layout: &Path,
    layer: &Descriptor,
) -> Result<(), ImportError> {
    let path = blob_path(layout, &layer.digest)?;
    let read_error = |source| ImportError::Read {
        path: path.clone(),
        source,
    };
    let mut hashed = Hashed {
        inner: open(&path)?,
        hasher: Sha256::new(),
    };
    let media_type = layer.media_type.as_str();
    if media_type.ends_with("tar+gzip") || media_type.ends_with("tar.gzip") {
        tarball::stage_gzip(staging, BufReader::new(&mut hashed), Form::Layer, &path)?;
    } else if media_type.ends_with(".tar") {
        tarball::stage(staging, BufReader::new(&mut hashed), Form::Layer, &path)?;
    } else {
        return Err(refused(format!(
            "layer of type {media_type:?}; only tar and tar in gzip can be imported"
        )));
    }
    // A tar may end before its file does; the digest is over all of it.
    io::copy(&mut hashed, &mut io::sink()).map_err(read_error)?;
    check_digest(&layer.digest, hashed.hasher)
}

fn read_blob_document(layout: &Path, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
    let bytes = read_document(&blob_path(layout, &descriptor.digest)?)?;
    check_digest(&descriptor.digest, Sha256::new_with_prefix(&bytes))?;
    Ok(bytes)
}

fn read_document(path: &Path) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    let limit = MAX_DOCUMENT_BYTES + 1;
    open(path)?
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|source| ImportError::Read {
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 == limit {
        return Err(refused(format!("{} is larger than 4 MiB", path.display())));
    }
    Ok(bytes)
}

fn open(path: &Path) -> Result<File, ImportError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).expect("flags of open fit its int");
    let file = File::options().read(true).custom_flags(flags).open(path);
    let checked = file.and_then(|file| {
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ))
        }
    });
    checked.map_err(|source| ImportError::Read {
        path: path.into(),
        source,
    })
}

fn blob_path(layout: &Path, digest: &str) -> Result<PathBuf, ImportError> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    match hex {
        Some(hex) => Ok(layout.join("blobs/sha256").join(hex)),
        None => Err(refused(format!(
            "digest {digest:?} is not sha256 and 64 hex digits"
        ))),
    }
}

fn check_digest(digest: &str, hasher: Sha256) -> Result<(), ImportError> {
    let found = format!("sha256:{}", hex::encode(hasher.finalize()));
    if found == digest {
        Ok(())
    } else {
        Err(refused(format!("blob {digest} has the content of {found}")))
    }
}

fn parse<'d, T: Deserialize<'d>>(document: &'d [u8], name: &str) -> Result<T, ImportError> {
    serde_json::from_slice(document).map_err(|e| refused(format!("{name}: {e}")))
}

fn refused(reason: String) -> ImportError {
    ImportError::Oci { reason }
}

/// This machine's architecture as Go, and so OCI, calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Hashes what passes.
struct Hashed<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        Ok(n)
    }
}
