//! The virtio disk (virtio 1.2, section 5.2), above a [`Worker`] that does its file input and output.
//!
//! A request never touches guest memory while it is being done. When it is taken from the queue, what it writes is copied
//! into a buffer of ours; when it is done, what it read is copied out, and only while the machine runs. So the machine
//! may be paused at any time, and is never kept waiting by the disk.
//!
//! **In flight at a pause.** Requests are done, and handed back, in the order in which they were taken. Those not handed
//! back yet are therefore the last ones taken, and the available ring (guest memory, and so part of every checkpoint) still
//! holds their heads: the saved queue is simply moved back by their number, and they are taken again after a restore.
//! Doing them twice does no harm: their driver has no answer yet and so must not have changed their buffers; a repeated
//! write writes the same again, a repeated read reads what the disk then holds; and no flush has promised anything
//! about them, since a flush covers only what was answered before it.

mod disk;
mod worker;

pub(crate) use disk::Disk;
pub(crate) use worker::{Log, Worker};

use self::worker::{Job, Task};
use super::{
    device::{VirtioDevice, Work},
    ring::{Buffers, Fault, Ring, Span, gather, length, scatter, slices},
};
use crate::state::{Fields, Payload, StateError, kind};
use std::{collections::VecDeque, sync::Arc};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes of a sector, the unit of the protocol.
pub(crate) const SECTOR: u64 = 512;
/// Entries of the queue.
const QUEUE_SIZE: u16 = 128;
/// Pieces of a request's data.
const SEGMENTS_MAX: u32 = 126;
/// Bytes of one piece.
const SEGMENT_MAX: u32 = 32 << 10;
/// Bytes of one request's data.
const REQUEST_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_MAX as u64;
/// Bytes of data in flight above which no request is taken: what bounds our memory, together with [`REQUEST_MAX`].
const IN_FLIGHT_MAX: u64 = 1 << 20;
/// Ranges of one discard or write-zeroes request, and sectors of one range.
const RANGES_MAX: u32 = 32;
/// See [`RANGES_MAX`].
const RANGE_SECTORS_MAX: u32 = 1 << 22;
/// Bytes of a request's header, and of a range.
const HEADER: usize = 16;
/// Bytes of the serial number.
const ID: usize = 20;

/// A request that was taken and not handed back.
#[derive(Debug)]
struct InFlight {
    head: u16,
    /// What the device may write, the status byte last. Empty for a chain that breaks the rules.
    writable: Vec<Span>,
    /// Bytes of our memory that it uses.
    bytes: u64,
}

/// The disk.
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a feature of its own"
)]
pub(crate) struct Block {
    worker: Arc<Worker>,
    sectors: u64,
    read_only: bool,
    discard: bool,
    zero: bool,
    physical_exponent: u8,
    serial: [u8; ID],
    /// Answers of an earlier era are of no interest: the device was reset meanwhile.
    era: u64,
    /// The driver never flushes, so that each write must be durable when it is answered.
    write_through: bool,
    in_flight: VecDeque<InFlight>,
    bytes: u64,
    buffers: Buffers,
}

impl Block {
    /// A disk on what `disk` opened, whose requests go to `worker`.
    pub(crate) fn new(disk: &Disk, serial: &str, worker: Arc<Worker>) -> Self {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Self {
            worker,
            sectors: disk.length / SECTOR,
            read_only: disk.read_only,
            discard: disk.discard && !disk.read_only,
            zero: disk.zero && !disk.read_only,
            physical_exponent: disk.physical_exponent,
            serial: id,
            era: 0,
            write_through: false,
            in_flight: VecDeque::new(),
            bytes: 0,
            buffers: Buffers::default(),
        }
    }

    /// Hands back what is done.
    fn answer(&mut self, ring: &mut Ring<'_>) -> Result<(), Fault> {
        while !ring.interrupted() {
            let Some(job) = self.worker.done() else { break };
            if job.era != self.era {
                continue;
            }
            let Some(request) = self.in_flight.pop_front() else {
                return Err(Fault("an answer without a request".into()));
            };
            self.bytes -= request.bytes;
            let room = length(&request.writable);
            let mut written = 0;
            if room > 0 {
                let mut parts = Vec::new();
                slices(ring.memory(), request.writable, 0, &mut parts)?;
                if job.status == VIRTIO_BLK_S_OK && job.task.reads() {
                    written = scatter(&parts, 0, &job.data);
                }
                scatter(&parts, (room - 1) as usize, &[job.status as u8]);
                written += 1;
            }
            ring.give(request.head, written as u32)?;
            self.worker.recycle(job.data);
        }
        Ok(())
    }

    /// Takes what is offered, as far as our memory allows.
    fn accept(&mut self, ring: &mut Ring<'_>) -> Result<(), Fault> {
        ring.ignore()?;
        // Each answer brings another turn, so that a full house needs no kick.
        while self.bytes < IN_FLIGHT_MAX
            && self.in_flight.len() < QUEUE_SIZE.into()
            && !ring.interrupted()
        {
            let Some(taken) = ring.take(&mut self.buffers)? else {
                if ring.listen()? {
                    continue;
                }
                break;
            };
            let job = if taken.sound {
                self.understand(ring)?
            } else {
                self.buffers.writable.clear();
                self.refuse(VIRTIO_BLK_S_IOERR)
            };
            let bytes = job.data.len() as u64;
            self.bytes += bytes;
            self.in_flight.push_back(InFlight {
                head: taken.head,
                writable: std::mem::take(&mut self.buffers.writable),
                bytes,
            });
            self.worker.todo(job);
        }
        Ok(())
    }

    fn job(&self, task: Task, data: Vec<u8>) -> Job {
        Job {
            era: self.era,
            task,
            data,
            status: VIRTIO_BLK_S_OK,
        }
    }

    fn refuse(&self, status: u32) -> Job {
        self.job(Task::Refuse(status), Vec::new())
    }

    /// Makes a job of the chain in `self.buffers`.
    fn understand(&mut self, ring: &Ring<'_>) -> Result<Job, Fault> {
        let readable = length(&self.buffers.readable);
        let writable = length(&self.buffers.writable);
        if readable < HEADER as u64 || writable < 1 {
            // Nothing to understand, or nowhere to answer.
            return Ok(self.refuse(VIRTIO_BLK_S_IOERR));
        }
        let (payload, room) = (readable - HEADER as u64, writable - 1);
        if payload > REQUEST_MAX || room > REQUEST_MAX {
            return Ok(self.refuse(VIRTIO_BLK_S_IOERR));
        }
        let mut parts = Vec::new();
        slices(
            ring.memory(),
            self.buffers.readable.iter().copied(),
            0,
            &mut parts,
        )?;
        let mut header = [0; HEADER];
        gather(&parts, &mut header);
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([t0, t1, t2, t3]);
        let sector = u64::from_le_bytes(sector);
        let fits = |bytes: u64| {
            bytes.is_multiple_of(SECTOR)
                && sector
                    .checked_add(bytes / SECTOR)
                    .is_some_and(|end| end <= self.sectors)
        };
        let payload_bytes = || -> Result<Vec<u8>, Fault> {
            let mut parts = Vec::new();
            slices(
                ring.memory(),
                self.buffers.readable.iter().copied(),
                HEADER,
                &mut parts,
            )?;
            let mut data = self.worker.buffer(payload as usize);
            gather(&parts, &mut data);
            Ok(data)
        };
        Ok(match kind {
            VIRTIO_BLK_T_IN if fits(room) && room > 0 => {
                let data = self.worker.buffer(room as usize);
                self.job(
                    Task::Read {
                        at: sector * SECTOR,
                    },
                    data,
                )
            }
            VIRTIO_BLK_T_OUT if !self.read_only && fits(payload) && payload > 0 => {
                let task = Task::Write {
                    at: sector * SECTOR,
                    durable: self.write_through,
                };
                self.job(task, payload_bytes()?)
            }
            VIRTIO_BLK_T_FLUSH => self.job(Task::Flush, Vec::new()),
            VIRTIO_BLK_T_GET_ID if room >= ID as u64 => {
                self.job(Task::Answer, self.serial.to_vec())
            }
            VIRTIO_BLK_T_DISCARD if self.discard => self.ranges(&payload_bytes()?, false),
            VIRTIO_BLK_T_WRITE_ZEROES if self.zero => self.ranges(&payload_bytes()?, true),
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_GET_ID => {
                self.refuse(VIRTIO_BLK_S_IOERR)
            }
            _ => self.refuse(VIRTIO_BLK_S_UNSUPP),
        })
    }

    /// Makes a job of the ranges of a discard or write-zeroes request (5.2.6).
    fn ranges(&self, payload: &[u8], zero: bool) -> Job {
        let (ranges, rest) = payload.as_chunks::<HEADER>();
        if ranges.is_empty() || !rest.is_empty() || ranges.len() > RANGES_MAX as usize {
            return self.refuse(VIRTIO_BLK_S_IOERR);
        }
        let mut list = Vec::with_capacity(ranges.len());
        for range in ranges {
            let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = *range;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let count = u32::from_le_bytes([c0, c1, c2, c3]);
            let flags = u32::from_le_bytes(flags);
            let known = if zero {
                VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
            } else {
                0
            };
            if flags & !known != 0 {
                return self.refuse(VIRTIO_BLK_S_UNSUPP);
            }
            let inside = sector
                .checked_add(count.into())
                .is_some_and(|end| end <= self.sectors);
            if !inside || count == 0 || count > RANGE_SECTORS_MAX {
                return self.refuse(VIRTIO_BLK_S_IOERR);
            }
            list.push(worker::Range {
                at: sector * SECTOR,
                length: u64::from(count) * SECTOR,
                unmap: !zero || flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            });
        }
        let task = if zero {
            Task::Zero(list)
        } else {
            Task::Discard(list)
        };
        self.job(task, Vec::new())
    }

    fn forget(&mut self) {
        self.era += 1;
        self.in_flight.clear();
        self.bytes = 0;
        self.worker.forget();
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        2
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        [
            (VIRTIO_BLK_F_SIZE_MAX, true),
            (VIRTIO_BLK_F_SEG_MAX, true),
            (VIRTIO_BLK_F_BLK_SIZE, true),
            (VIRTIO_BLK_F_TOPOLOGY, true),
            (VIRTIO_BLK_F_FLUSH, true),
            (VIRTIO_BLK_F_RO, self.read_only),
            (VIRTIO_BLK_F_DISCARD, self.discard),
            (VIRTIO_BLK_F_WRITE_ZEROES, self.zero),
        ]
        .into_iter()
        .filter(|(_, offered)| *offered)
        .fold(0, |all, (bit, _)| all | 1 << bit)
    }

    /// `struct virtio_blk_config` (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend_from_slice(&self.sectors.to_le_bytes());
        config.extend_from_slice(&SEGMENT_MAX.to_le_bytes());
        config.extend_from_slice(&SEGMENTS_MAX.to_le_bytes());
        // No geometry.
        config.extend_from_slice(&[0; 4]);
        config.extend_from_slice(&(SECTOR as u32).to_le_bytes());
        // Logical blocks in a physical one (exponent), first aligned block, then the best sizes of requests, in blocks.
        config.extend_from_slice(&[self.physical_exponent, 0]);
        config.extend_from_slice(&(1u16 << self.physical_exponent).to_le_bytes());
        config.extend_from_slice(&0u32.to_le_bytes());
        // Write-back, unused, one queue.
        config.extend_from_slice(&[1, 0, 1, 0]);
        for (offered, alignment) in [
            (self.discard, Some(1u32 << self.physical_exponent)),
            (self.zero, None),
        ] {
            let (sectors, ranges) = if offered {
                (RANGE_SECTORS_MAX, RANGES_MAX)
            } else {
                (0, 0)
            };
            config.extend_from_slice(&sectors.to_le_bytes());
            config.extend_from_slice(&ranges.to_le_bytes());
            if let Some(alignment) = alignment {
                config.extend_from_slice(&alignment.to_le_bytes());
            }
        }
        // Write-zeroes may unmap.
        config.extend_from_slice(&[1, 0, 0, 0]);
        config
    }

    fn activate(&mut self, features: u64) -> Result<(), Fault> {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        Ok(())
    }

    fn reset(&mut self) {
        self.forget();
    }

    fn reset_queue(&mut self, _queue: usize) {
        self.forget();
    }

    fn process(&mut self, _queue: usize, ring: &mut Ring<'_>) -> Result<Work, Fault> {
        self.answer(ring)?;
        self.accept(ring)?;
        Ok(Work::Done)
    }

    fn taken(&self, _queue: usize) -> u16 {
        self.in_flight.len() as u16
    }

    fn kind(&self) -> u32 {
        kind::BLOCK
    }

    fn save(&self, payload: &mut Payload<'_>) {
        payload.put(&self.sectors);
        payload.put(&u32::from(self.read_only));
        payload.put(&self.serial);
    }

    fn restore(&mut self, fields: &mut Fields<'_>) -> Result<(), StateError> {
        let sectors: u64 = fields.get()?;
        if sectors != self.sectors {
            return Err(fields.invalid(format!(
                "the disk had {sectors} sectors of {SECTOR} bytes, this one has {}",
                self.sectors
            )));
        }
        let read_only: u32 = fields.get()?;
        if read_only != u32::from(self.read_only) {
            let writable = |read_only| match read_only {
                0 => "writable",
                1 => "read-only",
                _ => "neither writable nor read-only",
            };
            return Err(fields.invalid(format!(
                "the disk was {}, this one is {}",
                writable(read_only),
                writable(self.read_only.into())
            )));
        }
        let serial: [u8; ID] = fields.get()?;
        if serial != self.serial {
            return Err(fields.invalid(format!(
                "the disk's serial number was \"{}\", here it is \"{}\"",
                serial.escape_ascii(),
                self.serial.escape_ascii()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
