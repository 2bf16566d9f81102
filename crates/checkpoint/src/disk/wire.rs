//! Disk writes in parts.
//!
//! A record is its kind (low 2 bits) and the disk's number as one number, then, but for a flush, offset and length; then the
//! bytes, or the length of the packed bytes and those.

use super::epoch::{Content, DiskEpoch, DiskWrite};
use crate::ReplicaError;
use crate::bytes::{NUMBER_MAX, Reader, put_number, size};
use crate::coder::{Packer, Patience};
use crate::decode::Kept;
use crate::section::{Kind, Stream};

const DATA: u64 = 0;
const PACKED: u64 = 1;
const ZERO: u64 = 2;
const FLUSH: u64 = 3;

/// Longer writes are sent in pieces of this length.
const PIECE: usize = 32 << 10;

/// Sends disk writes.
#[derive(Debug)]
pub(crate) struct Packing {
    packer: Packer,
    patience: Patience,
}

impl Packing {
    pub(crate) fn new() -> Self {
        Self {
            packer: Packer::new(PIECE),
            patience: Patience::default(),
        }
    }

    /// Appends the writes of an epoch to the stream.
    pub(crate) fn send<E>(
        &mut self,
        epoch: &DiskEpoch,
        stream: &mut Stream,
        sink: &mut impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        if epoch.has_flush() {
            stream.room(Kind::Disk, NUMBER_MAX, sink)?;
            put_number(stream.body(), FLUSH);
        }
        for write in epoch.writes() {
            match write.content {
                Content::Zero(length) => {
                    stream.room(Kind::Disk, 3 * NUMBER_MAX, sink)?;
                    head(stream, ZERO, write.disk, write.offset, length);
                }
                Content::Data(bytes) => {
                    for (piece, number) in bytes.chunks(PIECE).zip(0u64..) {
                        let offset = write.offset + number * PIECE as u64;
                        stream.room(Kind::Disk, 4 * NUMBER_MAX + PIECE, sink)?;
                        self.data(stream, write.disk, offset, piece);
                    }
                }
            }
        }
        Ok(())
    }

    fn data(&mut self, stream: &mut Stream, disk: u16, offset: u64, bytes: &[u8]) {
        let length = bytes.len() as u64;
        if self.patience.tries() {
            let packed = self.packer.pack(bytes, bytes.len() / 8 * 7);
            self.patience.paid(packed.is_some());
            if let Some(packed) = packed {
                head(stream, PACKED, disk, offset, length);
                put_number(stream.body(), packed.len() as u64);
                stream.body().extend_from_slice(packed);
                return;
            }
        }
        head(stream, DATA, disk, offset, length);
        stream.body().extend_from_slice(bytes);
    }
}

fn head(stream: &mut Stream, kind: u64, disk: u16, offset: u64, length: u64) {
    let body = stream.body();
    put_number(body, kind | u64::from(disk) << 2);
    put_number(body, offset);
    put_number(body, length);
}

#[derive(Clone, Copy, Debug)]
struct DiskStep {
    disk: u16,
    offset: u64,
    length: u64,
    /// Where its bytes are; none for zeroes.
    at: Option<usize>,
}

/// The disk writes of an epoch that comes in.
#[derive(Debug, Default)]
pub(crate) struct DiskSteps {
    steps: Vec<DiskStep>,
    pub(crate) flush: bool,
}

impl DiskSteps {
    pub(crate) fn clear(&mut self) {
        self.steps.clear();
        self.steps.shrink_to(1 << 12);
        self.flush = false;
    }

    /// Reads all records of a section about disks of these lengths.
    pub(crate) fn read(
        &mut self,
        reader: &mut Reader<'_>,
        disks: &[u64],
        kept: &mut Kept,
    ) -> Result<(), ReplicaError> {
        while !reader.rest().is_empty() {
            let head = reader.number()?;
            let disk = u16::try_from(head >> 2)
                .map_err(|_| ReplicaError::Malformed("a disk's number exceeds 16 bits"))?;
            let kind = head & 3;
            if kind == FLUSH {
                self.flush = true;
                continue;
            }
            let (offset, length) = (reader.number()?, reader.number()?);
            let end = offset.saturating_add(length);
            if disks.get(usize::from(disk)).is_none_or(|size| end > *size) {
                return Err(ReplicaError::Disk { disk, end });
            }
            let short = usize::try_from(length).unwrap_or(usize::MAX);
            let at = match kind {
                ZERO => None,
                DATA => Some(kept.push(reader.take(short)?)?),
                _ => {
                    let packed = usize::try_from(reader.number()?).unwrap_or(usize::MAX);
                    Some(kept.unpack(reader.take(packed)?, short)?)
                }
            };
            if self.steps.len() >= kept.limit / size_of::<DiskStep>() {
                return Err(ReplicaError::Memory(kept.limit));
            }
            self.steps.push(DiskStep {
                disk,
                offset,
                length,
                at,
            });
        }
        Ok(())
    }

    /// The writes, whose bytes are in `kept`.
    pub(crate) fn writes<'a>(&'a self, kept: &'a [u8]) -> impl Iterator<Item = DiskWrite<'a>> {
        self.steps.iter().map(|step| DiskWrite {
            disk: step.disk,
            offset: step.offset,
            content: match step.at {
                Some(at) => Content::Data(&kept[at..at + size(step.length)]),
                None => Content::Zero(step.length),
            },
        })
    }
}
