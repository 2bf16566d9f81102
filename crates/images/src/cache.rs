//! The cache of everything that is built: entries named by the digest of their inputs, whole or absent.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where kernels, images and package lists are kept: `$ROMULUS_CACHE`, else `$XDG_CACHE_HOME/romulus`, else
/// `~/.cache/romulus`. It can be removed at any time while nothing is being built; the next build fetches all again.
pub fn cache_dir() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    set("ROMULUS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("romulus")))
        .or_else(|| set("HOME").map(|d| d.join(".cache/romulus")))
        .unwrap_or_else(|| env::temp_dir().join("romulus-cache"))
}

/// A lock between processes, held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Waits until no other process holds the lock `name`.
    pub(crate) fn take(cache: &Path, name: &str) -> Result<Self> {
        let directory = cache.join("locks");
        create_dir(&directory)?;
        let path = directory.join(name);
        let file = File::create(&path)
            .with_context(|| format!("cannot create the lock {}", path.display()))?;
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _file: file })
    }
}

/// The directory `cache/kind/name`, made by `build` if it is not there yet.
///
/// `build` fills an empty directory beside the final one, which is then renamed: an interrupted build leaves nothing
/// that looks like an entry. Processes that want the same entry at once wait for the one that builds it.
pub(crate) fn entry(
    cache: &Path,
    kind: &str,
    name: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let entry = cache.join(kind).join(name);
    if entry.is_dir() {
        return Ok(entry);
    }
    let _lock = Lock::take(cache, &format!("{kind}-{name}"))?;
    if entry.is_dir() {
        return Ok(entry);
    }
    let parent = cache.join(kind);
    create_dir(&parent)?;
    let unfinished = parent.join(format!(".unfinished-{name}"));
    // The lock is ours: what lies here is left over from a build that was interrupted.
    remove_tree(&unfinished)?;
    create_dir(&unfinished)?;
    let outcome = build(&unfinished).and_then(|()| {
        fs::rename(&unfinished, &entry)
            .with_context(|| format!("cannot put {} in its place", entry.display()))
    });
    if outcome.is_err() {
        // The error of the build says more than one of this clean-up.
        let _ = remove_tree(&unfinished);
    }
    outcome.map(|()| entry)
}

/// An empty directory in the cache that goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(cache: &Path, purpose: &str) -> Result<Self> {
        let path = cache
            .join("scratch")
            .join(format!("{purpose}-{}", std::process::id()));
        remove_tree(&path)?;
        create_dir(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is only space in the cache.
        let _ = remove_tree(&self.0);
    }
}

/// A digest of named inputs, for the name of a cache entry. Each part is counted with its length, so that no two
/// lists of parts run into each other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Digest(blake3::Hasher);

impl Digest {
    pub(crate) fn new(purpose: &str) -> Self {
        let mut digest = Self::default();
        digest.add(purpose);
        digest
    }

    pub(crate) fn add(&mut self, part: impl AsRef<[u8]>) -> &mut Self {
        let part = part.as_ref();
        self.0
            .update(&(part.len() as u64).to_le_bytes())
            .update(part);
        self
    }

    /// 16 hexadecimal digits: enough to tell a few thousand entries apart.
    pub(crate) fn short(&self) -> String {
        self.0.finalize().to_hex()[..16].to_owned()
    }

    /// The first 16 bytes.
    pub(crate) fn bytes16(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        bytes
    }
}

pub(crate) fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .with_context(|| format!("cannot create the directory {}", path.display()))
}

/// Removes a tree that may be absent.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_failed_build_leaves_no_entry_and_the_next_one_succeeds() {
        let cache = tempfile::tempdir().unwrap();
        let failed = entry(cache.path(), "k", "n", |dir| {
            fs::write(dir.join("half"), "x")?;
            anyhow::bail!("out of space")
        });
        assert!(failed.unwrap_err().to_string().contains("out of space"));
        assert!(!cache.path().join("k/n").exists());
        let made = entry(cache.path(), "k", "n", |dir| {
            Ok(fs::write(dir.join("whole"), "x")?)
        })
        .unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
    }

    #[test]
    fn what_an_interrupted_build_left_is_swept_away() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir_all(cache.path().join("k/.unfinished-n")).unwrap();
        fs::write(cache.path().join("k/.unfinished-n/half"), "x").unwrap();
        let made = entry(cache.path(), "k", "n", |dir| {
            Ok(fs::write(dir.join("whole"), "x")?)
        })
        .unwrap();
        assert_eq!(fs::read_dir(made).unwrap().count(), 1);
    }

    #[test]
    fn an_entry_is_built_once_however_many_want_it() {
        let cache = tempfile::tempdir().unwrap();
        let builds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    entry(cache.path(), "k", "n", |_| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(builds.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn digests_do_not_run_parts_together() {
        let mut a = Digest::new("t");
        let mut b = Digest::new("t");
        assert_ne!(a.add("ab").add("c").short(), b.add("a").add("bc").short());
    }
}
