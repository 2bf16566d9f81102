//! One turn of work at one virtqueue, and what a descriptor chain may be.
//!
//! Everything in a ring is the guest's word. A chain that breaks the rules is handed back unused (length 0); a ring
//! whose own fields are impossible is a [`Fault`], after which the device asks for a reset. Neither costs more than a
//! bounded amount of work.

use super::gate::Gate;
use crate::memory::{Ram, WriteLog};
use std::sync::atomic::Ordering;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice,
    bitmap::{BS, Bitmap},
};

/// The largest number of pieces that a chain may have: as many as one `readv` takes (`UIO_MAXIOV`), less the header.
pub(crate) const PARTS_MAX: usize = 1023;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`, for drivers without `EVENT_IDX`.
const NO_INTERRUPT: u16 = 1;

/// A piece of guest memory that lies in one piece in the host's.
pub(crate) type Part<'m> = VolatileSlice<'m, BS<'m, WriteLog>>;

/// Why a device cannot go on with a queue. The text is for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) String);

impl From<virtio_queue::Error> for Fault {
    fn from(error: virtio_queue::Error) -> Self {
        Self(error.to_string())
    }
}

/// A buffer of the guest's, known to lie within its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// First address.
    pub(crate) address: GuestAddress,
    /// Length in bytes, never 0.
    pub(crate) length: u32,
}

/// The buffers of a chain, in order: first those the device reads, then those it writes.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// What the device reads.
    pub(crate) readable: Vec<Span>,
    /// What the device writes.
    pub(crate) writable: Vec<Span>,
}

impl Buffers {
    /// Takes a chain apart. False: the chain breaks a rule (virtio 1.2, 2.7.4 and 2.7.5), and nothing of it may be used.
    fn fill(&mut self, memory: &Ram, chain: DescriptorChain<&Ram>) -> bool {
        self.readable.clear();
        self.writable.clear();
        // A loop, an index out of the table or an unreadable table all end the iterator early: the last descriptor that
        // it gave then names a next one.
        let mut open = true;
        for descriptor in chain {
            open = descriptor.has_next();
            if self.readable.len() + self.writable.len() == PARTS_MAX {
                return false;
            }
            let span = Span {
                address: descriptor.addr(),
                length: descriptor.len(),
            };
            if descriptor.is_write_only() {
                if span.length > 0 {
                    self.writable.push(span);
                }
            } else {
                if !self.writable.is_empty() {
                    return false;
                }
                if span.length > 0 {
                    self.readable.push(span);
                }
            }
            if !memory.check_range(span.address, span.length as usize, Permissions::ReadWrite) {
                return false;
            }
        }
        !open
    }
}

/// Total length of some buffers in bytes.
pub(crate) fn length(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.length)).sum()
}

/// Appends the host's view of `spans`, without their first `skip` bytes, to `parts`.
pub(crate) fn slices<'m>(
    memory: &'m Ram,
    spans: impl IntoIterator<Item = Span>,
    mut skip: usize,
    parts: &mut Vec<Part<'m>>,
) -> Result<(), Fault> {
    for span in spans {
        let pieces = GuestMemory::get_slices(
            memory,
            span.address,
            span.length as usize,
            Permissions::ReadWrite,
        )
        .map_err(|error| Fault(error.to_string()))?;
        for piece in pieces {
            let piece = piece.map_err(|error| Fault(error.to_string()))?;
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            parts.push(
                piece
                    .offset(skip)
                    .map_err(|error| Fault(error.to_string()))?,
            );
            skip = 0;
        }
    }
    Ok(())
}

/// Says that the first `length` bytes of `parts` were written by the kernel, which vm-memory does not see.
pub(crate) fn mark(parts: &[Part<'_>], mut length: usize) {
    for part in parts {
        let here = part.len().min(length);
        if here == 0 {
            return;
        }
        part.bitmap().mark_dirty(0, here);
        length -= here;
    }
}

/// Copies `bytes` into `parts` from their `at`-th byte on. Returns how many fitted.
pub(crate) fn scatter(parts: &[Part<'_>], mut at: usize, bytes: &[u8]) -> usize {
    let mut done = 0;
    for part in parts {
        if at >= part.len() {
            at -= part.len();
            continue;
        }
        let here = (part.len() - at).min(bytes.len() - done);
        // In bounds by the line above, so that the write is whole.
        done += part.write(&bytes[done..done + here], at).unwrap_or(0);
        at = 0;
        if done == bytes.len() {
            break;
        }
    }
    done
}

/// Copies the start of `parts` into `bytes`. Returns how many there were.
pub(crate) fn gather(parts: &[Part<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for part in parts {
        let here = part.len().min(bytes.len() - done);
        done += part.read(&mut bytes[done..done + here], 0).unwrap_or(0);
        if done == bytes.len() {
            break;
        }
    }
    done
}

/// One chain taken from a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Its head, which names it when it is handed back.
    pub(crate) head: u16,
    /// Whether it obeys the rules. If not, it is to be handed back with length 0.
    pub(crate) sound: bool,
}

/// A virtqueue during one turn of its device.
pub(crate) struct Ring<'a> {
    queue: &'a mut Queue,
    memory: &'a Ram,
    gate: &'a Gate,
    returned: bool,
}

impl<'a> Ring<'a> {
    /// Begins a turn.
    pub(crate) fn new(queue: &'a mut Queue, memory: &'a Ram, gate: &'a Gate) -> Self {
        Self {
            queue,
            memory,
            gate,
            returned: false,
        }
    }

    /// Guest memory.
    pub(crate) fn memory(&self) -> &'a Ram {
        self.memory
    }

    /// Whether the machine is being paused: to be asked between two units of work, and then to be obeyed.
    pub(crate) fn interrupted(&self) -> bool {
        !self.gate.is_open()
    }

    /// Takes the next chain and its buffers. `None`: the guest offers no more at the moment.
    pub(crate) fn take(&mut self, buffers: &mut Buffers) -> Result<Option<Taken>, Fault> {
        let memory = self.memory;
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        if head >= self.queue.size() {
            return Err(Fault(format!("the available ring names descriptor {head}")));
        }
        let sound = buffers.fill(memory, chain);
        Ok(Some(Taken { head, sound }))
    }

    /// Hands a chain back with `length` bytes written to it.
    pub(crate) fn give(&mut self, head: u16, length: u32) -> Result<(), Fault> {
        self.returned = true;
        Ok(self.queue.add_used(self.memory, head, length)?)
    }

    /// Asks the guest to kick at the next chain. True: one is there already, look again.
    pub(crate) fn listen(&mut self) -> Result<bool, Fault> {
        Ok(self.queue.enable_notification(self.memory)?)
    }

    /// Asks the guest not to kick.
    pub(crate) fn ignore(&mut self) -> Result<(), Fault> {
        Ok(self.queue.disable_notification(self.memory)?)
    }

    /// Ends the turn: whether the guest wants an interrupt for what was handed back.
    pub(crate) fn finish(self) -> Result<bool, Fault> {
        if !self.returned {
            return Ok(false);
        }
        let wanted = self.queue.needs_notification(self.memory)?;
        if self.queue.event_idx_enabled() {
            return Ok(wanted);
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed)
            .map_err(|error| Fault(error.to_string()))?;
        Ok(flags & NO_INTERRUPT == 0)
    }
}
