//! Output that waits for the commit of its epoch.
//!
//! One queue holds what all cards of a machine send, in the order in which it was produced, each
//! frame behind its virtio-net header so that large ones stay whole. Frames leave in that order
//! and each only after it was asked whether it may (DESIGN, "Output commit").
//!
//! Frames lie one after the other in *chunks* of memory. A chunk whose frames are all gone is
//! used again, so that in the steady state nothing is allocated, and a queue that is emptied at
//! each epoch stays within the processor's cache.

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, io, mem, time::Duration};

use thiserror::Error;

use crate::histogram::Delays;

/// Bytes that may be held unless told otherwise.
pub const LIMIT: usize = 32 << 20;

/// The longest frame: far above the 64 KiB that virtio's segmentation allows.
pub const FRAME_MAX: usize = CHUNK;

/// What a frame counts for in addition to its own bytes: what it takes to keep track of it.
/// Without it, tiny frames would grow the queue beyond its limit.
pub const OVERHEAD: usize = mem::size_of::<Frame>();

const CHUNK: usize = 256 << 10;

/// A frame cannot be held: the queue would exceed its limit. The guest is to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("held output fills {held} of {limit} bytes, and a frame of {length} does not fit")]
pub struct Full {
    /// Bytes of the frame, without overhead.
    pub length: usize,
    /// Bytes that count against the limit.
    pub held: usize,
    /// The limit.
    pub limit: usize,
}

/// A frame that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'a> {
    /// The card that sent it.
    pub card: usize,
    /// The epoch that produced it.
    pub epoch: u64,
    /// When it was produced, in nanoseconds.
    pub produced: u64,
    /// The frame behind its virtio-net header.
    pub bytes: &'a [u8],
}

/// What came of one [`OutputQueue::release`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Frames that left.
    pub frames: u64,
    /// Their bytes, headers included.
    pub bytes: u64,
    /// Frames that the network did not take. They are gone, as on any network.
    pub dropped: u64,
    /// The longest time that one of those that left was held.
    pub longest: Duration,
}

/// Frames and their bytes, headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Frames.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }
}

/// What became of all frames since the queue was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Taken in.
    pub pushed: Amount,
    /// Left for the network.
    pub released: Amount,
    /// Offered to the network, which did not take them.
    pub dropped: Amount,
    /// Thrown away, because what they belong to is no more or the network has them already.
    pub discarded: Amount,
    /// How often [`Full`] was said.
    pub full: u64,
    /// The most bytes held at a time.
    pub peak: u64,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    card: usize,
    epoch: u64,
    produced: u64,
    /// The number of its chunk.
    chunk: u64,
    start: u32,
    length: u32,
}

/// Held output of one machine. See the [module](self).
#[derive(Debug)]
pub struct OutputQueue {
    limit: usize,
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Never empty. The first holds the oldest frame, the last is being filled.
    chunks: VecDeque<Box<[u8]>>,
    /// The number of the first chunk.
    first: u64,
    /// Bytes in use of the last chunk.
    filled: usize,
    spare: Vec<Box<[u8]>>,
    counters: Counters,
    delays: Delays,
}

impl Default for OutputQueue {
    fn default() -> OutputQueue {
        OutputQueue::new(LIMIT)
    }
}

impl OutputQueue {
    /// An empty queue that holds `limit` bytes at most, [`OVERHEAD`] counted for each frame.
    pub fn new(limit: usize) -> OutputQueue {
        OutputQueue {
            limit,
            frames: VecDeque::with_capacity(1024),
            bytes: 0,
            chunks: VecDeque::from([chunk()]),
            first: 0,
            filled: 0,
            spare: Vec::new(),
            counters: Counters::default(),
            delays: Delays::new(),
        }
    }

    /// Holds a frame of `length` bytes that `card` sent during `epoch`, at `now`. `fill` is to
    /// write all of it, the virtio-net header first; the bytes it is given are those of some older
    /// frame.
    ///
    /// Epochs do not fall: a frame of an earlier epoch than the one before it counts as that one's,
    /// so that it waits no shorter.
    ///
    /// # Errors
    /// [`Full`] if the frame would exceed the limit, or is longer than [`FRAME_MAX`]. Nothing has
    /// changed then, and `fill` was not called.
    pub fn push(
        &mut self,
        card: usize,
        epoch: u64,
        now: u64,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), Full> {
        let held = self.counted();
        let fits = length <= FRAME_MAX
            && (self.limit.checked_sub(held)).is_some_and(|room| length + OVERHEAD <= room);
        // A frame that is not longer than a chunk has a length of 32 bits.
        let (true, Ok(short)) = (fits, u32::try_from(length)) else {
            self.counters.full += 1;
            return Err(Full {
                length,
                held,
                limit: self.limit,
            });
        };
        if length > CHUNK - self.filled {
            let next = self.spare.pop().unwrap_or_else(chunk);
            self.chunks.push_back(next);
            self.filled = 0;
        }
        let chunk = self.first + (self.chunks.len() as u64 - 1);
        let start = self.filled;
        let last = self.chunks.len() - 1;
        fill(&mut self.chunks[last][start..start + length]);
        self.filled += length;
        self.bytes += length;
        self.frames.push_back(Frame {
            card,
            epoch: self.frames.back().map_or(epoch, |f| f.epoch.max(epoch)),
            produced: now,
            chunk,
            // Within a chunk, so within 32 bits.
            start: u32::try_from(start).unwrap_or(0),
            length: short,
        });
        self.counters.pushed.add(length);
        self.counters.peak = self.counters.peak.max(self.bytes as u64);
        Ok(())
    }

    /// Lets frames leave, oldest first, as long as they may. Right before each one, `clock` is read
    /// and `allowed` asked with the frame's epoch and that time; the first no ends it. `write`
    /// gets the card and the frame behind its virtio-net header.
    ///
    /// A frame that `write` cannot send is lost as on any network, whether there is no room
    /// (`WouldBlock`) or another error: what waits here would only be late, and must not stop what
    /// other cards send. After `Interrupted` it is asked for and tried again.
    pub fn release(
        &mut self,
        mut clock: impl FnMut() -> u64,
        mut allowed: impl FnMut(u64, u64) -> bool,
        mut write: impl FnMut(usize, &[u8]) -> io::Result<()>,
    ) -> Released {
        let mut released = Released::default();
        while let Some(&frame) = self.frames.front() {
            let now = clock();
            if !allowed(frame.epoch, now) {
                break;
            }
            let bytes = bytes(&self.chunks[0], &frame);
            let length = bytes.len();
            match write(frame.card, bytes) {
                Ok(()) => {
                    let delay = Duration::from_nanos(now.saturating_sub(frame.produced));
                    self.delays.record(delay);
                    self.counters.released.add(length);
                    released.frames += 1;
                    released.bytes += length as u64;
                    released.longest = released.longest.max(delay);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.counters.dropped.add(length);
                    released.dropped += 1;
                }
            }
            self.forget_oldest();
        }
        released
    }

    /// The newest epoch such that all output of epochs up to it has really left, while
    /// `running_epoch` runs: at most the one before that.
    pub fn released_through(&self, running_epoch: u64) -> u64 {
        let before = running_epoch.saturating_sub(1);
        (self.frames.front()).map_or(before, |oldest| before.min(oldest.epoch.saturating_sub(1)))
    }

    /// A new term begins, and epochs count from 1: what is still held counts as epoch 1's.
    pub fn begin_term(&mut self) {
        for frame in &mut self.frames {
            frame.epoch = 1;
        }
    }

    /// Throws everything away.
    pub fn discard(&mut self) -> Amount {
        self.discard_through(u64::MAX)
    }

    /// Throws away what epochs up to `epoch` produced: how a backup drops what has left already.
    pub fn discard_through(&mut self, epoch: u64) -> Amount {
        let mut amount = Amount::default();
        while self.frames.front().is_some_and(|f| f.epoch <= epoch) {
            amount.add(self.forget_oldest());
        }
        self.counters.discarded.frames += amount.frames;
        self.counters.discarded.bytes += amount.bytes;
        amount
    }

    /// Frames that are held.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes of the frames that are held, headers included, without [`OVERHEAD`].
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of memory that it takes for frames, in use or spare. It does not shrink.
    pub fn memory(&self) -> usize {
        (self.chunks.len() + self.spare.len()) * CHUNK
    }

    /// Of the oldest frame: its epoch, and when it was produced.
    pub fn oldest(&self) -> Option<(u64, u64)> {
        self.frames.front().map(|f| (f.epoch, f.produced))
    }

    /// Whether output of `epoch` is held.
    pub fn holds(&self, epoch: u64) -> bool {
        let from = self.frames.partition_point(|f| f.epoch < epoch);
        self.frames.get(from).is_some_and(|f| f.epoch == epoch)
    }

    /// All that is held, oldest first.
    pub fn frames(&self) -> impl Iterator<Item = Held<'_>> {
        self.between(0, self.frames.len())
    }

    /// What is held of `epoch`, oldest first: what its checkpoint carries.
    pub fn frames_of(&self, epoch: u64) -> impl Iterator<Item = Held<'_>> {
        self.between(
            self.frames.partition_point(|f| f.epoch < epoch),
            self.frames.partition_point(|f| f.epoch <= epoch),
        )
    }

    /// What became of all frames so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How long those were held that left, since the last [`OutputQueue::clear_delays`].
    pub fn delays(&self) -> &Delays {
        &self.delays
    }

    /// Begins [`OutputQueue::delays`] anew.
    pub fn clear_delays(&mut self) {
        self.delays.clear();
    }

    /// Bytes that count against the limit.
    fn counted(&self) -> usize {
        self.bytes + self.frames.len() * OVERHEAD
    }

    fn between(&self, from: usize, to: usize) -> impl Iterator<Item = Held<'_>> {
        self.frames.range(from..to).filter_map(|frame| {
            let chunk = usize::try_from(frame.chunk - self.first).ok()?;
            Some(Held {
                card: frame.card,
                epoch: frame.epoch,
                produced: frame.produced,
                bytes: bytes(self.chunks.get(chunk)?, frame),
            })
        })
    }

    /// Removes the oldest frame and keeps its memory for later ones. Returns its length.
    fn forget_oldest(&mut self) -> usize {
        let Some(frame) = self.frames.pop_front() else {
            return 0;
        };
        let length = frame.length as usize;
        self.bytes -= length;
        let needed = match self.frames.front() {
            Some(next) => next.chunk,
            None => self.first + (self.chunks.len() as u64 - 1),
        };
        while self.first < needed {
            self.spare.extend(self.chunks.pop_front());
            self.first += 1;
        }
        if self.frames.is_empty() {
            self.filled = 0;
        }
        length
    }
}

fn chunk() -> Box<[u8]> {
    vec![0; CHUNK].into_boxed_slice()
}

fn bytes<'a>(chunk: &'a [u8], frame: &Frame) -> &'a [u8] {
    let start = frame.start as usize;
    &chunk[start..start + frame.length as usize]
}
