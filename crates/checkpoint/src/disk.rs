//! Disks: the writes of an epoch, and resynchronisation.

mod epoch;
mod image;
pub mod resync;
mod wire;

pub use epoch::{Content, DiskEpoch, DiskFull, DiskWrite};
pub use image::Image;
pub(crate) use wire::{DiskSteps, Packing};
