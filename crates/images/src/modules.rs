//! Which kernel modules must be loaded for one, and in which order (modules.dep(5), modprobe.d(5) on soft
//! dependencies).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// What depmod wrote about one kernel's modules.
#[derive(Debug, Default)]
pub(crate) struct ModuleIndex {
    /// By name with underscores: path, and the names of what it needs.
    modules: BTreeMap<String, (String, Vec<String>)>,
    /// `softdep NAME pre: …`
    wanted_before: BTreeMap<String, Vec<String>>,
    built_in: BTreeSet<String>,
}

impl ModuleIndex {
    /// Reads `modules.dep`, `modules.builtin` and `modules.softdep` of `directory` (`…/lib/modules/RELEASE`).
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let read = |name: &str| match fs::read_to_string(directory.join(name)) {
            Err(e) if e.kind() == ErrorKind::NotFound && name != "modules.dep" => Ok(String::new()),
            other => {
                other.with_context(|| format!("cannot read {name} in {}", directory.display()))
            }
        };
        Ok(Self::parse(
            &read("modules.dep")?,
            &read("modules.builtin")?,
            &read("modules.softdep")?,
        ))
    }

    fn parse(dependencies: &str, built_in: &str, soft: &str) -> Self {
        let mut index = Self {
            built_in: built_in.lines().map(module_name).collect(),
            ..Self::default()
        };
        for line in dependencies.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_ascii_whitespace().map(module_name).collect();
                index
                    .modules
                    .insert(module_name(path), (path.to_owned(), needs));
            }
        }
        for line in soft.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                let before = words
                    .skip_while(|w| *w != "pre:")
                    .skip(1)
                    .take_while(|w| *w != "post:");
                index
                    .wanted_before
                    .insert(normalised(name), before.map(normalised).collect());
            }
        }
        index
    }

    /// The paths (relative to the directory) of `names` and all that they need, each after what it needs. Modules that
    /// are built into the kernel are left out.
    pub(crate) fn load_order(&self, names: &[&str]) -> Result<Vec<&str>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            let name = normalised(name);
            if !self.modules.contains_key(&name) && !self.built_in.contains(&name) {
                bail!("this kernel has no module \"{name}\"");
            }
            self.visit(&name, &mut seen, &mut order);
        }
        Ok(order)
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<&'a str>) {
        let Some((path, needs)) = self.modules.get(name) else {
            return;
        };
        if !seen.insert(name.to_owned()) {
            return;
        }
        // modules.dep names the direct and the indirect needs, the deepest last.
        let soft = self.wanted_before.get(name).into_iter().flatten();
        for need in soft.chain(needs.iter().rev()) {
            self.visit(need, seen, order);
        }
        order.push(path);
    }
}

/// `kernel/net/foo-bar.ko.xz` → `foo_bar`
pub(crate) fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    normalised(file.split_once(".ko").map_or(file, |(name, _)| name))
}

fn normalised(name: &str) -> String {
    name.replace('-', "_")
}

/// The content of a module, decompressed: busybox's insmod takes nothing else, and a kernel boots faster without it.
pub(crate) fn content(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let what = format!("decompressing {}", path.display());
    Ok(run::output(
        Command::new(tool).arg("-dc").arg(PathBuf::from(path)),
        &what,
    )?
    .stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/net/core/failover.ko:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/net/virtio_net.ko: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/lib/crc32c-intel.ko:
";

    fn index() -> ModuleIndex {
        ModuleIndex::parse(
            DEPENDENCIES,
            "kernel/drivers/acpi/button.ko\n",
            "# x\nsoftdep ext4 pre: crc32c-intel post: x\n",
        )
    }

    #[test]
    fn each_module_comes_after_all_that_it_needs_and_once() {
        let index = index();
        let order = index
            .load_order(&["virtio_net", "ext4", "virtio-net"])
            .unwrap();
        let order: Vec<_> = order.iter().map(|p| module_name(p)).collect();
        assert_eq!(
            order,
            [
                "virtio_ring",
                "virtio",
                "failover",
                "net_failover",
                "virtio_net",
                "crc32c_intel",
                "jbd2",
                "ext4"
            ]
        );
    }

    #[test]
    fn built_in_modules_need_no_file_and_unknown_ones_are_named() {
        assert!(index().load_order(&["button"]).unwrap().is_empty());
        let error = index()
            .load_order(&["virtio_net", "nonesuch"])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "this kernel has no module \"nonesuch\"");
    }

    #[test]
    fn a_circle_of_needs_ends() {
        let index = ModuleIndex::parse(
            "a.ko: b.ko\nb.ko: a.ko\n",
            "",
            "softdep a pre: b\nsoftdep b pre: a\n",
        );
        assert_eq!(index.load_order(&["a"]).unwrap().len(), 2);
    }
}
