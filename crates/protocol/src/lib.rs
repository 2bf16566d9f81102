//! Romulus's protocol: who may run a machine, what may leave it, and what is said to whom.
//!
//! Everything here is pure: no file, socket, thread or clock. A state machine is told of events
//! with the time at which they happened, and answers with actions. An engine carries them out, in
//! order; the simulator (feature `simulator`) is another engine, whose world is adverse.
//!
//! | module | holds |
//! | --- | --- |
//! | [`record`], [`arbiter`] | the arbiter's record, its changes, and its keeper |
//! | [`host`] | one process of one machine: waiting, backup, frozen, primary |
//! | [`detector`], [`lanes`], [`timing`] | heartbeats, ages, time-outs and their inequalities |
//! | [`control`] | when an epoch ends |
//! | [`sidecar`] | the note beside each disk that cold starts need |
//! | [`wire`] | messages as bytes |

pub mod arbiter;
pub mod control;
pub mod detector;
mod guards;
pub mod heartbeat;
pub mod host;
pub mod id;
pub mod lanes;
pub mod message;
#[cfg(test)]
mod model;
pub mod record;
pub mod sidecar;
#[cfg(any(test, feature = "simulator"))]
pub mod sim;
pub mod time;
pub mod timing;
pub mod wire;

#[cfg(any(test, feature = "weaken"))]
pub use guards::{Guard, Guards};
