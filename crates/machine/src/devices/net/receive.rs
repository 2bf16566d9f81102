//! The card's way in: frames from the link into the guest's buffers.

use super::{NUM_BUFFERS, Net, QUEUE_SIZE, TAKEN_IN_MAX, TURN, has, link::HEADER};
use crate::{
    devices::{
        device::Work,
        ring::{Fault, PARTS_MAX, Part, Ring, gather, length, mark, scatter, slices},
    },
    ports::Incoming,
};
use std::io;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_HDR_GSO_NONE};

/// A chain of the receive queue that waits for a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    head: u16,
    spans: usize,
    length: u64,
}

/// A frame in memory of ours.
struct Copied<'a>(&'a [u8]);

impl Incoming for Copied<'_> {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn copy_to(&self, into: &mut [u8]) {
        let length = into.len().min(self.0.len());
        into[..length].copy_from_slice(&self.0[..length]);
    }
}

/// A frame in the guest's buffers.
struct Placed<'a, 'm> {
    parts: &'a [Part<'m>],
    length: usize,
}

impl Incoming for Placed<'_, '_> {
    fn length(&self) -> usize {
        self.length
    }

    fn copy_to(&self, into: &mut [u8]) {
        let length = into.len().min(self.length);
        gather(self.parts, &mut into[..length]);
    }
}

/// What came of reading from the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// A frame of so many bytes, header included.
    Frame(usize),
    /// One that is to be dropped.
    Lost,
    /// Nothing.
    Nothing,
}

impl Net {
    pub(super) fn forget_waiting(&mut self) {
        self.waiting.clear();
        self.spans.clear();
        self.room = 0;
        self.starved = true;
    }

    /// How much room the next frame has: all chains if it may be spread, else the next one.
    fn room(&self) -> u64 {
        if self.mergeable() {
            self.room
        } else {
            self.waiting.front().map_or(0, |chain| chain.length)
        }
    }

    /// Takes chains until there is room for `wanted` bytes, or no more are offered.
    fn stock(&mut self, ring: &mut Ring<'_>, wanted: usize) -> Result<(), Fault> {
        // Bounded, because a guest with another vCPU could feed bad chains for ever.
        for _ in 0..2 * QUEUE_SIZE {
            if self.room() >= wanted as u64 || self.waiting.len() >= QUEUE_SIZE.into() {
                break;
            }
            let Some(taken) = ring.take(&mut self.buffers)? else {
                // The guest kicks at its next buffer, in case one does not suffice. If one came meanwhile, go on.
                if ring.listen()? {
                    continue;
                }
                break;
            };
            let room = length(&self.buffers.writable);
            // Buffers to read from, or no room even for the header, are against the rules.
            if !taken.sound || !self.buffers.readable.is_empty() || room < HEADER as u64 {
                self.counters.drop_frame();
                // Chains go back in the order in which they came, so those before it must go first.
                if !self.waiting.is_empty() {
                    return Err(Fault("a bad chain in the receive queue".into()));
                }
                ring.give(taken.head, 0)?;
                continue;
            }
            self.waiting.push_back(Waiting {
                head: taken.head,
                spans: self.buffers.writable.len(),
                length: room,
            });
            self.spans.extend(self.buffers.writable.iter().copied());
            self.room += room;
        }
        Ok(())
    }

    /// Hands back the chains that hold a frame of `length` bytes.
    fn deliver(&mut self, ring: &mut Ring<'_>, mut length: u64) -> Result<(), Fault> {
        self.counters.received(length.saturating_sub(HEADER as u64));
        loop {
            let Some(chain) = self.waiting.pop_front() else {
                return Err(Fault("a frame is longer than its buffers".into()));
            };
            self.spans.drain(..chain.spans);
            self.room -= chain.length;
            let here = length.min(chain.length);
            ring.give(chain.head, here as u32)?;
            length -= here;
            if length == 0 {
                return Ok(());
            }
        }
    }

    /// How many buffers of the waiting chains a frame of `length` bytes may need.
    fn spans_for(&self, length: usize) -> usize {
        let chains = if self.mergeable() {
            self.chains_for(length)
        } else {
            1
        };
        self.waiting
            .iter()
            .take(chains.into())
            .map(|chain| chain.spans)
            .sum()
    }

    /// Over how many chains a frame of `length` bytes spreads.
    fn chains_for(&self, length: usize) -> u16 {
        let mut left = length as u64;
        let mut count = 0;
        for chain in &self.waiting {
            count += 1;
            left = left.saturating_sub(chain.length);
            if left == 0 {
                break;
            }
        }
        count
    }

    /// Completes the header that the link wrote: the count of buffers, and no promise that the driver did not ask for.
    fn finish_header(&self, parts: &[Part<'_>], length: usize) {
        let count = if self.mergeable() {
            self.chains_for(length)
        } else {
            1
        };
        scatter(parts, NUM_BUFFERS, &count.to_le_bytes());
        if !has(self.features, VIRTIO_NET_F_GUEST_CSUM) {
            scatter(parts, 0, &[0, VIRTIO_NET_HDR_GSO_NONE as u8]);
        }
    }

    /// Puts the kept frame into the guest's buffers. False: it does not fit yet.
    fn deliver_kept(&mut self, ring: &mut Ring<'_>) -> Result<bool, Fault> {
        if self.kept.is_empty() {
            return Ok(true);
        }
        let frame = std::mem::take(&mut self.kept);
        self.stock(ring, frame.len())?;
        if self.room() < frame.len() as u64 {
            if !self.mergeable() && !self.waiting.is_empty() {
                // The next buffer is too small and will stay so.
                self.counters.drop_frame();
                return Ok(true);
            }
            if self.mergeable() && self.waiting.len() >= QUEUE_SIZE.into() {
                self.counters.drop_frame();
                return Ok(true);
            }
            self.kept = frame;
            return Ok(false);
        }
        let mut parts = Vec::new();
        let count = self.spans_for(frame.len());
        slices(
            ring.memory(),
            self.spans.iter().take(count).copied(),
            0,
            &mut parts,
        )?;
        scatter(&parts, 0, &frame);
        self.finish_header(&parts, frame.len());
        self.deliver(ring, frame.len() as u64)?;
        Ok(true)
    }

    /// Reads one frame. False: there is none.
    fn receive_one<'m>(
        &mut self,
        ring: &mut Ring<'m>,
        parts: &mut Vec<Part<'m>>,
    ) -> Result<bool, Fault> {
        let most = self.incoming_max();
        parts.clear();
        if self.room() >= most as u64 {
            let count = self.spans_for(most);
            slices(
                ring.memory(),
                self.spans.iter().take(count).copied(),
                0,
                parts,
            )?;
        }
        // None at all if there is too little room; too many if the guest cut it into crumbs.
        if parts.is_empty() || parts.len() > PARTS_MAX {
            let mut frame = std::mem::take(&mut self.kept);
            let read = self.read_copy(&mut frame);
            self.kept = frame;
            return Ok(read != Read::Nothing);
        }
        let outcome = self.link.receive(parts);
        match self.judge(outcome, most) {
            Read::Frame(length) => {
                mark(parts, length);
                if let Some(inlet) = &self.inlet {
                    inlet.received(self.number, &Placed { parts, length });
                }
                self.finish_header(parts, length);
                self.deliver(ring, length as u64)?;
                Ok(true)
            }
            Read::Lost => {
                mark(parts, usize::MAX);
                Ok(true)
            }
            Read::Nothing => Ok(false),
        }
    }

    /// Reads frames although the guest stands: they wait in memory of ours until it goes on.
    pub(super) fn read_ahead(&mut self, frames: usize) -> usize {
        let mut frame = Vec::new();
        let mut taken = 0;
        while taken < frames && self.injected.len() < TAKEN_IN_MAX && !self.broken {
            match self.read_copy(&mut frame) {
                Read::Frame(_) => self.injected.push_back(frame.clone()),
                Read::Lost => {}
                Read::Nothing => break,
            }
            taken += 1;
        }
        taken
    }

    /// Reads a frame into memory of ours, which is empty if there is none to be given to the guest.
    fn read_copy(&mut self, frame: &mut Vec<u8>) -> Read {
        let most = self.incoming_max();
        // One byte more than the longest, so that a longer frame shows.
        frame.resize(most + 1, 0);
        let outcome = self.link.receive_copy(frame);
        let read = self.judge(outcome, most);
        match read {
            Read::Frame(length) => {
                frame.truncate(length);
                if let Some(inlet) = &self.inlet {
                    inlet.received(self.number, &Copied(frame));
                }
            }
            Read::Lost | Read::Nothing => frame.clear(),
        }
        read
    }

    /// What came of a read.
    fn judge(&mut self, outcome: io::Result<usize>, most: usize) -> Read {
        match outcome {
            Ok(length) if length > HEADER && length <= most => Read::Frame(length),
            Ok(_) => {
                self.counters.drop_frame();
                Read::Lost
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Read::Lost,
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    // Watching it further would be a busy loop.
                    self.broken = true;
                    self.counters.fail();
                    tracing::error!(%error, "the network card gets no more frames: its tap cannot be read");
                }
                Read::Nothing
            }
        }
    }

    pub(super) fn receive(&mut self, ring: &mut Ring<'_>) -> Result<Work, Fault> {
        ring.ignore()?;
        let mut parts = Vec::new();
        for _ in 0..TURN {
            if ring.interrupted() {
                return Ok(Work::Done);
            }
            if !self.deliver_kept(ring)? {
                self.starved = true;
                return Ok(Work::Done);
            }
            if let Some(frame) = self.injected.pop_front() {
                self.kept = frame;
                continue;
            }
            self.stock(ring, self.incoming_max())?;
            self.starved = self.waiting.is_empty();
            if self.starved || self.broken || !self.receive_one(ring, &mut parts)? {
                return Ok(Work::Done);
            }
        }
        // The link is still readable and says so. A frame that is here already would wait for the next one, so it gets a turn.
        Ok(if self.kept.is_empty() && self.injected.is_empty() {
            Work::Done
        } else {
            Work::More
        })
    }
}
