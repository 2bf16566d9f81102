//! The backup's images and their journal.

use super::{DiskError, WritableDisk, open};
use romulus_checkpoint::{
    Replica,
    disk::{Image, Journal, JournalError},
};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The journal's length above which its content is made durable in the images and dropped.
const SETTLE: u64 = 64 << 20;

/// All disks of the machine in order, so that a write's number finds its image; those that the
/// guest may not write have none.
struct Images(Vec<Option<File>>);

/// A disk without an image here takes nothing.
fn read_only() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "a write to a disk that is read-only here",
    )
}

struct Slot<'a>(&'a Option<File>);

impl Slot<'_> {
    fn file(&self) -> io::Result<&File> {
        self.0.as_ref().ok_or_else(read_only)
    }
}

impl Image for Slot<'_> {
    fn length(&self) -> io::Result<u64> {
        self.0.as_ref().map_or(Ok(0), Image::length)
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        Image::read_at(self.file()?, offset, into)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        Image::write_at(self.file()?, offset, bytes)
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        Image::zero(self.file()?, offset, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), Image::sync)
    }
}

impl Images {
    fn slots(&self) -> Vec<Slot<'_>> {
        self.0.iter().map(Slot).collect()
    }
}

/// See the module's text. A machine without writable disks has none of it.
#[derive(Default)]
pub(crate) struct Replicas {
    inner: Option<(Images, Journal)>,
}

impl Replicas {
    /// Opens images and journal (in `state`, the state directory), and brings the images up to the
    /// journal: to be done before a machine uses them.
    ///
    /// # Errors
    /// A file that cannot be opened; a journal that is damaged or does not fit.
    pub(crate) fn open(disks: &[WritableDisk], state: &Path) -> Result<Replicas, DiskError> {
        let Some(last) = disks.iter().map(|disk| disk.disk).max() else {
            return Ok(Replicas::default());
        };
        let mut images = Images((0..=last).map(|_| None).collect());
        for disk in disks {
            images.0[usize::from(disk.disk)] = Some(open(&disk.path)?);
        }
        let path = state.join("journal");
        let failed = |source| DiskError {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(state).map_err(failed)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        File::open(state)
            .and_then(|folder| folder.sync_all())
            .map_err(failed)?;
        let (journal, replayed) = Journal::open(file, &images.slots())
            .map_err(|error| failed(io::Error::other(error.to_string())))?;
        if replayed.epochs > 0 || replayed.discarded > 0 {
            tracing::info!(
                epochs = replayed.epochs,
                discarded = replayed.discarded,
                "the disks are brought up to their journal"
            );
        }
        Ok(Replicas {
            inner: Some((images, journal)),
        })
    }

    /// The disks' lengths in bytes, for the check of what arrives.
    ///
    /// # Errors
    /// An image cannot be asked.
    pub(crate) fn lengths(&self) -> io::Result<Vec<u64>> {
        let Some((images, _)) = &self.inner else {
            return Ok(Vec::new());
        };
        images.slots().iter().map(Image::length).collect()
    }

    /// Takes the verified epoch's writes into the journal; durable if the guest flushed.
    ///
    /// # Errors
    /// The journal's, a full disk for example. The epoch must not be committed then.
    pub(crate) fn keep(&mut self, epoch: u64, replica: &Replica) -> Result<(), JournalError> {
        let Some((_, journal)) = &mut self.inner else {
            return Ok(());
        };
        let mut writes = replica.disk_writes().peekable();
        if writes.peek().is_some() {
            journal.append(epoch, writes)?;
        }
        if replica.has_flush() {
            journal.sync()?;
        }
        Ok(())
    }

    /// The verified epoch is not committed after all: its writes must never reach the images.
    ///
    /// # Errors
    /// The journal's.
    pub(crate) fn withdraw(&mut self, epoch: u64) -> Result<(), JournalError> {
        match &mut self.inner {
            Some((_, journal)) => journal.withdraw(epoch),
            None => Ok(()),
        }
    }

    /// Brings the images up to the journal. When it has grown long, it is emptied.
    ///
    /// # Errors
    /// An image that cannot be written.
    pub(crate) fn apply(&mut self) -> Result<(), JournalError> {
        match &mut self.inner {
            Some((images, journal)) if journal.length() > SETTLE => journal.settle(&images.slots()),
            Some((images, journal)) => journal.apply(&images.slots()),
            None => Ok(()),
        }
    }

    /// Makes the images durable and empties the journal.
    ///
    /// # Errors
    /// A disk's.
    pub(crate) fn settle(&mut self) -> Result<(), JournalError> {
        match &mut self.inner {
            Some((images, journal)) => journal.settle(&images.slots()),
            None => Ok(()),
        }
    }
}
