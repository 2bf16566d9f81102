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

    /// Adds everything in `sysroot` that is not there yet.
    pub(crate) fn all_of(&mut self, sysroot: &Path) -> Result<()> {
        let mut todo = vec![String::new()];
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
