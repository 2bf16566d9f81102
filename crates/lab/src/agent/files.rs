//! Files into and out of a host.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::protocol::{Frame, MAX_CONTENT};

/// Takes `size` bytes in `Data` frames and makes them the file `path`.
///
/// The file appears at once and whole, under its own inode: a program that runs from the old one goes on undisturbed.
pub(super) fn put(path: &Path, mode: u32, size: u64, mut from: impl Read) -> Result<()> {
    let unfinished = Unfinished::beside(path)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&unfinished.0)
        .with_context(|| format!("cannot make {}", unfinished.0.display()))?;
    let mut left = size;
    while left > 0 {
        let Some(Frame::Data(bytes)) = Frame::read(&mut from)? else {
            bail!("the file ended {left} bytes early");
        };
        left = left
            .checked_sub(bytes.len() as u64)
            .context("the file is longer than promised")?;
        ensure!(!bytes.is_empty(), "an empty piece of a file");
        file.write_all(&bytes)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    // The mode again: at creation the umask took its part.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    drop(file);
    fs::rename(&unfinished.0, path)
        .with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(())
}

/// Sends the file `path`, then its permissions.
pub(super) fn get(path: &Path, mut to: impl Write) -> Result<()> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let metadata = file.metadata()?;
    ensure!(!metadata.is_dir(), "{} is a directory", path.display());
    let mut bytes = vec![0; MAX_CONTENT];
    loop {
        let length = file
            .read(&mut bytes)
            .with_context(|| format!("cannot read {}", path.display()))?;
        if length == 0 {
            break;
        }
        Frame::Data(bytes[..length].to_vec()).write(&mut to)?;
    }
    Frame::Done(metadata.permissions().mode() & 0o7777).write(&mut to)?;
    Ok(())
}

/// A file on its way, removed unless it got its final name.
struct Unfinished(PathBuf);

impl Unfinished {
    fn beside(path: &Path) -> Result<Self> {
        ensure!(path.is_absolute(), "{} is no absolute path", path.display());
        let name = path
            .file_name()
            .with_context(|| format!("{} names no file", path.display()))?;
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let mut own = std::ffi::OsString::from(".");
        own.push(name);
        // Two pushes of one name at the same time differ by their threads.
        own.push(format!(".{:?}", rustix::thread::gettid().as_raw_nonzero()));
        Ok(Self(directory.join(own)))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove.
        let _ = fs::remove_file(&self.0);
    }
}
