//! What a virtio device is to its transport.

use super::ring::{Fault, Ring};
use crate::state::{Fields, Payload, StateError};
use std::os::fd::RawFd;

/// What is left after a turn of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Nothing: a kick, or the device's own event, tells of more.
    Done,
    /// Something, left because a turn is bounded. It wants another turn soon.
    More,
}

/// A device, apart from any transport: it knows its features, its configuration and what its queues mean.
///
/// All calls are made with the function's lock held, so that none overlap.
pub(crate) trait VirtioDevice: Send {
    /// The device's number (virtio 1.2, section 5).
    fn id(&self) -> u32;

    /// Largest size of each queue; the number of queues is its length.
    fn queue_sizes(&self) -> &'static [u16];

    /// The features that it offers, without those of the transport and the rings.
    fn features(&self) -> u64;

    /// Whether a driver's choice among [`Self::features`] makes sense.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The configuration space, little endian.
    fn config(&self) -> Vec<u8>;

    /// The driver is ready (`DRIVER_OK`) with these features. Also called after the state was restored.
    fn activate(&mut self, features: u64) -> Result<(), Fault>;

    /// Back to the start: whatever was taken from the queues is forgotten.
    fn reset(&mut self);

    /// One queue was stopped by its driver: whatever was taken from it is forgotten.
    fn reset_queue(&mut self, queue: usize);

    /// Does a bounded turn of work at a queue.
    fn process(&mut self, queue: usize, ring: &mut Ring<'_>) -> Result<Work, Fault>;

    /// A descriptor that becomes readable when there is work for queue 0 from outside.
    fn event_source(&self) -> Option<RawFd> {
        None
    }

    /// Whether [`Self::event_source`] is worth watching at the moment.
    fn listens(&self) -> bool {
        false
    }

    /// A frame that is to come before anything from outside; one with which the device can do nothing is dropped.
    fn inject(&mut self, frame: &[u8]) {
        let _ = frame;
    }

    /// Takes what has come from outside while the guest stands, `frames` at most: everybody who learns of frames learns of these, and
    /// the guest gets them first of all when it goes on. How many it took.
    fn take_in(&mut self, frames: usize) -> usize {
        let _ = frames;
        0
    }

    /// How many chains it has taken from a queue and not handed back. They are always the last ones taken, because every
    /// device hands chains back in the order in which it took them: saved state is the queue moved back by so many.
    fn taken(&self, queue: usize) -> u16;

    /// Kind of its section of saved state.
    fn kind(&self) -> u32;

    /// Writes its own state.
    fn save(&self, payload: &mut Payload<'_>);

    /// Takes its own state, after [`Self::reset`], and [`Self::activate`] where the driver was ready.
    fn restore(&mut self, fields: &mut Fields<'_>) -> Result<(), StateError>;
}
