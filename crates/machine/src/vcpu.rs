//! The virtual processors: what they are, their state, and the threads that run them.

pub(crate) mod cpuid;
mod gate;
mod help;
pub(crate) mod msrs;
mod run;
mod sleep;
pub(crate) mod state;
mod team;

pub(crate) use run::Bus;
pub(crate) use state::{Caps, Vcpu};
pub(crate) use team::Team;
