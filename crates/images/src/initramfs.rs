//! An initial RAM file system, put together piece by piece.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cpio;
use crate::elf;
use crate::kernel::Kernel;
use crate::modules::{self, ModuleIndex};
use crate::tree::Tree;

/// Builds a cpio archive that the kernel unpacks as its first root. The same pieces give the same bytes: entries are
/// sorted and carry no time and no owner but root.
///
/// The root is laid out as Debian's, with `/bin`, `/sbin`, `/lib` and `/lib64` as links into `/usr`; paths may be given
/// either way, and parents are made as needed.
#[derive(Clone, Debug)]
pub struct Initramfs {
    tree: Tree,
    modules: Vec<String>,
}

impl Initramfs {
    /// An empty root.
    pub fn new() -> Self {
        Self {
            tree: Tree::merged_usr(),
            modules: Vec::new(),
        }
    }

    /// Adds a directory, or sets the mode of one that is there.
    pub fn directory(&mut self, path: &str, mode: u32) -> &mut Self {
        self.tree.directory(path, mode);
        self
    }

    /// Adds a file, or replaces one that is there.
    pub fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> &mut Self {
        self.tree.file(path, mode, content.into());
        self
    }

    /// Adds a file of this computer, with its own mode if `mode` is `None`.
    ///
    /// # Errors
    /// Fails if the file cannot be read.
    pub fn copy(&mut self, from: &Path, to: &str, mode: Option<u32>) -> Result<&mut Self> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        let mode = match mode {
            Some(mode) => mode,
            None => fs::metadata(from)
                .with_context(|| format!("cannot read {}", from.display()))?
                .permissions()
                .mode(),
        };
        self.tree.file(to, mode, content);
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.tree.symlink(path, target);
        self
    }

    /// Adds the program or library `path` of `sysroot` (`/` is this computer) at the same path, with every library it
    /// needs and its loader.
    ///
    /// # Errors
    /// Fails if a file is missing, or is no ELF file; scripts are for [`Self::copy`].
    pub fn program(&mut self, sysroot: &Path, path: &str) -> Result<&mut Self> {
        for found in elf::closure(sysroot, path)? {
            for (link, target) in &found.links {
                if self.tree.get(link).is_none() {
                    self.tree.symlink(link, target);
                }
            }
            if self.tree.get(&found.path).is_none() {
                self.copy(&elf::on_disk(sysroot, &found.path), &found.path, None)?;
            }
        }
        Ok(self)
    }

    /// Adds kernel modules with all that they need as `/lib/mods/NAME.ko`, decompressed. `/lib/mods/order` lists the
    /// file names in the order in which `insmod` is to load them, over all calls.
    ///
    /// # Errors
    /// Fails if the kernel has no such module. One that is built in is no error and adds nothing.
    pub fn modules(&mut self, kernel: &Kernel, names: &[&str]) -> Result<&mut Self> {
        let directory = kernel.modules();
        let index = ModuleIndex::read(&directory)?;
        for path in index
            .load_order(names)
            .with_context(|| kernel.release.clone())?
        {
            let file = format!("{}.ko", modules::module_name(path));
            if !self.modules.contains(&file) {
                self.tree.file(
                    &format!("/lib/mods/{file}"),
                    0o644,
                    modules::content(&directory.join(path))?,
                );
                self.modules.push(file);
            }
        }
        let order: String = self.modules.iter().flat_map(|m| [m, "\n"]).collect();
        self.tree.file("/lib/mods/order", 0o644, order.into_bytes());
        Ok(self)
    }

    /// Writes the archive: one uncompressed segment, padded to 512 bytes, so that others may follow it in one initrd
    /// (an uncompressed one has to come first).
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, to: &Path) -> Result<()> {
        let file = File::create(to).with_context(|| format!("cannot create {}", to.display()))?;
        cpio::write(&self.tree, &mut BufWriter::with_capacity(1 << 20, file))
            .with_context(|| format!("cannot write {}", to.display()))
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Adds everything below the directory `at` of `sysroot` that is not there yet; all of it if `at` is empty.
    pub(crate) fn all_of(&mut self, sysroot: &Path, at: &str) -> Result<()> {
        let mut todo = vec![at.to_owned()];
        while let Some(directory) = todo.pop() {
            let here = elf::on_disk(sysroot, &directory);
            for entry in
                fs::read_dir(&here).with_context(|| format!("cannot read {}", here.display()))?
            {
                let entry = entry.with_context(|| format!("cannot read {}", here.display()))?;
                let Ok(name) = entry.file_name().into_string() else {
                    continue;
                };
                let (path, kind) = (format!("{directory}/{name}"), entry.file_type()?);
                if kind.is_dir() {
                    todo.push(path);
                } else if self.tree.get(&path).is_none() {
                    if kind.is_symlink() {
                        self.tree
                            .symlink(&path, &fs::read_link(entry.path())?.to_string_lossy());
                    } else if kind.is_file() {
                        self.copy(&entry.path(), &path, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Default for Initramfs {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;
    use std::process::Command;

    fn small() -> Initramfs {
        let mut initramfs = Initramfs::new();
        initramfs
            .file("/init", 0o755, "#!/bin/sh\n")
            .directory("/tmp", 0o1777)
            .symlink("/linuxrc", "init");
        initramfs
    }

    fn written(initramfs: &Initramfs) -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        initramfs.write(&directory.path().join("x.cpio")).unwrap();
        fs::read(directory.path().join("x.cpio")).unwrap()
    }

    #[test]
    fn cpio_reads_what_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("x.cpio");
        small().write(&archive).unwrap();
        let list = |more: &str| {
            let stdin = File::open(&archive).unwrap();
            let output = run::output(
                Command::new("cpio").args(["--quiet", more]).stdin(stdin),
                "cpio",
            )
            .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let names = list("-t");
        let expected = "bin init lib lib64 linuxrc sbin tmp usr usr/bin usr/lib usr/lib64 usr/sbin";
        assert_eq!(
            names.split_ascii_whitespace().collect::<Vec<_>>().join(" "),
            expected
        );
        let long = list("-tvn");
        let line = |name: &str| long.lines().find(|l| l.ends_with(name)).unwrap().to_owned();
        assert!(
            line(" init").starts_with("-rwxr-xr-x   1 0        0              10 "),
            "{long}"
        );
        assert!(line(" tmp").starts_with("drwxrwxrwt"), "{long}");
        assert!(line("linuxrc -> init").starts_with("lrwxrwxrwx"), "{long}");
    }

    #[test]
    fn segments_fill_blocks_so_that_another_can_follow() {
        assert_eq!(written(&small()).len() % 512, 0);
    }

    #[test]
    fn the_same_pieces_in_another_order_give_the_same_bytes() {
        let mut other = Initramfs::new();
        other
            .symlink("linuxrc", "init")
            .directory("tmp", 0o1777)
            .file("init", 0o755, "#!/bin/sh\n");
        assert_eq!(written(&small()), written(&other));
        other.file("init", 0o700, "#!/bin/sh\n");
        assert_ne!(written(&small()), written(&other));
    }

    #[test]
    fn modules_come_in_order_once_and_decompressed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("lib/modules/1-x");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("modules.dep"), "a-b.ko.xz: c.ko\nc.ko:\n").unwrap();
        fs::write(directory.join("c.ko"), "plain").unwrap();
        fs::write(directory.join("a-b.ko"), "compressed").unwrap();
        run::quiet(Command::new("xz").arg(directory.join("a-b.ko")), "xz").unwrap();
        let kernel = Kernel {
            release: "1-x".into(),
            vmlinuz: "none".into(),
            root: root.path().into(),
        };
        let mut initramfs = Initramfs::new();
        initramfs
            .modules(&kernel, &["c"])
            .unwrap()
            .modules(&kernel, &["a_b", "c"])
            .unwrap();
        let content = |path: &str| match initramfs.tree().get(path) {
            Some(crate::tree::Node::File { content, .. }) => {
                String::from_utf8(content.clone()).unwrap()
            }
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(content("lib/mods/order"), "c.ko\na_b.ko\n");
        assert_eq!(content("lib/mods/a_b.ko"), "compressed");
        let error = format!("{:#}", initramfs.modules(&kernel, &["d"]).unwrap_err());
        assert_eq!(error, "1-x: this kernel has no module \"d\"");
    }

    #[test]
    fn a_program_brings_all_it_needs_to_run() {
        let mut initramfs = Initramfs::new();
        initramfs.program(Path::new("/"), "/bin/true").unwrap();
        let directory = tempfile::tempdir().unwrap();
        for (path, node) in initramfs.tree().nodes() {
            let at = directory.path().join(path);
            match node {
                crate::tree::Node::Directory { .. } => fs::create_dir_all(&at).unwrap(),
                crate::tree::Node::File { mode, content } => {
                    fs::write(&at, content).unwrap();
                    fs::set_permissions(&at, fs::Permissions::from_mode(*mode)).unwrap();
                }
                crate::tree::Node::Symlink { target } => {
                    std::os::unix::fs::symlink(target, &at).unwrap();
                }
            }
        }
        // The loader of the copy, told to look nowhere else, is the judge.
        let libraries = directory.path().join("usr/lib/x86_64-linux-gnu");
        let mut loader = Command::new(
            directory
                .path()
                .join("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
        );
        loader
            .arg("--inhibit-cache")
            .arg("--library-path")
            .arg(libraries)
            .arg(directory.path().join("bin/true"));
        run::quiet(&mut loader, "the copy of true").unwrap();
    }
}
