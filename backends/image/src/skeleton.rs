//! What every built image has beside programs: directories, links and the few files of `/etc`.
//!
//! Threat: the host's own `/etc` names its users and network. Nothing is copied from it; these files are constants.

use crate::{error::StageError, path::ImagePath, staging::Staging};

/// The user of a lease; the sandbox maps it to whoever runs the node.
const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
souk:x:1000:1000:souk:/home/souk:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
";

const GROUP: &str = "\
root:x:0:
tty:x:5:
souk:x:1000:
nogroup:x:65534:
";

const NSSWITCH: &str = "\
passwd: files
group: files
shadow: files
hosts: files
services: files
";

const HOSTS: &str = "\
127.0.0.1 localhost
::1 localhost
";

const PROFILE: &str = "\
export PATH=/usr/bin:/usr/sbin
export LANG=C.UTF-8
PS1='souk:\\w\\$ '
";

const OS_RELEASE: &str = "\
NAME=souk
ID=souk
PRETTY_NAME=\"souk image, built from the programs of its host\"
";

const FILES: &[(&str, &str)] = &[
    ("etc/passwd", PASSWD),
    ("etc/group", GROUP),
    ("etc/nsswitch.conf", NSSWITCH),
    ("etc/hosts", HOSTS),
    ("etc/profile", PROFILE),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
    ("etc/os-release", OS_RELEASE),
];

/// Directories with their modes; the kernel's and the lease's own are mounted over the empty ones.
const DIRS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("home/souk", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/sbin", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
];

/// One tree under `/usr`, whatever the host does.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("etc/mtab", "../proc/self/mounts"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("sbin", "usr/sbin"),
];

/// Stages all of it.
pub(crate) fn stage(staging: &mut Staging) -> Result<(), StageError> {
    for (path, mode) in DIRS {
        staging.dir(&ImagePath::new(path)?, *mode)?;
    }
    for (path, target) in LINKS {
        staging.symlink(&ImagePath::new(path)?, target.as_bytes())?;
    }
    for (path, text) in FILES {
        staging.file(&ImagePath::new(path)?, 0o644, &mut text.as_bytes())?;
    }
    Ok(())
}
