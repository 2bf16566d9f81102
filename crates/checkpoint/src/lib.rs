//! One epoch of a machine as bytes, and back.
//!
//! ```text
//!   primary                                            backup
//!     memory ─▶ Staging ─▶ Encoder ── parts ──▶ Replica ─▶ memory, state
//!     disk writes ─▶ DiskEpoch ──┘                 └─▶ Journal ─▶ Image
//! ```
//!
//! [`Staging`] takes what is copied while the machine is paused. [`Encoder`] makes parts of it while the machine runs
//! again, sending only what differs from what it sent before. [`Replica`] gathers and checks the parts, changes nothing
//! until the whole epoch is there and right, and then applies it in a step that cannot fail.
//!
//! The room has no socket, no thread and no clock; files are opened by nobody here, and only [`disk`] reads and
//! writes those that it is given.

mod bytes;
mod coder;
mod decode;
pub mod disk;
mod encoder;
mod error;
mod pages;
mod replica;
mod runs;
mod section;
mod shadow;
mod staging;

pub use encoder::{Counts, Encoder, Sealed};
pub use error::ReplicaError;
pub use pages::{PAGE, Pages};
pub use replica::Replica;
pub use section::PART_MAX;
pub use staging::Staging;
