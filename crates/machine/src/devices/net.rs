//! The virtio network card (virtio 1.2, section 5.1), above a [`Link`].
//!
//! **Received frames** are read by one `readv` straight into the guest's buffers, when those that it has offered can
//! hold the largest frame. Otherwise (few or small buffers left) a frame is read into a buffer of ours and copied; one
//! that does not fit yet is kept until the guest offers more, and the link is not watched meanwhile.
//!
//! **Sent frames** go out by one `writev` straight from guest memory, behind a copy of their header: the header that
//! was checked is the one that is sent.

pub(crate) mod link;
pub(crate) mod tap;

use self::link::{HEADER, Header, Link, Offload};
use super::{
    counters::NetCounters,
    device::{VirtioDevice, Work},
    ring::{Buffers, Fault, PARTS_MAX, Part, Ring, Span, gather, length, mark, scatter, slices},
};
use crate::state::{Fields, Payload, StateError, kind};
use std::{collections::VecDeque, io, os::fd::RawFd, sync::Arc};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_S_LINK_UP,
};

/// The queue of buffers for received frames.
const RECEIVE: usize = 0;
/// The queue of frames to send.
const TRANSMIT: usize = 1;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Frames in one turn of work.
const TURN: usize = 256;
/// Bytes before a frame's payload: Ethernet's header and one VLAN tag.
const FRAMING: usize = 14 + 4;
/// The largest payload of a frame that is still to be cut into segments.
const SEGMENTED_MAX: usize = 65535;
/// Offset of the header's count of buffers.
const NUM_BUFFERS: usize = 10;

const fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}

/// A chain of the receive queue that waits for a frame.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    head: u16,
    spans: usize,
    length: u64,
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

/// The card.
pub(crate) struct Net {
    link: Box<dyn Link>,
    mac: [u8; 6],
    mtu: u16,
    offload: bool,
    features: u64,
    counters: Arc<NetCounters>,
    /// Chains taken from the receive queue, and their buffers in the same order.
    waiting: VecDeque<Waiting>,
    spans: VecDeque<Span>,
    room: u64,
    /// A frame with its header that did not fit yet; empty if there is none.
    kept: Vec<u8>,
    /// The receive queue is empty, so that frames stay where they are.
    starved: bool,
    /// The link gave an error that will not go away.
    broken: bool,
    buffers: Buffers,
}

impl Net {
    /// A card on `link`.
    pub(crate) fn new(
        link: Box<dyn Link>,
        nic: &crate::config::Nic,
        counters: Arc<NetCounters>,
    ) -> Self {
        Self {
            link,
            mac: nic.mac,
            mtu: nic.mtu,
            offload: nic.offload,
            features: 0,
            counters,
            waiting: VecDeque::new(),
            spans: VecDeque::new(),
            room: 0,
            kept: Vec::new(),
            starved: true,
            broken: false,
            buffers: Buffers::default(),
        }
    }

    /// The longest frame, header included, that may come in with the features in force.
    fn incoming_max(&self) -> usize {
        let segmented = has(self.features, VIRTIO_NET_F_GUEST_TSO4)
            || has(self.features, VIRTIO_NET_F_GUEST_TSO6);
        HEADER
            + FRAMING
            + if segmented {
                SEGMENTED_MAX
            } else {
                self.mtu.into()
            }
    }

    /// The longest frame, header included, that may go out with the features in force.
    fn outgoing_max(&self) -> usize {
        let segmented = has(self.features, VIRTIO_NET_F_HOST_TSO4)
            || has(self.features, VIRTIO_NET_F_HOST_TSO6);
        HEADER
            + FRAMING
            + if segmented {
                SEGMENTED_MAX
            } else {
                self.mtu.into()
            }
    }

    fn mergeable(&self) -> bool {
        has(self.features, VIRTIO_NET_F_MRG_RXBUF)
    }

    fn forget_waiting(&mut self) {
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
            // One byte more than the longest, so that a longer frame shows.
            self.kept.resize(most + 1, 0);
            let outcome = self.link.receive_copy(&mut self.kept);
            self.kept.truncate(*outcome.as_ref().unwrap_or(&0));
            return Ok(match self.judge(outcome, most) {
                Read::Frame(_) => true,
                Read::Lost => {
                    self.kept.clear();
                    true
                }
                Read::Nothing => {
                    self.kept.clear();
                    false
                }
            });
        }
        let outcome = self.link.receive(parts);
        match self.judge(outcome, most) {
            Read::Frame(length) => {
                mark(parts, length);
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

    fn receive(&mut self, ring: &mut Ring<'_>) -> Result<Work, Fault> {
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
            self.stock(ring, self.incoming_max())?;
            self.starved = self.waiting.is_empty();
            if self.starved || self.broken || !self.receive_one(ring, &mut parts)? {
                return Ok(Work::Done);
            }
        }
        // The link is still readable and says so. A kept frame would wait for the next one, so it gets a turn.
        Ok(if self.kept.is_empty() {
            Work::Done
        } else {
            Work::More
        })
    }

    fn transmit(&mut self, ring: &mut Ring<'_>) -> Result<Work, Fault> {
        let mut parts = Vec::new();
        ring.ignore()?;
        for _ in 0..TURN {
            if ring.interrupted() {
                return Ok(Work::Done);
            }
            let Some(taken) = ring.take(&mut self.buffers)? else {
                if ring.listen()? {
                    continue;
                }
                return Ok(Work::Done);
            };
            parts.clear();
            if taken.sound {
                self.send(ring, &mut parts)?;
            } else {
                self.counters.drop_frame();
            }
            ring.give(taken.head, 0)?;
        }
        Ok(Work::More)
    }

    /// Sends the frame in `self.buffers`.
    fn send<'m>(&mut self, ring: &Ring<'m>, parts: &mut Vec<Part<'m>>) -> Result<(), Fault> {
        let total = length(&self.buffers.readable);
        let most = self.outgoing_max() as u64;
        if !self.buffers.writable.is_empty() || total < (HEADER + 14) as u64 || total > most {
            self.counters.drop_frame();
            return Ok(());
        }
        slices(
            ring.memory(),
            self.buffers.readable.iter().copied(),
            0,
            parts,
        )?;
        let mut header: Header = [0; HEADER];
        gather(parts, &mut header);
        header[NUM_BUFFERS..].fill(0);
        if !self.allowed(&header) {
            self.counters.drop_frame();
            return Ok(());
        }
        parts.clear();
        slices(
            ring.memory(),
            self.buffers.readable.iter().copied(),
            HEADER,
            parts,
        )?;
        match self.link.send(&header, parts) {
            Ok(()) => self.counters.sent(total - HEADER as u64),
            Err(error) => {
                self.counters.drop_frame();
                tracing::debug!(%error, "a frame could not be sent");
            }
        }
        Ok(())
    }

    /// Whether a frame's header asks only for what the driver has negotiated.
    fn allowed(&self, header: &Header) -> bool {
        let checksum = u32::from(header[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0;
        let segments = u32::from(header[1]);
        let ecn = segments & VIRTIO_NET_HDR_GSO_ECN != 0;
        (!checksum || has(self.features, VIRTIO_NET_F_CSUM))
            && (!ecn || has(self.features, VIRTIO_NET_F_HOST_ECN))
            && match segments & !VIRTIO_NET_HDR_GSO_ECN {
                VIRTIO_NET_HDR_GSO_NONE => !ecn,
                VIRTIO_NET_HDR_GSO_TCPV4 => has(self.features, VIRTIO_NET_F_HOST_TSO4),
                VIRTIO_NET_HDR_GSO_TCPV6 => has(self.features, VIRTIO_NET_F_HOST_TSO6),
                _ => false,
            }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        1
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE; 2]
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
        ];
        let offloads = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        ];
        let offloads = offloads.into_iter().filter(|_| self.offload);
        always
            .into_iter()
            .chain(offloads)
            .fold(0, |all, bit| all | 1 << bit)
    }

    /// The dependencies of virtio 1.2, 5.1.3.1.
    fn accepts(&self, features: u64) -> bool {
        let needs = |feature: u32, one_of: &[u32]| {
            !has(features, feature) || one_of.iter().any(|needed| has(features, *needed))
        };
        needs(VIRTIO_NET_F_GUEST_TSO4, &[VIRTIO_NET_F_GUEST_CSUM])
            && needs(VIRTIO_NET_F_GUEST_TSO6, &[VIRTIO_NET_F_GUEST_CSUM])
            && needs(
                VIRTIO_NET_F_GUEST_ECN,
                &[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6],
            )
            && needs(VIRTIO_NET_F_HOST_TSO4, &[VIRTIO_NET_F_CSUM])
            && needs(VIRTIO_NET_F_HOST_TSO6, &[VIRTIO_NET_F_CSUM])
            && needs(
                VIRTIO_NET_F_HOST_ECN,
                &[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6],
            )
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        config.extend_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        // One pair of queues.
        config.extend_from_slice(&1u16.to_le_bytes());
        config.extend_from_slice(&self.mtu.to_le_bytes());
        config
    }

    fn activate(&mut self, features: u64) -> Result<(), Fault> {
        self.features = features;
        if !self.offload {
            return Ok(());
        }
        self.link
            .set_offload(Offload {
                checksum: has(features, VIRTIO_NET_F_GUEST_CSUM),
                tso4: has(features, VIRTIO_NET_F_GUEST_TSO4),
                tso6: has(features, VIRTIO_NET_F_GUEST_TSO6),
                ecn: has(features, VIRTIO_NET_F_GUEST_ECN),
            })
            .map_err(|error| Fault(format!("the tap refuses the negotiated offloads: {error}")))
    }

    fn reset(&mut self) {
        self.forget_waiting();
        self.kept.clear();
        self.features = 0;
    }

    fn reset_queue(&mut self, queue: usize) {
        if queue == RECEIVE {
            self.forget_waiting();
        }
    }

    fn process(&mut self, queue: usize, ring: &mut Ring<'_>) -> Result<Work, Fault> {
        match queue {
            RECEIVE => self.receive(ring),
            TRANSMIT => self.transmit(ring),
            _ => Ok(Work::Done),
        }
    }

    fn event_source(&self) -> Option<RawFd> {
        Some(self.link.fd())
    }

    fn listens(&self) -> bool {
        !self.starved && !self.broken
    }

    fn taken(&self, queue: usize) -> u16 {
        if queue == RECEIVE {
            self.waiting.len() as u16
        } else {
            0
        }
    }

    fn kind(&self) -> u32 {
        kind::NET
    }

    fn save(&self, payload: &mut Payload<'_>) {
        payload.put(&self.mac);
        payload.put(&self.mtu);
        payload.put(&(self.kept.len() as u32));
        payload.put(&self.kept[..]);
    }

    fn restore(&mut self, fields: &mut Fields<'_>) -> Result<(), StateError> {
        let mac: [u8; 6] = fields.get()?;
        if mac != self.mac {
            return Err(fields.invalid(format!(
                "its MAC address was {mac:02x?}, here it is {:02x?}",
                self.mac
            )));
        }
        let mtu: u16 = fields.get()?;
        if mtu != self.mtu {
            return Err(fields.invalid(format!("its MTU was {mtu}, here it is {}", self.mtu)));
        }
        let kept: u32 = fields.get()?;
        if kept as usize > self.incoming_max() {
            return Err(fields.invalid(format!("a frame of {kept} bytes")));
        }
        self.kept = fields.bytes(kept as usize)?.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
