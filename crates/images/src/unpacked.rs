//! A package's files without its installation.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::archive::{Archive, unpack};
use crate::cache;
use crate::guest::sysroot;
use crate::progress::Progress;
use crate::suite::Suite;

/// The folder that holds the files of `suite`'s newest `name` and of all that it depends on (not what it recommends): as
/// [`unpacked`].
///
/// # Errors
/// As [`unpacked`].
pub fn unpacked_with_dependencies(
    name: &str,
    suite: Suite,
    progress: &Progress,
) -> Result<PathBuf> {
    let archive = Archive::open(suite, progress)?;
    let packages = archive.resolve(&[name])?;
    sysroot(&archive, &packages, &format!("{name}-{suite}"), progress)
}

/// The folder that holds the files of `suite`'s newest `name`, without what it depends on: downloaded at the first call,
/// from the cache afterwards. Nothing is installed and none of its scripts runs, so that a package with a service starts none.
///
/// # Errors
/// Fails if the archive cannot be reached and nothing is cached, or dpkg-deb fails.
pub fn unpacked(name: &str, suite: Suite, progress: &Progress) -> Result<PathBuf> {
    let archive = Archive::open(suite, progress)?;
    let closure = archive.resolve(&[name])?;
    let package = closure
        .iter()
        .find(|package| package.name == name)
        .with_context(|| format!("{suite} has no package {name}"))?;
    let entry = format!(
        "{name}-{}",
        cache::Digest::new("unpacked 1").add(&package.hash).short()
    );
    cache::entry(&cache::cache_dir(), "unpacked", &entry, |root| {
        let step = progress.step(format!("fetching {name} of {suite}"));
        let file = archive.download(std::slice::from_ref(package))?.remove(0);
        unpack(&file, root, &["./usr/share/*"])?;
        step.done(format!("{name} of {suite}"));
        Ok(())
    })
}
