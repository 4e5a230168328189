//! The files that make plain `ssh`, `scp`, `sftp` and `rsync` work with a lease.
//!
//! The fragment pins everything that a requester could give away or be tricked into: one key, one host key, one user,
//! no agent, no forwarding of it, no key update, no name look-up. The way in is a `ProxyCommand`: it judges the instance's evidence,
//! finds a relay (or the provider's port, where the user chose to show it an address), and keeps the session when that breaks.
//!
//! Threat: a provider that writes into the requester's `ssh_config`. Every text in it is either ours or of a type whose
//! character set holds nothing that `ssh` or a shell would read.

use std::path::Path;

use rand::Rng as _;
use souk_market::units::{HostKey, SshPublicKey, UserName};
use ssh_key::{
    LineEnding, PrivateKey, PublicKey,
    private::{Ed25519Keypair, KeypairData},
    public::{Ed25519PublicKey, KeyData},
};
use zeroize::Zeroizing;

/// A fresh key pair: the raw public key for the envelope, and the private key in OpenSSH's format, without a comment.
pub(super) fn draw_key() -> (SshPublicKey, Zeroizing<String>) {
    let mut seed = Zeroizing::new([0; 32]);
    rand::rng().fill_bytes(&mut *seed);
    let pair = Ed25519Keypair::from_seed(&seed);
    let public = SshPublicKey(pair.public.0);
    let private = PrivateKey::new(KeypairData::Ed25519(pair), "")
        .and_then(|key| key.to_openssh(LineEnding::LF))
        .expect("an unencrypted Ed25519 key always encodes");
    (public, private)
}

/// What a fragment is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    /// The name for `ssh`.
    pub(super) alias: &'a str,
    /// The client's folder; its characters are checked when it is opened.
    pub(super) home: &'a Path,
    /// The folder of the lease, below it.
    pub(super) folder: &'a Path,
    /// The name of the lease.
    pub(super) lease: &'a str,
    pub(super) user: &'a UserName,
    /// This program.
    pub(super) souk: &'a Path,
}

/// The line of `known_hosts` that pins the host key.
pub(super) fn known_hosts(alias: &str, host_key: &HostKey) -> String {
    let key = PublicKey::new(KeyData::Ed25519(Ed25519PublicKey(host_key.0)), "");
    let key = key.to_openssh().expect("an Ed25519 key always encodes");
    format!("{alias} {}\n", key.trim_end())
}

/// The `ssh_config` fragment.
pub(super) fn config(fragment: &Fragment<'_>) -> String {
    let Fragment {
        alias,
        home,
        folder,
        lease,
        user,
        souk,
    } = fragment;
    let (folder, home, souk) = (folder.display(), home.display(), souk.display());
    // The folder holds no quote, space or percent sign; the program's path is checked by the caller.
    format!(
        "Host {alias}\n\
         \x20   HostName {alias}\n\
         \x20   ProxyCommand '{souk}' ssh-proxy --home '{home}' {lease}\n\
         \x20   User {user}\n\
         \x20   IdentityFile {folder}/ssh_key\n\
         \x20   IdentitiesOnly yes\n\
         \x20   IdentityAgent none\n\
         \x20   PreferredAuthentications publickey\n\
         \x20   HostKeyAlias {alias}\n\
         \x20   HostKeyAlgorithms ssh-ed25519\n\
         \x20   UserKnownHostsFile {folder}/known_hosts\n\
         \x20   GlobalKnownHostsFile /dev/null\n\
         \x20   StrictHostKeyChecking yes\n\
         \x20   UpdateHostKeys no\n\
         \x20   VerifyHostKeyDNS no\n\
         \x20   CheckHostIP no\n\
         \x20   ForwardAgent no\n\
         \x20   ForwardX11 no\n\
         \x20   PermitLocalCommand no\n\
         \x20   ServerAliveInterval 30\n\
         \x20   ServerAliveCountMax 10\n"
    )
}

/// Whether a path can stand in a `ProxyCommand` between single quotes.
pub(super) fn is_quotable(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text.iter()
        .all(|b| b.is_ascii_graphic() && !b"'\"%\\".contains(b) || *b == b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_pins_key_host_and_user_and_goes_through_this_program() {
        let fragment = config(&Fragment {
            alias: "souk-0a1b2c3d",
            home: Path::new("/home/u/souk"),
            folder: Path::new("/home/u/souk/leases/00112233"),
            lease: "00112233",
            user: &"souk".parse().expect("a name"),
            souk: Path::new("/usr/bin/souk"),
        });
        insta::assert_snapshot!(fragment, @r"
        Host souk-0a1b2c3d
            HostName souk-0a1b2c3d
            ProxyCommand '/usr/bin/souk' ssh-proxy --home '/home/u/souk' 00112233
            User souk
            IdentityFile /home/u/souk/leases/00112233/ssh_key
            IdentitiesOnly yes
            IdentityAgent none
            PreferredAuthentications publickey
            HostKeyAlias souk-0a1b2c3d
            HostKeyAlgorithms ssh-ed25519
            UserKnownHostsFile /home/u/souk/leases/00112233/known_hosts
            GlobalKnownHostsFile /dev/null
            StrictHostKeyChecking yes
            UpdateHostKeys no
            VerifyHostKeyDNS no
            CheckHostIP no
            ForwardAgent no
            ForwardX11 no
            PermitLocalCommand no
            ServerAliveInterval 30
            ServerAliveCountMax 10
        ");
    }

    #[test]
    fn the_private_key_reads_back_and_belongs_to_the_public_one() {
        let (public, private) = draw_key();
        let key = PrivateKey::from_openssh(private.as_str()).expect("OpenSSH's format");
        assert_eq!(
            key.public_key().key_data().ed25519().expect("Ed25519").0,
            public.0
        );
        assert_eq!(key.comment().as_bytes(), b"");
        assert_ne!(draw_key().0, public);
    }

    #[test]
    fn the_host_key_is_pinned_under_the_alias() {
        let line = known_hosts("souk-0a1b2c3d", &HostKey([7; 32]));
        assert!(
            line.starts_with("souk-0a1b2c3d ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn paths_that_would_end_the_quotes_are_not_quotable() {
        assert!(is_quotable(Path::new("/opt/my souk/bin")));
        for bad in ["/a'b", "/a%h", "/a\"b", "/a\nb", "/a\\b"] {
            assert!(!is_quotable(Path::new(bad)), "{bad}");
        }
    }
}
