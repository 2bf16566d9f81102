//! The card's way out: frames from the guest's buffers to the link, or to whoever stands before it.

use super::{
    NUM_BUFFERS, Net, TURN, has,
    link::{HEADER, Header, Link},
};
use crate::{
    devices::{
        device::Work,
        ring::{Fault, Part, Ring, gather, length, slices},
    },
    ports::Outgoing,
};
use std::io;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};

/// A checked frame in guest memory.
struct Frame<'a, 'm> {
    header: &'a Header,
    /// What follows the header.
    parts: &'a [Part<'m>],
    length: usize,
    link: &'a mut dyn Link,
    /// Why the link did not take it.
    refused: Option<io::Error>,
}

impl Frame<'_, '_> {
    fn leave(&mut self) {
        self.refused = self.link.send(self.header, self.parts).err();
    }
}

impl Outgoing for Frame<'_, '_> {
    fn length(&self) -> usize {
        self.length
    }

    fn copy_to(&self, into: &mut [u8]) {
        let (header, rest) = into.split_at_mut(into.len().min(HEADER));
        header.copy_from_slice(&self.header[..header.len()]);
        gather(self.parts, rest);
    }

    fn pass(&mut self) -> io::Result<()> {
        self.leave();
        match &self.refused {
            None => Ok(()),
            // The same error again, as far as one can be copied: it is counted here and told there.
            Some(error) => Err(error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)),
        }
    }
}

impl Net {
    pub(super) fn transmit(&mut self, ring: &mut Ring<'_>) -> Result<Work, Fault> {
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
        let mut frame = Frame {
            header: &header,
            parts,
            length: total as usize,
            link: &mut *self.link,
            refused: None,
        };
        match &self.outlet {
            Some(outlet) => outlet.send(self.number, &mut frame),
            None => frame.leave(),
        }
        match frame.refused {
            None => self.counters.sent(total - HEADER as u64),
            Some(error) => {
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
