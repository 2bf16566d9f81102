//! Which libraries a program needs, read from the ELF files themselves: nothing of the sysroot is run.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use goblin::elf::Elf;

/// Where the dynamic loader looks on Debian's amd64 after the paths that the files themselves name (ld.so(8)).
const LIBRARY_DIRECTORIES: [&str; 6] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/local/lib",
    "/lib64",
    "/usr/lib64",
    "/usr/lib",
];

/// One file that is needed, and the symbolic links by which it is found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The real path inside the sysroot, with a leading slash.
    pub(crate) path: String,
    /// Link and target, in the order in which they were met.
    pub(crate) links: Vec<(String, String)>,
}

/// The file at `path` in `sysroot`, with absolute links taken as the sysroot's own. `None` if there is none.
pub(crate) fn resolve(sysroot: &Path, path: &str) -> Option<Found> {
    let mut todo: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
    let mut real: Vec<String> = Vec::new();
    let mut links = Vec::new();
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                real.pop();
                continue;
            }
            _ => real.push(part),
        }
        let here = real.join("/");
        let kind = fs::symlink_metadata(sysroot.join(&here)).ok()?.file_type();
        if kind.is_symlink() {
            let target = fs::read_link(sysroot.join(&here))
                .ok()?
                .into_os_string()
                .into_string()
                .ok()?;
            if links.len() == 40 {
                return None;
            }
            real.pop();
            if target.starts_with('/') {
                real.clear();
            }
            todo.extend(target.rsplit('/').map(str::to_owned));
            links.push((format!("/{here}"), target));
        }
    }
    Some(Found {
        path: format!("/{}", real.join("/")),
        links,
    })
}

/// The program or library at `path` in `sysroot` and everything that it needs in order to be loaded.
pub(crate) fn closure(sysroot: &Path, path: &str) -> Result<Vec<Found>> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut inherited = Vec::new();
    let mut todo = VecDeque::from([Needed {
        name: path.to_owned(),
        by: None,
        run_path: Vec::new(),
    }]);
    while let Some(needed) = todo.pop_front() {
        let file = needed.find(sysroot, &inherited)?;
        if found.contains_key(&needed.name) {
            continue;
        }
        let on_disk = on_disk(sysroot, &file.path);
        let bytes =
            fs::read(&on_disk).with_context(|| format!("cannot read {}", on_disk.display()))?;
        let dynamic =
            Dynamic::read(&bytes, &file.path).with_context(|| on_disk.display().to_string())?;
        if needed.by.is_none() {
            // DT_RPATH of a program also holds for the libraries of its libraries.
            inherited.clone_from(&dynamic.run_path);
        }
        for name in dynamic.interpreter.into_iter().chain(dynamic.libraries) {
            if !found.contains_key(&name) {
                todo.push_back(Needed {
                    name,
                    by: Some(file.path.clone()),
                    run_path: dynamic.run_path.clone(),
                });
            }
        }
        found.insert(needed.name, file);
    }
    Ok(found.into_values().collect())
}

/// The path outside of `path` inside.
pub(crate) fn on_disk(sysroot: &Path, path: &str) -> PathBuf {
    sysroot.join(path.trim_start_matches('/'))
}

struct Needed {
    name: String,
    by: Option<String>,
    run_path: Vec<String>,
}

impl Needed {
    fn find(&self, sysroot: &Path, inherited: &[String]) -> Result<Found> {
        let candidates: Vec<String> = if self.name.contains('/') {
            vec![self.name.clone()]
        } else {
            let paths = self
                .run_path
                .iter()
                .chain(inherited)
                .map(String::as_str)
                .chain(LIBRARY_DIRECTORIES);
            paths
                .map(|directory| format!("{directory}/{}", self.name))
                .collect()
        };
        if let Some(found) = candidates.iter().find_map(|path| resolve(sysroot, path)) {
            return Ok(found);
        }
        match &self.by {
            Some(by) => bail!(
                "{by} needs {}, which is not in {}",
                self.name,
                sysroot.display()
            ),
            None => bail!("there is no {} in {}", self.name, sysroot.display()),
        }
    }
}

/// What the dynamic section of one file asks for.
#[derive(Debug, PartialEq, Eq)]
struct Dynamic {
    interpreter: Option<String>,
    libraries: Vec<String>,
    run_path: Vec<String>,
}

impl Dynamic {
    fn read(bytes: &[u8], path: &str) -> Result<Self> {
        let elf = Elf::parse(bytes).context("not an ELF program or library")?;
        let origin = path
            .rsplit_once('/')
            .map_or("/", |(directory, _)| directory);
        let run_path = elf
            .runpaths
            .iter()
            .chain(&elf.rpaths)
            .flat_map(|p| p.split(':'))
            .filter(|p| !p.is_empty());
        Ok(Self {
            interpreter: elf.interpreter.map(str::to_owned),
            libraries: elf.libraries.iter().map(|&l| l.to_owned()).collect(),
            run_path: run_path
                .map(|p| p.replace("${ORIGIN}", origin).replace("$ORIGIN", origin))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_sysroot() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/lib")).unwrap();
        fs::write(root.path().join("usr/lib/libx.so.1.2"), "x").unwrap();
        symlink("usr/lib", root.path().join("lib")).unwrap();
        symlink("/lib/libx.so.1.2", root.path().join("usr/lib/libx.so.1")).unwrap();
        let found = resolve(root.path(), "/lib/libx.so.1").unwrap();
        assert_eq!(found.path, "/usr/lib/libx.so.1.2");
        let links: Vec<_> = found
            .links
            .iter()
            .map(|(l, t)| (l.as_str(), t.as_str()))
            .collect();
        assert_eq!(
            links,
            [
                ("/lib", "usr/lib"),
                ("/usr/lib/libx.so.1", "/lib/libx.so.1.2"),
                ("/lib", "usr/lib")
            ]
        );
        assert_eq!(resolve(root.path(), "/lib/liby.so"), None);
    }

    #[test]
    fn the_closure_of_this_test_holds_its_libraries_and_its_loader() {
        let this = std::env::current_exe().unwrap();
        let found = closure(Path::new("/"), this.to_str().unwrap()).unwrap();
        // What the loader of this computer really mapped is the judge.
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mapped = maps
            .lines()
            .filter_map(|l| l.split_ascii_whitespace().nth(5))
            .filter(|p| p.contains(".so"));
        for path in mapped {
            assert!(
                found.iter().any(|f| f.path == path),
                "{path} is missing in {found:?}"
            );
        }
        assert!(
            found.iter().any(|f| f.path.contains("ld-linux")),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_missing_is_named_with_who_needs_it() {
        let root = tempfile::tempdir().unwrap();
        fs::copy("/bin/true", root.path().join("true")).unwrap();
        let error = closure(root.path(), "/true").unwrap_err().to_string();
        assert!(error.starts_with("/true needs "), "{error}");
        let error = closure(root.path(), "/false").unwrap_err().to_string();
        assert!(error.starts_with("there is no /false in "), "{error}");
        fs::write(root.path().join("script"), "#!/bin/sh\n").unwrap();
        let error = format!("{:#}", closure(root.path(), "/script").unwrap_err());
        assert!(error.contains("not an ELF program"), "{error}");
    }
}
