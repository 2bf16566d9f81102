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
mod error;
mod exit;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod ioctl;
mod machine;
pub mod memory;
mod page_set;
pub mod ports;
pub mod probe;
pub mod state;
pub mod tiny;
mod tracking_costs;
mod vcpu;
mod warm;

pub use boot::prepare_kernel;
pub use devices::{CableEnd, TapWriter};
pub use error::Error;
pub use exit::Exit;
pub use machine::{Handle, Likeness, Machine, Paused, Statistics, StopTimes, likeness};
pub use memory::Memory;
pub use page_set::PageSet;
pub use ports::{DiskLog, Incoming, Inlet, Outgoing, Outlet, Ports};
pub use tracking_costs::{TrackingCosts, tracking_costs};
pub use warm::WarmPages;
