//! Disks: the writes of an epoch, the journal through which they reach the backup's images, and resynchronisation.
//!
//! # The backup, epoch by epoch
//! 1. [`Replica::verify`](crate::Replica::verify).
//! 2. If there are any [disk writes](crate::Replica::disk_writes), [`Journal::append`]; if the epoch [has a
//!    flush](crate::Replica::has_flush), [`Journal::sync`].
//! 3. [`Replica::apply`](crate::Replica::apply), commit.
//! 4. Now and then, when the journal has grown or there is time: [`Journal::settle`].
//!
//! At a takeover [`Journal::apply`] brings the images up to the last committed epoch before the guest runs; what holds from then
//! until [`Journal::settle`] is said there.

mod epoch;
mod image;
mod journal;
pub mod resync;
mod wire;

pub use epoch::{Content, DiskEpoch, DiskFull, DiskWrite};
pub use image::Image;
pub use journal::{Journal, JournalError, Replayed};
pub(crate) use wire::{DiskSteps, Packing};
