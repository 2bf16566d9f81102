//! The journal's bytes.

use super::JournalError;
use crate::bytes::Reader;
use crate::disk::{Content, DiskWrite};
use std::ops::Range;

const FILE_MAGIC: [u8; 4] = *b"RMJF";
const RECORD_MAGIC: [u8; 4] = *b"RMJR";
const VERSION: u16 = 1;

pub(super) const FILE_HEADER: usize = 8;
pub(super) const RECORD_HEADER: usize = 32;
pub(super) const ITEM_HEADER: usize = 24;

const DATA: u8 = 1;
const ZERO: u8 = 2;

/// A record that counts.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) epoch: u64,
    /// Where its body is in the file.
    pub(super) body: Range<u64>,
}

/// One write.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) disk: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Where its bytes are in the file; none for zeroes.
    pub(super) data: Option<u64>,
    /// Where the next item begins.
    pub(super) end: u64,
}

pub(super) fn file_header() -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..4].copy_from_slice(&FILE_MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header
}

pub(super) fn check_file(header: [u8; FILE_HEADER]) -> Result<(), JournalError> {
    if header == file_header() {
        return Ok(());
    }
    let [magic @ .., low, high, 0, 0] = header else {
        return Err(JournalError::Foreign);
    };
    if magic == FILE_MAGIC {
        Err(JournalError::Version(u16::from_le_bytes([low, high])))
    } else {
        Err(JournalError::Foreign)
    }
}

pub(super) fn record_header(epoch: u64, length: u64, checksum: u32) -> [u8; RECORD_HEADER] {
    let mut header = [0; RECORD_HEADER];
    header[..4].copy_from_slice(&RECORD_MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[8..16].copy_from_slice(&epoch.to_le_bytes());
    header[16..24].copy_from_slice(&length.to_le_bytes());
    header[24..28].copy_from_slice(&checksum.to_le_bytes());
    let own = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&own.to_le_bytes());
    header
}

/// The record whose header was read at `at`, and its body's checksum: if the header is right, and the body ends before `end`.
pub(super) fn read_record(header: [u8; RECORD_HEADER], at: u64, end: u64) -> Option<(Record, u32)> {
    let mut reader = Reader::new(&header[8..28]);
    let epoch = u64::from_le_bytes(reader.array().ok()?);
    let length = u64::from_le_bytes(reader.array().ok()?);
    let checksum = u32::from_le_bytes(reader.array().ok()?);
    if header != record_header(epoch, length, checksum) {
        return None;
    }
    let start = at + RECORD_HEADER as u64;
    let stop = start.checked_add(length).filter(|stop| *stop <= end)?;
    let record = Record {
        epoch,
        body: start..stop,
    };
    Some((record, checksum))
}

pub(super) fn item(write: &DiskWrite<'_>) -> [u8; ITEM_HEADER] {
    let mut header = [0; ITEM_HEADER];
    header[0] = match write.content {
        Content::Data(_) => DATA,
        Content::Zero(_) => ZERO,
    };
    header[2..4].copy_from_slice(&write.disk.to_le_bytes());
    header[8..16].copy_from_slice(&write.offset.to_le_bytes());
    header[16..].copy_from_slice(&write.content.length().to_le_bytes());
    header
}

/// The item whose header was read at the beginning of `body`, if it lies in there.
pub(super) fn read_item(header: [u8; ITEM_HEADER], body: &Range<u64>) -> Option<Item> {
    let mut reader = Reader::new(&header[2..]);
    let disk = u16::from_le_bytes(reader.array().ok()?);
    let _: [u8; 4] = reader.array().ok()?;
    let offset = u64::from_le_bytes(reader.array().ok()?);
    let length = u64::from_le_bytes(reader.array().ok()?);
    let after = body.start + ITEM_HEADER as u64;
    let (data, end) = match header[0] {
        DATA => (Some(after), after.checked_add(length)?),
        ZERO => (None, after),
        _ => return None,
    };
    (end <= body.end).then_some(Item {
        disk,
        offset,
        length,
        data,
        end,
    })
}
