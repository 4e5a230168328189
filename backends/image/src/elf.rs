//! Which libraries a program needs, and where the loader would find them (ld.so(8)).

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use goblin::elf::Elf;

use crate::error::BuildError;

/// Most files that one program may pull in; a browser has about 200.
const MAX_FILES: usize = 4_096;

/// The libraries of this machine.
pub(crate) struct Loader {
    /// Searched by the loader without any configuration.
    default_dirs: Vec<PathBuf>,
    /// Searched because `/etc/ld.so.conf` says so; an image has no such file.
    configured_dirs: Vec<PathBuf>,
}

/// What the header of a program or library asks for.
struct Wants {
    machine: u16,
    interpreter: Option<PathBuf>,
    needed: Vec<String>,
    rpath: Vec<PathBuf>,
    runpath: Vec<PathBuf>,
}

impl Loader {
    pub(crate) fn of_this_machine() -> Self {
        let arch = std::env::consts::ARCH;
        let default_dirs = [
            format!("/lib/{arch}-linux-gnu"),
            format!("/usr/lib/{arch}-linux-gnu"),
            "/lib64".into(),
            "/usr/lib64".into(),
            "/lib".into(),
            "/usr/lib".into(),
        ];
        Self {
            default_dirs: default_dirs
                .iter()
                .map(PathBuf::from)
                .filter(|d| d.is_dir())
                .collect(),
            configured_dirs: configured_dirs(Path::new("/etc/ld.so.conf"), 4),
        }
    }

    /// Everything that `program` needs to run, as path in the image to file of this machine; without the program, and
    /// nothing for a file that is not ELF.
    pub(crate) fn closure(&self, program: &Path) -> Result<BTreeMap<PathBuf, PathBuf>, BuildError> {
        let mut found = BTreeMap::new();
        let mut queue = VecDeque::from([program.to_path_buf()]);
        while let Some(file) = queue.pop_front() {
            let Some(wants) = wants(&file)? else { continue };
            if let Some(interpreter) = &wants.interpreter {
                found.insert(interpreter.clone(), canonical(interpreter)?);
            }
            for library in &wants.needed {
                let (place, source) =
                    self.find(library, &wants)
                        .ok_or_else(|| BuildError::Library {
                            program: file.clone(),
                            library: library.clone(),
                        })?;
                if found.len() < MAX_FILES && found.insert(place, source.clone()).is_none() {
                    queue.push_back(source);
                }
            }
        }
        Ok(found)
    }

    /// A library that programs open by name at run time, if this machine has it.
    pub(crate) fn optional(&self, library: &str) -> Option<(PathBuf, PathBuf)> {
        self.default_dirs.iter().find_map(|dir| {
            let source = fs::canonicalize(dir.join(library)).ok()?;
            Some((fs::canonicalize(dir).ok()?.join(library), source))
        })
    }

    /// Place in the image, and file on this machine.
    fn find(&self, library: &str, wants: &Wants) -> Option<(PathBuf, PathBuf)> {
        let rpath: &[PathBuf] = if wants.runpath.is_empty() {
            &wants.rpath
        } else {
            &[]
        };
        let own = rpath.iter().chain(&wants.runpath);
        for dir in own.chain(&self.default_dirs) {
            if let Some(source) = self.candidate(dir, library, wants.machine) {
                return Some((fs::canonicalize(dir).ok()?.join(library), source));
            }
        }
        // Without a configuration the image's loader looks in the default places only.
        let place = self.default_dirs.first()?;
        self.configured_dirs.iter().find_map(|dir| {
            let source = self.candidate(dir, library, wants.machine)?;
            Some((fs::canonicalize(place).ok()?.join(library), source))
        })
    }

    fn candidate(&self, dir: &Path, library: &str, machine: u16) -> Option<PathBuf> {
        let path = fs::canonicalize(dir.join(library)).ok()?;
        let fits = wants(&path).ok()??.machine == machine;
        fits.then_some(path)
    }
}

fn wants(path: &Path) -> Result<Option<Wants>, BuildError> {
    let bytes = fs::read(path).map_err(|source| BuildError::Read {
        path: path.into(),
        source,
    })?;
    if !bytes.starts_with(b"\x7fELF") {
        return Ok(None);
    }
    let elf = Elf::parse(&bytes).map_err(|source| BuildError::Elf {
        path: path.into(),
        source,
    })?;
    let origin = path.parent().unwrap_or(Path::new("/"));
    let dirs = |lists: &[&str]| {
        let dirs = lists.iter().flat_map(|list| list.split(':'));
        dirs.filter(|dir| !dir.is_empty())
            .map(|dir| expand_origin(dir, origin))
            .collect()
    };
    Ok(Some(Wants {
        machine: elf.header.e_machine,
        interpreter: elf.interpreter.map(PathBuf::from),
        needed: elf.libraries.iter().map(ToString::to_string).collect(),
        rpath: dirs(&elf.rpaths),
        runpath: dirs(&elf.runpaths),
    }))
}

fn expand_origin(dir: &str, origin: &Path) -> PathBuf {
    let origin = origin.to_string_lossy();
    dir.replace("${ORIGIN}", &origin)
        .replace("$ORIGIN", &origin)
        .into()
}

fn canonical(path: &Path) -> Result<PathBuf, BuildError> {
    fs::canonicalize(path).map_err(|source| BuildError::Read {
        path: path.into(),
        source,
    })
}

/// Directories of an `ld.so.conf`, with the files that it includes.
fn configured_dirs(conf: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(text) = fs::read_to_string(conf) else {
        return Vec::new();
    };
    let mut dirs = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line.strip_prefix("include").map(str::trim) {
            Some(pattern) if depth > 0 => {
                for file in included(conf, pattern) {
                    dirs.extend(configured_dirs(&file, depth - 1));
                }
            }
            Some(_) => {}
            None if line.starts_with('/') => dirs.push(line.into()),
            None => {}
        }
    }
    dirs
}

/// Files of an `include` line; of globs only the `*.conf` that every distribution uses.
fn included(conf: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = conf.parent().unwrap_or(Path::new("/")).join(pattern);
    if !pattern.ends_with("*.conf") {
        return vec![pattern];
    }
    let entries = pattern.parent().and_then(|dir| fs::read_dir(dir).ok());
    let mut files: Vec<_> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "conf"))
        .collect();
    files.sort_unstable();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_of_the_running_test_holds_a_loader_and_a_c_library() {
        let me = std::env::current_exe().expect("the test has a file");
        let found = Loader::of_this_machine()
            .closure(&me)
            .expect("it runs, so all is there");
        let names: Vec<_> = found
            .keys()
            .filter_map(|p| p.file_name()?.to_str())
            .collect();
        assert!(
            names
                .iter()
                .any(|n| n.starts_with("ld-") && n.contains(".so")),
            "{names:?}"
        );
        assert!(names.iter().any(|n| n.starts_with("libc.")), "{names:?}");
        assert!(found.values().all(|source| source.is_file()));
    }

    #[test]
    fn a_file_that_is_not_elf_needs_nothing() {
        let script = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(script.path(), "#!/bin/sh\n").expect("writable");
        let found = Loader::of_this_machine()
            .closure(script.path())
            .expect("readable");
        assert!(found.is_empty());
    }

    #[test]
    fn included_configuration_is_read_in_order_and_loops_end() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write =
            |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("writable");
        write(
            "ld.so.conf",
            "/one # first\ninclude conf.d/*.conf\ninclude ld.so.conf\n",
        );
        fs::create_dir(dir.path().join("conf.d")).expect("writable");
        write("conf.d/b.conf", "/three\n");
        write("conf.d/a.conf", "/two\nrelative\n");
        write("conf.d/c.txt", "/ignored\n");
        let dirs = configured_dirs(&dir.path().join("ld.so.conf"), 1);
        assert_eq!(dirs, ["/one", "/two", "/three", "/one"].map(PathBuf::from));
    }
}
