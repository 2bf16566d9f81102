//! The virtio network card (virtio 1.2, section 5.1), above a [`Link`].
//!
//! **Received frames** are read by one `readv` straight into the guest's buffers, when those that it has offered can
//! hold the largest frame. Otherwise (few or small buffers left) a frame is read into a buffer of ours and copied; one
//! that does not fit yet is kept until the guest offers more, and the link is not watched meanwhile.
//!
//! **Sent frames** go out by one `writev` straight from guest memory, behind a copy of their header: the header that
//! was checked is the one that is sent. Where the machine has an [`Outlet`], that gets them instead, and decides.

pub(crate) mod cable;
pub(crate) mod link;
mod receive;
pub(crate) mod tap;
mod transmit;
mod writer;

pub use cable::CableEnd;
pub use writer::TapWriter;

use self::{
    link::{HEADER, Link, Offload},
    receive::Waiting,
};
use super::{
    counters::NetCounters,
    device::{VirtioDevice, Work},
    ring::{Buffers, Fault, Ring, Span},
};
use crate::{
    ports::{Inlet, Outlet, Ports},
    state::{Fields, Payload, StateError, kind},
};
use std::{collections::VecDeque, os::fd::RawFd, sync::Arc};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
    VIRTIO_NET_S_LINK_UP,
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
/// Frames that wait in memory of ours at most until the guest goes on: as many as a tap's own queue holds.
const TAKEN_IN_MAX: usize = 500;
/// Offset of the header's count of buffers.
const NUM_BUFFERS: usize = 10;

const fn has(features: u64, feature: u32) -> bool {
    features & 1 << feature != 0
}

/// The card.
pub(crate) struct Net {
    link: Box<dyn Link>,
    /// Who gets the frames before the link does, and the card's number there.
    outlet: Option<Arc<dyn Outlet>>,
    /// Who learns of the frames that come in.
    inlet: Option<Arc<dyn Inlet>>,
    /// The card's number for those two.
    number: usize,
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
    /// Frames that come before anything from the link. They are no part of captured state.
    injected: VecDeque<Vec<u8>>,
    /// The receive queue is empty, so that frames stay where they are.
    starved: bool,
    /// The link gave an error that will not go away.
    broken: bool,
    buffers: Buffers,
}

impl Net {
    /// Card number `number` of a machine with these ports, on `link`.
    pub(crate) fn new(
        link: Box<dyn Link>,
        number: usize,
        ports: &Ports,
        nic: &crate::config::Nic,
        counters: Arc<NetCounters>,
    ) -> Self {
        Self {
            link,
            outlet: ports.outlet.clone(),
            inlet: ports.inlet.clone(),
            number,
            mac: nic.mac,
            mtu: nic.mtu,
            offload: nic.offload,
            features: 0,
            counters,
            waiting: VecDeque::new(),
            spans: VecDeque::new(),
            room: 0,
            kept: Vec::new(),
            injected: VecDeque::new(),
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
        self.injected.clear();
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

    fn inject(&mut self, frame: &[u8]) {
        if frame.len() > HEADER && frame.len() <= self.incoming_max() {
            self.injected.push_back(frame.to_vec());
        } else {
            self.counters.drop_frame();
        }
    }

    fn take_in(&mut self, frames: usize) -> usize {
        self.read_ahead(frames)
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
mod arrivals;
#[cfg(test)]
mod tests;
