//! The redo journal through which an epoch's disk writes reach the backup's images: all of them, or none.
//!
//! The file is a header and records, one for each epoch with disk writes. Numbers are little-endian.
//!
//! ```text
//!   file     magic "RMJF", version, 0
//!   record   magic "RMJR", version, 0 | epoch | length of body | checksum of body | checksum of this header
//!   body     items: kind, 0, disk, 0 | offset | length | bytes, if it is data
//! ```
//!
//! A record counts when both of its checksums (CRC-32C) are right. The first that does not count, and all behind it, were
//! being written when the host failed; they were never synced and so never promised to anybody.

mod format;

use super::{Content, DiskWrite, Image};
use format::{FILE_HEADER, Item, RECORD_HEADER, Record};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Writes are gathered, and read, in pieces of this length.
const PIECE: usize = 1 << 20;

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The journal's file cannot be read or written.
    #[error("the disk journal: {0}")]
    File(#[source] io::Error),
    /// A disk's image cannot be written.
    #[error("disk {disk}: {source}")]
    Image {
        /// The disk's number.
        disk: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is no journal.
    #[error("the disk journal's file is something else: it does not begin like one")]
    Foreign,
    /// The journal was written by another version.
    #[error("the disk journal is of version {0}, which this program does not know")]
    Version(u16),
    /// A record is whole, but about disks that this machine does not have: its file has changed meanwhile.
    #[error(
        "the disk journal writes to disk {disk} up to byte {end}, which the machine no longer has"
    )]
    Disk {
        /// The disk's number.
        disk: u16,
        /// Where the write ends, in bytes.
        end: u64,
    },
    /// A record that was written, or is whole, cannot be understood.
    #[error("the disk journal is damaged at byte {0}")]
    Damaged(u64),
}

/// What [`Journal::open`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// How many epochs were applied to the images.
    pub epochs: u64,
    /// The last of them.
    pub last: Option<u64>,
    /// Bytes of a torn tail that were discarded.
    pub discarded: u64,
}

/// A journal of disk writes by epochs.
#[derive(Debug)]
pub struct Journal {
    file: File,
    /// Where the next record goes.
    end: u64,
    /// Records up to here are in the images.
    applied: u64,
    /// Records up to here are durable.
    synced: u64,
    /// The newest record: its epoch, and where it begins.
    newest: Option<(u64, u64)>,
    /// Something of a record that failed may lie behind the end.
    untidy: bool,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens the journal in `file` (read and write; a new one is empty), and brings `images` up to it: every whole epoch, in
    /// order; a torn tail is discarded. Then the images are durable and the journal is empty. (That a new file's name is
    /// durable is the caller's to see to: sync its folder.)
    ///
    /// # Errors
    /// A file or image that cannot be used, or does not fit. The journal is left as it was.
    pub fn open<I: Image>(file: File, images: &[I]) -> Result<(Self, Replayed), JournalError> {
        let length = file.metadata().map_err(JournalError::File)?.len();
        let mut journal = Self {
            file,
            end: FILE_HEADER as u64,
            applied: FILE_HEADER as u64,
            synced: FILE_HEADER as u64,
            newest: None,
            untidy: false,
            buffer: Vec::with_capacity(PIECE),
        };
        if length < FILE_HEADER as u64 {
            // Made, but never used: it is durable before the first record is written.
            journal.create().map_err(JournalError::File)?;
            return Ok((journal, Replayed::default()));
        }
        let mut header = [0; FILE_HEADER];
        journal
            .file
            .read_exact_at(&mut header, 0)
            .map_err(JournalError::File)?;
        if length == FILE_HEADER as u64 && header == [0; FILE_HEADER] {
            // Its length became durable, its header not.
            journal.create().map_err(JournalError::File)?;
            return Ok((journal, Replayed::default()));
        }
        format::check_file(header)?;
        let mut replayed = Replayed::default();
        while let Some(record) = journal.record(journal.end, length)? {
            replayed.epochs += 1;
            replayed.last = Some(record.epoch);
            journal.end = record.body.end;
        }
        replayed.discarded = length - journal.end;
        journal.untidy = replayed.discarded > 0;
        journal.settle(images)?;
        Ok((journal, replayed))
    }

    /// Appends the writes of an epoch. They are not durable before [`sync`](Self::sync), nor in the images before [`apply`](Self::apply).
    ///
    /// # Errors
    /// The journal cannot be written, for example because its file system is full; it is as it was before.
    pub fn append<'a>(
        &mut self,
        epoch: u64,
        writes: impl Iterator<Item = DiskWrite<'a>>,
    ) -> Result<(), JournalError> {
        self.tidy()?;
        self.untidy = true;
        let end = self.write(epoch, writes).map_err(JournalError::File)?;
        self.untidy = false;
        self.newest = Some((epoch, self.end));
        self.end = end;
        Ok(())
    }

    /// Takes back what was appended of `epoch`, which is not committed after all. Nothing happens if nothing was, or if it
    /// is in the images already.
    ///
    /// # Errors
    /// The file's: a crash could bring it back then.
    pub fn withdraw(&mut self, epoch: u64) -> Result<(), JournalError> {
        let Some((_, start)) = self
            .newest
            .take_if(|(newest, start)| *newest == epoch && self.applied <= *start)
        else {
            return Ok(());
        };
        self.end = start;
        self.synced = self.synced.min(start);
        self.untidy = true;
        self.tidy()?;
        // The length counts as well.
        self.file.sync_all().map_err(JournalError::File)
    }

    /// Makes durable what was appended.
    ///
    /// # Errors
    /// The file's. What is durable is unknown then: the replica must not be committed, nor the journal used again.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        if self.synced < self.end {
            self.file.sync_data().map_err(JournalError::File)?;
            self.synced = self.end;
        }
        Ok(())
    }

    /// Brings the images up to all that was appended. They are not made durable: until [`settle`](Self::settle) the
    /// journal is what brings them up to date again after the host fails.
    ///
    /// It does not sync the journal. So at a takeover nothing waits for the disk: if the host fails then, epochs
    /// that were never synced may be in the images in part, as with any disk's writes that the guest has not flushed.
    /// **Once the guest runs on these images, no flush of it may be answered before `settle`**: a replay would undo what it made durable.
    /// To keep whole epochs in the images even then, [`sync`](Self::sync) before.
    ///
    /// # Errors
    /// The journal cannot be read or an image not be written. It can be tried again.
    pub fn apply<I: Image>(&mut self, images: &[I]) -> Result<(), JournalError> {
        while self.applied < self.end {
            let record = self
                .record(self.applied, self.end)?
                .ok_or(JournalError::Damaged(self.applied))?;
            // All of it is checked before any of it is done.
            self.items(&record, |_, item| check_item(item, images))?;
            self.items(&record, |file, item| apply_item(file, item, images))?;
            self.applied = record.body.end;
        }
        Ok(())
    }

    /// Makes everything durable in the images and empties the journal: syncs it, applies it, syncs the images.
    ///
    /// # Errors
    /// Those of [`sync`](Self::sync) and [`apply`](Self::apply); an image that cannot be made durable. The journal still has everything then.
    pub fn settle<I: Image>(&mut self, images: &[I]) -> Result<(), JournalError> {
        self.sync()?;
        self.apply(images)?;
        for (disk, image) in (0..).zip(images) {
            image
                .sync()
                .map_err(|source| JournalError::Image { disk, source })?;
        }
        self.reset()
    }

    /// Drops all records, applied or not: for a disk that is going to be copied anew.
    ///
    /// # Errors
    /// The file's.
    pub fn reset(&mut self) -> Result<(), JournalError> {
        let header = FILE_HEADER as u64;
        if self.end == header && !self.untidy {
            return Ok(());
        }
        self.end = header;
        self.applied = header;
        self.newest = None;
        self.untidy = true;
        self.tidy()?;
        // The length counts as well.
        self.file.sync_all().map_err(JournalError::File)?;
        self.synced = header;
        Ok(())
    }

    /// The file's length in bytes: to see when it is time to settle.
    pub fn length(&self) -> u64 {
        self.end
    }

    fn create(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.write_all_at(&format::file_header(), 0)?;
        self.file.sync_all()
    }

    /// Cuts off what a failure left behind the end.
    fn tidy(&mut self) -> Result<(), JournalError> {
        if self.untidy {
            self.file.set_len(self.end).map_err(JournalError::File)?;
            self.untidy = false;
        }
        Ok(())
    }

    /// Writes a record and says where it ends.
    fn write<'a>(
        &mut self,
        epoch: u64,
        writes: impl Iterator<Item = DiskWrite<'a>>,
    ) -> io::Result<u64> {
        let start = self.end + RECORD_HEADER as u64;
        let mut at = start;
        let mut checksum = 0;
        let buffer = &mut self.buffer;
        let file = &self.file;
        let mut put = |buffer: &mut Vec<u8>| {
            checksum = crc32c::crc32c_append(checksum, buffer);
            file.write_all_at(buffer, at)?;
            at += buffer.len() as u64;
            buffer.clear();
            Ok::<_, io::Error>(())
        };
        buffer.clear();
        for write in writes {
            buffer.extend_from_slice(&format::item(&write));
            if let Content::Data(bytes) = write.content {
                buffer.extend_from_slice(bytes);
            }
            if buffer.len() >= PIECE {
                put(buffer)?;
            }
        }
        put(buffer)?;
        buffer.shrink_to(4 * PIECE);
        let header = format::record_header(epoch, at - start, checksum);
        self.file.write_all_at(&header, self.end)?;
        Ok(at)
    }

    /// The record at `at`, if it counts.
    fn record(&mut self, at: u64, end: u64) -> Result<Option<Record>, JournalError> {
        let mut header = [0; RECORD_HEADER];
        if end - at < RECORD_HEADER as u64 {
            return Ok(None);
        }
        self.file
            .read_exact_at(&mut header, at)
            .map_err(JournalError::File)?;
        let Some((record, checksum)) = format::read_record(header, at, end) else {
            return Ok(None);
        };
        let mut sum = 0;
        let mut left = record.body.clone();
        while !left.is_empty() {
            let length = crate::bytes::size((left.end - left.start).min(PIECE as u64));
            self.buffer.resize(length, 0);
            self.file
                .read_exact_at(&mut self.buffer, left.start)
                .map_err(JournalError::File)?;
            sum = crc32c::crc32c_append(sum, &self.buffer);
            left.start += length as u64;
        }
        Ok((sum == checksum).then_some(record))
    }

    /// Calls `each` for every item of a record.
    fn items(
        &self,
        record: &Record,
        mut each: impl FnMut(&File, &Item) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let mut left = record.body.clone();
        while !left.is_empty() {
            let mut header = [0; format::ITEM_HEADER];
            if left.end - left.start < header.len() as u64 {
                return Err(JournalError::Damaged(left.start));
            }
            self.file
                .read_exact_at(&mut header, left.start)
                .map_err(JournalError::File)?;
            let item = format::read_item(header, &left).ok_or(JournalError::Damaged(left.start))?;
            each(&self.file, &item)?;
            left.start = item.end;
        }
        Ok(())
    }
}

/// Whether there is room for an item in the images.
fn check_item<I: Image>(item: &Item, images: &[I]) -> Result<(), JournalError> {
    let end = item.offset.saturating_add(item.length);
    let missing = JournalError::Disk {
        disk: item.disk,
        end,
    };
    let Some(image) = images.get(usize::from(item.disk)) else {
        return Err(missing);
    };
    let length = image.length().map_err(|source| JournalError::Image {
        disk: item.disk,
        source,
    })?;
    if end > length { Err(missing) } else { Ok(()) }
}

/// Does an item that was checked.
fn apply_item<I: Image>(file: &File, item: &Item, images: &[I]) -> Result<(), JournalError> {
    let disk = item.disk;
    let image = &images[usize::from(disk)];
    let refused = |source| JournalError::Image { disk, source };
    let Some(data) = item.data else {
        return image.zero(item.offset, item.length).map_err(refused);
    };
    let mut buffer = vec![0; crate::bytes::size(item.length.min(PIECE as u64))];
    let mut done = 0;
    while done < item.length {
        let length = crate::bytes::size((item.length - done).min(PIECE as u64));
        let piece = &mut buffer[..length];
        file.read_exact_at(piece, data + done)
            .map_err(JournalError::File)?;
        image.write_at(item.offset + done, piece).map_err(refused)?;
        done += length as u64;
    }
    Ok(())
}
