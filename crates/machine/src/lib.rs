//! One virtual machine on KVM: its memory, vCPUs, chipset, devices, boot and state.
//!
//! The order of a life is [`Paused::boot`] or [`Paused::restore`], then [`Paused::resume`] gives a running
//! [`Machine`], and [`Machine::pause`] gives a [`Paused`] back. State can be captured only from a [`Paused`]
//! machine, which only `pause()` (or creation) gives: misuse does not compile.

pub mod config;
pub mod devices;
mod error;
mod machine;
pub mod memory;
pub mod state;

pub use error::Error;
pub use machine::{Exit, Handle, Machine, Paused, Statistics};
