//! One virtual machine on KVM: its memory, vCPUs, chipset, devices, boot and state.
//!
//! The order of a life is [`Paused::boot`] or [`Paused::restore`], then [`Paused::resume`] gives a running
//! [`Machine`], and [`Machine::pause`] gives a [`Paused`] back. State can be captured only from a [`Paused`]
//! machine, which only `pause()` (or creation) gives: misuse does not compile.

mod acpi;
mod boot;
mod chipset;
pub mod config;
pub mod devices;
mod dirty;
mod error;
mod exit;
mod ioctl;
mod machine;
pub mod memory;
pub mod probe;
pub mod state;
pub mod tiny;
mod vcpu;

pub use boot::prepare_kernel;
pub use dirty::DirtyPages;
pub use error::Error;
pub use exit::Exit;
pub use machine::{Handle, Machine, Paused, Statistics};
pub use memory::Memory;
