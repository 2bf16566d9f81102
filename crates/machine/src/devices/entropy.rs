//! The virtio entropy device (virtio 1.2, section 5.4): random bytes of the host's kernel.

use super::{
    device::{VirtioDevice, Work},
    ring::{Buffers, Fault, Ring, length, scatter, slices},
};
use crate::state::{Fields, Payload, StateError, kind};

/// Entries of the queue.
const QUEUE_SIZE: u16 = 16;
/// The most that one request gets; a driver asks again for more.
const REQUEST_MAX: usize = 256;
/// Requests in one turn of work.
const TURN: usize = 16;

/// The device. It has no state.
#[derive(Default)]
pub(crate) struct Entropy {
    buffers: Buffers,
}

/// Fills `bytes`; returns how many it could (up to 256 come at once and whole, once the host is up).
fn random(bytes: &mut [u8]) -> usize {
    // SAFETY: getrandom writes at most as many bytes as it is told.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    usize::try_from(got).unwrap_or(0)
}

impl VirtioDevice for Entropy {
    fn id(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) -> Result<(), Fault> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn reset_queue(&mut self, _queue: usize) {}

    fn process(&mut self, _queue: usize, ring: &mut Ring<'_>) -> Result<Work, Fault> {
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
            let mut bytes = [0; REQUEST_MAX];
            let mut written = 0;
            if taken.sound && self.buffers.readable.is_empty() {
                let room = length(&self.buffers.writable).min(REQUEST_MAX as u64) as usize;
                let got = random(&mut bytes[..room]);
                let mut parts = Vec::new();
                slices(
                    ring.memory(),
                    self.buffers.writable.iter().copied(),
                    0,
                    &mut parts,
                )?;
                written = scatter(&parts, 0, &bytes[..got]);
            }
            ring.give(taken.head, written as u32)?;
        }
        Ok(Work::More)
    }

    fn taken(&self, _queue: usize) -> u16 {
        0
    }

    fn kind(&self) -> u32 {
        kind::ENTROPY
    }

    fn save(&self, _payload: &mut Payload<'_>) {}

    fn restore(&mut self, _fields: &mut Fields<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DATA, Guest, WRITE, config};
    use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

    #[test]
    fn random_bytes_fill_what_is_offered_up_to_a_limit() {
        let mut config = config();
        config.entropy = true;
        let guest = Guest::new(&config, Vec::new());
        assert!(guest.negotiate(0, 1 << VIRTIO_F_VERSION_1));
        let mut queue = guest.queue(0, 0, 4, 0x1000, false);
        guest.ready(0);
        guest.devices.run().unwrap();
        queue.chain(0, &[(DATA, 10, WRITE), (DATA + 0x1000, 4096, WRITE)]);
        queue.offer(0);
        guest.kick(0, 0);
        assert_eq!(queue.wait(), (0, 256));
        let mut bytes = queue.bytes(DATA, 10);
        bytes.extend(queue.bytes(DATA + 0x1000, 246));
        let distinct: std::collections::HashSet<_> = bytes.iter().collect();
        assert!(distinct.len() > 64, "{bytes:?}");
        assert_eq!(queue.bytes(DATA + 0x1000 + 246, 8), [0; 8]);
        // A buffer that is to be read is against the rules.
        queue.chain(2, &[(DATA, 10, 0)]);
        queue.offer(2);
        guest.kick(0, 0);
        assert_eq!(queue.wait(), (2, 0));
    }
}
