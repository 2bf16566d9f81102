//! The store over files in memory, for whoever wants to know what it makes of any files.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use romulus_protocol::record::Record;

use super::disk::Disk;
use super::store::{Store, StoreError};

/// A directory's files by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// A directory in memory, of which everything is durable.
#[derive(Debug)]
struct Memory(Files);

fn absent() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for Memory {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.keys().cloned().collect())
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let bytes = self.0.get(name).ok_or_else(absent)?;
        let length = usize::try_from(most).map_or(usize::MAX, |most| most.saturating_add(1));
        Ok(bytes[..bytes.len().min(length)].to_vec())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.insert(name.into(), bytes.into());
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.0.get(name).map(|_| ()).ok_or_else(absent)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let bytes = self.0.remove(from).ok_or_else(absent)?;
        self.0.insert(to.into(), bytes);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.remove(name).map(|_| ()).ok_or_else(absent)
    }

    fn sync_names(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a store of these files and stores `more`. Gives the records that it began with, and what lies there in the end.
///
/// # Errors
/// The store refuses the files.
///
/// # Panics
/// It cannot store a record, although nothing fails.
pub fn open(files: Files, more: &[Record]) -> Result<(Vec<Record>, Files), StoreError> {
    let (mut store, records) = Store::load(Memory(files), Path::new("store"))?;
    for record in more {
        store.store(record).expect("memory does not fail");
    }
    Ok((records, store.into_disk().0))
}
