//! Media: G.711 over RTP (RFC 3550, RFC 3551) in packets of 20 ms, sent at an even pace, and what came of each stream.
//!
//! Each packet says in its payload which stream and which of its packets it is and when it was sent, so that nothing has
//! to be guessed behind a relay that rewrites headers, and one-way delay needs no second clock: sender and receiver are
//! one program. [`Account`] is pure; [`stream`] has the threads, [`socket`] the system calls.

mod account;
mod pacing;
mod packet;
mod quality;
pub mod socket;
pub mod stream;
pub mod tshark;

pub use account::{Account, Playout, Report, Sent};
pub use pacing::{Pacing, PacingReport};
pub use packet::{Codec, Header, Mark, PACKET, PAYLOAD, encode, parse};
pub use quality::{Concealment, Conditions, mos, rating};

use std::time::Duration;

/// From one packet to the next.
pub const INTERVAL: Duration = Duration::from_millis(20);
/// Samples in a packet, which is also what the RTP timestamp advances by: 8000 a second.
pub const SAMPLES: u32 = 160;
/// The clock rate of G.711 in Hz (RFC 3551, table 4).
pub const CLOCK: f64 = 8000.0;
