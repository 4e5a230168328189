//! What a test needs of its machine. Where that is missing, the test says so and does not run.

use std::process::Command;

use crate::skipped;

/// Ends a test, as skipped, where this machine lacks something that it needs: `needs!(Leases, OpenSsh);`.
#[macro_export]
macro_rules! needs {
    ($($need:ident),+) => {
        $(if $crate::lacks($crate::Need::$need) {
            return;
        })+
    };
}

/// Something that not every machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root, and to mount.
    Root,
    /// To make hosts, as [`crate::Lan`] does.
    Hosts,
    /// `nft`, for the firewall of a host.
    Nftables,
    /// To make the namespaces of a lease.
    Leases,
    /// The clients of OpenSSH.
    OpenSsh,
    /// `rsync`.
    Rsync,
}

/// Whether this machine lacks something, which is then said.
///
/// It is tried with the programs of the machine and not with ours: one of ours that refuses wrongly must fail its tests.
#[must_use]
pub fn lacks(need: Need) -> bool {
    let (why, trial) = match need {
        Need::Root => ("needs root", "unshare --mount true"),
        Need::Hosts => (
            "needs root and iproute2",
            "unshare --net ip link add br0 type bridge",
        ),
        Need::Nftables => ("needs nftables", "nft --version"),
        Need::Leases => (
            "needs user namespaces, which this machine refuses; `souk doctor` says what allows them",
            "unshare --user --map-root-user --mount-proc --pid --fork --net true",
        ),
        Need::OpenSsh => ("needs OpenSSH", "ssh -V"),
        Need::Rsync => ("needs rsync", "rsync --version"),
    };
    let tried = Command::new("sh").args(["-c", trial]).output();
    let is_lacking = !tried.is_ok_and(|output| output.status.success());
    if is_lacking {
        skipped(why);
    }
    is_lacking
}
