//! One virtual machine on KVM: its memory, vCPUs, chipset, devices, boot and state.
//!
//! The order of a life is [`Paused::boot`], or [`Paused::prepare`] and [`Paused::load`], then [`Paused::resume`] gives a
//! running [`Machine`], and [`Machine::pause`] gives a [`Paused`] back. State can be captured only from a [`Paused`]
//! machine, which only `pause()` (or creation) gives: misuse does not compile.

mod acpi;
mod boot;
mod chipset;
pub mod config;
pub mod devices;
mod dirty;
mod error;
mod exit;
mod first_write;
mod ioctl;
mod machine;
pub mod memory;
pub mod ports;
pub mod probe;
pub mod state;
pub mod tiny;
mod vcpu;

pub use boot::prepare_kernel;
pub use devices::TapWriter;
pub use dirty::DirtyPages;
pub use error::Error;
pub use exit::Exit;
pub use first_write::first_write_cost;
pub use machine::{Handle, Likeness, Machine, Paused, Statistics, StopTimes, likeness};
pub use memory::Memory;
pub use ports::{DiskLog, Outgoing, Outlet, Ports};
