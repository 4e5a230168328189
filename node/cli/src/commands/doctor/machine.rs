//! What can be seen of the machine and the configuration, without a node.

use std::{
    fs, io,
    net::{IpAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use rustix::{
    fs::statvfs,
    process::{Resource, geteuid, getrlimit},
};
use souk_backend::BackendError;
use souk_crypto::with_causes;
use souk_market::card::Role;
use souk_node::{
    config::{Config, EvidenceSource},
    net::Multiaddr,
};
use souk_sandbox::KeeperProgram;

use super::Finding;

/// With less than this the store and the instances soon cannot write, in bytes.
const LITTLE_DISK: u64 = 1 << 30;

/// A busy node has more descriptors open than this at times.
const FEW_FILES: u64 = 4096;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings = vec![Finding::fine(
        "configuration",
        format!("it is right, for network {}", config.network.id),
    )];
    findings.extend(config.warnings().into_iter().map(|warning| {
        Finding::note(
            "configuration",
            warning,
            "it is allowed and hardly meant",
            "change it in souk.toml, and restart the node",
        )
    }));
    findings.push(folder(&config.node.data_dir));
    findings.extend(keys(&config.node.data_dir));
    findings.push(disk(&config.node.data_dir));
    findings.push(files());
    if config.node.roles.contains(&Role::Provider) {
        findings.push(sandbox());
    }
    findings.push(tee(config));
    findings
}

fn folder(data: &Path) -> Finding {
    const CHECK: &str = "data folder";
    let shown = data.display();
    match fs::metadata(data) {
        Ok(meta) if meta.mode() & 0o022 != 0 => Finding::bad(
            CHECK,
            format!(
                "others can write to {shown}: mode {:04o}",
                meta.mode() & 0o7777
            ),
            "who can write there can take the node's identity and its log",
            format!("chmod go-w {shown}"),
        ),
        Ok(meta) if meta.uid() != geteuid().as_raw() && geteuid().as_raw() != 0 => Finding::bad(
            CHECK,
            format!(
                "{shown} belongs to another user, with the number {}",
                meta.uid()
            ),
            "the node can write its journal only to a folder of its own user",
            "run this command and the node as that user",
        ),
        Ok(_) => Finding::fine(CHECK, format!("only its user writes to {shown}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::note(
            CHECK,
            format!("{shown} is not there yet"),
            "a first start makes it, and a new identity in it",
            "if there was one, look at node.data_dir; else start the node",
        ),
        Err(error) => Finding::bad(
            CHECK,
            format!("{shown} cannot be looked at: {error}"),
            "the node keeps everything there",
            "run this command as the user of the node",
        ),
    }
}

/// Keys of the node that others can read.
fn keys(data: &Path) -> Vec<Finding> {
    let entries = fs::read_dir(data.join("keys"));
    let entries = entries.into_iter().flatten().flatten();
    let keys = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".key"));
    let open = keys.filter(|entry| {
        let meta = entry.metadata();
        meta.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o077 != 0)
    });
    open.map(|entry| {
        let path = entry.path();
        Finding::bad(
            "keys",
            format!("others can read {}", path.display()),
            "the node refuses to start with it: who has read it can act as this node",
            format!(
                "chmod 600 {}, and make a new one if somebody may have read it",
                path.display()
            ),
        )
    })
    .collect()
}

fn disk(data: &Path) -> Finding {
    const CHECK: &str = "disk";
    // The folder may not be there yet: then what it will be made in.
    let there = data.ancestors().find(|path| path.exists());
    let Some(Ok(disk)) = there.map(statvfs) else {
        return Finding::note(
            CHECK,
            "how much room there is cannot be told",
            "a full disk stops leases from being taken",
            "look with df",
        );
    };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let shown = format!("{} MiB are free for {}", free >> 20, data.display());
    if free < LITTLE_DISK {
        return Finding::bad(
            CHECK,
            shown,
            "without room no lease can be recorded, and so none is taken",
            "make room, or move node.data_dir",
        );
    }
    Finding::fine(CHECK, shown)
}

fn files() -> Finding {
    const CHECK: &str = "open files";
    // A node raises its soft limit to this.
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < FEW_FILES => Finding::bad(
            CHECK,
            format!(
                "a process of this user may have {most} files open, if the node was started as this command was"
            ),
            "each connection takes one, and a node without room refuses neighbours",
            format!("LimitNOFILE={FEW_FILES} in the unit, or `ulimit -n {FEW_FILES}`"),
        ),
        Some(most) => Finding::fine(CHECK, format!("a process of this user may have {most}")),
        None => Finding::fine(CHECK, "a process of this user may have any number"),
    }
}

/// Namespaces, mounts and the rest, by a trial.
fn sandbox() -> Finding {
    const CHECK: &str = "sandbox";
    const WHY: &str = "no machine can be made here, so every lease fails";
    let tried = tempfile::tempdir()
        .map_err(|error| Finding::bad(CHECK, error.to_string(), WHY, "make room in /tmp"))
        .and_then(|scratch| {
            souk_sandbox::check(&KeeperProgram::this_program(), scratch.path()).map_err(|error| {
                let fix = match &error {
                    BackendError::Host { hint, .. } => hint.clone(),
                    _ => "see the message".to_owned(),
                };
                Finding::bad(CHECK, with_causes(&error), WHY, fix)
            })
        });
    match tried {
        Ok(()) => Finding::fine(CHECK, "a trial made namespaces and a root of its own"),
        Err(finding) => finding,
    }
}

fn tee(config: &Config) -> Finding {
    const CHECK: &str = "TEE";
    let found = ["/dev/tdx_guest", "/dev/sev-guest"]
        .into_iter()
        .filter(|path| Path::new(path).exists())
        .collect::<Vec<_>>();
    match &config.evidence.source {
        EvidenceSource::Tsm { folder, .. } if !folder.is_dir() => Finding::bad(
            CHECK,
            format!(
                "evidence comes from {}, which is not there",
                folder.display()
            ),
            "the card promises what cannot be shown",
            "mount configfs and load the driver of the guest, or take evidence.source out of souk.toml",
        ),
        EvidenceSource::None if !found.is_empty() => Finding::note(
            CHECK,
            format!(
                "this machine has {}, and shows nothing of it",
                found.join(", ")
            ),
            "some requesters rent only from machines that prove what they are",
            "set evidence.source in souk.toml",
        ),
        EvidenceSource::None => Finding::fine(CHECK, "none, and none is promised"),
        _ => Finding::fine(CHECK, "evidence has a source"),
    }
}

/// Whether the addresses of a node that does not run can be listened on.
pub(super) fn ports(config: &Config) -> Vec<Finding> {
    let addresses = config.node.listen.iter();
    addresses.filter_map(port).collect()
}

/// Tries an address such as `/ip4/0.0.0.0/udp/4551/quic-v1`.
fn port(address: &Multiaddr) -> Option<Finding> {
    let text = address.to_string();
    let mut parts = text.split('/').skip(2);
    let ip: IpAddr = parts.next()?.parse().ok()?;
    let is_tcp = parts.next()? == "tcp";
    let port: u16 = parts.next()?.parse().ok()?;
    let tried = match is_tcp {
        true => TcpListener::bind((ip, port)).map(drop),
        false => UdpSocket::bind((ip, port)).map(drop),
    };
    Some(match tried {
        Ok(()) => Finding::fine("port", format!("{text} is free")),
        Err(error) => Finding::bad(
            "port",
            format!("{text} cannot be listened on: {error}"),
            "the node does not start while something else has it",
            format!("see who has it with `ss -lntup 'sport = :{port}'`, or change node.listen"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use tempfile::TempDir;

    use super::{super::State, *};

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    }

    #[test]
    fn a_folder_that_others_can_write_to_is_bad() {
        let folder = TempDir::new().expect("a folder");
        assert_eq!(super::folder(folder.path()).state, State::Fine);
        chmod(folder.path(), 0o777);
        assert_eq!(super::folder(folder.path()).state, State::Bad);
        let missing = folder.path().join("missing");
        assert_eq!(super::folder(&missing).state, State::Note);
    }

    #[test]
    fn keys_that_others_can_read_are_bad() {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join("keys")).expect("made");
        let key = folder.path().join("keys/node.key");
        fs::write(&key, "secret").expect("written");
        chmod(&key, 0o600);
        assert_eq!(keys(folder.path()), []);
        chmod(&key, 0o644);
        let found = keys(folder.path());
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("node.key"), "{found:?}");
    }

    #[test]
    fn a_port_that_something_else_has_is_bad_and_a_free_one_is_not() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).expect("binds");
        let port = taken.local_addr().expect("bound").port();
        let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("valid");
        let found = super::port(&address).expect("looked at");
        assert_eq!(found.state, State::Bad, "{found:?}");
        let free: Multiaddr = "/ip4/127.0.0.1/udp/0/quic-v1".parse().expect("valid");
        assert_eq!(super::port(&free).expect("looked at").state, State::Fine);
    }
}
