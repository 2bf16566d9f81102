//! The disk writes of one epoch.

use crate::bytes::size;
use std::collections::BTreeMap;
use std::ops::Range;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// So many bytes of zeroes.
    Zero(u64),
}

impl Content<'_> {
    /// How many bytes of the disk are written.
    pub fn length(&self) -> u64 {
        match self {
            Self::Data(bytes) => bytes.len() as u64,
            Self::Zero(length) => *length,
        }
    }
}

/// A write to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskWrite<'a> {
    /// The disk's number in the machine, from 0.
    pub disk: u16,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// What is written.
    pub content: Content<'a>,
}

/// The epoch's disk writes have reached their limit: end the epoch, then write again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the disk writes of one epoch exceed {0} bytes")]
pub struct DiskFull(pub usize);

/// What an extent takes beside its bytes, about.
const EXTENT_COST: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Extent {
    length: u64,
    /// Where its bytes are; none for zeroes.
    at: Option<usize>,
}

impl Extent {
    /// What is left when `by` bytes are cut off in front.
    fn after(self, by: u64) -> Self {
        Self {
            length: self.length - by,
            at: self.at.map(|at| at + size(by)),
        }
    }
}

/// The disk writes of one epoch, as the disks' contents at its end need them: where writes overlap, the last one counts.
///
/// An epoch is applied whole or not at all, so the order of writes within it and of flushes among them does not
/// matter. It is bounded: at the limit writes are refused, and the epoch has to end.
#[derive(Debug)]
pub struct DiskEpoch {
    /// By disk and offset; they do not overlap.
    extents: BTreeMap<(u16, u64), Extent>,
    bytes: Vec<u8>,
    limit: usize,
    flush: bool,
}

impl Default for DiskEpoch {
    /// With a limit of 64 MiB.
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl DiskEpoch {
    /// An empty one that takes at most about `limit` bytes of memory.
    pub fn new(limit: usize) -> Self {
        Self {
            extents: BTreeMap::new(),
            bytes: Vec::new(),
            limit,
            flush: false,
        }
    }

    /// Forgets all writes and keeps the memory.
    pub fn clear(&mut self) {
        self.extents.clear();
        self.bytes.clear();
        self.flush = false;
    }

    /// Whether nothing was written or flushed.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && !self.flush
    }

    /// Bytes of memory that it takes: what the limit is about.
    pub fn bytes(&self) -> usize {
        self.bytes.len() + self.extents.len() * EXTENT_COST
    }

    /// Whether the guest flushed a disk.
    pub fn has_flush(&self) -> bool {
        self.flush
    }

    /// Notes that the guest flushed a disk.
    pub fn flush(&mut self) {
        self.flush = true;
    }

    /// Notes a write.
    ///
    /// # Errors
    /// The limit is reached; nothing was noted.
    pub fn write(&mut self, disk: u16, offset: u64, bytes: &[u8]) -> Result<(), DiskFull> {
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(at) = self.covering(disk, offset, bytes.len() as u64) {
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            return Ok(());
        }
        self.room(bytes.len() + EXTENT_COST)?;
        self.carve(disk, offset, bytes.len() as u64);
        self.insert(disk, offset, bytes);
        Ok(())
    }

    /// Notes that a range was zeroed.
    ///
    /// # Errors
    /// The limit is reached; nothing was noted.
    pub fn zero(&mut self, disk: u16, offset: u64, length: u64) -> Result<(), DiskFull> {
        if length == 0 {
            return Ok(());
        }
        self.room(EXTENT_COST)?;
        self.carve(disk, offset, length);
        self.extents
            .insert((disk, offset), Extent { length, at: None });
        Ok(())
    }

    /// Adds what was read from the disk, for a resynchronisation: only where this epoch has no write, which is newer.
    ///
    /// No write to that range may be done and noted elsewhere between the reading and this call.
    ///
    /// # Errors
    /// The limit is reached; nothing was noted.
    pub fn fill(&mut self, disk: u16, offset: u64, bytes: &[u8]) -> Result<(), DiskFull> {
        let end = offset + bytes.len() as u64;
        let mut gaps: Vec<Range<u64>> = Vec::new();
        let mut at = offset;
        for (start, stop) in self.overlapping(disk, offset, end) {
            if start > at {
                gaps.push(at..start);
            }
            at = stop.min(end);
        }
        if at < end {
            gaps.push(at..end);
        }
        let length: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
        self.room(size(length) + gaps.len() * EXTENT_COST)?;
        for gap in gaps {
            let part = size(gap.start - offset)..size(gap.end - offset);
            self.insert(disk, gap.start, &bytes[part]);
        }
        Ok(())
    }

    /// The writes by disk and offset, without overlaps.
    pub fn writes(&self) -> impl Iterator<Item = DiskWrite<'_>> {
        self.extents
            .iter()
            .map(|((disk, offset), extent)| DiskWrite {
                disk: *disk,
                offset: *offset,
                content: match extent.at {
                    Some(at) => Content::Data(&self.bytes[at..at + size(extent.length)]),
                    None => Content::Zero(extent.length),
                },
            })
    }

    fn room(&self, more: usize) -> Result<(), DiskFull> {
        if more > self.limit.saturating_sub(self.bytes()) {
            return Err(DiskFull(self.limit));
        }
        Ok(())
    }

    /// Where the bytes are of a range that lies within one extent.
    fn covering(&self, disk: u16, offset: u64, length: u64) -> Option<usize> {
        let ((_, start), extent) = self.extents.range((disk, 0)..=(disk, offset)).next_back()?;
        let into = offset - start;
        let within = into < extent.length && length <= extent.length - into;
        extent.at.filter(|_| within).map(|at| at + size(into))
    }

    /// Begin and end of the extents that overlap a range, rising.
    fn overlapping(&self, disk: u16, offset: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self
            .extents
            .range((disk, 0)..=(disk, offset))
            .next_back()
            .map_or(offset, |((_, start), _)| *start);
        self.extents
            .range((disk, first)..(disk, end))
            .map(|((_, start), extent)| (*start, start + extent.length))
            .filter(|(_, stop)| *stop > offset)
            .collect()
    }

    /// Takes a range out of all extents.
    fn carve(&mut self, disk: u16, offset: u64, length: u64) {
        let end = offset + length;
        for (start, stop) in self.overlapping(disk, offset, end) {
            let Some(extent) = self.extents.remove(&(disk, start)) else {
                continue;
            };
            if start < offset {
                let head = Extent {
                    length: offset - start,
                    at: extent.at,
                };
                self.extents.insert((disk, start), head);
            }
            if stop > end {
                self.extents.insert((disk, end), extent.after(end - start));
            }
        }
    }

    /// Adds bytes where no extent is; to the one before, if they follow it here and on the disk.
    fn insert(&mut self, disk: u16, offset: u64, bytes: &[u8]) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let length = bytes.len() as u64;
        if let Some(((_, start), before)) = self
            .extents
            .range_mut((disk, 0)..(disk, offset))
            .next_back()
            && start + before.length == offset
            && before.at.is_some_and(|b| b + size(before.length) == at)
        {
            before.length += length;
            return;
        }
        let extent = Extent {
            length,
            at: Some(at),
        };
        self.extents.insert((disk, offset), extent);
    }
}
