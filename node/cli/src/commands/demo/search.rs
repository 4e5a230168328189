//! Looks for the requester in what the provider wrote.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Serialize;
use souk_node::net::NodeAddress;

use crate::failure::Failure;

/// Images are the machine's own programs, put there before anybody rented.
const IMAGES: &str = "images";

/// Length of every secret of a requester, which ends its file.
const SECRET_BYTES: usize = 32;

/// Something to look for, in every form in which it could be written.
struct Needle(Vec<Vec<u8>>);

/// What a search came to.
#[derive(Serialize)]
pub(super) struct Findings {
    /// Identities and keys of the requester that were looked for.
    pub(super) needles: usize,
    /// Files that were read: store, usage log, log of the process, configuration.
    pub(super) files: usize,
    pub(super) bytes: u64,
    /// Files in which one of them stands.
    pub(super) found: Vec<PathBuf>,
    /// Files in which the same search finds the node's own id, which is there: so that it is known to find something.
    pub(super) found_own: usize,
}

/// Looks through the folder of a provider for network identities of a requester, and for the secrets in its folder.
pub(super) fn search(
    provider: &Path,
    own_id: &str,
    sessions: &[&str],
    requester: &Path,
) -> Result<Findings, Failure> {
    let own = Needle::peer_id(own_id)?;
    let mut needles = Vec::new();
    for session in sessions {
        needles.push(Needle::peer_id(session)?);
    }
    let unread = |error: io::Error| Failure::because("what was written cannot be searched", &error);
    for file in files(requester).map_err(unread)? {
        if is_secret(&file) {
            let secret = fs::read(&file).map_err(unread)?;
            let key = &secret[secret.len().saturating_sub(SECRET_BYTES)..];
            needles.push(Needle::bytes(key));
        }
    }
    let mut findings = Findings {
        needles: needles.len(),
        files: 0,
        bytes: 0,
        found: Vec::new(),
        found_own: 0,
    };
    for file in files(provider).map_err(unread)? {
        let content = match fs::read(&file) {
            Ok(content) => content,
            // Gone since its folder was listed, as files of a running node may be.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(unread(error)),
        };
        findings.files += 1;
        findings.bytes += content.len() as u64;
        findings.found_own += usize::from(own.is_in(&content));
        if needles.iter().any(|needle| needle.is_in(&content)) {
            findings.found.push(file);
        }
    }
    Ok(findings)
}

impl Findings {
    /// What did not hold.
    pub(super) fn failures(&self) -> Vec<String> {
        let stands = |path: &PathBuf| format!("the requester stands in {}", path.display());
        let mut failures: Vec<_> = self.found.iter().map(stands).collect();
        if self.found_own == 0 {
            failures.push(
                "the search for the requester does not even find the provider's own id".to_owned(),
            );
        }
        failures
    }
}

impl Needle {
    fn bytes(bytes: &[u8]) -> Self {
        let hex = hex::encode(bytes);
        Self(vec![
            bytes.to_vec(),
            hex.to_uppercase().into_bytes(),
            hex.into_bytes(),
        ])
    }

    fn peer_id(peer: &str) -> Result<Self, Failure> {
        // The key of a peer id is read where addresses are.
        let address = format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}");
        let node = address
            .parse::<NodeAddress>()
            .map_err(|error| Failure::because(format_args!("{peer:?} is no identity"), &error))?
            .node();
        let mut needle = Self::bytes(node.as_bytes());
        needle.0.push(peer.as_bytes().to_vec());
        Ok(needle)
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let holds = |form: &Vec<u8>| bytes.windows(form.len()).any(|window| window == form);
        self.0.iter().any(holds)
    }
}

fn is_secret(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "key") || path.file_name().is_some_and(|n| n == "ssh_key")
}

/// All regular files below a folder, images left out.
fn files(below: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![below.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Gone since it was listed, as the folder of a lease that ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != IMAGES {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    // From the libp2p specification of peer ids, and two nodes that were drawn.
    const OWN: &str = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
    const SESSION: &str = "12D3KooWP5LhecUz5f6qEoQq3oa3pk6JN1uqeLTeHxEG7gGCSEgu";

    fn folders() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["provider/data/images", "requester/leases/a"] {
            fs::create_dir_all(folder.path().join(name)).expect("made");
        }
        let write = |name: &str, content: &[u8]| {
            fs::write(folder.path().join(name), content).expect("written");
        };
        write("provider/log", format!("node {OWN} is ready").as_bytes());
        write("provider/data/images/x", SESSION.as_bytes());
        write(
            "requester/leases/a/holder.key",
            b"name of the form: 0123456789abcdef0123456789ABCDEF",
        );
        folder
    }

    fn look(folder: &Path) -> Findings {
        let provider = folder.join("provider");
        search(&provider, OWN, &[SESSION], &folder.join("requester")).expect("readable")
    }

    #[test]
    fn where_nothing_of_the_requester_was_written_all_holds() {
        let folder = folders();
        let findings = look(folder.path());
        assert_eq!(
            (findings.needles, findings.files, findings.found_own),
            (2, 1, 1)
        );
        assert_eq!(findings.failures(), Vec::<String>::new());
    }

    #[test]
    fn every_form_is_found_and_named() {
        let key = Needle::peer_id(SESSION).expect("an identity");
        let secret = Needle::bytes(b"0123456789abcdef0123456789ABCDEF");
        for form in key.0.iter().chain(&secret.0) {
            let folder = folders();
            let planted = folder.path().join("provider/data/journal.redb");
            fs::write(&planted, [b"before", form.as_slice(), b"after"].concat()).expect("written");
            assert_eq!(look(folder.path()).found, [planted], "{form:?}");
        }
    }

    #[test]
    fn a_search_that_finds_not_even_what_is_there_does_not_hold() {
        let folder = folders();
        fs::write(folder.path().join("provider/log"), b"").expect("written");
        assert_eq!(look(folder.path()).failures().len(), 1);
    }
}
