//! A distribution's kernel, taken from its package without installing it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::archive::{Archive, unpack};
use crate::cache;
use crate::progress::Progress;
use crate::run;
use crate::suite::Suite;

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says it, for example `6.1.0-53-cloud-amd64`.
    pub release: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// Holds `lib/modules/RELEASE`, with the indexes of depmod.
    pub root: PathBuf,
}

impl Kernel {
    /// The newest signed cloud kernel of `suite`: downloaded and unpacked at the first call, from the cache afterwards.
    ///
    /// # Errors
    /// Fails if the archive cannot be reached and nothing is cached, or a tool (dpkg-deb, depmod) fails.
    pub fn fetch(suite: Suite, progress: &Progress) -> Result<Self> {
        let archive = Archive::open(suite, progress)?;
        // The meta package depends on the newest kernel.
        let closure = archive.resolve(&["linux-image-cloud-amd64"])?;
        let is_kernel = |name: &str| {
            name.strip_prefix("linux-image-").is_some_and(|rest| {
                rest.starts_with(|c: char| c.is_ascii_digit()) && rest.ends_with("-cloud-amd64")
            })
        };
        let Some(package) = closure.iter().find(|p| is_kernel(&p.name)) else {
            bail!("linux-image-cloud-amd64 of {suite} depends on no kernel");
        };
        let release = package.name["linux-image-".len()..].to_owned();
        let name = format!(
            "{release}-{}",
            cache::Digest::new("kernel 1").add(&package.hash).short()
        );
        let root = cache::entry(&cache::cache_dir(), "kernel", &name, |root| {
            let step = progress.step(format!("fetching the kernel {release} of {suite}"));
            let package = archive.download(std::slice::from_ref(package))?.remove(0);
            step.set(format!("unpacking the kernel {release}"));
            unpack(&package, root, &["./usr/share/*"])?;
            run::quiet(
                Command::new("depmod").arg("-b").arg(root).arg(&release),
                "depmod (package kmod)",
            )?;
            step.done(format!("kernel {release} of {suite}"));
            Ok(())
        })?;
        Self::in_root(&root, release)
    }

    fn in_root(root: &Path, release: String) -> Result<Self> {
        let vmlinuz = root.join("boot").join(format!("vmlinuz-{release}"));
        if !vmlinuz.is_file() {
            bail!(
                "{} is missing; remove {} to fetch it again",
                vmlinuz.display(),
                root.display()
            );
        }
        let root = root
            .canonicalize()
            .with_context(|| format!("cannot find {}", root.display()))?;
        Ok(Self {
            release,
            vmlinuz,
            root,
        })
    }

    /// Tells this package from any other.
    pub(crate) fn identity(&self) -> String {
        self.root
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// `lib/modules/RELEASE`.
    pub(crate) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}
