//! Hosts to test on.
//!
//! A [`Lab`] is a few hosts with three networks between them, and a client. Each host is a QEMU machine that emulates an AMD
//! processor with SVM, so that a stock Debian kernel in it has a real `/dev/kvm`; where the computer's own KVM runs such a
//! kernel, hosts are namespaces on it instead, with the same interface.
//!
//! All of it is inside namespaces that the process makes first ([`inside`]): nothing can reach the computer's network, and
//! nothing outlives the process.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let progress = images::Progress::new();
//! let image = lab::inside(|| lab::prepare(&progress))?;
//! let config = lab::LabConfig { image: Some(image), ..Default::default() };
//! let lab = lab::Lab::start(&config, &progress)?;
//! lab.host(1).sh("ping -c 1 198.51.100.2")?;
//! lab.host(2).power_off()?;
//! # Ok(())
//! # }
//! ```

pub mod agent;
mod client;
mod config;
pub mod control;
mod detect;
mod enter;
mod fault;
mod host;
mod image;
mod lab;
mod links;
mod namespace;
mod network;
mod process;
pub mod protocol;
mod qemu;
mod remote;
mod space;
mod terminal;
mod vmlinux;

pub use client::Client;
pub use config::{Kind, LabConfig};
pub use detect::{detect, own_kvm};
pub use enter::{inside, is_inside};
pub use fault::Fault;
pub use host::Host;
pub use image::{HostImage, build, prepare};
pub use lab::Lab;
pub use network::{Direction, MAX_HOSTS, Network};
pub use remote::{Agent, Remote, Sink};
pub use terminal::attach;
