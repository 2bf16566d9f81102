//! A directory and the few things a store does with it, apart so that tests can make each fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// One directory without folders in it. Nothing is durable before it is synced.
pub(super) trait Disk {
    /// The names of all files.
    fn names(&self) -> io::Result<Vec<String>>;
    /// A file's content; no more of it than `most` bytes and one.
    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>>;
    /// Makes a file, or empties it, and fills it.
    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's content durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name, taking it from whatever had it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes the names durable.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// A real directory, locked for as long as this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    /// Of what is being written.
    draft: Option<(String, File)>,
    _lock: File,
}

impl Directory {
    /// The directory at `path`, made if it is not there. Nothing if another process has it.
    pub(super) fn open(path: &Path, lock: &str) -> io::Result<Option<Directory>> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join(lock))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Ok(Some(Directory {
            path: path.to_owned(),
            handle: File::open(path)?,
            draft: None,
            _lock: file,
        }))
    }
}

impl Disk for Directory {
    fn names(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| {
            let name = entry?.file_name();
            // A name that is not text is none of ours; it stays recognisable.
            Ok(name.to_string_lossy().into_owned())
        });
        names.collect()
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?
            .take(most + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.draft = None;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(self.path.join(name))?;
        file.write_all(bytes)?;
        self.draft = Some((name.to_owned(), file));
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        // The handle that wrote learns of errors that a new one might not be told.
        match self.draft.take() {
            Some((draft, file)) if draft == name => file.sync_all(),
            _ => File::open(self.path.join(name))?.sync_all(),
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }
}
