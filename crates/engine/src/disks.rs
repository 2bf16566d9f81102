//! The machine's writable disks, on both sides.
//!
//! **Primary.** Every write that the guest's disks do is noted in the epoch that runs ([`WriteLog`]), and goes to the
//! backup in its checkpoint. At the beginning of a session the backup tells digests of its blocks, and what differs is read
//! and noted, too ([`Resync`]).
//!
//! **Backup.** The writes of a checkpoint go into a redo journal before it is committed, and into the images after it
//! ([`Replicas`]).

mod log;
mod replicas;
mod resync;

pub(crate) use log::WriteLog;
pub(crate) use replicas::Replicas;
pub(crate) use resync::{Resync, tell_digests};

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// A disk of the machine that the guest may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WritableDisk {
    /// Which of the machine's disks, counted from 0.
    pub disk: u16,
    /// Its image.
    pub path: PathBuf,
}

/// Why a disk cannot be replicated.
#[derive(Debug, thiserror::Error)]
#[error("disk {path}: {source}")]
pub struct DiskError {
    /// Its image, or the journal.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

fn open(path: &Path) -> Result<File, DiskError> {
    let opened = File::options().read(true).write(true).open(path);
    opened.map_err(|source| DiskError {
        path: path.into(),
        source,
    })
}
