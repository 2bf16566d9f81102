//! The directory of running machines: a lock and a control socket each.
//!
//! The lock is a POSIX record lock on `NAME.lock`: the kernel drops it with its process however that ends, and tells
//! anyone who asks which process holds it. A socket whose lock is free is what a killed process left behind.

use crate::exit::{Code, Failure, OrExit as _};
use anyhow::Context as _;
use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    process::{Flock, FlockType, fcntl_getlk},
};
use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Variable that overrides the directory.
const VARIABLE: &str = "ROMULUS_RUNTIME_DIR";
/// How often a lock file may vanish under us before we give up.
const LOCK_TRIES: u32 = 100;

/// Where running machines have their locks and sockets.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeDir(PathBuf);

impl RuntimeDir {
    /// The directory of this user: `$ROMULUS_RUNTIME_DIR`, else `/run/romulus` for root, else
    /// `$XDG_RUNTIME_DIR/romulus`.
    pub(crate) fn of_user() -> Result<Self, Failure> {
        let given = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        if let Some(directory) = given(VARIABLE) {
            return Ok(Self(directory));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self(PathBuf::from("/run/romulus")));
        }
        let directory = given("XDG_RUNTIME_DIR").with_context(|| {
            format!("there is no runtime directory: XDG_RUNTIME_DIR is not set; log in through PAM, or set {VARIABLE}")
        });
        Ok(Self(directory.or_exit(Code::CannotCreate)?.join("romulus")))
    }

    /// The directory at `path`.
    #[cfg(test)]
    pub(crate) fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Path of a machine's control socket.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }

    fn lock_file(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.lock"))
    }

    /// Takes the machine's lock, so that this process alone runs it on this host.
    pub(crate) fn lock(&self, name: &str) -> Result<Lock, Failure> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.0)
            .with_context(|| format!("cannot make the runtime directory {}; set {VARIABLE} to one that you may write", self.0.display()))
            .or_exit(Code::CannotCreate)?;
        let path = self.lock_file(name);
        for _ in 0..LOCK_TRIES {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .with_context(|| format!("cannot open the lock {}", path.display()))
                .or_exit(Code::CannotCreate)?;
            match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The last owner removes its lock file: the one that we locked may be no longer the one of that name.
                Ok(()) if same_file(&file, &path) => {
                    return Ok(Lock {
                        _file: file,
                        path,
                        socket: self.socket(name),
                    });
                }
                Ok(()) => {}
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    let Some(holder) = holder(&file).ok().flatten() else {
                        continue;
                    };
                    return Err(anyhow::anyhow!(
                        "machine {name} runs already ({holder}); stop it with `romulus stop {name}`"
                    ))
                    .or_exit(Code::AlreadyRunning);
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot lock {}", path.display()))
                        .or_exit(Code::CannotCreate);
                }
            }
        }
        Err(anyhow::anyhow!(
            "the lock {} changes hands all the time; try again",
            path.display()
        ))
        .or_exit(Code::AlreadyRunning)
    }

    /// Who holds the machine's lock, if anyone.
    pub(crate) fn holder(&self, name: &str) -> io::Result<Option<Holder>> {
        match OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.lock_file(name))
        {
            Ok(file) => Ok(holder(&file)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Names of all machines that run or have left a socket behind, sorted.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry?.file_name();
            names.extend(
                file.to_str()
                    .and_then(|file| file.strip_suffix(".sock"))
                    .map(str::to_owned),
            );
        }
        names.sort();
        Ok(names)
    }
}

/// The process that holds a machine's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Its pid, unless it lives in a pid namespace that we cannot see.
    pub(crate) pid: Option<i32>,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}"),
            None => f.write_str("in another pid namespace"),
        }
    }
}

/// A machine's lock. Dropping it removes the machine's socket and lock file; then the kernel frees the lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
    path: PathBuf,
    socket: PathBuf,
}

impl Lock {
    /// Path of the control socket, which only the holder of the lock may replace.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        for path in [&self.socket, &self.path] {
            if let Err(error) = fs::remove_file(path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// Asks the kernel who holds a lock on the file. Our own lock is not told.
fn holder(file: &File) -> io::Result<Option<Holder>> {
    let lock = fcntl_getlk(file, &Flock::from(FlockType::WriteLock))?;
    Ok(lock.map(|lock| Holder {
        pid: lock.pid.map(rustix::process::Pid::as_raw_pid),
    }))
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_free_and_its_files_gone_after_its_owner() {
        let files = tempfile::tempdir().unwrap();
        let directory = RuntimeDir::at(&files.path().join("deep/er"));
        let lock = directory
            .lock("a")
            .unwrap_or_else(|failure| panic!("{:#}", failure.error));
        assert!(directory.lock_file("a").exists());
        drop(lock);
        assert!(!directory.lock_file("a").exists());
        assert_eq!(directory.holder("a").unwrap(), None);
    }
}
