//! Telephony on top of the machines: what is measured of calls and of their media.
//!
//! - [`media`]: paced G.711 streams over RTP, and what became of them: loss, gaps, delay, jitter, MOS.
//! - [`call`]: SIP user agents that set calls up through a server, keep them and end them.
//! - [`probe`]: the two together, with sockets and threads: many calls side by side, each with its media.
//!
//! Accounting and state machines are pure: they are given the time and what was received. Sockets, threads and clocks
//! are in `media::stream`, `media::socket` and `probe`.

pub mod call;
pub mod media;
pub mod probe;
