//! Looking for what must not be there.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

/// The store of images, which was filled before anybody rented and is too large to search for nothing.
const IMAGES: &str = "images";

/// Something that must not be found, in every form in which it could be written.
#[derive(Clone, Debug)]
pub struct Needle {
    name: String,
    forms: Vec<Vec<u8>>,
}

impl Needle {
    /// Bytes, which may also be written as hex.
    #[must_use]
    pub fn bytes(name: &str, bytes: &[u8]) -> Self {
        let lower = hex::encode(bytes);
        Self {
            name: name.to_owned(),
            forms: vec![
                bytes.to_vec(),
                lower.to_uppercase().into_bytes(),
                lower.into_bytes(),
            ],
        }
    }

    /// A text, as it is.
    #[must_use]
    pub fn text(name: &str, text: &str) -> Self {
        Self {
            name: name.to_owned(),
            forms: vec![text.as_bytes().to_vec()],
        }
    }

    /// An IPv4 address, in every form in which programs write one: for people, in multiaddresses, in CBOR, mapped into
    /// IPv6, and as the kernel lists sockets. Four bytes alone would be found in any large file.
    #[must_use]
    pub fn address(name: &str, address: Ipv4Addr) -> Self {
        /// Codes of ip4, tcp and udp in a multiaddress.
        const IP4: u8 = 4;
        const TCP: u8 = 6;
        const UDP: [u8; 2] = [0x91, 0x02];
        /// A byte string of four bytes.
        const CBOR: u8 = 0x44;
        let octets = address.octets();
        let hex = hex::encode_upper(octets);
        let listed = format!("{:08X}:", u32::from_le_bytes(octets));
        let mapped = address.to_ipv6_mapped().octets();
        Self {
            name: name.to_owned(),
            forms: vec![
                address.to_string().into_bytes(),
                [&[IP4][..], &octets, &[TCP]].concat(),
                [&[IP4][..], &octets, &UDP].concat(),
                [&[CBOR][..], &octets].concat(),
                mapped.to_vec(),
                hex.to_lowercase().into_bytes(),
                hex.into_bytes(),
                listed.into_bytes(),
            ],
        }
    }

    /// A node id or a client's identity as a libp2p peer id in base58: also its key in bytes and hex.
    ///
    /// # Panics
    /// If it is none of an Ed25519 key.
    #[must_use]
    pub fn peer_id(name: &str, base58: &str) -> Self {
        let multihash = unbase58(base58);
        // identity multihash, its length, protobuf of an Ed25519 key, its length, the key (libp2p peer ids).
        assert_eq!(
            multihash[..6],
            [0, 36, 8, 1, 18, 32],
            "not an Ed25519 peer id: {base58}"
        );
        let mut needle = Self::bytes(name, &multihash[6..]);
        needle.forms.push(base58.as_bytes().to_vec());
        needle
    }

    /// What it is, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether any of its forms is in some bytes.
    #[must_use]
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms
            .iter()
            .any(|form| bytes.windows(form.len()).any(|window| window == form))
    }

    /// All forms.
    #[must_use]
    pub fn forms(&self) -> &[Vec<u8>] {
        &self.forms
    }
}

/// Where below some paths, images left out, a needle is, in the content or the name of a file: `path: needle` for each.
///
/// # Panics
/// If something cannot be read.
#[must_use]
pub fn find(below: &[&Path], needles: &[Needle]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = below.iter().map(|path| path.to_path_buf()).collect();
    while let Some(path) = open.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            // Gone since its folder was listed, as files of a running node may be.
            continue;
        };
        if path.file_name().is_some_and(|name| name == IMAGES) {
            continue;
        }
        let content = if meta.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .expect("readable")
                    .map(|entry| entry.expect("readable").path()),
            );
            Vec::new()
        } else if meta.is_file() {
            fs::read(&path).unwrap_or_default()
        } else {
            Vec::new()
        };
        let name = path.as_os_str().as_encoded_bytes();
        for needle in needles {
            if needle.is_in(&content) || needle.is_in(name) {
                found.push(format!("{}: {}", path.display(), needle.name()));
            }
        }
    }
    found
}

/// Base58 as Bitcoin writes it.
fn unbase58(text: &str) -> Vec<u8> {
    const ALPHABET: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut out: Vec<u8> = Vec::new();
    for c in text.chars() {
        let mut carry = u32::try_from(ALPHABET.find(c).expect("base58")).expect("below 58");
        for byte in out.iter_mut().rev() {
            carry += u32::from(*byte) * 58;
            *byte = (carry & 255) as u8;
            carry >>= 8;
        }
        while carry > 0 {
            out.insert(0, (carry & 255) as u8);
            carry >>= 8;
        }
    }
    let zeros = text.chars().take_while(|c| *c == '1').count();
    [vec![0; zeros], out].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_id_is_found_in_every_form() {
        // From the libp2p specification of peer ids: the key of the first Ed25519 example.
        let needle = Needle::peer_id("id", "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA");
        for form in needle.forms() {
            assert!(needle.is_in(&[b"before ", form.as_slice(), b" after"].concat()));
        }
        assert_eq!(needle.forms()[0].len(), 32);
        assert!(!needle.is_in(b"something else"));
    }

    #[test]
    fn an_address_is_found_as_programs_write_it() {
        let needle = Needle::address("address", Ipv4Addr::new(10, 83, 0, 9));
        let multiaddr: &[u8] = &[4, 10, 83, 0, 9, 0x91, 2, 0x11, 0xc7];
        let cbor: &[u8] = &[0x82, 0x44, 10, 83, 0, 9, 0x19];
        let text: &[&[u8]] = &[
            b"peer=/ip4/10.83.0.9/tcp/1",
            b"   1: 0100007F:A8C2 0900530A:0016 01",
            b"0a530009",
            b"::ffff:10.83.0.9",
        ];
        for written in text.iter().chain([&multiaddr, &cbor]) {
            assert!(needle.is_in(written), "{written:?}");
        }
        assert!(!needle.is_in(&[10, 83, 0, 9]) && !needle.is_in(b"10.83.0.8"));
    }

    #[test]
    fn contents_and_names_below_a_folder_are_searched() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("deep")).expect("made");
        fs::write(folder.path().join("deep/file"), b"x\x01\x02\x03\x04y").expect("written");
        fs::write(folder.path().join("0a0b0c0d"), b"").expect("written");
        let inside = Needle::bytes("inside", &[1, 2, 3, 4]);
        let named = Needle::bytes("named", &[10, 11, 12, 13]);
        let absent = Needle::text("absent", "nothing");
        let found = find(&[folder.path()], &[inside, named, absent]);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
