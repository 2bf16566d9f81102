//! Telephony on top of the machines: what is measured of calls and of their media.
//!
//! - [`media`]: paced G.711 streams over RTP, and what became of them: loss, gaps, delay, jitter, MOS.
//! - [`call`]: SIP user agents that set calls up through a server, keep them and end them.
//! - [`probe`]: the two together, with sockets and threads: many calls side by side, each with its media.
//! - [`sipstone`]: what the paper and `SIPstone` measured: which work, in which order, into which tables.
//! - [`report`]: results as files: tables, and a page that can be sent around.
//! - [`random`]: random numbers that a seed repeats.
//!
//! Accounting and state machines are pure: they are given the time and what was received. Sockets, threads and clocks
//! are in `media::stream`, `media::socket` and `probe`.

pub mod call;
pub mod media;
pub mod probe;
pub mod random;
pub mod report;
pub mod sipstone;
