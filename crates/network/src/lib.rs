//! The network around a machine: output that is held, addresses that are learned, and announcements.
//!
//! Everything here is pure: no socket, thread or clock. Times come as arguments, in nanoseconds
//! since an origin that the caller chooses and keeps to.
//!
//! | module | holds |
//! | --- | --- |
//! | [`queue`] | output of a machine that waits for the commit of its epoch |
//! | [`addresses`] | what addresses the machine has, learned from what it sends |
//! | [`announce`] | frames that say "this address is here now", and when to send them |
//! | [`ethernet`] | what those two share: MAC addresses, VLANs |
//! | [`flow`] | what a frame carries: certainly media, or anything else |
//! | [`mode`] | which frames may leave before their epoch is committed |
//! | [`in_flight`] | what is on its way when a host dies, kept beside the replica |
//! | [`histogram`] | how long things took, in a fixed amount of memory |

pub mod addresses;
pub mod announce;
pub mod ethernet;
pub mod flow;
pub mod histogram;
pub mod in_flight;
pub mod mode;
pub mod queue;

pub use addresses::Addresses;
pub use announce::Schedule;
pub use ethernet::{Mac, Vlan};
pub use histogram::Delays;
pub use mode::Mode;
pub use queue::OutputQueue;

/// Length of the virtio-net header in front of every frame, the count of buffers included
/// (virtio 1.2, section 5.1.6).
pub const HEADER: usize = 12;
