//! The arbiter's store: a directory with a file for each machine.
//!
//! A record is written to a draft, synced, and renamed over the one before it; then the directory
//! is synced. Whatever happens on the way, the file holds the record before or the record after,
//! whole. When a step fails, the file that the next attempt replaces is the same one, so that
//! nothing that a failed attempt left behind outlives a later success.

use std::io;
use std::path::{Path, PathBuf};

use romulus_protocol::id::MachineId;
use romulus_protocol::record::Record;
use romulus_protocol::wire::{WireError, decode_record, encode_record};
use thiserror::Error;

use super::disk::{Directory, Disk};

const LOCK: &str = "lock";
const RECORD: &str = ".record";
const DRAFT: &str = ".draft";
/// Far longer than any record, in bytes.
const RECORD_MAX: u64 = 1024;

/// Why a store cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another server has it.
    #[error("another arbiter uses the store {0}; there must never be two")]
    Locked(PathBuf),
    /// A record is damaged.
    #[error(
        "{path} is damaged: {why}. The arbiter does not start without it, since it may hold who runs a machine; restore it from a copy, or remove it and run `romulus create` and `romulus promote`"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: WireError,
    },
    /// A record lies under another machine's name.
    #[error("{path} holds the record of machine {machine}: it was copied or renamed")]
    Misplaced {
        /// The file.
        path: PathBuf,
        /// The machine in it.
        machine: MachineId,
    },
    /// There is something else in the directory.
    #[error("{0} does not belong in an arbiter's store: is it the right directory?")]
    Foreign(PathBuf),
    /// The directory or a file cannot be read or synced.
    #[error("cannot read {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        error: io::Error,
    },
}

/// The store.
#[derive(Debug)]
pub(super) struct Store<D> {
    disk: D,
    buffer: Vec<u8>,
}

impl Store<Directory> {
    /// Opens the store in a directory, and reads all records.
    pub(super) fn open(path: &Path) -> Result<(Store<Directory>, Vec<Record>), StoreError> {
        match Directory::open(path, LOCK) {
            Ok(Some(disk)) => Store::load(disk, path),
            Ok(None) => Err(StoreError::Locked(path.to_owned())),
            Err(error) => Err(StoreError::File {
                path: path.to_owned(),
                error,
            }),
        }
    }
}

impl<D: Disk> Store<D> {
    /// Reads all records; `path` is for messages.
    pub(super) fn load(mut disk: D, path: &Path) -> Result<(Store<D>, Vec<Record>), StoreError> {
        let failed = |name: &str| {
            let path = path.join(name);
            move |error| StoreError::File { path, error }
        };
        let mut records = Vec::new();
        let mut names = disk.names().map_err(failed(""))?;
        names.sort();
        for name in &names {
            if name == LOCK {
                continue;
            }
            if name.strip_suffix(DRAFT).is_some_and(is_machine) {
                // Its record was never acknowledged.
                disk.remove(name).map_err(failed(name))?;
                continue;
            }
            if !name.strip_suffix(RECORD).is_some_and(is_machine) {
                return Err(StoreError::Foreign(path.join(name)));
            }
            let bytes = disk.read(name, RECORD_MAX).map_err(failed(name))?;
            let record = decode_record(&bytes).map_err(|why| StoreError::Damaged {
                path: path.join(name),
                why,
            })?;
            if file(record.machine) != *name {
                return Err(StoreError::Misplaced {
                    path: path.join(name),
                    machine: record.machine,
                });
            }
            records.push(record);
            // It will be told, so it must not go: a copy that was put back may not be synced, nor
            // may the name of a change that failed.
            disk.sync(name).map_err(failed(name))?;
        }
        disk.sync_names().map_err(failed(""))?;
        let buffer = Vec::new();
        Ok((Store { disk, buffer }, records))
    }

    /// Makes a record durable.
    pub(super) fn store(&mut self, record: &Record) -> io::Result<()> {
        self.buffer.clear();
        encode_record(record, &mut self.buffer);
        let draft = format!("{}{DRAFT}", record.machine);
        let written = self
            .disk
            .write(&draft, &self.buffer)
            .and_then(|()| self.disk.sync(&draft))
            .and_then(|()| self.disk.rename(&draft, &file(record.machine)));
        if let Err(error) = written {
            // On a full disk it may be in the way of the next attempt.
            let _ = self.disk.remove(&draft);
            return Err(error);
        }
        self.disk.sync_names()
    }

    /// A store that is under way.
    #[cfg(test)]
    pub(super) fn over(disk: D) -> Store<D> {
        let buffer = Vec::new();
        Store { disk, buffer }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn into_disk(self) -> D {
        self.disk
    }
}

fn file(machine: MachineId) -> String {
    format!("{machine}{RECORD}")
}

/// Whether this is a machine's uuid as [`MachineId`] writes it.
fn is_machine(text: &str) -> bool {
    let digits = text.replace('-', "");
    u128::from_str_radix(&digits, 16).is_ok_and(|id| MachineId(id).to_string() == text)
}
