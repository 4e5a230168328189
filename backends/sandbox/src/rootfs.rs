//! The file system that an instance sees.
//!
//! ```text
//!  /            overlay: image below, tmpfs of disk_mib above       (or, without overlay: the image's folders, read-only)
//!  /home /tmp /run /var/tmp /dev/shm    folders of the same tmpfs, so that one size bounds all that is written
//!  /dev         null zero full random urandom tty, a devpts of its own
//!  /proc        of the instance's process ids only, others' hidden, host-wide files masked
//! ```
//!
//! Everything that comes from the host is taken as a detached mount before the root is changed, and attached after
//! the old root is gone. Threat: an image is a stranger's file tree, so no path of it is resolved while a symbolic
//! link in it could still lead to a file of the host.
//!
//! Image and scaffold are opened while the caller is still their owner, and the overlay is given `/proc/self/fd` paths: the instance reads
//! its own mount table, and would otherwise learn the names of the host's folders.

use std::{
    ffi::CString,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, mkdirat, openat,
        statat, symlinkat, unlinkat,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
        MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen, mount_bind, mount_change, mount_remount, move_mount, open_tree, unmount,
    },
    process::{chdir, fchdir, pivot_root},
};

use crate::{
    stage::{AtStage, StageError},
    wire::Folders,
};

/// Inodes of the writable tmpfs for each MiB of its size. An inode costs the kernel about a KiB that the size does not
/// count, so a disk of empty files costs at most a quarter more than one of full files.
const INODES_PER_MIB: u64 = 256;

/// Terminals of one instance; each costs the kernel a few KiB.
const MAX_TERMINALS: u32 = 64;

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Files that tell of the host or act on it, shown as empty.
const MASKED_FILES: [&str; 11] = [
    "proc/config.gz",
    "proc/kallsyms",
    "proc/kcore",
    "proc/key-users",
    "proc/keys",
    "proc/kmsg",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/sysrq-trigger",
    "proc/timer_list",
    "proc/vmallocinfo",
];

/// What the kernel lends to a whole user namespace and charges to whoever made it as well, so to the host's root or the node's
/// user: a tenant that took all of that would leave none to other leases and the host. By default the host has 128 inotify
/// instances for one user; an editor or a watcher of files takes one.
const LENT: [(&str, &str); 2] = [
    ("proc/sys/user/max_inotify_instances", "8"),
    ("proc/sys/user/max_inotify_watches", "8192"),
];

/// Folders of `/proc` through which a kernel is configured.
const READ_ONLY_FOLDERS: [&str; 6] = [
    "proc/acpi",
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/scsi",
    "proc/sys",
];

/// [`Folders`] as descriptors.
#[derive(Debug)]
pub(crate) struct OpenFolders {
    image: OwnedFd,
    /// The tmpfs is mounted on it; only this mount namespace sees that.
    scaffold: OwnedFd,
}

impl OpenFolders {
    /// Opens the folders. The caller is in its new mount namespace, but still the user whose folders they are.
    pub(crate) fn open(folders: &Folders) -> Result<Self, StageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| rustix::fs::open(path, flags, Mode::empty());
        Ok(Self {
            image: open(&folders.image).at("opening the image")?,
            scaffold: open(&folders.scaffold).at("opening the folder of the lease")?,
        })
    }
}

/// What the root is made of.
pub(crate) struct Plan {
    pub(crate) folders: OpenFolders,
    /// Size of all that can be written.
    pub(crate) disk_mib: u32,
    /// Whether the image may be the lower layer of an overlay.
    pub(crate) overlay: bool,
    /// User and group of the tenant, in the instance's user namespace.
    pub(crate) tenant: u32,
}

/// Makes the file system and changes into it. The caller is in a mount namespace of its own and has every capability
/// in the user namespace that owns it.
pub(crate) fn enter(plan: &Plan) -> Result<(), StageError> {
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .at("making mounts private")?;
    let devices = DEVICES
        .iter()
        .map(|name| open_tree(CWD, format!("/dev/{name}"), clone_flags()))
        .collect::<Result<Vec<_>, _>>()
        .at("taking device files")?;
    let proc = filesystem("proc", &[("hidepid", "2")], no_files_run())
        .at("mounting /proc (a container runtime that masks it forbids this)")?;
    let terminals = MAX_TERMINALS.to_string();
    let tenant = plan.tenant.to_string();
    let pts = filesystem(
        "devpts",
        &[
            ("uid", &tenant),
            ("mode", "0620"),
            ("ptmxmode", "0666"),
            ("max", &terminals),
        ],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .at("mounting /dev/pts")?;
    let disk = writable_disk(plan)?;
    let writable = ["home", "tmp", "run", "vartmp", "shm"]
        .map(|name| open_tree(&disk, name, clone_flags()).at("taking writable folders"));
    let [home, tmp, run, var_tmp, shm] = writable;
    let var_lib = if plan.overlay {
        overlay(plan.folders.image.as_fd())?;
        None
    } else {
        bind_image(plan.folders.image.as_fd())?
    };

    chdir("root").at("entering the new root")?;
    pivot_root(".", ".").at("changing the root")?;
    unmount(".", UnmountFlags::DETACH).at("leaving the old root")?;
    chdir("/").at("entering the new root")?;

    attach(&proc, "proc").at("attaching /proc")?;
    attach(&home?, "home").at("attaching /home")?;
    attach(&tmp?, "tmp").at("attaching /tmp")?;
    attach(&run?, "run").at("attaching /run")?;
    folder("var").at("making /var")?;
    if let Some(var_lib) = var_lib {
        attach_read_only(&var_lib, "var/lib").at("attaching /var/lib")?;
    }
    attach(&var_tmp?, "var/tmp").at("attaching /var/tmp")?;
    devices_folder(&devices, &pts, &shm?)?;
    bound_what_is_lent()?;
    mask_proc()
}

/// The tmpfs that holds all that the instance writes, attached to the scaffold; it becomes the working directory.
fn writable_disk(plan: &Plan) -> Result<OwnedFd, StageError> {
    let size = format!("{}m", plan.disk_mib);
    let inodes = (u64::from(plan.disk_mib) * INODES_PER_MIB).to_string();
    let disk = filesystem(
        "tmpfs",
        &[("size", &size), ("nr_inodes", &inodes), ("mode", "0755")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .at("making the writable tmpfs")?;
    move_mount(
        &disk,
        "",
        &plan.folders.scaffold,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .at("attaching the writable tmpfs")?;
    fchdir(&disk).at("entering the writable tmpfs")?;
    let shared = 0o1777;
    for (name, mode, of_tenant) in [
        ("up", 0o755, false),
        ("work", 0o755, false),
        ("root", 0o755, false),
        ("home", 0o755, false),
        ("home/souk", 0o755, true),
        ("tmp", shared, false),
        ("run", 0o755, true),
        ("vartmp", shared, false),
        ("shm", shared, false),
    ] {
        mkdirat(CWD, name, Mode::from(mode)).at("making writable folders")?;
        chmodat(CWD, name, Mode::from(mode), AtFlags::empty()).at("making writable folders")?;
        if of_tenant {
            let (uid, gid) = (Uid::from_raw(plan.tenant), Gid::from_raw(plan.tenant));
            chownat(CWD, name, Some(uid), Some(gid), AtFlags::empty())
                .at("giving the home folder to the tenant")?;
        }
    }
    Ok(disk)
}

fn overlay(image: BorrowedFd<'_>) -> Result<(), StageError> {
    let stage = "laying the overlay";
    let options = format!(
        "lowerdir=/proc/self/fd/{},upperdir=up,workdir=work,userxattr",
        image.as_raw_fd()
    );
    let options = CString::new(options).expect("digits and names hold no NUL");
    rustix::mount::mount(
        "overlay",
        "root",
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .at(stage)
}

/// Without an overlay, binds each folder of the image into a root on the tmpfs, read-only, and returns `var/lib`,
/// which is attached to the fresh `/var` later.
fn bind_image(image: BorrowedFd<'_>) -> Result<Option<OwnedFd>, StageError> {
    let stage = "binding the image";
    mount_bind("root", "root").at(stage)?;
    let root = openat(
        CWD,
        "root",
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(stage)?;
    let listing = openat(
        image,
        ".",
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(stage)?;
    for entry in Dir::read_from(&listing).at(stage)? {
        let entry = entry.at(stage)?;
        let name = entry.file_name();
        if matches!(
            name.to_bytes(),
            b"." | b".." | b"proc" | b"dev" | b"sys" | b"home" | b"tmp" | b"run" | b"var"
        ) {
            continue;
        }
        let kind = statat(image, name, AtFlags::SYMLINK_NOFOLLOW).at(stage)?;
        match FileType::from_raw_mode(kind.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(image, name, vec![]).at(stage)?;
                symlinkat(target, &root, name).at(stage)?;
                continue;
            }
            FileType::Directory => mkdirat(&root, name, Mode::from(0o755)).at(stage)?,
            FileType::RegularFile => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&root, name, flags, Mode::from(0o644)).at(stage)?;
            }
            _ => continue,
        }
        let tree = open_tree(image, name, clone_flags()).at(stage)?;
        let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(&tree, "", &root, name, to).at(stage)?;
        let inside = CString::new([b"root/", name.to_bytes()].concat()).expect("no NUL inside");
        read_only(&inside).at(stage)?;
    }
    let is_folder = |path| {
        statat(image, path, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory)
    };
    if is_folder("var") && is_folder("var/lib") {
        return open_tree(image, "var/lib", clone_flags())
            .at(stage)
            .map(Some);
    }
    Ok(None)
}

fn devices_folder(devices: &[OwnedFd], pts: &OwnedFd, shm: &OwnedFd) -> Result<(), StageError> {
    let stage = "making /dev";
    let dev = filesystem(
        "tmpfs",
        &[("size", "64k"), ("nr_inodes", "64"), ("mode", "0755")],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .at(stage)?;
    attach(&dev, "dev").at(stage)?;
    for (name, device) in DEVICES.iter().zip(devices) {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&dev, *name, flags, Mode::from(0o666)).at(stage)?;
        let to = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(device, "", &dev, *name, to).at(stage)?;
    }
    attach(pts, "dev/pts").at(stage)?;
    attach(shm, "dev/shm").at(stage)?;
    for (target, name) in [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        symlinkat(target, &dev, name).at(stage)?;
    }
    read_only(c"dev").at(stage)
}

fn bound_what_is_lent() -> Result<(), StageError> {
    for (path, most) in LENT {
        match std::fs::write(path, most) {
            // A kernel that was built without it lends none.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            written => written.at("bounding what the kernel lends")?,
        }
    }
    Ok(())
}

fn mask_proc() -> Result<(), StageError> {
    let stage = "masking /proc";
    for path in MASKED_FILES {
        match mount_bind("dev/null", path) {
            Err(Errno::NOENT) => {}
            masked => masked.at(stage)?,
        }
    }
    for path in READ_ONLY_FOLDERS {
        match mount_bind(path, path) {
            Err(Errno::NOENT) => {}
            bound => {
                bound.at(stage)?;
                let path = CString::new(path).expect("no NUL inside");
                read_only(&path).at(stage)?;
            }
        }
    }
    Ok(())
}

fn clone_flags() -> OpenTreeFlags {
    OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC
}

fn no_files_run() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// A new file system, mounted nowhere yet.
fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Attaches a detached mount to a folder of the new root, which is made where it is missing.
fn attach(mount: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    folder(path)?;
    let from = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mount, "", CWD, path, from)
}

fn attach_read_only(mount: &OwnedFd, path: &str) -> rustix::io::Result<()> {
    attach(mount, path)?;
    let path = CString::new(path).expect("no NUL inside");
    read_only(&path)
}

/// Makes sure that a path is a folder, and not a link to somewhere else in the image.
fn folder(path: &str) -> rustix::io::Result<()> {
    match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(_) => unlinkat(CWD, path, AtFlags::empty())?,
        Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    mkdirat(CWD, path, Mode::from(0o755))
}

/// Makes a mount read-only and keeps the flags that a user namespace may not clear.
fn read_only(path: &std::ffi::CStr) -> rustix::io::Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let has = rustix::fs::statvfs(path)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (bit, flag) in [
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(bit) {
            flags |= flag;
        }
    }
    mount_remount(path, flags, c"")
}
