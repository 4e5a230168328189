//! An image from the programs of this machine, without any download.
//!
//! Threat: the host's users, keys and configuration. Files are taken by name from the system's program directories, with
//! the libraries that the loader would map, and from nowhere else; `/etc` of the image is made up ([`crate::skeleton`]).

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    elf::Loader,
    error::{BuildError, StageError},
    path::ImagePath,
    skeleton,
    staging::Staging,
};

/// What goes into a built image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// More programs by name, from the same directories; this machine must have them.
    pub programs: Vec<String>,
    /// Python 3 with its standard library, about 30 MiB; this machine must have it.
    pub python: bool,
}

/// Where the distribution's programs are; `/usr/local` and `PATH` are the host's own.
const PROGRAM_DIRS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

const SHELLS: &[&str] = &["sh", "bash", "dash", "busybox"];

const PROGRAMS: &[&str] = &[
    // coreutils
    "[",
    "arch",
    "b2sum",
    "base32",
    "base64",
    "basename",
    "basenc",
    "cat",
    "chgrp",
    "chmod",
    "chown",
    "cksum",
    "comm",
    "cp",
    "csplit",
    "cut",
    "date",
    "dd",
    "df",
    "dir",
    "dircolors",
    "dirname",
    "du",
    "echo",
    "env",
    "expand",
    "expr",
    "factor",
    "false",
    "fmt",
    "fold",
    "groups",
    "head",
    "hostid",
    "id",
    "install",
    "join",
    "link",
    "ln",
    "logname",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mktemp",
    "mv",
    "nice",
    "nl",
    "nohup",
    "nproc",
    "numfmt",
    "od",
    "paste",
    "pathchk",
    "pr",
    "printenv",
    "printf",
    "ptx",
    "pwd",
    "readlink",
    "realpath",
    "rm",
    "rmdir",
    "seq",
    "sha1sum",
    "sha224sum",
    "sha256sum",
    "sha384sum",
    "sha512sum",
    "shred",
    "shuf",
    "sleep",
    "sort",
    "split",
    "stat",
    "stty",
    "sum",
    "sync",
    "tac",
    "tail",
    "tee",
    "test",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "tsort",
    "tty",
    "uname",
    "unexpand",
    "uniq",
    "unlink",
    "vdir",
    "wc",
    "whoami",
    "yes",
    // text, files and archives
    "awk",
    "bc",
    "bunzip2",
    "bzip2",
    "cmp",
    "diff",
    "egrep",
    "fgrep",
    "find",
    "gawk",
    "grep",
    "gunzip",
    "gzip",
    "jq",
    "less",
    "mawk",
    "more",
    "patch",
    "rsync",
    "sed",
    "tar",
    "unxz",
    "unzip",
    "vi",
    "which",
    "xargs",
    "xz",
    "xzcat",
    "zcat",
    "zip",
    "zstd",
    // processes and the terminal
    "clear",
    "flock",
    "free",
    "getconf",
    "getent",
    "hostname",
    "kill",
    "pgrep",
    "pidof",
    "pkill",
    "ps",
    "reset",
    "taskset",
    "top",
    "tput",
    "uptime",
    "vmstat",
    "watch",
];

/// Opened by name at run time: names of users (older C libraries), thread cancellation.
const OPTIONAL_LIBRARIES: &[&str] = &["libnss_files.so.2", "libgcc_s.so.1"];

const TERMINFO_DIRS: [&str; 3] = ["/usr/share/terminfo", "/lib/terminfo", "/usr/lib/terminfo"];

const TERMINALS: &[&str] = &[
    "a/ansi",
    "d/dumb",
    "l/linux",
    "s/screen",
    "s/screen-256color",
    "t/tmux",
    "t/tmux-256color",
    "v/vt100",
    "x/xterm",
    "x/xterm-256color",
];

/// Parts of Python's library that need more than this image has, or only matter to its developers.
const PYTHON_LEFT_OUT: &[&str] = &[
    "__pycache__",
    "ensurepip",
    "idlelib",
    "test",
    "tkinter",
    "turtledemo",
];

/// Stages an image from this machine.
pub(crate) fn stage(staging: &mut Staging, options: &BuildOptions) -> Result<(), BuildError> {
    skeleton::stage(staging)?;
    let mut plan = Plan {
        loader: Loader::of_this_machine(),
        files: BTreeMap::new(),
        links: BTreeMap::new(),
    };
    for shell in SHELLS {
        plan.program(shell)?;
    }
    if !plan.has("usr/bin/sh") {
        return Err(BuildError::NoShell);
    }
    for name in PROGRAMS {
        plan.program(name)?;
    }
    // What was asked for by name is missed if it is not there.
    let python = options.python.then_some("python3");
    for name in options.programs.iter().map(String::as_str).chain(python) {
        if !plan.program(name)? {
            let name = name.to_owned();
            return Err(BuildError::Program { name });
        }
    }
    for library in OPTIONAL_LIBRARIES {
        let found = plan.loader.optional(library);
        plan.files
            .extend(found.map(|(place, source)| (merged(&place), source)));
    }
    plan.terminals();
    if options.python {
        plan.python()?;
    }
    plan.stage(staging)
}

/// What to copy: paths in the image to files of this machine, and links beside them.
struct Plan {
    loader: Loader,
    files: BTreeMap<PathBuf, PathBuf>,
    links: BTreeMap<PathBuf, PathBuf>,
}

impl Plan {
    fn has(&self, path: &str) -> bool {
        self.files.contains_key(Path::new(path)) || self.links.contains_key(Path::new(path))
    }

    /// Adds a program under its name, if this machine has it; one that is a link (`awk`, `python3`) becomes a link to
    /// its real place.
    fn program(&mut self, name: &str) -> Result<bool, BuildError> {
        let is_plain = !name.is_empty() && !name.contains('/') && name != "..";
        let found = PROGRAM_DIRS.iter().filter(|_| is_plain).find_map(|dir| {
            let path = Path::new(dir).join(name);
            let real = fs::canonicalize(&path).ok()?;
            let is_program = real
                .metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
            (is_program && is_systems_own(&real)).then_some((merged(&path), real))
        });
        let Some((place, real)) = found else {
            return Ok(false);
        };
        let real_place = merged(&real);
        if place != real_place {
            self.links.insert(place, Path::new("/").join(&real_place));
        }
        self.file(real_place, real)?;
        Ok(true)
    }

    fn file(&mut self, place: PathBuf, source: PathBuf) -> Result<(), BuildError> {
        if self.files.contains_key(&place) {
            return Ok(());
        }
        for (place, source) in self.loader.closure(&source)? {
            self.files.insert(merged(&place), source);
        }
        self.files.insert(place, source);
        Ok(())
    }

    fn terminals(&mut self) {
        for terminal in TERMINALS {
            let found = TERMINFO_DIRS.iter().find_map(|dir| {
                let path = Path::new(dir).join(terminal);
                let real = fs::canonicalize(&path)
                    .ok()
                    .filter(|real| is_systems_own(real))?;
                Some((Path::new("usr/share/terminfo").join(terminal), real))
            });
            self.files.extend(found);
        }
    }

    /// The library of the Python that was added.
    fn python(&mut self) -> Result<(), BuildError> {
        let Some(real) = self.links.get(Path::new("usr/bin/python3")).cloned() else {
            return Ok(());
        };
        let library = real
            .file_name()
            .map(|name| Path::new("/usr/lib").join(name));
        library.map_or(Ok(()), |dir| self.python_dir(&dir))
    }

    fn python_dir(&mut self, dir: &Path) -> Result<(), BuildError> {
        let read_error = |source| BuildError::Read {
            path: dir.into(),
            source,
        };
        for entry in fs::read_dir(dir).map_err(read_error)? {
            let entry = entry.map_err(read_error)?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(read_error)?);
            let left_out = PYTHON_LEFT_OUT
                .iter()
                .any(|name| entry.file_name() == *name);
            let wanted = path
                .extension()
                .is_some_and(|ext| ext == "py" || ext == "so");
            if kind.is_dir() && !left_out {
                self.python_dir(&path)?;
            } else if kind.is_file() && wanted {
                // A module whose libraries are not installed cannot be imported on the host either.
                match self.file(merged(&path), path) {
                    Ok(()) | Err(BuildError::Library { .. }) => {}
                    Err(other) => return Err(other),
                }
            }
        }
        Ok(())
    }

    fn stage(self, staging: &mut Staging) -> Result<(), BuildError> {
        for (place, source) in self.files {
            let read_error = |e| BuildError::Read {
                path: source.clone(),
                source: e,
            };
            let mut file = File::open(&source).map_err(read_error)?;
            let executable = file.metadata().map_err(read_error)?.permissions().mode() & 0o111 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            staging.file(&image_path(&place)?, mode, &mut file)?;
        }
        for (place, target) in self.links {
            staging.symlink(&image_path(&place)?, target.as_os_str().as_bytes())?;
        }
        Ok(())
    }
}

/// Whether the file belongs to the system and not to somebody's own installation.
fn is_systems_own(real: &Path) -> bool {
    let own = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];
    own.iter().any(|dir| real.starts_with(dir)) && !real.starts_with("/usr/local")
}

/// The place of a host path in an image, where `/bin`, `/sbin` and `/lib*` are links into `/usr`.
fn merged(path: &Path) -> PathBuf {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let top = relative
        .components()
        .next()
        .map(|c| c.as_os_str().to_string_lossy().into_owned());
    match top.as_deref() {
        Some("bin" | "sbin" | "lib" | "lib64") => Path::new("usr").join(relative),
        _ => relative.to_path_buf(),
    }
}

fn image_path(place: &Path) -> Result<ImagePath, StageError> {
    Ok(ImagePath::new(place.as_os_str().as_bytes())?)
}
